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
//! In a dump nothing leaves by TCP either ([`What::Connections`]): what arrives is held by our caller already,
//! so there is nothing else that the kernel could say for the frozen service; and our caller's own rules for
//! that, which take programs, need not be waited for until the dump is over.
//!
//! The table belongs to our netlink socket (`NFT_TABLE_F_OWNER`, Linux 5.12): the kernel removes it
//! when the socket is closed, so it can't outlive the keeper, however that ends. It is set and lifted
//! by one message each, without a program, right at the notification of CRIU that it is needed for.
//! The socket is kept for the next time: to close one, the kernel waits until no processor looks at rules
//! that were there before (`nft_rcv_nl_event`, 5 to 20 ms), and lets nobody change any meanwhile.
//!
//! Messages: kernel `include/uapi/linux/netfilter/nf_tables.h`, `nfnetlink.h`; netlink(7).

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::nf_tables::{Message, Socket, attribute, expression, nested};

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
/// What is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    /// What the service sends to itself.
    Loopback,
    /// That, and all that its connections send.
    Connections,
}

/// Who holds, of one network namespace.
#[derive(Debug, Default)]
pub(crate) struct Holder(Mutex<Option<Socket>>);

/// While it lives nothing is sent over the loopback device of a network namespace.
#[derive(Debug)]
pub(crate) struct Hold<'a> {
    socket: Option<Socket>,
    holder: &'a Holder,
}

