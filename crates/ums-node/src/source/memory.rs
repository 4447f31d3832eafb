//! Step 9: the frozen service's memory leaves.
//!
//! Private memory is read by us, while CRIU dumps the rest, and only what the destination has no right copy
//! of. What CRIU reads itself comes over its page socket: shared memory, of which only what has changed goes over, and
//! the kernel's own code in each process. A keeper of an earlier release has CRIU read everything.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::{Scope, ScopedJoinHandle};

use ums_checkpoint::carry::{Process, processes};
use ums_checkpoint::cgroup::Cgroup;
use ums_checkpoint::criu::page_server::{self, PAGE_LEN, PageOwner, Run};
use ums_checkpoint::dirty::{Ranges, Unchanged};
use ums_checkpoint::keeper::protocol::MemoryBy;
use ums_checkpoint::page_source::{Held, PageSource, When};
use ums_checkpoint::shared::Known;
use ums_checkpoint::store::away::STAYS_AWAY;
use ums_checkpoint::tree::{self, Parents};
use ums_sync::send::{ImageWriter, PageWriter, SendError, Sender};

use crate::rounds::Copied;

/// The most that CRIU may send of processes whose memory we read, bytes: what it does not look for in a pagemap.
const ASIDE_MAX: u64 = 64 << 20;

/// Pages of shared memory that are looked at together.
const SHARED_PAGES: usize = 64;

/// Why memory can't be sent.
#[derive(Debug)]
pub(super) enum Error {
    /// The data path.
    Send(SendError),
    /// CRIU's page socket.
    Criu(page_server::Error),
    /// A process's memory.
    Memory(io::Error),
}

/// The memory of a service that is about to be frozen, and where it goes.
pub(super) struct Memory {
    by: MemoryBy,
    ours: Ours,
    theirs: Theirs,
}

/// What CRIU reads.
struct Theirs {
    pages: PageWriter,
    /// What the destination has already of what processes share.
    known: Option<Known>,
}

/// What is read by us, or known to be right at the destination.
struct Ours {
    cgroup: String,
    images: ImageWriter,
    pages: PageWriter,
    /// What the destination has already.
    copied: Option<Copied>,
    /// Whether pages may stay here until the service runs there.
    leave: bool,
}

/// What is known once the service is frozen.
struct Frozen {
    unchanged: Unchanged,
    source: PageSource,
}

impl From<SendError> for Error {
    /// That pages can't be read is no fault of the data path.
    fn from(error: SendError) -> Self {
        match error {
            SendError::Read { what, source } => {
                let text = format!("{what}: {source}");
                Self::Memory(io::Error::new(source.kind(), text))
            }
            error => Self::Send(error),
        }
    }
}

impl Memory {
    /// With `leave` pages that may come late are only named.
    pub(super) fn new(
        cgroup: &str,
        sender: &Sender,
        (by, leave): (MemoryBy, bool),
        mut copied: Option<Copied>,
    ) -> Self {
        let theirs = Theirs {
            pages: sender.pages(),
            known: copied.as_mut().and_then(Copied::take_shared),
        };
        let ours = Ours {
            cgroup: cgroup.to_owned(),
            images: sender.images(),
            pages: sender.pages(),
            copied,
            leave,
        };
        Self { by, ours, theirs }
    }

    pub(super) fn by(&self) -> MemoryBy {
        self.by
    }

    /// What the destination has got in rounds; to be dropped when nobody waits any more.
    pub(super) fn into_copied(self) -> Option<Copied> {
        self.ours.copied
    }

    /// Sends all of it while CRIU dumps; returns all that CRIU has named.
    pub(super) fn send(&mut self, mut criu: UnixStream) -> Result<BTreeSet<PageOwner>, Error> {
        let Self { by, ours, theirs } = self;
        match by {
            MemoryBy::Criu => ours.send_what_criu_reads(theirs, &mut criu),
            MemoryBy::Agent => {
                std::thread::scope(|scope| send_both(scope, ours, theirs, &mut criu))
            }
        }
    }
}

