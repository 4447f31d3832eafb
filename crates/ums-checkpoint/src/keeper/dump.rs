//! The checkpoint: CRIU dumps, what it reads leaves by a socket, and at its end the kernel's freeze
//! takes over from ptrace without a gap. Private memory is read by who has asked ([`hidden`](super::hidden)).

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use ums_core::budget::{Laps, Part};

use super::adopted;
use super::container::raw;
use super::handshake::KeeperSide;
use super::hidden::{self, Stranger};
use super::moment;
use super::protocol::{CheckpointInfo, Connections, DumpRequest, INFO_NAME, MemoryBy, Phase};
use super::server::{Shared, State, monotonic_ns};
use crate::carry::Carry;
use crate::criu::patience::{Excused, Patience};
use crate::criu::rpc::{CGROUPS_IGNORE, NETWORK_LOCK_SKIP, Opts, PageServerInfo, RequestType};
use crate::criu::swrk::{self, Criu, Swrk, end_of, log_text};
use crate::freezer::Freezer;
use crate::loopback::{Hold, What};
use crate::memory_dir::MemoryDir;
use crate::stuck::{self, Task};
use crate::{carry, link_remap, watches};

/// CRIU's log during a dump, in the images directory.
const LOG_NAME: &str = "dump.log";
/// Lines of CRIU's log that are kept in ours when it fails.
const LOG_LINES: usize = 32;
/// CRIU's options that its protocol has no field for, and the file that it reads them from. By default
/// CRIU opens each file that the service has open once more, for what a linker has noted in it; that
/// breaks leases, and waits for their holders, who are frozen. The size of a file it compares anyway.
const CONFIG: (&str, &[u8]) = ("criu.conf", b"file-validation filesize\n");
/// Deleted but open files are carried up to this size each, bytes.
pub const GHOST_LIMIT: u32 = 256 << 20;
/// Key of the network namespace in the images.
pub(super) const NETNS_KEY: &str = "ums-netns";
/// How long a dump that is cut off may take to end.
const CUT_PATIENCE: Duration = Duration::from_secs(20);

/// Checkpoints the container. On success it is frozen by its control group, and stays so.
pub(super) fn dump(
    shared: &Arc<Shared>,
    request: DumpRequest,
    mut fds: Vec<OwnedFd>,
) -> Result<(), String> {
    let handshake = (fds.len() == 3).then(|| fds.pop()).flatten();
    let mut handshake = KeeperSide::new(handshake);
    let [images, pages] = <[OwnedFd; 2]>::try_from(fds)
        .map_err(|_| "a dump takes the images directory and the page socket".to_owned())?;
    let images = MemoryDir::from_fd(images);
    let init = shared.update(|state| match (&state.phase, state.init_pid) {
        // What is not in yet is not in the processes, and CRIU would leave it out.
        (Phase::Running, Some(_)) if state.pages_missing > 0 => Err(format!(
            "{} pages of the service are still being installed after its last move: it can move \
             again once they are in",
            state.pages_missing
        )),
        (Phase::Running, Some(pid)) => {
            state.phase = Phase::Dumping;
            state.frozen_at_ns = None;
            state.spans.clear();
            state.cut = false;
            Ok(pid)
        }
        (Phase::Dead { code }, _) => Err(format!("the service has exited with code {code}")),
        (phase, _) => Err(format!(
            "a container that is {phase:?} can't be checkpointed"
        )),
    })?;
    let result = freeze_and_dump(shared, (&images, &pages), request, init, &mut handshake);
    shared.update(|state| state.dumping = None);
    if result.is_err() {
        // Nothing was promised to anybody yet: the service goes on.
        handshake.give_up();
        let _ = shared.container.freezer().map(|freezer| freezer.release());
    }
    shared.update(|state| {
        if state.phase == Phase::Dumping {
            state.phase = if result.is_ok() {
                Phase::Frozen
            } else {
                Phase::Running
            };
        }
    });
    result
}

