//! Soft-dirty bits (`admin-guide/mm/soft-dirty.rst`).
//!
//! The kernel sets bit 55 of a page's entry in the pagemap when the page is written, or its mapping is
//! new or has moved, and resets all bits of a process when 4 is written to its `clear_refs`. Reading and
//! resetting are two steps; what is written in between would be lost, so the service is frozen for both.
//!
//! A page that was dropped and then only read is the kernel's page of zeros, and is not marked. That one
//! can't be told from others by what everybody may see, except that it is never mapped by one process
//! alone (bit 56): pages that aren't exclusive count as written always. They are few, and a shared page
//! is read again at every look.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::time::Duration;

use super::entries::{EXCLUSIVE, FILE_OR_SHARED, PRESENT, SOFT_DIRTY};
use super::mappings::{self, Mapping};
use super::{Moment, PAGE, Seen, Tracker, direct, entries};
use crate::carry::Process;
use crate::freezer::Freezer;

/// How long a service may take to freeze for a look.
const FREEZE_WITHIN: Duration = Duration::from_secs(2);

/// Further apart than the pages of one huge page (2 MiB), which has one bit for all of them.
const APART: u64 = 4 << 20;

/// Whether this kernel has them: without `CONFIG_MEM_SOFT_DIRTY` a reset is no error, and nothing is marked.
pub(super) fn is_here() -> bool {
    let tried = || {
        let mut pages = vec![1_u8; 2 * APART as usize];
        reset(std::process::id() as i32)?;
        let first = (pages.as_ptr() as u64).next_multiple_of(PAGE);
        let at = (first - pages.as_ptr() as u64 + APART) as usize;
        // The compiler must not leave it out.
        std::hint::black_box(&mut pages)[at] = 2;
        let pagemap = File::open("/proc/self/pagemap")?;
        let is_marked = |start| {
            let (mut marked, end) = (false, start + PAGE);
            let look = |_, entry| marked = entry & SOFT_DIRTY != 0;
            entries::each(&pagemap, Mapping { start, end }, look).map(|()| marked)
        };
        Ok::<_, io::Error>(!is_marked(first)? && is_marked(first + APART)?)
    };
    tried().unwrap_or(false)
}

/// Tracks by soft-dirty bits.
#[derive(Debug)]
pub struct SoftDirty {
    /// Of the service's group.
    freezer: Freezer,
    /// Processes whose bits we have reset, by their number and when they were started.
    known: BTreeSet<(i32, u64)>,
}

impl SoftDirty {
    /// For the processes of one group, which is frozen for a moment at each look.
    pub fn new(freezer: Freezer) -> Self {
        Self {
            freezer,
            known: BTreeSet::new(),
        }
    }

    /// Reads and resets, while nobody writes.
    fn look_at_all(&mut self, processes: &[Process], moment: Moment) -> io::Result<Vec<Seen>> {
        let known = std::mem::take(&mut self.known);
        let (mut all, mut next) = (Vec::new(), BTreeSet::new());
        for process in processes {
            let Some((seen, started)) = look_at(*process, &known)? else {
                continue;
            };
            if seen.untracked.is_none() {
                next.insert((process.pid, started));
            }
            all.push(seen);
        }
        // All are read before the first is reset: two of them may have one memory (vfork(2)).
        if moment == Moment::Running {
            for (pid, _) in &next {
                reset(*pid)?;
            }
        }
        self.known = next;
        Ok(all)
    }
}

impl Tracker for SoftDirty {
    fn look(&mut self, processes: &[Process], moment: Moment) -> io::Result<Vec<Seen>> {
        if moment == Moment::Frozen {
            return self.look_at_all(processes, moment);
        }
        self.freezer.freeze(FREEZE_WITHIN)?;
        let seen = self.look_at_all(processes, moment);
        self.freezer.thaw()?;
        seen
    }

    fn disarm(&mut self, _: &[Process]) {
        // Bits that nobody resets stay set, as they are of every process that nobody tracks.
        self.known.clear();
    }
}

/// Looks at one process; `None` when it has ended.
fn look_at(process: Process, known: &BTreeSet<(i32, u64)>) -> io::Result<Option<(Seen, u64)>> {
    let pid = process.pid;
    let Some(started) = started(pid) else {
        return Ok(None);
    };
    let text = mappings::text(pid, "maps")?;
    if text.is_empty() {
        return Ok(None);
    }
    let maps = mappings::parse(&text)?;
    let pagemap = File::open(format!("/proc/{pid}/pagemap"))?;
    let mut seen = Seen::nothing(process);
    for mapping in &maps.private {
        read(&pagemap, *mapping, &mut seen)?;
    }
    if let Some(reason) = direct::reads(pid, &maps) {
        seen.distrust(reason);
    } else if !known.contains(&(pid, started)) {
        seen.written = seen.held.clone();
    }
    Ok(Some((seen, started)))
}

fn read(pagemap: &File, mapping: Mapping, seen: &mut Seen) -> io::Result<()> {
    entries::each(pagemap, mapping, |from, entry| {
        let to = from + PAGE;
        match state(entry) {
            State::Nothing => {}
            State::Unchanged => seen.held.insert(from, to),
            State::Written => {
                seen.held.insert(from, to);
                seen.written.insert(from, to);
            }
        }
    })
}

/// What an entry says of its page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Nothing,
    Unchanged,
    Written,
}

fn state(entry: u64) -> State {
    if !entries::has_content(entry) {
        return State::Nothing;
    }
    let own = entry & (SOFT_DIRTY | EXCLUSIVE | FILE_OR_SHARED | PRESENT) == EXCLUSIVE | PRESENT;
    match own {
        true => State::Unchanged,
        false => State::Written,
    }
}

fn reset(pid: i32) -> io::Result<()> {
    match fs::write(format!("/proc/{pid}/clear_refs"), "4") {
        // It has ended.
        Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => Ok(()),
        other => other,
    }
}

/// When a process was started (proc_pid_stat(5), field 22); `None` when it has ended.
fn started(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may hold anything.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod test {
    use super::super::entries::{GUARD, SWAPPED};
    use super::*;

    #[test]
    fn unchanged_is_what_surely_is() {
        let own = PRESENT | EXCLUSIVE;
        assert_eq!(state(own | 0x1234), State::Unchanged);
        assert_eq!(state(own | SOFT_DIRTY), State::Written);
        assert_eq!(
            state(PRESENT),
            State::Written,
            "the page of zeros, or one of two processes"
        );
        assert_eq!(state(SWAPPED), State::Written, "nobody says whose it is");
        assert_eq!(state(own | FILE_OR_SHARED), State::Written);
        assert_eq!(state(0), State::Nothing);
        assert_eq!(state(SWAPPED | GUARD), State::Nothing);
    }

    #[test]
    fn a_process_is_known_by_when_it_was_started() {
        let own = std::process::id() as i32;
        assert!(started(own).is_some());
        assert_eq!(started(own), started(own));
        assert_eq!(started(0), None);
    }
}