/// We read in one thread while CRIU is served in another.
fn send_both<'scope>(
    scope: &'scope Scope<'scope, '_>,
    ours: &'scope mut Ours,
    theirs: &mut Theirs,
    criu: &mut UnixStream,
) -> Result<BTreeSet<PageOwner>, Error> {
    let mut reading: Option<ScopedJoinHandle<'scope, _>> = None;
    let mut aside = Aside::default();
    let mut broken = None;
    let served = page_server::serve(
        criu,
        || reading = Some(scope.spawn(|| ours.send_while_dumping().map(|frozen| (ours, frozen)))),
        |run, stream| match run.owner.process() {
            Some(_) => aside.put(run, stream),
            None => theirs
                .send(run, stream)
                .map_err(|error| to_sink(&mut broken, error)),
        },
    );
    let read = reading.map(|thread| thread.join().unwrap_or_else(|_| Err(panicked())));
    let owners = served.map_err(|error| from_sink(broken, error))?;
    let (ours, frozen) = read.transpose()?.ok_or_else(panicked)?;
    ours.send_when_dumped(&frozen, aside.without(&frozen.source))?;
    Ok(owners)
}

fn panicked() -> Error {
    Error::Memory(io::Error::other("the thread that reads it is gone"))
}

impl Ours {
    /// CRIU has stopped every process: there will be no other child, and nothing changes.
    fn begin(&mut self) -> Result<Unchanged, SendError> {
        let Ok(cgroup) = Cgroup::at(&self.cgroup) else {
            // CRIU will not find it either.
            return Ok(Unchanged::default());
        };
        // Who is whose child goes ahead of the pages: the destination keeps what they share.
        let parents = tree::parents(&cgroup);
        if !parents.is_empty() {
            let text = serde_json::to_vec(&parents).unwrap_or_default();
            self.images.image(tree::TREE_NAME, &text)?;
        }
        let copied = self.copied.as_mut();
        Ok(copied.map(Copied::unchanged).unwrap_or_default())
    }

    fn send_while_dumping(&mut self) -> Result<Frozen, Error> {
        let unchanged = self.begin()?;
        let processes = in_order(&self.cgroup).map_err(Error::Memory)?;
        let source = PageSource::open(&processes).map_err(Error::Memory)?;
        let all = |_| Ranges::default();
        source.each(When::Dumping, all, Error::Memory, |held| {
            self.send_held(&held, &unchanged)
        })?;
        Ok(Frozen { unchanged, source })
    }

    /// The rest, and what CRIU has sent: of each process in the order of addresses.
    fn send_when_dumped(&mut self, frozen: &Frozen, mut aside: Aside) -> Result<(), Error> {
        let theirs = aside.ranges();
        let except = |owner| theirs.get(&owner).cloned().unwrap_or_default();
        let Frozen { unchanged, source } = frozen;
        source.each(When::Dumped, except, Error::Memory, |held| {
            for (run, bytes) in aside.take_before(held.owner, held.address) {
                self.pages
                    .write(run.owner.0, run.address, run.flags, &bytes)?;
            }
            self.send_held(&held, unchanged)
        })?;
        for (run, bytes) in aside.take_all() {
            self.pages
                .write(run.owner.0, run.address, run.flags, &bytes)?;
        }
        Ok(())
    }

    /// Sends pages; of those that the destination has only where they are.
    fn send_held(&mut self, held: &Held<'_>, unchanged: &Unchanged) -> Result<(), Error> {
        let (owner, flags) = (held.owner, held.flags);
        for (at, pages, is_right) in unchanged.split(owner, held.address, held.pages) {
            if is_right {
                self.pages.absent(owner.0, at, flags, count(pages))?;
            } else if self.leave && held.may_stay {
                let flags = flags | STAYS_AWAY;
                self.pages.absent(owner.0, at, flags, count(pages))?;
            } else {
                let mut bytes = held.read_from(at);
                self.pages
                    .write_from(owner.0, at, flags, pages, &mut bytes)?;
            }
        }
        Ok(())
    }

    /// Everything comes from CRIU; of what the destination has only where it is goes over.
    fn send_what_criu_reads(
        &mut self,
        theirs: &mut Theirs,
        criu: &mut UnixStream,
    ) -> Result<BTreeSet<PageOwner>, Error> {
        let mut broken = None;
        let mut unchanged = None;
        let served = page_server::serve(
            criu,
            || {},
            |run, stream| {
                if run.owner.process().is_none() {
                    let sent = theirs.send(run, stream);
                    return sent.map_err(|error| to_sink(&mut broken, error));
                }
                let sent = match unchanged.take().map_or_else(|| self.begin(), Ok) {
                    Ok(known) => {
                        let known = unchanged.insert(known);
                        send_changed(&mut self.pages, run, known, stream)
                    }
                    Err(error) => Err(error),
                };
                sent.map_err(|error| to_sink(&mut broken, error))
            },
        );
        served.map_err(|error| from_sink(broken, error))
    }
}

