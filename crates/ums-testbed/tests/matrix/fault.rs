//! What breaks, and what an operator or a supervisor does about it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ums_testbed::intercept::Passage;
use ums_testbed::system::System;
use ums_testbed::testbed::{PEER_LINK, Testbed};
use ums_testbed::tools::{run, wait_for};

use crate::common::{SLOW_MBIT, agent, exit, process, processes, services, strike};
use crate::point::{How, Point, Reached, Side};

/// How long a short fault lasts, unless the migration ends before.
const SHORT: Duration = Duration::from_secs(1);

/// Longest wait for a long cut to be noticed: above the data path's own limit.
const LONG: Duration = Duration::from_secs(75);

/// Rate of a slowed link, Mbit/s.
const CRAWL_MBIT: u32 = 4;

/// What the agent of the destination may take beyond what it has, when memory is full, bytes.
const MEMORY_BYTES: u64 = 4 << 20;

/// A fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Coordinator(Side),
    Coordinators,
    Agent(Side),
    Keeper(Side),
    Criu,
    Cut(Way),
    LongCut(Way),
    Slow,
    Abort,
    Lost,
    Twice,
    Late,
    Disk,
    Memory,
    /// An end of the tunnel.
    Frontman(Side),
}

/// Which packets between the systems are lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Both,
    ToDestination,
    ToSource,
}

impl Way {
    fn receivers(self, testbed: &Testbed) -> Vec<&System> {
        match self {
            Self::Both => vec![&testbed.a, &testbed.b],
            Self::ToDestination => vec![&testbed.b],
            Self::ToSource => vec![&testbed.a],
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Both => "both ways",
            Self::ToDestination => "to the destination",
            Self::ToSource => "to the source",
        }
    }
}

/// All faults, as the columns of the table.
pub(crate) const FAULTS: [Fault; 23] = [
    Fault::Coordinator(Side::Source),
    Fault::Coordinator(Side::Destination),
    Fault::Coordinators,
    Fault::Agent(Side::Source),
    Fault::Agent(Side::Destination),
    Fault::Keeper(Side::Source),
    Fault::Keeper(Side::Destination),
    Fault::Criu,
    Fault::Cut(Way::Both),
    Fault::Cut(Way::ToDestination),
    Fault::Cut(Way::ToSource),
    Fault::LongCut(Way::Both),
    Fault::LongCut(Way::ToDestination),
    Fault::LongCut(Way::ToSource),
    Fault::Slow,
    Fault::Abort,
    Fault::Lost,
    Fault::Twice,
    Fault::Disk,
    Fault::Memory,
    Fault::Late,
    Fault::Frontman(Side::Source),
    Fault::Frontman(Side::Destination),
];

impl Fault {
    pub(crate) fn name(self) -> String {
        match self {
            Self::Coordinator(side) => format!("Coordinator of the {} killed", side.word()),
            Self::Coordinators => "both Coordinators killed".to_owned(),
            Self::Agent(side) => format!("agent of the {} killed", side.word()),
            Self::Keeper(side) => format!("keeper of the {} killed", side.word()),
            Self::Criu => "CRIU killed".to_owned(),
            Self::Cut(way) => format!("link cut for 1 s, {}", way.word()),
            Self::LongCut(way) => format!("link cut until noticed, {}", way.word()),
            Self::Slow => format!("link slowed to {CRAWL_MBIT} Mbit/s for 1 s"),
            Self::Abort => "abort asked for".to_owned(),
            Self::Lost => "request or answer lost".to_owned(),
            Self::Twice => "request twice".to_owned(),
            Self::Late => "request late: after the Coordinator's restart".to_owned(),
            Self::Disk => "disk of the destination full".to_owned(),
            Self::Memory => "memory of the destination full".to_owned(),
            Self::Frontman(side) => format!("Frontman of the {} killed", side.word()),
        }
    }

    /// Whether it makes sense at a point.
    pub(crate) fn fits(self, point: Point) -> bool {
        let copying = point.how == How::Streaming || ["/open", "/checkpoint"].iter().any(|one| {
            matches!(point.how, How::Request(_, operation, _, ums_testbed::intercept::Moment::Before) if operation == *one)
        });
        match self {
            // There is one only while it dumps or restores.
            Self::Criu => !point.is_request(),
            // The source's is gone with the source, the destination's comes with its container.
            Self::Keeper(Side::Source) => point.name != "source deleted",
            Self::Keeper(Side::Destination) => point.step >= 6,
            // From the time on when it has been started.
            Self::Frontman(Side::Source) => point.step >= 8,
            Self::Frontman(Side::Destination) => point.step >= 6,
            Self::Lost | Self::Twice => point.is_request(),
            Self::Late => matches!(
                point.how,
                How::Request(_, _, _, ums_testbed::intercept::Moment::Before)
            ),
            Self::Disk | Self::Memory => copying,
            // They take long: where the answer is awaited over the link, and at the commit.
            Self::LongCut(_) => {
                point.how == How::Streaming
                    || ["restore asked for", "held", "runs"].contains(&point.name)
            }
            _ => true,
        }
    }
}

