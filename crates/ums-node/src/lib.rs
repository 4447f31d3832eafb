//! What a migration does on a node, whoever made the container (UMS §III-A).
//!
//! - [`source`] and [`destination`] are the two sides of a migration, [`migration`] what a node
//!   remembers of one, [`node`] what the parts share, [`look`] what it tells;
//! - [`host`] is what is needed of whoever makes the containers, [`container`] what is known of one,
//!   [`place`] how a service takes its place in the network;
//! - [`frontman`] and [`tunnel`] are what clients meet meanwhile, started by [`launch`];
//!   [`attendants`] lists what of them outlives a migration;
//! - [`packets`] does what concerns packets inside a service's network namespace, [`connections`]
//!   says which connections move;
//! - `rounds` sends memory while a service runs, before the freeze (pre-copy); [`pager`] brings what has stayed at the
//!   source when it runs at the destination (post-copy);
//! - [`facts`] and [`inspect`] look at the machine and at services, without judging.
//!
//! Architecture invariants: knows no saga and no peer's Coordinator; holds nothing that a service
//! needs to go on, so that it may be killed at any time; knows nothing of who makes containers but
//! [`host`].

pub mod attendants;
pub mod connections;
pub mod container;
pub mod destination;
pub mod durable;
pub mod facts;
pub mod frontman;
pub mod host;
pub mod inspect;
pub mod launch;
pub mod look;
pub mod migration;
pub mod node;
pub mod packets;
pub mod pager;
pub mod permit;
pub mod place;
pub mod problem;
pub(crate) mod rounds;
pub mod source;
pub mod task;
pub mod tunnel;
pub mod writing;
