//! CRIU's page-server protocol, the receiving side: how pages leave CRIU during a dump.
//!
//! CRIU sends a command, and for `ADD` the pages behind it (CRIU `criu/page-xfer.c`). The layout
//! of a command changed after 4.2 (the page count grew from 32 to 64 bits), without a version in
//! the protocol; but CRIU opens with one command and waits for an answer, so that its length tells.

use std::collections::BTreeSet;
use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

/// Bytes in a page, on every architecture that we support.
pub const PAGE_LEN: usize = 4096;
/// `PE_LAZY`: the page may be installed after the restore.
pub const PE_LAZY: u32 = 1 << 1;
/// `PE_PRESENT`: the page is in the image.
pub const PE_PRESENT: u32 = 1 << 2;

const OPEN2: u32 = 4;
const ADD: u32 = 6;
const CLOSE: u32 = 0x1023;
const FORCE_CLOSE: u32 = 0x1024;
const COMMAND_BITS: u32 = 16;

/// The largest run of pages in one command that we accept: 1 TiB of memory in one piece.
const RUN_PAGES_MAX: u64 = 1 << 28;

/// What a run of pages belongs to: CRIU's `dst_id`, a type in the low byte, an image id above it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PageOwner(pub u64);

impl PageOwner {
    /// The owner of a process's pages.
    pub fn of_process(id: u32) -> Self {
        Self(u64::from(id) << 8 | 1)
    }

    /// The process with this id in its PID namespace, if the owner is a process.
    pub fn process(self) -> Option<u32> {
        (self.0 & 0xff == 1).then_some((self.0 >> 8) as u32)
    }

    /// The shared memory object with this id, if the owner is one.
    pub fn shared_memory(self) -> Option<u64> {
        (self.0 & 0xff == 2).then_some(self.0 >> 8)
    }
}

/// A run of pages about to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Whose.
    pub owner: PageOwner,
    /// Address of the first page (for shared memory: offset in it).
    pub address: u64,
    /// Number of pages.
    pub pages: u64,
    /// CRIU's `PE_*` flags.
    pub flags: u32,
}

/// Why the page stream from CRIU broke off.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// CRIU's end was closed before it said that it was done: it died or gave up.
    #[error("CRIU broke off the page stream")]
    Io(#[from] io::Error),
    /// Not CRIU's protocol.
    #[error("CRIU's page stream is not understood ({0}): its version is newer than this UMS knows")]
    Protocol(String),
    /// Whoever takes the pages failed.
    #[error("{0}")]
    Sink(String),
}

#[derive(Clone, Copy)]
enum Layout {
    Narrow,
    Wide,
}

impl Layout {
    fn len(self) -> usize {
        match self {
            Layout::Narrow => 24,
            Layout::Wide => 32,
        }
    }

    fn parse(self, bytes: &[u8]) -> (u32, Run) {
        let u32_at = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        let u64_at = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        let word = u32_at(0);
        let (pages, address, owner) = match self {
            Layout::Narrow => (u64::from(u32_at(4)), u64_at(8), u64_at(16)),
            Layout::Wide => (u64_at(8), u64_at(16), u64_at(24)),
        };
        let run = Run {
            owner: PageOwner(owner),
            address,
            pages,
            flags: word >> COMMAND_BITS,
        };
        (word & ((1 << COMMAND_BITS) - 1), run)
    }
}

/// Serves one dump: hands every run to `take`, which must read exactly its pages from the stream. `begin`
/// is called before that, once: CRIU has stopped every process by then.
///
/// Returns when CRIU has said that it is done and has been answered: every owner that CRIU named,
/// those without a page too, because the restore wants a pagemap of each.
pub fn serve<S: Read + Write>(
    stream: &mut S,
    begin: impl FnOnce(),
    mut take: impl FnMut(Run, &mut S) -> Result<(), Error>,
) -> Result<BTreeSet<PageOwner>, Error> {
    let mut owners = BTreeSet::new();
    let mut buffer = [0_u8; 32];
    // The first command stands alone in the socket: CRIU waits for its answer.
    let first = stream.read(&mut buffer)?;
    let layout = match first {
        24 => Layout::Narrow,
        32 => Layout::Wide,
        0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
        other => return Err(Error::Protocol(format!("first command of {other} bytes"))),
    };
    begin();
    let mut pending = true;
    loop {
        if !std::mem::take(&mut pending) {
            stream.read_exact(&mut buffer[..layout.len()])?;
        }
        let (command, run) = layout.parse(&buffer);
        match command {
            // Answer: there is no parent image whose pages could be left out.
            OPEN2 => {
                owners.insert(run.owner);
                stream.write_all(&[0])?;
            }
            ADD if run.pages <= RUN_PAGES_MAX => take(run, stream)?,
            ADD => return Err(Error::Protocol(format!("run of {} pages", run.pages))),
            CLOSE | FORCE_CLOSE => {
                stream.write_all(&0_i32.to_ne_bytes())?;
                return Ok(owners);
            }
            other => return Err(Error::Protocol(format!("command {other:#x}"))),
        }
    }
}

#[cfg(test)]
mod test {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn command(wide: bool, word: u32, pages: u64, address: u64, owner: u64) -> Vec<u8> {
        let mut bytes = word.to_ne_bytes().to_vec();
        if wide {
            bytes.extend([0; 4]);
            bytes.extend(pages.to_ne_bytes());
        } else {
            bytes.extend((pages as u32).to_ne_bytes());
        }
        bytes.extend(address.to_ne_bytes());
        bytes.extend(owner.to_ne_bytes());
        bytes
    }

    fn exchange(wide: bool) -> Vec<(Run, Vec<u8>)> {
        let (mut criu, mut us) = UnixStream::pair().unwrap();
        let owner = (7 << 8) | 1;
        let criu = std::thread::spawn(move || {
            criu.write_all(&command(wide, OPEN2, 0, 0, owner)).unwrap();
            criu.read_exact(&mut [0]).unwrap();
            let add = ADD | ((PE_LAZY | PE_PRESENT) << COMMAND_BITS);
            criu.write_all(&command(wide, add, 2, 0x1000, owner))
                .unwrap();
            criu.write_all(&[9; 2 * PAGE_LEN]).unwrap();
            criu.write_all(&command(wide, FORCE_CLOSE, 0, 0, 0))
                .unwrap();
            criu.read_exact(&mut [0; 4]).unwrap();
        });
        let mut seen = Vec::new();
        serve(
            &mut us,
            || {},
            |run, stream| {
                let mut bytes = vec![0; run.pages as usize * PAGE_LEN];
                stream.read_exact(&mut bytes)?;
                seen.push((run, bytes));
                Ok(())
            },
        )
        .unwrap();
        criu.join().unwrap();
        seen
    }

    #[test]
    fn both_layouts_of_a_command_are_understood() {
        for wide in [false, true] {
            let seen = exchange(wide);
            assert_eq!(seen.len(), 1);
            let run = seen[0].0;
            assert_eq!(run.owner.process(), Some(7));
            assert_eq!(
                (run.address, run.pages, run.flags),
                (0x1000, 2, PE_LAZY | PE_PRESENT)
            );
            assert_eq!(seen[0].1, vec![9; 2 * PAGE_LEN]);
        }
    }

    #[test]
    fn a_stream_that_breaks_off_is_an_error() {
        let (mut criu, mut us) = UnixStream::pair().unwrap();
        criu.write_all(&command(false, OPEN2, 0, 0, 1)).unwrap();
        drop(criu);
        assert!(matches!(
            serve(&mut us, || {}, |_, _| Ok(())),
            Err(Error::Io(_))
        ));
    }
}
