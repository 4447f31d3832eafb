//! Pages that must be there before the service runs although they could come late: one page file
//! for all processes that have such pages, in which each page is once.
//!
//! CRIU reads a process's page file from its beginning to its end, and leaves out what the pagemap
//! says comes late (`criu/mem.c`, `restore_priv_vma_content`). So processes can have one file in common:
//! the pagemap of each names all pages of the file, in their order, and says of those that are not
//! the process's own that they come late. CRIU wants the addresses of a process's own pages to ascend;
//! so the file is ordered by address, and cut wherever a piece of one process begins or ends.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use super::extents::Run;
use super::{Error, Owned, mapped, page_file, write_pagemap};
use crate::criu::image::{self, Extent, byte_len};
use crate::criu::page_server::{PE_LAZY, PE_PRESENT, PageOwner};
use crate::memory_dir::MemoryDir;

/// Bytes copied at once.
const COPY_BYTES: u64 = 1 << 20;

/// Where the content of a piece is now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    /// In the memfd of late pages.
    Late,
    /// In the owner's own page file.
    Own(PageOwner),
}

/// Pages of the common file. Ordered by address.
type Piece = (Run, Source);

/// Moves the early pages of all owners into one page file, and writes the pagemaps of those owners.
/// Returns how many bytes it holds.
pub(super) fn restore_early(
    late: &File,
    owners: &mut BTreeMap<PageOwner, Owned>,
    images: &MemoryDir,
) -> Result<u64, Error> {
    let pages_id = owners.len() as u32 + 1;
    let sharing = owners
        .iter_mut()
        .filter(|(_, owned)| !owned.early.is_empty());
    let mut pieces: BTreeMap<PageOwner, Vec<Piece>> = BTreeMap::new();
    for (owner, owned) in sharing {
        let early = owned.stored.take(&owned.early);
        let early = early.into_iter().map(|run| (run, Source::Late));
        let own = owned
            .present
            .iter()
            .map(|(run, _)| (*run, Source::Own(*owner)));
        pieces.insert(*owner, early.chain(own).collect());
    }
    if pieces.is_empty() {
        return Ok(0);
    }
    let cuts = cuts(pieces.values().flatten());
    let pieces: BTreeMap<PageOwner, BTreeSet<Piece>> = pieces
        .into_iter()
        .map(|(owner, pieces)| (owner, cut(pieces, &cuts)))
        .collect();
    let all: BTreeSet<Piece> = pieces.values().flatten().copied().collect();
    let bytes = write(late, owners, &all, page_file(images, pages_id)?)?;
    for (owner, own) in &pieces {
        let late = owners[owner].stored.runs();
        let map = pagemap(&all, own, late);
        write_pagemap(images, *owner, pages_id, &map)?;
    }
    Ok(bytes)
}

fn cuts<'a>(pieces: impl Iterator<Item = &'a Piece>) -> BTreeSet<u64> {
    pieces
        .flat_map(|(run, _)| [run.address, run.end()])
        .collect()
}

fn cut(pieces: Vec<Piece>, cuts: &BTreeSet<u64>) -> BTreeSet<Piece> {
    let mut result = BTreeSet::new();
    for (run, source) in pieces {
        let mut at = run.address;
        for end in cuts.range(run.address + 1..=run.end()) {
            result.insert((run.part(at, *end), source));
            at = *end;
        }
    }
    result
}

/// All pieces of the file in their order, which of them are the process's own, and what comes late.
fn pagemap<'a>(
    all: &BTreeSet<Piece>,
    own: &BTreeSet<Piece>,
    late: impl Iterator<Item = &'a Run>,
) -> Vec<Extent> {
    let mut late = late.peekable();
    let mut map = Vec::new();
    for piece in all {
        while let Some(run) = late.next_if(|run| run.address < piece.0.address) {
            image::push_extent(&mut map, run.extent(PE_LAZY));
        }
        let flags = match own.contains(piece) {
            true => PE_PRESENT,
            false => PE_PRESENT | PE_LAZY,
        };
        image::push_extent(&mut map, piece.0.extent(flags));
    }
    late.for_each(|run| image::push_extent(&mut map, run.extent(PE_LAZY)));
    map
}

/// Writes the common file. What was in the memfd is given back there: nobody looks for it any more.
fn write(
    late: &File,
    owners: &BTreeMap<PageOwner, Owned>,
    all: &BTreeSet<Piece>,
    mut file: File,
) -> Result<u64, Error> {
    let mut bytes = 0;
    for (run, source) in all {
        let from = match source {
            Source::Late => late,
            Source::Own(owner) => &owners[owner].file,
        };
        let len = byte_len(run.pages);
        copy(from, run.offset, len, &mut file).map_err(Error::Memory)?;
        mapped::release(from, run.offset, len);
        bytes += len;
    }
    Ok(bytes)
}

pub(super) fn copy(from: &File, offset: u64, len: u64, to: &mut File) -> io::Result<()> {
    let mut buffer = vec![0; len.min(COPY_BYTES) as usize];
    let mut done = 0;
    while done < len {
        let part = (len - done).min(COPY_BYTES) as usize;
        from.read_exact_at(&mut buffer[..part], offset + done)?;
        to.write_all(&buffer[..part])?;
        done += part as u64;
    }
    Ok(())
}
