//! What CRIU can't take out of the queue of a unix socket, asked on a copy of its descriptor while its
//! owner runs or is frozen: nothing is read, and nothing is changed.

use std::fs;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, getsockopt, recv, recvmsg};
use nix::sys::stat::{SFlag, fstat, major, minor};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use crate::carry::raw;
use crate::message::own;

const SO_PASSPIDFD: i32 = 76;
const SO_PEEK_OFF: i32 = 42;
/// Options by which a reader of datagrams is told when each has come.
const TIMES: [i32; 4] = [29, 35, 63, 64]; // SO_TIMESTAMP, SO_TIMESTAMPNS, and both _NEW

/// Longest part of a stream that is looked at in one piece, bytes.
const PIECE: usize = 64 * 1024;
/// Most pieces and messages that are looked at in one queue.
const PIECES_MAX: usize = 65_536;
/// Most messages without content in a row that are looked at.
const NOTHINGS_MAX: usize = 4096;
/// Largest message that is looked for, bytes: more than a socket may send by any usual setting.
const MESSAGE_MAX: usize = 64 << 20;

/// What a socket is whose queue is not empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Queue {
    /// Its reader is told who has sent each message (SO_PASSCRED, SO_PASSPIDFD), or when it came
    /// (SO_TIMESTAMP): CRIU refuses to take such messages out (its `dump_packet_cmsg`).
    pub tells_senders: bool,
    /// There is an urgent byte (MSG_OOB), which CRIU takes for an ordinary one.
    pub urgent: bool,
    /// A descriptor in it can't be taken out.
    pub flight: Option<Flight>,
}

/// A descriptor on its way between two processes (SCM_RIGHTS) that CRIU can't carry there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Flight {
    /// It needs the process that has a terminal open (its `dump_one_pty`).
    Terminal,
    /// Another socket that has descriptors in its own queue.
    Nested,
    /// CRIU sets it by a descriptor of a process (its `timerfd.c`).
    Timer,
}

impl Flight {
    /// In words.
    pub fn told(self) -> &'static str {
        match self {
            Self::Terminal => "a terminal",
            Self::Nested => "a unix socket that has descriptors in its own queue",
            Self::Timer => "a timer (timerfd)",
        }
    }
}

/// What is in the queue of the socket behind a descriptor of a process that may run; nothing once that
/// is gone. Of descriptors it sees those that would be received next.
pub fn queue(pid: i32, fd: i32) -> Queue {
    copy(pid, fd).map_or_else(Queue::default, |socket| of(&socket))
}

/// Whom the kernel names at the other end of the socket behind a descriptor (SO_PEERCRED, unix(7)): its process, as
/// it is numbered here, user and group.
pub fn peer_credentials(pid: i32, fd: i32) -> Option<(i32, u32, u32)> {
    let told = getsockopt(&copy(pid, fd)?, PeerCredentials).ok()?;
    Some((told.pid(), told.uid(), told.gid()))
}

fn copy(pid: i32, fd: i32) -> Option<OwnedFd> {
    let process = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    pidfd_getfd(&process, fd, PidfdGetfdFlags::empty()).ok()
}

fn of(socket: &OwnedFd) -> Queue {
    Queue {
        tells_senders: tells_senders(socket),
        urgent: is_urgent(socket),
        flight: flight_next(socket),
    }
}

/// Whether something comes with each message besides descriptors.
pub(crate) fn tells_senders(socket: &OwnedFd) -> bool {
    let get = |name| raw::get_int(socket, libc::SOL_SOCKET, name).unwrap_or(0);
    let is_stream = get(libc::SO_TYPE) == libc::SOCK_STREAM;
    let asks = |name: &i32| get(*name) != 0;
    asks(&libc::SO_PASSCRED) || asks(&SO_PASSPIDFD) || !is_stream && TIMES.iter().any(asks)
}

/// Among the descriptors that would be received next. One that peeks in steps (SO_PEEK_OFF) is left
/// alone: looking would be a step.
fn flight_next(socket: &OwnedFd) -> Option<Flight> {
    let steps = raw::get_int(socket, libc::SOL_SOCKET, SO_PEEK_OFF).unwrap_or(-1);
    if steps >= 0 || in_flight(socket) == 0 {
        return None;
    }
    let (_, descriptors) = peek(socket, &mut vec![0; PIECE]).ok()?;
    descriptors.iter().find_map(|it| flight(it, socket))
}

