//! One client connection: held, then led.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncWriteExt, copy_bidirectional_with_sizes};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use crate::control::{Limits, Upstreams};
use crate::counters::{Counters, Outcome};
use crate::tuning::{reset, tune};

/// Read ahead from one held connection: a request's head, for most protocols.
const EARLY_BYTES_MAX: usize = 16 * 1024;

/// Buffer for each direction of a connection that is led: two of them for each connection, and
/// enough for a few segments at a time.
const COPY_BUFFER_BYTES: usize = 16 * 1024;

/// First wait between two attempts to reach an upstream, doubled up to the longest.
const RETRY_FIRST: Duration = Duration::from_millis(10);

/// Longest wait between two attempts.
const RETRY_LONGEST: Duration = Duration::from_millis(320);

/// A connection that was held almost to its limit still gets this long to reach an upstream.
const CONNECT_AT_LEAST: Duration = Duration::from_secs(3);

/// One attempt to connect: then the packet is taken for lost.
const CONNECT_ATTEMPT: Duration = Duration::from_secs(5);

/// What all connections are told to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Decision {
    Hold,
    Lead(Arc<Upstreams>),
    /// Where to lead those still held, if anywhere, and when the rest is reset.
    Retire(Option<Arc<Upstreams>>, Instant),
}

impl Decision {
    pub(crate) fn upstreams(&self) -> Option<&Arc<Upstreams>> {
        match self {
            Decision::Hold => None,
            Decision::Lead(upstreams) => Some(upstreams),
            Decision::Retire(upstreams, _) => upstreams.as_ref(),
        }
    }
}

/// What the connections of one Frontman share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) limits: Limits,
    pub(crate) counters: Counters,
    /// Places for connections without an upstream.
    pub(crate) holding: Arc<Semaphore>,
    /// Places for connections that are led.
    pub(crate) leading: Arc<Semaphore>,
    /// Bytes that may be read ahead.
    pub(crate) early: Arc<Semaphore>,
}

impl Shared {
    pub(crate) fn new(limits: Limits) -> Self {
        let places = |count: usize| Arc::new(Semaphore::new(count.min(Semaphore::MAX_PERMITS)));
        Self {
            limits,
            counters: Counters::default(),
            holding: places(limits.hold_connections),
            leading: places(limits.lead_connections),
            early: places(limits.hold_bytes),
        }
    }
}

/// Serves one client to the end, whatever that is.
pub(crate) async fn serve(
    client: TcpStream,
    system_port: u16,
    shared: Arc<Shared>,
    decision: watch::Receiver<Decision>,
) {
    let outcome = try_serve(client, system_port, &shared, decision).await;
    shared.counters.ended(outcome);
}

async fn try_serve(
    client: TcpStream,
    system_port: u16,
    shared: &Shared,
    mut decision: watch::Receiver<Decision>,
) -> Outcome {
    let Ok(place) = shared.holding.clone().try_acquire_owned() else {
        reset(client);
        return Outcome::RefusedBound;
    };
    if tune(&client).is_err() {
        return Outcome::Gone;
    }
    let counted = shared.counters.holding();
    let mut held = Held {
        client,
        early: None,
        watching: true,
    };
    let upstream = match held.upstream(system_port, shared, &mut decision).await {
        Ok(upstream) => upstream,
        Err(outcome) => {
            reset(held.client);
            return outcome;
        }
    };
    let Ok(_leading) = shared.leading.clone().try_acquire_owned() else {
        reset(held.client);
        reset(upstream);
        return Outcome::RefusedBound;
    };
    drop((counted, place));
    let _counted = shared.counters.leading();
    relay(held, upstream, decision).await
}

/// A client connection that waits for an upstream.
struct Held {
    client: TcpStream,
    /// What was read ahead, with the share of the bound that it takes.
    early: Option<(Vec<u8>, OwnedSemaphorePermit)>,
    /// Whether reading can still tell anything.
    watching: bool,
}

