//! Packets in datagrams, whatever the sizes of both.
//!
//! A datagram is a row of chunks, each a part of one packet or a whole one:
//!
//! ```text
//! ┌───────────┬─────────────┬──────────────┬──────────────┬────────────────┐
//! │ id  4     │ total  2    │ offset  2    │ length  2    │ length bytes   │ …
//! └───────────┴─────────────┴──────────────┴──────────────┴────────────────┘
//! ```
//!
//! Numbers are big-endian. `id` counts packets, `total` is the packet's length, `offset` is where
//! in the packet the chunk begins. A packet that doesn't fit into what is left of a datagram goes
//! on in the next one: a stream of packets of 1,500 bytes through a path of 1,500 bytes so costs
//! little more than one datagram for each, instead of two. A lost datagram loses the packets of
//! which it carried a part, no others.

use std::collections::{HashMap, VecDeque};

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// The longest packet: `total` has 16 bits, as IP's own length has.
pub const PACKET_BYTES_MAX: usize = u16::MAX as usize;

/// The smallest datagram that is filled: QUIC guarantees 1,200 bytes for a packet.
pub const DATAGRAM_BYTES_MIN: usize = 256;

const HEADER_BYTES: usize = 10;

/// A packet is not begun in less room than this: the rest would be mostly headers.
const PART_BYTES_MIN: usize = 64;

/// Most packets of which a part is missing. Parts of one packet travel in consecutive datagrams,
/// so this is also by how many packets the path may reorder them. At most 8 MiB.
const INCOMPLETE_MAX: usize = 128;

/// Fills datagrams with packets.
#[derive(Debug, Default)]
pub struct Packer {
    next_id: u32,
    datagram: BytesMut,
}

impl Packer {
    /// Adds a packet; datagrams of at most `size` bytes that became full are handed to `full`.
    ///
    /// A packet longer than [`PACKET_BYTES_MAX`] can't exist; its end would be cut. A `size` below
    /// [`DATAGRAM_BYTES_MIN`] is taken as that.
    pub fn add(&mut self, packet: &[u8], size: usize, mut full: impl FnMut(Bytes)) {
        let packet = &packet[..packet.len().min(PACKET_BYTES_MAX)];
        let size = size.max(DATAGRAM_BYTES_MIN);
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        let mut offset = 0;
        while offset < packet.len() {
            let left = packet.len() - offset;
            let room = size
                .saturating_sub(self.datagram.len())
                .saturating_sub(HEADER_BYTES);
            if room < left.min(PART_BYTES_MIN) {
                full(self.datagram.split().freeze());
                continue;
            }
            let length = left.min(room);
            self.datagram.reserve(size - self.datagram.len());
            self.datagram.put_u32(id);
            for number in [packet.len(), offset, length] {
                self.datagram.put_u16(number as u16);
            }
            self.datagram.put_slice(&packet[offset..offset + length]);
            offset += length;
        }
    }

    /// The last datagram, which needn't be full; `None` if there is nothing in it.
    pub fn finish(&mut self) -> Option<Bytes> {
        (!self.datagram.is_empty()).then(|| self.datagram.split().freeze())
    }
}

/// Takes packets out of datagrams, and puts together those that were split.
#[derive(Debug, Default)]
pub struct Unpacker {
    partial: HashMap<u32, Partial>,
    order: VecDeque<u32>,
    incomplete: u64,
}

#[derive(Debug)]
struct Partial {
    bytes: BytesMut,
    missing: usize,
    /// Where the parts that are here begin and end.
    parts: Vec<(usize, usize)>,
}

impl Unpacker {
    /// Reads a datagram and hands over each packet that is whole now.
    pub fn read(&mut self, mut datagram: Bytes, mut whole: impl FnMut(Bytes)) {
        while !datagram.is_empty() {
            let Some(chunk) = Chunk::read(&mut datagram) else {
                self.incomplete += 1;
                return;
            };
            if chunk.bytes.len() == chunk.total {
                whole(chunk.bytes);
            } else if let Some(packet) = self.put(chunk) {
                whole(packet);
            }
        }
    }

    /// Packets given up so far because a part was missing too long, or made no sense.
    pub fn incomplete(&self) -> u64 {
        self.incomplete
    }

    fn put(&mut self, chunk: Chunk) -> Option<Bytes> {
        let id = chunk.id;
        if !self.partial.contains_key(&id) {
            self.make_room();
            self.order.push_back(id);
        }
        let partial = self.partial.entry(id).or_insert_with(|| Partial {
            bytes: BytesMut::zeroed(chunk.total),
            missing: chunk.total,
            parts: Vec::new(),
        });
        let fits = partial.put(&chunk);
        if fits && partial.missing > 0 {
            return None;
        }
        self.incomplete += u64::from(!fits);
        self.order.retain(|other| *other != id);
        let done = self.partial.remove(&id)?;
        fits.then(|| done.bytes.freeze())
    }

    fn make_room(&mut self) {
        while self.order.len() >= INCOMPLETE_MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.partial.remove(&oldest);
                self.incomplete += 1;
            }
        }
    }
}

impl Partial {
    /// Takes a part, unless it contradicts what is here.
    fn put(&mut self, chunk: &Chunk) -> bool {
        let (start, end) = (chunk.offset, chunk.offset + chunk.bytes.len());
        let overlaps = |&(from, to): &(usize, usize)| start < to && from < end;
        if chunk.total != self.bytes.len() || self.parts.iter().any(overlaps) {
            return false;
        }
        self.bytes[start..end].copy_from_slice(&chunk.bytes);
        self.missing -= chunk.bytes.len();
        self.parts.push((start, end));
        true
    }
}