fn freeze_and_dump(
    shared: &Shared,
    (images, pages): (&MemoryDir, &OwnedFd),
    request: DumpRequest,
    init: i32,
    handshake: &mut KeeperSide,
) -> Result<(), String> {
    let freezer = shared.container.freezer()?;
    let (connections, bound) = (
        request.connections,
        Duration::from_millis(request.freeze_ms),
    );
    can_be_taken_over(shared, &freezer)?;
    let info = CheckpointInfo {
        stdio: shared.container.stdio_names.clone(),
        owners: Default::default(),
    };
    let info = serde_json::to_vec(&info).map_err(|error| error.to_string())?;
    images
        .write(INFO_NAME, &info)
        .map_err(|error| format!("images directory: {error}"))?;

    images
        .write(CONFIG.0, CONFIG.1)
        .map_err(|error| format!("images directory: {error}"))?;
    let watched = watches::paths(&shared.container.cgroup().processes(), init);
    let mut before = Before {
        watched: watched.map_err(|error| error.to_string())?,
        known: carry::Known::of(&carry::processes(shared.container.cgroup())),
        stranger: match request.memory {
            MemoryBy::Criu => None,
            MemoryBy::Agent => Some(Stranger::start(
                &shared.config.bundle_bin,
                &carry::processes(shared.container.cgroup()),
            )?),
        },
    };
    let criu = Criu {
        bin: shared.config.bundle_bin.clone(),
        patience: Patience::new(bound).unless(not_taken(pages)?),
    };
    // A CRIU that is killed lets go of the tasks that it holds: they stay where they are until what
    // it had taken over is theirs again.
    let last = freezer.clone();
    let last_moment = move || {
        if let Err(error) = last.begin() {
            tracing::warn!(%error, "the tasks of a CRIU that ends run on");
        }
    };
    let mut swrk = criu
        .spawn(|_| Ok(()), &[pages.as_fd()], Some(Box::new(last_moment)))
        .map_err(|error| error.to_string())?;
    begin_cuttable(shared, &swrk)?;
    let criu_id = swrk.id();
    let opts = Opts {
        irmap_scan_paths: before.watched.deepest_first(),
        tcp_established: Some(connections == Connections::Carry),
        tcp_skip_in_flight: Some(true),
        tcp_close: Some(connections == Connections::Close),
        ..options(shared, images, swrk.inherited()[0], init, freezer.dir())?
    };
    let log = || log_text(&images.path(), LOG_NAME);
    // Until CRIU has let go of the sockets.
    let mut held = None;
    let mut names = link_remap::Kept::default();
    // Until CRIU has looked for pages.
    let mut unseen = None;
    // Until CRIU has read the settings.
    let mut eased = carry::Eased::default();
    let cgroup = shared.container.cgroup();
    let mut laps = Laps::begin(0);
    let result = swrk.run(RequestType::Dump, opts, &log, |swrk, notify| {
        match notify.script.as_deref() {
            // CRIU has set itself up and has not looked at the service yet: the service may run
            // until now. CRIU would freeze it too, but looks only ten times a second whether it is.
            Some("pre-dump") => {
                moment::wait(cgroup);
                handshake.before_freeze()?;
                moment::freeze((&freezer, cgroup), bound, || {
                    let now = monotonic_ns();
                    laps = Laps::begin(now);
                    shared.update(|state| state.frozen_at_ns = Some(now));
                })?;
                handshake.frozen()?;
                if let Some(of) = &shared.config.adopted {
                    adopted::copy_files(&of.files)?;
                }
                laps.lap(Part::Freeze, monotonic_ns());
                // To stop every task takes CRIU a moment, however large they are.
                swrk.must_answer_within(bound);
                let processes = carry::processes(cgroup);
                let carry = look(&processes, &freezer, (&mut before, bound), &mut laps);
                let written = carry.and_then(|carry| carry.write(images));
                written.map_err(|error| {
                    format!("what CRIU does not carry of the service can't be read: {error}")
                })?;
                let changed = carry::Eased::of(&processes);
                eased = changed.map_err(|error| {
                    format!("a setting of a socket that CRIU refuses can't be changed: {error}")
                })?;
                let bundle_bin = &shared.config.bundle_bin;
                let stranger = before.stranger.as_mut();
                let hidden = stranger.map(|it| it.hide(bundle_bin, &processes));
                unseen = hidden.transpose()?;
                laps.lap(Part::Ask, monotonic_ns());
                return Ok(());
            }
            // CRIU holds the tasks, and is about to look at their sockets.
            Some("network-lock") => {
                laps.lap(Part::Seize, monotonic_ns());
                held = Some(shared.container.hold(What::Connections)?);
                return Ok(());
            }
            Some("post-dump") => {
                laps.lap(Part::Dump, monotonic_ns());
                handshake.wait_held()?;
                laps.lap(Part::Hold, monotonic_ns());
            }
            _ => return Ok(()),
        }
        // CRIU holds every task and waits for us: from this freeze on the service can't run,
        // whatever happens to CRIU. That CRIU is still there afterwards proves that no task was
        // let go before the freeze had them all.
        freezer.freeze(bound).map_err(|error| error.to_string())?;
        if !swrk.is_alive() {
            return Err("CRIU was lost at the end of the dump".to_owned());
        }
        if unseen.take().is_some() {
            hidden::add_guards(images, &carry::processes(cgroup))
                .map_err(|error| format!("guards of its memory can't be read: {error}"))?;
        }
        let kept = link_remap::keep(&shared.container.cgroup().processes());
        names = kept.map_err(|error| names_lost(&error))?;
        Ok(())
    });
    let untraced = match &result {
        Err(swrk::Error::Stuck { .. }) => {
            stuck::untraced(&shared.container.cgroup().processes(), criu_id)
        }
        _ => Vec::new(),
    };
    swrk.end();
    drop(eased);
    lift(held);
    result.map_err(|error| {
        keep_log(&shared.config.service, &log());
        explain(shared, &error, &untraced, bound)
    })?;
    names.restore().map_err(|error| names_lost(&error))?;
    if !freezer.is_frozen().map_err(|error| error.to_string())? {
        return Err("the service is not frozen after the dump".to_owned());
    }
    let now = monotonic_ns();
    laps.lap(Part::LetGo, now);
    shared.update(|state| {
        state.dumped_at_ns = Some(now);
        state.spans = laps.into_spans();
    });
    Ok(())
}

