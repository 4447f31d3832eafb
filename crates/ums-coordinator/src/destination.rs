//! The destination: drives the receiver's state machine and, with it, the agent of this system.
//!
//! Each operation holds the migration's lock, writes the state it reaches before it answers, and
//! runs to its end even if the source's connection breaks meanwhile. What matters most is the order
//! of writing and doing: *prepared* is durable before the source learns of it, *committed* before
//! the service is run, *aborted* before it is discarded.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ums_api::agent::{CreateRequest, Phase};
use ums_api::client::Permission;
use ums_api::peer::{
    CommitAnswer, CreateAnswer, ReserveAnswer, ReserveRequest, RestoreAnswer, View,
};
use ums_api::problem::{Fault, Problem};
use ums_core::facts::NodeFacts;
use ums_core::id::{MigrationId, SystemName};
use ums_core::preflight::{self, Estimates, Wishes};
use ums_core::receiver::{self, Message, Rejected, State};
use ums_core::specification::Specification;

use crate::clock::{boot, monotonic_ns, unix_ms};
use crate::journal::Incoming;
use crate::policy;
use crate::problem::{Refused, Reply};
use crate::shared::Shared;

/// Memory that may arrive beyond twice what the service had at first, bytes: it goes on running,
/// and allocating, until the freeze.
const MEMORY_GROWTH_BYTES: u64 = 256 * 1024 * 1024;

/// What is not in the journal about arriving services: locks and leases.
#[derive(Debug, Default)]
pub(crate) struct Arrivals {
    slots: Mutex<BTreeMap<MigrationId, Arc<Slot>>>,
    /// One reservation at a time, so that two can't be promised the same port.
    admission: tokio::sync::Mutex<()>,
}

/// One arriving service.
#[derive(Debug)]
pub(crate) struct Slot {
    /// One operation at a time.
    lock: tokio::sync::Mutex<()>,
    heard: Mutex<Instant>,
}

impl Slot {
    /// The source has been heard of.
    fn renew(&self) {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// How long the source has not been heard of. A restart counts as a word of it: leases only
    /// reclaim, so one too long does no harm.
    fn silent_for(&self) -> Duration {
        self.heard
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .elapsed()
    }
}

impl Arrivals {
    fn slot(&self, id: MigrationId) -> Arc<Slot> {
        let make = || {
            Arc::new(Slot {
                lock: tokio::sync::Mutex::default(),
                heard: Mutex::new(Instant::now()),
            })
        };
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(slots.entry(id).or_insert_with(make))
    }

    /// Forgets locks of migrations that are over.
    pub(crate) fn keep(&self, open: &BTreeSet<MigrationId>) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.retain(|id, slot| open.contains(id) || Arc::strong_count(slot) > 1);
    }
}

/// Step 3: judges and reserves.
pub(crate) async fn reserve(
    shared: &Shared,
    source: SystemName,
    id: MigrationId,
    request: ReserveRequest,
) -> Reply<ReserveAnswer> {
    policy::allowed(&shared.config, &source, Permission::Send)?;
    let slot = shared.arrivals.slot(id);
    let _turn = slot.lock.lock().await;
    slot.renew();
    let lease_ms = u64::try_from(shared.config.limits.lease.as_millis()).unwrap_or(u64::MAX);
    let accepted = ReserveAnswer {
        refusals: Vec::new(),
        lease_ms,
    };
    if let Some(known) = shared.journal(move |journal| journal.incoming(id)).await? {
        owned(&known, &source)?;
        return match known.state {
            State::Reserved => Ok(accepted),
            State::Aborted => Err(Rejected::Aborted.into()),
            _ => Err(Rejected::TooLate.into()),
        };
    }
    let _admission = shared.arrivals.admission.lock().await;
    let arriving = shared.journal(|journal| journal.all_incoming(true)).await?;
    let mut others = arriving
        .iter()
        .filter(|(_, incoming)| incoming.state.is_arriving());
    let max = shared.config.limits.incoming_max;
    if others.clone().count() >= max {
        let detail = format!("{max} services are arriving, the most allowed; try again later");
        let title = "too many migrations at once";
        let problem = Problem::refused(429, "too-many-migrations", title, detail);
        return Err(Refused(Problem {
            retry: true,
            fault: Fault::Peer,
            ..problem
        }));
    }
    let mut facts = shared.agent.facts().await?;
    others
        .by_ref()
        .for_each(|(_, incoming)| promise(&mut facts, incoming));
    let refusals = preflight::judge(
        &request.source,
        &request.service,
        Some(&facts),
        &Wishes::default(),
        &Estimates::default(),
    );
    if !refusals.is_empty() {
        return Ok(ReserveAnswer { refusals, lease_ms });
    }
    let incoming = Incoming {
        state: State::Reserved,
        source,
        service: Some(request.service),
        asked_at_ms: unix_ms(),
        ended_at_ms: None,
        created: None,
        running_since: None,
        cleaned: false,
        reason: None,
    };
    put(shared, id, &incoming).await?;
    Ok(accepted)
}

