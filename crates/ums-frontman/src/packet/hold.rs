//! What is held: a queue with bounds.

use std::collections::VecDeque;

use bytes::Bytes;

/// Packets in the order in which they came.
#[derive(Debug)]
pub struct Hold {
    packets: VecDeque<Bytes>,
    bytes: usize,
    packets_max: usize,
    bytes_max: usize,
    peak: (usize, usize),
    dropped: u64,
}

impl Hold {
    /// An empty one with bounds.
    pub fn new(packets_max: usize, bytes_max: usize) -> Self {
        Self {
            packets: VecDeque::new(),
            bytes: 0,
            packets_max,
            bytes_max,
            peak: (0, 0),
            dropped: 0,
        }
    }

    /// Keeps a packet, or drops and counts it when a bound is reached: what came first is worth
    /// more, because what follows it is useless without.
    pub fn push(&mut self, packet: Bytes) {
        let bytes = self.bytes + packet.len();
        if self.packets.len() >= self.packets_max || bytes > self.bytes_max {
            self.dropped += 1;
            return;
        }
        self.packets.push_back(packet);
        self.bytes = bytes;
        self.peak = (self.peak.0.max(self.packets.len()), self.peak.1.max(bytes));
    }

    /// Takes at most `most` of the oldest packets out.
    pub fn take(&mut self, most: usize) -> Vec<Bytes> {
        let taken: Vec<Bytes> = self.packets.drain(..most.min(self.packets.len())).collect();
        self.bytes -= taken.iter().map(Bytes::len).sum::<usize>();
        taken
    }

    /// Puts packets that were taken, and went nowhere, back to the front. They were counted
    /// against the bounds before, so they are kept even if others have taken their place.
    pub fn put_back(&mut self, taken: impl DoubleEndedIterator<Item = Bytes>) {
        for packet in taken.rev() {
            self.bytes += packet.len();
            self.packets.push_front(packet);
        }
    }

    /// How many packets are held.
    pub fn len(&self) -> usize {
        self.packets.len()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// How many bytes are held.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The most packets and the most bytes that were held at one time.
    pub fn peak(&self) -> (usize, usize) {
        self.peak
    }

    /// Packets dropped because of a bound.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[cfg(test)]
mod test {
    use proptest::prelude::*;

    use super::*;

    fn packet(number: usize, length: usize) -> Bytes {
        let mut bytes = vec![0; length];
        bytes[..8].copy_from_slice(&(number as u64).to_be_bytes());
        bytes.into()
    }

    #[test]
    fn over_a_bound_the_newest_is_dropped() {
        let mut hold = Hold::new(3, 1000);
        for number in 0..5 {
            hold.push(packet(number, 100));
        }
        assert_eq!((hold.len(), hold.bytes(), hold.dropped()), (3, 300, 2));
        assert_eq!(hold.take(1), [packet(0, 100)]);
        hold.push(packet(5, 801));
        assert_eq!(hold.dropped(), 3, "its bytes are too many");
        hold.push(packet(6, 800));
        assert_eq!(
            hold.take(9),
            [packet(1, 100), packet(2, 100), packet(6, 800)]
        );
        assert_eq!(
            (hold.is_empty(), hold.bytes(), hold.peak()),
            (true, 0, (3, 1000))
        );
    }

    proptest! {
        #[test]
        fn order_survives_what_could_not_be_sent(
            steps in prop::collection::vec((0usize..5, 0usize..8, 0usize..8), 0..60),
        ) {
            let mut hold = Hold::new(usize::MAX, usize::MAX);
            let (mut pushed, mut sent) = (0, Vec::new());
            for (push, take, fail) in steps {
                for _ in 0..push {
                    hold.push(packet(pushed, 8));
                    pushed += 1;
                }
                let mut taken = hold.take(take);
                let unsent = taken.split_off(taken.len().saturating_sub(fail));
                sent.extend(taken);
                hold.put_back(unsent.into_iter());
                prop_assert_eq!(hold.bytes(), hold.len() * 8);
            }
            sent.extend(hold.take(usize::MAX));
            let expected: Vec<Bytes> = (0..pushed).map(|number| packet(number, 8)).collect();
            prop_assert_eq!(sent, expected);
        }
    }
}
