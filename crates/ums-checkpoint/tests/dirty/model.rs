//! Pages as a destination would have them, and the memory that they are compared with.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use ums_checkpoint::dirty::reader::Reader;
use ums_checkpoint::dirty::{Moment, Ranges, Tracker};

use crate::Wrong;
use crate::program::Program;

const PAGE: u64 = 4096;
type Page = Box<[u8; PAGE as usize]>;

/// What was copied, by process and address.
#[derive(Default)]
pub(crate) struct Copies {
    pages: BTreeMap<i32, BTreeMap<u64, Page>>,
}

impl Copies {
    /// Takes a look, and copies what it says.
    pub(crate) fn take(
        &mut self,
        tracker: &mut dyn Tracker,
        program: &Program,
        moment: Moment,
        wrong: Option<Wrong>,
    ) {
        let mut all = tracker.look(&program.processes(), moment).unwrap();
        for seen in &mut all {
            if let Some(wrong) = wrong {
                wrong(seen, self);
            }
            let pid = seen.process.pid;
            let pages = self.pages.entry(pid).or_default();
            pages.retain(|address, _| seen.held.contains(*address, address + PAGE));
            // One that has ended is not compared.
            let Ok(reader) = Reader::open(pid) else {
                continue;
            };
            for (start, end) in seen.written.iter() {
                copy(&reader, (start, end), pages);
            }
        }
        let alive = |pid: &i32| all.iter().any(|seen| seen.process.pid == *pid);
        self.pages.retain(|pid, _| alive(pid));
    }

    /// Those of these pages that there is a copy of.
    pub(crate) fn known(&self, pid: i32, ranges: &Ranges) -> Ranges {
        let pages = ranges
            .iter()
            .flat_map(|(start, end)| (start..end).step_by(PAGE as usize));
        let copies = self.pages.get(&pid);
        let known = pages.filter(|address| copies.is_some_and(|it| it.contains_key(address)));
        known.map(|address| (address, address + PAGE)).collect()
    }

    /// All of which there is a copy.
    pub(crate) fn held(&self, pid: i32) -> Ranges {
        let pages = self.pages.get(&pid).into_iter().flatten();
        pages
            .map(|(address, _)| (*address, address + PAGE))
            .collect()
    }

    pub(crate) fn is_new(&self, pid: i32) -> bool {
        !self.pages.contains_key(&pid)
    }

    /// Where a copy is not what the memory of the stopped program holds.
    pub(crate) fn differences(&self, program: &Program) -> Vec<String> {
        let processes = program.processes();
        let pids = processes.iter().map(|process| process.pid);
        pids.flat_map(|pid| self.differences_of(pid)).collect()
    }

    fn differences_of(&self, pid: i32) -> Vec<String> {
        let none = BTreeMap::new();
        let copies = self.pages.get(&pid).unwrap_or(&none);
        let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
        let zeros = Box::new([0; PAGE as usize]);
        let mut found = Vec::new();
        for (start, end) in private_anonymous(pid) {
            for address in (start..end).step_by(PAGE as usize) {
                let mut is = zeros.clone();
                let readable = memory.read_exact_at(&mut *is, address).is_ok();
                let copied = copies.get(&address).unwrap_or(&zeros);
                if readable && *copied != is {
                    found.push(format!("{pid}: {address:#x}"));
                }
            }
        }
        found
    }
}

fn copy(reader: &Reader, (start, end): (u64, u64), pages: &mut BTreeMap<u64, Page>) {
    let mut buffer = vec![0; (end - start) as usize];
    let mut at = 0;
    while at < buffer.len() {
        let read = reader.read(start + at as u64, &mut buffer[at..]).unwrap();
        for (number, page) in buffer[at..at + read]
            .chunks_exact(PAGE as usize)
            .enumerate()
        {
            let address = start + (at + number * PAGE as usize) as u64;
            pages.insert(address, Box::new(page.try_into().unwrap()));
        }
        if at + read < buffer.len() {
            // One page has gone since the look.
            pages.remove(&(start + (at + read) as u64));
            at += PAGE as usize;
        }
        at += read;
    }
}

/// Told apart by other means than the tracker's: no file, not shared, nothing of the kernel's.
fn private_anonymous(pid: i32) -> Vec<(u64, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let lines = text.lines().filter(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let kernels = fields.get(5).is_some_and(|name| name.starts_with("[v"));
        fields[1].ends_with('p') && fields[4] == "0" && !kernels
    });
    lines
        .map(|line| {
            let (range, _) = line.split_once(' ').unwrap();
            let (start, end) = range.split_once('-').unwrap();
            let number = |text| u64::from_str_radix(text, 16).unwrap();
            (number(start), number(end))
        })
        .collect()
}
