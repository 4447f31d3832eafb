//! Terminals that nobody else may open (TIOCEXCL, ioctl_tty(2)).

use std::io;
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};
use ums_core::facts::LossKind;

use super::descriptor::{Place, Reach};
use super::{Lost, raw};

/// A descriptor of such a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Exclusive {
    place: Place,
}

/// Looks at the terminal of a frozen process. What is no terminal, or one whose other end is gone, is not
/// one.
pub(super) fn capture(terminal: &OwnedFd, place: Place) -> Option<Exclusive> {
    let exclusive = raw::is_exclusive(terminal).unwrap_or(false);
    exclusive.then_some(Exclusive { place })
}

/// Sets it for the terminals of restored processes.
pub(super) fn apply(all: &[Exclusive], reach: &Reach) -> Vec<Lost> {
    let set = |Exclusive { place }: &Exclusive| {
        let result: io::Result<()> = reach
            .get(*place)
            .and_then(|terminal| raw::make_exclusive(&terminal));
        let error = result.err()?;
        let detail = format!(
            "the terminal behind descriptor {} can be opened by others: {error}",
            place.fd
        );
        Some(Lost::new(LossKind::ProcessAttribute, place.pid, detail))
    };
    all.iter().filter_map(set).collect()
}
