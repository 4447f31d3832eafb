//! The destination: drives the receiver's state machine and, with it, the agent of this system.
//!
//! Each operation holds the migration's lock, writes the state it reaches before it answers, and
//! runs to its end even if the source's connection breaks meanwhile. What matters most is the order
//! of writing and doing: *prepared* is durable before the source learns of it, *committed* before
//! the service is run, *aborted* before it is discarded.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use ums_api::agent::{CreateRequest, Phase, Running, ServiceStatus, ServiceView};
use ums_api::client::Permission;
use ums_api::http::AgentClient;
use ums_api::peer::{
    CloseRequest, CommitAnswer, CreateAnswer, LossesAnswer, PagesAnswer, ReserveAnswer,
    ReserveRequest, RestoreAnswer, SpansAnswer, View,
};
use ums_api::problem::{Fault, Problem, ProblemKind};
use ums_core::budget::{self, Laps, Part, Span};
use ums_core::facts::{NodeFacts, ServiceFacts};
use ums_core::id::{MigrationId, SystemName};
use ums_core::preflight::{self, Estimates, MigrateOptions};
use ums_core::receiver::{self, Message, Rejected, State};
use ums_core::specification::{Specification, Transport};

use crate::clock::{boot, monotonic_ns, unix_ms};
use crate::journal::Incoming;
use crate::policy;
use crate::problem::{Refused, Reply};
use crate::shared::Shared;

/// Memory that may arrive beyond twice what the service had at first, bytes: it goes on running,
/// and allocating, until the freeze.
const MEMORY_GROWTH_BYTES: u64 = 256 * 1024 * 1024;

/// Most memory that may arrive of a service that had so much when it was announced, bytes.
const fn memory_bytes_max(announced: u64) -> u64 {
    announced
        .saturating_mul(2)
        .saturating_add(MEMORY_GROWTH_BYTES)
}

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
    /// Parts of the downtime, until they are written with the first instruction. A restart forgets them.
    spans: Mutex<Vec<Span>>,
}

impl Slot {
    /// The source has been heard of.
    fn renew(&self) {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Parts of the downtime that were spent here.
    fn spent(&self, spans: impl IntoIterator<Item = Span>) {
        let mut all = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        all.extend(spans);
    }

    /// All that were told.
    fn all_spent(&self) -> Vec<Span> {
        std::mem::take(&mut *self.spans.lock().unwrap_or_else(PoisonError::into_inner))
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
                spans: Mutex::default(),
            })
        };
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(slots.entry(id).or_insert_with(make))
    }

    /// How long the source of a migration has not been heard of.
    pub(crate) fn silent_for(&self, id: MigrationId) -> Duration {
        self.slot(id).silent_for()
    }

    /// Forgets locks of migrations that are over.
    pub(crate) fn keep(&self, open: &BTreeSet<MigrationId>) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.retain(|id, slot| open.contains(id) || Arc::strong_count(slot) > 1);
    }
}

/// The agent where a service arrives, or has arrived.
fn agent(shared: &Shared, service: Option<&ServiceFacts>) -> AgentClient {
    let name = service.map(|service| &service.specification.name);
    shared.agents.of_any(name)
}