/// What was found while the service still ran: to look for it takes a while.
struct Before {
    /// What it watches.
    watched: watches::Paths,
    /// What processes are asked with.
    known: carry::Known,
    /// Whose memory CRIU is shown, where it shall not read the service's.
    stranger: Option<Stranger>,
}

/// What CRIU does not carry of a frozen service.
fn look(
    processes: &[carry::Process],
    freezer: &Freezer,
    (before, within): (&mut Before, Duration),
    laps: &mut Laps,
) -> std::io::Result<Carry> {
    let mut carry = carry::capture(processes, &before.watched)?;
    laps.lap(Part::Look, monotonic_ns());
    carry.ask(freezer, processes, &mut before.known, within)?;
    Ok(carry)
}

fn names_lost(error: &std::io::Error) -> String {
    format!("an open file whose name was removed can't be kept under another name: {error}")
}

/// Before anything is frozen: with a freezer of version 1 CRIU would wait for ever for a task that a
/// signal has stopped (`ptrace_attach` in the kernel waits until it is traced, which it can't be
/// while it is frozen).
fn can_be_taken_over(shared: &Shared, freezer: &Freezer) -> Result<(), String> {
    if freezer.is_unified() {
        return Ok(());
    }
    let stopped = stuck::stopped(&shared.container.cgroup().processes());
    match stopped.is_empty() {
        true => Ok(()),
        false => Err(format!(
            "{}, and this host has a freezer of version 1 alone, with which it can't be moved: let it \
             go on (SIGCONT), or mount cgroup2 below /sys/fs/cgroup",
            stuck::describe(&stopped)
        )),
    }
}

/// Whether CRIU's page socket, of which this is a copy, takes no more: whoever reads it is slow.
fn not_taken(pages: &OwnedFd) -> Result<Excused, String> {
    let pages = pages.try_clone().map_err(|error| error.to_string())?;
    Ok(Box::new(move || {
        let mut fds = [PollFd::new(pages.as_fd(), PollFlags::POLLOUT)];
        poll(&mut fds, PollTimeout::ZERO) == Ok(0)
    }))
}

/// Lets others end this dump.
fn begin_cuttable(shared: &Shared, swrk: &Swrk) -> Result<(), String> {
    let killer = swrk.killer().map_err(|error| error.to_string())?;
    shared.update(|state| {
        // Asked for while CRIU was being started.
        if state.cut {
            killer.kill();
        }
        state.dumping = Some(killer);
    });
    Ok(())
}

