//! The near end: connects, holds, leads, and connects again.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use quinn::{ClientConfig, Connection, ConnectionError, Endpoint, RecvStream, SendStream};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::control::{EndMode, Role, Status};
use super::core::Core;
use super::end::{EndError, begin, run};
use super::launch::NearLaunch;
use super::message::{self, FromFar, FromNear, VERSION};
use super::narrow;
use super::permit::Permit;
use super::pump;
use super::quic::{self, CLOSE_RETIRED, CLOSE_UNUSABLE};
use super::standby::{Handles, Launch, Permits, Standing};

/// A far end that is there answers in a round trip or three; one on a host that is short of processor
/// time may take seconds, in which the service still runs.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// The first rest between two attempts to connect.
const REST_MIN: Duration = Duration::from_millis(10);

/// The longest: a path that comes back is used this soon, and 30 packets a minute harm nobody.
const REST_MAX: Duration = Duration::from_secs(2);

/// Runs a near end until it has retired; `ready` is called when the far end has let it in and
/// packets are held.
pub async fn near(
    launch: NearLaunch,
    ready: impl FnOnce(Status),
    stop: mpsc::Receiver<()>,
) -> Result<(), EndError> {
    let socket = quic::bind_towards(launch.address)?;
    let permits = Permits::Near(launch.permit.clone());
    begin(Launch::Near(launch), permits, socket, ready, stop).await
}

pub(crate) async fn live(
    launch: NearLaunch,
    secret: &Permit,
    standing: Standing,
    handles: Handles,
    ready: impl FnOnce(Status),
    stop: mpsc::Receiver<()>,
) -> Result<(), EndError> {
    let NearLaunch { end, address, .. } = launch;
    let socket = handles.socket.try_clone().map_err(EndError::Descriptor)?;
    let (endpoint, config) = quic::dial(&end.identity, socket.into(), secret)?;
    let core = Core::new(Role::Near, end, address, standing, handles)?;
    let dialler = Dialler {
        endpoint,
        config,
        core: core.clone(),
        address,
    };
    // Whoever starts an end wants to know whether there is a way; a standby looks for one.
    let admitted = match core.is_first() {
        true => Some(dialler.connect().await.map_err(EndError::Connect)?),
        false => None,
    };
    run(core, dialler.stay_connected(admitted), ready, stop).await
}

/// What is needed to connect.
struct Dialler {
    endpoint: Endpoint,
    config: ClientConfig,
    core: Arc<Core>,
    address: std::net::SocketAddr,
}

/// A connection on which the far end has let us in.
struct Admitted {
    connection: Connection,
    to: SendStream,
    from: RecvStream,
}

/// How a connection ended.
enum Ending {
    /// The far end ended, or this one did.
    Over,
    /// The connection broke.
    Broken(ConnectionError),
}

impl Dialler {
    /// Keeps the tunnel until one of the ends has retired.
    async fn stay_connected(self, first: Option<Admitted>) {
        let core = self.core.clone();
        let mut admitted = first;
        loop {
            let now = match admitted.take() {
                Some(first) => first,
                None => tokio::select! {
                    again = self.connect_again() => {
                        core.totals.reconnects.fetch_add(1, Relaxed);
                        tracing::info!("the tunnel is there again");
                        again
                    }
                    () = core.retiring() => break,
                },
            };
            core.connect(now.connection.clone());
            let connection = now.connection.clone();
            let ending = converse(&core, now).await;
            core.disconnect(&connection);
            match ending {
                Ending::Over => break,
                Ending::Broken(error) if quic::has_retired(&error) => break,
                Ending::Broken(error) => tracing::warn!(%error, "the tunnel broke"),
            }
        }
        core.retire();
        self.endpoint.wait_idle().await;
    }

