//! Holds what a service sends to itself while its sockets are looked at, or put together again.
//!
//! CRIU reads and makes sockets one after the other. Between two of them the kernel must not carry
//! a packet from one to the other: the two ends of a connection would be of different moments; and
//! at a restore the end that is there first would be reset, because the other one is not there yet.
//! CRIU's own network lock does that for all packets, but it is gone with the end of the dump, and
//! takes a program (ADR 8); packets to and from others are held by rules of our caller's. What stays
//! in the namespace is held here: by one rule of nf_tables that lets nothing out to the loopback device.
//! Not at its other end: CRIU writes again what a socket had not sent yet, by an ordinary write, and
//! the kernel would believe that it is on its way. This way it knows that it is not.
//!
//! The table belongs to our netlink socket (`NFT_TABLE_F_OWNER`, Linux 5.12): the kernel removes it
//! when the socket is closed, so it can't outlive the keeper, however that ends. It is set and lifted
//! by one message each, without a program, right at the notification of CRIU that it is needed for.
//!
//! Messages: kernel `include/uapi/linux/netfilter/nf_tables.h`, `nfnetlink.h`; netlink(7).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;

use message::{Message, attribute, nested};

mod message;

/// The table, in the service's namespace.
const TABLE: &[u8] = b"ums-loopback\0";
const CHAIN: &[u8] = b"leave\0";

/// With which CRIU marks the packets that it makes to put a socket into a half-closed state
/// (`SOCCR_MARK` in CRIU's `soccr/soccr.h`): they go by the loopback device, and must arrive.
const CRIU_MARK: u32 = 0xc114;
/// Before connection tracking, and before all rules of ours (`NF_IP_PRI_RAW` is -300).
const PRIORITY: i32 = -310;
/// The loopback device of every namespace (`LOOPBACK_IFINDEX` in the kernel).
const LOOPBACK_INDEX: u32 = 1;
/// The kernel answers at once.
const ANSWER_WITHIN_SECONDS: i64 = 5;
/// Answers are a header and the header that they answer.
const ANSWER_LEN_MAX: usize = 8192;

/// While it lives nothing is sent over the loopback device of a network namespace.
#[derive(Debug)]
pub(crate) struct Hold(OwnedFd);

impl Hold {
    /// Holds what is sent over the loopback device of this network namespace from now on.
    ///
    /// # Errors
    /// The namespace can't be entered, or the kernel has no nf_tables, or none with owners.
    pub(crate) fn new(netns: BorrowedFd<'_>) -> io::Result<Self> {
        let hold = Self(socket_in(netns)?);
        hold.ask(&[table(true), chain(), rule()])?;
        Ok(hold)
    }

    /// Lets packets pass again. What was held is sent again by who sent it.
    ///
    /// By a message, because closing the socket waits until no processor looks at the rule any more.
    pub(crate) fn lift(self) -> io::Result<()> {
        // If this fails, the end of the socket does it.
        self.ask(&[table(false)])
    }

    /// Makes changes in one transaction, and waits until it is made.
    fn ask(&self, changes: &[Message]) -> io::Result<()> {
        let batch = message::batch(changes);
        send(self.0.as_raw_fd(), &batch, MsgFlags::empty())?;
        let mut answer = vec![0; ANSWER_LEN_MAX];
        for _ in changes {
            let len = recv(self.0.as_raw_fd(), &mut answer, MsgFlags::empty())?;
            message::verdict(&answer[..len])?;
        }
        Ok(())
    }
}

/// A netlink socket of another network namespace than ours.
fn socket_in(netns: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let netns = netns.try_clone_to_owned()?;
    // In a thread of its own: the namespace is a thread's, and this process stays where it is.
    let thread = std::thread::spawn(move || -> io::Result<OwnedFd> {
        setns(netns.as_fd(), CloneFlags::CLONE_NEWNET)?;
        let (raw, flags) = (SockType::Raw, SockFlag::SOCK_CLOEXEC);
        let protocol = SockProtocol::NetlinkNetFilter;
        let netlink = socket(AddressFamily::Netlink, raw, flags, protocol)?;
        let patience = TimeVal::new(ANSWER_WITHIN_SECONDS, 0);
        setsockopt(&netlink, sockopt::ReceiveTimeout, &patience)?;
        Ok(netlink)
    });
    thread
        .join()
        .map_err(|_| io::Error::other("network namespace thread"))?
}

// Numbers of the messages and their attributes are the kernel's, by the names beside them.

fn table(wanted: bool) -> Message {
    let (new, delete) = (0, 2); // NFT_MSG_NEWTABLE, NFT_MSG_DELTABLE
    let mut body = attribute(1, TABLE); // NFTA_TABLE_NAME
    if wanted {
        let owner: u32 = 2; // NFT_TABLE_F_OWNER
        body.extend(attribute(2, &owner.to_be_bytes())); // NFTA_TABLE_FLAGS
    }
    Message {
        kind: if wanted { new } else { delete },
        create: wanted,
        body,
    }
}

