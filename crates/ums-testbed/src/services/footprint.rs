//! What a service takes of its system.

use std::fmt;

use crate::system::System;

/// Sums over the processes of a service.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Its processes.
    pub processes: usize,
    /// Anonymous memory, KiB: what is shared is counted once (`Pss_Anon` of `smaps_rollup`, proc(5)).
    pub anonymous_kib: u64,
}

impl Footprint {
    /// Of the service of that name on a system.
    pub fn of(system: &System, service: &str) -> Self {
        let group = format!("/{service}");
        let own = |pid: &i32| {
            let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup"));
            groups
                .unwrap_or_default()
                .lines()
                .any(|line| line.ends_with(&group))
        };
        let processes = system.namespace().members().into_iter().filter(own);
        processes.fold(Self::default(), |sum, pid| Self {
            processes: sum.processes + 1,
            anonymous_kib: sum.anonymous_kib + anonymous_kib(pid),
        })
    }
}

impl fmt::Display for Footprint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (processes, kib) = (self.processes, self.anonymous_kib);
        write!(formatter, "{processes} processes with {kib} KiB")
    }
}

/// Zero for a process that has ended.
fn anonymous_kib(pid: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss_Anon:"));
    let number = line.and_then(|rest| rest.split_whitespace().next());
    number
        .and_then(|number| number.parse().ok())
        .unwrap_or_default()
}
