//! Writing an archive: the same entries make the same bytes.

use std::io::{self, Read, Write};

use super::pax::ATTRIBUTE;
use super::{BLOCK, Entry, Kind};
use crate::error::Error;

/// The largest size that the header's own field holds.
const SIZE_MAX: u64 = 0o777_7777_7777;
/// The largest user or group id that it holds.
const ID_MAX: u32 = 0o777_7777;

/// Writes entries one after the other.
pub struct Writer<W> {
    out: W,
}

impl<W: Write> Writer<W> {
    /// To there.
    pub fn new(out: W) -> Self {
        Self { out }
    }

    /// Writes an entry, with exactly [`Entry::size`] bytes of content.
    ///
    /// # Errors
    /// When writing fails, or the content has another length.
    pub fn entry(&mut self, entry: &Entry, content: &mut dyn Read) -> Result<(), Error> {
        let records = records(entry);
        if !records.is_empty() {
            let mut header = block(b"pax", b'x', records.len() as u64);
            seal(&mut header);
            self.put(&header)?;
            self.put(&records)?;
            self.pad(records.len() as u64)?;
        }
        self.put(&header(entry))?;
        let copied = io::copy(&mut content.take(entry.size), &mut self.out)
            .map_err(Error::at("write", "the archive"))?;
        if copied != entry.size {
            let path = String::from_utf8_lossy(&entry.path).into_owned();
            return Err(Error::malformed(
                path,
                "it became shorter while it was read",
            ));
        }
        self.pad(entry.size)
    }

    /// Writes the end.
    ///
    /// # Errors
    /// When writing fails.
    pub fn finish(mut self) -> Result<W, Error> {
        self.put(&[0; 2 * BLOCK])?;
        self.out
            .flush()
            .map_err(Error::at("write", "the archive"))?;
        Ok(self.out)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.out
            .write_all(bytes)
            .map_err(Error::at("write", "the archive"))
    }

    fn pad(&mut self, size: u64) -> Result<(), Error> {
        let padding = size.wrapping_neg() % BLOCK as u64;
        self.put(&[0; BLOCK][..usize::try_from(padding).unwrap_or(0)])
    }
}

/// What the header's own fields don't hold.
fn records(entry: &Entry) -> Vec<u8> {
    let mut records = Vec::new();
    let mut add = |key: &[u8], value: &[u8]| records.extend(record(key, value));
    if entry.path.len() > 100 || !entry.path.is_ascii() {
        add(b"path", &entry.path);
    }
    if entry.link.len() > 100 || !entry.link.is_ascii() {
        add(b"linkpath", &entry.link);
    }
    if entry.size > SIZE_MAX {
        add(b"size", entry.size.to_string().as_bytes());
    }
    for (key, id) in [(&b"uid"[..], entry.uid), (b"gid", entry.gid)] {
        if id > ID_MAX {
            add(key, id.to_string().as_bytes());
        }
    }
    match entry.mtime {
        (seconds, 0) if (0..=SIZE_MAX.cast_signed()).contains(&seconds) => {}
        (seconds, nanoseconds) if seconds >= 0 => {
            add(b"mtime", format!("{seconds}.{nanoseconds:09}").as_bytes());
        }
        (seconds, 0) => add(b"mtime", seconds.to_string().as_bytes()),
        (seconds, nanoseconds) => {
            let (whole, fraction) = (seconds + 1, 1_000_000_000 - nanoseconds);
            let sign = if whole == 0 { "-" } else { "" };
            add(b"mtime", format!("{sign}{whole}.{fraction:09}").as_bytes());
        }
    }
    for (name, value) in &entry.attributes {
        add(&[ATTRIBUTE, name].concat(), value);
    }
    records
}

/// `LENGTH KEY=VALUE` and a line's end; the length counts its own digits.
fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    let mut record = format!("{length} ").into_bytes();
    record.extend([key, b"=", value, b"\n"].concat());
    record
}

fn header(entry: &Entry) -> [u8; BLOCK] {
    let flag = match entry.kind {
        Kind::File => b'0',
        Kind::HardLink => b'1',
        Kind::Symlink => b'2',
        Kind::Character => b'3',
        Kind::Block => b'4',
        Kind::Directory => b'5',
        Kind::Fifo => b'6',
    };
    let mut block = block(&entry.path, flag, entry.size.min(SIZE_MAX));
    text(&mut block[157..257], &entry.link);
    octal(&mut block[100..108], u64::from(entry.mode & 0o7777));
    octal(&mut block[108..116], u64::from(entry.uid.min(ID_MAX)));
    octal(&mut block[116..124], u64::from(entry.gid.min(ID_MAX)));
    let seconds = u64::try_from(entry.mtime.0).unwrap_or(0);
    octal(&mut block[136..148], seconds.min(SIZE_MAX));
    octal(&mut block[329..337], u64::from(entry.device.0));
    octal(&mut block[337..345], u64::from(entry.device.1));
    seal(&mut block);
    block
}

fn block(path: &[u8], flag: u8, size: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    text(&mut block[..100], path);
    octal(&mut block[100..108], 0o644);
    octal(&mut block[108..116], 0);
    octal(&mut block[116..124], 0);
    octal(&mut block[124..136], size);
    octal(&mut block[136..148], 0);
    block[156] = flag;
    block[257..265].copy_from_slice(b"ustar\x0000");
    block
}

fn seal(block: &mut [u8; BLOCK]) {
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    octal(&mut block[148..155], sum);
}

fn text(field: &mut [u8], bytes: &[u8]) {
    let length = bytes.len().min(field.len());
    field[..length].copy_from_slice(&bytes[..length]);
}

/// Octal digits that fill the field but for its last byte.
fn octal(field: &mut [u8], number: u64) {
    let width = field.len() - 1;
    let digits = format!("{number:0width$o}");
    field[..width].copy_from_slice(&digits.as_bytes()[digits.len() - width..]);
}
