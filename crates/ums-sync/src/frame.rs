//! The frames of the data path, versions 1 to 4: hand-written encoding, nothing taken on trust.
//!
//! ```text
//! +--------+--------+------------------+---------------------+
//! | type   | flags  | length           | payload             |
//! | u8     | u8     | u32 LE           | `length` bytes      |
//! +--------+--------+------------------+---------------------+
//! ```
//!
//! All numbers are little-endian. A payload has at most [`PAYLOAD_MAX`] bytes. Anything that is
//! not exactly as described is a [`FrameError`]: an unknown type or flag, a length that doesn't fit
//! the fields, a name or path that could mean something outside its place.
//!
//! ```text
//!   source                                   destination
//!     | Hello{versions, migration, permit}        |
//!     |------------------------------------------>|
//!     |                Welcome{version} | Refused |
//!     |<------------------------------------------|
//!     | Image, Pages, Entry, FileData, FileEnd,   |
//!     | Remove, Alive …                           |
//!     |------------------------------------------>|
//!     |                       Alive … | Failed    |
//!     |<------------------------------------------|
//!     | Settle                                    |
//!     |------------------------------------------>|
//!     |                        Settled | Failed   |
//!     |<------------------------------------------|
//!     | more content, in the freeze               |
//!     |------------------------------------------>|
//!     | End{counts, digest}                       |
//!     |------------------------------------------>|
//!     |                 Delivered{digest}| Failed |
//!     |<------------------------------------------|
//! ```
//!
//! The digest is BLAKE3 over the BLAKE3 digests of every frame after `Hello` and before `End`, in
//! order, headers included: so the threads that make the frames hash them, side by side, and the
//! one that writes them only has to put the digests in order.

mod entry;
mod fields;
mod pages;
mod path;

use fields::Fields;

pub use entry::{Entry, Kind, XATTRS_BYTES_MAX, XATTRS_MAX, Xattr};
pub use pages::{
    BLOCK_BYTES, BLOCK_PAGES, Content, PAGE_BYTES, PAGES_HEAD_LEN, Pages, write_pages_head,
};
pub use path::{DEPTH_MAX, NAME_BYTES_MAX, PATH_BYTES_MAX, RelativePath, RootName};

/// Length of a frame's header.
pub const HEADER_LEN: usize = 6;

/// The largest payload. Whoever announces more is refused before anything is allocated.
pub const PAYLOAD_MAX: usize = 1024 * 1024;

/// The payload of a `Hello`: two versions, a migration, a permit. A stranger may send no more.
pub const HELLO_LEN: usize = 2 + 2 + 16 + 32;

/// The oldest and the newest version of the protocol that this code speaks. Since version 2 pages may
/// be sent again and again while the service runs, and `Pages` without content says that those here have
/// not changed; a destination of version 1 passes that over. Since version 3 those may be of shared memory too, and
/// since version 4 pages may stay at the source until the service runs at the destination, which knows the flag that says so.
pub const VERSIONS: (u16, u16) = (1, 4);
/// The first version with rounds of pages.
pub const ROUNDS_VERSION: u16 = 2;
/// The first version with rounds of shared memory.
pub const SHARED_ROUNDS_VERSION: u16 = 3;
/// The first version in which pages may stay at the source.
pub const AWAY_VERSION: u16 = 4;

/// Bytes of a file or an image that one frame carries at most.
pub const DATA_MAX: usize = 256 * 1024;

/// The longest reason that is sent to a peer; the rest stays in the log of the sender.
pub const REASON_BYTES_MAX: usize = 4096;

/// The longest name of an image.
pub const IMAGE_NAME_MAX: usize = 128;

/// A frame that is not as the protocol says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A type this version doesn't know.
    #[error("frame type {0:#04x} is not part of the protocol")]
    UnknownType(u8),
    /// A flag this version doesn't know.
    #[error("{frame} frame with unknown flags {flags:#04x}")]
    UnknownFlags {
        /// Which frame.
        frame: &'static str,
        /// All its flags.
        flags: u8,
    },
    /// More than one frame may hold.
    #[error("{frame} frame of {length} bytes, more than the {PAYLOAD_MAX} a frame may have")]
    TooLong {
        /// Which frame.
        frame: &'static str,
        /// The announced length.
        length: u64,
    },
    /// The payload ends inside a field.
    #[error("{frame} frame ends inside its {field}")]
    Short {
        /// Which frame.
        frame: &'static str,
        /// The field that is incomplete.
        field: &'static str,
    },
    /// The payload goes on after the last field.
    #[error("{frame} frame has {extra} bytes too many")]
    Trailing {
        /// Which frame.
        frame: &'static str,
        /// How many.
        extra: usize,
    },
    /// A field has a value that is not allowed.
    #[error("{frame} frame: {reason}")]
    Invalid {
        /// Which frame.
        frame: &'static str,
        /// The field and what is wrong with it.
        reason: String,
    },
}

