//! Counters of eventfds that need more than 32 bits: the first value of an eventfd, which is what CRIU
//! gives, has no more (eventfd(2)).

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use serde::{Deserialize, Serialize};
use ums_core::facts::LossKind;

use super::Lost;
use super::descriptor::{Place, Reach};

/// An eventfd whose counter CRIU cuts off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Event {
    place: Place,
    count: u64,
}

/// Looks at the eventfd of a frozen process.
pub(super) fn capture(event: &OwnedFd, place: Place) -> io::Result<Option<Event>> {
    let count = count(event)?;
    Ok((count > u64::from(u32::MAX)).then_some(Event { place, count }))
}

/// Sets the counters of restored processes, which have not run yet. What several descriptors lead to is
/// set once: there is nothing to add any more.
pub(super) fn apply(events: &[Event], reach: &Reach) -> Vec<Lost> {
    let set = |event: &Event| {
        let Event { place, count } = event;
        let result = reach.get(*place).and_then(|copy| raise(&copy, *count));
        let error = result.err()?;
        let detail = format!(
            "the counter {count} behind descriptor {}: {error}",
            place.fd
        );
        Some(Lost::new(LossKind::ProcessAttribute, place.pid, detail))
    };
    events.iter().filter_map(set).collect()
}

/// Never blocks: what is added does not exceed what the counter had at the source.
fn raise(event: &OwnedFd, wanted: u64) -> io::Result<()> {
    match wanted.saturating_sub(count(event)?) {
        0 => Ok(()),
        more => rustix::io::write(event, &more.to_ne_bytes())
            .map(drop)
            .map_err(io::Error::from),
    }
}

fn count(event: &OwnedFd) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", event.as_raw_fd()))?;
    parse(&text).ok_or(io::ErrorKind::InvalidData.into())
}

fn parse(text: &str) -> Option<u64> {
    let mut lines = text.lines();
    let count = lines.find_map(|line| line.strip_prefix("eventfd-count:"))?;
    u64::from_str_radix(count.trim(), 16).ok()
}

#[cfg(test)]
mod test {
    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    const PLACE: Place = Place::behind(1, 3);

    #[test]
    fn a_counter_that_is_cut_off_is_raised_once() {
        let wanted = 1 << 40 | 12_345;
        let source = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        assert_eq!(capture(&source, PLACE).unwrap(), None);
        raise(&source, wanted).unwrap();
        let seen = capture(&source, PLACE).unwrap().unwrap();
        let restored = eventfd(seen.count as u32, EventfdFlags::NONBLOCK).unwrap();
        raise(&restored, seen.count).unwrap();
        raise(&restored, seen.count).unwrap();
        assert_eq!(count(&restored).unwrap(), wanted);
    }

    #[test]
    fn fdinfo_is_understood() {
        let text = "pos:\t0\neventfd-count:               1f\neventfd-id: 8\n";
        assert_eq!(parse(text), Some(31));
        assert_eq!(parse("pos:\t0\n"), None);
    }
}