    async fn connect_again(&self) -> Admitted {
        let mut rest = REST_MIN;
        let mut told = String::new();
        loop {
            sleep(rest).await;
            rest = (rest * 2).min(REST_MAX);
            match self.connect().await {
                Ok(admitted) => return admitted,
                Err(reason) if reason == told => {}
                Err(reason) => {
                    tracing::warn!(%reason, "cannot connect again yet");
                    told = reason;
                }
            }
        }
    }

    async fn connect(&self) -> Result<Admitted, String> {
        let late = |_| format!("{} did not answer within {CONNECT_WITHIN:?}", self.address);
        let peer = self.core.end.peer.to_string();
        let dialled = self
            .endpoint
            .connect_with(self.config.clone(), self.address, &peer)
            .map_err(|error| error.to_string())?;
        let asked = async {
            let connection = dialled.await.map_err(|error| error.to_string())?;
            let answer = self.ask(connection.clone()).await;
            answer.map_err(|error| match connection.close_reason() {
                Some(reason) => reason.to_string(),
                None => error.to_string(),
            })?
        };
        timeout(CONNECT_WITHIN, asked).await.map_err(late)?
    }

    /// Asks to be let in; the inner result is the far end's verdict.
    async fn ask(&self, connection: Connection) -> io::Result<Result<Admitted, String>> {
        let (mut to, mut from) = connection.open_bi().await?;
        let permit = self.core.with_permits(|permits| match permits {
            Permits::Near(permit) => Some(permit.clone()),
            Permits::Far(_) => None,
        });
        let hello = FromNear::Hello {
            version: VERSION,
            migration: self.core.end.migration.clone(),
            permit: permit.ok_or(io::ErrorKind::InvalidInput)?,
            retire_after_seconds: self.core.end.limits.retire_after_seconds,
        };
        message::write(&mut to, &hello).await?;
        match message::read(&mut from).await? {
            FromFar::Welcome { permit } => {
                // The standby has it before the far end forgets the one before.
                self.core
                    .with_permits(|permits| *permits = Permits::Near(permit));
                message::write(&mut to, &FromNear::Confirm {}).await?;
                let admitted = Admitted {
                    connection,
                    to,
                    from,
                };
                Ok(Ok(admitted))
            }
            FromFar::Refused { reason } => Ok(Err(reason)),
            FromFar::Gone {} => Ok(Err("it is ending".to_owned())),
            FromFar::Renew {} => Ok(Err("it says what it shouldn't yet".to_owned())),
        }
    }
}

/// Uses a connection until it ends.
async fn converse(core: &Core, admitted: Admitted) -> Ending {
    let Admitted {
        connection,
        mut to,
        from,
    } = admitted;
    let mut said = message::incoming::<FromFar>(from);
    let mut phases = core.phase.subscribe();
    let receiving = pump::receive(core, &connection);
    let narrowed = narrow::narrowed(&connection);
    tokio::pin!(receiving, narrowed);
    let mut led = false;
    loop {
        let phase = *phases.borrow_and_update();
        if phase == EndMode::Leading && !led {
            led = true;
            // If it doesn't arrive the connection has broken, and the next one says it again.
            let _ = message::write(&mut to, &FromNear::Lead {}).await;
        }
        if phase == EndMode::Retiring {
            message::farewell(&connection, &mut to, &FromNear::Retire {}).await;
            return Ending::Over;
        }
        tokio::select! {
            error = &mut receiving => return Ending::Broken(error),
            message = said.recv() => match message {
                Some(FromFar::Gone {}) => {
                    tracing::info!("the far end's service is gone");
                    connection.close(CLOSE_RETIRED, b"gone");
                    return Ending::Over;
                }
                Some(FromFar::Renew {}) => core.live_on(),
                Some(_) => tracing::warn!("the far end says what it shouldn't now"),
                None => return Ending::Broken(connection.closed().await),
            },
            () = &mut narrowed => {
                tracing::warn!("the path takes no large packets any more");
                connection.close(CLOSE_UNUSABLE, b"narrower");
                return Ending::Broken(connection.closed().await);
            }
            _ = phases.changed() => {}
        }
    }
}
