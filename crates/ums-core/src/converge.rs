//! When the rounds of pre-copy end.
//!
//! A round sends what was written since the one before. As long as less is written in a round than it
//! sends, the next one is shorter; what is left at the end is sent in the freeze. Going on is of use until
//! that takes no longer than the downtime aimed at, and of no use where a service writes as fast as the
//! link sends.

/// What the rounds aim at, and how long they may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// How long sending what is left may take in the freeze, milliseconds.
    pub downtime_ms: u64,
    /// The most rounds.
    pub rounds_max: u32,
    /// How long all rounds together may take, milliseconds: none begins after that.
    pub rounds_ms_max: u64,
}

/// The most rounds of any migration: what a destination must be ready to take is a multiple of the
/// service's memory.
pub const ROUNDS_MAX: u32 = 30;

impl Default for Bounds {
    fn default() -> Self {
        Self {
            downtime_ms: 20,
            rounds_max: ROUNDS_MAX,
            rounds_ms_max: 120_000,
        }
    }
}

/// A round that is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Round {
    /// What it has sent.
    pub bytes: u64,
    /// How long that took.
    pub ms: u64,
}

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// A round, and another decision after it.
    Round,
    /// A last round, short enough that what is written meanwhile meets the aim.
    LastRound,
    /// The freeze.
    Freeze,
}

/// Decides by the rounds so far and by the bytes that were written since the last.
///
/// # Guarantees
/// [`Next::Round`] at most [`ROUNDS_MAX`] times in a row, whatever the numbers are.
pub fn next(done: &[Round], left_bytes: u64, bounds: &Bounds) -> Next {
    let Some(last) = done.last() else {
        return if left_bytes == 0 {
            Next::Freeze
        } else {
            Next::Round
        };
    };
    let rounds = done.len() as u64;
    let elapsed_ms: u64 = sum(done, |round| round.ms);
    let is_over = rounds >= u64::from(bounds.rounds_max.min(ROUNDS_MAX));
    if is_over || elapsed_ms >= bounds.rounds_ms_max || left_bytes == 0 {
        return Next::Freeze;
    }
    if left_bytes <= within(done, elapsed_ms, bounds.downtime_ms) {
        return Next::LastRound;
    }
    // The first round sends what was written in all the service's life: the next says little of the rate.
    let shrinks = left_bytes < last.bytes - last.bytes / 4;
    match shrinks || rounds < 2 {
        true => Next::Round,
        false => Next::Freeze,
    }
}

/// How the rounds of a service are expected to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Foreseen {
    /// How many there are.
    pub rounds: u32,
    /// How long they take together, milliseconds.
    pub ms: u64,
    /// What is left for the freeze, bytes.
    pub left_bytes: u64,
}

/// The rounds of a service with so much memory, of which it writes to so much in a second, over a link that sends so
/// much in a second, all in bytes.
///
/// # Guarantees
/// Ends after [`ROUNDS_MAX`] rounds, whatever the numbers are.
pub fn foresee(memory: u64, written: u64, sent: u64, bounds: &Bounds) -> Foreseen {
    let (mut done, mut left) = (Vec::new(), memory);
    loop {
        let next = next(&done, left, bounds);
        if next != Next::Freeze {
            let ms = scaled(left, 1000, sent.max(1)).max(1);
            done.push(Round { bytes: left, ms });
            left = scaled(written, ms, 1000).min(memory);
        }
        if next != Next::Round {
            return Foreseen {
                rounds: u32::try_from(done.len()).unwrap_or(u32::MAX),
                ms: sum(&done, |round| round.ms),
                left_bytes: left,
            };
        }
    }
}

/// `amount * factor / divisor` without overflow on the way.
fn scaled(amount: u64, factor: u64, divisor: u64) -> u64 {
    let wide = u128::from(amount) * u128::from(factor) / u128::from(divisor);
    u64::try_from(wide).unwrap_or(u64::MAX)
}

/// How much is sent within a time, by the rounds so far.
fn within(done: &[Round], elapsed_ms: u64, ms: u64) -> u64 {
    let bytes = sum(done, |round| round.bytes);
    let within = u128::from(bytes) * u128::from(ms) / u128::from(elapsed_ms.max(1));
    u64::try_from(within).unwrap_or(u64::MAX)
}

