//! How large an image may be.

/// The largest manifest, index or configuration, bytes (the distribution specification asks registries for at
/// least 4 MiB).
pub const DOCUMENT_BYTES_MAX: u64 = 4 << 20;

/// The largest extended header of a tar archive, bytes.
pub const TAR_HEADER_BYTES_MAX: u64 = 1 << 20;

/// The longest path, bytes (`PATH_MAX`).
pub const PATH_BYTES_MAX: usize = 4096;

/// The most directories inside one another.
pub const DEPTH_MAX: usize = 256;

/// How large an image may be that is unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Layers.
    pub layers: usize,
    /// Entries of all layers together.
    pub entries: u64,
    /// Bytes of all layers together, uncompressed.
    pub bytes: u64,
}

impl Default for Limits {
    /// Engines stop at 127 layers; the others are ten times what the largest images in use have.
    fn default() -> Self {
        Self {
            layers: 512,
            entries: 2_000_000,
            bytes: 256 << 30,
        }
    }
}
