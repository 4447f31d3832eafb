//! What a keeper and the program that stands in CRIU's place in front of a container runtime say to each other.
//!
//! A container runtime that restores a container makes all of it but its processes, starts `criu swrk` in its control
//! groups, and asks it for the rest. `ums-runtime` is that `criu`. It asks the keeper of the service that arrives
//! ([`Request::Place`](super::protocol::Request::Place)) and then, over the same connection:
//!
//! ```text
//!  ums-runtime                              keeper
//!              ------- Place ------->
//!              <------ Criu ---------       with CRIU's end of a socket pair, and what the container gets
//!   starts CRIU, has the runtime's hooks run
//!              ------- Started ----->       … until the images are complete …
//!              <------ Complete -----       all files are in their places
//!   has nobody remember how they were before
//!              ------- Ready ------->
//!              <------ Restored -----       the processes are there and held
//!   has the runtime write down its container
//!              ------- Taken ------->
//! ```
//!
//! and ends. From `Criu` on the keeper drives CRIU itself, who is the child of whoever the runtime has left it to: so
//! is the container's init, and its engine collects it as any other.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How long a container runtime may take for what it does when CRIU has been placed (its hooks), and again when
/// the processes are there. Engines make networks meanwhile.
pub const RUNTIME_PATIENCE: Duration = Duration::from_secs(60);
/// How long a container runtime waits until the images are complete: as long as a large service may need until
/// it is frozen. After that the creation fails.
pub const IMAGES_PATIENCE: Duration = Duration::from_secs(60 * 60);

/// What a keeper says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromKeeper {
    /// Start this CRIU, in a mount namespace of its own. Descriptors: its end of the socket, the container's network
    /// namespace, and the tmpfs for `/dev/shm`, to be mounted there.
    Criu {
        /// The program. Its directory has what it executes.
        program: PathBuf,
    },
    /// The service's files are there, in the layer of the root filesystem that is its own.
    Complete,
    /// The processes are there and held.
    Restored {
        /// Their init.
        pid: i32,
    },
    /// It comes to nothing.
    Failed {
        /// Cause and remedy.
        reason: String,
    },
}

/// What the program in CRIU's place says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromRuntime {
    /// CRIU waits, and the container is ready.
    Started {
        /// CRIU's process id.
        pid: i32,
        /// Numbers in CRIU: of the network namespace, then of standard output and standard error.
        inherited: Vec<i32>,
    },
    /// The root filesystem is seen as it is now.
    Ready,
    /// The runtime has written the container down.
    Taken,
    /// It comes to nothing.
    Failed {
        /// Cause and remedy.
        reason: String,
    },
}
