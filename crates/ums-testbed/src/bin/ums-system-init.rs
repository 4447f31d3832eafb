//! PID 1 of a system of the testbed: it mounts what is the system's own, reaps what is orphaned,
//! and ends, taking everything in its PID namespace along, when whoever started it is gone.
//!
//! `ums-system-init [DIRECTORY…]` mounts a tmpfs on each directory, writes `ready` to standard
//! output, and lives until its standard input is closed.

use std::io::{Read, Write};
use std::process::ExitCode;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

fn main() -> ExitCode {
    match init() {
        Ok(never) => match never {},
        Err(error) => {
            eprintln!("ums-system-init: {error}");
            ExitCode::FAILURE
        }
    }
}

fn init() -> Result<std::convert::Infallible, std::io::Error> {
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    // Blocked before any thread starts, so that no thread takes the signal from the wait below.
    children.thread_block()?;
    for directory in std::env::args_os().skip(1) {
        mount(
            Some("tmpfs"),
            directory.as_os_str(),
            Some("tmpfs"),
            MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
            Some("mode=0755"),
        )?;
    }
    std::thread::spawn(end_with_starter);
    println!("ready");
    std::io::stdout().flush()?;
    loop {
        while reap()? {}
        children.wait()?;
    }
}

/// The end of standard input is the end of the process that holds its other end, however it died.
fn end_with_starter() {
    let mut buffer = [0; 64];
    while std::io::stdin().read(&mut buffer).is_ok_and(|count| count > 0) {}
    std::process::exit(0);
}

/// Takes one dead child; false when there is none.
fn reap() -> Result<bool, Errno> {
    match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => Ok(false),
        Ok(_) => Ok(true),
        Err(errno) => Err(errno),
    }
}
