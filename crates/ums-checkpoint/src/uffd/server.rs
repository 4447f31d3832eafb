//! Answers faults and installs pages, for all processes of one restored service.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use super::missing::{Missing, Piece};
use super::sys::{self, Answer, Event};
use super::{Error, PAGE};
use crate::store::{Mapped, StoredExtent};

/// Bytes installed with a page that a thread waits for: what lies behind it is touched next.
const READ_AHEAD: u64 = 64 * 1024;
/// How long installing may stand still because there is no memory, until it is given up.
const STARVED_MAX: Duration = Duration::from_secs(60);
/// Events of one process that are read before the others have their turn.
const EVENTS_MAX: usize = 256;

/// What a server wants next.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// There are pages left to install, and nothing stands in the way.
    Busy,
    /// There are pages left, and what was tried has to wait: for an event, or for memory.
    Waiting,
    /// Every page is in: the descriptors may be closed.
    Done,
}

#[derive(Debug)]
struct Process {
    uffd: OwnedFd,
    missing: Missing,
    hint: u64,
    /// Pages whose fault the kernel would not let us answer yet, because an event comes first.
    faults: Vec<u64>,
    /// A page that lies in no mapping, although no event has said so.
    astray: Option<u64>,
    /// Whether mappings of its have moved.
    moved: bool,
}

/// What became of an attempt to install a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attempt {
    /// All of it is in.
    Installed,
    /// An event has to be read first. What is not in is missing still.
    Changing,
    /// The page at this address lies in no mapping of ours, and is missing still.
    Astray(u64),
    /// No memory. What is not in is missing still.
    NoMemory,
    /// The process is gone.
    Gone,
}

impl Process {
    fn new(uffd: OwnedFd, missing: Missing) -> Self {
        Self {
            uffd,
            missing,
            hint: 0,
            faults: Vec::new(),
            astray: None,
            moved: false,
        }
    }
}

/// Serves the processes of one restored service.
#[derive(Debug)]
pub struct Server {
    source: Mapped,
    processes: Vec<Process>,
    /// Whether two processes may need the same stored pages, so that none is given back early.
    shared: bool,
    starved_since: Option<Instant>,
}

impl Server {
    /// A server with no process yet. `shared`: several processes have pages at one place of the store.
    pub fn new(source: Mapped, shared: bool) -> Self {
        Self {
            source,
            processes: Vec::new(),
            shared,
            starved_since: None,
        }
    }

    /// Adds a process: its userfaultfd, and where its pages are.
    pub fn add(&mut self, uffd: OwnedFd, extents: &[StoredExtent]) {
        let missing = Missing::from_extents(extents);
        self.processes.push(Process::new(uffd, missing));
    }

    /// Pages still to be installed.
    pub fn pages_missing(&self) -> u64 {
        let missing = self.processes.iter().map(|process| process.missing.pages());
        missing.sum()
    }

