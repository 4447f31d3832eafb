//! Small deterministic changes to inputs: what the tests use where libFuzzer isn't.

/// Numbers that break more than others do.
const TELLING: [u64; 10] = [
    0,
    1,
    0x7f,
    0xff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0xffff_ffff_ffff_f000,
    u64::MAX,
];

/// The longest input that is made, bytes.
pub const LENGTH_MAX: usize = 64 * 1024;

/// A xorshift generator (Marsaglia 2003): the same seed gives the same inputs for ever.
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        // The state must not be zero.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        // The remainder is below `bound`.
        (self.next() % bound as u64) as usize
    }
}

/// Changes `input` in one to four places; `other` is another input to take parts from.
pub fn mutate(input: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    for _ in 0..=random.below(4) {
        once(input, other, random);
    }
    input.truncate(LENGTH_MAX);
}

fn once(input: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    let at = random.below(input.len() + 1);
    let length = 1 + random.below(16);
    let end = (at + length).min(input.len());
    match random.below(8) {
        0 if at < input.len() => input[at] ^= 1 << random.below(8),
        1 if at < input.len() => input[at] = random.next() as u8,
        2 => drop(input.drain(at..end)),
        3 => {
            let copy = input[at..end].to_vec();
            input.splice(at..at, copy);
        }
        4 => {
            let number = TELLING[random.below(TELLING.len())].to_le_bytes();
            let width = [1, 2, 4, 8][random.below(4)].min(input.len() - at);
            input[at..at + width].copy_from_slice(&number[..width]);
        }
        5 => {
            let number = TELLING[random.below(TELLING.len())].to_string();
            input.splice(at..end, number.into_bytes());
        }
        6 if !other.is_empty() => {
            let from = random.below(other.len());
            let to = (from + 1 + random.below(256)).min(other.len());
            input.splice(at..end, other[from..to].iter().copied());
        }
        _ => input.truncate(at),
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_inputs_and_another_seed_others() {
        let made = |seed| {
            let mut random = Random::new(seed);
            let mut input = b"{\"number\":12345}".to_vec();
            (0..50).for_each(|_| mutate(&mut input, b"other", &mut random));
            input
        };
        assert_eq!(made(1), made(1));
        assert_ne!(made(1), made(2));
    }

    #[test]
    fn nothing_grows_without_end() {
        let (mut random, mut input) = (Random::new(3), vec![7; LENGTH_MAX]);
        for _ in 0..1000 {
            mutate(&mut input, &[1; 4096], &mut random);
            assert!(input.len() <= LENGTH_MAX);
        }
    }
}
