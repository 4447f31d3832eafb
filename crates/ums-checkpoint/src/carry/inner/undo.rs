//! What is put back in System V semaphores when a process ends (SEM_UNDO, `semop(2)`).
//!
//! The kernel tells it to nobody, but refuses what would bring an adjustment beyond its bounds
//! (`ipc/sem.c`, `perform_atomic_semop`). So a process is asked by operations of which the last one can
//! never be done, so that none is: whether they are refused for the bounds (ERANGE) or for the last one
//! (EAGAIN) tells whether the adjustment is below a number. It is made again by two operations that
//! leave the semaphore as it is, of which one counts.

use std::fs::File;
use std::io;
use std::thread;

use nix::libc;
use nix::sched::{CloneFlags, setns};
use serde::{Deserialize, Serialize};
use ums_core::facts::LossKind;

use super::super::Lost;
use crate::inside::{Inside, PAGE};

/// SEMVMX: the most that a semaphore, and an adjustment, can be.
const MOST: i32 = 32_767;
/// SEMOPM: operations of one call, where the kernel does not say.
const OPERATIONS: usize = 500;
/// Operations that ask for one semaphore.
const QUESTION: usize = 11;
/// Semaphores of one set that are asked for: their values fit into a page.
const SEMAPHORES_MAX: usize = PAGE / 2;
/// `semctl(2)`.
const GETALL: u64 = 13;

/// A set of semaphores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Set {
    id: i32,
    semaphores: usize,
}

/// The sets that have ever been operated on, and the most operations of one call.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Sets {
    sets: Vec<Set>,
    operations: usize,
}

/// An adjustment of one semaphore for one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::carry) struct Undo {
    set: i32,
    number: u16,
    adjustment: i32,
}

/// One operation: semaphore, what is added, whether it is undone.
type Operation = (u16, i32, bool);

impl Sets {
    /// Those in the IPC namespace of a process.
    pub(super) fn of(pid: i32) -> io::Result<Self> {
        let namespace = File::open(format!("/proc/{pid}/ns/ipc"))?;
        // A thread of its own, which ends with the namespace it has entered.
        let asking = thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWIPC)?;
            let table = std::fs::read_to_string("/proc/sysvipc/sem")?;
            let limits = std::fs::read_to_string("/proc/sys/kernel/sem").unwrap_or_default();
            Ok(parse(&table, &limits))
        });
        let answer = asking.join();
        answer.unwrap_or_else(|_| Err(io::Error::other("the asking thread panicked")))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sets.is_empty()
    }
}

/// `/proc/sysvipc/sem`: key, id, permissions, number, four owners, time of the last operation; and
/// `/proc/sys/kernel/sem`, of which the third number is SEMOPM.
fn parse(table: &str, limits: &str) -> Sets {
    let sets = table.lines().skip(1).filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, id, _, semaphores, _, _, _, _, operated, ..] = words[..] else {
            return None;
        };
        let set = Set {
            id: id.parse().ok()?,
            semaphores: semaphores.parse().ok()?,
        };
        (operated != "0").then_some(set)
    });
    let limit = limits.split_whitespace().nth(2);
    Sets {
        sets: sets.collect(),
        operations: limit
            .and_then(|word| word.parse().ok())
            .unwrap_or(OPERATIONS),
    }
}

/// The adjustments of a process, and what can't be found out.
pub(super) fn ask(pid: i32, sets: &Sets, inside: &mut Inside) -> (Vec<Undo>, Vec<Lost>) {
    let (mut found, mut lost) = (Vec::new(), Vec::new());
    for set in &sets.sets {
        match set.ask(sets.operations, inside) {
            Ok(undo) => found.extend(undo),
            // It may not operate on them, or they are gone.
            Err(error) if is_none_of_its(&error) => {}
            Err(error) => {
                let id = set.id;
                let what = format!(
                    "what it has taken of semaphore set {id} with SEM_UNDO, if anything: {error}"
                );
                lost.push(Lost::new(LossKind::SemaphoreUndo, pid, what));
            }
        }
    }
    (found, lost)
}

