//! Pages of memory, from whoever reads them to the queue: zero pages dropped, the rest compressed
//! where that is faster than sending it.

use std::io::Read;
use std::sync::Arc;

use super::SendError;
use super::packer::Packer;
use super::producer::{Batch, Producer};
use crate::frame::{
    BLOCK_BYTES, BLOCK_PAGES, Content, Frame, PAGE_BYTES, PAGES_HEAD_LEN, Pages, write_pages_head,
};

/// Sends pages of memory from a blocking thread. Each thread should have one of its own.
///
/// Pages are read straight into the frame that carries them. A call returns when the pages are in
/// the queue; it waits while that is full.
pub struct PageWriter {
    producer: Producer,
    packer: Packer,
}

impl PageWriter {
    pub(super) fn new(producer: Producer) -> Self {
        Self {
            producer,
            packer: Packer::default(),
        }
    }

    /// Sends pages that are in memory: `data` holds whole pages from `address` on.
    pub fn write(
        &mut self,
        process: u64,
        address: u64,
        flags: u32,
        mut data: &[u8],
    ) -> Result<(), SendError> {
        let count = data.len() / PAGE_BYTES;
        self.write_from(process, address, flags, count as u64, &mut data)
    }

    /// Sends `count` pages that `reader` yields next.
    pub fn write_from(
        &mut self,
        process: u64,
        address: u64,
        flags: u32,
        count: u64,
        reader: &mut impl Read,
    ) -> Result<(), SendError> {
        let mut done = 0;
        while done < count {
            let pages = (count - done).min(BLOCK_PAGES as u64);
            let at = address.wrapping_add(done * PAGE_BYTES as u64);
            let length = PAGES_HEAD_LEN + pages as usize * PAGE_BYTES;
            let mut frame = self.producer.shared().pool.take_sized(length);
            reader
                .read_exact(&mut frame[PAGES_HEAD_LEN..])
                .map_err(|source| SendError::Read {
                    what: format!("{pages} pages at {at:#x}"),
                    source: Arc::new(source),
                })?;
            let range = Pages {
                process,
                address: at,
                count: pages as u32,
                flags,
                content: Content::Absent,
            };
            self.send_block(range, frame)?;
            done += pages;
        }
        Ok(())
    }

    /// Describes `count` pages without their content.
    pub fn absent(
        &mut self,
        process: u64,
        address: u64,
        flags: u32,
        count: u32,
    ) -> Result<(), SendError> {
        let mut bytes = self.producer.shared().pool.take_empty();
        let content = Content::Absent;
        Frame::Pages(Pages {
            process,
            address,
            count,
            flags,
            content,
        })
        .encode(&mut bytes)?;
        self.producer.send_blocking(Batch::single(bytes, 0))
    }

    /// `frame` holds the pages of `range` behind the room for its head.
    fn send_block(&mut self, range: Pages<'_>, mut frame: Vec<u8>) -> Result<(), SendError> {
        let present = drop_zero_pages(&mut frame);
        let length = frame.len() - PAGES_HEAD_LEN;
        let range = match self.compressed(&frame[PAGES_HEAD_LEN..]) {
            Some(packed) => {
                let pool = &self.producer.shared().pool;
                pool.give(std::mem::replace(&mut frame, packed));
                Pages {
                    content: Content::Zstd {
                        present,
                        bytes: &[],
                    },
                    ..range
                }
            }
            None => Pages {
                content: Content::Raw {
                    present,
                    bytes: &[],
                },
                ..range
            },
        };
        let carried = frame.len() - PAGES_HEAD_LEN;
        debug_assert!(carried <= length);
        write_pages_head(&range, carried, &mut frame);
        self.producer
            .shared()
            .meter
            .add_memory(u64::from(range.count) * PAGE_BYTES as u64);
        self.producer
            .send_blocking(Batch::single(frame, range.count.into()))
    }

    /// A frame with room for its head and the compressed pages, if that is worth it.
    fn compressed(&mut self, pages: &[u8]) -> Option<Vec<u8>> {
        if pages.is_empty() || !self.packer.wants() {
            return None;
        }
        let shared = self.producer.shared();
        let mut frame = shared
            .pool
            .take_sized(PAGES_HEAD_LEN + Packer::room(pages.len()));
        match self
            .packer
            .try_pack(pages, &mut frame[PAGES_HEAD_LEN..], shared.link_rate())
        {
            Some(length) => {
                frame.truncate(PAGES_HEAD_LEN + length);
                Some(frame)
            }
            None => {
                shared.pool.give(frame);
                None
            }
        }
    }
}

/// Closes the gaps that zero pages leave; returns which pages are there.
fn drop_zero_pages(frame: &mut Vec<u8>) -> u64 {
    debug_assert!(frame.len() <= PAGES_HEAD_LEN + BLOCK_BYTES);
    let count = (frame.len() - PAGES_HEAD_LEN) / PAGE_BYTES;
    let (mut present, mut end) = (0, PAGES_HEAD_LEN);
    for page in 0..count {
        let at = PAGES_HEAD_LEN + page * PAGE_BYTES;
        if is_zero(&frame[at..at + PAGE_BYTES]) {
            continue;
        }
        if at != end {
            frame.copy_within(at..at + PAGE_BYTES, end);
        }
        present |= 1 << page;
        end += PAGE_BYTES;
    }
    frame.truncate(end);
    present
}

/// Most pages that are not zero show it in their first bytes; the rest is compared in words that
/// the compiler makes into vectors.
fn is_zero(page: &[u8]) -> bool {
    let (first, rest) = page.split_at(64);
    first.iter().all(|byte| *byte == 0)
        && rest
            .chunks_exact(64)
            .all(|chunk| chunk.iter().fold(0, |all, byte| all | byte) == 0)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_page_is_zero_only_if_every_byte_is() {
        let mut page = vec![0; PAGE_BYTES];
        assert!(is_zero(&page));
        for at in [0, 63, 64, 2047, PAGE_BYTES - 1] {
            page[at] = 1;
            assert!(!is_zero(&page), "{at}");
            page[at] = 0;
        }
    }

    #[test]
    fn zero_pages_leave_no_gap() {
        let mut frame = vec![9; PAGES_HEAD_LEN];
        for fill in [0, 1, 0, 0, 2, 0] {
            frame.extend([fill; PAGE_BYTES]);
        }
        assert_eq!(drop_zero_pages(&mut frame), 0b01_0010);
        let expected = [[1; PAGE_BYTES], [2; PAGE_BYTES]].concat();
        assert_eq!(frame[PAGES_HEAD_LEN..], expected);
        assert!(frame[..PAGES_HEAD_LEN].iter().all(|byte| *byte == 9));
    }
}