/// What has been promised to others counts as taken, whether or not the agent knows of it yet.
fn promise(facts: &mut NodeFacts, incoming: &Incoming) {
    let Some(service) = &incoming.service else {
        return;
    };
    let Specification {
        name,
        address,
        ports,
        ..
    } = &service.specification;
    facts.services.insert(name.to_string());
    facts.addresses.insert(*address);
    facts
        .ports
        .extend(ports.iter().map(|port| port.system_port));
    let memory = service.memory_bytes;
    facts.memory_available_bytes = facts.memory_available_bytes.saturating_sub(memory);
}

/// The lease begins anew.
pub(crate) async fn renew(shared: &Shared, source: SystemName, id: MigrationId) -> Reply<View> {
    let incoming = known(shared, &source, id).await?;
    shared.arrivals.slot(id).renew();
    Ok(View {
        state: incoming.state.name().to_owned(),
    })
}

/// How far it is.
pub(crate) async fn view(shared: &Shared, source: SystemName, id: MigrationId) -> Reply<View> {
    let incoming = known(shared, &source, id).await?;
    Ok(View {
        state: incoming.state.name().to_owned(),
    })
}

/// Steps 4 to 6: the container is created.
pub(crate) async fn create(
    shared: &Shared,
    source: SystemName,
    id: MigrationId,
) -> Reply<CreateAnswer> {
    let began = Instant::now();
    let slot = shared.arrivals.slot(id);
    let _turn = slot.lock.lock().await;
    slot.renew();
    let mut incoming = known(shared, &source, id).await?;
    receiver::receive(Some(&incoming.state), &Message::Create)?;
    if let Some(created) = incoming.created {
        return Ok(created);
    }
    let Some(service) = &incoming.service else {
        return Err(Rejected::Aborted.into());
    };
    let request = CreateRequest {
        specification: service.specification.clone(),
        source,
        memory_bytes_max: service
            .memory_bytes
            .saturating_mul(2)
            .saturating_add(MEMORY_GROWTH_BYTES),
    };
    let created = shared.agent.create(id, &request).await?;
    let answer = CreateAnswer {
        data_port: created.data_port,
        permit: created.permit,
        tunnel: created.tunnel,
        image_needed: created.image_needed,
        endpoints: created.endpoints,
        processing_us: microseconds(began.elapsed()),
    };
    incoming.state = receiver::receive(Some(&incoming.state), &Message::Created)?;
    incoming.created = Some(answer.clone());
    put(shared, id, &incoming).await?;
    slot.renew();
    Ok(answer)
}

