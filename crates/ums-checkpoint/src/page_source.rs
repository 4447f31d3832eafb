//! The private memory of a frozen service, read by us: which pages CRIU would dump, and what is in them.
//!
//! CRIU reads all memory in the freeze, page by page through pipes, although most of it may be at the
//! destination already. So the keeper has it find none ([`MemoryBy::Agent`](crate::keeper::protocol::MemoryBy)),
//! and it is read here: the pages that a private mapping has of its own, as `criu/mem.c` chooses them.
//!
//! CRIU works in the processes meanwhile. It makes their system calls for them, for which it changes code
//! for a moment (`compel/src/lib/infect.c`), and nothing else of theirs. So what can't be executed, and may come
//! late at the destination, is read at once ([`When::Dumping`]); the rest when CRIU is done with the processes
//! ([`When::Dumped`]), in the order of addresses, in which CRIU wants what can't come late.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;

use nix::errno::Errno;

use crate::carry::Process;
use crate::criu::page_server::{PAGE_LEN, PE_LAZY, PE_PRESENT, PageOwner};
use crate::dirty::reader::Reader;
use crate::dirty::{Ranges, mappings, scan};

mod areas;
mod entries;

use areas::Area;

/// When a mapping may be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// While CRIU dumps.
    Dumping,
    /// After CRIU has closed its page socket.
    Dumped,
}

/// The processes of a frozen service.
#[derive(Debug)]
pub struct PageSource {
    tasks: Vec<Task>,
}

/// The memory of frozen processes by their addresses, for who asks for pages that have stayed.
#[derive(Debug)]
pub struct Stayed {
    readers: BTreeMap<u32, Reader>,
}

impl Stayed {
    /// Opens the memory of frozen processes.
    ///
    /// # Errors
    /// When a process's memory can't be opened.
    pub fn open(processes: &[Process]) -> io::Result<Self> {
        let readers = processes.iter().map(|process| {
            Reader::open(process.pid).map(|reader| (process.inner.cast_unsigned(), reader))
        });
        let readers = readers.collect::<io::Result<_>>()?;
        Ok(Self { readers })
    }

    /// Reads whole pages of a process.
    ///
    /// # Errors
    /// When there is no such process, or not all of them are there.
    pub fn read(&self, process: u32, address: u64, buffer: &mut [u8]) -> io::Result<()> {
        let reader = self.readers.get(&process).ok_or(io::ErrorKind::NotFound)?;
        match reader.read(address, buffer)? == buffer.len() {
            true => Ok(()),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

#[derive(Debug)]
struct Task {
    owner: PageOwner,
    areas: Vec<Area>,
    pagemap: File,
    memory: Reader,
}

/// Pages with content, one after the other.
#[derive(Debug)]
pub struct Held<'a> {
    /// Whose.
    pub owner: PageOwner,
    /// Address of the first.
    pub address: u64,
    /// How many.
    pub pages: u64,
    /// CRIU's `PE_*` flags.
    pub flags: u32,
    /// Whether they may stay here until the service runs elsewhere: no other process shares them, and nothing
    /// needs them at the restore.
    pub may_stay: bool,
    memory: &'a Reader,
}

impl PageSource {
    /// Opens the memory of frozen processes. Those that have none (zombies) are left out.
    ///
    /// # Errors
    /// When a process's mappings can't be read: it is not known then what it has.
    pub fn open(processes: &[Process]) -> io::Result<Self> {
        let mut tasks = Vec::new();
        for process in processes {
            tasks.extend(Task::open(*process)?);
        }
        Ok(Self { tasks })
    }

    /// What of a range is read while CRIU dumps.
    pub fn of_dumping(&self, owner: PageOwner, start: u64, end: u64) -> Ranges {
        let tasks = self.tasks.iter().filter(|task| task.owner == owner);
        let areas = tasks.flat_map(|task| &task.areas);
        let areas = areas.filter(|area| area.when == When::Dumping);
        let cut = areas.map(|area| (area.mapping.start.max(start), area.mapping.end.min(end)));
        cut.filter(|(from, to)| from < to).collect()
    }

    /// Calls `take` with all pages of one part of the memory, of each process in the order of their
    /// addresses, except those that somebody else has.
    ///
    /// # Errors
    /// Of `take`, and those of the kernel, in `failed`'s form.
    pub fn each<E>(
        &self,
        when: When,
        except: impl Fn(PageOwner) -> Ranges,
        failed: impl Fn(io::Error) -> E,
        mut take: impl FnMut(Held<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        for task in &self.tasks {
            let except = except(task.owner);
            for area in task.areas.iter().filter(|area| area.when == when) {
                let held = task.held(area).map_err(&failed)?.without(&except);
                let shared = self.shared(task, area, &held).map_err(&failed)?;
                for (start, end, may_stay) in split(&held, &shared) {
                    take(Held {
                        owner: task.owner,
                        address: start,
                        pages: (end - start) / PAGE_LEN as u64,
                        flags: area.flags(),
                        may_stay: may_stay && area.may_stay,
                        memory: &task.memory,
                    })?;
                }
            }
        }
        Ok(())
    }
}

impl PageSource {
    /// Pages that another process may share: a process alone shares none.
    fn shared(&self, task: &Task, area: &Area, held: &Ranges) -> io::Result<Ranges> {
        if self.tasks.len() < 2 || !area.may_stay {
            return Ok(Ranges::default());
        }
        let own = entries::exclusive_pages(&task.pagemap, area.mapping)?;
        Ok(held.without(&own))
    }
}

/// Ranges in the order of addresses, and whether they are outside some of them.
fn split(all: &Ranges, some: &Ranges) -> Vec<(u64, u64, bool)> {
    let outside = all.without(some);
    let outside = outside.iter().map(|(start, end)| (start, end, true));
    let mut parts: Vec<_> = outside.collect();
    parts.extend(some.iter().map(|(start, end)| (start, end, false)));
    parts.sort_unstable();
    parts
}

impl Task {
    fn open(process: Process) -> io::Result<Option<Self>> {
        let pid = process.pid;
        let areas = areas::parse(&mappings::text(pid, "smaps")?)?;
        if areas.is_empty() {
            return Ok(None);
        }
        Ok(Some(Self {
            owner: PageOwner::of_process(process.inner.cast_unsigned()),
            areas,
            pagemap: File::open(format!("/proc/{pid}/pagemap"))?,
            memory: Reader::open(pid)?,
        }))
    }

    /// Pages with content.
    fn held(&self, area: &Area) -> io::Result<Ranges> {
        match scan::own_pages(self.pagemap.as_fd(), area.mapping) {
            // Before Linux 6.7.
            Err(Errno::ENOTTY) => entries::own_pages(&self.pagemap, area.mapping),
            found => Ok(found?),
        }
    }
}

impl Area {
    fn flags(&self) -> u32 {
        match self.may_be_late {
            true => PE_LAZY | PE_PRESENT,
            false => PE_PRESENT,
        }
    }
}

impl Held<'_> {
    /// A reader of what is in these pages from one of them on.
    pub fn read_from(&self, address: u64) -> impl Read {
        Pages {
            memory: self.memory,
            at: address,
        }
    }
}

struct Pages<'a> {
    memory: &'a Reader,
    at: u64,
}

impl Read for Pages<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.memory.read(self.at, buffer)?;
        self.at += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod test;
