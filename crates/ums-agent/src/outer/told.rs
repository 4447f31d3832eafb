//! What the agent of an outer container tells the container's first process, a line of JSON each.

use std::io::{self, Write};

use serde::{Deserialize, Serialize};

/// One of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Told {
    /// The service is here.
    Runs {
        /// Its init, in the outer container's PID namespace.
        init: i32,
        /// Whether it is being moved: signals wait.
        moving: bool,
    },
    /// No processes of the service are here that could be told anything.
    Nothing,
    /// There is nothing left to do here.
    End {
        /// The container's exit code.
        code: u8,
    },
}

/// Tells it.
pub(super) fn tell(told: Told) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, &told)?;
    out.write_all(b"\n")?;
    out.flush()
}