/// Step 3: judges and reserves.
pub(crate) async fn reserve(
    shared: &Shared,
    (source, version): (SystemName, u32),
    id: MigrationId,
    request: ReserveRequest,
) -> Reply<ReserveAnswer> {
    policy::allowed(shared, &source, Permission::Send)?;
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
            State::Aborted | State::Lost | State::Discarded => Err(Rejected::Aborted.into()),
            _ => Err(Rejected::TooLate.into()),
        };
    }
    let _admission = shared.arrivals.admission.lock().await;
    let arriving = shared.journal(|journal| journal.all_incoming(true)).await?;
    let mut others = arriving
        .iter()
        .filter(|(_, incoming)| incoming.state.is_arriving());
    let max = shared.settings.now().incoming_max;
    if others.clone().count() >= max {
        let detail = format!("{max} services are arriving, the most allowed; try again later");
        let title = "too many migrations at once";
        let problem = Problem::refused(429, ProblemKind::TooManyMigrations, title, detail);
        return Err(Refused(Problem {
            retry: true,
            fault: Fault::Peer,
            ..problem
        }));
    }
    let mut facts = agent(shared, Some(&request.service)).facts().await?;
    let name = &request.service.specification.name;
    let is_outer = shared.agents.is_outer(name);
    others.by_ref().for_each(|(_, incoming)| {
        let other = incoming.service.as_ref().map(|it| &it.specification.name);
        // An outer container's network has nobody else in it.
        let shares = |other| other == name || !(is_outer || shared.agents.is_outer(other));
        promise(&mut facts, incoming, other.is_none_or(shares));
    });
    // What the move changes was put before whoever asked for it, at the source.
    let options = MigrateOptions {
        accept_loss: true,
        engine: request.service.specification.engine.clone(),
        approach: request.approach,
        technique: request.technique,
        ..MigrateOptions::default()
    };
    let refusals = preflight::judge(
        &request.source,
        &request.service,
        Some(&facts),
        &options,
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
        forced: false,
        stuck: None,
        conflict: None,
        losses: Vec::new(),
        spans: Vec::new(),
        version,
        approach: request.approach,
        technique: request.technique,
        account: None,
    };
    put(shared, id, &incoming).await?;
    Ok(accepted)
}

/// What has been promised to others counts as taken, whether or not the agent knows of it yet: of the place in
/// the network only where that is the same.
fn promise(facts: &mut NodeFacts, incoming: &Incoming, shares_network: bool) {
    let Some(service) = &incoming.service else {
        return;
    };
    let Specification {
        name,
        address,
        ports,
        ..
    } = &service.specification;
    if shares_network {
        facts.system.services.insert(name.to_string());
        facts.system.addresses.insert(*address);
    }
    for port in ports.iter().filter(|_| shares_network) {
        match port.transport {
            Transport::Tcp => facts.system.ports.insert(port.system_port),
            Transport::Udp => facts.system.udp_ports.insert(port.system_port),
        };
    }
    let memory = service.memory_bytes;
    facts.memory_available_bytes = facts.memory_available_bytes.saturating_sub(memory);
    let disk = service
        .filesystem_bytes
        .saturating_add(service.image_bytes_for(facts));
    facts.disk_available_bytes = facts.disk_available_bytes.saturating_sub(disk);
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
        memory_bytes_max: memory_bytes_max(service.memory_bytes),
    };
    let created = agent(shared, Some(service)).create(id, &request).await?;
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
        // All that may have arrived: no shorter than its source waits, which knows what did.
        let announced = incoming.service.as_ref().map_or(0, |it| it.memory_bytes);
        let limits = &shared.config.limits;
        let limit = limits.restore_timeout(memory_bytes_max(announced));
        let restored = agent(shared, incoming.service.as_ref())
            .restore(id, limit)
            .await?;
        if restored.digest != digest {
            return Err(Rejected::Digest.into());
        }
        let prepared_us = microseconds(began.elapsed());
        let mut promise = Laps::begin(monotonic_ns());
        incoming.state = receiver::receive(Some(&delivered), &Message::Prepared)?;
        put(shared, id, &incoming).await?;
        promise.lap(Part::Promise, monotonic_ns());
        let prepare = budget::rest(Part::Prepare, prepared_us, &restored.spans);
        let spans = [prepare].into_iter().chain(restored.spans);
        slot.spent(spans.chain(promise.into_spans()));
        slot.renew();
    }
    Ok(RestoreAnswer {
        digest,
        processing_us: microseconds(began.elapsed()),
    })
}

/// Step 13: the source has committed, so it is written and run. What is gone before its first
/// instruction is answered for as [`Rejected::Lost`], once nothing is left of it.
pub(crate) async fn commit(
    shared: &Shared,
    source: SystemName,
    id: MigrationId,
) -> Reply<CommitAnswer> {
    let (began, began_ns) = (Instant::now(), monotonic_ns());
    let slot = shared.arrivals.slot(id);
    let _turn = slot.lock.lock().await;
    slot.renew();
    let mut incoming = known(shared, &source, id).await?;
    if incoming.state.is_given_up() {
        discard(shared, id, &mut incoming).await?;
    }
    let committed = receiver::receive(Some(&incoming.state), &Message::Commit)?;
    let mut laps = Laps::begin(began_ns);
    if committed != incoming.state {
        take_on(shared, id, &mut incoming, committed, false).await?;
    } else if incoming.forced {
        incoming.forced = false;
        put(shared, id, &incoming).await?;
    }
    laps.lap(Part::TakeOn, monotonic_ns());
    slot.spent(laps.into_spans());
    run(shared, id, &mut incoming).await?;
    Ok(CommitAnswer {
        processing_us: microseconds(began.elapsed()),
        running_for_us: incoming.running_since.as_ref().map_or(0, running_for_us),
    })
}

