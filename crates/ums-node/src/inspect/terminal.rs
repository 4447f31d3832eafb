//! Terminals: CRIU carries pseudo-terminals whose both ends are in the service, with their sessions and
//! settings (its `tty.c`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use nix::sys::stat::{major, minor};
use ums_checkpoint::terminal::{self, Mode};
use ums_core::facts::{Loss, LossKind, Obstacle, ObstacleKind};

use super::process::Process;
use super::{descriptor, obstacle, parse, proc_file, proc_path};

/// CRIU's bound of a terminal's number (`MAX_PTY_INDEX`).
const NUMBER_MAX: u64 = 1000;
/// Slaves of pseudo-terminals in Linux's device list: so many majors, with so many of them each.
const SLAVES: (std::ops::RangeInclusive<u64>, u64) = (136..=143, 256);

/// One end of a terminal, or the way to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    /// `/dev/ptmx`, with the number of the slave.
    Master(u64),
    /// `/dev/pts/N`.
    Slave(u64),
    /// `/dev/tty`: whichever terminal controls the process.
    Controlling,
}

impl End {
    fn of(device: (u64, u64), info: impl FnOnce() -> Option<String>) -> Option<Self> {
        match device {
            (5, 0) => Some(Self::Controlling),
            (5, 2) => parse::terminal_number(&info()?).map(Self::Master),
            (major, minor) if SLAVES.0.contains(&major) => {
                Some(Self::Slave((major - SLAVES.0.start()) * SLAVES.1 + minor))
            }
            _ => None,
        }
    }
}

/// An end that a process has open.
#[derive(Debug, Clone, Copy)]
struct Open {
    end: End,
    inner: i32,
    mode: Option<Mode>,
    /// Whether the process leads the session of its terminal, and nobody else is in front.
    leads: bool,
}

/// What of the terminals of these processes can't be carried, and what is not the same after a move.
pub(super) fn look(tree: &[Process]) -> (Vec<Obstacle>, Vec<Loss>) {
    let all: Vec<Open> = tree.iter().flat_map(of).collect();
    (obstacles(&all), loss(&all).into_iter().collect())
}

fn of(process: &Process) -> Vec<Open> {
    let numbers = descriptor::numbers(process.pid).into_iter();
    numbers
        .filter_map(|number| {
            let metadata = fs::metadata(proc_path(process.pid, &format!("fd/{number}"))).ok()?;
            if !metadata.file_type().is_char_device() {
                return None;
            }
            let device = (major(metadata.rdev()), minor(metadata.rdev()));
            let info = || proc_file(process.pid, &format!("fdinfo/{number}"));
            let end = End::of(device, info)?;
            let mode = match end {
                End::Slave(_) => terminal::mode(process.pid, number.parse().ok()?),
                _ => None,
            };
            let stat = || proc_file(process.pid, "stat");
            Some(Open {
                end,
                inner: process.inner,
                mode,
                leads: end == End::Controlling
                    && stat().is_some_and(|stat| parse::leads_terminal(&stat)),
            })
        })
        .collect()
}

fn obstacles(all: &[Open]) -> Vec<Obstacle> {
    let ends: BTreeSet<End> = all.iter().map(|open| open.end).collect();
    // CRIU's `tty_verify_ctty`.
    let alone = all.iter().all(|open| open.inner == all[0].inner);
    let what = |open: &Open| match open.end {
        End::Controlling if alone && open.leads => None,
        End::Controlling => Some(
            "/dev/tty, which CRIU opens for one process alone: by its own name (tty(1)) it can be \
             carried"
                .to_owned(),
        ),
        End::Master(number) | End::Slave(number) if number > NUMBER_MAX => Some(format!(
            "/dev/pts/{number}, and CRIU counts to {NUMBER_MAX}"
        )),
        End::Slave(number)
            if open.mode != Some(Mode::HungUp) && !ends.contains(&End::Master(number)) =>
        {
            Some(format!(
                "/dev/pts/{number}, whose other end no process of the service has open"
            ))
        }
        _ => None,
    };
    all.iter()
        .filter_map(|open| Some(obstacle(ObstacleKind::Terminal, open.inner, what(open)?)))
        .collect()
}

/// CRIU takes out what was not read and writes it again from the other end: a terminal that echoes or
/// edits does that a second time. Told once for the service.
fn loss(all: &[Open]) -> Option<Loss> {
    let edits: BTreeMap<End, i32> = all
        .iter()
        .filter(|open| open.mode == Some(Mode::Edits))
        .map(|open| (open.end, open.inner))
        .collect();
    let (_, pid) = edits.first_key_value()?;
    let detail = format!(
        "in {} terminal(s) that edit lines a line without an end is lost, and what was not read yet may \
         be echoed a second time",
        edits.len()
    );
    Some(Loss {
        kind: LossKind::TerminalData,
        pid: *pid,
        detail,
    })
}

#[cfg(test)]
mod test {
    use super::*;

    fn open(end: End, mode: Option<Mode>) -> Open {
        Open {
            end,
            inner: 7,
            mode,
            leads: false,
        }
    }

    #[test]
    fn ends_by_their_devices() {
        let info = || Some("pos:\t0\nflags:\t02\ntty-index:\t17\n".to_owned());
        assert_eq!(End::of((5, 2), info), Some(End::Master(17)));
        assert_eq!(End::of((137, 3), info), Some(End::Slave(259)));
        assert_eq!(End::of((5, 0), info), Some(End::Controlling));
        assert_eq!(End::of((5, 2), || None), None);
        assert_eq!(End::of((1, 3), info), None);
    }

    #[test]
    fn both_ends_have_to_be_there() {
        let slave = open(End::Slave(3), Some(Mode::Edits));
        let master = open(End::Master(3), None);
        assert_eq!(obstacles(&[slave, master]), []);
        let found = obstacles(&[slave]);
        assert_eq!(found.len(), 1);
        assert!(found[0].detail.contains("/dev/pts/3"), "{found:?}");
        assert_eq!(obstacles(&[open(End::Slave(3), Some(Mode::HungUp))]), []);
        assert_eq!(obstacles(&[master]), [], "a master alone is carried");
    }

    #[test]
    fn what_criu_does_not_open_or_count() {
        let found = obstacles(&[open(End::Controlling, None), open(End::Master(1001), None)]);
        assert_eq!(found.len(), 2);
        assert!(found[0].detail.contains("/dev/tty"), "{found:?}");
        assert!(found[1].detail.contains("/dev/pts/1001"), "{found:?}");
        let leads = |end| Open {
            leads: true,
            ..open(end, Some(Mode::Raw))
        };
        let both = [leads(End::Controlling), leads(End::Master(3))];
        assert_eq!(obstacles(&both), []);
        let other = Open {
            inner: 8,
            ..both[1]
        };
        assert_eq!(obstacles(&[both[0], other]).len(), 1);
    }

    #[test]
    fn terminals_that_edit_are_told_once() {
        assert!(loss(&[open(End::Slave(1), Some(Mode::Raw))]).is_none());
        let edits = open(End::Slave(1), Some(Mode::Edits));
        let found = loss(&[edits, edits, open(End::Slave(2), Some(Mode::Edits))]).unwrap();
        assert!(found.detail.starts_with("in 2 terminal"), "{found:?}");
    }
}
