//! What is asked and changed of links while clients wait, without a program: rtnetlink(7), kernel
//! `include/uapi/linux/if_link.h`.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;
use ums_checkpoint::nf_tables::{attribute, nested};

/// The kernel answers at once.
const ANSWER_WITHIN_SECONDS: i64 = 5;
/// One link's description takes some two kilobytes.
const ANSWER_LEN_MAX: usize = 32 << 10;
/// `RTM_NEWLINK`, `RTM_GETLINK`, `RTM_SETLINK`, `NLMSG_ERROR`.
const NEW_LINK: u16 = 16;
const GET_LINK: u16 = 18;
const SET_LINK: u16 = 19;
const ERROR: u16 = 2;
/// `NLM_F_REQUEST`, `NLM_F_ACK`.
const REQUEST: u16 = 1;
const ACK: u16 = 4;
/// `IFLA_ADDRESS`, `IFLA_IFNAME`, `IFLA_LINK`, `IFLA_MASTER`, `IFLA_PROTINFO`, `IFLA_BRPORT_MODE`.
const ADDRESS: u16 = 1;
const NAME: u16 = 3;
const PEER: u16 = 5;
const MASTER: u16 = 10;
const PORT: u16 = 12;
const HAIRPIN: u16 = 4;
/// Bits of an attribute's type that are none of its number (`NLA_TYPE_MASK`).
const TYPE_MASK: u16 = 0x3fff;
/// Length of `nlmsghdr`, of `ifinfomsg`, and of an attribute's head.
const HEADER: usize = 16;
const INFO: usize = 16;
const ATTRIBUTE_HEAD: usize = 4;

/// A link, as far as we ask.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Link {
    /// Its number in its namespace.
    pub(super) index: u32,
    /// The number of its other end, in that one's namespace; 0 if it has none.
    pub(super) peer: u32,
    /// The number of the bridge that it is a port of; 0 if of none.
    pub(super) master: u32,
    /// Its hardware address.
    pub(super) address: Vec<u8>,
}

/// Asks for and changes the links of one network namespace. Everything blocks.
#[derive(Debug)]
pub(super) struct Links(OwnedFd);

impl Links {
    /// Of the calling thread's namespace.
    pub(super) fn here() -> io::Result<Self> {
        let (raw, flags) = (SockType::Raw, SockFlag::SOCK_CLOEXEC);
        let protocol = SockProtocol::NetlinkRoute;
        let netlink = socket(AddressFamily::Netlink, raw, flags, protocol)?;
        let patience = TimeVal::new(ANSWER_WITHIN_SECONDS, 0);
        setsockopt(&netlink, sockopt::ReceiveTimeout, &patience)?;
        Ok(Self(netlink))
    }

    /// Of the namespace that a file stands for.
    pub(super) fn of(netns: &Path) -> io::Result<Self> {
        let netns = File::open(netns)?;
        // In a thread of its own: the namespace is a thread's.
        let thread = std::thread::spawn(move || {
            setns(netns, CloneFlags::CLONE_NEWNET)?;
            Self::here()
        });
        let joined = thread.join();
        joined.unwrap_or_else(|_| Err(io::Error::other("network namespace thread")))
    }

