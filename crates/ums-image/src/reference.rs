//! How images are named: with the words that `skopeo` and `podman` use (`containers-transports(5)`).

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::digest::Digest;

/// The longest reference, bytes.
const REFERENCE_BYTES_MAX: usize = 4096;
/// The longest tag, characters (distribution specification, "Pulling manifests").
const TAG_LEN_MAX: usize = 128;
/// The longest name of a repository, characters (the same).
const NAME_LEN_MAX: usize = 255;

/// Where an image is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// `oci:DIR[:TAG]`: a directory in the OCI image layout.
    Layout {
        /// The directory.
        dir: PathBuf,
        /// Which of its images.
        tag: Option<String>,
    },
    /// `docker-archive:FILE[:NAME:TAG]`: what `docker save` writes.
    Archive {
        /// The file.
        file: PathBuf,
        /// Which of its images.
        tag: Option<String>,
    },
    /// `docker://HOST[:PORT]/NAME[:TAG|@DIGEST]`: in a registry.
    Registry(Repository, Which),
    /// A directory that holds a root filesystem, and no image.
    Rootfs(PathBuf),
}

/// A repository of a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repository {
    /// Host, with its port if one is named.
    pub host: String,
    /// Name there.
    pub name: String,
}

/// Which image of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// By a name that may be given to another one.
    Tag(String),
    /// By its content.
    Digest(Digest),
}

/// What is no reference, and what one looks like.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{given}` names no image: {reason}; an image is oci:DIR[:TAG], docker-archive:FILE[:NAME:TAG], \
     docker://HOST[:PORT]/NAME[:TAG|@DIGEST], or the path of a root filesystem that begins with `/` or `.`"
)]
pub struct InvalidReference {
    given: String,
    reason: &'static str,
}

impl Reference {
    /// The same, with relative paths below `here`.
    #[must_use]
    pub fn below(self, here: &Path) -> Self {
        match self {
            Self::Layout { dir, tag } => Self::Layout {
                dir: here.join(dir),
                tag,
            },
            Self::Archive { file, tag } => Self::Archive {
                file: here.join(file),
                tag,
            },
            Self::Rootfs(dir) => Self::Rootfs(here.join(dir)),
            registry @ Self::Registry(..) => registry,
        }
    }
}

impl FromStr for Reference {
    type Err = InvalidReference;
    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        let bad = |reason| InvalidReference {
            given: text.chars().take(120).collect(),
            reason,
        };
        if text.len() > REFERENCE_BYTES_MAX {
            return Err(bad("it is too long"));
        }
        if let Some(rest) = text.strip_prefix("docker://") {
            return registry(rest).map_err(bad);
        }
        if let Some(rest) = text.strip_prefix("oci:") {
            let (dir, tag) = path(rest).map_err(bad)?;
            return Ok(Self::Layout { dir, tag });
        }
        if let Some(rest) = text.strip_prefix("docker-archive:") {
            let (file, tag) = path(rest).map_err(bad)?;
            return Ok(Self::Archive { file, tag });
        }
        if text.starts_with(['/', '.']) {
            return Ok(Self::Rootfs(PathBuf::from(text)));
        }
        Err(bad("it does not say where the image is"))
    }
}

/// A path, and what is behind its first colon.
fn path(text: &str) -> Result<(PathBuf, Option<String>), &'static str> {
    let (path, tag) = match text.split_once(':') {
        Some((path, tag)) => (path, Some(tag.to_owned())),
        None => (text, None),
    };
    if path.is_empty() {
        return Err("it has no path");
    }
    if tag
        .as_ref()
        .is_some_and(|tag| tag.is_empty() || tag.contains(char::is_control))
    {
        return Err("its tag is empty, or no text");
    }
    Ok((PathBuf::from(path), tag))
}

