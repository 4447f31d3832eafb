//! The thread that checks, unpacks and hands over what has arrived.

use std::collections::{BTreeMap, BTreeSet};

use tokio::sync::mpsc;

use super::{
    Block, FileOperation, Limits, PageContent, ReceiveError, Received, Reply, Sink, SinkError,
};
use crate::frame::{
    BLOCK_BYTES, Content, Counts, DATA_MAX, Digest, Entry, Frame, FrameType, Header, Kind,
    PAGE_BYTES, Pages,
};
use crate::link::LinkError;
use crate::meter::Meter;
use crate::pool::Pool;

pub(super) struct Apply<S> {
    sink: S,
    limits: Limits,
    meter: Meter,
    counts: Counts,
    hasher: blake3::Hasher,
    unpacker: Option<zstd::bulk::Decompressor<'static>>,
    unpacked: Vec<u8>,
    images: Images,
    memory_bytes: u64,
    file_bytes: u64,
    entries: u64,
    file_open: bool,
}

#[derive(Default)]
struct Images {
    partial: BTreeMap<String, Vec<u8>>,
    whole: BTreeSet<String>,
    bytes: u64,
}

impl<S: Sink> Apply<S> {
    pub(super) fn new(sink: S, limits: Limits, meter: Meter) -> Self {
        Self {
            sink,
            limits,
            meter,
            counts: Counts::default(),
            hasher: blake3::Hasher::new(),
            unpacker: None,
            unpacked: vec![0; BLOCK_BYTES.max(DATA_MAX)],
            images: Images::default(),
            memory_bytes: 0,
            file_bytes: 0,
            entries: 0,
            file_open: false,
        }
    }

    pub(super) fn run(
        mut self,
        frames: &mut mpsc::Receiver<(Header, Vec<u8>)>,
        pool: &Pool,
        replies: &mpsc::Sender<Reply>,
    ) -> Result<Received<S>, ReceiveError> {
        while let Some((header, payload)) = frames.blocking_recv() {
            let number = self.counts.frames + 1;
            let frame =
                Frame::decode(header, &payload).map_err(|source| ReceiveError::Malformed {
                    frames: number,
                    source,
                })?;
            match frame {
                Frame::End { counts, digest } => return self.end(counts, digest),
                Frame::Failed { reason } => {
                    return Err(ReceiveError::Abandoned {
                        reason: reason.to_owned(),
                    });
                }
                frame => {
                    self.count(header, &payload);
                    let settle = frame == Frame::Settle;
                    self.take(frame)?;
                    if settle {
                        // Who can't be told is lost, which the reader finds.
                        let _ = replies.blocking_send(Reply::Settled);
                    }
                }
            }
            pool.give(payload);
        }
        let source = LinkError::Ended {
            at: "between two frames",
        };
        Err(ReceiveError::Truncated {
            frames: self.counts.frames,
            source,
        })
    }

    fn count(&mut self, header: Header, payload: &[u8]) {
        let head = header.encode();
        let mut frame = blake3::Hasher::new();
        frame.update(&head).update(payload);
        self.hasher.update(frame.finalize().as_bytes());
        let bytes = (head.len() + payload.len()) as u64;
        self.counts.frames += 1;
        self.counts.bytes += bytes;
        self.meter.add_wire(bytes);
    }

    fn take(&mut self, frame: Frame<'_>) -> Result<(), ReceiveError> {
        match frame {
            Frame::Alive => Ok(()),
            Frame::Settle => self.settle(),
            Frame::Image { name, more, bytes } => self.image(name, more, bytes),
            Frame::Pages(pages) => self.pages(pages),
            Frame::Entry(entry) => self.entry(entry),
            Frame::FileData {
                offset,
                zstd,
                bytes,
            } => self.data(offset, zstd, bytes),
            Frame::FileEnd { size } => self.file_end(size),
            Frame::Remove { root, path } => {
                self.next_entry(FrameType::Remove)?;
                let what = format!("the removal of {root}/{path}");
                placed(what, self.sink.file(&FileOperation::Remove { root, path }))
            }
            other => Err(ReceiveError::Misplaced {
                frame: other.kind().name(),
                reason: "only content may follow the opening",
            }),
        }
    }

