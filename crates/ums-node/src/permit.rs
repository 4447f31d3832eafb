//! Permits: a secret that lets its bearer in once, or for one migration. Known by their hashes to who lets in.

use std::fs::File;
use std::io::Read;

use ums_api::problem::{Problem, ProblemKind};

use crate::problem;

/// A permit that nobody can guess.
pub(crate) fn random() -> Result<[u8; 32], Problem> {
    let mut permit = [0; 32];
    File::open("/dev/urandom")
        .and_then(|mut random| random.read_exact(&mut permit))
        .map_err(|error| problem::failed(ProblemKind::Random, "no random numbers")(&error))?;
    Ok(permit)
}

/// A permit from its text.
#[doc(hidden)]
pub fn from_text(text: &str) -> Result<[u8; 32], Problem> {
    blake3::Hash::from_hex(text)
        .map(|hash| *hash.as_bytes())
        .map_err(|_| {
            let detail = "a permit is 64 hexadecimal digits";
            Problem::refused(400, ProblemKind::Permit, "malformed permit", detail)
        })
}
