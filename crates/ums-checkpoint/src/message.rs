//! Messages with descriptors over a unix socket: how an agent and a keeper talk.
//!
//! Each message is one JSON value in one packet of a `SOCK_SEQPACKET` socket, with the descriptors
//! it speaks of beside it (unix(7), SCM_RIGHTS).

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recv, recvmsg, sendmsg};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The longest message, bytes: the largest carries an OCI bundle's paths and a mount list.
const MESSAGE_LEN_MAX: usize = 128 * 1024;
/// The most descriptors in one message.
pub const FDS_MAX: usize = 8;

/// Sends one message.
pub fn send<T: Serialize>(
    socket: BorrowedFd<'_>,
    message: &T,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > MESSAGE_LEN_MAX || fds.len() > FDS_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "message to a keeper is too long",
        ));
    }
    let raw: Vec<i32> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() {
        &rights[..0]
    } else {
        &rights[..]
    };
    let slices = [IoSlice::new(&bytes)];
    let flags = MsgFlags::MSG_NOSIGNAL;
    uninterrupted(|| sendmsg::<()>(socket.as_raw_fd(), &slices, control, flags, None))?;
    Ok(())
}

/// Again, when a signal came in between: on a socket with a time-out the kernel leaves that to us
/// (signal(7), SA_RESTART). A call that moved something does not fail so.
pub(crate) fn uninterrupted<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            other => return other,
        }
    }
}

/// Receives one message; `None` when the other side has closed.
pub fn receive<T: DeserializeOwned>(
    socket: BorrowedFd<'_>,
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    match receive_any(socket)? {
        Some((message, fds)) => Ok(Some((message?, fds))),
        None => Ok(None),
    }
}

/// A message, or why it was not understood, and the descriptors that came with it.
pub type Received<T> = (Result<T, serde_json::Error>, Vec<OwnedFd>);

/// The same, for who has an answer also to what it does not understand.
pub fn receive_any<T: DeserializeOwned>(socket: BorrowedFd<'_>) -> io::Result<Option<Received<T>>> {
    // What is received below borrows its buffers and can't be tried again: wait here.
    uninterrupted(|| recv(socket.as_raw_fd(), &mut [0], MsgFlags::MSG_PEEK))?;
    let mut bytes = vec![0; MESSAGE_LEN_MAX];
    let mut space = nix::cmsg_space!([i32; FDS_MAX]);
    let mut slices = [IoSliceMut::new(&mut bytes)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let received = recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut space), flags)?;
    let mut fds = Vec::new();
    for control in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            fds.extend(raw.into_iter().map(own));
        }
    }
    let len = received.bytes;
    if received
        .flags
        .intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC)
    {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "message to a keeper was cut off",
        ));
    }
    if len == 0 {
        return Ok(None);
    }
    Ok(Some((serde_json::from_slice(&bytes[..len]), fds)))
}

/// Receives one descriptor that comes with a byte or with nothing, as CRIU's helpers send it.
pub fn receive_fd(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut byte = [0];
    let mut space = nix::cmsg_space!([i32; 1]);
    let mut slices = [IoSliceMut::new(&mut byte)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let received = recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut space), flags)?;
    for control in received.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = control
            && let Some(raw) = raw.first()
        {
            return Ok(own(*raw));
        }
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidData,
        "a descriptor was expected",
    ))
}

/// Takes ownership of a descriptor that the kernel has just put into this process.
#[expect(unsafe_code, reason = "SCM_RIGHTS delivers raw numbers")]
pub(crate) fn own(raw: i32) -> OwnedFd {
    use std::os::fd::FromRawFd;
    // SAFETY: `raw` was installed by the kernel for this process just now, by recvmsg or by a
    // userfaultfd fork event, and is held by nothing else.
    unsafe { OwnedFd::from_raw_fd(raw) }
}

/// A descriptor that this process was started with, by its number: a copy of it. Neither is handed on to programs
/// that are started from now on.
///
/// # Errors
/// `EBADF` where there is none.
#[expect(unsafe_code, reason = "what is inherited comes as a number")]
pub fn inherited(number: i32) -> io::Result<OwnedFd> {
    use nix::libc::{F_DUPFD_CLOEXEC, F_SETFD, FD_CLOEXEC, fcntl};
    // SAFETY: the call takes numbers alone, and refuses one that is not open.
    let copy = unsafe { fcntl(number, F_DUPFD_CLOEXEC, 3) };
    let copy = own(Errno::result(copy)?);
    // SAFETY: as above.
    Errno::result(unsafe { fcntl(number, F_SETFD, FD_CLOEXEC) })?;
    Ok(copy)
}

#[cfg(test)]
mod test {
    use std::os::fd::AsFd;

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    use super::*;

    #[test]
    fn a_message_brings_its_descriptors() {
        let (a, b) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        send(a.as_fd(), &vec![1, 2], &[file.as_fd()]).unwrap();
        let (message, fds): (Vec<u32>, _) = receive(b.as_fd()).unwrap().unwrap();
        assert_eq!((message, fds.len()), (vec![1, 2], 1));
        drop(a);
        assert!(receive::<u32>(b.as_fd()).unwrap().is_none());
    }

    #[test]
    fn an_interrupted_call_is_made_again() {
        let mut answers = vec![
            Err(Errno::EAGAIN),
            Ok(7),
            Err(Errno::EINTR),
            Err(Errno::EINTR),
        ];
        assert_eq!(uninterrupted(|| answers.pop().unwrap()), Ok(7));
        assert_eq!(uninterrupted(|| answers.pop().unwrap()), Err(Errno::EAGAIN));
    }
}
