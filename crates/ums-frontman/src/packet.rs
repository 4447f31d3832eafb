//! Packet mode: the Frontman of a service that has a network namespace of its own.
//!
//! The service's address moves with it, so clients needn't learn anything: from the freeze on,
//! packets for the service are held instead of dropped, and after the commit they go through an
//! encrypted tunnel to the new place, for as long as connections from before the move live.
//! A packet is opaque bytes here, of whatever protocol.
//!
//! ```text
//!   source system                                       destination system
//!  ┌ the service's namespace ┐                         ┌ the service's namespace ┐
//!  │ eth0 ─▶ ums-out ─┐      │                         │      ┌─▶ ums-in ─▶ app  │
//!  └──────────────────┼──────┘                         └──────┼──────────────────┘
//!              near end: hold, then lead ══ QUIC datagrams ══ far end
//! ```
//!
//! - The **near end** ([`NearLaunch`]) is ready only when the far end has let it in, and *holds*
//!   from then on. *lead* releases what is held, in order, and passes packets both ways; *give
//!   back* writes what is held back into the device, for the service that stayed, and ends.
//! - The **far end** ([`FarLaunch`]) is ready when its UDP port and its device are there. It
//!   passes packets both ways from the start, to and from the one near end that it let in.
//!
//! ```text
//!               lead               retire, the end of its time, or the far end's `gone`
//!  Holding ───────────▶ Leading ────────────────────────────────────────▶ Retiring ▶ (gone)
//!     └── give-back ▶ GivingBack ▶ (gone)
//! ```
//!
//! Whoever starts an end does so with [`client::spawn_near`] or [`client::spawn_far`] and speaks
//! to it through the [`Client`](client::Client) that these return. The devices have no address and
//! no route: those are the network driver's. Packets that come out of `ums-out` carry the
//! service's own address as their source, so a device accepts them (`accept_local`) and checks no
//! return path (`rp_filter` 0; the kernel takes the larger value of `all` and the device, so `all`
//! has to be 0 or 2 in that namespace, and forwarding has to be on).
//!
//! # Guarantees
//!
//! - What is held leaves in the order in which it came. Over the bounds of [`Limits`] new packets
//!   are dropped and counted, nothing else is.
//! - A packet as large as the device's MTU passes whatever the path's MTU is: see [`fragment`].
//! - Both ends prove who they are, and the near end that it is the one of this migration: see
//!   [`permit`].
//! - While the path between the ends is broken, both hold within their bounds; the near end
//!   connects again until its end time.
//! - An end that is killed costs the packets that it had in its hands, and a handshake: see [`standby`].

pub mod client;
pub mod control;
pub mod end;
pub mod fragment;
pub mod hold;
pub mod launch;
pub mod permit;
pub mod standby;

mod core;
mod device;
mod far;
mod message;
mod narrow;
mod near;
mod pump;
mod quic;

pub use control::{Counts, EndMode, Limits, Request, Response, Role, Status};
pub use end::live;
pub use far::far;
pub use launch::{End, FarLaunch, NearLaunch, Ports};
pub use near::near;
pub use permit::{Permit, PermitHash};