fn sum(done: &[Round], of: impl Fn(&Round) -> u64) -> u64 {
    done.iter().map(of).fold(0, u64::saturating_add)
}

#[cfg(test)]
mod test {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn bounds() -> Bounds {
        Bounds::default()
    }

    #[test]
    fn what_is_foreseen_is_what_the_rule_leads_to() {
        let gigabit = 117 * MIB;
        let idle = foresee(1024 * MIB, 0, gigabit, &bounds());
        assert_eq!((idle.rounds, idle.left_bytes), (1, 0));
        assert!((8700..8800).contains(&idle.ms), "{idle:?}");
        let busy = foresee(1024 * MIB, 50 * MIB, gigabit, &bounds());
        assert!(busy.rounds > 2 && busy.left_bytes < 4 * MIB, "{busy:?}");
        assert!(busy.ms > idle.ms * 3 / 2, "{busy:?}");
        // Faster than the link: most of it is left, and the rounds end soon.
        let hopeless = foresee(1024 * MIB, 400 * MIB, gigabit, &bounds());
        assert!(
            hopeless.left_bytes > 900 * MIB && hopeless.rounds <= 3,
            "{hopeless:?}"
        );
        assert_eq!(foresee(0, 1, 1, &bounds()).rounds, 0);
        foresee(u64::MAX, u64::MAX, 0, &bounds());
    }

    /// The rounds of a service that writes so many bytes in a millisecond, over a link that sends so many:
    /// how many there are, and what is left for the freeze.
    fn run(memory: u64, written: u64, sent: u64, bounds: &Bounds) -> (usize, u64) {
        let (mut done, mut left) = (Vec::new(), memory);
        loop {
            let next = next(&done, left, bounds);
            if next == Next::Freeze {
                return (done.len(), left);
            }
            let ms = left / sent.max(1) + 1;
            done.push(Round { bytes: left, ms });
            left = written.saturating_mul(ms).min(memory);
            if next == Next::LastRound {
                return (done.len(), left);
            }
        }
    }

    #[test]
    fn who_writes_nothing_has_one_round() {
        assert_eq!(run(1024 * MIB, 0, MIB / 10, &bounds()), (1, 0));
        assert_eq!(next(&[], 0, &bounds()), Next::Freeze);
    }

    #[test]
    fn who_writes_half_as_fast_as_the_link_gets_to_the_aim() {
        let (rounds, left) = run(1024 * MIB, 50_000, 110_000, &bounds());
        assert!(rounds < 15, "{rounds}");
        assert!(left <= 110_000 * bounds().downtime_ms, "{left}");
    }

    #[test]
    fn who_writes_faster_than_the_link_is_frozen_soon() {
        let (rounds, left) = run(1024 * MIB, 200_000, 110_000, &bounds());
        assert!(rounds <= 2, "{rounds}");
        assert_eq!(left, 1024 * MIB);
    }

    proptest! {
        #[test]
        fn it_ends(memory: u64, written in 0..1_u64 << 40, sent in 0..1_u64 << 40, downtime_ms: u64) {
            let bounds = Bounds { downtime_ms, ..bounds() };
            let (rounds, _) = run(memory, written, sent, &bounds);
            prop_assert!(rounds <= ROUNDS_MAX as usize);
        }

        #[test]
        fn it_is_no_worse_than_no_rounds(memory in 1..1_u64 << 40, written in 0..1_u64 << 30, sent in 1..1_u64 << 30) {
            prop_assert!(run(memory, written, sent, &bounds()).1 <= memory);
        }

        #[test]
        fn any_numbers(rounds in proptest::collection::vec((any::<u64>(), any::<u64>()), 0..40), left: u64) {
            let done: Vec<Round> = rounds.into_iter().map(|(bytes, ms)| Round { bytes, ms }).collect();
            let next = next(&done, left, &bounds());
            prop_assert!(next == Next::Freeze || done.len() < ROUNDS_MAX as usize);
        }
    }
}
