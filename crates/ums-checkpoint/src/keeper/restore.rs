//! The restore: CRIU builds the processes, waits before their first instruction until the commit
//! is known, and pages are installed while the service already runs.

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use ums_core::budget::{Laps, Part, Span};
use ums_core::facts::LossKind;

use super::adopted;
use super::container::{begin, mount_root, raw, unmount_root};
use super::dump::{GHOST_LIMIT, NETNS_KEY, keep_log, lift};
use super::nonlocal::AnyAddress;
use super::pages;
use super::place::{self, Link};
use super::protocol::{
    CheckpointInfo, Connections, ExternalMount, INDEX_NAME, INFO_NAME, Phase, RestoreRequest,
};
use super::ready;
use super::server::{Shared, State, monotonic_ns};
use crate::carry::{self, Carry, Lost};
use crate::criu::rpc::{CGROUPS_IGNORE, InheritFd, NETWORK_LOCK_SKIP, Opts, RequestType};
use crate::criu::swrk::{Swrk, log_text};
use crate::freezer::Freezer;
use crate::loopback::What;
use crate::memory_dir::MemoryDir;
use crate::restart;
use crate::store::away::AWAY_NAME;
use crate::store::{Index, Mapped, StoredExtent, index};
use crate::uffd::leftover;

/// CRIU's log during a restore, in the images directory.
const LOG_NAME: &str = "restore.log";
/// How long it may take to tell restored processes what they alone can be told: a few calls of each.
const TELL_WITHIN: Duration = Duration::from_secs(5);
/// How long the descriptors of restored processes may be on their way when CRIU says that it has sent them.
const CLAIM_PATIENCE: Duration = Duration::from_secs(5);
/// How long pages that a restore needs may take to come from the source.
const BRING_PATIENCE: Duration = Duration::from_secs(60);

/// Restores the container and returns when it is held.
pub(super) fn restore(
    shared: &Arc<Shared>,
    request: &RestoreRequest,
    fds: Vec<OwnedFd>,
) -> Result<(), String> {
    let begin = shared.update(|state| match state.phase {
        Phase::Created => {
            state.phase = Phase::Restoring;
            state.lost.clear();
            state.spans.clear();
            state.restore_error = None;
            state.decision = None;
            state.pages_missing = 0;
            state.depends_on_source = false;
            state.all_here_at_ns = None;
            state.pages_lost = None;
            state.wanted_first.clear();
            Ok(true)
        }
        Phase::Restoring | Phase::Held | Phase::Running => Ok(false),
        ref phase => Err(format!("a container that is {phase:?} can't be restored")),
    })?;
    if begin {
        let mut fds = fds;
        let supply = (fds.len() == 3).then(|| fds.pop()).flatten();
        let [images, pages] = <[OwnedFd; 2]>::try_from(fds).map_err(|_| {
            shared.update(|state| state.phase = Phase::Created);
            "a restore takes the images directory and the stored pages".to_owned()
        })?;
        let (shared, request) = (Arc::clone(shared), request.clone());
        std::thread::spawn(move || {
            let result =
                Restore::new(&shared, request, images, (pages, supply)).and_then(Restore::run);
            if let Err(reason) = result {
                shared.update(|state| {
                    state.restore_error = Some(reason);
                    if !matches!(state.phase, Phase::Dead { .. }) {
                        state.phase = Phase::Created;
                    }
                });
            }
        });
    }
    shared.wait_for(|state| match (&state.phase, &state.restore_error) {
        (_, Some(reason)) => Some(Err(reason.clone())),
        (Phase::Restoring, None) => None,
        _ => Some(Ok(())),
    })
}

/// Lets a held container execute, and returns when it does.
pub(super) fn resume(shared: &Arc<Shared>) -> Result<(), String> {
    shared.update(|state| match state.phase {
        Phase::Held => {
            state.decision = Some(true);
            Ok(())
        }
        Phase::Running | Phase::Dead { .. } if state.resumed_at_ns.is_some() => Ok(()),
        ref phase => Err(format!("a container that is {phase:?} can't be resumed")),
    })?;
    shared.wait_for(|state| match (&state.phase, &state.restore_error) {
        (_, Some(reason)) => Some(Err(reason.clone())),
        (Phase::Held, None) => None,
        _ => Some(Ok(())),
    })
}

