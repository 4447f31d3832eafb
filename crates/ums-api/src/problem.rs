//! Errors on the wire: `application/problem+json` (RFC 9457).

use serde::{Deserialize, Serialize};

mod kind;

pub use kind::ProblemKind;

/// Media type of a problem document.
pub const MEDIA_TYPE: &str = "application/problem+json";

/// Whose doing an error is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// Who asked: the request can't be granted as it is.
    Requester,
    /// This system.
    Local,
    /// The other system.
    Peer,
    /// The service that was to be moved.
    Service,
}

/// Whether what was asked may have taken effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Effect {
    /// Nothing happened.
    None,
    /// It may have happened: ask before repeating something that is not idempotent.
    Unknown,
}

/// An error as it crosses a seam: what, why, what to do, whose fault, and what is known of its
/// effect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{title}: {detail}")]
pub struct Problem {
    /// What kind it is, for programs.
    #[serde(rename = "type")]
    pub kind: ProblemKind,
    /// HTTP status.
    pub status: u16,
    /// The kind in words.
    pub title: String,
    /// Cause and remedy of this occurrence.
    pub detail: String,
    /// Whose doing.
    pub fault: Fault,
    /// Whether the same request may succeed later.
    pub retry: bool,
    /// Whether it may have taken effect.
    pub effect: Effect,
}

impl Problem {
    /// A problem of the requester's: nothing happened, and repeating it changes nothing.
    pub fn refused(status: u16, kind: ProblemKind, title: &str, detail: impl Into<String>) -> Self {
        Self {
            kind,
            status,
            title: title.to_owned(),
            detail: detail.into(),
            fault: Fault::Requester,
            retry: false,
            effect: Effect::None,
        }
    }

    /// A failure on this system (status 500), whose effect is unknown.
    pub fn failed(kind: ProblemKind, title: &str, detail: impl Into<String>) -> Self {
        Self {
            kind,
            status: 500,
            title: title.to_owned(),
            detail: detail.into(),
            fault: Fault::Local,
            retry: true,
            effect: Effect::Unknown,
        }
    }
}
