//! What has been moved so far, readable while it is moving.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ums_core::report::Bytes;

/// Counters of one data path; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Meter(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    memory: AtomicU64,
    wire: AtomicU64,
    filesystem: AtomicU64,
}

impl Meter {
    /// The bytes so far.
    pub fn bytes(&self) -> Bytes {
        Bytes {
            memory: self.0.memory.load(Ordering::Relaxed),
            wire: self.0.wire.load(Ordering::Relaxed),
            filesystem: self.0.filesystem.load(Ordering::Relaxed),
            // For who knows when the freeze began.
            frozen: 0,
        }
    }

    pub(crate) fn add_memory(&self, bytes: u64) {
        self.0.memory.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn add_wire(&self, bytes: u64) {
        self.0.wire.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn add_filesystem(&self, bytes: u64) {
        self.0.filesystem.fetch_add(bytes, Ordering::Relaxed);
    }
}