/// Breaks something where a migration stands, lets it go on, and mends what a person would mend.
pub(crate) fn strike_at(testbed: &mut Testbed, reached: &Reached, fault: Fault) -> Result<()> {
    match fault {
        Fault::Coordinator(side) => {
            kill_coordinator(testbed, side)?;
            go_on(reached, Passage::On);
            start_coordinator(testbed, side)
        }
        Fault::Coordinators => {
            kill_coordinator(testbed, Side::Source)?;
            kill_coordinator(testbed, Side::Destination)?;
            go_on(reached, Passage::On);
            start_coordinator(testbed, Side::Source)?;
            start_coordinator(testbed, Side::Destination)
        }
        Fault::Late => {
            let How::Request(side, ..) = reached.how else {
                return Ok(());
            };
            kill_coordinator(testbed, side)?;
            start_coordinator(testbed, side)?;
            wait_until_over(testbed, reached, SHORT);
            go_on(reached, Passage::On);
            Ok(())
        }
        Fault::Agent(side) => {
            strike(agent(side.of(testbed)));
            go_on(reached, Passage::On);
            // Its Coordinator starts another one.
            let returned = || services(side.of(testbed));
            wait_for("the agent's return", LONG, returned).map(drop)
        }
        Fault::Keeper(side) => {
            strike(process(side.of(testbed), &["ums-agent", "keeper"]));
            go_on(reached, Passage::On);
            Ok(())
        }
        Fault::Frontman(side) => {
            let end = match side {
                Side::Source => "near",
                Side::Destination => "far",
            };
            strike(end_of_tunnel(side.of(testbed), end)?);
            go_on(reached, Passage::On);
            Ok(())
        }
        Fault::Criu => {
            let side = match reached.how {
                How::Restoring => Side::Destination,
                _ => Side::Source,
            };
            strike(process(side.of(testbed), &["criu", "swrk"]));
            Ok(())
        }
        Fault::Cut(way) => cut(testbed, reached, way, SHORT),
        Fault::LongCut(way) => cut(testbed, reached, way, LONG),
        Fault::Slow => {
            shape(testbed, CRAWL_MBIT)?;
            go_on(reached, Passage::On);
            wait_until_over(testbed, reached, SHORT);
            shape(testbed, SLOW_MBIT)
        }
        Fault::Abort => abort(testbed, reached),
        Fault::Lost => {
            go_on(reached, Passage::Lost);
            Ok(())
        }
        Fault::Twice => {
            go_on(reached, Passage::Twice);
            Ok(())
        }
        Fault::Disk => full_disk(testbed, reached),
        Fault::Memory => full_memory(testbed, reached),
    }
}

/// The end itself, not its standby.
fn end_of_tunnel(system: &System, end: &str) -> Result<i32> {
    wait_for("an end of the tunnel", SHORT, || {
        let standbys = processes(system, &["ums-frontman", end, "--standby"]);
        let mut all = processes(system, &["ums-frontman", end]).into_iter();
        all.find(|pid| !standbys.contains(pid))
    })
}

/// What stands still goes on.
fn go_on(reached: &Reached, passage: Passage) {
    if let Some(gate) = &reached.gate {
        gate.pass(passage);
    }
    if let Some(pid) = reached.stopped {
        // It may be what was killed.
        let _ = kill(Pid::from_raw(pid), Signal::SIGCONT);
    }
}

fn kill_coordinator(testbed: &mut Testbed, side: Side) -> Result<()> {
    match side {
        Side::Source => testbed.a.kill_coordinator(),
        Side::Destination => testbed.b.kill_coordinator(),
    }
}

fn start_coordinator(testbed: &mut Testbed, side: Side) -> Result<()> {
    match side {
        Side::Source => testbed.a.start_coordinator(),
        Side::Destination => testbed.b.start_coordinator(),
    }
}

