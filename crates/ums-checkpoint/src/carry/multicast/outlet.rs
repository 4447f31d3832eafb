//! By which device a socket sends to groups of IPv4 (`IP_MULTICAST_IF`, ip(7)).
//!
//! The kernel tells the address that it was given, and not the device (`inet->mc_index`) where one was
//! named by its number. But it tells whether there is a way: with `MSG_PROBE` and `MSG_CONFIRM` a
//! message looks for its route and is not sent (kernel `udp_sendmsg`, `raw_sendmsg`). A route over a
//! device that was chosen is always there, also where `MSG_DONTROUTE` forbids every gateway; and a
//! message with the source 127.0.0.1 may go by the loopback device alone (`__mkroute_output`).

use std::io::{self, IoSlice};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrIn, getsockname, sendmsg};
use serde::{Deserialize, Serialize};

use super::super::option::Nature;
use super::super::raw;
use super::NOBODYS_GROUP;

/// Numbers of Linux's `socket.h` that have no names here.
const MSG_PROBE: i32 = 0x10;
/// What leaves by another device than the loopback device leaves by this one: a service has no more.
const OUTSIDE: &str = "eth0";
const LOOPBACK: &str = "lo";
/// Long enough to be a message of any protocol (an echo request of ICMP, say).
const MESSAGE: [u8; 8] = [0; 8];

/// What was chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Outlet {
    /// The address that it sends from; unspecified where the device's is taken.
    address: Ipv4Addr,
    /// Empty where it is not known: it is the one that has the address.
    device: String,
}

impl Outlet {
    #[cfg(test)]
    pub(super) fn chosen(address: Ipv4Addr, device: &str) -> Self {
        let device = device.to_owned();
        Self { address, device }
    }

    /// That of a socket that speaks IPv4; `None` where nothing was chosen.
    pub(super) fn of(socket: &OwnedFd, nature: Nature) -> io::Result<Option<Self>> {
        let mut bytes = [0; 4];
        raw::get(socket, libc::IPPROTO_IP, libc::IP_MULTICAST_IF, &mut bytes)?;
        let address = Ipv4Addr::from(bytes);
        let device = match can_be_asked(socket, nature)? {
            true => device(socket, nature),
            false => None,
        };
        let chosen = device.is_some() || !address.is_unspecified();
        let device = device.unwrap_or_default().to_owned();
        Ok(chosen.then_some(Self { address, device }))
    }

    /// Chooses it for another socket.
    pub(super) fn set(&self, socket: &OwnedFd) -> io::Result<()> {
        let index = raw::device_index(socket, &self.device)?;
        // An `ip_mreqn`: group, address, device.
        let mut request = [0; 12];
        request[4..8].copy_from_slice(&self.address.octets());
        request[8..].copy_from_slice(&index.to_ne_bytes());
        raw::set(socket, libc::IPPROTO_IP, libc::IP_MULTICAST_IF, &request)
    }
}

/// Whether asking changes nothing: a socket that has no port would be given one, one that holds data
/// back would send it; and what is bound to a device sends by that.
fn can_be_asked(socket: &OwnedFd, nature: Nature) -> io::Result<bool> {
    if !nature.is_inet4_datagram() {
        return Ok(false);
    }
    let bound = getsockname::<SockaddrIn>(socket.as_raw_fd()).map_err(io::Error::from)?;
    let mut device = [0; libc::IFNAMSIZ];
    let device = raw::get(socket, libc::SOL_SOCKET, libc::SO_BINDTODEVICE, &mut device)?;
    let has_a_port = nature.is_raw() || bound.port() != 0;
    Ok(has_a_port && device == 0 && raw::unsent(socket)? == 0)
}

/// The device that was chosen; `None` where none was, or where it does not show.
fn device(socket: &OwnedFd, nature: Nature) -> Option<&'static str> {
    // A raw message with a header of its own is none that can be probed with content.
    let message: &[u8] = match nature.is_raw() && !raw::has_header(socket) {
        true => &MESSAGE,
        false => &[],
    };
    let chosen = probe(socket, message, None);
    if chosen != Ok(()) {
        return None;
    }
    match probe(socket, message, Some(Ipv4Addr::LOCALHOST)) {
        Ok(()) => Some(LOOPBACK),
        Err(Errno::EINVAL) => Some(OUTSIDE),
        Err(_) => None,
    }
}

/// Whether a message to a group would have a way, on the link alone or from this address.
fn probe(socket: &OwnedFd, message: &[u8], from: Option<Ipv4Addr>) -> Result<(), Errno> {
    let mut flags = MSG_PROBE | libc::MSG_CONFIRM | libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    let source = libc::in_pktinfo {
        ipi_ifindex: 0,
        ipi_spec_dst: libc::in_addr {
            s_addr: u32::from_ne_bytes(from.unwrap_or(Ipv4Addr::UNSPECIFIED).octets()),
        },
        ipi_addr: libc::in_addr { s_addr: 0 },
    };
    let mut control = vec![ControlMessage::Ipv4PacketInfo(&source)];
    if from.is_none() {
        control.clear();
        flags |= libc::MSG_DONTROUTE;
    }
    // The port of no service (RFC 863).
    let to = SockaddrIn::from(SocketAddrV4::new(NOBODYS_GROUP, 9));
    let (iov, flags) = ([IoSlice::new(message)], MsgFlags::from_bits_retain(flags));
    sendmsg(socket.as_raw_fd(), &iov, &control, flags, Some(&to)).map(drop)
}
