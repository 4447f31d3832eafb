//! The far end: lets the near end in, and passes packets from the start.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, ConnectionError, Endpoint, Incoming, RecvStream, SendStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::control::{Role, Status};
use super::core::Core;
use super::end::{EndError, begin, run};
use super::launch::FarLaunch;
use super::message::{self, FromFar, FromNear, VERSION};
use super::narrow;
use super::permit::{Permit, PermitHash, ValidPermits};
use super::pump;
use super::quic::{self, CLOSE_REFUSED, CLOSE_REPLACED, CLOSE_RETIRED, CLOSE_UNUSABLE};
use super::standby::{Handles, Launch, Permits, Standing};

/// Who wants to be let in says who it is within this long: as long as the near end waits.
const ADMIT_WITHIN: Duration = Duration::from_secs(10);

/// Who wants to be let in at one time; others wait in QUIC's own queue.
const ADMISSIONS_MAX: usize = 4;

/// A near end that has said its last word closes when it knows that it was heard.
const LAST_PACKETS_WITHIN: Duration = Duration::from_millis(200);

/// Runs a far end until it has retired; `ready` is called when its port and its device are there.
pub async fn far(
    launch: FarLaunch,
    ready: impl FnOnce(Status),
    stop: mpsc::Receiver<()>,
) -> Result<(), EndError> {
    let socket = quic::bind(launch.listen, launch.ports)?;
    let permits = Permits::Far(ValidPermits::new(launch.permit));
    begin(Launch::Far(launch), permits, socket, ready, stop).await
}

pub(crate) async fn live(
    launch: FarLaunch,
    secret: &Permit,
    standing: Standing,
    handles: Handles,
    ready: impl FnOnce(Status),
    stop: mpsc::Receiver<()>,
) -> Result<(), EndError> {
    let socket = handles.socket.try_clone().map_err(EndError::Descriptor)?;
    let endpoint = quic::listen(&launch.end.identity, socket.into(), secret)?;
    let address = endpoint.local_addr().map_err(quic::QuicError::Socket)?;
    let core = Core::new(Role::Far, launch.end, address, standing, handles)?;
    let door = Arc::new(Door { core: core.clone() });
    run(core, serve(endpoint, door), ready, stop).await
}

/// Decides who is let in.
struct Door {
    core: Arc<Core>,
}

/// A near end that was let in.
struct Admitted {
    connection: Connection,
    to: SendStream,
    from: RecvStream,
    /// Of the permit that it was given.
    next: PermitHash,
}

/// Lets near ends in, one after the other, until this end has retired.
async fn serve(endpoint: Endpoint, door: Arc<Door>) {
    let core = door.core.clone();
    let (admitted, mut admissions) = mpsc::channel(1);
    let accepting = tokio::spawn(accept(endpoint.clone(), door.clone(), admitted));
    let mut current: Option<Connection> = None;
    let mut conversations = JoinSet::new();
    loop {
        tokio::select! {
            Some(admitted) = admissions.recv() => {
                let admitted: Admitted = admitted;
                if let Some(old) = current.replace(admitted.connection.clone()) {
                    old.close(CLOSE_REPLACED, b"replaced by a newer connection");
                }
                tracing::info!(address = %admitted.connection.remote_address(), "let the near end in");
                core.connect(admitted.connection.clone());
                core.live_on();
                conversations.spawn(converse(door.clone(), admitted));
            }
            Some(_) = conversations.join_next() => {}
            () = core.retiring() => break,
        }
    }
    accepting.abort();
    // They see the phase too, and say farewell.
    while conversations.join_next().await.is_some() {}
    endpoint.close(CLOSE_RETIRED, b"retired");
    endpoint.wait_idle().await;
}

async fn accept(endpoint: Endpoint, door: Arc<Door>, admitted: mpsc::Sender<Admitted>) {
    let places = Arc::new(Semaphore::new(ADMISSIONS_MAX));
    // Dropped with this task: who is being admitted then is not.
    let mut admissions = JoinSet::new();
    while let Ok(place) = places.clone().acquire_owned().await {
        while admissions.try_join_next().is_some() {}
        let Some(incoming) = endpoint.accept().await else {
            return;
        };
        let (door, admitted) = (door.clone(), admitted.clone());
        admissions.spawn(async move {
            let from = incoming.remote_address();
            match timeout(ADMIT_WITHIN, door.admit(incoming)).await {
                Ok(Ok(one)) => {
                    let _ = admitted.send(one).await;
                }
                Ok(Err(error)) => tracing::warn!(%from, %error, "somebody was not let in"),
                Err(_) => tracing::warn!(%from, "somebody did not say in time who it is"),
            }
            drop(place);
        });
    }
}

