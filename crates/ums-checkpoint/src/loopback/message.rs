//! The form of nf_tables' messages: netlink(7), kernel `include/uapi/linux/netfilter/nfnetlink.h`.

use std::io;

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

/// A change of the rules.
pub(super) struct Message {
    /// `NFT_MSG_*`.
    pub(super) kind: u16,
    /// Whether it makes something new.
    pub(super) create: bool,
    /// Its attributes.
    pub(super) body: Vec<u8>,
}

/// Changes that are made together or not at all; each is acknowledged.
pub(super) fn batch(changes: &[Message]) -> Vec<u8> {
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
pub(super) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
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
pub(super) fn nested(kind: u16, attributes: &[u8]) -> Vec<u8> {
    attribute(kind | NESTED, attributes)
}

/// What an answer says.
pub(super) fn verdict(answer: &[u8]) -> io::Result<()> {
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