/// Keeps the end of a log of CRIU's, which goes with the images, in ours.
pub(super) fn keep_log(service: &str, log: &str) {
    let end = end_of(log, LOG_LINES);
    tracing::warn!(service, log = end, "CRIU was not done");
}

/// What became of a dump, and of the service, for people.
fn explain(shared: &Shared, error: &swrk::Error, untraced: &[Task], bound: Duration) -> String {
    if shared.state().cut {
        return "the checkpoint was given up on request".to_owned();
    }
    if !matches!(error, swrk::Error::Stuck { .. }) {
        return error.to_string();
    }
    let who = match untraced.is_empty() {
        true => "CRIU itself stood still".to_owned(),
        false => stuck::describe(untraced),
    };
    format!(
        "the freeze was given up after {} s and the service runs on: {who}. {error}",
        bound.as_secs_f32()
    )
}

/// Gives up a dump that is under way: the service runs on then. One that was complete before stays
/// complete, and the service frozen, for [`thaw`] to let it run.
pub(super) fn cut(shared: &Arc<Shared>) -> Result<(), String> {
    shared.update(|state| {
        if state.phase == Phase::Dumping {
            state.cut = true;
            if let Some(criu) = &state.dumping {
                criu.kill();
            }
        }
    });
    let ended = |state: &mut State| (state.phase != Phase::Dumping).then_some(());
    let ended = shared.wait_at_most(CUT_PATIENCE, ended);
    ended.ok_or_else(|| {
        format!(
            "the checkpoint has not ended {} s after CRIU was killed: see what the kernel says of it",
            CUT_PATIENCE.as_secs()
        )
    })
}

pub(super) fn lift(loopback: Option<Hold<'_>>) {
    if let Some(Err(error)) = loopback.map(Hold::lift) {
        tracing::warn!(%error, "what the service sends to itself was held a moment longer");
    }
}

fn options(
    shared: &Shared,
    images: &MemoryDir,
    page_socket: i32,
    init: i32,
    freezer: &std::path::Path,
) -> Result<Opts, String> {
    let netns = shared
        .container
        .netns_inode()
        .map_err(|error| error.to_string())?;
    // CRIU is another process.
    let directory = format!("/proc/{}/fd/{}", std::process::id(), raw(images));
    let config = std::path::Path::new(&directory).join(CONFIG.0);
    let mut external = vec![format!("net[{netns}]:{NETNS_KEY}")];
    for mount in &shared.config.mounts {
        external.push(format!("mnt[{}]:{}", mount.mountpoint, mount.key));
    }
    Ok(Opts {
        images_dir_fd: raw(images),
        work_dir_fd: Some(raw(images)),
        pid: Some(init),
        leave_running: Some(true),
        ext_unix_sk: Some(true),
        file_locks: Some(true),
        log_level: Some(2),
        log_file: Some(LOG_NAME.to_owned()),
        config_file: Some(config.display().to_string()),
        ps: Some(PageServerInfo {
            fd: Some(page_socket),
        }),
        notify_scripts: Some(true),
        root: Some(shared.config.merged.display().to_string()),
        manage_cgroups_mode: Some(CGROUPS_IGNORE),
        ghost_limit: Some(GHOST_LIMIT),
        link_remap: Some(true),
        external,
        freeze_cgroup: Some(freezer.display().to_string()),
        network_lock: Some(NETWORK_LOCK_SKIP),
        ..Opts::default()
    })
}

/// Lets a frozen container run on, as if nothing had been asked.
pub(super) fn thaw(shared: &Arc<Shared>) -> Result<(), String> {
    match shared.state().phase {
        Phase::Running | Phase::Frozen => {}
        ref phase => return Err(format!("a container that is {phase:?} can't be thawed")),
    }
    link_remap::remove(&shared.container.cgroup().processes());
    shared
        .container
        .freezer()?
        .thaw()
        .map_err(|error| error.to_string())?;
    shared.update(|state| {
        if state.phase == Phase::Frozen {
            state.phase = Phase::Running;
        }
    });
    Ok(())
}