fn registry(text: &str) -> Result<Reference, &'static str> {
    let (text, digest) = match text.split_once('@') {
        Some((text, digest)) => {
            let digest = digest.parse().map_err(|_| "its digest is none")?;
            (text, Some(digest))
        }
        None => (text, None),
    };
    // A colon of the host's port is before a slash.
    let (name, tag) = match text.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (text, None),
    };
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err("its tag is none");
    }
    let repository = repository(name)?;
    let which = match digest {
        // As engines do: the digest counts, the tag is for people.
        Some(digest) => Which::Digest(digest),
        None => Which::Tag(tag.unwrap_or("latest").to_owned()),
    };
    Ok(Reference::Registry(repository, which))
}

/// Without a host, as `docker` reads it: the first part is one if it could be no name.
fn repository(text: &str) -> Result<Repository, &'static str> {
    let is_host = |part: &str| part.contains(['.', ':']) || part == "localhost";
    let (host, name) = match text.split_once('/') {
        Some((host, name)) if is_host(host) => (host, name.to_owned()),
        Some(_) => ("docker.io", text.to_owned()),
        None => ("docker.io", format!("library/{text}")),
    };
    if !is_authority(host) {
        return Err("its host is none");
    }
    let part = |part: &str| {
        let good =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
        let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = part.as_bytes();
        bytes.iter().copied().all(good) && edge(bytes.first()) && edge(bytes.last())
    };
    if name.len() > NAME_LEN_MAX || !name.split('/').all(part) {
        return Err("its name is none: use lower-case letters, digits and `._-` between slashes");
    }
    Ok(Repository {
        host: host.to_owned(),
        name,
    })
}

/// A host name, an IPv4 address or an IPv6 address in brackets, and perhaps a port.
fn is_authority(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b".-".contains(&byte);
    let address = host
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let host = match address {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.len() <= 253 && host.bytes().all(good),
    };
    host && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

fn is_tag(tag: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let first = tag.bytes().next();
    tag.len() <= TAG_LEN_MAX
        && tag.bytes().all(inner)
        && first.is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

impl fmt::Display for Repository {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.host, self.name)
    }
}

impl fmt::Display for Which {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => write!(out, ":{tag}"),
            Self::Digest(digest) => write!(out, "@{digest}"),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, path, tag) = match self {
            Self::Layout { dir, tag } => ("oci:", dir, tag),
            Self::Archive { file, tag } => ("docker-archive:", file, tag),
            Self::Registry(repository, which) => {
                return write!(out, "docker://{repository}{which}");
            }
            Self::Rootfs(dir) => ("", dir, &None),
        };
        write!(out, "{scheme}{}", path.display())?;
        match tag {
            Some(tag) => write!(out, ":{tag}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn references_are_read_and_shown() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let cases = [
            ("oci:dir", "oci:dir"),
            ("oci:/a/b:v1", "oci:/a/b:v1"),
            (
                "docker-archive:x.tar:redis:7",
                "docker-archive:x.tar:redis:7",
            ),
            ("docker://redis", "docker://docker.io/library/redis:latest"),
            ("docker://me/redis:7", "docker://docker.io/me/redis:7"),
            (
                "docker://localhost/redis",
                "docker://localhost/redis:latest",
            ),
            (
                "docker://127.0.0.1:5000/a/b:t",
                "docker://127.0.0.1:5000/a/b:t",
            ),
            ("docker://[::1]:5000/a", "docker://[::1]:5000/a:latest"),
            ("./root", "./root"),
        ];
        for (given, shown) in cases {
            assert_eq!(given.parse::<Reference>().unwrap().to_string(), shown);
        }
        let by_digest = format!("docker://quay.io/a:1@{digest}");
        let read: Reference = by_digest.parse().unwrap();
        assert_eq!(read.to_string(), format!("docker://quay.io/a@{digest}"));
    }

    #[test]
    fn what_could_lead_elsewhere_is_refused() {
        for bad in [
            "redis:7",
            "oci:",
            "oci:dir:",
            "docker://",
            "docker://host.example/../../etc",
            "docker://host.example/UPPER",
            "docker://host.example/a:../b",
            "docker://host.example/a?b",
            "docker://user@host.example/a",
            "docker://host.example:0/a",
            "docker://host.example:http/a",
            "docker://host.example/a b",
        ] {
            assert!(bad.parse::<Reference>().is_err(), "{bad}");
        }
    }
}