impl Holder {
    /// Holds what is sent over the loopback device of this network namespace, always the same, from now on.
    ///
    /// # Errors
    /// The namespace can't be entered, or the kernel has no nf_tables, or none with owners.
    pub(crate) fn hold(&self, netns: BorrowedFd<'_>, what: What) -> io::Result<Hold<'_>> {
        let kept = self.kept().take();
        let socket = kept.map_or_else(|| Socket::in_namespace(netns), Ok)?;
        let mut changes = vec![table(true), chain(), rule(to_itself())];
        if what == What::Connections {
            changes.push(rule(by_tcp()));
        }
        socket.change(&changes)?;
        let (socket, holder) = (Some(socket), self);
        Ok(Hold { socket, holder })
    }

    fn kept(&self) -> MutexGuard<'_, Option<Socket>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Hold<'_> {
    /// Lets packets pass again. What was held is sent again by who sent it.
    pub(crate) fn lift(mut self) -> io::Result<()> {
        self.lift_once()
    }

    fn lift_once(&mut self) -> io::Result<()> {
        let Some(socket) = self.socket.take() else {
            return Ok(());
        };
        // If this fails, the end of the socket does it.
        socket.change(&[table(false)])?;
        *self.holder.kept() = Some(socket);
        Ok(())
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.lift_once() {
            tracing::warn!(%error, "what the service sends to itself was held a moment longer");
        }
    }
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

const EQUAL: u32 = 0; // NFT_CMP_EQ
const UNEQUAL: u32 = 1; // NFT_CMP_NEQ

/// `oif lo`.
fn to_itself() -> Vec<u8> {
    let oif = 5; // NFT_META_OIF
    [load(oif), compare(EQUAL, &LOOPBACK_INDEX.to_ne_bytes())].concat()
}

/// `meta l4proto tcp`.
fn by_tcp() -> Vec<u8> {
    let l4proto = 16; // NFT_META_L4PROTO
    [load(l4proto), compare(EQUAL, &[6])].concat()
}

/// Drops packets of this kind `meta mark != CRIU_MARK`.
fn rule(kind: Vec<u8>) -> Message {
    let mark = 3; // NFT_META_MARK
    let expressions = [
        kind,
        load(mark),
        compare(UNEQUAL, &CRIU_MARK.to_ne_bytes()),
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

/// The register that a rule works with, `NFT_REG_1`.
const REGISTER: u32 = 1;

fn load(what: u32) -> Vec<u8> {
    let parts = [
        attribute(1, &REGISTER.to_be_bytes()), // NFTA_META_DREG
        attribute(2, &what.to_be_bytes()),     // NFTA_META_KEY
    ];
    expression(b"meta\0", &parts.concat())
}

/// Goes on with the rule if the register holds what it shall; numbers in it are in the host's order.
fn compare(how: u32, value: &[u8]) -> Vec<u8> {
    let parts = [
        attribute(1, &REGISTER.to_be_bytes()), // NFTA_CMP_SREG
        attribute(2, &how.to_be_bytes()),      // NFTA_CMP_OP
        nested(3, &attribute(1, value)),       // NFTA_CMP_DATA, NFTA_DATA_VALUE
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
    use std::os::fd::AsFd;
    use std::process::Command;
    use std::time::Duration;

    use nix::sched::{CloneFlags, unshare};
    use nix::sys::socket::{setsockopt, sockopt};

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
        let holder = Holder::default();
        for address in ["127.0.0.1", "::1"] {
            let (from, to) = (bound(address), bound(address));
            assert!(arrives(&from, &to), "before");
            let hold = holder.hold(netns.as_fd(), What::Loopback).unwrap();
            assert!(!arrives(&from, &to), "while it is held");
            setsockopt(&from, sockopt::Mark, &CRIU_MARK).unwrap();
            assert!(arrives(&from, &to), "with CRIU's mark");
            setsockopt(&from, sockopt::Mark, &0).unwrap();
            hold.lift().unwrap();
            assert!(arrives(&from, &to), "after");
        }
    }

    /// Packets that left by a device.
    fn sent(device: &str) -> u64 {
        let text = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
        let line = text
            .lines()
            .find_map(|line| line.trim().strip_prefix(device)?.strip_prefix(':'));
        let packets = line.and_then(|line| line.split_whitespace().nth(9));
        packets.unwrap().parse().unwrap()
    }

    #[test]
    fn connections_send_nothing_while_they_are_held_but_datagrams_leave() {
        let Some(netns) = enter_a_namespace() else {
            return;
        };
        for words in [
            "link add v0 type veth peer name v1",
            "link set v0 up",
            "link set v1 up",
            "addr add 198.51.100.1/24 dev v0",
            "neigh add 198.51.100.9 lladdr 02:00:00:00:00:09 dev v0",
        ] {
            let done = Command::new("ip").args(words.split(' ')).status();
            assert!(done.unwrap().success(), "ip {words}");
        }
        // Nothing of its own accord leaves.
        std::fs::write("/proc/sys/net/ipv6/conf/v0/disable_ipv6", "1").unwrap();
        let address = "198.51.100.9:9".parse().unwrap();
        let connect = || {
            let before = sent("v0");
            let moment = Duration::from_millis(50);
            assert!(std::net::TcpStream::connect_timeout(&address, moment).is_err());
            sent("v0") - before
        };
        assert!(connect() > 0);
        let holder = Holder::default();
        let hold = holder.hold(netns.as_fd(), What::Loopback).unwrap();
        assert!(connect() > 0, "only what it sends to itself is held");
        hold.lift().unwrap();
        let hold = holder.hold(netns.as_fd(), What::Connections).unwrap();
        assert_eq!(connect(), 0);
        let before = sent("v0");
        bound("0.0.0.0").send_to(b"x", address).unwrap();
        assert_eq!(sent("v0") - before, 1);
        hold.lift().unwrap();
        assert!(connect() > 0);
    }

    #[test]
    fn it_ends_with_its_holder() {
        let Some(netns) = enter_a_namespace() else {
            return;
        };
        let (from, to) = (bound("127.0.0.1"), bound("127.0.0.1"));
        let holder = Holder::default();
        let hold = holder.hold(netns.as_fd(), What::Loopback).unwrap();
        assert!(!arrives(&from, &to));
        drop(hold);
        assert!(arrives(&from, &to));
        assert!(
            holder.kept().is_some(),
            "its socket is there for the next time"
        );
        let mut hold = holder.hold(netns.as_fd(), What::Loopback).unwrap();
        // As when the process ends.
        drop(hold.socket.take());
        assert!(arrives(&from, &to));
    }
}
