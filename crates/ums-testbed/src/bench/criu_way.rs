//! CRIU's own dump and restore of the same container, on one node and with nothing in between: what is left when
//! everything else is taken away.

use std::time::Instant;

use anyhow::{Context, Result};
use prost::Message;

use super::Sample;
use super::paper_way::{Way, checkpoint, restore, verified};

/// Two magic numbers and a length come before the entry (CRIU's `criu/include/magic.h` and `protobuf.c`).
const HEAD: usize = 12;

/// `stats_entry` of CRIU's `images/stats.proto`, as far as it is read here.
#[derive(Clone, PartialEq, Message)]
struct Stats {
    #[prost(message, optional, tag = "1")]
    dump: Option<Dump>,
    #[prost(message, optional, tag = "2")]
    restore: Option<Restore>,
}

/// `dump_stats_entry`; microseconds.
#[derive(Clone, PartialEq, Message)]
struct Dump {
    #[prost(uint32, tag = "1")]
    freezing_time: u32,
    #[prost(uint32, tag = "2")]
    frozen_time: u32,
}

/// `restore_stats_entry`; microseconds.
#[derive(Clone, PartialEq, Message)]
struct Restore {
    #[prost(uint32, tag = "4")]
    restore_time: u32,
}

/// Dumps the hog and restores it where it was. Its downtime is what CRIU says that it took, without `runc` around it.
pub(super) fn moved(way: &Way<'_>) -> Result<Sample> {
    let began = Instant::now();
    checkpoint(&way.from)?;
    restore(&way.from)?;
    let total = began.elapsed();
    let sample = verified(way, &way.from, total)?;
    let images = way.from.system.outside(&way.from.images());
    let read = |name: &str| -> Result<Stats> {
        let bytes = std::fs::read(images.join(name)).context("CRIU left no figures")?;
        Ok(Stats::decode(bytes.get(HEAD..).unwrap_or_default())?)
    };
    let dump = read("stats-dump")?.dump.context("no figures of the dump")?;
    let restored = read("stats-restore")?.restore;
    let restored = restored.context("no figures of the restore")?;
    let us = [dump.freezing_time, dump.frozen_time, restored.restore_time].map(f64::from);
    Ok(Sample {
        downtime_ms: Some(us.iter().sum::<f64>() / 1e3),
        ..sample
    })
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn figures_are_read_as_criu_writes_them() {
        // Tags 1 (message) with 1 and 2 (numbers), and one that is not read.
        let bytes = [0x0a, 0x07, 0x08, 0x05, 0x10, 0xac, 0x02, 0x18, 0x01];
        let stats = Stats::decode(&bytes[..]).unwrap();
        let dump = stats.dump.unwrap();
        assert_eq!((dump.freezing_time, dump.frozen_time), (5, 300));
        assert_eq!(stats.restore, None);
    }
}
