//! Reading an archive from its beginning.

use std::io::{self, Read, Seek, SeekFrom};

use super::header::{Header, malformed};
use super::pax::Extended;
use super::{BLOCK, Entry, Kind};
use crate::error::Error;
use crate::limits::{PATH_BYTES_MAX, TAR_HEADER_BYTES_MAX};

/// Reads entries one after the other; as a reader, the content of the last one.
pub struct Reader<R> {
    inner: R,
    /// Passes over so many bytes.
    skip: fn(&mut R, u64) -> io::Result<()>,
    /// Of the entry's content.
    left: u64,
    /// Behind it, to the next block.
    padding: u64,
    offset: u64,
    ended: bool,
}

impl<R: Read> Reader<R> {
    /// Of what can only be read.
    pub fn new(inner: R) -> Self {
        Self::with(inner, |inner, count| {
            let copied = io::copy(&mut inner.take(count), &mut io::sink())?;
            if copied == count {
                Ok(())
            } else {
                Err(io::ErrorKind::UnexpectedEof.into())
            }
        })
    }

    fn with(inner: R, skip: fn(&mut R, u64) -> io::Result<()>) -> Self {
        Self {
            inner,
            skip,
            left: 0,
            padding: 0,
            offset: 0,
            ended: false,
        }
    }

    /// The next entry; `None` at the end.
    ///
    /// # Errors
    /// When reading fails, or what is read is no archive that layers or engines write.
    pub fn entry(&mut self) -> Result<Option<Entry>, Error> {
        let mut extended = Extended::default();
        let mut headers = 0;
        while let Some(block) = self.block()? {
            let header = Header(&block);
            if header.is_end() {
                break;
            }
            header.check()?;
            match header.type_flag() {
                b'x' => extended.records(&self.short(header.size()?)?)?,
                b'L' => extended.path = Some(self.name(header.size()?)?),
                b'K' => extended.link = Some(self.name(header.size()?)?),
                // Engines pass over what is said of all that follows.
                b'g' => drop(self.short(header.size()?)?),
                _ => return self.complete(&header, extended).map(Some),
            }
            headers += 1;
            if headers > 16 {
                return Err(malformed("too many headers belong to one entry"));
            }
        }
        self.ended = true;
        Ok(None)
    }

    fn complete(&mut self, header: &Header<'_>, extended: Extended) -> Result<Entry, Error> {
        let mut entry = header.entry()?;
        extended.onto(&mut entry)?;
        if entry.path.len() > PATH_BYTES_MAX || entry.link.len() > PATH_BYTES_MAX {
            return Err(Error::TooLarge {
                what: "a path in the archive".to_owned(),
                limit: PATH_BYTES_MAX as u64,
                unit: "bytes",
            });
        }
        // Only files have content, whatever a header says of others.
        if entry.kind != Kind::File {
            entry.size = 0;
        }
        entry.offset = self.offset;
        self.begin(entry.size)?;
        Ok(entry)
    }

    fn begin(&mut self, size: u64) -> Result<(), Error> {
        self.left = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
        match size.checked_add(self.padding) {
            Some(_) => Ok(()),
            None => Err(malformed("an entry is larger than anything")),
        }
    }

    /// The next block, after what is left of the content before it.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, Error> {
        if self.ended {
            return Ok(None);
        }
        let rest = self.left + self.padding;
        (self.skip)(&mut self.inner, rest).map_err(truncated)?;
        self.offset += rest;
        (self.left, self.padding) = (0, 0);
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.inner.read(&mut block[filled..]) {
                // An archive may end without its two empty blocks.
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(truncated(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(truncated(error)),
            }
        }
        self.offset += BLOCK as u64;
        Ok(Some(block))
    }

    /// The content of an extended header.
    fn short(&mut self, size: u64) -> Result<Vec<u8>, Error> {
        if size > TAR_HEADER_BYTES_MAX {
            return Err(Error::TooLarge {
                what: "an extended header of the archive".to_owned(),
                limit: TAR_HEADER_BYTES_MAX,
                unit: "bytes",
            });
        }
        self.begin(size)?;
        let mut bytes = Vec::new();
        self.read_to_end(&mut bytes).map_err(truncated)?;
        Ok(bytes)
    }

    fn name(&mut self, size: u64) -> Result<Vec<u8>, Error> {
        let mut name = self.short(size)?;
        let end = name.iter().position(|byte| *byte == 0);
        name.truncate(end.unwrap_or(name.len()));
        Ok(name)
    }
}

impl<R: Read + Seek> Reader<R> {
    /// Of what can be sought in: content that nobody reads is not read.
    pub fn seeking(inner: R) -> Self {
        Self::with(inner, |inner, count| {
            let count = i64::try_from(count).map_err(|_| io::ErrorKind::UnexpectedEof)?;
            inner.seek(SeekFrom::Current(count)).map(drop)
        })
    }
}

impl<R: Read> Read for Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX);
        let most = most.min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let count = self.inner.read(&mut buffer[..most])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= count as u64;
        self.offset += count as u64;
        Ok(count)
    }
}

fn truncated(error: io::Error) -> Error {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        return malformed("it ends too early");
    }
    Error::at("read", "the archive")(error)
}