    /// The descriptors to wait on.
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let processes = self.processes.iter();
        processes.map(|process| process.uffd.as_fd()).collect()
    }

    /// Whether a fault waits for an event, or for memory.
    pub fn is_waiting(&self) -> bool {
        let mut processes = self.processes.iter();
        processes.any(|process| !process.faults.is_empty())
    }

    /// Answers every fault and event that waits. Returns copies of the descriptors of processes forked.
    pub fn serve_events(&mut self) -> Result<Vec<OwnedFd>, Error> {
        let mut forks = Vec::new();
        let mut at = 0;
        while at < self.processes.len() {
            self.read_events(at, &mut forks)?;
            match self.answer_faults(at)? {
                true => at += 1,
                false => drop(self.processes.swap_remove(at)),
            }
        }
        Ok(forks)
    }

    fn read_events(&mut self, at: usize, forks: &mut Vec<OwnedFd>) -> Result<(), Error> {
        for _ in 0..EVENTS_MAX {
            let process = &mut self.processes[at];
            let Some(event) = sys::read_event(process.uffd.as_fd())? else {
                return Ok(());
            };
            match event {
                Event::Fault(address) => {
                    let page = address & !(PAGE - 1);
                    process.hint = page;
                    process.faults.push(page);
                }
                Event::Fork(uffd) => {
                    self.shared = true;
                    forks.push(uffd.try_clone().map_err(Error::Descriptor)?);
                    let missing = process.missing.clone();
                    self.processes.push(Process::new(uffd, missing));
                }
                Event::Remap { from, to, len } => {
                    process.moved = true;
                    process.missing.remap(from, to, len);
                }
                // The range stays registered, and a fault there is answered with zeros. To give it
                // back to the kernel would be faster, and wrong: another mapping of ours may have
                // moved there meanwhile.
                Event::Remove { start, end } => {
                    process.missing.take(start, end.saturating_sub(start));
                }
                // The kernel tells of a move, then that its old place is unmapped; in between
                // another thread may have moved something there. What really lies in no mapping
                // any more goes astray.
                Event::Unmap { .. } if process.moved => {}
                Event::Unmap { start, end } => {
                    process.missing.take(start, end.saturating_sub(start));
                }
            }
        }
        Ok(())
    }

    /// Answers the faults that wait. One that the kernel does not take yet goes on waiting: the
    /// event that has to come first is read in the next round. False: the process is gone.
    fn answer_faults(&mut self, at: usize) -> Result<bool, Error> {
        for page in std::mem::take(&mut self.processes[at].faults) {
            match self.answer_fault(at, page)? {
                Attempt::Installed => {}
                // Its mapping has changed while the thread waited: it looks again.
                Attempt::Astray(address) if address == page => {
                    sys::wake(self.processes[at].uffd.as_fd(), page);
                }
                // The page itself is in; only what lies behind it is elsewhere.
                Attempt::Astray(_) => {}
                Attempt::Changing | Attempt::NoMemory => self.processes[at].faults.push(page),
                Attempt::Gone => return Ok(false),
            }
        }
        Ok(true)
    }

    fn answer_fault(&mut self, at: usize, page: u64) -> Result<Attempt, Error> {
        let process = &self.processes[at];
        if let Some(piece) = process.missing.at(page, READ_AHEAD) {
            return self.install(at, piece);
        }
        let answer = sys::zero(process.uffd.as_fd(), page)?;
        let attempt = match answer {
            Answer::Done(_) | Answer::There => Attempt::Installed,
            Answer::Changing => Attempt::Changing,
            Answer::NotOneMapping => Attempt::Astray(page),
            Answer::NoMemory => Attempt::NoMemory,
            Answer::Gone => Attempt::Gone,
        };
        self.note_memory(attempt)?;
        Ok(attempt)
    }

    /// Installs one chunk in the background.
    pub fn install_chunk(&mut self) -> Result<Progress, Error> {
        let mut processes = self.processes.iter().enumerate();
        let next = processes.find_map(|(at, process)| {
            let piece = process.missing.next(process.hint)?;
            Some((at, piece))
        });
        let Some((at, piece)) = next else {
            return Ok(Progress::Done);
        };
        let attempt = self.install(at, piece)?;
        let process = &mut self.processes[at];
        match attempt {
            Attempt::Installed => process.hint = piece.address + piece.len,
            Attempt::Changing | Attempt::NoMemory => return Ok(Progress::Waiting),
            Attempt::Astray(page) => self.look_for(at, page),
            Attempt::Gone => drop(self.processes.swap_remove(at)),
        }
        Ok(Progress::Busy)
    }

    /// A page lies in no mapping although no event has said so. The event may be on its way: then
    /// the kernel answers `Changing` until it is read. If instead it says the same again after all
    /// events were read, no change is under way and none will tell of this page: a child does not
    /// inherit mappings with MADV_DONTFORK, and there is nothing that could ever read it.
    fn look_for(&mut self, at: usize, page: u64) {
        let process = &mut self.processes[at];
        process.hint = page;
        if process.astray.replace(page) == Some(page) {
            process.astray = None;
            process.missing.take(page, PAGE);
            tracing::debug!(page, "a page that is mapped nowhere is dropped");
        }
    }

    /// Copies a piece in, in as many calls as mappings make of it. What the kernel did not take is
    /// missing still.
    fn install(&mut self, at: usize, piece: Piece) -> Result<Attempt, Error> {
        let mut rest = piece;
        let mut len = rest.len;
        while rest.len > 0 {
            let part = Piece {
                len: len.min(rest.len),
                ..rest
            };
            match self.copy(at, part)? {
                Answer::Done(done) => {
                    self.is_in(at, Piece { len: done, ..part });
                    rest = rest.after(done);
                    len = rest.len;
                }
                Answer::There => {
                    self.is_in(at, Piece { len: PAGE, ..part });
                    rest = rest.after(PAGE);
                    len = rest.len;
                }
                // A border between two mappings lies in it: up to there it goes.
                Answer::NotOneMapping if part.len > PAGE => len = half(part.len),
                Answer::NotOneMapping => return Ok(Attempt::Astray(part.address)),
                Answer::Changing => return Ok(Attempt::Changing),
                Answer::NoMemory => {
                    self.note_memory(Attempt::NoMemory)?;
                    return Ok(Attempt::NoMemory);
                }
                Answer::Gone => return Ok(Attempt::Gone),
            }
            self.starved_since = None;
        }
        Ok(Attempt::Installed)
    }

    fn copy(&self, at: usize, piece: Piece) -> Result<Answer, Error> {
        let source = self.source.address_of(piece.offset, piece.len);
        let source = source.ok_or(Error::Index(piece.address))?;
        let uffd = self.processes[at].uffd.as_fd();
        sys::copy(uffd, piece.address, source, piece.len)
    }

    /// A piece is where it belongs.
    fn is_in(&mut self, at: usize, piece: Piece) {
        let process = &mut self.processes[at];
        process.missing.take(piece.address, piece.len);
        process.astray = None;
        if !self.shared {
            self.source.release(piece.offset, piece.len);
        }
    }

    /// No memory passes, when something else frees it; what does not pass is an error in the end.
    fn note_memory(&mut self, attempt: Attempt) -> Result<(), Error> {
        if attempt != Attempt::NoMemory {
            return Ok(());
        }
        let since = self.starved_since.get_or_insert_with(Instant::now);
        match since.elapsed() > STARVED_MAX {
            true => Err(Error::NoMemory),
            false => Ok(()),
        }
    }
}

/// Half of a number of bytes, in whole pages.
fn half(len: u64) -> u64 {
    (len / PAGE).div_ceil(2) * PAGE
}
