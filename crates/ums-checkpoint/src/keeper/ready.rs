//! A CRIU that is ready to restore before there is anything to be restored.
//!
//! CRIU's children are born in CRIU's control groups, so CRIU goes into the container's. To move a process
//! into a group the kernel waits until no processor is in the middle of a fork(2) (`cgroup_threadgroup_rwsem`):
//! 5 to 15 ms, which nobody has to wait for if it is done while the service still runs elsewhere.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use super::protocol::Phase;
use super::server::Shared;
use crate::carry::Inherited;
use crate::criu::patience::Patience;
use crate::criu::swrk::{Criu, Error, Swrk};

/// How long CRIU, and the processes that it restores, may do nothing during a restore.
pub(super) const STILL_MAX: Duration = Duration::from_secs(30);

/// Starts the CRIU of a restore that will come. Content when there is one already.
pub(super) fn prepare(shared: &Arc<Shared>) -> Result<(), String> {
    let wanted = |phase: &Phase| *phase == Phase::Created;
    {
        let state = shared.state();
        // One that a container runtime makes is restored by the CRIU that it places.
        if shared.config.placed || !wanted(&state.phase) || state.ready.is_some() {
            return Ok(());
        }
    }
    let swrk = start(shared).map_err(|error| error.to_string())?;
    let spare = shared.update(|state| match wanted(&state.phase) {
        true => state.ready.replace(swrk),
        false => Some(swrk),
    });
    // Asked twice at once, or too late.
    drop(spare);
    Ok(())
}

/// The CRIU that waits, if it does, and is one that hands this on.
pub(super) fn take(shared: &Shared, inherited: Inherited) -> Option<Swrk> {
    let ready = shared.update(|state| state.ready.take());
    ready.filter(|swrk| inherited.is_here() && swrk.is_alive())
}

/// Starts CRIU in the container's control groups. It inherits what stands for resources of the image:
/// the network namespace and the output pipes.
pub(super) fn start(shared: &Shared) -> Result<Swrk, Error> {
    let container = &shared.container;
    let group = container.cgroup().clone();
    let patience = Patience::new(STILL_MAX).with_helpers(Box::new(move || group.processes()));
    let criu = Criu {
        bin: shared.config.bundle_bin.clone(),
        patience,
    };
    let inherit: Vec<_> = std::iter::once(container.netns())
        .chain(&container.stdio)
        .map(AsFd::as_fd)
        .collect();
    criu.spawn(|pid| container.cgroup().enter(pid), &inherit, None)
}