struct Chunk {
    id: u32,
    total: usize,
    offset: usize,
    bytes: Bytes,
}

impl Chunk {
    fn read(from: &mut Bytes) -> Option<Self> {
        if from.len() < HEADER_BYTES {
            return None;
        }
        let id = from.get_u32();
        let [total, offset, length] = [(); 3].map(|()| usize::from(from.get_u16()));
        if length == 0 || length > from.len() || offset + length > total {
            return None;
        }
        Some(Self {
            id,
            total,
            offset,
            bytes: from.split_to(length),
        })
    }
}

#[cfg(test)]
mod test {
    use proptest::prelude::*;

    use super::*;

    fn pack(packets: &[Vec<u8>], sizes: &[usize]) -> Vec<Bytes> {
        let mut packer = Packer::default();
        let mut datagrams = Vec::new();
        for (packet, size) in packets.iter().zip(sizes.iter().cycle()) {
            packer.add(packet, *size, |datagram| {
                datagrams.push(datagram);
            });
        }
        datagrams.extend(packer.finish());
        datagrams
    }

    fn unpack(unpacker: &mut Unpacker, datagrams: impl IntoIterator<Item = Bytes>) -> Vec<Bytes> {
        let mut packets = Vec::new();
        for datagram in datagrams {
            unpacker.read(datagram, |packet| packets.push(packet));
        }
        packets
    }

    fn packets() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let length = prop_oneof![1usize..80, 1400usize..1600, 1usize..9000];
        let packet = (length, any::<u8>()).prop_map(|(length, seed)| {
            (0..length)
                .map(|at| (at as u8).wrapping_mul(31) ^ seed)
                .collect()
        });
        prop::collection::vec(packet, 0..40)
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out_in_order(
            packets in packets(), size in DATAGRAM_BYTES_MIN..1500usize,
        ) {
            let datagrams = pack(&packets, &[size]);
            prop_assert!(datagrams.iter().all(|datagram| datagram.len() <= size));
            let mut unpacker = Unpacker::default();
            let out = unpack(&mut unpacker, datagrams);
            prop_assert_eq!(out, packets);
            prop_assert_eq!(unpacker.incomplete(), 0);
            prop_assert!(unpacker.partial.is_empty() && unpacker.order.is_empty());
        }

        #[test]
        fn a_lost_datagram_loses_its_packets_only(
            packets in packets(), size in DATAGRAM_BYTES_MIN..1500usize, lost in any::<prop::sample::Index>(),
        ) {
            let mut datagrams = pack(&packets, &[size]);
            prop_assume!(!datagrams.is_empty());
            let mut lost = datagrams.remove(lost.index(datagrams.len()));
            let mut touched = Vec::new();
            while let Some(chunk) = Chunk::read(&mut lost) {
                touched.push(chunk.id as usize);
            }
            let kept: Vec<_> = packets.iter().enumerate()
                .filter(|(number, _)| !touched.contains(number))
                .map(|(_, packet)| packet.clone())
                .collect();
            prop_assert_eq!(unpack(&mut Unpacker::default(), datagrams), kept);
        }

        #[test]
        fn order_of_datagrams_does_not_matter(
            packets in packets(), size in 600usize..1500,
        ) {
            let mut datagrams = pack(&packets, &[size]);
            datagrams.truncate(INCOMPLETE_MAX);
            let mut whole = unpack(&mut Unpacker::default(), datagrams.clone());
            datagrams.reverse();
            let mut out = unpack(&mut Unpacker::default(), datagrams);
            whole.sort();
            out.sort();
            prop_assert_eq!(out, whole);
        }

        #[test]
        fn nothing_makes_it_panic_or_grow(
            datagrams in prop::collection::vec(prop::collection::vec(0u8..4, 0..60), 0..300),
        ) {
            let mut unpacker = Unpacker::default();
            unpack(&mut unpacker, datagrams.into_iter().map(Bytes::from));
            prop_assert!(unpacker.partial.len() <= INCOMPLETE_MAX);
            prop_assert_eq!(unpacker.partial.len(), unpacker.order.len());
        }
    }

    #[test]
    fn a_full_path_costs_little_more_than_one_datagram_a_packet() {
        let packets = vec![vec![7; 1500]; 100];
        let datagrams = pack(&packets, &[1420]);
        assert!(datagrams.len() <= 108, "{}", datagrams.len());
    }

    #[test]
    fn what_is_missing_is_given_up_after_enough_others() {
        let packets = vec![vec![1; 1500]; INCOMPLETE_MAX + 50];
        let mut packer = Packer::default();
        let mut unpacker = Unpacker::default();
        for packet in &packets {
            let mut first = None;
            packer.add(packet, 1400, |datagram| first = Some(datagram));
            packer.finish();
            assert!(unpack(&mut unpacker, first).is_empty());
        }
        assert_eq!(unpacker.incomplete(), 50);
    }

    #[test]
    fn parts_that_contradict_each_other_make_no_packet() {
        let chunk = |offset: u16, length: u16| {
            let mut bytes = BytesMut::new();
            bytes.put_u32(1);
            for number in [100, offset, length] {
                bytes.put_u16(number);
            }
            bytes.put_bytes(0, length.into());
            bytes.freeze()
        };
        let mut unpacker = Unpacker::default();
        assert!(unpack(&mut unpacker, [chunk(0, 60), chunk(50, 50)]).is_empty());
        assert_eq!(unpacker.incomplete(), 1);
        assert!(
            unpack(&mut unpacker, [chunk(90, 20)]).is_empty(),
            "beyond its end"
        );
        assert_eq!(unpacker.incomplete(), 2);
    }
}
