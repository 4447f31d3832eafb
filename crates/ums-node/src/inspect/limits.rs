//! What limits a process and its children in ways that a move does not leave as they are, or that leave CRIU no
//! room.

use ums_core::facts::{Loss, LossKind, Obstacle, ObstacleKind};

use super::process::Process;
use super::{loss, obstacle, parse, proc_file};

/// Memory that CRIU's code in a process takes: its own, its arguments, and a stack for each thread (its
/// `compel_infect`); bytes.
const FOR_CRIU: u64 = 4 << 20;
const FOR_A_THREAD: u64 = 128 << 10;
/// Private memory of that: what we lend ourselves for calls, bytes.
const PRIVATE: u64 = 64 << 10;

/// Limits of memory (RLIMIT_AS and RLIMIT_DATA, `getrlimit(2)`) that leave no room.
pub(super) fn obstacles(process: &Process) -> Option<Obstacle> {
    let limits = proc_file(process.pid, "limits")?;
    let status = proc_file(process.pid, "status")?;
    let room = FOR_CRIU + FOR_A_THREAD * u64::from(process.threads);
    let short = [
        ("Max address space", "VmSize:", room),
        ("Max data size", "VmData:", PRIVATE),
    ];
    let what = short.into_iter().find_map(|(limit, used, needed)| {
        let limit = parse::soft_limit(&limits, limit)?;
        let used = parse::kibibytes(&status, used)? << 10;
        let is_short = limit.saturating_sub(used) < needed;
        is_short.then(|| format!("{used} of {limit} bytes are used, and {needed} more are needed"))
    })?;
    Some(obstacle(ObstacleKind::MemoryLimit, process.inner, what))
}

/// What is not as it was of a process.
pub(super) fn losses(process: &Process) -> Vec<Loss> {
    let (pid, inner) = (process.pid, process.inner);
    let read = |name| proc_file(pid, name).unwrap_or_default();
    let mut found = Vec::new();
    if parse::soft_limit(&read("limits"), "Max cpu time").is_some_and(|limit| limit != u64::MAX) {
        let what = "its limit of CPU time (RLIMIT_CPU) begins anew: what it has used stays behind";
        found.push(loss(LossKind::ProcessAttribute, inner, what));
    }
    let signal = parse::exit_signal(&read("stat"));
    if let Some(signal) = signal.filter(|signal| *signal != nix::libc::SIGCHLD) {
        let by = match signal {
            0 => "no signal".to_owned(),
            signal => format!("signal {signal}"),
        };
        let what = format!("it was told by {by}; waitpid(2) with __WCLONE will not find it");
        found.push(loss(LossKind::ChildSignal, inner, what));
    }
    let maps = read("numa_maps");
    let mut chosen = parse::memory_policies(&maps);
    if let Some(policy) = chosen.next() {
        let count = 1 + chosen.count();
        let what = format!(
            "{count} of its mappings take memory by a policy of their own (`{policy}`; set_mempolicy(2), mbind(2)): \
             by the system's afterwards"
        );
        found.push(loss(LossKind::ProcessAttribute, inner, what));
    }
    found
}
