//! Connections that a checkpoint has left half taken over.
//!
//! To read a connection's queues CRIU puts its socket into repair mode (`TCP_REPAIR`), and takes it
//! out again at the end of the dump. A CRIU that is killed meanwhile takes out nothing: the service
//! runs on with sockets that send nothing and refuse to be written to.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use nix::sys::socket::{getsockopt, setsockopt, sockopt::TcpRepair};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

/// Takes the sockets of these processes out of repair mode, and returns how many were in it. A
/// process or a descriptor that has gone meanwhile is passed over.
pub(crate) fn end(pids: &[i32]) -> io::Result<usize> {
    let (mut seen, mut ended) = (BTreeSet::new(), 0);
    for pid in pids {
        for socket in sockets(*pid, &mut seen)? {
            // Other kinds of sockets don't know the option.
            if getsockopt(&socket, TcpRepair).is_ok_and(|mode| mode != 0) {
                setsockopt(&socket, TcpRepair, &0)?;
                ended += 1;
            }
        }
    }
    Ok(ended)
}

/// The sockets of a process that are not in `seen` yet.
fn sockets(pid: i32, seen: &mut BTreeSet<PathBuf>) -> io::Result<Vec<OwnedFd>> {
    let Some(pidfd) = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
    else {
        return Ok(Vec::new());
    };
    let mut sockets = Vec::new();
    let entries = fs::read_dir(format!("/proc/{pid}/fd"));
    for entry in entries.into_iter().flatten().flatten() {
        let (Ok(link), Some(number)) = (fs::read_link(entry.path()), number(&entry.file_name()))
        else {
            continue;
        };
        if !link.to_string_lossy().starts_with("socket:") || !seen.insert(link) {
            continue;
        }
        match pidfd_getfd(&pidfd, number, PidfdGetfdFlags::empty()) {
            Ok(socket) => sockets.push(socket),
            Err(rustix::io::Errno::BADF | rustix::io::Errno::SRCH) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(sockets)
}

fn number(name: &OsStr) -> Option<i32> {
    name.to_str()?.parse().ok()
}

#[cfg(test)]
mod test {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::process::{Command, Stdio};

    use super::*;

    /// A process that has a connection, and one end of it that is in repair mode.
    #[test]
    fn a_connection_in_repair_mode_goes_on() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (served, _) = listener.accept().unwrap();
        setsockopt(&served, TcpRepair, &1).unwrap();
        assert!((&served).write(b"x").is_err(), "it can't be written to");
        let mut holder = Command::new("sleep")
            .arg("100")
            .stdin(Stdio::from(OwnedFd::from(served.try_clone().unwrap())))
            .spawn()
            .unwrap();
        let pid = i32::try_from(holder.id()).unwrap();
        assert_eq!(end(&[pid, i32::MAX]).unwrap(), 1);
        assert_eq!(end(&[pid]).unwrap(), 0);
        (&served).write_all(b"on").unwrap();
        let mut said = [0; 2];
        client.read_exact(&mut said).unwrap();
        assert_eq!(&said, b"on");
        holder.kill().unwrap();
        holder.wait().unwrap();
    }
}
