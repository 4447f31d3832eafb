//! Pages of memory: a range of one process, its zero pages left out.

use super::fields::Fields;
use super::{FLAG_ABSENT, FLAG_ZSTD, FrameError, FrameType, HEADER_LEN, Header};

/// A page, as the architectures that UMS runs on have it.
pub const PAGE_BYTES: usize = 4096;

/// Pages that one frame carries at most: as many as there are bits in the bitmap.
pub const BLOCK_PAGES: usize = 64;

/// Bytes of that many pages.
pub const BLOCK_BYTES: usize = BLOCK_PAGES * PAGE_BYTES;

/// Bytes before the content in an encoded `Pages` frame, the header included.
pub const PAGES_HEAD_LEN: usize = HEADER_LEN + 32;

/// Pages that follow each other in the memory of one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pages<'a> {
    /// Whose memory: the page server's destination id as given, type and id.
    pub process: u64,
    /// Address of the first page.
    pub address: u64,
    /// How many pages; with content at most [`BLOCK_PAGES`].
    pub count: u32,
    /// CRIU's flags of the range (`PE_…`) as given.
    pub flags: u32,
    /// What is in them.
    pub content: Content<'a>,
}

/// The content of a range of pages, as carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content<'a> {
    /// Not carried: the range is only described.
    Absent,
    /// The pages whose bit is set, one after the other; the others are zero.
    Raw {
        /// Bit `n` is page `n` of the range.
        present: u64,
        /// 4096 bytes for each bit.
        bytes: &'a [u8],
    },
    /// The same as one zstd frame.
    Zstd {
        /// Bit `n` is page `n` of the range.
        present: u64,
        /// The zstd frame, never longer than what it stands for.
        bytes: &'a [u8],
    },
}

impl<'a> Pages<'a> {
    pub(super) fn wire_flags(&self) -> u8 {
        match self.content {
            Content::Absent => FLAG_ABSENT,
            Content::Raw { .. } => 0,
            Content::Zstd { .. } => FLAG_ZSTD,
        }
    }

    pub(super) fn encode_payload(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.fixed());
        if let Content::Raw { bytes, .. } | Content::Zstd { bytes, .. } = self.content {
            out.extend_from_slice(bytes);
        }
    }

    fn fixed(&self) -> [u8; PAGES_HEAD_LEN - HEADER_LEN] {
        let present = match self.content {
            Content::Absent => 0,
            Content::Raw { present, .. } | Content::Zstd { present, .. } => present,
        };
        let mut out = [0; PAGES_HEAD_LEN - HEADER_LEN];
        out[0..8].copy_from_slice(&self.process.to_le_bytes());
        out[8..16].copy_from_slice(&self.address.to_le_bytes());
        out[16..20].copy_from_slice(&self.count.to_le_bytes());
        out[20..24].copy_from_slice(&self.flags.to_le_bytes());
        out[24..32].copy_from_slice(&present.to_le_bytes());
        out
    }

    pub(super) fn decode(wire_flags: u8, fields: &mut Fields<'a>) -> Result<Self, FrameError> {
        let process = fields.u64("process")?;
        let address = fields.u64("address")?;
        let count = fields.u32("number of pages")?;
        let flags = fields.u32("page flags")?;
        let present = fields.u64("bitmap")?;
        let bytes = fields.rest();
        let content = match wire_flags {
            0 => Content::Raw { present, bytes },
            FLAG_ZSTD => Content::Zstd { present, bytes },
            FLAG_ABSENT if present == 0 && bytes.is_empty() => Content::Absent,
            FLAG_ABSENT => return Err(fields.invalid("absent pages with content")),
            _ => return Err(fields.invalid("pages both absent and compressed")),
        };
        let pages = Self {
            process,
            address,
            count,
            flags,
            content,
        };
        pages.check().map_err(|reason| fields.invalid(reason))?;
        Ok(pages)
    }

    fn check(&self) -> Result<(), String> {
        let end = u64::from(self.count)
            .checked_mul(PAGE_BYTES as u64)
            .and_then(|length| self.address.checked_add(length));
        if !self.address.is_multiple_of(PAGE_BYTES as u64) || end.is_none() || self.count == 0 {
            let (address, count) = (self.address, self.count);
            return Err(format!(
                "{count} pages at {address:#x} are no range of memory"
            ));
        }
        let (present, carried) = match self.content {
            Content::Absent => return Ok(()),
            Content::Raw { present, bytes } | Content::Zstd { present, bytes } => {
                (present, bytes.len())
            }
        };
        if self.count as usize > BLOCK_PAGES {
            return Err(format!("{} pages, more than {BLOCK_PAGES}", self.count));
        }
        if (self.count as usize) < BLOCK_PAGES && present >> self.count != 0 {
            return Err("the bitmap has bits beyond the last page".to_owned());
        }
        let full = present.count_ones() as usize * PAGE_BYTES;
        match self.content {
            Content::Zstd { .. } if carried == 0 || carried >= full => {
                Err(format!("{carried} compressed bytes for {full}"))
            }
            Content::Raw { .. } if carried != full => Err(format!(
                "{carried} bytes of pages where the bitmap says {full}"
            )),
            _ => Ok(()),
        }
    }
}

/// Writes the head of a `Pages` frame into the first [`PAGES_HEAD_LEN`] bytes of `frame`, whose
/// content is in place behind them already: pages are read into their frame and stay there.
pub fn write_pages_head(pages: &Pages<'_>, length: usize, frame: &mut [u8]) {
    let header = Header {
        frame: FrameType::Pages,
        flags: pages.wire_flags(),
        length: PAGES_HEAD_LEN - HEADER_LEN + length,
    };
    frame[..HEADER_LEN].copy_from_slice(&header.encode());
    frame[HEADER_LEN..PAGES_HEAD_LEN].copy_from_slice(&pages.fixed());
}