impl Theirs {
    /// Sends a run of pages of an object; of those that the destination has got as they are only where they are.
    fn send(&mut self, run: Run, stream: &mut UnixStream) -> Result<(), SendError> {
        let Some(known) = self.known.as_ref().filter(|known| known.has(run.owner)) else {
            return send_run(&mut self.pages, run, run.pages, stream);
        };
        let mut buffer = vec![0; SHARED_PAGES * PAGE_LEN];
        let (mut at, mut left) = (run.address, run.pages);
        while left > 0 {
            let pages = left.min(SHARED_PAGES as u64);
            let bytes = &mut buffer[..pages as usize * PAGE_LEN];
            stream
                .read_exact(bytes)
                .map_err(|error| not_read(pages, error))?;
            send_known(&mut self.pages, known, Run { address: at, ..run }, bytes)?;
            at += bytes.len() as u64;
            left -= pages;
        }
        Ok(())
    }
}

/// Sends pages that are in memory, in parts of which the destination has all or nothing.
fn send_known(
    pages: &mut PageWriter,
    known: &Known,
    run: Run,
    bytes: &[u8],
) -> Result<(), SendError> {
    let is_right: Vec<bool> = bytes
        .chunks_exact(PAGE_LEN)
        .zip((run.address..).step_by(PAGE_LEN))
        .map(|(page, offset)| known.is_right(run.owner, offset, page))
        .collect();
    let mut at = 0;
    for part in is_right.chunk_by(|one, other| one == other) {
        let address = run.address + (at * PAGE_LEN) as u64;
        let behind = at + part.len();
        match part[0] {
            true => pages.absent(run.owner.0, address, run.flags, part.len() as u32)?,
            false => {
                let bytes = &bytes[at * PAGE_LEN..behind * PAGE_LEN];
                pages.write(run.owner.0, address, run.flags, bytes)?;
            }
        }
        at = behind;
    }
    Ok(())
}

/// Runs of processes from CRIU, until it is known which of them we have read ourselves.
#[derive(Default)]
struct Aside {
    runs: BTreeMap<(PageOwner, u64), (Run, Vec<u8>)>,
    bytes: u64,
}

impl Aside {
    fn put(&mut self, run: Run, stream: &mut UnixStream) -> Result<(), page_server::Error> {
        let len = run.pages.saturating_mul(PAGE_LEN as u64);
        self.bytes = self.bytes.saturating_add(len);
        if self.bytes > ASIDE_MAX {
            let what = "pages that it was not to find".to_owned();
            return Err(page_server::Error::Protocol(what));
        }
        let mut bytes = vec![0; len as usize];
        stream.read_exact(&mut bytes)?;
        self.runs.insert((run.owner, run.address), (run, bytes));
        Ok(())
    }

    /// Drops what we have read, all of it or in part, while CRIU dumped.
    fn without(self, source: &PageSource) -> Self {
        let mut runs = BTreeMap::new();
        for (run, bytes) in self.runs.into_values() {
            let (start, end) = (run.address, run.address + bytes.len() as u64);
            let ours = source.of_dumping(run.owner, start, end);
            for (from, to) in Ranges::from_iter([(start, end)]).without(&ours).iter() {
                let part = bytes[(from - start) as usize..(to - start) as usize].to_vec();
                let (address, pages) = (from, (to - from) / PAGE_LEN as u64);
                let run = Run {
                    address,
                    pages,
                    ..run
                };
                runs.insert((run.owner, from), (run, part));
            }
        }
        Self { runs, ..self }
    }

    fn ranges(&self) -> BTreeMap<PageOwner, Ranges> {
        let mut all = BTreeMap::<_, Ranges>::new();
        for (run, bytes) in self.runs.values() {
            let ranges = all.entry(run.owner).or_default();
            ranges.insert(run.address, run.address + bytes.len() as u64);
        }
        all
    }

