//! Buffers that are used again: allocating and zeroing one for each block of pages would cost as
//! much as compressing it.

use std::sync::{Arc, Mutex, PoisonError};

/// Buffers that are kept when nobody uses them.
const KEPT_MAX: usize = 20;

/// A buffer that grew larger than this is not kept.
const KEPT_BYTES_MAX: usize = 512 * 1024;

/// Buffers with whatever content and length they were given back with; clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pool(Arc<Mutex<Vec<Vec<u8>>>>);

impl Pool {
    pub(crate) fn take(&self) -> Vec<u8> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop()
            .unwrap_or_default()
    }

    /// A buffer of exactly `length` bytes, of which the caller must write every one.
    pub(crate) fn take_sized(&self, length: usize) -> Vec<u8> {
        let mut buffer = self.take();
        buffer.resize(length, 0);
        buffer
    }

    pub(crate) fn take_empty(&self) -> Vec<u8> {
        let mut buffer = self.take();
        buffer.clear();
        buffer
    }

    pub(crate) fn give(&self, buffer: Vec<u8>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT_MAX && (1..=KEPT_BYTES_MAX).contains(&buffer.capacity()) {
            kept.push(buffer);
        }
    }
}