/// Writes that what is prepared is committed, before our agent is asked to run it; or that it is
/// lost, if our agent does not hold it any more. While our agent does not answer neither is known,
/// and nothing is written.
async fn take_on(
    shared: &Shared,
    id: MigrationId,
    incoming: &mut Incoming,
    committed: State,
    forced: bool,
) -> Reply<()> {
    match instance(shared, id, incoming).await? {
        Instance::Held => {
            incoming.state = committed;
            incoming.forced = forced;
            put(shared, id, incoming).await
        }
        Instance::Gone(why) => {
            end(shared, id, incoming, &Message::Gone, &why).await?;
            Err(Rejected::Lost.into())
        }
    }
}

/// What our agent has of an instance that was prepared.
enum Instance {
    /// It is held, or runs.
    Held,
    /// It is certainly gone, because of this.
    Gone(String),
}

async fn instance(shared: &Shared, id: MigrationId, incoming: &Incoming) -> Reply<Instance> {
    let state = match agent(shared, incoming.service.as_ref()).migration(id).await {
        Ok(state) => state,
        Err(error) if is_unknown(&error) => {
            let why = "this system's agent knows nothing of it any more";
            return Ok(Instance::Gone(why.to_owned()));
        }
        Err(error) => return Err(error.into()),
    };
    match state.phase {
        Phase::Held | Phase::Installing | Phase::Settled => Ok(Instance::Held),
        Phase::Failed => {
            let why = state.error.unwrap_or_else(|| "it has failed".to_owned());
            Ok(Instance::Gone(format!("what was prepared is lost: {why}")))
        }
        Phase::Prepared | Phase::Copying | Phase::Checkpointing | Phase::Delivered => {
            let detail = "the service's keeper does not say what it holds; it is asked again";
            let title = "the prepared service can't be looked at";
            Err(Problem::failed(ProblemKind::Keeper, title, detail).into())
        }
    }
}

/// Runs what is committed, unless it runs.
async fn run(shared: &Shared, id: MigrationId, incoming: &mut Incoming) -> Reply<()> {
    if incoming.state != State::Committed {
        return Ok(());
    }
    let asked_ns = monotonic_ns();
    // Later than the answer it can't have been, whatever the agent reckons; a repeated `run` that
    // finds it running says what the first one took.
    let (ran_ns, losses) = match agent(shared, incoming.service.as_ref()).run(id).await {
        Ok(Running { resume_us, losses }) => {
            let ran_ns = asked_ns.saturating_add(resume_us.saturating_mul(1000));
            (ran_ns.min(monotonic_ns()), losses)
        }
        Err(error) if is_unknown(&error) => match arrived(shared, incoming).await? {
            Some(view) => (asked_ns, view.losses),
            None => return Err(doubt(shared, id, incoming, error).await),
        },
        Err(error) => return Err(doubt(shared, id, incoming, error).await),
    };
    incoming.losses = losses;
    let us = ran_ns.saturating_sub(asked_ns) / 1000;
    let resume = Span {
        part: Part::Resume,
        us,
    };
    incoming.spans = shared.arrivals.slot(id).all_spent();
    incoming.spans.push(resume);
    incoming.running_since = Some((ran_ns, boot()));
    incoming.ended_at_ms = Some(unix_ms());
    incoming.state = receiver::receive(Some(&incoming.state), &Message::Ran)?;
    incoming.stuck = None;
    put(shared, id, incoming).await
}