    fn take_before(&mut self, owner: PageOwner, address: u64) -> Vec<(Run, Vec<u8>)> {
        let before = self.runs.range((owner, 0)..(owner, address));
        let keys: Vec<_> = before.map(|(key, _)| *key).collect();
        keys.iter()
            .filter_map(|key| self.runs.remove(key))
            .collect()
    }

    fn take_all(&mut self) -> impl Iterator<Item = (Run, Vec<u8>)> {
        std::mem::take(&mut self.runs).into_values()
    }
}

/// The processes, parents before their children: what they share is kept by the one that comes first.
fn in_order(cgroup: &str) -> io::Result<Vec<Process>> {
    let cgroup = Cgroup::at(cgroup)?;
    let parents = tree::parents(&cgroup);
    let mut all = processes(&cgroup);
    all.sort_by_key(|process| (depth(process.inner, &parents), process.inner));
    Ok(all)
}

fn depth(process: i32, parents: &Parents) -> usize {
    let up = |id: &u32| parents.get(id).copied();
    let line = std::iter::successors(u32::try_from(process).ok(), up);
    line.take(parents.len() + 1).count()
}

fn send_run(
    pages: &mut PageWriter,
    run: Run,
    count: u64,
    stream: &mut impl Read,
) -> Result<(), SendError> {
    pages.write_from(run.owner.0, run.address, run.flags, count, stream)
}

/// Sends a run of pages from CRIU; of those that the destination has only where they are.
fn send_changed(
    pages: &mut PageWriter,
    run: Run,
    unchanged: &Unchanged,
    stream: &mut UnixStream,
) -> Result<(), SendError> {
    for (address, n, is_right) in unchanged.split(run.owner, run.address, run.pages) {
        if is_right {
            skip(stream, n)?;
            pages.absent(run.owner.0, address, run.flags, count(n))?;
        } else {
            send_run(pages, Run { address, ..run }, n, stream)?;
        }
    }
    Ok(())
}

fn count(pages: u64) -> u32 {
    u32::try_from(pages).unwrap_or(u32::MAX)
}

/// Takes pages from CRIU that nobody needs.
fn skip(stream: &mut UnixStream, pages: u64) -> Result<(), SendError> {
    let wanted = pages * PAGE_LEN as u64;
    let skipped = io::copy(&mut stream.take(wanted), &mut io::sink());
    let whole = skipped.and_then(|skipped| match skipped == wanted {
        true => Ok(()),
        false => Err(io::ErrorKind::UnexpectedEof.into()),
    });
    whole.map_err(|error| not_read(pages, error))
}

fn not_read(pages: u64, error: io::Error) -> SendError {
    SendError::Read {
        what: format!("{pages} pages from CRIU"),
        source: Arc::new(error),
    }
}

/// An error of the data path goes through CRIU's page server as a text.
fn to_sink(broken: &mut Option<SendError>, error: SendError) -> page_server::Error {
    let text = error.to_string();
    *broken = Some(error);
    page_server::Error::Sink(text)
}

fn from_sink(broken: Option<SendError>, error: page_server::Error) -> Error {
    match broken {
        // Reading from CRIU failed, not writing to the destination.
        Some(SendError::Read { .. }) | None => Error::Criu(error),
        Some(error) => Error::Send(error),
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn pages_that_cannot_be_read_are_no_fault_of_the_peer() {
        let source = Arc::new(io::Error::from(io::ErrorKind::UnexpectedEof));
        let what = "3 pages".to_owned();
        let error = Error::from(SendError::Read { what, source });
        assert!(matches!(error, Error::Memory(told) if told.to_string().contains("3 pages")));
        assert!(matches!(Error::from(SendError::Closed), Error::Send(_)));
    }

    #[test]
    fn parents_come_before_their_children() {
        let parents = Parents::from([(9, 1), (5, 9), (2, 5), (3, 1)]);
        let mut ids = [5, 3, 2, 9, 1];
        ids.sort_by_key(|id| (depth(*id, &parents), *id));
        assert_eq!(ids, [1, 3, 9, 5, 2]);
        // Nonsense has an end.
        assert_eq!(depth(1, &Parents::from([(1, 2), (2, 1)])), 3);
    }
}
