//! Why an image could not be read, written or unpacked.

use std::io;
use std::path::Path;

/// Why an image could not be read, written or unpacked; cause and remedy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file, directory or connection.
    #[error("cannot {action} `{place}`")]
    Io {
        /// What was to be done.
        action: &'static str,
        /// With what.
        place: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Something that its format does not allow.
    #[error("{what} is not as its format says: {detail}")]
    Malformed {
        /// What it is.
        what: String,
        /// What is wrong with it.
        detail: String,
    },
    /// Content that is not what was promised.
    #[error(
        "{what} has other content than its digest says ({expected} expected, {found} found): it was damaged or \
         tampered with; get it again"
    )]
    Digest {
        /// What it is.
        what: String,
        /// The digest that it goes by.
        expected: String,
        /// The digest of what was found.
        found: String,
    },
    /// More than the limits allow.
    #[error("{what} is more than {limit} {unit}: it is not read")]
    TooLarge {
        /// Of what.
        what: String,
        /// The limit.
        limit: u64,
        /// Its unit.
        unit: &'static str,
    },
    /// What was named is not there.
    #[error("{0}")]
    Missing(String),
    /// What this program does not do, with a way out.
    #[error("{0}")]
    Unsupported(String),
    /// A registry refused.
    #[error("{host}: {detail}")]
    Registry {
        /// Which.
        host: String,
        /// What it said.
        detail: String,
    },
}

impl Error {
    /// An IO error on a file.
    pub fn io(action: &'static str, place: &Path) -> impl FnOnce(io::Error) -> Self {
        Self::at(action, place.display().to_string())
    }

    /// An IO error with something that is no file.
    pub fn at(action: &'static str, place: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let place = place.into();
        move |source| match carried(source) {
            Ok(own) => own,
            Err(source) => Self::Io {
                action,
                place,
                source,
            },
        }
    }

    /// A violation of a format.
    pub fn malformed(what: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::Malformed {
            what: what.into(),
            detail: detail.into(),
        }
    }

    /// As an IO error, for those who read through `std::io::Read`; [`at`](Self::at) and [`io`](Self::io) take it
    /// out again.
    pub(crate) fn into_io(self) -> io::Error {
        io::Error::other(self)
    }
}

/// An error of ours that came through `std::io::Read`.
fn carried(error: io::Error) -> Result<Error, io::Error> {
    error.downcast::<Error>()
}

/// As much of bytes from outside as belongs into a message.
pub(crate) fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]);
    text.escape_debug().to_string()
}
