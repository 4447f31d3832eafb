//! Changes of a network namespace's rules by nf_tables' own messages, for when there is no time for a program:
//! netlink(7), kernel `include/uapi/linux/netfilter/nfnetlink.h` and `nf_tables.h`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;

/// The kernel answers at once.
const ANSWER_WITHIN_SECONDS: i64 = 5;
/// Answers are a header and the header that they answer.
const ANSWER_LEN_MAX: usize = 8192;

/// `NFNL_SUBSYS_NFTABLES`.
const NFTABLES: u16 = 10;
/// `NFNL_MSG_BATCH_BEGIN` and `NFNL_MSG_BATCH_END`.
const BATCH: [u16; 2] = [16, 17];
/// `NLMSG_ERROR`: an error, or with the code 0 an acknowledgement.
const ERROR: u16 = 2;
/// `NLM_F_REQUEST`, `NLM_F_ACK`, `NLM_F_CREATE`.
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const CREATE: u16 = 0x400;
/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;
/// `NFPROTO_INET`: both versions of IP.
const INET: u8 = 1;
/// Length of `nlmsghdr`, and of an attribute's head.
const HEADER: usize = 16;
const ATTRIBUTE_HEAD: usize = 4;

/// `NFT_REG_VERDICT`, `NFT_GOTO`.
const VERDICT: u32 = 0;
const GOTO: i32 = -4;

/// A change of the rules.
pub struct Message {
    /// `NFT_MSG_*`.
    pub(crate) kind: u16,
    /// Whether it makes something new.
    pub(crate) create: bool,
    /// Its attributes.
    pub(crate) body: Vec<u8>,
}

/// A socket by which the rules of one network namespace are changed.
///
/// The kernel waits for other processors when one is closed (`nft_rcv_nl_event`, 5 to 20 ms), and lets nobody change any
/// rules meanwhile: it is worth keeping for the next time. It keeps its namespace in being.
#[derive(Debug)]
pub struct Socket(OwnedFd);

impl Socket {
    /// A socket in another network namespace than ours. Blocks.
    ///
    /// # Errors
    /// The namespace can't be entered (CAP_SYS_ADMIN), or the kernel has no nf_tables.
    pub fn in_namespace(netns: BorrowedFd<'_>) -> io::Result<Self> {
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
        let joined = thread.join();
        let made = joined.map_err(|_| io::Error::other("network namespace thread"))?;
        made.map(Self)
    }

    /// Makes changes in one transaction, all or none, and waits until it is made. Blocks.
    ///
    /// # Errors
    /// What the kernel says; nothing was changed then, unless it did not answer in time. The socket is not to be used
    /// again, for answers may still be in it.
    pub fn change(&self, changes: &[Message]) -> io::Result<()> {
        let batch = batch(changes);
        send(self.0.as_raw_fd(), &batch, MsgFlags::empty())?;
        let mut answer = vec![0; ANSWER_LEN_MAX];
        for _ in changes {
            let len = recv(self.0.as_raw_fd(), &mut answer, MsgFlags::empty())?;
            verdict(&answer[..len])?;
        }
        Ok(())
    }
}

/// Removes all rules of a chain in a table of the family `inet`.
pub fn flush_chain(table: &str, chain: &str) -> Message {
    let body = [
        attribute(1, &text(table)), // NFTA_RULE_TABLE
        attribute(2, &text(chain)), // NFTA_RULE_CHAIN
    ];
    Message {
        kind: 8, // NFT_MSG_DELRULE
        create: false,
        body: body.concat(),
    }
}

/// Adds a rule to such a chain by which all packets go on in another one.
pub fn goto(table: &str, chain: &str, to: &str) -> Message {
    let to = [
        attribute(1, &GOTO.to_be_bytes()), // NFTA_VERDICT_CODE
        attribute(2, &text(to)),           // NFTA_VERDICT_CHAIN
    ];
    let immediate = [
        attribute(1, &VERDICT.to_be_bytes()), // NFTA_IMMEDIATE_DREG
        nested(2, &nested(2, &to.concat())),  // NFTA_IMMEDIATE_DATA, NFTA_DATA_VERDICT
    ];
    let body = [
        attribute(1, &text(table)), // NFTA_RULE_TABLE
        attribute(2, &text(chain)), // NFTA_RULE_CHAIN
        nested(4, &expression(b"immediate\0", &immediate.concat())), // NFTA_RULE_EXPRESSIONS
    ];
    Message {
        kind: 6, // NFT_MSG_NEWRULE
        create: true,
        body: body.concat(),
    }
}

