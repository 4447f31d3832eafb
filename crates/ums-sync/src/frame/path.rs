//! Names of trees and of entries in them.

use std::fmt;
use std::str::FromStr;

use ums_core::id::ServiceName;

/// The longest path inside a tree, as Linux has it (`PATH_MAX` with its final zero).
pub const PATH_BYTES_MAX: usize = 4095;

/// The longest name in a directory, as Linux has it (`NAME_MAX`).
pub const NAME_BYTES_MAX: usize = 255;

/// The deepest path inside a tree. Walking takes one open directory for each level.
pub const DEPTH_MAX: usize = 256;

/// A tree of files that moves with a service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RootName {
    /// What the service changed in its root filesystem: the upper directory of the overlay.
    Upper,
    /// The root filesystem it was started from.
    Image,
    /// What is in `/dev/shm`.
    SharedMemory,
    /// A volume.
    Volume(ServiceName),
}

impl fmt::Display for RootName {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RootName::Upper => out.write_str("upper"),
            RootName::Image => out.write_str("image"),
            RootName::SharedMemory => out.write_str("shm"),
            RootName::Volume(name) => write!(out, "volume/{name}"),
        }
    }
}

/// Text that names no tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a tree is `upper`, `image`, `shm` or `volume/<name>`")]
pub struct InvalidRootName;

impl FromStr for RootName {
    type Err = InvalidRootName;
    fn from_str(text: &str) -> Result<Self, InvalidRootName> {
        match text {
            "upper" => Ok(RootName::Upper),
            "image" => Ok(RootName::Image),
            "shm" => Ok(RootName::SharedMemory),
            _ => {
                let name = text.strip_prefix("volume/").ok_or(InvalidRootName)?;
                name.parse()
                    .map(RootName::Volume)
                    .map_err(|_| InvalidRootName)
            }
        }
    }
}

/// A path inside a tree that can't lead out of it by its text: no leading slash, no empty, `.` or
/// `..` component, no zero byte. The empty path is the root of the tree.
///
/// Symbolic links on the way are another matter: who opens the path must not follow any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelativePath<'a>(&'a [u8]);

impl<'a> RelativePath<'a> {
    /// The root of a tree.
    pub const ROOT: RelativePath<'static> = RelativePath(b"");

    /// Checks a path; the error ends the sentence that begins with it.
    pub fn new(bytes: &'a [u8]) -> Result<Self, String> {
        if bytes.len() > PATH_BYTES_MAX {
            return Err(format!("is longer than {PATH_BYTES_MAX} bytes"));
        }
        let path = Self(bytes);
        if path.components().any(|name| !is_name(name)) {
            return Err(format!(
                "has a component that is empty, `.`, `..`, longer than {NAME_BYTES_MAX} bytes or \
                 holds a zero byte"
            ));
        }
        if path.components().count() > DEPTH_MAX {
            return Err(format!("is deeper than {DEPTH_MAX} directories"));
        }
        Ok(path)
    }

    /// The bytes.
    pub fn as_bytes(self) -> &'a [u8] {
        self.0
    }

    /// Whether this is the root of the tree.
    pub fn is_root(self) -> bool {
        self.0.is_empty()
    }

    /// Its components, from the root of the tree on.
    pub fn components(self) -> impl DoubleEndedIterator<Item = &'a [u8]> + Clone {
        let parts = (!self.0.is_empty()).then(|| self.0.split(|byte| *byte == b'/'));
        parts.into_iter().flatten()
    }

    /// The directory it is in and its name there; `None` for the root of the tree.
    pub fn split(self) -> Option<(RelativePath<'a>, &'a [u8])> {
        if self.is_root() {
            return None;
        }
        match self.0.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => Some((RelativePath(&self.0[..slash]), &self.0[slash + 1..])),
            None => Some((RelativePath::ROOT, self.0)),
        }
    }
}

impl fmt::Display for RelativePath<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", String::from_utf8_lossy(self.0).escape_debug())
    }
}

fn is_name(name: &[u8]) -> bool {
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && name != b"."
        && name != b".."
        && !name.contains(&0)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn paths_stay_inside() {
        let long_name = vec![b'n'; NAME_BYTES_MAX];
        for good in [&b""[..], b"a", b"a/b", b"...", b"a/.b", b"\xff", &long_name] {
            assert!(RelativePath::new(good).is_ok(), "{good:?}");
        }
        let deep = vec![b'd'; DEPTH_MAX * 2 + 1]
            .iter()
            .enumerate()
            .map(|(at, byte)| if at % 2 == 1 { b'/' } else { *byte })
            .collect::<Vec<_>>();
        let longer = vec![b'n'; NAME_BYTES_MAX + 1];
        let bad: [&[u8]; 10] = [
            b"/", b"/a", b"a/", b"a//b", b".", b"..", b"a/../b", b"a\0", &longer, &deep,
        ];
        for bad in bad {
            assert!(RelativePath::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn paths_split_at_their_last_component() {
        let path = RelativePath::new(b"a/b/c").unwrap();
        let (parent, name) = path.split().unwrap();
        assert_eq!((parent.as_bytes(), name), (&b"a/b"[..], &b"c"[..]));
        assert_eq!(path.components().count(), 3);
        assert_eq!(RelativePath::ROOT.components().count(), 0);
        assert!(RelativePath::ROOT.split().is_none());
    }

    #[test]
    fn root_names_round_trip() {
        for text in ["upper", "image", "volume/data"] {
            assert_eq!(text.parse::<RootName>().unwrap().to_string(), text);
        }
        for bad in ["", "volume", "volume/", "volume/../x", "Upper"] {
            assert!(bad.parse::<RootName>().is_err());
        }
    }
}
