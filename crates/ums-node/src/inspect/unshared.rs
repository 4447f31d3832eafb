//! Memory that processes share since a fork and will not share after a move: counted against the
//! service's own limit, before anything is frozen.
//!
//! CRIU makes a process by forking its parent, so it keeps what a process shares with the parent that it
//! has now, in mappings that begin and end at the same places in both (`criu/mem.c`, `check_cow_vmas`).
//! Whatever else is shared (by the children of a process that has ended, in a heap that one of them has
//! let grow) each process gets a copy of.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use ums_core::facts::{Obstacle, ObstacleKind};

use super::process::{self, Process};
use super::{InspectError, mapping, obstacle, parse, proc_file, proc_path};

/// Bytes of a page.
const PAGE_BYTES: u64 = 4096;

/// Entries of a pagemap read at once.
const ENTRIES: u64 = 8192;

/// Of an entry of a pagemap (`admin-guide/mm/pagemap.rst`): present, swapped out, a page of a file or
/// shared memory, and what tells one page from another.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const OF_A_FILE: u64 = 1 << 61;
const IDENTITY: u64 = PRESENT | SWAPPED | ((1 << 55) - 1);

/// Less than this in addition is nothing that a limit can depend on, bytes: the counts are of a service
/// that runs.
const SLACK_BYTES: u64 = 1 << 20;

/// Whether the service will need more than its memory limit allows, bytes, because it shares less after a
/// move than now. One that is near its limit without that can move.
pub fn over_limit(init: i32, limit: u64) -> Result<Option<Obstacle>, InspectError> {
    let tree = process::tree(init)?;
    // Each for itself: most services have room for that.
    let most: u64 = tree.iter().map(|it| mapping::memory_bytes(it.pid)).sum();
    if most <= limit {
        return Ok(None);
    }
    let areas: BTreeMap<i32, Areas> = tree.iter().map(|it| (it.pid, areas(it.pid))).collect();
    let [now, shared_memory] = charged(&tree);
    let own: u64 = tree.iter().map(|it| own_bytes(it, &areas)).sum();
    let after = own.saturating_add(shared_memory);
    if after <= limit || after <= now.saturating_add(SLACK_BYTES) {
        return Ok(None);
    }
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    let what = format!(
        "{} MiB are in use and {} MiB would be, of {} MiB",
        mib(now),
        mib(after),
        mib(limit)
    );
    Ok(Some(obstacle(ObstacleKind::UnsharedMemory, 1, what)))
}

/// Private mappings with pages of their own, by their beginnings: their ends, and the bytes of such pages.
type Areas = BTreeMap<u64, (u64, u64)>;

fn areas(pid: i32) -> Areas {
    let text = proc_file(pid, "smaps").unwrap_or_default();
    parse::areas(&text)
        .into_iter()
        .map(|area| (area.start, (area.end, area.own_bytes)))
        .collect()
}

/// What the service is charged for now, each page once, and what of that is shared memory, bytes.
fn charged(tree: &[Process]) -> [u64; 2] {
    let mut sums = [0_u64; 2];
    for process in tree {
        let text = proc_file(process.pid, "smaps_rollup").unwrap_or_default();
        let value = |name| parse::rollup(&text, name).unwrap_or_default();
        let shared = value("Pss_Shmem");
        let all = [value("Pss_Anon"), value("SwapPss"), shared];
        sums[0] = sums[0].saturating_add(all.iter().sum());
        sums[1] = sums[1].saturating_add(shared);
    }
    sums
}

/// Bytes that a process will have for itself: all but what it shares with its parent in the same mapping.
fn own_bytes(process: &Process, areas: &BTreeMap<i32, Areas>) -> u64 {
    let open = |pid| File::open(proc_path(pid, "pagemap")).ok();
    let (Some(own), Some(pages)) = (areas.get(&process.pid), open(process.pid)) else {
        return 0;
    };
    let parent = process.parent();
    let parent = areas.get(&parent).zip(open(parent));
    own.iter()
        .map(|(start, (end, bytes))| {
            let same = parent.as_ref().filter(|(areas, _)| {
                areas
                    .get(start)
                    .is_some_and(|(others_end, _)| others_end == end)
            });
            let differ = differing(*start, *end, &pages, same.map(|(_, pages)| pages));
            // The page of zeros is counted there, and costs nothing.
            differ.saturating_mul(PAGE_BYTES).min(*bytes)
        })
        .sum()
}

/// Pages of a range that a process has and its parent has not. Of one that ends meanwhile nothing is read.
fn differing(start: u64, end: u64, own: &File, parent: Option<&File>) -> u64 {
    let (first, last) = (start / PAGE_BYTES, end / PAGE_BYTES);
    let mut count = 0;
    let mut at = first;
    while at < last {
        let entries = (last - at).min(ENTRIES);
        let own = read(own, at, entries);
        let others = parent
            .map(|file| read(file, at, entries))
            .unwrap_or_default();
        count += count_differing(&own, &others);
        at += entries;
    }
    count
}

fn read(file: &File, first: u64, entries: u64) -> Vec<u64> {
    const ENTRY_BYTES: u64 = 8;
    let mut bytes = vec![0; (entries * ENTRY_BYTES) as usize];
    let length = file.read_at(&mut bytes, first * ENTRY_BYTES).unwrap_or(0);
    let (whole, _) = bytes[..length].as_chunks::<8>();
    whole
        .iter()
        .map(|entry| u64::from_ne_bytes(*entry))
        .collect()
}

fn count_differing(own: &[u64], others: &[u64]) -> u64 {
    let others = others.iter().copied().chain(std::iter::repeat(0));
    let pairs = own.iter().zip(others);
    let own = pairs.filter(|(entry, other)| {
        *entry & (PRESENT | SWAPPED) != 0
            && *entry & OF_A_FILE == 0
            && (*entry ^ other) & IDENTITY != 0
    });
    own.count() as u64
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_page_is_the_parents_where_both_have_the_same() {
        let dirty = 1 << 55;
        let own = [
            PRESENT | 7,
            PRESENT | 8 | dirty,
            PRESENT | 9,
            0,
            PRESENT | OF_A_FILE | 10,
            SWAPPED | 11,
            SWAPPED | 12,
        ];
        let parents = [
            PRESENT | 7,
            PRESENT | 8,
            PRESENT | 1,
            PRESENT | 2,
            0,
            SWAPPED | 11,
        ];
        assert_eq!(count_differing(&own, &parents), 2);
        assert_eq!(count_differing(&own, &[]), 5);
    }

    #[test]
    fn what_this_process_has_is_seen() {
        let pages = vec![1_u8; 1 << 22];
        let pid = std::process::id() as i32;
        let areas = areas(pid);
        let at = pages.as_ptr().addr() as u64;
        let (start, (end, bytes)) = areas.range(..=at).next_back().expect("it is mapped");
        assert!(*end > at && *bytes >= 1 << 22);
        let file = File::open(proc_path(pid, "pagemap")).expect("it can be read");
        assert!(differing(*start, *end, &file, None) >= 1 << 10);
        assert_eq!(differing(at, at + (1 << 22), &file, Some(&file)), 0);
    }
}