/// The service, if it is our agent's own already: an agent lets go of a migration only after the
/// service has been let run, and a restarted one does not remember that it did.
async fn arrived(shared: &Shared, incoming: &Incoming) -> Reply<Option<ServiceView>> {
    let services = agent(shared, incoming.service.as_ref()).services().await?;
    Ok(services
        .into_iter()
        .find(|view| incoming.is_of(&view.specification.name) && view.migration.is_none()))
}

/// Our agent was asked to run it, and it does not run. If it is gone it may have executed: that is
/// written, and a person has to decide; else it is tried again.
async fn doubt(
    shared: &Shared,
    id: MigrationId,
    incoming: &mut Incoming,
    error: ums_api::http::ClientError,
) -> Refused {
    let why = match instance(shared, id, incoming).await {
        Ok(Instance::Gone(why)) => why,
        Ok(Instance::Held) => return error.into(),
        Err(refused) => return refused,
    };
    let system = &shared.config.system;
    let detail = format!(
        "`{system}` was asked to run the service, and it is gone since ({why}): it may have \
         executed; decide with `ums resolve {id}` on `{system}`"
    );
    if incoming.stuck.as_ref() != Some(&detail) {
        tracing::error!(migration = %id, why, "stuck: a person is needed");
        incoming.stuck = Some(detail.clone());
        if let Err(refused) = put(shared, id, incoming).await {
            return refused;
        }
    }
    let title = "whether the service has executed is not known";
    Refused(Problem {
        fault: Fault::Peer,
        ..Problem::failed(ProblemKind::OutcomeUnknown, title, detail)
    })
}

/// What the operator decides about an arriving service whose source can't be asked.
pub(crate) async fn decide(shared: &Shared, id: MigrationId, message: &Message) -> Reply<()> {
    let slot = shared.arrivals.slot(id);
    let _turn = slot.lock.lock().await;
    let known = shared.journal(move |journal| journal.incoming(id)).await?;
    let mut incoming = known.ok_or(Rejected::Aborted)?;
    let state = receiver::receive(Some(&incoming.state), message)?;
    let reason = format!("decided by the operator of `{}`", shared.config.system);
    tracing::warn!(migration = %id, ?message, "decided by the operator");
    if state.is_given_up() {
        incoming.stuck = None;
        return end(
            shared,
            id,
            &mut incoming,
            message,
            &format!("{reason}: discarded"),
        )
        .await;
    }
    if state != incoming.state {
        incoming.reason = Some(format!(
            "{reason}: run though the source could not be asked"
        ));
        take_on(shared, id, &mut incoming, state, true).await?;
    }
    run(shared, id, &mut incoming).await
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

/// Whether a prepared service has waited for its source's word for so long that a person may want
/// to decide.
pub(crate) fn is_cut_off(shared: &Shared, id: MigrationId, incoming: &Incoming) -> bool {
    let silent_for = || shared.arrivals.silent_for(id);
    match incoming.state {
        State::Prepared { .. } => silent_for() > 2 * shared.config.limits.doubt_after,
        _ => incoming.stuck.is_some(),
    }
}

/// The source gives it up. The answer means that nothing is left here.
pub(crate) async fn abort(shared: &Shared, source: SystemName, id: MigrationId) -> Reply<()> {
    let slot = shared.arrivals.slot(id);
    let _turn = slot.lock.lock().await;
    let known = shared.journal(move |journal| journal.incoming(id)).await?;
    let Some(mut incoming) = known else {
        // Who may not send can't have reserved: nothing of it is here, or will be.
        if policy::allowed(shared, &source, Permission::Send).is_err() {
            return Ok(());
        }
        // Remembered, so that a request that this one has overtaken finds it aborted.
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
            forced: false,
            stuck: None,
            conflict: None,
            losses: Vec::new(),
            spans: Vec::new(),
            version: 1,
            approach: None,
            technique: None,
            account: None,
        };
        return put(shared, id, &tombstone).await;
    };
    owned(&incoming, &source)?;
    if incoming.state.is_committed() {
        in_conflict(shared, id, &mut incoming).await?;
    }
    let reason = "the source has given it up";
    end(shared, id, &mut incoming, &Message::Abort, reason).await
}

