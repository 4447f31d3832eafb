//! The points of a migration at which something breaks, and how each is reached for certain.

use std::time::Duration;

use anyhow::Result;
use ums_testbed::intercept::{Interceptor, Moment, Stop};
use ums_testbed::system::System;
use ums_testbed::testbed::Testbed;
use ums_testbed::tools::wait_for;

use crate::common::{Moving, coordinator, processes, stop};

/// Longest way to a point.
const PATIENCE: Duration = Duration::from_secs(30);

/// Memory of which some has certainly gone over, and more has not, bytes.
const PART_BYTES: u64 = 2 << 20;

/// One of the two systems.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Source,
    Destination,
}

impl Side {
    pub(crate) fn of(self, testbed: &Testbed) -> &System {
        match self {
            Self::Source => &testbed.a,
            Self::Destination => &testbed.b,
        }
    }

    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }
}

/// A point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Point {
    /// The step that is under way.
    pub(crate) step: u8,
    /// What just happens, in words.
    pub(crate) name: &'static str,
    pub(crate) how: How,
}

/// How a point is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum How {
    /// A request from a Coordinator to its agent is stopped.
    Request(Side, &'static str, usize, Moment),
    /// Memory is going over.
    Streaming,
    /// CRIU restores; it is stopped.
    Restoring,
}

impl Point {
    /// Whether the source has committed.
    pub(crate) fn is_committed(self) -> bool {
        self.step >= 13
    }

    pub(crate) fn is_request(self) -> bool {
        matches!(self.how, How::Request(..))
    }
}

const fn request(
    step: u8,
    name: &'static str,
    side: Side,
    operation: &'static str,
    number: usize,
    moment: Moment,
) -> Point {
    let how = How::Request(side, operation, number, moment);
    Point { step, name, how }
}

/// All points, in the order in which a migration passes them.
pub(crate) const POINTS: [Point; 19] = {
    use Moment::{After, Before};
    use Side::{Destination, Source};
    [
        request(1, "facts asked for", Source, "/v1/facts", 1, Before),
        request(2, "peer greeted", Destination, "/v1/facts", 1, Before),
        request(3, "Specification sent", Destination, "/v1/facts", 2, Before),
        request(4, "container asked for", Destination, "/create", 1, Before),
        request(6, "container created", Destination, "/create", 1, After),
        request(7, "data path asked for", Source, "/open", 1, Before),
        request(7, "files copied", Source, "/open", 1, After),
        request(8, "before the freeze", Source, "/checkpoint", 1, Before),
        Point {
            step: 9,
            name: "frozen, memory streams",
            how: How::Streaming,
        },
        request(10, "delivered", Source, "/checkpoint", 1, After),
        request(11, "restore asked for", Destination, "/restore", 1, Before),
        Point {
            step: 12,
            name: "CRIU restores",
            how: How::Restoring,
        },
        request(12, "held", Destination, "/restore", 1, After),
        request(13, "committed, not run", Destination, "/run", 1, Before),
        request(13, "runs", Destination, "/run", 1, After),
        request(14, "Frontman not told", Source, "/frontman/lead", 1, Before),
        request(14, "Frontman leads", Source, "/frontman/lead", 1, After),
        request(
            15,
            "source not deleted",
            Source,
            "/delete-source",
            1,
            Before,
        ),
        request(15, "source deleted", Source, "/delete-source", 1, After),
    ]
};

/// A migration that has reached a point and stands there.
pub(crate) struct Reached {
    pub(crate) how: How,
    pub(crate) committed: bool,
    pub(crate) moving: Moving,
    pub(crate) gate: Option<Interceptor>,
    /// A process that stands still, if that is how the point was reached.
    pub(crate) stopped: Option<i32>,
}

/// Begins to move the ledger, and takes it to a point.
pub(crate) fn reach(testbed: &Testbed, point: Point) -> Result<Reached> {
    let gate = match point.how {
        How::Request(side, operation, number, moment) => {
            let system = side.of(testbed);
            let socket = system.outside(&system.run_dir().join("agent.sock"));
            let stop = Stop {
                operation,
                number,
                moment,
            };
            Some(Interceptor::close(&socket, coordinator(system), stop)?)
        }
        How::Streaming | How::Restoring => None,
    };
    let mut reached = Reached {
        how: point.how,
        committed: point.is_committed(),
        moving: Moving::start(&testbed.a, &testbed.b, "ledger"),
        gate,
        stopped: None,
    };
    match point.how {
        How::Request(..) => {
            if let Some(gate) = &reached.gate {
                gate.wait(PATIENCE)?;
            }
        }
        How::Streaming => reached.moving.wait_for_memory(&testbed.a, PART_BYTES),
        How::Restoring => {
            let criu = wait_for("CRIU at the destination", PATIENCE, || {
                processes(&testbed.b, &["criu", "swrk"]).first().copied()
            })?;
            stop(criu);
            reached.stopped = Some(criu);
        }
    }
    Ok(reached)
}