/// Removes all elements of a set in such a table.
pub fn flush_set(table: &str, set: &str) -> Message {
    let body = [
        attribute(1, &text(table)), // NFTA_SET_ELEM_LIST_TABLE
        attribute(2, &text(set)),   // NFTA_SET_ELEM_LIST_SET
    ];
    Message {
        kind: 14, // NFT_MSG_DELSETELEM
        create: false,
        body: body.concat(),
    }
}

/// One expression of a rule.
pub(crate) fn expression(name: &[u8], data: &[u8]) -> Vec<u8> {
    let parts = [
        attribute(1, name), // NFTA_EXPR_NAME
        nested(2, data),    // NFTA_EXPR_DATA
    ];
    nested(1, &parts.concat()) // NFTA_LIST_ELEM
}

fn text(name: &str) -> Vec<u8> {
    [name.as_bytes(), b"\0"].concat()
}

/// Changes that are made together or not at all; each is acknowledged.
fn batch(changes: &[Message]) -> Vec<u8> {
    let [begin, end] = BATCH.map(|kind| packet((kind, REQUEST), (0, NFTABLES), &[]));
    let mut batch = begin;
    for change in changes {
        let create = if change.create { CREATE } else { 0 };
        let kind = NFTABLES << 8 | change.kind;
        let head = (kind, REQUEST | ACK | create);
        batch.extend(packet(head, (INET, 0), &change.body));
    }
    batch.extend(end);
    batch
}

/// `nlmsghdr`, `nfgenmsg` and what follows.
fn packet((kind, flags): (u16, u16), (family, resource): (u8, u16), body: &[u8]) -> Vec<u8> {
    let len = HEADER + ATTRIBUTE_HEAD + body.len();
    // All of them are some hundred bytes.
    let mut packet = u32::try_from(len)
        .unwrap_or(u32::MAX)
        .to_ne_bytes()
        .to_vec();
    packet.extend(kind.to_ne_bytes());
    packet.extend(flags.to_ne_bytes());
    packet.extend([0; 8]);
    packet.extend([family, 0]);
    packet.extend(resource.to_be_bytes());
    packet.extend(body);
    packet
}

/// An attribute, and what fills it up to the next one's place.
pub fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let len = ATTRIBUTE_HEAD + value.len();
    let mut attribute = u16::try_from(len)
        .unwrap_or(u16::MAX)
        .to_ne_bytes()
        .to_vec();
    attribute.extend(kind.to_ne_bytes());
    attribute.extend(value);
    attribute.resize(len.next_multiple_of(4), 0);
    attribute
}

/// An attribute that consists of attributes.
pub fn nested(kind: u16, attributes: &[u8]) -> Vec<u8> {
    attribute(kind | NESTED, attributes)
}

/// What an answer says.
fn verdict(answer: &[u8]) -> io::Result<()> {
    let kind = answer.get(4..6).map(|kind| [kind[0], kind[1]]);
    let code = answer.get(HEADER..).and_then(<[u8]>::first_chunk::<4>);
    match (kind.map(u16::from_ne_bytes), code) {
        (Some(ERROR), Some([0, 0, 0, 0])) => Ok(()),
        (Some(ERROR), Some(code)) => {
            let errno = i32::from_ne_bytes(*code).saturating_neg();
            Err(io::Error::from_raw_os_error(errno))
        }
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "nf_tables gave an answer that is none",
        )),
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn attributes_are_filled_up_and_answers_are_read() {
        assert_eq!(attribute(1, b"a\0"), [6, 0, 1, 0, b'a', 0, 0, 0]);
        assert_eq!(nested(2, &[1, 2, 3, 4]), [8, 0, 2, 0x80, 1, 2, 3, 4]);
        let answer = |code: i32| {
            let mut answer = packet((ERROR, 0), (0, 0), &[]);
            answer[HEADER..].copy_from_slice(&code.to_ne_bytes());
            answer
        };
        assert!(verdict(&answer(0)).is_ok());
        let refused = verdict(&answer(-1)).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(1));
        assert!(verdict(&[]).is_err());
    }
}