/// The source has given up what is this system's here. Neither side can mend that by itself.
async fn in_conflict(shared: &Shared, id: MigrationId, incoming: &mut Incoming) -> Reply<()> {
    if incoming.conflict.is_some() {
        return Ok(());
    }
    let (source, system) = (&incoming.source, &shared.config.system);
    let text = format!(
        "CONFLICT, two copies may execute: `{source}` has taken its own copy back, and `{system}` \
         runs this one; keep one and delete the other with `ums rm`"
    );
    tracing::error!(migration = %id, "{text}");
    incoming.conflict = Some(text);
    incoming.forced = false;
    put(shared, id, incoming).await
}

/// Writes that it is given up, then discards it.
async fn end(
    shared: &Shared,
    id: MigrationId,
    incoming: &mut Incoming,
    message: &Message,
    reason: &str,
) -> Reply<()> {
    let state = receiver::receive(Some(&incoming.state), message)?;
    if !state.is_given_up() {
        return Ok(());
    }
    if incoming.state != state {
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
    match agent(shared, incoming.service.as_ref()).discard(id).await {
        Ok(()) => {}
        Err(error) if is_unknown(&error) => {}
        Err(error) => return Err(error.into()),
    }
    incoming.cleaned = true;
    put(shared, id, incoming).await
}

/// What could not be set again, of a service that executes here.
pub(crate) async fn losses(
    shared: &Shared,
    source: SystemName,
    id: MigrationId,
) -> Reply<LossesAnswer> {
    let Incoming { losses, .. } = known(shared, &source, id).await?;
    Ok(LossesAnswer { losses })
}

/// How far the memory of a service is that executes here and has left pages at its source. What is
/// gone here is told as lost: the source keeps what it has.
pub(crate) async fn pages(
    shared: &Shared,
    source: SystemName,
    id: MigrationId,
) -> Reply<PagesAnswer> {
    let incoming = known(shared, &source, id).await?;
    let services = agent(shared, incoming.service.as_ref()).services().await?;
    let mut services = services.into_iter();
    let view = services.find(|view| incoming.is_of(&view.specification.name));
    let gone = |why: &str| PagesAnswer {
        missing: 0,
        at_risk_us: None,
        lost: Some(why.to_owned()),
    };
    let Some(view) = view else {
        return Ok(gone("it was removed there"));
    };
    match view.pages {
        Some(pages) => Ok(PagesAnswer {
            missing: pages.missing,
            at_risk_us: pages.at_risk_us,
            lost: pages.lost,
        }),
        None if view.status == ServiceStatus::Exited => {
            Ok(gone("its keeper is lost there, and its processes with it"))
        }
        None => {
            let title = "it is not known how far the memory is";
            let detail = "the service's keeper does not answer now; it is asked again";
            Err(Problem::failed(ProblemKind::Keeper, title, detail).into())
        }
    }
}

/// Where the downtime of a service that executes here went, as far as it was spent here.
pub(crate) async fn spans(
    shared: &Shared,
    source: SystemName,
    id: MigrationId,
) -> Reply<SpansAnswer> {
    let Incoming { spans, .. } = known(shared, &source, id).await?;
    Ok(SpansAnswer { spans })
}

/// Step 15: the source has deleted its own container.
pub(crate) async fn close(
    shared: &Shared,
    source: SystemName,
    id: MigrationId,
    account: CloseRequest,
) -> Reply<()> {
    let slot = shared.arrivals.slot(id);
    let _turn = slot.lock.lock().await;
    let mut incoming = known(shared, &source, id).await?;
    let closed = receiver::receive(Some(&incoming.state), &Message::Close)?;
    if closed != incoming.state {
        incoming.state = closed;
        incoming.account = Some(account);
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
        State::Aborted | State::Lost | State::Discarded => {
            discard(shared, id, &mut incoming).await?;
        }
    }
    Ok(incoming.forced)
}

/// Once all pages are in, the agent drops the migration's working state.
async fn settle(shared: &Shared, id: MigrationId, incoming: &mut Incoming) -> Reply<()> {
    if incoming.cleaned {
        return Ok(());
    }
    match agent(shared, incoming.service.as_ref()).migration(id).await {
        Ok(state) if state.phase == Phase::Settled || state.pages_pending == 0 => {
            agent(shared, incoming.service.as_ref()).settle(id).await?;
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
