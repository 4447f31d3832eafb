//! Container images: read and written as OCI layouts, docker-archives and in registries, unpacked to root
//! filesystems, and wrapped.
//!
//! Formats: the OCI image specification 1.1 (`image-layout.md`, `manifest.md`, `config.md`, `layer.md`), the OCI
//! distribution specification 1.1, what `docker save` writes, and pax and GNU tar (`pax(1)`, GNU tar's manual).
//!
//! Whoever made an image is not trusted: every digest is compared, every size and count has a limit
//! ([`limits::Limits`]), and no path of a layer leads out of the directory that it is unpacked to.

pub mod archive;
pub mod compression;
pub mod copy;
pub mod digest;
pub mod document;
pub mod error;
pub mod image;
pub mod layout;
pub mod limits;
pub mod reference;
pub mod registry;
pub mod tar;
pub mod unpack;
pub mod user;
pub mod wrap;

pub use error::Error;
pub use image::Image;
pub use reference::Reference;
