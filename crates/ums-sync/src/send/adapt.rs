//! Whether to compress the next block: a pure decision from what the last ones showed.
//!
//! Compressing and writing overlap, so a block takes as long as the slower of the two. Compressed,
//! that is the compressor at its rate or the network at its rate times the ratio; as it is, the
//! network at its rate. Compression pays when the former is clearly faster.

use std::time::Duration;

/// Compression has to be this much faster: it costs the service's host CPU time.
const GAIN_MIN: f64 = 1.1;

/// Blocks that are left alone after a try that didn't pay, at first …
const PAUSE_MIN: u32 = 4;

/// … and at most, after many of them (16 MiB): memory is not the same everywhere.
const PAUSE_MAX: u32 = 64;

/// Weight of the newest measurement.
const WEIGHT: f64 = 0.25;

/// What is known of compressing this stream.
#[derive(Debug, Clone)]
pub(super) struct Adapt {
    /// Bytes in for each byte out.
    ratio: Option<f64>,
    /// Bytes in per second.
    rate: Option<f64>,
    pause: u32,
    pause_next: u32,
}

impl Default for Adapt {
    fn default() -> Self {
        Self {
            ratio: None,
            rate: None,
            pause: 0,
            pause_next: PAUSE_MIN,
        }
    }
}

impl Adapt {
    /// Whether to compress the next block.
    pub(super) fn choose(&mut self) -> bool {
        if self.pause > 0 {
            self.pause -= 1;
            return false;
        }
        true
    }

    /// Learns from a block that was compressed. `link` is the network's rate in bytes per second,
    /// 0 while it isn't known.
    pub(super) fn record(&mut self, raw: usize, carried: usize, took: Duration, link: u64) {
        let ratio = raw as f64 / carried.max(1) as f64;
        let rate = raw as f64 / took.as_secs_f64().max(1e-9);
        let ratio = average(&mut self.ratio, ratio);
        let rate = average(&mut self.rate, rate);
        if pays(ratio, rate, link) {
            self.pause_next = PAUSE_MIN;
            return;
        }
        self.pause = self.pause_next;
        self.pause_next = (self.pause_next * 2).min(PAUSE_MAX);
        // What comes after the pause is other memory: it is judged by itself.
        self.ratio = None;
    }
}

fn pays(ratio: f64, rate: f64, link: u64) -> bool {
    if link == 0 {
        return ratio >= GAIN_MIN;
    }
    let link = link as f64;
    rate.min(link * ratio) >= link * GAIN_MIN
}

fn average(kept: &mut Option<f64>, new: f64) -> f64 {
    let next = kept.map_or(new, |old| old + WEIGHT * (new - old));
    *kept = Some(next);
    next
}

#[cfg(test)]
mod test {
    use super::*;

    const BLOCK: usize = 256 * 1024;
    const GIGABIT: u64 = 118_000_000;

    /// 500 MB/s.
    const TOOK: Duration = Duration::from_micros(524);

    /// How many of `blocks` are compressed, each shrinking to `carried` bytes.
    fn run(adapt: &mut Adapt, blocks: usize, carried: usize, link: u64) -> usize {
        let mut tried = 0;
        for _ in 0..blocks {
            if adapt.choose() {
                tried += 1;
                adapt.record(BLOCK, carried, TOOK, link);
            }
        }
        tried
    }

    #[test]
    fn compressible_memory_is_compressed_on_a_slow_network() {
        assert_eq!(run(&mut Adapt::default(), 1000, BLOCK / 3, GIGABIT), 1000);
        assert_eq!(run(&mut Adapt::default(), 1000, BLOCK / 3, 0), 1000);
    }

    #[test]
    fn incompressible_memory_is_left_alone_but_tried_again() {
        let mut adapt = Adapt::default();
        let tried = run(&mut adapt, 10_000, BLOCK, GIGABIT);
        assert!((100..=170).contains(&tried), "{tried}");
        // When memory becomes compressible, at most one pause goes by.
        let tried = run(&mut adapt, 1000, BLOCK / 4, GIGABIT);
        assert!(tried >= 1000 - PAUSE_MAX as usize, "{tried}");
    }

    #[test]
    fn a_network_faster_than_the_compressor_gets_pages_as_they_are() {
        let mut adapt = Adapt::default();
        let tried = run(&mut adapt, 10_000, BLOCK / 10, 1_200_000_000);
        assert!(tried < 200, "{tried}");
        // A link that turns out slow is noticed.
        let tried = run(&mut adapt, 1000, BLOCK / 10, GIGABIT);
        assert!(tried >= 1000 - PAUSE_MAX as usize, "{tried}");
    }

    #[test]
    fn nothing_measured_is_no_division_by_zero() {
        let mut adapt = Adapt::default();
        assert!(adapt.choose());
        adapt.record(0, 0, Duration::ZERO, 0);
        adapt.record(BLOCK, 0, Duration::ZERO, u64::MAX);
    }
}