/// Whether an urgent byte is there.
pub(crate) fn is_urgent(socket: &OwnedFd) -> bool {
    let flags = MsgFlags::MSG_OOB | MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    recv(socket.as_raw_fd(), &mut [0], flags) == Ok(1)
}

/// Among all descriptors in the queue of a socket whose owner is frozen.
pub(crate) fn flight_anywhere(socket: &OwnedFd) -> io::Result<Option<Flight>> {
    if in_flight(socket) == 0 {
        return Ok(None);
    }
    from_the_first(socket, || {
        let mut buffer = vec![0; PIECE];
        for _ in 0..PIECES_MAX {
            match peek(socket, &mut buffer)? {
                (0, _) => return Ok(None),
                (_, descriptors) => {
                    let found = descriptors.iter().find_map(|it| flight(it, socket));
                    if found.is_some() {
                        return Ok(found);
                    }
                }
            }
        }
        Ok(None)
    })
}

/// Copies of all descriptors in the queue of a socket whose owner is frozen, in the order in which they would be
/// received.
pub(crate) fn descriptors(socket: &OwnedFd) -> io::Result<Vec<OwnedFd>> {
    if in_flight(socket) == 0 {
        return Ok(Vec::new());
    }
    from_the_first(socket, || {
        let mut buffer = vec![0; PIECE];
        let mut all = Vec::new();
        for _ in 0..PIECES_MAX {
            match peek(socket, &mut buffer)? {
                (0, _) => break,
                (_, descriptors) => all.extend(descriptors),
            }
        }
        Ok(all)
    })
}

/// Length of the largest message in the queue of a socket whose owner is frozen.
pub(crate) fn largest(socket: &OwnedFd) -> io::Result<usize> {
    let mut buffer = vec![0; PIECE];
    loop {
        let largest = from_the_first(socket, || {
            let mut largest = 0;
            for _ in 0..PIECES_MAX {
                let (length, _) = peek(socket, &mut buffer)?;
                largest = largest.max(length);
                // One that has no room is looked at in steps, and they would count as messages.
                if length == 0 || length > buffer.len() {
                    break;
                }
            }
            Ok(largest)
        })?;
        if largest <= buffer.len() || largest > MESSAGE_MAX {
            return Ok(largest);
        }
        buffer.resize(largest.next_power_of_two(), 0);
    }
}

/// Messages of a queue that CRIU does not give again as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Changed {
    /// Those whose sender has a name (unix(7)): CRIU sends them without.
    pub named: usize,
    /// Those without content: CRIU takes the first one for the end of the queue, unless somebody has looked at
    /// it before.
    pub empty: usize,
    /// Datagrams behind such a one that is the first of all: to CRIU there is nothing in the queue, as the
    /// kernel's length of it is that of the first (`UNIX_DIAG_RQLEN`).
    pub behind: usize,
    /// Errors that it would have been told before it reads: the other end was closed with something unread.
    pub errors: usize,
}

/// Those in the queue of a socket whose owner is frozen. What has no content is passed over by whoever looks
/// for messages from now on (Linux `net/core/datagram.c`, `skb_set_peeked`), as CRIU does: what lies behind
/// is carried then.
pub(crate) fn changed(socket: &OwnedFd) -> io::Result<Changed> {
    let kind = raw::get_int(socket, libc::SOL_SOCKET, libc::SO_TYPE)?;
    if ![libc::SOCK_DGRAM, libc::SOCK_SEQPACKET].contains(&kind) || raw::is_listening(socket) {
        return Ok(Changed::default());
    }
    let hides_others = kind == libc::SOCK_DGRAM && raw::unread(socket)? == 0;
    let mut buffer = vec![0; PIECE];
    from_the_first(socket, || {
        let mut changed = Changed::default();
        // Without content so far, and perhaps the end; the rest of a message that had no room.
        let (mut nothing, mut rest) = (0, false);
        for _ in 0..PIECES_MAX {
            let (length, is_named) = match raw::peek(socket, &mut buffer) {
                Ok(Some(message)) => message,
                Ok(None) => {
                    changed.empty += nothing;
                    break;
                }
                // Sequenced packets without a connection have no queue.
                Err(error) if error.kind() == io::ErrorKind::NotConnected => break,
                // Told once; messages come after it.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    changed.errors += 1;
                    continue;
                }
                Err(error) => return Err(error),
            };
            if length == 0 {
                nothing += 1;
                // Where the other end has been closed that is what one gets from there on.
                if nothing > NOTHINGS_MAX {
                    break;
                }
                continue;
            }
            changed.empty += std::mem::take(&mut nothing);
            changed.named += usize::from(is_named && !rest && kind == libc::SOCK_DGRAM);
            changed.behind += usize::from(hides_others && !rest);
            rest = length > buffer.len();
        }
        Ok(changed)
    })
}