    /// The link of this name; `None` when there is none.
    pub(super) fn link(&self, name: &str) -> io::Result<Option<Link>> {
        let named = attribute(NAME, &[name.as_bytes(), b"\0"].concat());
        let asked = self.ask(&message((GET_LINK, REQUEST), 0, 0, &named));
        match asked {
            Err(error) if error.raw_os_error() == Some(nix::libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
            Ok(answer) => read(&answer).map(Some),
        }
    }

    /// Makes a link a port of a bridge, or with 0 of none.
    pub(super) fn set_master(&self, link: u32, bridge: u32) -> io::Result<()> {
        let master = attribute(MASTER, &bridge.to_ne_bytes());
        self.ask(&message((SET_LINK, REQUEST | ACK), 0, link, &master))
            .map(drop)
    }

    /// Has a bridge send back by a port what has come by it, if it is for there.
    pub(super) fn set_hairpin(&self, port: u32) -> io::Result<()> {
        let bridge = nix::libc::AF_BRIDGE as u8;
        let hairpin = nested(PORT, &attribute(HAIRPIN, &[1]));
        self.ask(&message((SET_LINK, REQUEST | ACK), bridge, port, &hairpin))
            .map(drop)
    }

    fn ask(&self, message: &[u8]) -> io::Result<Vec<u8>> {
        send(self.0.as_raw_fd(), message, MsgFlags::empty())?;
        let mut answer = vec![0; ANSWER_LEN_MAX];
        let len = recv(self.0.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        answer.truncate(len);
        if u16_at(&answer, 4)? != ERROR {
            return Ok(answer);
        }
        match u32_at(&answer, HEADER)?.cast_signed() {
            0 => Ok(answer),
            code => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        }
    }
}

/// `nlmsghdr`, `ifinfomsg` and attributes.
fn message((kind, flags): (u16, u16), family: u8, index: u32, attributes: &[u8]) -> Vec<u8> {
    let len = HEADER + INFO + attributes.len();
    // All of them are some dozen bytes.
    let len = u32::try_from(len).unwrap_or(u32::MAX);
    let mut message = len.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]);
    message.extend([family, 0, 0, 0]);
    message.extend(index.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(attributes);
    message
}

fn read(answer: &[u8]) -> io::Result<Link> {
    if u16_at(answer, 4)? != NEW_LINK {
        return Err(malformed());
    }
    let mut link = Link {
        index: u32_at(answer, HEADER + 4)?,
        ..Link::default()
    };
    let mut rest = answer.get(HEADER + INFO..).ok_or_else(malformed)?;
    while rest.len() >= ATTRIBUTE_HEAD {
        let len = usize::from(u16_at(rest, 0)?);
        let value = rest.get(ATTRIBUTE_HEAD..len).ok_or_else(malformed)?;
        match u16_at(rest, 2)? & TYPE_MASK {
            ADDRESS => link.address = value.to_vec(),
            PEER => link.peer = u32_at(value, 0)?,
            MASTER => link.master = u32_at(value, 0)?,
            _ => {}
        }
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(link)
}

fn u16_at(bytes: &[u8], at: usize) -> io::Result<u16> {
    let found = bytes.get(at..).and_then(<[u8]>::first_chunk);
    found.copied().map(u16::from_ne_bytes).ok_or_else(malformed)
}

fn u32_at(bytes: &[u8], at: usize) -> io::Result<u32> {
    let found = bytes.get(at..).and_then(<[u8]>::first_chunk);
    found.copied().map(u32::from_ne_bytes).ok_or_else(malformed)
}

fn malformed() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "rtnetlink gave an answer that is none",
    )
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_link_is_read_and_a_broken_answer_is_refused() {
        let attributes = [
            attribute(ADDRESS, &[2, 0x75, 10, 88, 0, 5]),
            attribute(NAME, b"eth0\0"),
            attribute(PEER, &7_u32.to_ne_bytes()),
        ];
        let answer = message((NEW_LINK, 0), 0, 3, &attributes.concat());
        let link = read(&answer).unwrap();
        assert_eq!((link.index, link.peer, link.master), (3, 7, 0));
        assert_eq!(link.address, [2, 0x75, 10, 88, 0, 5]);
        assert!(read(&message((ERROR, 0), 0, 3, &[])).is_err());
        for len in 0..answer.len() {
            // It may be read in part, but never past its end.
            let _ = read(&answer[..len]);
        }
        let mut endless = message((NEW_LINK, 0), 0, 3, &[0, 0, 3, 0]);
        assert!(read(&endless).is_err());
        endless.truncate(HEADER);
        assert!(read(&endless).is_err());
    }

    #[test]
    fn the_kernel_knows_the_loopback_device_and_no_other_of_a_name() {
        let links = Links::here().unwrap();
        assert_eq!(links.link("lo").unwrap().unwrap().index, 1);
        assert_eq!(links.link("no-such-link").unwrap(), None);
    }
}