fn chain() -> Message {
    let output: u32 = 3; // NF_INET_LOCAL_OUT
    let hook = [
        attribute(1, &output.to_be_bytes()),   // NFTA_HOOK_HOOKNUM
        attribute(2, &PRIORITY.to_be_bytes()), // NFTA_HOOK_PRIORITY
    ];
    let body = [
        attribute(1, TABLE),       // NFTA_CHAIN_TABLE
        attribute(3, CHAIN),       // NFTA_CHAIN_NAME
        nested(4, &hook.concat()), // NFTA_CHAIN_HOOK
        attribute(7, b"filter\0"), // NFTA_CHAIN_TYPE
    ];
    Message {
        kind: 3, // NFT_MSG_NEWCHAIN
        create: true,
        body: body.concat(),
    }
}

/// `oif lo meta mark != CRIU_MARK drop`.
fn rule() -> Message {
    let (oif, mark) = (5, 3); // NFT_META_OIF, NFT_META_MARK
    let (equal, unequal) = (0, 1); // NFT_CMP_EQ, NFT_CMP_NEQ
    let expressions = [
        load(oif),
        compare(equal, LOOPBACK_INDEX),
        load(mark),
        compare(unequal, CRIU_MARK),
        drop_packet(),
    ];
    let body = [
        attribute(1, TABLE),              // NFTA_RULE_TABLE
        attribute(2, CHAIN),              // NFTA_RULE_CHAIN
        nested(4, &expressions.concat()), // NFTA_RULE_EXPRESSIONS
    ];
    Message {
        kind: 6, // NFT_MSG_NEWRULE
        create: true,
        body: body.concat(),
    }
}

fn expression(name: &[u8], data: &[u8]) -> Vec<u8> {
    let parts = [
        attribute(1, name), // NFTA_EXPR_NAME
        nested(2, data),    // NFTA_EXPR_DATA
    ];
    nested(1, &parts.concat()) // NFTA_LIST_ELEM
}

/// The register that a rule works with, `NFT_REG_1`.
const REGISTER: u32 = 1;

fn load(what: u32) -> Vec<u8> {
    let parts = [
        attribute(1, &REGISTER.to_be_bytes()), // NFTA_META_DREG
        attribute(2, &what.to_be_bytes()),     // NFTA_META_KEY
    ];
    expression(b"meta\0", &parts.concat())
}

/// Goes on with the rule if the register holds what it shall; these two are in the host's order.
fn compare(how: u32, value: u32) -> Vec<u8> {
    let parts = [
        attribute(1, &REGISTER.to_be_bytes()),          // NFTA_CMP_SREG
        attribute(2, &how.to_be_bytes()),               // NFTA_CMP_OP
        nested(3, &attribute(1, &value.to_ne_bytes())), // NFTA_CMP_DATA, NFTA_DATA_VALUE
    ];
    expression(b"cmp\0", &parts.concat())
}

fn drop_packet() -> Vec<u8> {
    let (verdict, drop): (u32, u32) = (0, 0); // NFT_REG_VERDICT, NF_DROP
    let code = attribute(1, &drop.to_be_bytes()); // NFTA_VERDICT_CODE
    let parts = [
        attribute(1, &verdict.to_be_bytes()), // NFTA_IMMEDIATE_DREG
        nested(2, &nested(2, &code)),         // NFTA_IMMEDIATE_DATA, NFTA_DATA_VERDICT
    ];
    expression(b"immediate\0", &parts.concat())
}

#[cfg(test)]
mod test {
    use std::fs::File;
    use std::net::UdpSocket;
    use std::process::Command;
    use std::time::Duration;

    use nix::sched::unshare;

    use super::*;

    /// A namespace whose loopback device is up, entered by the calling thread.
    fn enter_a_namespace() -> Option<File> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED loopback: needs root");
            return None;
        }
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let up = Command::new("ip")
            .args(["link", "set", "lo", "up"])
            .status();
        assert!(up.unwrap().success());
        Some(File::open("/proc/thread-self/ns/net").unwrap())
    }

    fn arrives(from: &UdpSocket, to: &UdpSocket) -> bool {
        let sent = from.send_to(b"x", to.local_addr().unwrap());
        sent.is_ok() && to.recv(&mut [0; 4]).is_ok()
    }

    fn bound(address: &str) -> UdpSocket {
        let socket = UdpSocket::bind((address, 0)).unwrap();
        let patience = Some(Duration::from_millis(50));
        socket.set_read_timeout(patience).unwrap();
        socket
    }

    #[test]
    fn nothing_is_sent_while_it_is_held_but_what_criu_makes() {
        let Some(netns) = enter_a_namespace() else {
            return;
        };
        for address in ["127.0.0.1", "::1"] {
            let (from, to) = (bound(address), bound(address));
            assert!(arrives(&from, &to), "before");
            let hold = Hold::new(netns.as_fd()).unwrap();
            assert!(!arrives(&from, &to), "while it is held");
            setsockopt(&from, sockopt::Mark, &CRIU_MARK).unwrap();
            assert!(arrives(&from, &to), "with CRIU's mark");
            setsockopt(&from, sockopt::Mark, &0).unwrap();
            hold.lift().unwrap();
            assert!(arrives(&from, &to), "after");
        }
    }

    #[test]
    fn it_ends_with_its_holder() {
        let Some(netns) = enter_a_namespace() else {
            return;
        };
        let (from, to) = (bound("127.0.0.1"), bound("127.0.0.1"));
        let hold = Hold::new(netns.as_fd()).unwrap();
        assert!(!arrives(&from, &to));
        drop(hold);
        assert!(arrives(&from, &to));
    }
}
