//! Digests, and readers that compare them (OCI image specification, `descriptor.md`, "Digests").

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

use sha2::{Digest as _, Sha256, Sha512};

use crate::error::{Error, shown};

/// How a digest is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Algorithm {
    /// SHA-256.
    Sha256,
    /// SHA-512.
    Sha512,
}

impl Algorithm {
    fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    fn hex_len(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

/// The digest of some content: `sha256:` and 64 hexadecimal digits. Its parts are safe as file names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest {
    algorithm: Algorithm,
    hex: String,
}

impl Digest {
    /// The SHA-256 of some bytes.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(bytes);
        hasher.finish()
    }

    /// How it was made.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// Name of how it was made, as in paths.
    pub fn algorithm_name(&self) -> &'static str {
        self.algorithm.name()
    }

    /// Its hexadecimal digits.
    pub fn hex(&self) -> &str {
        &self.hex
    }

    /// Compares with some bytes, which `what` names.
    ///
    /// # Errors
    /// When they are others.
    pub fn check(&self, what: &str, bytes: &[u8]) -> Result<(), Error> {
        let mut hasher = Hasher::new(self.algorithm);
        hasher.update(bytes);
        self.same(what, &hasher.finish())
    }

    fn same(&self, what: &str, found: &Self) -> Result<(), Error> {
        if self == found {
            return Ok(());
        }
        Err(Error::Digest {
            what: what.to_owned(),
            expected: self.to_string(),
            found: found.to_string(),
        })
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}", self.algorithm.name(), self.hex)
    }
}

impl FromStr for Digest {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        let known = [Algorithm::Sha256, Algorithm::Sha512];
        let (name, hex) = text.split_once(':').unwrap_or((text, ""));
        let algorithm = known.into_iter().find(|known| known.name() == name);
        let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        match algorithm {
            Some(algorithm) if hex.len() == algorithm.hex_len() && hex.bytes().all(digit) => {
                Ok(Self {
                    algorithm,
                    hex: hex.to_owned(),
                })
            }
            _ => Err(Error::malformed(
                format!("the digest `{}`", shown(text.as_bytes())),
                "it is neither sha256 nor sha512 with lower-case hexadecimal digits",
            )),
        }
    }
}

impl<'de> serde::Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(input)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.collect_str(self)
    }
}

/// Makes a digest bit by bit.
#[derive(Debug, Clone)]
pub enum Hasher {
    /// SHA-256.
    Sha256(Sha256),
    /// SHA-512.
    Sha512(Sha512),
}

impl Hasher {
    /// Of nothing yet.
    pub fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Self::Sha256(Sha256::new()),
            Algorithm::Sha512 => Self::Sha512(Sha512::new()),
        }
    }

    /// Takes more bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Sha512(hash) => hash.update(bytes),
        }
    }

    /// The digest of all that was taken.
    pub fn finish(self) -> Digest {
        let (algorithm, bytes) = match self {
            Self::Sha256(hash) => (Algorithm::Sha256, hash.finalize().to_vec()),
            Self::Sha512(hash) => (Algorithm::Sha512, hash.finalize().to_vec()),
        };
        let hex = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        Digest { algorithm, hex }
    }
}

/// Reads content of a known digest, and no more of it than its limit.
pub struct Verified<R> {
    inner: R,
    what: String,
    expected: Digest,
    hasher: Hasher,
    read: u64,
    limit: u64,
}

impl<R: Read> Verified<R> {
    /// `what` is for messages; more than `limit` bytes are an error.
    pub fn new(inner: R, what: impl Into<String>, expected: &Digest, limit: u64) -> Self {
        Self {
            inner,
            what: what.into(),
            expected: expected.clone(),
            hasher: Hasher::new(expected.algorithm),
            read: 0,
            limit,
        }
    }

    /// Reads what is left, and compares the digest of all.
    ///
    /// # Errors
    /// When reading fails, there is more than the limit, or the digest is another one.
    pub fn finish(mut self) -> Result<u64, Error> {
        let what = self.what.clone();
        io::copy(&mut self, &mut io::sink()).map_err(Error::at("read", what))?;
        self.expected.same(&self.what, &self.hasher.finish())?;
        Ok(self.read)
    }
}

impl<R: Read> Read for Verified<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.read += count as u64;
        if self.read > self.limit {
            let error = Error::TooLarge {
                what: self.what.clone(),
                limit: self.limit,
                unit: "bytes",
            };
            return Err(error.into_io());
        }
        self.hasher.update(&buffer[..count]);
        if count == 0 && !buffer.is_empty() {
            // Who writes it elsewhere must not take it for whole.
            let found = self.hasher.clone().finish();
            let same = self.expected.same(&self.what, &found);
            same.map_err(Error::into_io)?;
        }
        Ok(count)
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_digest_is_no_path() {
        let hex = "a".repeat(64);
        assert!(format!("sha256:{hex}").parse::<Digest>().is_ok());
        for bad in [
            "",
            "sha256:",
            "sha256:../../etc/passwd",
            "md5:d41d8cd98f00b204e9800998ecf8427e",
            &format!("sha256:{}", hex.to_uppercase()),
            &format!("sha256:{}/", &hex[1..]),
        ] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
    }

    #[test]
    fn other_content_and_more_content_are_told() {
        let digest = Digest::of(b"hello");
        assert_eq!(
            digest.hex(),
            "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
        );
        let read =
            |bytes: &'static [u8], limit| Verified::new(bytes, "it", &digest, limit).finish();
        assert_eq!(read(b"hello", 5).unwrap(), 5);
        assert!(matches!(read(b"hallo", 5), Err(Error::Digest { .. })));
        assert!(matches!(read(b"hello", 4), Err(Error::TooLarge { .. })));
    }
}
