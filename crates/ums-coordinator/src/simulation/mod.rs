//! The simulated ring: the production saga, receiver, reconciler, journal, servers and clients of two
//! Coordinators over a simulated network, clock, disk and node. A run is a function of its script or
//! its seed, and takes milliseconds.
//!
//! - [`fault`]: what may go wrong, and who decides it. Each place that a run passes (a message, its
//!   answer, an agent's operation before and after its effect, a durable write) is a *moment*.
//! - [`world`]: the two systems, and what strikes them. [`system`]: a Coordinator; [`agent`]: a
//!   Migration Interface with the semantics of `ums-agent`; [`wire`]: the network; [`disk`]: what a
//!   journal lies on; [`truth`]: what really executes, with the judge of invariants 1 and 2.
//! - [`run`]: one migration until all is over, with the judge of invariants 3 and 4. [`test`]: which
//!   runs there are; [`table`]: their account in `docs/fault-matrix.md`.
//!
//! `UMS_SIM_SEED=N` plays one seed and prints its trace, `UMS_SIM_SEEDS=N` the first N;
//! `UMS_TEST_LONG=1` plays every cell and many more seeds.
//!
//! What the production code gives for it: time is tokio's, which stands still here; the host's clock
//! and fresh ids are [`host`]'s in tests; [`crate::peer::Dial`] leads to peers; the journal is used
//! at a [`crate::shared::Desk`]. Crates that simulate hosts (turmoil, madsim) were looked at: they
//! bring sockets of their own, and neither a disk under redb nor faults by message.

mod agent;
mod disk;
mod fault;
pub(crate) mod host;
mod run;
mod system;
mod table;
mod test;
mod truth;
mod wire;
mod world;

pub(crate) use system::Desk;