/// Looks at a queue from its beginning, by the option with which CRIU does, and sets that back.
fn from_the_first<T>(socket: &OwnedFd, look: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let level = libc::SOL_SOCKET;
    let before = raw::get_int(socket, level, SO_PEEK_OFF)?;
    raw::set(socket, level, SO_PEEK_OFF, &0_i32.to_ne_bytes())?;
    let looked = look();
    raw::set(socket, level, SO_PEEK_OFF, &before.to_ne_bytes())?;
    looked
}

/// The next message or piece: its length, which may be more than there is room for, and copies of the
/// descriptors that come with it. No length at the end.
fn peek(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC;
    let flags = flags | MsgFlags::MSG_CMSG_CLOEXEC;
    // As many as one message may have (`SCM_MAX_FD`), and what else may come.
    let mut control = nix::cmsg_space!([i32; 253], libc::ucred, [u8; 256]);
    let mut into = [IoSliceMut::new(buffer)];
    let got = recvmsg::<()>(socket.as_raw_fd(), &mut into, Some(&mut control), flags);
    let message = match got {
        Ok(message) => message,
        // Who is not connected has no queue: a stream is told so by EINVAL, sequenced packets by ENOTCONN.
        Err(Errno::EAGAIN | Errno::EINVAL | Errno::ENOTCONN) => return Ok((0, Vec::new())),
        Err(error) => return Err(error.into()),
    };
    let mut descriptors = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            descriptors.extend(fds.into_iter().map(own));
        }
    }
    Ok((message.bytes, descriptors))
}

/// What a descriptor in the queue of a socket is. The socket itself is no obstacle: CRIU has it already.
fn flight(descriptor: &OwnedFd, through: &OwnedFd) -> Option<Flight> {
    let stat = fstat(descriptor).ok()?;
    let is_itself =
        fstat(through).is_ok_and(|own| (own.st_dev, own.st_ino) == (stat.st_dev, stat.st_ino));
    let kind = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
    match kind {
        SFlag::S_IFCHR if is_terminal((major(stat.st_rdev), minor(stat.st_rdev))) => {
            Some(Flight::Terminal)
        }
        SFlag::S_IFSOCK if !is_itself && in_flight(descriptor) > 0 => Some(Flight::Nested),
        _ if is_timer(descriptor) => Some(Flight::Timer),
        _ => None,
    }
}

fn is_timer(descriptor: &OwnedFd) -> bool {
    let link = fs::read_link(format!("/proc/self/fd/{}", descriptor.as_raw_fd()));
    link.is_ok_and(|link| link.as_os_str() == "anon_inode:[timerfd]")
}

/// `/dev/tty`, `/dev/ptmx` and the slaves of pseudo-terminals (Linux's device list).
fn is_terminal((major, minor): (u64, u64)) -> bool {
    matches!((major, minor), (5, 0 | 2) | (136..=143, _))
}

/// How many descriptors are in the queue of a socket (`scm_fds`, proc_pid_fdinfo(5)).
fn in_flight(socket: &OwnedFd) -> u64 {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", socket.as_raw_fd()));
    count(&info.unwrap_or_default())
}

fn count(info: &str) -> u64 {
    let mut counts = info
        .lines()
        .filter_map(|line| line.strip_prefix("scm_fds:"));
    let count = counts.next().and_then(|count| count.trim().parse().ok());
    count.unwrap_or(0)
}

#[cfg(test)]
mod test;