/// Steps 11 and 12: restored, held, and durably so. *Delivered* is not written: until *prepared* is,
/// a crash leaves what the lease may reclaim.
pub(crate) async fn restore(
    shared: &Shared,
    source: SystemName,
    id: MigrationId,
    digest: String,
) -> Reply<RestoreAnswer> {
    let began = Instant::now();
    let slot = shared.arrivals.slot(id);
    let _turn = slot.lock.lock().await;
    slot.renew();
    let mut incoming = known(shared, &source, id).await?;
    let message = Message::Restore {
        digest: digest.clone(),
    };
    let delivered = receiver::receive(Some(&incoming.state), &message)?;
    if !matches!(delivered, State::Prepared { .. }) {
        let restored = shared.agent.restore(id).await?;
        if restored.digest != digest {
            return Err(Rejected::Digest.into());
        }
        incoming.state = receiver::receive(Some(&delivered), &Message::Prepared)?;
        put(shared, id, &incoming).await?;
        slot.renew();
    }
    Ok(RestoreAnswer {
        digest,
        processing_us: microseconds(began.elapsed()),
    })
}

/// Step 13: the source has committed, so it is written and run.
pub(crate) async fn commit(
    shared: &Shared,
    source: SystemName,
    id: MigrationId,
) -> Reply<CommitAnswer> {
    let began = Instant::now();
    let slot = shared.arrivals.slot(id);
    let _turn = slot.lock.lock().await;
    let mut incoming = known(shared, &source, id).await?;
    let committed = receiver::receive(Some(&incoming.state), &Message::Commit)?;
    if committed != incoming.state {
        incoming.state = committed;
        put(shared, id, &incoming).await?;
    }
    run(shared, id, &mut incoming).await?;
    Ok(CommitAnswer {
        processing_us: microseconds(began.elapsed()),
        running_for_us: incoming.running_since.as_ref().map_or(0, running_for_us),
    })
}

/// Runs what is committed, unless it runs.
async fn run(shared: &Shared, id: MigrationId, incoming: &mut Incoming) -> Reply<()> {
    if incoming.state != State::Committed {
        return Ok(());
    }
    let asked_ns = monotonic_ns();
    let running = shared.agent.run(id).await?;
    // Later than the answer it can't have been, whatever the agent reckons; a repeated `run` that
    // finds it running says what the first one took.
    let ran_ns = asked_ns
        .saturating_add(running.resume_us.saturating_mul(1000))
        .min(monotonic_ns());
    incoming.running_since = Some((ran_ns, boot()));
    incoming.ended_at_ms = Some(unix_ms());
    incoming.state = receiver::receive(Some(&incoming.state), &Message::Ran)?;
    put(shared, id, incoming).await
}

fn running_for_us(since: &(u64, String)) -> u64 {
    let (ran_ns, boot_then) = since;
    // After a reboot the instance is gone, and so is the sense of the question.
    if *boot_then == boot() {
        monotonic_ns().saturating_sub(*ran_ns) / 1000
    } else {
        0
    }
}

/// The source gives it up. The answer means that nothing is left here.
pub(crate) async fn abort(shared: &Shared, source: SystemName, id: MigrationId) -> Reply<()> {
    let slot = shared.arrivals.slot(id);
    let _turn = slot.lock.lock().await;
    let known = shared.journal(move |journal| journal.incoming(id)).await?;
    let Some(mut incoming) = known else {
        // Remembered, so that a request that this one has overtaken finds it aborted.
        policy::peer(&shared.config, &source)?;
        let now = unix_ms();
        let tombstone = Incoming {
            state: receiver::receive(None, &Message::Abort)?,
            source,
            service: None,
            asked_at_ms: now,
            ended_at_ms: Some(now),
            created: None,
            running_since: None,
            cleaned: true,
            reason: Some("aborted before it was known".to_owned()),
        };
        return put(shared, id, &tombstone).await;
    };
    owned(&incoming, &source)?;
    let reason = "the source has given it up";
    end(shared, id, &mut incoming, &Message::Abort, reason).await
}

/// Writes that it is aborted, then discards it.
async fn end(
    shared: &Shared,
    id: MigrationId,
    incoming: &mut Incoming,
    message: &Message,
    reason: &str,
) -> Reply<()> {
    let state = receiver::receive(Some(&incoming.state), message)?;
    if state != State::Aborted {
        return Ok(());
    }
    if incoming.state != State::Aborted {
        incoming.state = state;
        incoming.reason = Some(reason.to_owned());
        incoming.ended_at_ms = Some(unix_ms());
        put(shared, id, incoming).await?;
        tracing::info!(migration = %id, reason, "an arriving service was given up");
    }
    discard(shared, id, incoming).await
}

