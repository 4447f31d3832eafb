//! Whether a destination can confine a service as its source does, and hold what it takes to restore it.

use super::{Refusal, RefusalKind};
use crate::facts::{NodeFacts, ServiceFacts};

pub(super) fn judge(service: &ServiceFacts, destination: &NodeFacts) -> Vec<Refusal> {
    let limits = &destination.limits;
    let mut refusals = Vec::new();
    if let Some(reason) = &limits.no_device_filter {
        refusals.push(Refusal::new(
            RefusalKind::Confinement,
            format!("the destination can't keep a service from the devices of its host: {reason}"),
            "mend that there, or choose another destination",
        ));
    }
    let limit = service.specification.memory_limit_bytes;
    if let (Some(reason), Some(limit)) = (&limits.no_memory_limit, limit) {
        refusals.push(Refusal::new(
            RefusalKind::Confinement,
            format!(
                "the service has a memory limit of {} MiB, which the destination can't keep: {reason}",
                limit >> 20
            ),
            "mend that there, choose another destination, or run the service without `--memory`",
        ));
    }
    let wanted = u64::from(service.processes);
    let lazy = destination.eager_restore.is_none();
    if let Some(most) = limits.processes_max.filter(|most| lazy && wanted > *most) {
        refusals.push(Refusal::new(
            RefusalKind::Processes,
            format!(
                "the service has {wanted} processes, and the destination can install the pages of \
                 {most}: it holds a descriptor for each, and may have no more open"
            ),
            "raise the limit of open files under which UMS runs there (`LimitNOFILE=` in systemd, \
             `ulimit -Hn`), or set `restore = \"eager\"` there",
        ));
    }
    refusals
}