/// What of the late pages a restore itself needs.
struct Late {
    index: Index,
    stored: File,
}

struct Restore {
    shared: Arc<Shared>,
    images: MemoryDir,
    info: CheckpointInfo,
    carry: Carry,
    late: Option<Late>,
    lazy: bool,
    connections: Connections,
    begun_ns: u64,
    laps: Laps,
}

impl Restore {
    fn new(
        shared: &Arc<Shared>,
        request: RestoreRequest,
        images: OwnedFd,
        (pages, supply): (OwnedFd, Option<OwnedFd>),
    ) -> Result<Self, String> {
        let begun_ns = monotonic_ns();
        let images = MemoryDir::from_fd(images);
        let read = |name: &str| {
            std::fs::read(images.path().join(name))
                .map_err(|error| format!("the checkpoint lacks `{name}`: {error}"))
        };
        let info = serde_json::from_slice(&read(INFO_NAME)?)
            .map_err(|error| format!("`{INFO_NAME}` of the checkpoint is malformed: {error}"))?;
        let carry = Carry::read(&images)
            .map_err(|error| format!("`{}` of the checkpoint: {error}", carry::NAME))?;
        let mut late = None;
        if request.lazy {
            let index = index::decode(&read(INDEX_NAME)?).map_err(|error| error.to_string())?;
            let failed = |error| format!("stored pages can't be held: {error}");
            let stored = pages.try_clone().map(File::from).map_err(failed)?;
            // A process alone inherits nothing.
            let index_of_many = (index.len() > 1).then(|| index.clone());
            late = index_of_many.map(|index| Late { index, stored });
            let mapped = Mapped::new(pages, request.lazy_bytes)
                .map_err(|error| format!("stored pages can't be mapped: {error}"))?;
            let away = match std::fs::read(images.path().join(AWAY_NAME)) {
                Ok(bytes) => index::decode(&bytes).map_err(|error| error.to_string())?,
                Err(error) if error.kind() == ErrorKind::NotFound => Index::new(),
                Err(error) => return Err(format!("the checkpoint's `{AWAY_NAME}`: {error}")),
            };
            pages::serve(shared, &images, (index, away), mapped, supply)?;
        }
        let shared = Arc::clone(shared);
        Ok(Self {
            shared,
            images,
            info,
            carry,
            late,
            lazy: request.lazy,
            connections: request.connections,
            begun_ns,
            laps: Laps::begin(begun_ns),
        })
    }