fn is_none_of_its(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EACCES | libc::EINVAL | libc::EIDRM)
    )
}

impl Set {
    fn ask(self, operations: usize, inside: &mut Inside) -> io::Result<Vec<Undo>> {
        let Self { id, semaphores } = self;
        // The last operation of a call is the one that can't be done.
        let at_once = operations.min(OPERATIONS).saturating_sub(1) / QUESTION;
        if semaphores > SEMAPHORES_MAX || at_once == 0 {
            return Err(io::Error::other("it can't be asked for"));
        }
        let values = values(id, semaphores, inside)?;
        let values: Vec<(u16, i32)> = (0..).zip(values).collect();
        let mut found = Vec::new();
        for some in values.chunks(at_once) {
            let question = |all: &[(u16, i32)]| -> Vec<Operation> {
                let each = all
                    .iter()
                    .flat_map(|(number, value)| is_any(*number, *value));
                each.collect()
            };
            if !is_refused(id, question(some), inside)? {
                continue;
            }
            for (number, value) in some {
                if is_refused(id, question(&[(*number, *value)]), inside)? {
                    let adjustment = adjustment(*number, |mut asked| {
                        asked.insert(0, (*number, -value, false));
                        is_refused(id, asked, inside)
                    })?;
                    found.push(Undo {
                        set: id,
                        number: *number,
                        adjustment,
                    });
                }
            }
        }
        Ok(found)
    }
}

/// The values of the semaphores of a set.
fn values(id: i32, semaphores: usize, inside: &mut Inside) -> io::Result<Vec<i32>> {
    let page = inside.page()?;
    inside.call(libc::SYS_semctl, &[id as u64, 0, GETALL, page])?;
    let bytes: [u8; PAGE] = inside.lent()?;
    let numbers = bytes.chunks_exact(2).take(semaphores);
    Ok(numbers
        .map(|two| i32::from(u16::from_ne_bytes([two[0], two[1]])))
        .collect())
}

/// Operations on a semaphore of this value that are refused for their bounds if the adjustment is not 0.
fn is_any(number: u16, value: i32) -> [Operation; QUESTION] {
    [
        (-value, false),
        // 32,768 less: refused where it was negative.
        (MOST, true),
        (-MOST, false),
        (1, true),
        (-1, false),
        // 65,535 more: refused where it was positive.
        (MOST, false),
        (-MOST, true),
        (MOST, false),
        (-MOST, true),
        (1, false),
        (-1, true),
    ]
    .map(|(add, undo)| (number, add, undo))
}

/// Finds an adjustment by whether operations on a semaphore that is 0 are refused for their bounds.
fn adjustment(
    number: u16,
    mut is_refused: impl FnMut(Vec<Operation>) -> io::Result<bool>,
) -> io::Result<i32> {
    // What is subtracted from it in the end, 0 to 65,535, by steps that the semaphore can take.
    let less = |total: i32| {
        let step = |part: i32| [(number, part, true), (number, -part, false)];
        let parts = [
            total.min(MOST),
            (total - MOST).clamp(0, MOST),
            (total - 2 * MOST).max(0),
        ];
        parts
            .into_iter()
            .filter(|part| *part > 0)
            .flat_map(step)
            .collect()
    };
    let (mut from, mut to) = (-MOST - 1, MOST);
    while from < to {
        // Whether it is below `middle`.
        let middle = from + (to - from + 1) / 2;
        match is_refused(less(middle + MOST + 1))? {
            true => to = middle - 1,
            false => from = middle,
        }
    }
    Ok(from)
}

