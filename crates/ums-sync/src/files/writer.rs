//! Frames of files, gathered into batches; content compressed where that pays.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::blocks::{Blocks, Hasher};
use crate::frame::{DATA_MAX, Frame};
use crate::send::{Batch, Packer, Producer, SendError};

/// A batch is sent when it has grown to this.
const BATCH_BYTES: usize = 128 * 1024;

/// Less than this isn't worth compressing by itself.
const PACK_BYTES_MIN: usize = 8 * 1024;

/// Sends files from a blocking thread: hand it to [`first_pass`](super::first_pass) and
/// [`second_pass`](super::second_pass).
pub struct FileWriter {
    producer: Producer,
    batch: Batch,
    packer: Packer,
    content: Vec<u8>,
    packed: Vec<u8>,
}

impl FileWriter {
    pub(crate) fn new(producer: Producer) -> Self {
        Self {
            producer,
            batch: Batch::default(),
            packer: Packer::default(),
            content: vec![0; DATA_MAX],
            packed: vec![0; DATA_MAX],
        }
    }

    pub(super) fn put(&mut self, frame: &Frame<'_>) -> Result<(), SendError> {
        if self.batch.bytes.is_empty() {
            self.batch.bytes = self.producer.shared().pool.take_empty();
        }
        self.batch.push(frame)?;
        if self.batch.bytes.len() >= BATCH_BYTES {
            self.flush()
        } else {
            Ok(())
        }
    }

    pub(super) fn flush(&mut self) -> Result<(), SendError> {
        let batch = std::mem::take(&mut self.batch);
        if batch.digests.is_empty() {
            Ok(())
        } else {
            self.producer.send_blocking(batch)
        }
    }

    /// Sends the content of a file up to `size`, without its holes, and has it hashed. The outer
    /// error is the data path's. Returns how many bytes were sent.
    pub(super) fn content(
        &mut self,
        file: &File,
        size: u64,
        mut hasher: Option<&mut Hasher>,
    ) -> Result<io::Result<u64>, SendError> {
        let mut sent = 0;
        let read = each_extent(file, 0, size, |at, end| {
            self.read(file, at, end, |writer, at, length| {
                if let Some(hasher) = hasher.as_deref_mut() {
                    hasher.content(at, &writer.content[..length]);
                }
                sent += length as u64;
                writer.data(at, length)
            })
        })?;
        Ok(read.map(|()| sent))
    }

    /// Sends what of a file, `size` bytes long now, is other than the `blocks` that the destination
    /// has. The file must not change meanwhile. As [`content`](Self::content) otherwise.
    pub(super) fn changes(
        &mut self,
        file: &File,
        size: u64,
        blocks: &Blocks,
    ) -> Result<io::Result<u64>, SendError> {
        let (mut now, compared) = blocks.hasher(size);
        let read = each_extent(file, 0, compared, |at, end| {
            self.read(file, at, end, |writer, at, length| {
                now.content(at, &writer.content[..length]);
                Ok(())
            })
        })?;
        if let Err(error) = read {
            return Ok(Err(error));
        }
        now.end(compared);
        let mut sent = 0;
        for range in blocks.changed(&now, size) {
            let mut at = range.start;
            let read = each_extent(file, range.start, range.end, |begin, end| {
                self.zeros(at, begin.min(blocks.size()))?;
                at = end;
                self.read(file, begin, end, |writer, at, length| {
                    sent += length as u64;
                    writer.data(at, length)
                })
            })?;
            if let Err(error) = read {
                return Ok(Err(error));
            }
            self.zeros(at, range.end.min(blocks.size()))?;
        }
        Ok(Ok(sent))
    }

    /// Hands the bytes of a file from `at` to `end`, or as far as there are any, over in pieces.
    fn read(
        &mut self,
        file: &File,
        mut at: u64,
        end: u64,
        mut piece: impl FnMut(&mut Self, u64, usize) -> Result<(), SendError>,
    ) -> Result<io::Result<()>, SendError> {
        while at < end {
            let length = (end - at).min(DATA_MAX as u64) as usize;
            match file.read_at(&mut self.content[..length], at) {
                // Shorter than it was: the second pass will see it changed.
                Ok(0) => return Ok(Ok(())),
                Ok(read) => {
                    piece(self, at, read)?;
                    at += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Ok(Err(error)),
            }
        }
        Ok(Ok(()))
    }

    /// A hole, told as zeros: the destination may have something there.
    fn zeros(&mut self, mut at: u64, end: u64) -> Result<(), SendError> {
        while at < end {
            let length = (end - at).min(DATA_MAX as u64) as usize;
            self.content[..length].fill(0);
            self.data(at, length)?;
            at += length as u64;
        }
        Ok(())
    }

    fn data(&mut self, offset: u64, length: usize) -> Result<(), SendError> {
        let shared = self.producer.shared();
        shared.meter.add_filesystem(length as u64);
        let content = std::mem::take(&mut self.content);
        let mut packed = std::mem::take(&mut self.packed);
        let raw = &content[..length];
        let carried = if length >= PACK_BYTES_MIN {
            self.packer.pack(raw, &mut packed, shared.link_rate())
        } else {
            None
        };
        let bytes = carried.map_or(raw, |carried| &packed[..carried]);
        let put = self.put(&Frame::FileData {
            offset,
            zstd: carried.is_some(),
            bytes,
        });
        (self.content, self.packed) = (content, packed);
        put
    }
}

/// Does something with each part of a file between `at` and `size` that is not a hole. The outer
/// error is that of the work.
fn each_extent(
    file: &File,
    mut at: u64,
    size: u64,
    mut work: impl FnMut(u64, u64) -> Result<io::Result<()>, SendError>,
) -> Result<io::Result<()>, SendError> {
    loop {
        let (begin, end) = match next_data(file, at, size) {
            Ok(Some(extent)) => extent,
            Ok(None) => return Ok(Ok(())),
            Err(error) => return Ok(Err(error)),
        };
        if let Err(error) = work(begin, end)? {
            return Ok(Err(error));
        }
        at = end;
    }
}

/// The next part of a file that is not a hole, from `at` on and before `size`.
fn next_data(file: &File, at: u64, size: u64) -> io::Result<Option<(u64, u64)>> {
    if at >= size {
        return Ok(None);
    }
    let begin = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(begin) if begin < size => begin,
        // Nothing but a hole is left.
        Ok(_) | Err(Errno::NXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let end = match rustix::fs::seek(file, SeekFrom::Hole(begin)) {
        Ok(end) => end.min(size),
        Err(Errno::NXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    Ok((end > begin).then_some((begin, end)))
}