/// What a frame is, by its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(
    missing_docs,
    reason = "each is described at the variant of `Frame` with its name"
)]
pub enum FrameType {
    Hello = 0x01,
    Welcome = 0x02,
    Refused = 0x03,
    Alive = 0x04,
    Failed = 0x05,
    End = 0x06,
    Delivered = 0x07,
    Settled = 0x08,
    Image = 0x10,
    Pages = 0x11,
    Entry = 0x20,
    FileData = 0x21,
    FileEnd = 0x22,
    Remove = 0x23,
    Settle = 0x30,
}

impl FrameType {
    /// All of them.
    pub const ALL: [FrameType; 15] = [
        FrameType::Hello,
        FrameType::Welcome,
        FrameType::Refused,
        FrameType::Alive,
        FrameType::Failed,
        FrameType::End,
        FrameType::Delivered,
        FrameType::Settled,
        FrameType::Settle,
        FrameType::Image,
        FrameType::Pages,
        FrameType::Entry,
        FrameType::FileData,
        FrameType::FileEnd,
        FrameType::Remove,
    ];

    /// Its name in messages.
    pub fn name(self) -> &'static str {
        match self {
            FrameType::Hello => "Hello",
            FrameType::Welcome => "Welcome",
            FrameType::Refused => "Refused",
            FrameType::Alive => "Alive",
            FrameType::Failed => "Failed",
            FrameType::End => "End",
            FrameType::Delivered => "Delivered",
            FrameType::Settled => "Settled",
            FrameType::Settle => "Settle",
            FrameType::Image => "Image",
            FrameType::Pages => "Pages",
            FrameType::Entry => "Entry",
            FrameType::FileData => "FileData",
            FrameType::FileEnd => "FileEnd",
            FrameType::Remove => "Remove",
        }
    }

    fn flags(self) -> u8 {
        match self {
            FrameType::Image => FLAG_MORE,
            FrameType::Pages => FLAG_ZSTD | FLAG_ABSENT,
            FrameType::FileData => FLAG_ZSTD,
            _ => 0,
        }
    }
}

/// Of `Image`: more of the same image follows.
pub(crate) const FLAG_MORE: u8 = 0x01;
/// Of `Pages` and `FileData`: the bytes are one zstd frame.
pub(crate) const FLAG_ZSTD: u8 = 0x02;
/// Of `Pages`: the range is described, its content is not carried.
pub(crate) const FLAG_ABSENT: u8 = 0x04;

/// The first six bytes of a frame, checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What it is.
    pub frame: FrameType,
    /// Its flags; only those that the type has.
    pub flags: u8,
    /// Length of the payload, at most [`PAYLOAD_MAX`].
    pub length: usize,
}

impl Header {
    /// Reads a header.
    pub fn decode(bytes: [u8; HEADER_LEN]) -> Result<Self, FrameError> {
        let [kind, flags, length @ ..] = bytes;
        let frame = FrameType::ALL
            .into_iter()
            .find(|known| *known as u8 == kind)
            .ok_or(FrameError::UnknownType(kind))?;
        if flags & !frame.flags() != 0 {
            return Err(FrameError::UnknownFlags {
                frame: frame.name(),
                flags,
            });
        }
        let length = u32::from_le_bytes(length);
        match usize::try_from(length) {
            Ok(fits) if fits <= PAYLOAD_MAX => Ok(Self {
                frame,
                flags,
                length: fits,
            }),
            _ => Err(FrameError::TooLong {
                frame: frame.name(),
                length: length.into(),
            }),
        }
    }

    /// The bytes of this header.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [self.frame as u8, self.flags, 0, 0, 0, 0];
        // PAYLOAD_MAX fits into 32 bits.
        bytes[2..].copy_from_slice(&(self.length as u32).to_le_bytes());
        bytes
    }
}

/// The opening of a data path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// Oldest version the source speaks.
    pub version_min: u16,
    /// Newest version the source speaks.
    pub version_max: u16,
    /// The migration that the stream belongs to.
    pub migration: uuid::Uuid,
    /// The permit that the destination gave for it.
    pub permit: [u8; 32],
}

