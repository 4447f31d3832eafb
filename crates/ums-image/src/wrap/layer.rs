//! The layer that wrapping adds.

use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::io::{self, BufWriter, Read, Seek, SeekFrom};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use flate2::{Compression, GzBuilder};
use ums_core::wrap;

use super::Programs;
use crate::copy::{Digesting, NewLayer};
use crate::error::Error;
use crate::limits::DEPTH_MAX;
use crate::tar::{Entry, Kind, Writer};

type Archive = Writer<Digesting<BufWriter<File>>>;

/// Makes the layer, in files without names.
pub(super) fn make(memory: &[u8], programs: &Programs) -> Result<NewLayer, Error> {
    let mut archive = Writer::new(Digesting::new(BufWriter::new(unnamed()?)));
    let failed = || Error::at("write", "the new layer");
    for dir in [wrap::DIRECTORY, wrap::PROGRAMS] {
        directory(&mut archive, dir, 0o755)?;
    }
    for (name, from) in [
        ("ums-agent", &programs.agent),
        ("ums-frontman", &programs.frontman),
    ] {
        let metadata = fs::metadata(from).map_err(Error::io("look at", from))?;
        file(
            &mut archive,
            &format!("{}/{name}", wrap::PROGRAMS),
            from,
            &metadata,
        )?;
    }
    tree(&mut archive, wrap::BUNDLE, &programs.bundle)?;
    for (dir, mode) in [(wrap::PKI, 0o700), (wrap::RUN, 0o700), (wrap::STATE, 0o700)] {
        directory(&mut archive, dir, mode)?;
    }
    let entry = Entry {
        size: memory.len() as u64,
        ..Entry::new(&wrap::FILE[1..], Kind::File, 0o644)
    };
    archive.entry(&entry, &mut &memory[..])?;
    let (plain, diff_id) = archive.finish()?.finish();
    let mut plain = plain
        .into_inner()
        .map_err(|error| failed()(error.into_error()))?;
    plain.seek(SeekFrom::Start(0)).map_err(failed())?;
    // Without a time and a name.
    let gzip = Digesting::new(BufWriter::new(unnamed()?));
    let mut gzip = GzBuilder::new().write(gzip, Compression::default());
    io::copy(&mut plain, &mut gzip).map_err(failed())?;
    let (gzip, digest) = gzip.finish().map_err(failed())?.finish();
    let gzip = gzip
        .into_inner()
        .map_err(|error| failed()(error.into_error()))?;
    Ok(NewLayer {
        plain,
        diff_id,
        gzip,
        digest,
    })
}

fn unnamed() -> Result<File, Error> {
    tempfile::tempfile().map_err(Error::io("create a file in", &std::env::temp_dir()))
}

/// Paths of layers don't begin with a slash.
fn directory(archive: &mut Archive, path: &str, mode: u32) -> Result<(), Error> {
    let entry = Entry::new(format!("{}/", &path[1..]), Kind::Directory, mode);
    archive.entry(&entry, &mut io::empty())
}

fn file(archive: &mut Archive, path: &str, from: &Path, metadata: &Metadata) -> Result<(), Error> {
    // Of the permissions only what makes a program one: the rest is of the machine where it lies.
    let mode = match metadata.permissions().mode() & 0o100 {
        0 => 0o644,
        _ => 0o755,
    };
    let entry = Entry {
        size: metadata.len(),
        ..Entry::new(&path[1..], Kind::File, mode)
    };
    let mut content = File::open(from).map_err(Error::io("open", from))?;
    archive.entry(&entry, &mut content)
}

/// A directory with all that is in it, in the order of names.
fn tree(archive: &mut Archive, path: &str, from: &Path) -> Result<(), Error> {
    let mut links = HashMap::new();
    below(archive, path, from, &mut links, 0)
}

fn below(
    archive: &mut Archive,
    path: &str,
    from: &Path,
    links: &mut HashMap<(u64, u64), String>,
    depth: usize,
) -> Result<(), Error> {
    if depth > DEPTH_MAX {
        return Err(Error::TooLarge {
            what: "the bundle".to_owned(),
            limit: DEPTH_MAX as u64,
            unit: "directories inside one another",
        });
    }
    directory(archive, path, 0o755)?;
    let failed = || Error::io("list", from);
    let mut names = Vec::new();
    for entry in fs::read_dir(from).map_err(failed())? {
        names.push(entry.map_err(failed())?.file_name());
    }
    names.sort_unstable_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
    for name in names {
        let at = from.join(&name);
        let metadata = fs::symlink_metadata(&at).map_err(Error::io("look at", &at))?;
        let path = format!("{path}/{}", name.to_string_lossy());
        if metadata.is_dir() {
            below(archive, &path, &at, links, depth + 1)?;
        } else if metadata.is_symlink() {
            let target = fs::read_link(&at).map_err(Error::io("read", &at))?;
            let mut entry = Entry::new(&path[1..], Kind::Symlink, 0o777);
            entry.link = target.into_os_string().into_vec();
            archive.entry(&entry, &mut io::empty())?;
        } else if metadata.is_file() {
            let identity = (metadata.dev(), metadata.ino());
            if let Some(first) = links.get(&identity) {
                let mut entry = Entry::new(&path[1..], Kind::HardLink, 0o755);
                entry.link = first.as_bytes()[1..].to_vec();
                archive.entry(&entry, &mut io::empty())?;
                continue;
            }
            file(archive, &path, &at, &metadata)?;
            if metadata.nlink() > 1 {
                links.insert(identity, path);
            }
        } else {
            let detail = "it is neither a file, a directory nor a link";
            return Err(Error::malformed(at.display().to_string(), detail));
        }
    }
    Ok(())
}

/// Programs that name a loader: they run only in images that have it, and the C library that it loads.
pub(super) fn dynamic(programs: &Programs) -> Result<Vec<PathBuf>, Error> {
    let mut dynamic = Vec::new();
    for path in [&programs.agent, &programs.frontman] {
        if has_interpreter(path)? {
            dynamic.push(path.clone());
        }
    }
    Ok(dynamic)
}

/// Whether an ELF file of 64 bits has a segment of the type `PT_INTERP` (`elf(5)`).
fn has_interpreter(path: &Path) -> Result<bool, Error> {
    const PT_INTERP: u32 = 3;
    let mut head = Vec::new();
    let opened = File::open(path).map_err(Error::io("open", path))?;
    // The segments' table follows the header.
    opened
        .take(16 << 10)
        .read_to_end(&mut head)
        .map_err(Error::io("read", path))?;
    let number = |at: usize, length: usize| -> Option<u64> {
        let bytes = head.get(at..at.checked_add(length)?)?;
        Some(
            bytes
                .iter()
                .rev()
                .fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
        )
    };
    if !head.starts_with(b"\x7fELF\x02\x01") {
        let detail = "it is not a program for 64-bit little-endian machines";
        return Err(Error::malformed(path.display().to_string(), detail));
    }
    let table = number(32, 8).and_then(|at| usize::try_from(at).ok());
    let (size, count) = (number(54, 2), number(56, 2));
    let (Some(table), Some(size), Some(count)) = (table, size, count) else {
        return Ok(false);
    };
    let segment = |index: u64| {
        let at = usize::try_from(index * size).ok()?.checked_add(table)?;
        number(at, 4)
    };
    Ok((0..count).any(|index| segment(index) == Some(u64::from(PT_INTERP))))
}
