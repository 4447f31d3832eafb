//! Whether a ledger ever executed in two places: the outside witness of the first invariant.
//!
//! A service can't tell by itself whether a twin of it executes: both have the same memory. But each
//! execution leaves a trail in the ledger's file on the system where it executes
//! ([`crate::ledger`]), and the witness holds every such file open from the moment that it appears.
//! So it can be read to its last byte after all was over, also where the system has deleted it.
//!
//! The files of one service, on all systems, are then copies of each other that have been carried
//! on. If one instance at a time has executed, each from where the last one stopped, then any two of
//! them are equal up to the end of the shorter one. An instance that executed beside another one,
//! or that went on from a state that was not the last, has written other times for the same numbers:
//! neither of the two files is the beginning of the other, whatever anybody does afterwards. No
//! clocks are compared, nothing is sampled, and no message can be lost. What is not seen is an
//! execution that ended before its second line, which is within one [`crate::ledger::PERIOD`]: its
//! first line may have been on its way, with its time, when the service was frozen.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

use crate::ledger::{Trail, time_after};

/// How often it is looked for new files: a file is there long before an instance is restored on it.
const LOOK_EVERY: Duration = Duration::from_millis(3);

/// Holds all files that a ledger ever had, in the places where it may be.
#[derive(Debug)]
pub struct Witness {
    stop: Arc<AtomicBool>,
    held: Arc<Mutex<Vec<Held>>>,
    thread: Option<JoinHandle<()>>,
}

/// One file that is or was at one place.
#[derive(Debug)]
struct Held {
    place: usize,
    file: File,
}

/// What the witness saw.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Testimony {
    /// All of the trail.
    pub trail: Trail,
    /// The place where it executed last.
    pub at: usize,
    /// When it executed there beyond all that is known of it elsewhere, at its second line:
    /// nanoseconds since the Unix epoch, by its own account.
    pub since_ns: Option<u64>,
}

impl Witness {
    /// Begins to watch these places.
    pub fn begin(places: Vec<PathBuf>) -> Self {
        let (stop, held) = (Arc::<AtomicBool>::default(), Arc::default());
        let (flag, all) = (Arc::clone(&stop), Arc::clone(&held));
        let thread = std::thread::spawn(move || watch(&places, &flag, &all));
        Self {
            stop,
            held,
            thread: Some(thread),
        }
    }

    /// Ends it and judges what it holds.
    ///
    /// # Errors
    /// When the ledger has executed in two places at once, or from a state that was not its last.
    pub fn end(mut self) -> Result<Testimony> {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().map_err(|_| anyhow!("the witness panicked"))?;
        }
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let mut files = Vec::new();
        for Held { place, file } in held.iter_mut() {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            files.push((*place, bytes));
        }
        judge(files)
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn watch(places: &[PathBuf], stop: &AtomicBool, held: &Mutex<Vec<Held>>) {
    let mut known = BTreeSet::new();
    while !stop.load(Ordering::Relaxed) {
        for (place, path) in places.iter().enumerate() {
            let Ok(file) = File::open(path) else { continue };
            let Ok(metadata) = file.metadata() else {
                continue;
            };
            // A number is not used again while its file is held open.
            if known.insert((metadata.dev(), metadata.ino())) {
                let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
                held.push(Held { place, file });
            }
        }
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Judges files with their places: from the shortest to the longest, each must go on where the one
/// before it ended.
fn judge(mut files: Vec<(usize, Vec<u8>)>) -> Result<Testimony> {
    // Of equal ones the first place's comes last: a whole copy that was never carried on.
    files.sort_by_key(|(place, bytes)| (bytes.len(), Reverse(*place)));
    for pair in files.windows(2) {
        let (shorter, longer) = (&pair[0].1, &pair[1].1);
        let differ = |(one, other): (&u8, &u8)| one != other;
        if let Some(at) = shorter.iter().zip(longer).position(differ) {
            bail!(
                "it executed twice: `{}` in one place and `{}` in another",
                line_at(shorter, at),
                line_at(longer, at)
            );
        }
    }
    let (at, bytes) = files.last().context("the ledger left no trail at all")?;
    let elsewhere = files.iter().filter(|(place, _)| place != at);
    let elsewhere = elsewhere.map(|(_, bytes)| bytes.len()).max();
    Ok(Testimony {
        trail: Trail::read(bytes)?,
        at: *at,
        since_ns: time_after(bytes, elsewhere.unwrap_or_default()),
    })
}

fn line_at(bytes: &[u8], at: usize) -> String {
    let begin = bytes[..at].iter().rposition(|byte| *byte == b'\n');
    let begin = begin.map_or(0, |end| end + 1);
    let end = bytes[at..].iter().position(|byte| *byte == b'\n');
    String::from_utf8_lossy(&bytes[begin..end.map_or(bytes.len(), |end| at + end)]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(files: &[(usize, &str)]) -> Result<Testimony> {
        let files = files
            .iter()
            .map(|(place, text)| (*place, text.as_bytes().to_vec()));
        judge(files.collect())
    }

    #[test]
    fn copies_that_were_carried_on_one_after_the_other_are_one_execution() {
        let first_pass = (1, "t 1 10\n");
        let frozen = (0, "t 1 10\nr 1 11\n");
        let moved = (1, "t 1 10\nr 1 11\nt 2 12\nt 3 90\n");
        let seen = judged(&[frozen, first_pass, moved]).expect("one execution");
        assert_eq!((seen.at, seen.since_ns, seen.trail.ticks), (1, Some(90), 3));
        let held = (1, frozen.1);
        let seen = judged(&[first_pass, held, frozen]).expect("it never moved");
        assert_eq!((seen.at, seen.trail.ticks), (0, 1));
    }

    #[test]
    fn going_on_in_two_places_is_found() {
        let error = judged(&[(0, "t 1 10\nt 2 12\n"), (1, "t 1 10\nt 2 13\nt 3 15\n")]);
        let error = error.expect_err("two executions").to_string();
        assert!(
            error.contains("t 2 12") && error.contains("t 2 13"),
            "{error}"
        );
    }

    #[test]
    fn going_on_from_an_old_state_is_found() {
        // The memory is older than the file, so a number comes again.
        assert!(judged(&[(1, "t 1 10\nt 2 12\nt 2 13\n")]).is_err());
        assert!(judged(&[]).is_err(), "no trail proves nothing");
    }
}
