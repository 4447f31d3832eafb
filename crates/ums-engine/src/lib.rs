//! Container engines of a single host (Docker, Podman), as a migration sees them: services that somebody
//! started by `docker run` or `podman run`, and that UMS takes over while they run.
//!
//! - [`settings`] says which engines there are, [`client`] speaks to one;
//! - [`describe`] makes of an engine's words what a migration asks of a service, [`mounts`] of a
//!   container's mounts, [`gather`] reads what they need, [`runtime`] of what runc keeps of it, [`layers`] of its image;
//! - [`record`] is what outlives the agent of a container that leaves, [`adopt`] starts its keeper,
//!   [`host`] is all that as [`ums_node::host`] asks it, with `listing` (what runs), `leaving`, and `told`
//!   (what people tell an engine meanwhile);
//!   [`remains`] is what stays of one for its clients once its service has moved; [`stored`] reads such records.
//! - [`arriving`] has an engine make the container of a service that comes, by what [`making`] asks of it.
//!
//! Architecture invariants: holds nothing that a container needs to go on; changes nothing of a container
//! that is not being moved; what a migration that is given up has changed is as it was.

pub mod adopt;
pub mod arriving;
pub mod client;
pub mod describe;
pub mod gather;
pub mod host;
mod images;
pub mod layers;
mod leaving;
mod listing;
pub mod making;
pub mod mounts;
mod program;
pub mod record;
pub mod remains;
pub mod runtime;
pub mod settings;
pub mod stored;
mod told;
