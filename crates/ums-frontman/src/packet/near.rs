//! The near end: connects, holds, leads, and connects again.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use quinn::{ClientConfig, Connection, ConnectionError, Endpoint, RecvStream, SendStream};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::control::{Phase, Role, Status};
use super::end::{Claim, Core, EndError, run};
use super::launch::NearLaunch;
use super::message::{self, FromFar, FromNear, VERSION};
use super::narrow;
use super::permit::Permit;
use super::pump;
use super::quic::{self, CLOSE_RETIRED, CLOSE_UNUSABLE};

/// A far end that is there answers in a round trip or three.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// The first rest between two attempts to connect: a far end that replaced its socket is back.
const REST_MIN: Duration = Duration::from_millis(50);

/// The longest: a path that comes back is used this soon, and 30 packets a minute harm nobody.
const REST_MAX: Duration = Duration::from_secs(2);

/// Runs a near end until it has retired; `ready` is called when the far end has let it in and
/// packets are held.
pub async fn near(
    launch: NearLaunch,
    ready: impl FnOnce(Status),
    stop: mpsc::Receiver<()>,
) -> Result<(), EndError> {
    let NearLaunch {
        end,
        address,
        permit,
    } = launch;
    let claim = Claim::take(&end)?;
    let (endpoint, config) = quic::dial(&end.identity, address)?;
    let core = Core::new(Role::Near, end, address)?;
    let mut dialler = Dialler {
        endpoint,
        config,
        core: core.clone(),
        address,
        permit,
    };
    let first = dialler.connect().await.map_err(EndError::Connect)?;
    run(core, claim, dialler.stay_connected(first), ready, stop).await
}

/// What is needed to connect.
struct Dialler {
    endpoint: Endpoint,
    config: ClientConfig,
    core: Arc<Core>,
    address: std::net::SocketAddr,
    /// To be shown the next time.
    permit: Permit,
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
    async fn stay_connected(mut self, first: Admitted) {
        let core = self.core.clone();
        let mut admitted = first;
        loop {
            core.connect(admitted.connection.clone());
            let connection = admitted.connection.clone();
            let ending = converse(&core, admitted).await;
            core.disconnect(&connection);
            match ending {
                Ending::Over => break,
                Ending::Broken(error) if quic::has_retired(&error) => break,
                Ending::Broken(error) => tracing::warn!(%error, "the tunnel broke"),
            }
            admitted = tokio::select! {
                again = self.connect_again() => again,
                () = core.retiring() => break,
            };
            core.totals.reconnects.fetch_add(1, Relaxed);
            tracing::info!("the tunnel is there again");
        }
        core.retire();
        self.endpoint.wait_idle().await;
    }

    async fn connect_again(&mut self) -> Admitted {
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

    async fn connect(&mut self) -> Result<Admitted, String> {
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
        let (admitted, next) = timeout(CONNECT_WITHIN, asked).await.map_err(late)??;
        self.permit = next;
        Ok(admitted)
    }

    /// Asks to be let in; the inner result is the far end's verdict.
    async fn ask(&self, connection: Connection) -> io::Result<Result<(Admitted, Permit), String>> {
        let (mut to, mut from) = connection.open_bi().await?;
        let hello = FromNear::Hello {
            version: VERSION,
            migration: self.core.end.migration.clone(),
            permit: self.permit.clone(),
        };
        message::write(&mut to, &hello).await?;
        match message::read(&mut from).await? {
            FromFar::Welcome { permit } => {
                message::write(&mut to, &FromNear::Confirm {}).await?;
                let admitted = Admitted {
                    connection,
                    to,
                    from,
                };
                Ok(Ok((admitted, permit)))
            }
            FromFar::Refused { reason } => Ok(Err(reason)),
            FromFar::Gone {} => Ok(Err("it is ending".to_owned())),
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
        if phase == Phase::Leading && !led {
            led = true;
            // If it doesn't arrive the connection has broken, and the next one says it again.
            let _ = message::write(&mut to, &FromNear::Lead {}).await;
        }
        if phase == Phase::Retiring {
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