/// How much went before `End`, as the source counted it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Frames.
    pub frames: u64,
    /// Pages, zero pages included.
    pub pages: u64,
    /// Bytes of the frames, headers included.
    pub bytes: u64,
}

/// A BLAKE3 digest.
pub type Digest = [u8; 32];

/// One frame, borrowing from its payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame<'a> {
    /// Source to destination, first: who wants what.
    Hello(Hello),
    /// Destination to source: go on, in this version.
    Welcome {
        /// The version both speak from now on.
        version: u16,
    },
    /// Destination to source: not accepted; the connection ends.
    Refused {
        /// Why, for people.
        reason: &'a str,
    },
    /// Either way: nothing to say, still here.
    Alive,
    /// Destination to source: it can't go on; the connection ends.
    Failed {
        /// Why, for people.
        reason: &'a str,
    },
    /// Source to destination, last: what should have arrived.
    End {
        /// How much.
        counts: Counts,
        /// BLAKE3 of it.
        digest: Digest,
    },
    /// Destination to source, last: everything has arrived, agrees, and is in its place.
    Delivered {
        /// The digest that the destination computed.
        digest: Digest,
    },
    /// Source to destination, between content: what came so far is to be in its place, and what stands
    /// by itself (the root filesystem's image) verified and durable, before the freeze begins.
    Settle,
    /// Destination to source: it is.
    Settled,
    /// A metadata image of the checkpoint, or a part of one.
    Image {
        /// Its name, a plain file name.
        name: &'a str,
        /// Whether more of it follows.
        more: bool,
        /// The bytes.
        bytes: &'a [u8],
    },
    /// Pages of memory.
    Pages(Pages<'a>),
    /// A file, directory or other entry of a tree; the content of a file follows.
    Entry(Entry<'a>),
    /// Content of the file that the last `Entry` began.
    FileData {
        /// Where in the file.
        offset: u64,
        /// Whether `bytes` are one zstd frame.
        zstd: bool,
        /// The bytes, as carried.
        bytes: &'a [u8],
    },
    /// The file that the last `Entry` began is complete.
    FileEnd {
        /// Its size: what was never written is a hole.
        size: u64,
    },
    /// An entry is no more, and nothing below it.
    Remove {
        /// In which tree.
        root: RootName,
        /// Which entry.
        path: RelativePath<'a>,
    },
}

impl<'a> Frame<'a> {
    /// Which frame it is.
    pub fn kind(&self) -> FrameType {
        match self {
            Frame::Hello(_) => FrameType::Hello,
            Frame::Welcome { .. } => FrameType::Welcome,
            Frame::Refused { .. } => FrameType::Refused,
            Frame::Alive => FrameType::Alive,
            Frame::Failed { .. } => FrameType::Failed,
            Frame::End { .. } => FrameType::End,
            Frame::Delivered { .. } => FrameType::Delivered,
            Frame::Settle => FrameType::Settle,
            Frame::Settled => FrameType::Settled,
            Frame::Image { .. } => FrameType::Image,
            Frame::Pages(_) => FrameType::Pages,
            Frame::Entry(_) => FrameType::Entry,
            Frame::FileData { .. } => FrameType::FileData,
            Frame::FileEnd { .. } => FrameType::FileEnd,
            Frame::Remove { .. } => FrameType::Remove,
        }
    }

    /// Appends the frame to `out`. On an error `out` is as it was.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), FrameError> {
        let begin = out.len();
        let encoded = self.encode_at(begin, out);
        if encoded.is_err() {
            out.truncate(begin);
        }
        encoded
    }

    fn encode_at(&self, begin: usize, out: &mut Vec<u8>) -> Result<(), FrameError> {
        out.extend_from_slice(&[0; HEADER_LEN]);
        self.encode_payload(out);
        let length = out.len() - begin - HEADER_LEN;
        let frame = self.kind();
        if length > PAYLOAD_MAX {
            return Err(FrameError::TooLong {
                frame: frame.name(),
                length: length as u64,
            });
        }
        let header = Header {
            frame,
            flags: self.flags(),
            length,
        };
        out[begin..begin + HEADER_LEN].copy_from_slice(&header.encode());
        // What could not be decoded must not be sent: the peer would blame the wire for it.
        Frame::decode(header, &out[begin + HEADER_LEN..]).map(drop)
    }

    fn flags(&self) -> u8 {
        match self {
            Frame::Image { more: true, .. } => FLAG_MORE,
            Frame::FileData { zstd: true, .. } => FLAG_ZSTD,
            Frame::Pages(pages) => pages.wire_flags(),
            _ => 0,
        }
    }

    fn encode_payload(&self, out: &mut Vec<u8>) {
        match self {
            Frame::Hello(hello) => {
                out.extend_from_slice(&hello.version_min.to_le_bytes());
                out.extend_from_slice(&hello.version_max.to_le_bytes());
                out.extend_from_slice(hello.migration.as_bytes());
                out.extend_from_slice(&hello.permit);
            }
            Frame::Welcome { version } => out.extend_from_slice(&version.to_le_bytes()),
            Frame::Refused { reason } | Frame::Failed { reason } => {
                out.extend_from_slice(reason.as_bytes());
            }
            Frame::Alive | Frame::Settle | Frame::Settled => {}
            Frame::End { counts, digest } => {
                for count in [counts.frames, counts.pages, counts.bytes] {
                    out.extend_from_slice(&count.to_le_bytes());
                }
                out.extend_from_slice(digest);
            }
            Frame::Delivered { digest } => out.extend_from_slice(digest),
            Frame::Image { name, bytes, .. } => {
                fields::put_short(out, name.as_bytes());
                out.extend_from_slice(bytes);
            }
            Frame::Pages(pages) => pages.encode_payload(out),
            Frame::Entry(entry) => entry.encode_payload(out),
            Frame::FileData { offset, bytes, .. } => {
                out.extend_from_slice(&offset.to_le_bytes());
                out.extend_from_slice(bytes);
            }
            Frame::FileEnd { size } => out.extend_from_slice(&size.to_le_bytes()),
            Frame::Remove { root, path } => {
                fields::put_short(out, root.to_string().as_bytes());
                fields::put_long(out, path.as_bytes());
            }
        }
    }

    /// Reads the payload that belongs to `header`.
    pub fn decode(header: Header, payload: &'a [u8]) -> Result<Self, FrameError> {
        let mut fields = Fields::new(header.frame.name(), payload);
        let frame = match header.frame {
            FrameType::Hello => Frame::Hello(Hello {
                version_min: fields.u16("oldest version")?,
                version_max: fields.u16("newest version")?,
                migration: uuid::Uuid::from_bytes(fields.array("migration")?),
                permit: fields.array("permit")?,
            }),
            FrameType::Welcome => Frame::Welcome {
                version: fields.u16("version")?,
            },
            FrameType::Refused => Frame::Refused {
                reason: fields.reason()?,
            },
            FrameType::Alive => Frame::Alive,
            FrameType::Settle => Frame::Settle,
            FrameType::Settled => Frame::Settled,
            FrameType::Failed => Frame::Failed {
                reason: fields.reason()?,
            },
            FrameType::End => Frame::End {
                counts: Counts {
                    frames: fields.u64("number of frames")?,
                    pages: fields.u64("number of pages")?,
                    bytes: fields.u64("number of bytes")?,
                },
                digest: fields.array("digest")?,
            },
            FrameType::Delivered => Frame::Delivered {
                digest: fields.array("digest")?,
            },
            FrameType::Image => Frame::Image {
                name: fields.image_name()?,
                more: header.flags & FLAG_MORE != 0,
                bytes: fields.data()?,
            },
            FrameType::Pages => Frame::Pages(Pages::decode(header.flags, &mut fields)?),
            FrameType::Entry => Frame::Entry(Entry::decode(&mut fields)?),
            FrameType::FileData => Frame::FileData {
                offset: fields.u64("offset")?,
                zstd: header.flags & FLAG_ZSTD != 0,
                bytes: fields.data()?,
            },
            FrameType::FileEnd => Frame::FileEnd {
                size: fields.u64("size")?,
            },
            FrameType::Remove => Frame::Remove {
                root: fields.root()?,
                path: fields.path("path")?,
            },
        };
        fields.end()?;
        Ok(frame)
    }
}

/// The reason for a peer: what went wrong and all that led to it, cut to what a frame may carry.
pub fn reason_of(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    shortened(text)
}

/// Cuts a reason to what a frame may carry.
pub fn shortened(mut text: String) -> String {
    if text.len() > REASON_BYTES_MAX {
        let end = (0..=REASON_BYTES_MAX)
            .rev()
            .find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or(0));
    }
    text
}
