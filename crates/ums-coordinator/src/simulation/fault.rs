//! What may go wrong, where, and who decides it: a script for the exhaustive runs, chance for the
//! others.

use std::collections::BTreeMap;
use std::time::Duration;

/// One of the two systems. The service begins on A and is to move to B.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Side {
    A,
    B,
}

impl Side {
    pub(super) const BOTH: [Side; 2] = [Side::A, Side::B];

    pub(super) fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }

    pub(super) fn index(self) -> usize {
        self as usize
    }
}

/// Which of the two something strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Which {
    A,
    B,
    Both,
}

impl Which {
    pub(super) fn sides(self) -> Vec<Side> {
        match self {
            Self::A => vec![Side::A],
            Self::B => vec![Side::B],
            Self::Both => Side::BOTH.to_vec(),
        }
    }
}

/// What can be cut off from what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Way {
    ToB,
    ToA,
    Both,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Fault {
    /// What is being done fails, here and the next times: with an answer that says so.
    Fail(u32),
    /// The connection breaks.
    Break,
    /// Nothing more is heard: whoever waits does so until its patience ends.
    Lose,
    /// It goes on after longer than anybody waits.
    Late,
    /// It is done once more, now.
    Twice,
    /// It is done once more, long after.
    TwiceLate,
    /// A Coordinator is killed, and started again.
    Coordinator(Which),
    /// A Coordinator is killed, and started again only after every lease has ended.
    CoordinatorForLong(Which),
    /// A Migration Interface is killed, and started again.
    Agent(Which),
    /// The keeper of the instance there is lost, and the container with it.
    Keeper(Side),
    /// The service there exits by itself.
    Exit(Side),
    /// The two can't talk for a while.
    Cut(Way),
    /// The disk under a journal is full for a while.
    DiskFull(Side),
    /// There is no memory there for a while: nothing can be created, received or restored.
    MemoryFull(Side),
    /// A person asks for an abort.
    Abort,
    /// A journal's write is refused, and not kept.
    Refused,
    /// A journal's write is kept, and said to have failed.
    Doubtful,
    /// A Coordinator is killed before a write is kept.
    DiesBefore,
    /// A Coordinator is killed when a write is kept.
    DiesAfter,
}

/// How long a killed program is away.
pub(super) const DOWN: Duration = Duration::from_millis(700);
/// How long it is when that is longer than any lease.
pub(super) const DOWN_LONG: Duration = Duration::from_secs(20);
/// How long the link is cut, a disk full, memory short: longer than time-outs and the lease.
pub(super) const OUTAGE: Duration = Duration::from_secs(12);
/// How late what is late is.
pub(super) const LATE: Duration = Duration::from_secs(15);

/// Where something can go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Kind {
    /// An operation of an agent, or a part of one, before or after its effect.
    Agent,
    /// A message between Coordinators, or its answer.
    Message,
    /// A durable write to a journal.
    Write,
}

const AT_AGENT: [Fault; 5] = [
    Fault::Fail(1),
    Fault::Fail(3),
    Fault::Fail(10),
    Fault::Break,
    Fault::Late,
];
const AT_MESSAGE: [Fault; 5] = [
    Fault::Break,
    Fault::Lose,
    Fault::Late,
    Fault::Twice,
    Fault::TwiceLate,
];
const AT_WRITE: [Fault; 4] = [
    Fault::Refused,
    Fault::Doubtful,
    Fault::DiesBefore,
    Fault::DiesAfter,
];
const ANYWHERE: [Fault; 19] = [
    Fault::Coordinator(Which::A),
    Fault::Coordinator(Which::B),
    Fault::Coordinator(Which::Both),
    Fault::CoordinatorForLong(Which::A),
    Fault::CoordinatorForLong(Which::B),
    Fault::CoordinatorForLong(Which::Both),
    Fault::Agent(Which::A),
    Fault::Agent(Which::B),
    Fault::Agent(Which::Both),
    Fault::Keeper(Side::A),
    Fault::Keeper(Side::B),
    Fault::Exit(Side::A),
    Fault::Cut(Way::ToB),
    Fault::Cut(Way::ToA),
    Fault::Cut(Way::Both),
    Fault::DiskFull(Side::A),
    Fault::DiskFull(Side::B),
    Fault::MemoryFull(Side::B),
    Fault::Abort,
];