    fn run(self) -> Result<(), String> {
        let shared = &self.shared;
        // From before the first socket is there until all are.
        let mut loopback = Some(shared.container.hold(What::Loopback)?);
        let any_address = AnyAddress::allow(shared.container.netns().as_fd());
        let mut any_address = Some(any_address.map_err(|error| {
            format!("the service's network can't be told to bind any address: {error}")
        })?);
        let ended = restart::images(&self.images)
            .map_err(|error| format!("calls under way at the freeze: {error}"))?;
        self.tell(ended.into_iter().map(call_ended).collect());
        let words = restart::futex::words(&self.images)
            .map_err(|error| format!("calls under way at the freeze: {error}"))?;
        let (mut swrk, mut link) = self.criu()?;
        let opts = self.options(swrk.inherited(), link.as_ref());
        let log = || log_text(&self.images.path(), LOG_NAME);
        let mut laps = self.laps.clone();
        laps.lap(Part::Start, monotonic_ns());
        let mut init = None;
        let (freezer, mut frozen) = (shared.container.freezer()?, Ok(()));
        let result = swrk.run(RequestType::Restore, opts, &log, |swrk, notify| {
            match notify.script.as_deref() {
                Some("setup-namespaces") | Some("post-setup-namespaces") => {
                    init = notify.pid.or(init);
                    Ok(())
                }
                Some("post-restore") => {
                    laps.lap(Part::Restore, monotonic_ns());
                    drop(any_address.take());
                    self.fill_leftovers()?;
                    self.tell(self.carry.hold(&self.processes()));
                    self.all_claimed()?;
                    if self.lazy {
                        restart::futex::bring_in(&words, &self.processes());
                    }
                    laps.lap(Part::Complete, monotonic_ns());
                    if let Some(link) = link.take() {
                        let pid = notify.pid.or(init).ok_or("CRIU named no init")?;
                        init = Some(pid);
                        link.restored(pid)?;
                        place::watch_held(shared, pid);
                    }
                    self.hold(laps.clone().into_spans())
                }
                // All sockets are there with all that they had. CRIU takes them out of repair mode
                // now, and they ask each other what has arrived: nothing waits for a timer.
                Some("network-unlock") => {
                    lift(loopback.take());
                    Ok(())
                }
                // Every task is stopped at the end of CRIU's own code in it.
                Some("pre-resume") => {
                    self.tell(self.carry.resume(&self.processes()));
                    if self.carry.has_to_tell() {
                        frozen = Self::stay_frozen(&freezer, swrk.id());
                    }
                    Ok(())
                }
                Some("post-resume") => {
                    if self.carry.has_to_tell() {
                        self.tell(match &frozen {
                            Ok(()) => self.carry.tell(&freezer, &self.processes(), TELL_WITHIN),
                            Err(error) => self.carry.untold(error),
                        });
                    }
                    self.shared
                        .update(|state| state.resumed_at_ns = Some(monotonic_ns()));
                    Ok(())
                }
                _ => Ok(()),
            }
        });
        swrk.end();
        lift(loopback);
        match result {
            Ok(response) => {
                let pid = response.restore.map(|restore| restore.pid).or(init);
                let pid = pid.ok_or_else(|| "CRIU named no init".to_owned())?;
                begin(shared, pid);
                Ok(())
            }
            Err(error) => {
                keep_log(&shared.config.service, &log());
                // As if it had never been attempted: what CRIU left of the tree is killed.
                let _ = shared.container.freezer().map(|freezer| freezer.kill());
                match link {
                    Some(link) => link.failed(&error.to_string()),
                    None if shared.config.placed => {}
                    None => unmount_root(&shared.config),
                }
                Err(error.to_string())
            }
        }
    }

    /// The CRIU that restores, with the way to who has placed it.
    fn criu(&self) -> Result<(Swrk, Option<Link>), String> {
        let shared = &self.shared;
        if shared.config.placed {
            let placement = place::take(shared)?;
            placement.link.complete()?;
            return Ok((placement.swrk, Some(placement.link)));
        }
        mount_root(&shared.config)?;
        adopted::share_sources(&shared.config.merged, &shared.config.mounts)?;
        let inherited = self.carry.inherited();
        let start = || inherited.hand_on(|| ready::start(shared));
        let swrk = ready::take(shared, inherited).map_or_else(start, Ok);
        Ok((swrk.map_err(|error| error.to_string())?, None))
    }

    /// Has the processes stay where they are when CRIU lets go of them. CRIU is among them in their control
    /// group, and leaves it for this process's.
    fn stay_frozen(freezer: &Freezer, criu: u32) -> std::io::Result<()> {
        freezer.leave(criu)?;
        freezer.begin()
    }

    /// What CRIU has left where late pages belong gets their content.
    fn fill_leftovers(&self) -> Result<(), String> {
        let Some(Late { index, stored }) = &self.late else {
            return Ok(());
        };
        for process in self.processes() {
            let extents = u32::try_from(process.inner)
                .ok()
                .and_then(|id| index.get(&id));
            let Some(extents) = extents.filter(|extents| !extents.is_empty()) else {
                continue;
            };
            self.bring(process, extents)?;
            let filled = leftover::fill(process.pid, extents, stored).map_err(|error| {
                let inner = process.inner;
                format!("the memory of process {inner} can't be completed before it runs: {error}")
            })?;
            if filled > 0 {
                tracing::debug!(
                    process = process.inner,
                    filled,
                    "pages that were left empty"
                );
            }
        }
        Ok(())
    }

    /// What CRIU has left where pages belong whose content is still at the source needs that first.
    fn bring(&self, process: carry::Process, extents: &[StoredExtent]) -> Result<(), String> {
        if !self.shared.state().depends_on_source {
            return Ok(());
        }
        let there = leftover::there(process.pid, extents).map_err(|error| {
            format!(
                "the memory of process {} can't be read: {error}",
                process.inner
            )
        })?;
        self.shared.update(|state| state.wanted_first.extend(there));
        let come = self.shared.wait_at_most(BRING_PATIENCE, |state| {
            let lost = state.pages_lost.clone().map(Err);
            lost.or_else(|| state.wanted_first.is_empty().then_some(Ok(())))
        });
        come.unwrap_or_else(|| {
            Err("pages that the restore needs did not come from the source".to_owned())
        })
    }

