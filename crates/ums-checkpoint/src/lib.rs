//! The C/R module (UMS §III-A): checkpoint and restore of one container by driving CRIU directly.
//!
//! - [`criu`] speaks CRIU's RPC, its page-server protocol and its image format;
//! - [`store`] holds arrived pages in memory, [`uffd`] installs them in the restored service;
//! - [`dirty`] tells which pages of a running service change, [`shared`] those of what processes share, and
//!   [`page_source`] which a frozen one has;
//! - [`cgroup`] and [`devices`] confine it;
//! - [`freezer`] is the freeze that outlives CRIU and the agent;
//! - [`carry`] carries what CRIU doesn't; [`unix_diag`] tells who is connected to whom;
//! - [`keeper`] is the small process that owns one container and everything above.
//!
//! Architecture invariants: knows no orchestrator, no network protocol of ours and no saga; it is
//! the only crate with unsafe code, and that is confined to [`uffd`], [`store`], [`dirty`],
//! [`criu::watch`], [`carry`], [`devices`], [`kcmp`], the session keyring, calls made inside of processes and
//! the passing of descriptors.

pub mod carry;
pub mod cgroup;
pub mod criu;
pub mod devices;
pub mod dirty;
pub mod freezer;
mod inside;
pub mod kcmp;
pub mod keeper;
pub mod keyring;
mod link_remap;
mod loopback;
pub mod memory_dir;
pub mod message;
pub mod nf_tables;
pub mod offers;
pub mod page_source;
mod repair;
mod restart;
pub mod shared;
mod sock_diag;
pub mod store;
pub mod stuck;
pub mod supply;
pub mod tcp_diag;
pub mod terminal;
pub mod tree;
pub mod uffd;
pub mod unix_diag;
pub mod unix_queue;
pub mod watches;
