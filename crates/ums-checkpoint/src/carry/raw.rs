//! Options of sockets by their numbers, and the names of network devices as a socket's namespace has
//! them: no safe wrapper knows the values of all.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::libc;

/// Length of a device's name with its zero.
const NAME_LEN: usize = libc::IFNAMSIZ;

/// Reads an option into `buffer`, and returns how much of it the kernel filled. Some options are asked
/// for by what is in the buffer before.
#[expect(unsafe_code, reason = "options whose values have no type here")]
pub(crate) fn get(socket: &OwnedFd, level: i32, name: i32, buffer: &mut [u8]) -> io::Result<usize> {
    let mut len = libc::socklen_t::try_from(buffer.len()).unwrap_or(0);
    // SAFETY: the kernel writes at most `len` bytes to the buffer, which are there, and the new
    // length to `len`; both outlive the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            name,
            buffer.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    match result {
        0 => Ok((len as usize).min(buffer.len())),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sets an option.
#[expect(unsafe_code, reason = "options whose values have no type here")]
pub(crate) fn set(socket: &OwnedFd, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    let len = libc::socklen_t::try_from(value.len()).unwrap_or(0);
    // SAFETY: the kernel reads `len` bytes of the value, which outlives the call.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), len) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Reads an `int`.
pub(crate) fn get_int(socket: &OwnedFd, level: i32, name: i32) -> io::Result<i32> {
    let mut value = [0; 4];
    match get(socket, level, name, &mut value)? {
        // The options of IPv4 are a byte where the caller has no room for more.
        1 => Ok(i32::from(value[0])),
        4 => Ok(i32::from_ne_bytes(value)),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Whether a raw socket of IPv4 is given packets with their headers (`IP_HDRINCL`).
pub(super) fn has_header(socket: &OwnedFd) -> bool {
    get_int(socket, libc::IPPROTO_IP, libc::IP_HDRINCL).is_ok_and(|value| value != 0)
}

/// Whom a descriptor signals (F_GETOWN): a process, or a group as a negative number; 0 is nobody.
#[expect(unsafe_code, reason = "nix has no F_GETOWN")]
pub(super) fn owner(descriptor: &OwnedFd) -> io::Result<i32> {
    // SAFETY: the command takes no argument and writes no memory.
    match unsafe { libc::fcntl(descriptor.as_raw_fd(), libc::F_GETOWN) } {
        -1 => Err(io::Error::last_os_error()),
        owner => Ok(owner),
    }
}

/// The next message in a socket, without taking it: its length, of which the buffer gets what there is room
/// for, and whether its sender has a name. `None` when there is none.
#[expect(unsafe_code, reason = "nix panics where a sender has no name")]
pub(crate) fn peek(socket: &OwnedFd, buffer: &mut [u8]) -> io::Result<Option<(usize, bool)>> {
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT | libc::MSG_TRUNC;
    // SAFETY: numbers and bytes: all zeros are valid.
    let mut sender: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    let mut len = size_of::<libc::sockaddr_un>() as libc::socklen_t;
    // SAFETY: the kernel writes at most as many bytes to the buffer as it has, at most `len` bytes to
    // `sender`, and the length of the name to `len`; all of them outlive the call.
    let count = unsafe {
        libc::recvfrom(
            socket.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            flags,
            (&raw mut sender).cast(),
            &raw mut len,
        )
    };
    match usize::try_from(count) {
        // A family alone is no name (unix(7)), nor is nothing.
        Ok(count) => Ok(Some((count, len as usize > size_of::<libc::sa_family_t>()))),
        Err(_) => match io::Error::last_os_error() {
            error if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            error => Err(error),
        },
    }
}

/// Whether it takes connections.
pub(crate) fn is_listening(socket: &OwnedFd) -> bool {
    get_int(socket, libc::SOL_SOCKET, libc::SO_ACCEPTCONN).is_ok_and(|on| on != 0)
}

/// How many bytes were written to a socket and have not left it (`SIOCOUTQ`).
pub(super) fn unsent(socket: &OwnedFd) -> io::Result<i32> {
    number(socket, libc::TIOCOUTQ)
}

/// How many bytes of a connection can be read (`SIOCINQ`).
pub(crate) fn unread(socket: &OwnedFd) -> io::Result<i32> {
    number(socket, libc::FIONREAD)
}

/// Whether the next byte of a connection is the urgent one.
pub(super) fn is_at_mark(socket: &OwnedFd) -> io::Result<bool> {
    const SIOCATMARK: libc::c_ulong = 0x8905;
    Ok(number(socket, SIOCATMARK)? != 0)
}

/// Whether nobody else may open a terminal.
pub(super) fn is_exclusive(terminal: &OwnedFd) -> io::Result<bool> {
    // TIOCGEXCL (`asm-generic/ioctls.h`).
    const GET_EXCLUSIVE: libc::c_ulong = 0x8004_5440;
    Ok(number(terminal, GET_EXCLUSIVE)? != 0)
}

/// Lets nobody else open a terminal.
#[expect(unsafe_code, reason = "an ioctl without a safe wrapper")]
pub(super) fn make_exclusive(terminal: &OwnedFd) -> io::Result<()> {
    // SAFETY: the request takes no argument.
    match unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCEXCL) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[expect(unsafe_code, reason = "an ioctl without a safe wrapper")]
fn number(socket: &OwnedFd, request: libc::c_ulong) -> io::Result<i32> {
    let mut number: libc::c_int = 0;
    // SAFETY: each request made here has the kernel write one `int`, which outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), request, &raw mut number) };
    match result {
        0 => Ok(number),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Length of `struct epoll_params` (`linux/eventpoll.h`).
pub(super) const EPOLL_PARAMS: usize = 8;

/// EPIOCGPARAMS.
#[expect(unsafe_code, reason = "an ioctl without a safe wrapper")]
pub(super) fn epoll_parameters(epoll: &OwnedFd) -> io::Result<[u8; EPOLL_PARAMS]> {
    const EPIOCGPARAMS: libc::Ioctl = 0x8008_8a02_u32 as libc::Ioctl;
    let mut parameters = [0; EPOLL_PARAMS];
    // SAFETY: the kernel writes `EPOLL_PARAMS` bytes, as the request's number says, to an array of as many.
    let result = unsafe { libc::ioctl(epoll.as_raw_fd(), EPIOCGPARAMS, parameters.as_mut_ptr()) };
    match result {
        0 => Ok(parameters),
        _ => Err(io::Error::last_os_error()),
    }
}

/// EPIOCSPARAMS.
#[expect(unsafe_code, reason = "an ioctl without a safe wrapper")]
pub(super) fn set_epoll_parameters(
    epoll: &OwnedFd,
    parameters: &[u8; EPOLL_PARAMS],
) -> io::Result<()> {
    const EPIOCSPARAMS: libc::Ioctl = 0x4008_8a01_u32 as libc::Ioctl;
    // SAFETY: the kernel reads `EPOLL_PARAMS` bytes, as the request's number says, of an array of as many.
    let result = unsafe { libc::ioctl(epoll.as_raw_fd(), EPIOCSPARAMS, parameters.as_ptr()) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// How many bytes one call would read of a connection, without reading them.
#[expect(unsafe_code, reason = "a length without a buffer")]
pub(super) fn readable(socket: &OwnedFd) -> i32 {
    let flags = libc::MSG_PEEK | libc::MSG_TRUNC | libc::MSG_DONTWAIT;
    let (nothing, len) = (std::ptr::null_mut(), i32::MAX as usize);
    // SAFETY: of TCP, with MSG_TRUNC the kernel counts and writes nothing (tcp(7)); the callers ask TCP
    // alone.
    let count = unsafe { libc::recv(socket.as_raw_fd(), nothing, len, flags) };
    i32::try_from(count.max(0)).unwrap_or(i32::MAX)
}

/// Ends a connection from this side at once (`connect(2)` with AF_UNSPEC).
#[expect(unsafe_code, reason = "an address of no family")]
pub(super) fn disconnect(socket: &OwnedFd) -> io::Result<()> {
    let address = libc::sockaddr {
        sa_family: libc::AF_UNSPEC as libc::sa_family_t,
        sa_data: [0; 14],
    };
    let len = size_of::<libc::sockaddr>() as libc::socklen_t;
    // SAFETY: the kernel reads the address, which outlives the call.
    let result = unsafe { libc::connect(socket.as_raw_fd(), &raw const address, len) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The name of a device; empty for none, which has the number 0.
pub(super) fn device_name(socket: &OwnedFd, index: i32) -> io::Result<String> {
    if index == 0 {
        return Ok(String::new());
    }
    let mut request = request("")?;
    request.ifr_ifru.ifru_ifindex = index;
    interface(socket, libc::SIOCGIFNAME, &mut request)?;
    let name = request.ifr_name.iter().take_while(|byte| **byte != 0);
    Ok(name.map(|byte| char::from(byte.cast_unsigned())).collect())
}

/// The number of a device in the socket's namespace.
pub(super) fn device_index(socket: &OwnedFd, name: &str) -> io::Result<i32> {
    if name.is_empty() {
        return Ok(0);
    }
    let mut request = request(name)?;
    interface(socket, libc::SIOCGIFINDEX, &mut request)?;
    #[expect(unsafe_code, reason = "a union of the kernel's")]
    // SAFETY: SIOCGIFINDEX has filled this member, and any bytes are a number.
    let index = unsafe { request.ifr_ifru.ifru_ifindex };
    Ok(index)
}

#[expect(unsafe_code, reason = "a union of the kernel's")]
fn request(name: &str) -> io::Result<libc::ifreq> {
    if name.len() >= NAME_LEN || !name.is_ascii() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: bytes and a union of plain values: all zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    Ok(request)
}

#[expect(unsafe_code, reason = "an ioctl without a safe wrapper")]
fn interface(socket: &OwnedFd, number: u64, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: the kernel reads and writes one `ifreq`, which outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), number, request as *mut libc::ifreq) };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// About a System V queue of this thread's IPC namespace.
#[expect(unsafe_code, reason = "no wrapper of System V calls")]
fn queue(id: i32) -> io::Result<libc::msqid_ds> {
    // SAFETY: numbers and pointers, for which zero is a value.
    let mut about: libc::msqid_ds = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one such structure, which outlives the call.
    match unsafe { libc::msgctl(id, libc::IPC_STAT, &raw mut about) } {
        0 => Ok(about),
        _ => Err(io::Error::last_os_error()),
    }
}

/// How many bytes it takes.
pub(super) fn queue_bytes(id: i32) -> io::Result<u64> {
    queue(id).map(|about| about.msg_qbytes)
}

#[expect(unsafe_code, reason = "no wrapper of System V calls")]
pub(super) fn set_queue_bytes(id: i32, bytes: u64) -> io::Result<()> {
    let mut about = queue(id)?;
    about.msg_qbytes = bytes;
    // SAFETY: the kernel reads one such structure, which outlives the call.
    match unsafe { libc::msgctl(id, libc::IPC_SET, &raw mut about) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether a System V segment of this thread's IPC namespace is locked (SHM_LOCKED, `linux/shm.h`).
#[expect(unsafe_code, reason = "no wrapper of System V calls")]
pub(super) fn is_locked(id: i32) -> io::Result<bool> {
    const SHM_LOCKED: u32 = 0o2000;
    // SAFETY: numbers and pointers, for which zero is a value.
    let mut about: libc::shmid_ds = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one such structure, which outlives the call.
    match unsafe { libc::shmctl(id, libc::IPC_STAT, &raw mut about) } {
        0 => Ok(u32::from(about.shm_perm.mode) & SHM_LOCKED != 0),
        _ => Err(io::Error::last_os_error()),
    }
}

#[expect(unsafe_code, reason = "no wrapper of System V calls")]
pub(super) fn lock(id: i32) -> io::Result<()> {
    // SAFETY: the kernel takes the numbers alone.
    match unsafe { libc::shmctl(id, libc::SHM_LOCK, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod test {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn devices_have_a_name_and_a_number() {
        let socket = OwnedFd::from(UdpSocket::bind("127.0.0.1:0").unwrap());
        let index = device_index(&socket, "lo").unwrap();
        assert!(index > 0);
        assert_eq!(device_name(&socket, index).unwrap(), "lo");
        assert_eq!(device_name(&socket, 0).unwrap(), "");
        assert!(device_index(&socket, "there-is-none").is_err());
        assert!(device_index(&socket, "a-name-that-is-too-long").is_err());
    }
}