/// Waits until the migration is over, at most so long.
fn wait_until_over(testbed: &Testbed, reached: &Reached, most: Duration) {
    let over = || {
        let view = reached.moving.view(&testbed.a)?;
        (view["report"]["outcome"] != "running").then_some(())
    };
    // One that lasts longer than the fault is as good.
    let _ = wait_for("the migration's end", most, over);
}

fn cut(testbed: &Testbed, reached: &Reached, way: Way, most: Duration) -> Result<()> {
    let nft = testbed.tools().bundled("nft");
    let rules = format!(
        "add table inet cut; \
         add chain inet cut in {{ type filter hook prerouting priority -500; }}; \
         add rule inet cut in iifname \"{PEER_LINK}\" drop"
    );
    for system in way.receivers(testbed) {
        run(system.exec(&nft).arg(&rules))?;
    }
    go_on(reached, Passage::On);
    wait_until_over(testbed, reached, most);
    for system in way.receivers(testbed) {
        run(system.exec(&nft).args(["delete", "table", "inet", "cut"]))?;
    }
    Ok(())
}

fn shape(testbed: &Testbed, mbit: u32) -> Result<()> {
    for system in [&testbed.a, &testbed.b] {
        let mut tc = system.exec("tc");
        tc.args(["qdisc", "change", "dev", PEER_LINK, "root", "tbf", "rate"]);
        run(tc.args([&format!("{mbit}mbit"), "burst", "256kb", "latency", "200ms"]))?;
    }
    Ok(())
}

fn abort(testbed: &Testbed, reached: &Reached) -> Result<()> {
    let asked = testbed
        .a
        .ums(&["abort", "ledger", "--reason", "a test", "--wait", "0"])?;
    let wanted = if reached.committed {
        exit::REFUSED
    } else {
        exit::DONE
    };
    let said = String::from_utf8_lossy(&asked.stderr);
    ensure!(
        asked.status.code() == Some(wanted),
        "{}: {said}",
        asked.status
    );
    go_on(reached, Passage::On);
    Ok(())
}

/// Where the services of the destination lie, if its disk is to be full: a small one of their own.
pub(crate) fn small_disk(testbed: &Testbed) -> Result<()> {
    let mut mount = testbed.b.exec("mount");
    mount.args(["-t", "tmpfs", "-o", "size=16m", "small"]);
    run(mount.arg(testbed.b.state_dir().join("services"))).map(drop)
}

/// The disk that files arrive on takes nothing more, until that is noticed or made no difference.
fn full_disk(testbed: &Testbed, reached: &Reached) -> Result<()> {
    let disk = testbed.b.state_dir().join("services");
    let filler = disk.join("filler");
    // It ends with an error, because there is no room.
    let fill = format!("cat /dev/zero > {} || true", filler.display());
    run(testbed.b.exec("sh").args(["-c", &fill]))?;
    go_on(reached, Passage::On);
    let noticed = || {
        let view = reached.moving.view(&testbed.a)?;
        let over = view["report"]["outcome"] != "running";
        (over || view["progress"]["aborting"] == true).then_some(())
    };
    wait_for("the full disk to be noticed", LONG, noticed)?;
    run(testbed.b.exec("rm").arg(&filler)).map(drop)
}

/// Takes the small disk away again once nothing is on it.
pub(crate) fn no_small_disk(testbed: &Testbed) -> Result<()> {
    let disk = testbed.b.state_dir().join("services");
    let unmounted = || run(testbed.b.exec("umount").arg(&disk)).ok();
    wait_for("an unused disk", SHORT, unmounted).map(drop)
}

/// The agent of the destination gets no more memory: the kernel ends it.
fn full_memory(testbed: &Testbed, reached: &Reached) -> Result<()> {
    let group = Path::new("/sys/fs/cgroup/memory/ums").join(testbed.id());
    let group = group.join("full");
    let victim = agent(&testbed.b);
    std::fs::create_dir(&group)?;
    std::fs::write(
        group.join("memory.limit_in_bytes"),
        MEMORY_BYTES.to_string(),
    )?;
    std::fs::write(group.join("cgroup.procs"), victim.to_string())?;
    go_on(reached, Passage::On);
    let gone = wait_for("the end of the agent", LONG, || {
        (!processes(&testbed.b, &["ums-agent", "serve"]).contains(&victim)).then_some(())
    });
    let removed = wait_for("an empty control group", LONG, || {
        std::fs::remove_dir(&group).ok()
    });
    gone.and(removed)?;
    wait_for("the agent's return", LONG, || services(&testbed.b)).map(drop)
}
