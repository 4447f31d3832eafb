//! What both ends have in common: their life from the start to the end.

use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep_until, timeout};

use super::control::{Limits, Role, Status};
use super::core::Core;
use super::device::{self, DeviceError};
use super::launch::End;
use super::standby::{self, Handles, Handover, Launch, Permits, Setup, Standing};
use super::{far, near, pump, quic};
use crate::engine::StartError;
use crate::record;
use crate::server::{self, Server};

/// An end looks this often in its life whether packets pass.
const LOOKS: u32 = 8;

/// And at least this often.
const LOOK_EVERY_MAX: Duration = Duration::from_secs(60);

/// The other end is told of the end within this long, or finds out by itself.
const FAREWELL: Duration = Duration::from_secs(2);

/// An end that can't start, or can't go on.
#[derive(Debug, thiserror::Error)]
pub enum EndError {
    /// What it was started with makes no sense.
    #[error("this end can't be started so: {0}")]
    Launch(String),
    /// Its control socket or state file can't be had.
    #[error(transparent)]
    Files(#[from] StartError),
    /// Its device can't be had.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Its tunnel can't be had.
    #[error(transparent)]
    Quic(#[from] quic::QuicError),
    /// What the kernel keeps for it can't be shared with its standby.
    #[error("cannot use or share a descriptor")]
    Descriptor(#[source] std::io::Error),
    /// The far end didn't let it in.
    #[error("the far end did not let this end in: {0}")]
    Connect(String),
}

/// The control socket of an end that starts; its file goes away again if it doesn't.
#[derive(Debug)]
pub(crate) struct Claim(Option<PathBuf>);

impl Claim {
    /// Takes the control socket: it tells first whether another one is there already.
    pub(crate) fn take(end: &End) -> Result<(Self, OwnedFd), EndError> {
        end.check().map_err(EndError::Launch)?;
        let listener = server::bind(&end.socket)?;
        let claim = Self(Some(end.socket.clone()));
        let listener = listener.into_std().map_err(EndError::Descriptor)?;
        Ok((claim, listener.into()))
    }

    /// From here on the socket's file goes with the state file: see [`Core::retire`].
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some(socket) = &self.0 {
            let _ = record::remove(socket);
        }
    }
}

/// How often to look whether packets pass.
fn look_every(limits: Limits) -> Duration {
    (Duration::from_secs(limits.retire_after_seconds) / LOOKS).min(LOOK_EVERY_MAX)
}

/// Begins an end: what it goes on with is made here.
pub(crate) async fn begin(
    launch: Launch,
    permits: Permits,
    socket: UdpSocket,
    ready: impl FnOnce(Status),
    stop: mpsc::Receiver<()>,
) -> Result<(), EndError> {
    let (role, end) = match &launch {
        Launch::Near(launch) => (Role::Near, &launch.end),
        Launch::Far(launch) => (Role::Far, &launch.end),
    };
    let (claim, control) = Claim::take(end)?;
    let (device, namespace) = device::make(&end.namespace, &end.device, end.mtu)?;
    let standing = Standing::begin(role, permits, end.limits);
    let setup = Setup::new(launch).map_err(EndError::Descriptor)?;
    let handles = Handles {
        setup: setup.keep().map_err(EndError::Descriptor)?,
        namespace,
        device,
        socket: socket.into(),
        control,
    };
    let handover = Handover {
        setup,
        standing,
        handles,
    };
    let ready = |status| {
        claim.keep();
        ready(status);
    };
    live(handover, ready, stop).await
}

/// Goes on as the end that left this, until it has retired; `ready` is called when it serves.
pub async fn live(
    handover: Handover,
    ready: impl FnOnce(Status),
    stop: mpsc::Receiver<()>,
) -> Result<(), EndError> {
    let Handover {
        setup: Setup { launch, secret },
        standing,
        handles,
    } = handover;
    match launch {
        Launch::Near(launch) => near::live(launch, &secret, standing, handles, ready, stop).await,
        Launch::Far(launch) => far::live(launch, &secret, standing, handles, ready, stop).await,
    }
}

/// Says that the end is ready, and serves until it has retired. `tunnel` keeps its connection, and
/// says farewell on it when the phase becomes *retiring*.
pub(crate) async fn run(
    core: Arc<Core>,
    tunnel: impl Future<Output = ()> + Send + 'static,
    ready: impl FnOnce(Status),
    mut stop: mpsc::Receiver<()>,
) -> Result<(), EndError> {
    let listener = core.line.control().map_err(EndError::Descriptor)?;
    // Its first standby is there before anybody relies on the end.
    let standby = core.start_standby();
    if let Err(source) = core.write_record() {
        if core.is_first() {
            core.retire();
            let path = core.end.state.clone();
            return Err(StartError::File { path, source }.into());
        }
        tracing::error!(%source, "cannot write the state file");
    }
    let server = Server::default();
    let mut tasks = JoinSet::new();
    tasks.spawn(server.clone().serve(listener, core.clone()));
    tasks.spawn(pump::read(core.clone()));
    tasks.spawn(pump::send(core.clone()));
    let tunnel = tokio::spawn(tunnel);
    let standbys = tokio::spawn(standby::keep(core.clone(), standby));
    ready(core.status());
    let mut passed = core.passed();
    let mut looks = interval(look_every(core.end.limits));
    loop {
        let end = core.end_time();
        tokio::select! {
            () = core.retiring() => break,
            _ = looks.tick() => {
                let before = std::mem::replace(&mut passed, core.passed());
                if passed != before {
                    core.live_on();
                }
            }
            () = sleep_until(end) => {
                // It may have been moved meanwhile.
                if core.end_time() <= Instant::now() {
                    tracing::info!("its time is over");
                    core.retire();
                }
            }
            Some(()) = stop.recv() => core.retire(),
        }
    }
    let aborting = tunnel.abort_handle();
    if timeout(FAREWELL, tunnel).await.is_err() {
        aborting.abort();
    }
    server.idle().await;
    tasks.shutdown().await;
    let _ = standbys.await;
    tracing::info!(counts = ?core.counts(), "ended");
    Ok(())
}
