//! An entry of a tree: what it is, and everything about it but a file's content.

use super::fields::{Fields, put_long, put_short};
use super::path::{NAME_BYTES_MAX, PATH_BYTES_MAX};
use super::{FrameError, RelativePath, RootName};

/// Extended attributes that one entry may have.
pub const XATTRS_MAX: usize = 256;

/// Bytes of all extended attributes of one entry, names and values: room for several of the
/// largest that Linux allows, and within one frame.
pub const XATTRS_BYTES_MAX: usize = 512 * 1024;

/// One extended attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Xattr<'a> {
    /// Its name with its namespace, such as `user.mime_type`.
    pub name: &'a [u8],
    /// Its value.
    pub value: &'a [u8],
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind<'a> {
    /// A directory.
    Directory,
    /// A regular file. `FileData` and `FileEnd` follow.
    File,
    /// A regular file that has come before, under this path: the `FileData` that follows takes the
    /// place of what it holds there, the rest stays. Zeros may become a hole.
    Patch,
    /// A symbolic link.
    Symlink {
        /// Where it leads, as text that is never followed here.
        target: &'a [u8],
    },
    /// A named pipe.
    Fifo,
    /// A character device; major and minor 0 is an overlay's whiteout.
    CharacterDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// Another name for an entry, no directory, that has come before.
    Link {
        /// The path it came under, in the same tree.
        target: RelativePath<'a>,
    },
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The tree.
    pub root: RootName,
    /// Where in it.
    pub path: RelativePath<'a>,
    /// What it is.
    pub kind: Kind<'a>,
    /// Permission bits with set-user-id, set-group-id and sticky: at most `0o7777`.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification, seconds since 1970.
    pub mtime_s: i64,
    /// Last modification, nanoseconds of the second.
    pub mtime_ns: u32,
    /// Extended attributes.
    pub xattrs: Vec<Xattr<'a>>,
}

impl<'a> Entry<'a> {
    pub(super) fn encode_payload(&self, out: &mut Vec<u8>) {
        put_short(out, self.root.to_string().as_bytes());
        put_long(out, self.path.as_bytes());
        out.extend_from_slice(&self.mode.to_le_bytes());
        out.extend_from_slice(&self.uid.to_le_bytes());
        out.extend_from_slice(&self.gid.to_le_bytes());
        out.extend_from_slice(&self.mtime_s.to_le_bytes());
        out.extend_from_slice(&self.mtime_ns.to_le_bytes());
        let count = u16::try_from(self.xattrs.len()).unwrap_or(u16::MAX);
        out.extend_from_slice(&count.to_le_bytes());
        for xattr in &self.xattrs {
            put_short(out, xattr.name);
            let length = u32::try_from(xattr.value.len()).unwrap_or(u32::MAX);
            out.extend_from_slice(&length.to_le_bytes());
            out.extend_from_slice(xattr.value);
        }
        self.kind.encode(out);
    }

    pub(super) fn decode(fields: &mut Fields<'a>) -> Result<Self, FrameError> {
        let root = fields.root()?;
        let path = fields.path("path")?;
        let mode = fields.u32("mode")?;
        let (uid, gid) = (fields.u32("owner")?, fields.u32("group")?);
        let (mtime_s, mtime_ns) = (fields.i64("mtime")?, fields.u32("mtime")?);
        let xattrs = decode_xattrs(fields)?;
        let kind = Kind::decode(fields)?;
        if mode > 0o7777 {
            return Err(fields.invalid(format!("mode {mode:#o} has more than permission bits")));
        }
        if mtime_ns >= 1_000_000_000 {
            return Err(fields.invalid(format!("mtime with {mtime_ns} nanoseconds")));
        }
        if path.is_root() && kind != Kind::Directory {
            return Err(fields.invalid("the root of a tree can only be a directory"));
        }
        Ok(Self {
            root,
            path,
            kind,
            mode,
            uid,
            gid,
            mtime_s,
            mtime_ns,
            xattrs,
        })
    }
}

impl<'a> Kind<'a> {
    fn encode(&self, out: &mut Vec<u8>) {
        let mut numbers = |tag: u8, major: u32, minor: u32| {
            out.push(tag);
            out.extend_from_slice(&major.to_le_bytes());
            out.extend_from_slice(&minor.to_le_bytes());
        };
        match *self {
            Kind::CharacterDevice { major, minor } => numbers(4, major, minor),
            Kind::BlockDevice { major, minor } => numbers(5, major, minor),
            Kind::Directory => out.push(0),
            Kind::File => out.push(1),
            Kind::Symlink { target } => {
                out.push(2);
                put_long(out, target);
            }
            Kind::Fifo => out.push(3),
            Kind::Patch => out.push(7),
            Kind::Link { target } => {
                out.push(6);
                put_long(out, target.as_bytes());
            }
        }
    }

    fn decode(fields: &mut Fields<'a>) -> Result<Self, FrameError> {
        Ok(match fields.u8("kind")? {
            0 => Kind::Directory,
            1 => Kind::File,
            2 => Kind::Symlink {
                target: symlink_target(fields)?,
            },
            3 => Kind::Fifo,
            4 => Kind::CharacterDevice {
                major: fields.u32("major")?,
                minor: fields.u32("minor")?,
            },
            5 => Kind::BlockDevice {
                major: fields.u32("major")?,
                minor: fields.u32("minor")?,
            },
            6 => match fields.path("link target")? {
                target if target.is_root() => {
                    return Err(fields.invalid("a hard link to the root of the tree"));
                }
                target => Kind::Link { target },
            },
            7 => Kind::Patch,
            other => return Err(fields.invalid(format!("unknown kind of entry {other}"))),
        })
    }
}

fn symlink_target<'a>(fields: &mut Fields<'a>) -> Result<&'a [u8], FrameError> {
    let target = fields.long("symlink target")?;
    if target.is_empty() || target.len() > PATH_BYTES_MAX || target.contains(&0) {
        return Err(fields.invalid("a symlink target that is empty, too long or holds a zero byte"));
    }
    Ok(target)
}

fn decode_xattrs<'a>(fields: &mut Fields<'a>) -> Result<Vec<Xattr<'a>>, FrameError> {
    let count = usize::from(fields.u16("number of extended attributes")?);
    if count > XATTRS_MAX {
        return Err(fields.invalid(format!("more than {XATTRS_MAX} extended attributes")));
    }
    let mut xattrs = Vec::with_capacity(count);
    let mut total = 0;
    for _ in 0..count {
        let name = fields.short("extended attribute's name")?;
        let length = fields.u32("extended attribute's length")? as usize;
        let value = fields.bytes("extended attribute", length)?;
        if name.is_empty() || name.len() > NAME_BYTES_MAX || name.contains(&0) {
            return Err(fields.invalid("an extended attribute without a usable name"));
        }
        total += name.len() + value.len();
        if total > XATTRS_BYTES_MAX {
            let message = format!("more than {XATTRS_BYTES_MAX} bytes of extended attributes");
            return Err(fields.invalid(message));
        }
        xattrs.push(Xattr { name, value });
    }
    Ok(xattrs)
}
