//! PAGEMAP_SCAN over a whole mapping.

use std::os::fd::BorrowedFd;

use nix::errno::Errno;

use super::Ranges;
use super::mappings::Mapping;
use super::sys::{
    CHECK_WPASYNC, IS_FILE, IS_GUARD, IS_PRESENT, IS_SWAPPED, IS_WRITTEN, IS_ZERO_FRAME, Query,
    Region, WP_MATCHING, scan,
};

/// Regions that one call tells.
const REGIONS: usize = 2048;

/// What a scan has found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Pages with content.
    pub(super) held: Ranges,
    /// Those of them that were written since the last scan that protected them.
    pub(super) written: Ranges,
}

/// What a scan does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Protects what it tells: what is written now is told again only when it is written again.
    Protect,
    /// Only asks, of a mapping that is tracked.
    Check,
    /// Asks of any mapping; what it tells as written means nothing.
    Ask,
}

/// Scans a mapping.
///
/// # Errors
/// Of the call. With [`Mode::Protect`] it is not known then what was protected already: all of the
/// mapping counts as written. `EPERM`, not with
/// [`Mode::Ask`]: a part of it is not tracked.
pub(super) fn mapping(pagemap: BorrowedFd<'_>, of: Mapping, mode: Mode) -> Result<Found, Errno> {
    without_guards(pagemap, of, |none_of| query(mode, none_of))
}

/// Pages with content that a private mapping has of its own: neither its file's nor the kernel's zeros.
///
/// # Errors
/// Of the call.
pub(crate) fn own_pages(pagemap: BorrowedFd<'_>, of: Mapping) -> Result<Ranges, Errno> {
    let own = |none_of| query(Mode::Ask, IS_FILE | none_of);
    without_guards(pagemap, of, own).map(|found| found.held)
}

/// A guard reads as nothing. Before Linux 6.15 it can't be told, and can't be read.
fn without_guards(
    pagemap: BorrowedFd<'_>,
    of: Mapping,
    query: impl Fn(u64) -> Query,
) -> Result<Found, Errno> {
    match with_query(pagemap, of, query(IS_GUARD)) {
        Err(Errno::EINVAL) => with_query(pagemap, of, query(0)),
        other => other,
    }
}

/// Guards of a mapping.
///
/// # Errors
/// Of the call: `EINVAL` and `ENOTTY` where the kernel can't tell.
pub(super) fn guards(pagemap: BorrowedFd<'_>, of: Mapping) -> Result<Ranges, Errno> {
    let guards = Query {
        flags: 0,
        any_of: IS_GUARD,
        none_of: 0,
        told: 0,
    };
    with_query(pagemap, of, guards).map(|found| found.held)
}

fn query(mode: Mode, none_of: u64) -> Query {
    Query {
        flags: match mode {
            Mode::Protect => WP_MATCHING | CHECK_WPASYNC,
            Mode::Check => CHECK_WPASYNC,
            Mode::Ask => 0,
        },
        any_of: IS_PRESENT | IS_SWAPPED,
        none_of,
        told: IS_WRITTEN | IS_ZERO_FRAME,
    }
}

fn with_query(pagemap: BorrowedFd<'_>, of: Mapping, query: Query) -> Result<Found, Errno> {
    let mut found = Found::default();
    let mut regions = vec![Region::default(); REGIONS];
    let mut at = of.start;
    while at < of.end {
        let (count, next) = scan(pagemap, (at, of.end), query, &mut regions)?;
        found.take(&regions[..count.min(REGIONS)]);
        // Each call goes on, or there would be no end.
        if next <= at {
            return Err(Errno::EIO);
        }
        at = next;
    }
    Ok(found)
}

impl Found {
    /// A page of the kernel's zeros has no content.
    fn take(&mut self, regions: &[Region]) {
        for region in regions {
            if region.categories & IS_ZERO_FRAME != 0 {
                continue;
            }
            self.held.insert(region.start, region.end);
            if region.categories & IS_WRITTEN != 0 {
                self.written.insert(region.start, region.end);
            }
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn what_is_held_and_what_is_written() {
        let region = |start, end, categories| Region {
            start,
            end,
            categories,
        };
        let mut found = Found::default();
        found.take(&[
            region(0x1000, 0x2000, IS_WRITTEN),
            region(0x2000, 0x4000, 0),
            region(0x4000, 0x5000, IS_WRITTEN | IS_ZERO_FRAME),
        ]);
        assert_eq!(found.held, Ranges::from_iter([(0x1000, 0x4000)]));
        assert_eq!(found.written, Ranges::from_iter([(0x1000, 0x2000)]));
    }
}