impl Door {
    async fn admit(&self, incoming: Incoming) -> io::Result<Admitted> {
        let connection = incoming.accept()?.await?;
        let admitted = self.examine(&connection).await;
        if admitted.is_err() {
            connection.close(CLOSE_REFUSED, b"refused");
        }
        admitted
    }

    async fn examine(&self, connection: &Connection) -> io::Result<Admitted> {
        let peer = quic::peer(connection).map_err(io::Error::other)?;
        let (mut to, mut from) = connection.accept_bi().await?;
        let hello = message::read(&mut from).await?;
        let next = Permit::random()?;
        let verdict = if peer == self.core.end.peer {
            self.judge(&hello, next.hash())
        } else {
            Err(format!(
                "this end waits for {}, not for {peer}",
                self.core.end.peer
            ))
        };
        if let Err(reason) = verdict {
            let refused = FromFar::Refused {
                reason: reason.clone(),
            };
            message::farewell(connection, &mut to, &refused).await;
            return Err(io::Error::other(reason));
        }
        let hash = next.hash();
        message::write(&mut to, &FromFar::Welcome { permit: next }).await?;
        Ok(Admitted {
            connection: connection.clone(),
            to,
            from,
            next: hash,
        })
    }

    fn judge(&self, hello: &FromNear, next: PermitHash) -> Result<(), String> {
        let FromNear::Hello {
            version,
            migration,
            permit,
            retire_after_seconds,
        } = hello
        else {
            return Err("it did not say hello".to_owned());
        };
        if *version != VERSION {
            return Err(format!("it speaks version {version}, this end {VERSION}"));
        }
        if *migration != self.core.end.migration {
            return Err("it belongs to another migration".to_owned());
        }
        if !self.valid_permits(|permits| permits.admit(permit, next)) {
            return Err(
                "its permit is not valid: it was used before, or is another one's".to_owned(),
            );
        }
        self.core.know_peer(*retire_after_seconds);
        Ok(())
    }

    /// Looks at the permits that are good, and changes them: the standby knows, too, before the near
    /// end does.
    fn valid_permits<T: Default>(&self, look: impl FnOnce(&mut ValidPermits) -> T) -> T {
        self.core.with_permits(|permits| match permits {
            Permits::Far(valid_permits) => look(valid_permits),
            Permits::Near(_) => T::default(),
        })
    }
}

/// Uses a connection until it ends.
async fn converse(door: Arc<Door>, admitted: Admitted) {
    let Admitted {
        connection,
        mut to,
        from,
        next,
    } = admitted;
    let core = &door.core;
    let mut said = message::incoming::<FromNear>(from);
    let receiving = pump::receive(core, &connection);
    let narrowed = narrow::narrowed(&connection);
    tokio::pin!(receiving, narrowed);
    loop {
        tokio::select! {
            error = &mut receiving => {
                ended(core, &error);
                break;
            }
            message = said.recv() => match message {
                Some(FromNear::Confirm {}) => door.valid_permits(|permits| permits.confirm(next)),
                Some(FromNear::Lead {}) => core.live_on(),
                Some(FromNear::Retire {}) => {
                    tracing::info!("the near end has retired");
                    // What it sent before that is still to be read; it closes after it.
                    let _ = timeout(LAST_PACKETS_WITHIN, &mut receiving).await;
                    connection.close(CLOSE_RETIRED, b"retired");
                    core.retire();
                    break;
                }
                Some(FromNear::Hello { .. }) => tracing::warn!("the near end says hello twice"),
                None => {
                    ended(core, &connection.closed().await);
                    break;
                }
            },
            () = &mut narrowed => {
                tracing::warn!("the path takes no large packets any more");
                connection.close(CLOSE_UNUSABLE, b"narrower");
                break;
            }
            () = core.renewed.notified() => {
                // If it doesn't arrive the connection has broken; it is said again before the time
                // is over.
                let _ = message::write(&mut to, &FromFar::Renew {}).await;
            }
            () = core.retiring() => {
                message::farewell(&connection, &mut to, &FromFar::Gone {}).await;
                break;
            }
        }
    }
    core.disconnect(&connection);
}

/// What the end of a connection means: another one may come, unless the near end has retired.
fn ended(core: &Core, error: &ConnectionError) {
    tracing::info!(%error, "the tunnel ended");
    if quic::has_retired(error) {
        core.retire();
    }
}