/// Whether these operations are refused for the bounds of an adjustment; none of them is done.
fn is_refused(id: i32, mut operations: Vec<Operation>, inside: &mut Inside) -> io::Result<bool> {
    let Some((number, ..)) = operations.last().copied() else {
        return Ok(false);
    };
    operations.push((number, -MOST - 1, false));
    match operate(id, &operations, inside) {
        Ok(()) => Err(io::Error::other("an operation was done that can't be")),
        Err(error) => match error.raw_os_error() {
            Some(libc::ERANGE) => Ok(true),
            Some(libc::EAGAIN) => Ok(false),
            _ => Err(error),
        },
    }
}

fn operate(id: i32, operations: &[Operation], inside: &mut Inside) -> io::Result<()> {
    let bytes: Vec<u8> = operations.iter().flat_map(as_bytes).collect();
    let at = inside.lend(&bytes)?;
    let arguments = [id as u64, at, operations.len() as u64];
    inside.call(libc::SYS_semop, &arguments).map(drop)
}

/// `struct sembuf`.
fn as_bytes(&(number, add, undo): &Operation) -> [u8; 6] {
    let flags = libc::IPC_NOWAIT | if undo { libc::SEM_UNDO } else { 0 };
    let (number, add, flags) = (
        number.to_ne_bytes(),
        (add as i16).to_ne_bytes(),
        (flags as i16).to_ne_bytes(),
    );
    [number[0], number[1], add[0], add[1], flags[0], flags[1]]
}

impl Undo {
    /// Makes it again for a process that has none.
    pub(super) fn set(self, inside: &mut Inside) -> io::Result<()> {
        let Self {
            set,
            number,
            adjustment,
        } = self;
        let values = values(set, usize::from(number) + 1, inside)?;
        let value = values.last().copied().unwrap_or(0);
        let mut operations = vec![(number, -value, false)];
        let mut left = adjustment.abs();
        while left > 0 {
            let part = left.min(MOST);
            // What is added with SEM_UNDO is taken in the end.
            operations.extend([
                (number, part, adjustment < 0),
                (number, -part, adjustment > 0),
            ]);
            left -= part;
        }
        operations.push((number, value, false));
        operate(set, &operations, inside)
    }
}

impl std::fmt::Display for Undo {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            set,
            number,
            adjustment,
        } = self;
        write!(
            formatter,
            "{adjustment} is to be added to semaphore {number} of set {set} when it ends (SEM_UNDO)"
        )
    }
}

#[cfg(test)]
mod test {
    use super::*;

    /// What the kernel would do to a semaphore of this value and adjustment.
    fn is_refused(mut value: i32, mut adjustment: i32, operations: &[Operation]) -> bool {
        for (_, add, undo) in operations {
            value += add;
            assert!(
                (0..=MOST).contains(&value),
                "an operation that waits, or is too much"
            );
            if *undo {
                adjustment -= add;
                if !(-MOST - 1..=MOST).contains(&adjustment) {
                    return true;
                }
            }
        }
        false
    }

    #[test]
    fn an_adjustment_is_found() {
        for value in [0, 1, 700, MOST] {
            for of in [-32_768, -32_767, -300, -1, 0, 1, 2, 77, 32_766, 32_767] {
                assert_eq!(is_refused(value, of, &is_any(3, value)), of != 0, "{of}");
                let found = adjustment(3, |asked| Ok(is_refused(0, of, &asked)));
                assert_eq!(found.unwrap(), of);
            }
        }
    }

    #[test]
    fn sets_that_were_operated_on() {
        let table = "key semid perms nsems uid gid cuid cgid otime ctime\n\
                     0 3 600 2 0 0 0 0 1700000000 1700000000\n 0 4 600 1 0 0 0 0 0 1700000000\n";
        let sets = parse(table, "32000 1024000000 100 32000\n");
        assert_eq!(
            sets.sets,
            [Set {
                id: 3,
                semaphores: 2
            }]
        );
        assert_eq!(sets.operations, 100);
        assert_eq!(parse("", "").operations, OPERATIONS);
        assert_eq!(as_bytes(&(2, -1, true))[2..4], (-1_i16).to_ne_bytes());
    }
}