impl Kind {
    /// All that can go wrong there.
    pub(super) fn faults(self) -> Vec<Fault> {
        let own: &[Fault] = match self {
            Self::Agent => &AT_AGENT,
            Self::Message => &AT_MESSAGE,
            // What else happens between two writes happens at what lies between them.
            Self::Write => return AT_WRITE.to_vec(),
        };
        own.iter().chain(&ANYWHERE).copied().collect()
    }
}

/// A moment of a run: the n-th time that this place is passed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Moment {
    pub(super) place: String,
    pub(super) nth: u32,
}

/// A fault at a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Strike {
    pub(super) at: Moment,
    pub(super) fault: Fault,
}

/// Chance, from a seed.
#[derive(Debug)]
pub(super) struct Chance {
    pub(super) rng: fastrand::Rng,
    /// How likely a fault is at each moment.
    rate: f64,
    /// How many there may still be.
    left: u32,
}

impl Chance {
    pub(super) fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        // Most runs should get far before something strikes.
        let rate = 0.004 * 10_f64.powf(rng.f64());
        let left = rng.u32(1..=6);
        Self { rng, rate, left }
    }
}

/// Who decides.
#[derive(Debug)]
pub(super) enum Will {
    Script(Vec<Strike>),
    Chance(Chance),
}

/// Decides at each moment, and remembers all of them.
#[derive(Debug)]
pub(super) struct Fates {
    will: Will,
    passed: BTreeMap<String, u32>,
    /// Every moment so far, in order.
    pub(super) moments: Vec<(Kind, Moment)>,
    /// What has struck.
    pub(super) struck: Vec<Strike>,
    /// What fails again the next time, and how often.
    failing: BTreeMap<String, u32>,
}

impl Fates {
    pub(super) fn new(will: Will) -> Self {
        Self {
            will,
            passed: BTreeMap::new(),
            moments: Vec::new(),
            struck: Vec::new(),
            failing: BTreeMap::new(),
        }
    }

    /// A place is passed: what goes wrong now.
    pub(super) fn pass(&mut self, kind: Kind, place: &str) -> Option<Fault> {
        let nth = self.passed.entry(place.to_owned()).or_default();
        *nth += 1;
        let at = Moment {
            place: place.to_owned(),
            nth: *nth,
        };
        self.moments.push((kind, at.clone()));
        if let Some(times) = self.failing.get_mut(place).filter(|times| **times > 0) {
            *times -= 1;
            return Some(Fault::Fail(*times));
        }
        let fault = match &mut self.will {
            Will::Script(strikes) => {
                let place = strikes.iter().position(|strike| strike.at == at)?;
                strikes.remove(place).fault
            }
            Will::Chance(chance) => {
                if chance.left == 0 || chance.rng.f64() >= chance.rate {
                    return None;
                }
                chance.left -= 1;
                let faults = kind.faults();
                faults[chance.rng.usize(..faults.len())]
            }
        };
        if let Fault::Fail(times) = fault {
            self.failing.insert(place.to_owned(), times - 1);
        }
        let strike = Strike { at, fault };
        self.struck.push(strike);
        Some(fault)
    }

    /// The place that was passed last.
    pub(super) fn last(&self) -> &str {
        self.moments.last().map_or("", |(_, moment)| &moment.place)
    }

    /// Nothing goes wrong any more.
    pub(super) fn end(&mut self) {
        self.will = Will::Script(Vec::new());
        self.failing.clear();
    }

    /// Something between nothing and a bit: messages overtake each other.
    pub(super) fn delay(&mut self) -> Duration {
        match &mut self.will {
            Will::Script(_) => Duration::from_millis(1),
            Will::Chance(chance) => Duration::from_micros(chance.rng.u64(100..20_000)),
        }
    }

    /// Whether a write that was not safe is there after a crash.
    pub(super) fn kept(&mut self) -> bool {
        match &mut self.will {
            Will::Script(_) => false,
            Will::Chance(chance) => chance.rng.bool(),
        }
    }
}
