//! The standalone host: services that UMS starts itself, without an orchestrator, in containers of
//! its own.
//!
//! - [`services`] starts services, [`removal`] ends them, [`state`] holds what there is, [`record`]
//!   what outlives the agent; [`host`] is all that as a migration sees it;
//! - [`container`] starts keepers, [`bundle`] writes their OCI bundles, [`images`] keeps root
//!   filesystems, [`network`] does addresses and endpoints, [`addresses`] who has which;
//! - [`image`] has images read and unpacked, and tells what a service gets from one;
//! - [`reconcile`] takes away what outlived its use.
//!
//! Architecture invariants: knows no migration but by what [`ums_node::host`] asks; holds nothing
//! that a service needs to go on.

pub mod addresses;
pub mod bundle;
pub mod container;
pub mod host;
pub mod image;
pub mod images;
pub mod network;
pub mod reconcile;
pub mod record;
pub mod removal;
pub mod services;
pub mod settings;
pub mod state;
