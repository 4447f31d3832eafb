//! What each thread of a process can have for itself: a Landlock domain, and what it has forbidden itself.

use std::fs;
use std::io;
use std::time::Instant;

use ums_core::facts::LossKind;

use super::super::Lost;
use super::super::process::Process;
use super::attribute::{Attributes, OfThread};
use super::domain::Outsiders;
use super::hindrance;
use crate::inside::Inside;

/// Looks at all threads of a process, in whose first one calls are made already; `attributes` are what that
/// one has chosen. What is lost.
///
/// # Errors
/// One of them is in a Landlock domain, or can't be asked: the process must not be dumped.
pub(super) fn look(
    process: Process,
    first: &mut Inside,
    outsiders: &mut io::Result<Outsiders>,
    attributes: &Attributes,
    end: Instant,
) -> io::Result<Vec<Lost>> {
    let mut lost = Vec::new();
    let (pid, inner) = (process.pid, process.inner);
    let mut unknown = confined(pid, inner, first, outsiders)?;
    let page = first.page()?;
    let of_first = attributes.of_thread();
    let mut others = 0;
    for tid in others_of(pid)? {
        let mut inside = Inside::enter(tid, end)?;
        if let Some(reason) = hindrance::of_thread(&inside)? {
            inside.leave()?;
            return Err(super::in_the_way(inner, reason));
        }
        let seen = confined(tid, inner, &mut inside, outsiders);
        let chosen = OfThread::ask((pid, tid), &mut inside, page, first);
        inside.leave()?;
        unknown = unknown.or(seen?);
        others += u32::from(chosen != of_first);
    }
    if others > 0 {
        let what = format!(
            "{others} of its threads have what the first one has of PR_SET_TSC, ARCH_SET_CPUID and mitigations \
             of speculation, and not what they had chosen"
        );
        lost.push(Lost::new(LossKind::ProcessAttribute, inner, what));
    }
    if let Some(error) = unknown {
        let what = format!("whether it is in a Landlock domain could not be found out: {error}");
        lost.push(Lost::new(LossKind::Landlock, inner, what));
    }
    Ok(lost)
}

/// Why it can't be told of a thread whether it is in a Landlock domain.
///
/// # Errors
/// It is in one.
fn confined(
    tid: i32,
    inner: i32,
    inside: &mut Inside,
    outsiders: &mut io::Result<Outsiders>,
) -> io::Result<Option<String>> {
    let outsiders = match outsiders {
        Ok(outsiders) => outsiders,
        Err(error) => return Ok(Some(error.to_string())),
    };
    match outsiders.is_in_domain(tid, inside) {
        Ok(false) => Ok(None),
        Ok(true) => Err(io::Error::other(format!(
            "process {inner} is confined by Landlock (landlock(7)): what that forbids can't be read, and would \
             be allowed at the destination; start it without that to be able to move it"
        ))),
        Err(error) => Ok(Some(error.to_string())),
    }
}

/// The threads of a process but for the first.
fn others_of(pid: i32) -> io::Result<Vec<i32>> {
    let entries = fs::read_dir(format!("/proc/{pid}/task"))?;
    let ids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    Ok(ids.filter(|tid| *tid != pid).collect())
}
