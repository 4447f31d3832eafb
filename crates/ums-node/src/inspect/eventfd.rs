//! Eventfds that count down by one (EFD_SEMAPHORE), which CRIU makes again as plain counters.

use std::fs;

use ums_core::facts::{Loss, LossKind};

use super::process::Process;
use super::{descriptor, loss, parse, proc_file, proc_path};

/// Each descriptor of a process that leads to one.
pub(super) fn losses(process: &Process) -> Vec<Loss> {
    let numbers = descriptor::numbers(process.pid).into_iter();
    let semaphores = numbers.filter(|number| is_semaphore(process.pid, number));
    let told = |number| {
        let what = format!("descriptor {number}: a read takes all of it");
        loss(LossKind::EventfdSemaphore, process.inner, what)
    };
    semaphores.map(told).collect()
}

fn is_semaphore(pid: i32, number: &str) -> bool {
    let link = fs::read_link(proc_path(pid, &format!("fd/{number}")));
    let is_event = link.is_ok_and(|link| link.as_os_str() == "anon_inode:[eventfd]");
    let info = || proc_file(pid, &format!("fdinfo/{number}"));
    is_event && info().is_some_and(|info| parse::is_semaphore(&info))
}