impl Held {
    /// Waits for a decision and for the upstream it names to answer.
    async fn upstream(
        &mut self,
        system_port: u16,
        shared: &Shared,
        decision: &mut watch::Receiver<Decision>,
    ) -> Result<TcpStream, Outcome> {
        let mut until = Instant::now() + shared.limits.hold();
        loop {
            let current = decision.borrow_and_update().clone();
            match &current {
                Decision::Hold => {}
                Decision::Lead(_) => until = until.max(Instant::now() + CONNECT_AT_LEAST),
                Decision::Retire(Some(_), end) => until = until.min(*end),
                Decision::Retire(None, _) => return Err(Outcome::RefusedRetired),
            }
            let wanted = current
                .upstreams()
                .and_then(|all| all.get(&system_port))
                .copied();
            tokio::select! {
                biased;
                changed = decision.changed() => {
                    if changed.is_err() {
                        return Err(Outcome::RefusedRetired);
                    }
                }
                upstream = reach(wanted) => return Ok(upstream),
                gone = self.watch(&shared.early), if wanted.is_none() => return Err(gone),
                () = sleep_until(until) => return Err(Outcome::RefusedTime),
            }
        }
    }

    /// Reads ahead once, within the bound, and returns when the client has given up. A client that
    /// only ended its own direction still waits for an answer.
    ///
    /// *Cancel safety*: nothing is lost, since the only await is for readiness.
    async fn watch(&mut self, bound: &Arc<Semaphore>) -> Outcome {
        while self.watching {
            if self.client.readable().await.is_err() || self.read_ahead(bound).is_err() {
                return Outcome::Gone;
            }
        }
        std::future::pending().await
    }

    fn read_ahead(&mut self, bound: &Arc<Semaphore>) -> io::Result<()> {
        let bytes = EARLY_BYTES_MAX.min(bound.available_permits());
        let permits = u32::try_from(bytes).unwrap_or(0);
        let Ok(mut permit) = bound.clone().try_acquire_many_owned(permits) else {
            return Ok(());
        };
        // With no room the data stays in the kernel, and there is nothing more to see.
        self.watching = false;
        if bytes == 0 {
            return Ok(());
        }
        let mut buffer = vec![0; bytes];
        match self.client.try_read(&mut buffer) {
            Ok(0) => Ok(()),
            Ok(count) => {
                buffer.truncate(count);
                buffer.shrink_to_fit();
                self.early = permit.split(count).map(|kept| (buffer, kept));
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.watching = true;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

/// Connects, as often as it takes: between the commit and the service's first instruction there
/// may be nobody at the new place yet. Never returns when there is nowhere to go.
async fn reach(upstream: Option<SocketAddr>) -> TcpStream {
    let Some(address) = upstream else {
        return std::future::pending().await;
    };
    let mut wait = RETRY_FIRST;
    loop {
        let attempt = timeout_at(
            Instant::now() + CONNECT_ATTEMPT,
            TcpStream::connect(address),
        );
        if let Ok(Ok(stream)) = attempt.await
            && tune(&stream).is_ok()
        {
            return stream;
        }
        sleep(wait).await;
        wait = (wait * 2).min(RETRY_LONGEST);
    }
}

/// Copies both ways until both directions have ended, one breaks, or draining takes too long.
async fn relay(
    held: Held,
    mut upstream: TcpStream,
    mut decision: watch::Receiver<Decision>,
) -> Outcome {
    let Held {
        mut client, early, ..
    } = held;
    let copied = async {
        if let Some((early, permit)) = early {
            upstream.write_all(&early).await?;
            drop((early, permit));
        }
        copy_bidirectional_with_sizes(
            &mut client,
            &mut upstream,
            COPY_BUFFER_BYTES,
            COPY_BUFFER_BYTES,
        )
        .await
    };
    let outcome = tokio::select! {
        biased;
        copied = copied => if copied.is_ok() { Outcome::Finished } else { Outcome::Broken },
        () = drained(&mut decision) => Outcome::Cut,
    };
    if outcome != Outcome::Finished {
        // A reset on one side becomes a reset on the other, never an orderly end.
        reset(client);
        reset(upstream);
    }
    outcome
}

/// Returns when the time for draining is over.
async fn drained(decision: &mut watch::Receiver<Decision>) {
    loop {
        let end = match *decision.borrow_and_update() {
            Decision::Retire(_, end) => Some(end),
            Decision::Hold | Decision::Lead(_) => None,
        };
        let over = async {
            match end {
                Some(end) => sleep_until(end).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = decision.changed() => if changed.is_err() { return },
            () = over => return,
        }
    }
}
