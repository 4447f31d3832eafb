//! Compression of one writer's blocks, where it pays.

use std::time::Instant;

use super::adapt::Adapt;

/// The fastest level: the network waits for the compressor, never the other way round.
const LEVEL: i32 = 1;

/// A block that shrinks by less than a sixteenth is carried as it is: unpacking costs more.
const SHRINK_MIN: usize = 16;

/// A compressor that knows when not to.
pub(crate) struct Packer {
    adapt: Adapt,
    /// `None` if there was no memory for one: blocks are then carried as they are.
    compressor: Option<zstd::bulk::Compressor<'static>>,
}

impl Default for Packer {
    fn default() -> Self {
        Self {
            adapt: Adapt::default(),
            compressor: zstd::bulk::Compressor::new(LEVEL).ok(),
        }
    }
}

impl Packer {
    /// Whether the next block should be tried.
    pub(super) fn wants(&mut self) -> bool {
        self.compressor.is_some() && self.adapt.choose()
    }

    /// The most that a block of `raw` bytes may become.
    pub(super) fn room(raw: usize) -> usize {
        raw - raw.div_ceil(SHRINK_MIN)
    }

    /// Compresses `raw` to the beginning of `into`; returns its length there, or `None` if it
    /// isn't worth it. `link` is the network's rate.
    pub(super) fn try_pack(&mut self, raw: &[u8], into: &mut [u8], link: u64) -> Option<usize> {
        let room = Self::room(raw.len()).min(into.len());
        let begin = Instant::now();
        let packed = self
            .compressor
            .as_mut()?
            .compress_to_buffer(raw, &mut into[..room])
            .ok();
        self.adapt.record(
            raw.len(),
            packed.unwrap_or(raw.len()),
            begin.elapsed(),
            link,
        );
        packed
    }

    /// Both in one.
    pub(crate) fn pack(&mut self, raw: &[u8], into: &mut [u8], link: u64) -> Option<usize> {
        if self.wants() {
            self.try_pack(raw, into, link)
        } else {
            None
        }
    }
}