    fn processes(&self) -> Vec<carry::Process> {
        carry::processes(self.shared.container.cgroup())
    }

    /// Keeps what could not be set again for whoever asks for the status.
    fn tell(&self, lost: Vec<Lost>) {
        for Lost { kind, pid, detail } in &lost {
            let service = &self.shared.config.service;
            tracing::warn!(
                service,
                ?kind,
                pid,
                detail,
                "could not be set again after the move"
            );
        }
        self.shared.update(|state| state.lost.extend(lost));
    }

    /// Waits until the pages of every process can be installed: one whose pages nobody could install would
    /// read zeros.
    fn all_claimed(&self) -> Result<(), String> {
        let claimed = |state: &mut State| (state.unclaimed == 0).then_some(());
        let claimed = self.shared.wait_at_most(CLAIM_PATIENCE, claimed);
        let claimed = claimed.ok_or("CRIU has not handed over every process whose pages come late");
        claimed.map_err(str::to_owned)
    }

    /// Waits at `post-restore`, the one notification that can veto, until the decision is known.
    fn hold(&self, spans: Vec<Span>) -> Result<(), String> {
        let took = (monotonic_ns() - self.begun_ns) / 1000;
        self.shared.update(|state| {
            state.restore_us = Some(took);
            state.spans = spans;
            state.phase = Phase::Held;
        });
        match self.shared.wait_for(|state| state.decision) {
            true => Ok(()),
            false if self.shared.config.placed => Err(
                "the migration was abandoned before its commit, or the container was ended by its engine".to_owned(),
            ),
            false => Err("the migration was abandoned before its commit".to_owned()),
        }
    }

    fn options(&self, inherited: &[i32], link: Option<&Link>) -> Opts {
        let names = std::iter::once(NETNS_KEY).chain(self.info.stdio.iter().map(String::as_str));
        let inherit_fd = names.zip(inherited);
        let inherit_fd = inherit_fd.map(|(key, fd)| InheritFd {
            key: key.to_owned(),
            fd: *fd,
        });
        let mounts = &self.shared.config.mounts;
        let source = |of: &ExternalMount| match link {
            Some(link) => link.source(of, &self.shared.config.shm).to_owned(),
            None => of.source.clone(),
        };
        let ours = mounts
            .iter()
            .map(|mount| format!("mnt[{}]:{}", mount.key, source(mount).display()));
        let of_runtime = link.map_or(&[][..], Link::mounts).iter();
        let is_ours = |key: &str| mounts.iter().any(|mount| mount.key == key);
        let external = ours.chain(
            of_runtime
                .filter(|(key, _)| !is_ours(key))
                .map(|(key, source)| format!("mnt[{key}]:{source}")),
        );
        let merged = || self.shared.config.merged.display().to_string();
        Opts {
            images_dir_fd: raw(&self.images),
            work_dir_fd: Some(raw(&self.images)),
            ext_unix_sk: Some(true),
            tcp_established: Some(self.connections == Connections::Carry),
            tcp_close: Some(self.connections == Connections::Close),
            file_locks: Some(true),
            log_level: Some(2),
            log_file: Some(LOG_NAME.to_owned()),
            notify_scripts: Some(true),
            root: Some(link.map_or_else(merged, |link| link.root().to_owned())),
            rst_sibling: Some(true),
            inherit_fd: inherit_fd.collect(),
            manage_cgroups_mode: Some(CGROUPS_IGNORE),
            ghost_limit: Some(GHOST_LIMIT),
            external: external.collect(),
            lazy_pages: Some(self.lazy),
            network_lock: Some(NETWORK_LOCK_SKIP),
            ..Opts::default()
        }
    }
}

/// What became of a call that could not be made again.
fn call_ended(pid: i32) -> Lost {
    let detail = "a wait with a time-out ends with EINTR: it had been interrupted before, and the kernel \
                  does not tell what was called";
    Lost {
        kind: LossKind::Other,
        pid,
        detail: detail.to_owned(),
    }
}