async fn discard(shared: &Shared, id: MigrationId, incoming: &mut Incoming) -> Reply<()> {
    if incoming.cleaned {
        return Ok(());
    }
    match shared.agent.discard(id).await {
        Ok(()) => {}
        Err(error) if is_unknown(&error) => {}
        Err(error) => return Err(error.into()),
    }
    incoming.cleaned = true;
    put(shared, id, incoming).await
}

/// Step 15: the source has deleted its own container.
pub(crate) async fn close(shared: &Shared, source: SystemName, id: MigrationId) -> Reply<()> {
    let slot = shared.arrivals.slot(id);
    let _turn = slot.lock.lock().await;
    let mut incoming = known(shared, &source, id).await?;
    let closed = receiver::receive(Some(&incoming.state), &Message::Close)?;
    if closed != incoming.state {
        incoming.state = closed;
        put(shared, id, &incoming).await?;
    }
    Ok(())
}

/// What the reconciler does with one arriving service: reclaims, runs, settles, discards. `Ok(true)`
/// asks for the source's decision.
pub(crate) async fn reconcile(shared: &Shared, id: MigrationId) -> Reply<bool> {
    let slot = shared.arrivals.slot(id);
    // Whoever holds the lock is at work on it.
    let Ok(_turn) = slot.lock.try_lock() else {
        return Ok(false);
    };
    let Some(mut incoming) = shared.journal(move |journal| journal.incoming(id)).await? else {
        return Ok(false);
    };
    let limits = &shared.config.limits;
    match incoming.state {
        State::Reserved | State::Created | State::Delivered { .. } => {
            if slot.silent_for() > limits.lease {
                let reason = "the source was not heard of for the length of the lease";
                end(shared, id, &mut incoming, &Message::LeaseEnded, reason).await?;
            }
        }
        State::Prepared { .. } => return Ok(slot.silent_for() > limits.doubt_after),
        State::Committed => run(shared, id, &mut incoming).await?,
        State::Running | State::Closed => settle(shared, id, &mut incoming).await?,
        State::Aborted => discard(shared, id, &mut incoming).await?,
    }
    Ok(false)
}

/// Once all pages are in, the agent drops the migration's working state.
async fn settle(shared: &Shared, id: MigrationId, incoming: &mut Incoming) -> Reply<()> {
    if incoming.cleaned {
        return Ok(());
    }
    match shared.agent.migration(id).await {
        Ok(state) if state.phase == Phase::Settled || state.pages_pending == 0 => {
            shared.agent.settle(id).await?;
        }
        Ok(_) => return Ok(()),
        Err(error) if is_unknown(&error) => {}
        Err(error) => return Err(error.into()),
    }
    incoming.cleaned = true;
    put(shared, id, incoming).await
}

fn is_unknown(error: &ums_api::http::ClientError) -> bool {
    error.problem().is_some_and(|problem| problem.status == 404)
}

async fn known(shared: &Shared, source: &SystemName, id: MigrationId) -> Reply<Incoming> {
    let incoming = shared.journal(move |journal| journal.incoming(id)).await?;
    let incoming = incoming.ok_or(Rejected::Aborted)?;
    owned(&incoming, source)?;
    Ok(incoming)
}

/// Only the source of a migration may speak about it. Others learn nothing, not even that it is.
fn owned(incoming: &Incoming, source: &SystemName) -> Reply<()> {
    if incoming.source == *source {
        Ok(())
    } else {
        Err(Rejected::Aborted.into())
    }
}

async fn put(shared: &Shared, id: MigrationId, incoming: &Incoming) -> Reply<()> {
    let incoming = incoming.clone();
    Ok(shared
        .journal(move |journal| journal.put_incoming(id, &incoming))
        .await?)
}

fn microseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