    fn image(&mut self, name: &str, more: bool, bytes: &[u8]) -> Result<(), ReceiveError> {
        let misplaced = |reason| ReceiveError::Misplaced {
            frame: "Image",
            reason,
        };
        let images = &mut self.images;
        if images.whole.contains(name) {
            return Err(misplaced("an image of this name is complete already"));
        }
        images.bytes += bytes.len() as u64;
        let limit = self.limits.image_bytes_max;
        if images.bytes > limit {
            let what = "bytes of metadata images";
            return Err(ReceiveError::TooMuch {
                what,
                limit,
                see: "the number of its processes",
            });
        }
        let known = images.partial.contains_key(name);
        if !known && images.partial.len() + images.whole.len() >= self.limits.images_max {
            let limit = self.limits.images_max as u64;
            let (what, see) = ("metadata images", "the number of its processes");
            return Err(ReceiveError::TooMuch { what, limit, see });
        }
        let partial = images.partial.entry(name.to_owned()).or_default();
        partial.extend_from_slice(bytes);
        if more {
            return Ok(());
        }
        let whole = images.partial.remove(name).unwrap_or_default();
        images.whole.insert(name.to_owned());
        placed(format!("the image {name}"), self.sink.image(name, whole))
    }

    fn pages(&mut self, pages: Pages<'_>) -> Result<(), ReceiveError> {
        let Pages {
            process,
            address,
            count,
            flags,
            content,
        } = pages;
        let content = match content {
            Content::Absent => None,
            Content::Raw { present, bytes } => Some((present, bytes, false)),
            Content::Zstd { present, bytes } => Some((present, bytes, true)),
        };
        if content.is_some() {
            let bytes = u64::from(count) * PAGE_BYTES as u64;
            self.memory_bytes += bytes;
            let limit = self.limits.memory_bytes_max;
            if self.memory_bytes > limit {
                let (what, see) = ("bytes of memory", "the service's memory limit");
                return Err(ReceiveError::TooMuch { what, limit, see });
            }
            self.counts.pages += u64::from(count);
            self.meter.add_memory(bytes);
        }
        let content = match content {
            None => None,
            Some((present, bytes, false)) => Some(PageContent { present, bytes }),
            Some((present, bytes, true)) => {
                let expected = present.count_ones() as usize * PAGE_BYTES;
                let length = unpack(&mut self.unpacker, bytes, &mut self.unpacked[..expected])?;
                if length != expected {
                    let reason = format!("{length} bytes of pages instead of {expected}");
                    return Err(ReceiveError::Unpack { reason });
                }
                Some(PageContent {
                    present,
                    bytes: &self.unpacked[..length],
                })
            }
        };
        let block = Block {
            process,
            address,
            count,
            flags,
            content,
        };
        placed_with(self.sink.pages(&block), || {
            format!("{count} pages at {address:#x}")
        })
    }

    fn entry(&mut self, entry: Entry<'_>) -> Result<(), ReceiveError> {
        self.next_entry(FrameType::Entry)?;
        self.file_open = matches!(entry.kind, Kind::File | Kind::Patch);
        let what = format!("{}/{}", entry.root, entry.path);
        placed(what, self.sink.file(&FileOperation::Entry(entry)))
    }

    fn settle(&mut self) -> Result<(), ReceiveError> {
        if self.file_open {
            let (frame, reason) = ("Settle", "the file before it is not complete");
            return Err(ReceiveError::Misplaced { frame, reason });
        }
        placed("what came before the freeze".to_owned(), self.sink.settle())
    }

