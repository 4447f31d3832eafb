//! Frames of files, gathered into batches; content compressed where that pays.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

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

    /// Sends the content of a file up to `size`, without its holes. The outer error is the data
    /// path's. Returns how many bytes were read.
    pub(super) fn content(&mut self, file: &File, size: u64) -> Result<io::Result<u64>, SendError> {
        let (mut at, mut sent) = (0, 0);
        loop {
            let (begin, end) = match next_data(file, at, size) {
                Ok(Some(extent)) => extent,
                Ok(None) => return Ok(Ok(sent)),
                Err(error) => return Ok(Err(error)),
            };
            at = begin;
            while at < end {
                let length = (end - at).min(DATA_MAX as u64) as usize;
                match file.read_at(&mut self.content[..length], at) {
                    // Shorter than it was: the second pass will see it changed.
                    Ok(0) => return Ok(Ok(sent)),
                    Ok(read) => {
                        self.data(at, read)?;
                        at += read as u64;
                        sent += read as u64;
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Ok(Err(error)),
                }
            }
        }
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
