//! Pages that CRIU's restore leaves where late ones belong.
//!
//! CRIU makes the private mappings of a process where its parent made them, so that what they share
//! stays shared, and drops of what the process inherits the pages that it had itself put in for the parent
//! (`criu/mem.c`, `restore_priv_vma_content`). The kernel may have put in more: all of a locked mapping, and
//! what lies around a page in a mapping of huge pages. That is left, and holds zeros. Nobody ever faults
//! there, and the kernel would answer an attempt to install the page that there is one already.
//!
//! So before a restored service executes, each late page that is there and empty gets its content.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;

use crate::criu::page_server::PAGE_LEN;
use crate::store::StoredExtent;

/// Entries of `/proc/PID/pagemap` that are read at once.
const ENTRIES_MAX: u64 = 4096;
/// Bytes of one entry.
const ENTRY_LEN: u64 = 8;
/// In memory, or swapped out (kernel `admin-guide/mm/pagemap.rst`).
const IS_THERE: u64 = 1 << 63 | 1 << 62;

/// Puts the content of late pages into those that are there and empty, in a process that has not
/// executed since it was restored. Returns how many there were.
///
/// # Errors
/// The process's memory can't be read or written: it must not run.
pub fn fill(pid: i32, extents: &[StoredExtent], stored: &File) -> io::Result<u64> {
    let pagemap = File::open(format!("/proc/{pid}/pagemap"))?;
    let mut memory = OpenOptions::new();
    let memory = memory.read(true).write(true);
    let memory = memory.open(format!("/proc/{pid}/mem"))?;
    let mut filled = 0;
    for extent in extents {
        for page in pages_there(&pagemap, extent)? {
            let from = page * PAGE_LEN as u64;
            let (address, offset) = (extent.address + from, extent.offset + from);
            filled += u64::from(fill_page(&memory, address, stored, offset)?);
        }
    }
    Ok(filled)
}

/// Which pages of an extent are there, counted from its first.
fn pages_there(pagemap: &File, extent: &StoredExtent) -> io::Result<Vec<u64>> {
    let mut there = Vec::new();
    let mut at = 0;
    while at < extent.pages {
        let count = (extent.pages - at).min(ENTRIES_MAX);
        let mut entries = vec![0; (count * ENTRY_LEN) as usize];
        let first = extent.address / PAGE_LEN as u64 + at;
        pagemap.read_exact_at(&mut entries, first * ENTRY_LEN)?;
        let (entries, _) = entries.as_chunks::<{ ENTRY_LEN as usize }>();
        let found = entries.iter().zip(at..);
        let found = found.filter(|(entry, _)| u64::from_ne_bytes(**entry) & IS_THERE != 0);
        there.extend(found.map(|(_, page)| page));
        at += count;
    }
    Ok(there)
}

/// Whether a page was empty, and is not to be.
fn fill_page(memory: &File, address: u64, stored: &File, offset: u64) -> io::Result<bool> {
    let mut page = [0; PAGE_LEN];
    memory.read_exact_at(&mut page, address)?;
    if !is_empty(&page) {
        return Ok(false);
    }
    stored.read_exact_at(&mut page, offset)?;
    if is_empty(&page) {
        return Ok(false);
    }
    // Also where the process itself may not write.
    memory.write_all_at(&page, address)?;
    Ok(true)
}

fn is_empty(page: &[u8; PAGE_LEN]) -> bool {
    page.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod test {
    use std::io::{BufRead, BufReader, Write};
    use std::process::{Child, Command, Stdio};

    use super::*;

    const PAGE: u64 = PAGE_LEN as u64;

    /// A process with four pages of its own: one written, one read, two never touched.
    const PROGRAM: &str = "import ctypes, mmap, sys\n\
        m = mmap.mmap(-1, 4 * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\n\
        m[0:1] = b'x'; m[4096:4097]\n\
        print(ctypes.addressof(ctypes.c_char.from_buffer(m)), flush=True)\n\
        sys.stdin.readline()\n\
        print(m[0], m[4096], m[2 * 4096], m[3 * 4096], flush=True)\n";

    fn line(child: &mut Child) -> String {
        let mut line = String::new();
        let out = child.stdout.as_mut().unwrap();
        // One line at a time, so nothing is read ahead of it.
        BufReader::with_capacity(1, out)
            .read_line(&mut line)
            .unwrap();
        line.trim().to_owned()
    }

    #[test]
    fn what_is_there_and_empty_is_filled_and_nothing_else() {
        let mut child = match Command::new("python3")
            .args(["-c", PROGRAM])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
        {
            Ok(child) => child,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return eprintln!("SKIPPED: no python3");
            }
            Err(error) => panic!("{error}"),
        };
        let address = line(&mut child).parse().unwrap();
        let mut stored = tempfile::tempfile().unwrap();
        stored.write_all(&[7; 4 * PAGE_LEN]).unwrap();
        let extents = [StoredExtent {
            address,
            pages: 4,
            offset: 0,
        }];
        let filled = fill(child.id() as i32, &extents, &stored).unwrap();
        assert_eq!(filled, 1, "the one that was read alone");
        let short = File::open("/dev/null").unwrap();
        let missing = [StoredExtent {
            address: address + PAGE,
            pages: 1,
            offset: 0,
        }];
        assert_eq!(fill(child.id() as i32, &missing, &short).unwrap(), 0);
        child.stdin.take().unwrap().write_all(b"\n").unwrap();
        assert_eq!(line(&mut child), "120 7 0 0");
        child.wait().unwrap();
    }
}
