//! Landlock domains (landlock(7)): the kernel tells nobody of them, and what they forbid can't be read, and so
//! not be made anew.
//!
//! That there is one shows by what every domain forbids, whatever else it is about: to look into a process
//! that is outside of it (kernel `security/landlock/task.c`, `hook_ptrace_access_check`). A process of ours,
//! with no capability and of the same user, which has ended and was not waited for, is in the service's PID
//! namespace for that. Whoever is in no domain may compare himself with it (kcmp(2)).

#![expect(unsafe_code, reason = "prctl(2) has no wrapper for these")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use nix::libc;
use nix::sched::{CloneFlags, setns};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use super::super::process::{Process, ids};
use crate::inside::Inside;

/// `linux/kcmp.h`: address spaces. What is compared does not matter.
const KCMP_VM: u64 = 1;
/// `linux/securebits.h`: to be root gives no capabilities.
const SECBIT_NOROOT: libc::c_ulong = 1;

/// User and group, as the kernel compares them: the real ones.
type Owner = (u32, u32);

/// Processes of ours, one for each user that the service's have.
pub(in crate::carry) struct Outsiders {
    /// The service's PID namespace.
    namespace: File,
    made: BTreeMap<Owner, Outsider>,
}

/// One that has ended.
struct Outsider {
    child: Child,
    /// Its id in the service's PID namespace.
    inner: i32,
}

impl Drop for Outsider {
    fn drop(&mut self) {
        // It has ended, so that this does not wait.
        let _ = self.child.wait();
    }
}

impl Outsiders {
    /// For these processes, which may run: to make one takes some milliseconds.
    ///
    /// # Errors
    /// When none can be made in their namespace.
    pub(in crate::carry) fn of(processes: &[Process]) -> io::Result<Self> {
        let first = processes.first().ok_or(io::ErrorKind::NotFound)?;
        let mut outsiders = Self {
            namespace: File::open(format!("/proc/{}/ns/pid", first.pid))?,
            made: BTreeMap::new(),
        };
        for process in processes {
            // One that has ended meanwhile needs none.
            if let Ok(owner) = owner(process.pid) {
                outsiders.for_owner(owner)?;
            }
        }
        Ok(outsiders)
    }

    fn for_owner(&mut self, owner: Owner) -> io::Result<i32> {
        if let Some(outsider) = self.made.get(&owner) {
            return Ok(outsider.inner);
        }
        let outsider = Outsider::make(&self.namespace, owner)?;
        let inner = outsider.inner;
        self.made.insert(owner, outsider);
        Ok(inner)
    }

    /// Whether a thread, whose id this is here, is in a domain.
    ///
    /// # Errors
    /// When that can't be told.
    pub(super) fn is_in_domain(&mut self, tid: i32, inside: &mut Inside) -> io::Result<bool> {
        let outsider = self.for_owner(owner(tid)?)? as u64;
        match inside.call(libc::SYS_kcmp, &[outsider, outsider, KCMP_VM]) {
            Ok(_) => Ok(false),
            // Other security modules say EACCES.
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(true),
            Err(error) => Err(error),
        }
    }
}

impl Outsider {
    fn make(namespace: &File, owner: Owner) -> io::Result<Self> {
        let namespace = namespace.try_clone()?;
        // A thread of its own, which ends with the namespace and the capabilities that it hands on.
        let making = std::thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWPID)?;
            without_capabilities()?;
            Command::new("/proc/self/exe")
                .arg("--version")
                .env_clear()
                .uid(owner.0)
                .gid(owner.1)
                .current_dir("/")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
        });
        let made = making.join();
        let child = made.unwrap_or_else(|_| Err(io::Error::other("the making thread panicked")))?;
        let pid = child.id();
        // From here on it is waited for in any case.
        let mut outsider = Self { child, inner: 0 };
        let id = Id::Pid(Pid::from_raw(pid as i32));
        waitid(id, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        if word(&status, "CapPrm:").is_none_or(|set| set.bytes().any(|digit| digit != b'0')) {
            return Err(io::Error::other("it can't give up its capabilities"));
        }
        let inner = ids(&status).and_then(|ids| ids.last().copied());
        outsider.inner = inner.ok_or(io::ErrorKind::InvalidData)?;
        Ok(outsider)
    }
}

/// What this thread executes from now on has no capability (capabilities(7)).
fn without_capabilities() -> io::Result<()> {
    let none: libc::c_ulong = 0;
    let clear = libc::PR_CAP_AMBIENT_CLEAR_ALL as libc::c_ulong;
    // SAFETY: both take numbers alone.
    let done = unsafe {
        libc::prctl(libc::PR_SET_SECUREBITS, SECBIT_NOROOT, none, none, none) == 0
            && libc::prctl(libc::PR_CAP_AMBIENT, clear, none, none, none) == 0
    };
    done.then_some(()).ok_or_else(io::Error::last_os_error)
}

fn owner(tid: i32) -> io::Result<Owner> {
    let status = fs::read(format!("/proc/{tid}/status"))?;
    let status = String::from_utf8_lossy(&status);
    let real = |name| word(&status, name)?.parse().ok();
    let owner = real("Uid:").zip(real("Gid:"));
    owner.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The first word of a line of `/proc/PID/status`.
fn word<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn an_outsider_has_ended_and_may_do_nothing() {
        let me = Process {
            pid: std::process::id() as i32,
            inner: std::process::id() as i32,
        };
        let outsiders = Outsiders::of(&[me]).unwrap();
        let made: Vec<&Outsider> = outsiders.made.values().collect();
        let [outsider] = made[..] else {
            panic!("one user");
        };
        let status = fs::read_to_string(format!("/proc/{}/status", outsider.child.id())).unwrap();
        assert_eq!(word(&status, "State:"), Some("Z"));
        assert_eq!(word(&status, "CapPrm:"), Some("0000000000000000"));
        assert_eq!(ids(&status).unwrap().last(), Some(&outsider.inner));
        let here = fs::read_to_string("/proc/thread-self/status").unwrap();
        assert_ne!(word(&here, "CapPrm:"), Some("0000000000000000"));
    }

    #[test]
    fn users_are_the_real_ones() {
        assert_eq!(word("Uid:\t7\t8\t8\t8\n", "Uid:"), Some("7"));
        assert_eq!(word("Uid:\t\n", "Uid:"), None);
    }
}
