//! Answers faults and installs pages, for all processes of one restored service.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use super::away::{Away, Wanted};
use super::missing::{Missing, Piece};
use super::sys::{self, Answer, Event};
use super::{Error, PAGE};
use crate::store::{Index, Mapped, StoredExtent};

/// Bytes installed with a page that a thread waits for: what lies behind it is touched next.
const READ_AHEAD: u64 = 64 * 1024;
/// How long installing may stand still because there is no memory, until it is given up.
const STARVED_MAX: Duration = Duration::from_secs(60);
/// Events of one process that are read before the others have their turn.
const EVENTS_MAX: usize = 256;
/// Bytes that are asked of the source in the background at a time: enough to keep the link busy, and little enough
/// that a page that a thread waits for is not long behind them.
const UNDER_WAY_MAX: u64 = 1 << 20;
/// Pieces that are looked at for one that can be asked for.
const LOOKS_MAX: usize = 64;

/// What a server wants next.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// There are pages left to install, and nothing stands in the way.
    Busy,
    /// There are pages left, and what was tried has to wait: for an event, or for memory.
    Waiting,
    /// There are pages left, and all that is here is in: the rest is on its way from the source.
    Away,
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
    /// What was asked for in the background, in the order in which it comes: from here to there.
    pulled: VecDeque<(u64, u64)>,
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
    /// Its content has not come yet: it is missing still.
    Away,
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
            pulled: VecDeque::new(),
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
    /// What is still at the source.
    away: Away,
    /// What is to be asked of it, those that a thread waits for first.
    wanted: Vec<Wanted>,
}

impl Server {
    /// A server with no process yet. `shared`: several processes have pages at one place of the store.
    pub fn new(source: Mapped, shared: bool) -> Self {
        Self {
            source,
            processes: Vec::new(),
            shared,
            starved_since: None,
            away: Away::default(),
            wanted: Vec::new(),
        }
    }

    /// Tells which stored pages have no content yet.
    pub fn leave_away(&mut self, index: &Index) {
        self.away = Away::new(index);
    }

    /// Whether content is still at the source.
    pub fn has_away(&self) -> bool {
        !self.away.is_empty()
    }

    /// Whether content was asked for and has not come.
    pub fn awaits(&self) -> bool {
        self.away.asked() > 0
    }

    /// What is to be asked of the source now.
    pub fn take_wanted(&mut self) -> Vec<Wanted> {
        std::mem::take(&mut self.wanted)
    }

    /// Asks for content at once. True when all of it is here.
    pub fn bring(&mut self, place: u64, len: u64) -> bool {
        let wanted = self.away.ask(place, len);
        self.wanted.extend(wanted);
        self.away.here(place, len) == len
    }

    /// Content has come.
    ///
    /// # Errors
    /// When it was not asked for, or can't be kept.
    pub fn arrived(&mut self, place: u64, bytes: &[u8]) -> Result<(), Error> {
        let len = bytes.len() as u64;
        if !self.away.awaits(place, len) {
            return Err(Error::Unasked(place));
        }
        self.source.fill(place, bytes).map_err(Error::Keep)?;
        self.away.arrived(place, len);
        Ok(())
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
        let is_here = |process: &Process, page: &u64| match process.missing.at(*page, PAGE) {
            Some(piece) => self.away.here(piece.offset, piece.len) > 0,
            None => true,
        };
        let mut processes = self.processes.iter();
        processes.any(|process| process.faults.iter().any(|page| is_here(process, page)))
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
                Attempt::Changing | Attempt::NoMemory | Attempt::Away => {
                    self.processes[at].faults.push(page);
                }
                Attempt::Gone => return Ok(false),
            }
        }
        Ok(true)
    }

    fn answer_fault(&mut self, at: usize, page: u64) -> Result<Attempt, Error> {
        let process = &self.processes[at];
        if let Some(piece) = process.missing.at(page, READ_AHEAD) {
            self.bring(piece.offset, piece.len);
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

    /// Installs one chunk in the background, or asks the source for more.
    pub fn install_chunk(&mut self) -> Result<Progress, Error> {
        if self.pages_missing() == 0 {
            return Ok(Progress::Done);
        }
        let Some((at, piece)) = self.next_here() else {
            return Ok(Progress::Away);
        };
        let attempt = self.install(at, piece)?;
        let process = &mut self.processes[at];
        match attempt {
            Attempt::Installed => process.hint = piece.address + piece.len,
            Attempt::Changing | Attempt::NoMemory => return Ok(Progress::Waiting),
            Attempt::Astray(page) => self.look_for(at, page),
            Attempt::Away => return Ok(Progress::Away),
            Attempt::Gone => drop(self.processes.swap_remove(at)),
        }
        Ok(Progress::Busy)
    }

    /// A piece whose content is here. What is looked at and is not here is asked for.
    fn next_here(&mut self) -> Option<(usize, Piece)> {
        let at = (0..self.processes.len()).find(|at| self.pulled(*at).is_some());
        if let Some(at) = at {
            return self.pulled(at).map(|piece| (at, piece));
        }
        for at in 0..self.processes.len() {
            for _ in 0..LOOKS_MAX {
                let process = &mut self.processes[at];
                let Some(piece) = process.missing.next(process.hint) else {
                    break;
                };
                let here = self.away.here(piece.offset, piece.len);
                if here > 0 {
                    return Some((at, Piece { len: here, ..piece }));
                }
                if self.away.asked() >= UNDER_WAY_MAX {
                    return None;
                }
                let wanted = self.away.ask(piece.offset, piece.len);
                let end = piece.address + piece.len;
                if !wanted.is_empty() {
                    process.pulled.push_back((piece.address, end));
                    self.wanted.extend(wanted);
                }
                process.hint = end;
            }
        }
        None
    }

    /// The next piece of a process that was asked for in the background and has come.
    fn pulled(&mut self, at: usize) -> Option<Piece> {
        let process = &mut self.processes[at];
        while let Some((from, end)) = process.pulled.front().copied() {
            // What was moved or dropped meanwhile is looked for where it is now, if it is anywhere.
            let piece = process.missing.at(from, end - from);
            let Some(piece) = piece else {
                process.pulled.pop_front();
                match process.missing.first_within(from, end) {
                    Some(next) => process.pulled.push_front((next, end)),
                    None => continue,
                }
                continue;
            };
            let here = self.away.here(piece.offset, piece.len);
            return (here > 0).then_some(Piece { len: here, ..piece });
        }
        None
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
        let here = self.away.here(piece.offset, piece.len);
        if here == 0 {
            return Ok(Attempt::Away);
        }
        let mut rest = Piece { len: here, ..piece };
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
