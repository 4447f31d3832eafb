use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::ptrace;
use nix::unistd::Pid;

use super::held::stopped;
use super::{After, Inside, hold, raw};
use crate::cgroup::Cgroup;
use crate::freezer::Freezer;

fn end() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

/// A process that waits in a call.
fn cat() -> Child {
    let mut command = Command::new("cat");
    let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    assert_eq!(said(&mut child, b"first"), b"first");
    child
}

fn said(child: &mut Child, what: &[u8]) -> Vec<u8> {
    child.stdin.as_mut().unwrap().write_all(what).unwrap();
    let mut answer = vec![0; what.len()];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut answer)
        .unwrap();
    answer
}

fn held<T>(child: &Child, work: impl FnOnce(i32) -> T) -> T {
    let thread = Pid::from_raw(child.id() as i32);
    ptrace::seize(thread, ptrace::Options::empty()).unwrap();
    ptrace::interrupt(thread).unwrap();
    stopped(thread, end()).unwrap();
    raw::prepare(thread).unwrap();
    let answer = work(thread.as_raw());
    ptrace::detach(thread, None).unwrap();
    answer
}

#[test]
fn a_process_makes_calls_and_goes_on_as_if_it_had_not() {
    let mut child = cat();
    held(&child, |pid| {
        let before = ptrace::getregs(Pid::from_raw(pid)).unwrap();
        let mut inside = Inside::enter(pid, end()).unwrap();
        inside.keep_extended().unwrap();
        assert_eq!(inside.call(libc::SYS_getpid, &[]).unwrap(), pid as u64);
        let error = inside.call(libc::SYS_close, &[u64::MAX]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
        let at = inside.lend(b"lent").unwrap();
        assert_eq!(inside.call(libc::SYS_write, &[1, at, 4]).unwrap(), 4);
        assert_eq!(&inside.lent::<4>().unwrap(), b"lent");
        let maps = || std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        let is_there = || maps().contains(&format!("{at:08x}-"));
        assert!(is_there());
        inside.leave().unwrap();
        assert!(!is_there());
        assert_eq!(ptrace::getregs(Pid::from_raw(pid)).unwrap(), before);
        assert_eq!(raw::mask(Pid::from_raw(pid)).unwrap(), 0);
    });
    let mut answer = [0; 4];
    child
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut answer)
        .unwrap();
    assert_eq!(&answer, b"lent");
    assert_eq!(said(&mut child, b"second"), b"second");
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_signal_that_waits_is_taken_afterwards() {
    let mut child = cat();
    held(&child, |pid| {
        let mut inside = Inside::enter(pid, end()).unwrap();
        nix::sys::signal::kill(Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM).unwrap();
        assert_eq!(inside.call(libc::SYS_getpid, &[]).unwrap(), pid as u64);
        inside.leave().unwrap();
    });
    let status = child.wait().unwrap();
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&status),
        Some(libc::SIGTERM)
    );
}

/// Nobody puts back what it was: it must not go on.
#[test]
fn a_process_that_is_not_left_does_not_go_on() {
    let mut child = cat();
    let pid = child.id() as i32;
    std::thread::spawn(move || {
        let thread = Pid::from_raw(pid);
        ptrace::seize(thread, ptrace::Options::empty()).unwrap();
        ptrace::interrupt(thread).unwrap();
        stopped(thread, end()).unwrap();
        raw::prepare(thread).unwrap();
        std::mem::forget(Inside::enter(pid, end()).unwrap());
    })
    .join()
    .unwrap();
    let status = child.wait().unwrap();
    assert_eq!(
        std::os::unix::process::ExitStatusExt::signal(&status),
        Some(libc::SIGKILL)
    );
}

/// Whoever was frozen to be told something runs, although it could not be.
#[test]
fn a_group_runs_on_when_nobody_in_it_can_be_held() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED a_group_runs_on_when_nobody_in_it_can_be_held: needs root");
        return;
    }
    let group = Cgroup::at(&format!("/ums-inside-{}", std::process::id())).unwrap();
    let dir = group.freezer_dir().unwrap();
    std::fs::create_dir(&dir).unwrap();
    let freezer = Freezer::of(&group).unwrap();
    let mut child = cat();
    std::fs::write(dir.join("cgroup.procs"), child.id().to_string()).unwrap();
    freezer.begin().unwrap();
    // Nobody traces itself.
    let own = std::process::id() as i32;
    let within = Duration::from_secs(5);
    assert!(hold(&freezer, &[own], within, After::Running, |_| ()).is_err());
    assert_eq!(said(&mut child, b"second"), b"second");
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
    std::fs::remove_dir(&dir).unwrap();
}