    fn next_entry(&mut self, frame: FrameType) -> Result<(), ReceiveError> {
        if self.file_open {
            let reason = "the file before it is not complete";
            return Err(ReceiveError::Misplaced {
                frame: frame.name(),
                reason,
            });
        }
        self.entries += 1;
        let limit = self.limits.entries_max;
        if self.entries > limit {
            let (what, see) = ("files", "the service's volumes");
            return Err(ReceiveError::TooMuch { what, limit, see });
        }
        Ok(())
    }

    fn data(&mut self, offset: u64, zstd: bool, bytes: &[u8]) -> Result<(), ReceiveError> {
        self.in_file("FileData")?;
        let bytes = if zstd {
            let length = unpack(&mut self.unpacker, bytes, &mut self.unpacked[..DATA_MAX])?;
            &self.unpacked[..length]
        } else {
            bytes
        };
        if offset
            .checked_add(bytes.len() as u64)
            .is_none_or(|end| end > i64::MAX as u64)
        {
            let reason = "no file is as large as its offset says";
            return Err(ReceiveError::Misplaced {
                frame: "FileData",
                reason,
            });
        }
        self.file_bytes += bytes.len() as u64;
        let limit = self.limits.file_bytes_max;
        if self.file_bytes > limit {
            let (what, see) = ("bytes of files", "the service's volumes");
            return Err(ReceiveError::TooMuch { what, limit, see });
        }
        self.meter.add_filesystem(bytes.len() as u64);
        let placed = self.sink.file(&FileOperation::Data { offset, bytes });
        placed_with(placed, || format!("{} bytes of a file", bytes.len()))
    }

    fn file_end(&mut self, size: u64) -> Result<(), ReceiveError> {
        self.in_file("FileEnd")?;
        self.file_open = false;
        if size > i64::MAX as u64 {
            let reason = "no file is as large as its size says";
            return Err(ReceiveError::Misplaced {
                frame: "FileEnd",
                reason,
            });
        }
        placed_with(self.sink.file(&FileOperation::End { size }), || {
            "a file's end".to_owned()
        })
    }

    fn in_file(&self, frame: &'static str) -> Result<(), ReceiveError> {
        if self.file_open {
            return Ok(());
        }
        Err(ReceiveError::Misplaced {
            frame,
            reason: "no file was begun",
        })
    }

    fn end(mut self, sent: Counts, digest: Digest) -> Result<Received<S>, ReceiveError> {
        let computed = *self.hasher.finalize().as_bytes();
        let differs = |what: String| Err(ReceiveError::Differs { what });
        let got = self.counts;
        if sent != got {
            return differs(format!("the source counted {sent:?}, here {got:?} arrived"));
        }
        if digest != computed {
            return differs("its digest differs: it was damaged on its way".to_owned());
        }
        if let Some(name) = self.images.partial.keys().next() {
            return differs(format!("the image {name} is not complete"));
        }
        if self.file_open {
            return differs("the last file is not complete".to_owned());
        }
        placed("everything".to_owned(), self.sink.finish())?;
        let bytes = self.meter.bytes();
        Ok(Received {
            sink: self.sink,
            digest,
            counts: got,
            bytes,
        })
    }
}

fn unpack(
    unpacker: &mut Option<zstd::bulk::Decompressor<'static>>,
    packed: &[u8],
    into: &mut [u8],
) -> Result<usize, ReceiveError> {
    let failed = |error: std::io::Error| ReceiveError::Unpack {
        reason: error.to_string(),
    };
    let unpacker = match unpacker {
        Some(unpacker) => unpacker,
        None => unpacker.insert(zstd::bulk::Decompressor::new().map_err(failed)?),
    };
    unpacker.decompress_to_buffer(packed, into).map_err(failed)
}

fn placed(what: String, result: Result<(), SinkError>) -> Result<(), ReceiveError> {
    placed_with(result, || what)
}

fn placed_with(
    result: Result<(), SinkError>,
    what: impl FnOnce() -> String,
) -> Result<(), ReceiveError> {
    result.map_err(|source| ReceiveError::Sink {
        what: what(),
        source,
    })
}
