//! The steps, one function each (UMS §III-B).

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use ums_api::agent::{CheckpointRequest, DataEndpoint, LeadRequest, OpenRequest, Round};
use ums_api::client::Permission;
use ums_api::http::ClientError;
use ums_api::peer::{
    CloseRequest, CommitAnswer, CreateAnswer, PagesAnswer, ReserveRequest, RestoreRequest,
};
use ums_api::problem::ProblemKind;
use ums_core::budget::{Part, Span};
use ums_core::facts::{NodeFacts, ServiceFacts};
use ums_core::id::MigrationId;
use ums_core::plan::{self, Route};
use ums_core::preflight::{self, Estimates, MigrateOptions, Refusal, engine};
use ums_core::saga::{Chosen, Event, Output, Request, TakenBackBy};
use ums_core::step::Step;
use ums_core::technique::{Approach, Technique};

use super::migration::{Failure, Migration, Pause, chain, without_effect};
use crate::clock::{Stopwatch, monotonic_ns};
use crate::journal::Write;
use crate::{estimates, peer, policy};

/// What step 1 found, for step 2.
pub(super) struct Determined {
    source: NodeFacts,
    service: ServiceFacts,
    estimates: Estimates,
    /// Whether others than UMS have control of the container.
    engines: bool,
}

/// What steps 1 and 2 found and chose, for the steps after them.
pub(super) struct Verified {
    source: NodeFacts,
    service: ServiceFacts,
    approach: Approach,
    technique: Technique,
    version: u32,
    /// Whether others than UMS have control of the container.
    engines: bool,
}

/// What was asked for.
pub(crate) fn options(request: &Request) -> MigrateOptions {
    MigrateOptions {
        max_downtime_ms: request.max_downtime_ms,
        technique: request.technique,
        approach: request.approach,
        accept_loss: request.accept_loss,
        engine: request.engine.clone(),
    }
}

/// UMS §III-B, Step 1.
pub(super) async fn determine_approach(m: &mut Migration) -> Result<Determined, Failure> {
    let step = Step::DetermineApproach;
    m.start(step).await?;
    let (agent, request) = (m.agent(), m.saga().request().clone());
    let (source, service, services) = attempt(m, step, async {
        tokio::try_join!(
            agent.facts(),
            agent.service(&request.service),
            agent.services()
        )
    })
    .await?;
    let mut refusals: Vec<Refusal> =
        policy::allowed(&m.shared, &request.destination, Permission::Receive)
            .err()
            .map(|denied| denied.refusal(&request.destination))
            .into_iter()
            .collect();
    let options = options(&request);
    refusals.extend(preflight::judge_local(&source, &service, &options));
    let measure = options.max_downtime_ms.is_some();
    let of = (&request.service, &request.destination);
    let known = estimates::of(&m.shared, of.0, of.1, measure).await;
    let plan = plan::make(
        route(&request),
        &source,
        &service,
        None,
        &options,
        &known.estimates,
    );
    let (Some(approach), Some(technique), true) =
        (plan.approach, plan.technique, refusals.is_empty())
    else {
        return Err(Failure::refused(step, refusals));
    };
    let own = services
        .iter()
        .find(|view| view.specification.name == request.service);
    let endpoint = own.and_then(|view| view.endpoints.first().copied());
    let engines = own.is_some_and(|view| view.engine.is_some());
    m.done(
        step,
        Output::Planned {
            approach,
            technique,
            endpoint,
            losses: plan.losses,
            predicted: Some(plan.prediction),
        },
    )
    .await?;
    let memory = service.memory_bytes;
    m.live
        .update(|view| view.progress.bytes_total = Some(memory + service.filesystem_bytes));
    Ok(Determined {
        source,
        service,
        estimates: known.estimates,
        engines,
    })
}

fn route(request: &Request) -> Route {
    Route {
        source: request.source.clone(),
        destination: request.destination.clone(),
    }
}

/// UMS §III-B, Step 2. From the facts of both ends approach and technique are chosen, and from what both speak the
/// version that this migration goes on in.
pub(super) async fn verify_peer(m: &mut Migration, here: Determined) -> Result<Verified, Failure> {
    let step = Step::VerifyPeer;
    m.start(step).await?;
    let name = m.saga().request().destination.clone();
    let service = m.saga().request().service.clone();
    let refused = |refusal| Failure::refused(step, vec![refusal]);
    let Some(client) = m.peer() else {
        return Err(refused(Refusal::peer_unknown(name.as_str(), &[])));
    };
    let hello = tokio::select! {
        biased;
        reason = m.live.aborted() => return Err(Failure::of(step, reason)),
        hello = client.hello(Some(&service)) => hello.map_err(|error| refused(peer::refusal(&name, &error)))?,
    };
    let ours = &m.shared.config.peer_versions;
    let version = peer::agree(ours, &name, &hello).map_err(refused)?;
    if !hello.you_may_send {
        let why = format!("`{name}` does not let `{}` send", m.shared.config.system);
        return Err(refused(Refusal::peer_denied(name.as_str(), why)));
    }
    let Some(facts) = hello.facts else {
        let why = "its Migration Interface does not answer (`ums doctor` there says why)";
        return Err(refused(Refusal::peer_unreachable(name.as_str(), why)));
    };
    let (options, route) = (options(m.saga().request()), route(m.saga().request()));
    let Determined {
        source,
        mut service,
        estimates,
        engines,
    } = here;
    let mut plan = plan::make(route, &source, &service, Some(&facts), &options, &estimates);
    let unspoken = plan
        .technique
        .and_then(|technique| peer::unspoken(&name, version, technique));
    plan.refusals.extend(unspoken);
    let (Some(approach), Some(technique), true) =
        (plan.approach, plan.technique, plan.refusals.is_empty())
    else {
        return Err(Failure::refused(step, plan.refusals));
    };
    let mut losses = engine::further(&service, plan.engine.as_deref());
    losses.extend(plan::carried_less(&source, &facts));
    // From now on its Specification says who is to make it there.
    service.specification.engine = plan.engine;
    let predicted = plan.prediction;
    let output = Output::Verified {
        losses,
        chosen: Some(Chosen {
            approach,
            technique,
            predicted,
        }),
        version,
    };
    m.done(step, output).await?;
    Ok(Verified {
        source,
        service,
        approach,
        technique,
        version,
        engines,
    })
}

/// UMS §III-B, Step 3.
pub(super) async fn send_specification(m: &mut Migration, plan: &Verified) -> Result<(), Failure> {
    let step = Step::SendSpecification;
    m.start(step).await?;
    let request = ReserveRequest {
        source: plan.source.clone(),
        service: plan.service.clone(),
        approach: Some(plan.approach),
        technique: Some(plan.technique),
    };
    let request = request.in_version(plan.version);
    let (client, id) = (destination(m, step)?, m.id());
    let answer = attempt(m, step, client.reserve(id, &request)).await?;
    if !answer.refusals.is_empty() {
        return Err(Failure::refused(step, answer.refusals));
    }
    m.done(step, Output::None).await
}

/// UMS §III-B, Steps 4 to 6: asked for, created by the destination's agent, confirmed.
pub(super) async fn create_container(m: &mut Migration) -> Result<CreateAnswer, Failure> {
    let step = Step::RequestContainer;
    m.start(step).await?;
    let (client, id, asked_us) = (destination(m, step)?, m.id(), m.now_us());
    let answer = attempt(m, step, client.create(id)).await?;
    let [begun_us, ended_us, now_us] = split(asked_us, m.now_us(), answer.processing_us);
    let endpoints = answer.endpoints.clone();
    let events = vec![
        done(Step::RequestContainer, begun_us, Output::None),
        Event::StepStarted {
            step: Step::CreateContainer,
            at_us: begun_us,
        },
        done(Step::CreateContainer, ended_us, Output::None),
        Event::StepStarted {
            step: Step::ConfirmContainer,
            at_us: ended_us,
        },
        done(
            Step::ConfirmContainer,
            now_us,
            Output::Created { endpoints },
        ),
    ];
    written(m, Step::ConfirmContainer, events).await?;
    Ok(answer)
}

/// UMS §III-B, Step 7.
pub(super) async fn open_data_path(
    m: &mut Migration,
    plan: &Verified,
    created: &CreateAnswer,
) -> Result<(), Failure> {
    let step = Step::OpenDataPath;
    m.start(step).await?;
    let request = m.saga().request().clone();
    let Some(peer) = m.peer_config() else {
        return Err(Failure::of(step, "the destination is no peer any more"));
    };
    let at = |port, permit: &String| DataEndpoint {
        address: SocketAddr::new(peer.address.ip(), port),
        system: request.destination.clone(),
        permit: permit.clone(),
    };
    let tunnel = created.tunnel.as_ref();
    let open = OpenRequest {
        endpoint: at(created.data_port, &created.permit),
        tunnel: tunnel.map(|end| at(end.port, &end.permit)),
        service: request.service,
        send_image: created.image_needed,
        technique: plan.technique,
    };
    let (agent, id) = (m.agent(), m.id());
    attempt(m, step, agent.open(id, &open)).await?;
    m.done(step, Output::None).await
}

/// UMS §III-B, Steps 8 to 10. The transfer overlaps the checkpoint, so the agent's account of when
/// each was over is what is written.
pub(super) async fn checkpoint_and_transfer(
    m: &mut Migration,
    plan: &Verified,
) -> Result<String, Failure> {
    let step = Step::Checkpoint;
    m.start(step).await?;
    let (agent, id) = (m.agent(), m.id());
    let service = m.saga().request().service.clone();
    let request = CheckpointRequest {
        service: service.clone(),
        technique: plan.technique,
    };
    let frozen = attempt(m, step, async {
        agent.block(id, &service).await?;
        agent.frontman_hold(id, &service).await?;
        agent.checkpoint(id, &request).await
    })
    .await?;
    let at = |ns| m.stopwatch.at_ns(ns);
    let (frozen_us, delivered_us) = (at(frozen.frozen_at_ns), at(frozen.delivered_at_ns));
    let delivered = Output::Delivered {
        frozen_at_us: frozen_us,
        digest: frozen.digest.clone(),
        bytes: frozen.bytes,
        rounds: frozen.rounds,
        spans: frozen.spans,
    };
    let events = vec![
        done(Step::Checkpoint, at(frozen.dumped_at_ns), Output::None),
        Event::StepStarted {
            step: Step::Transfer,
            at_us: frozen_us,
        },
        done(Step::Transfer, delivered_us, Output::None),
        Event::StepStarted {
            step: Step::ImageComplete,
            at_us: delivered_us,
        },
        done(Step::ImageComplete, delivered_us, delivered),
        Event::StepStarted {
            step: Step::RequestRestore,
            at_us: m.now_us(),
        },
    ];
    m.delivered(delivered_us);
    written(m, Step::Checkpoint, events).await?;
    Ok(frozen.digest)
}

/// UMS §III-B, Steps 11 and 12. *Prepared* comes back: restored, and held before its first
/// instruction. That step 12 is done is written with the commit, in one go to the disk.
pub(super) async fn restore(m: &mut Migration, digest: String) -> Result<(), Failure> {
    let step = Step::RequestRestore;
    let (client, id, asked_us) = (destination(m, step)?, m.id(), m.now_us());
    let request = RestoreRequest { digest };
    let memory_bytes = match m.saga().output(Step::ImageComplete) {
        Some(Output::Delivered { bytes, .. }) => bytes.memory,
        _ => 0,
    };
    let limit = m.limits().restore_timeout(memory_bytes);
    let answer = attempt(m, step, client.restore(id, &request, limit)).await?;
    m.prepared(asked_us, answer.processing_us);
    if answer.digest != request.digest {
        let (ours, theirs) = (request.digest, answer.digest);
        let error = format!("the destination restored another stream: {theirs} instead of {ours}");
        return Err(Failure::of(step, error));
    }
    let [begun_us, ..] = split(asked_us, m.now_us(), answer.processing_us);
    let events = vec![
        done(Step::RequestRestore, begun_us, Output::None),
        Event::StepStarted {
            step: Step::Restore,
            at_us: begun_us,
        },
    ];
    written(m, step, events).await
}

/// Before step 13: people could tell an engine something of its container until now, and can't be refused. What comes
/// after the commit finds the container as it is removed.
pub(super) async fn confirm(m: &mut Migration, plan: &Verified) -> Result<(), Failure> {
    if !plan.engines {
        return Ok(());
    }
    let (agent, id) = (m.agent(), m.id());
    let service = m.saga().request().service.clone();
    attempt(m, Step::Restore, agent.confirm(id, &service)).await
}

/// UMS §III-B, Step 13, after the commit was written: the destination is told until it answers that
/// the service runs, or that it is lost there and never ran, or until the operator takes it back.
pub(super) async fn run_at_destination(m: &mut Migration) {
    if m.saga().output(Step::Commit).is_some() {
        return;
    }
    let Some((answer, sent_ns, arrived_ns)) = commit_at_destination(m).await else {
        return;
    };
    m.live.withdraw();
    // The first instruction was executed `running_for` before the answer left, and the answer took
    // half of what the exchange took beyond the destination's own time. Both are differences on one
    // clock, so the two systems' clocks need not agree.
    let network_us = ((arrived_ns - sent_ns) / 1000).saturating_sub(answer.processing_us);
    let arrived_us = m.stopwatch.at_ns(arrived_ns);
    let ran_us = arrived_us
        .saturating_sub(network_us / 2)
        .saturating_sub(answer.running_for_us);
    let frozen_us = m
        .saga()
        .delivered()
        .map_or(ran_us, |(frozen_us, _)| frozen_us);
    m.spent(Part::Link, network_us / 2);
    let spans = m.all_spent();
    let output = interruption(&m.stopwatch, (frozen_us, m.told_at_us, ran_us), spans);
    let at_us = m.now_us();
    m.record_until_written(vec![
        Event::StepDone {
            step: Step::Commit,
            at_us,
            output,
        },
        Event::StepStarted {
            step: Step::Announce,
            at_us,
        },
    ])
    .await;
}

/// How long the service stood still, and how long it was frozen here: unknown where the source was
/// rebooted meanwhile. It was told of the commit when it ran, at the latest: a restarted Coordinator
/// does not know of the first time.
fn interruption(
    stopwatch: &Stopwatch,
    (frozen_us, told_at_us, ran_us): (u64, Option<u64>, u64),
    spans: Vec<Span>,
) -> Output {
    let since_freeze = |at_us: u64| {
        stopwatch
            .is_unbroken()
            .then(|| at_us.saturating_sub(frozen_us))
    };
    Output::Running {
        downtime_us: since_freeze(ran_us),
        freeze_us: since_freeze(told_at_us.map_or(ran_us, |told| told.min(ran_us))),
        spans,
    }
}

/// Tells the destination of the commit until it answers: the answer, when it was asked and when it
/// answered; `None` when the commit was taken back.
async fn commit_at_destination(m: &mut Migration) -> Option<(CommitAnswer, u64, u64)> {
    let mut pause = Pause::new(m.limits());
    loop {
        let sent_ns = monotonic_ns();
        m.told(m.stopwatch.at_ns(sent_ns));
        let told = tokio::select! {
            biased;
            told = told(m) => told,
            () = m.live.decided() => Err(CommitFailure::TakenBack),
            never = offer_in_time(m) => match never {},
        };
        match told {
            Ok(answer) => return Some((answer, sent_ns, monotonic_ns())),
            Err(CommitFailure::Lost(reason)) => {
                m.take_back(TakenBackBy::Lost, reason).await;
                return None;
            }
            Err(CommitFailure::TakenBack) => return taken_back(m).await,
            Err(CommitFailure::Stuck(why)) => {
                m.stuck(&why);
                m.live.offer(&why);
            }
            Err(CommitFailure::Unknown(why)) => {
                m.waiting(&format!(
                    "the destination has to be told of the commit: {why}"
                ));
                m.live.offer(&why);
            }
        }
        tokio::select! {
            () = pause.wait() => {}
            () = m.live.decided() => return taken_back(m).await,
        }
    }
}

async fn taken_back<T>(m: &mut Migration) -> Option<T> {
    let (here, there) = (&m.saga().request().source, &m.saga().request().destination);
    let reason = format!(
        "taken back by the operator of `{here}` after the commit, without the word of `{there}`"
    );
    m.take_back(TakenBackBy::Operator, reason).await;
    None
}

/// Why the destination is not known to run the service.
enum CommitFailure {
    /// It says that it never has, and never will.
    Lost(String),
    /// It says that nobody knows, or that it is no more: a person is needed.
    Stuck(String),
    /// It does not answer, or is not that far.
    Unknown(String),
    /// The operator has decided meanwhile.
    TakenBack,
}

async fn told(m: &Migration) -> Result<CommitAnswer, CommitFailure> {
    let Some(client) = m.peer() else {
        let why = "the destination is no peer any more; add it again";
        return Err(CommitFailure::Unknown(why.to_owned()));
    };
    client.commit(m.id()).await.map_err(|error| {
        let kind = error.problem().map(|problem| &problem.kind);
        match kind {
            Some(ProblemKind::Lost) => CommitFailure::Lost(words(&error)),
            Some(ProblemKind::OutcomeUnknown | ProblemKind::Discarded | ProblemKind::Aborted) => {
                CommitFailure::Stuck(words(&error))
            }
            _ => CommitFailure::Unknown(error.chain()),
        }
    })
}

/// A destination that keeps us waiting may be gone for good: the operator need not wait until the
/// request is given up.
async fn offer_in_time(m: &Migration) -> Infallible {
    tokio::time::sleep(m.limits().doubt_after).await;
    m.live.offer("the destination does not answer");
    std::future::pending().await
}

/// UMS §III-B, Step 14. The endpoint is in the report from the moment of the commit.
pub(super) async fn announce(m: &mut Migration) {
    let step = Step::Announce;
    if m.saga().output(step).is_some() {
        return;
    }
    let request = LeadRequest {
        service: m.saga().request().service.clone(),
        endpoints: m.saga().endpoints().to_vec(),
    };
    let (agent, id) = (m.agent(), m.id());
    until_done(m, "the Frontman has to be told", || {
        agent.frontman_lead(id, &request)
    })
    .await;
    let at_us = m.now_us();
    let next = Event::StepStarted {
        step: Step::DeleteSource,
        at_us,
    };
    m.record_until_written(vec![done(step, at_us, Output::None), next])
        .await;
}

/// UMS §III-B, Step 15.
pub(super) async fn delete_source(m: &mut Migration) {
    let step = Step::DeleteSource;
    if m.saga().output(step).is_some() {
        return;
    }
    let at_risk_us = match m.saga().leaves_pages() {
        true => match all_pages_there(m).await {
            Some(answer) => answer.at_risk_us,
            None => return,
        },
        false => None,
    };
    let (agent, id) = (m.agent(), m.id());
    let service = m.saga().request().service.clone();
    let delete = || agent.delete_source(id, &service);
    until_done(m, "the source container has to be deleted", delete).await;
    let mut pause = Pause::new(m.limits());
    let account = m.account();
    let output = loop {
        let error = match m.peer() {
            Some(client) => match closed(&client, id, (&account, at_risk_us)).await {
                Ok(output) => break output,
                Err(error) => error.chain(),
            },
            None => "the destination is no peer any more; add it again".to_owned(),
        };
        m.waiting(&format!(
            "the destination has to be told of the end: {error}"
        ));
        pause.wait().await;
    };
    let at_us = m.now_us();
    m.record_until_written(vec![done(step, at_us, output)])
        .await;
}

/// Waits until no page of the service is missing at the destination: until then the source is what it has them
/// from. `None` when the operator has taken the service back.
///
/// There is no end to it while pages come, or the destination does not answer; how many are left is shown. The destination
/// itself gives up when it can't reach the source for a while, and says so.
async fn all_pages_there(m: &mut Migration) -> Option<PagesAnswer> {
    let mut pause = Pause::new(m.limits());
    loop {
        let answer = match m.peer() {
            Some(client) => client.pages(m.id()).await.map_err(|error| error.chain()),
            None => Err("the destination is no peer any more; add it again".to_owned()),
        };
        match answer {
            Ok(PagesAnswer {
                lost: Some(why), ..
            }) => {
                let error = lost_after_the_switch(m, &why);
                m.stuck(&error);
                m.live.offer(&error);
            }
            Ok(answer) if answer.missing == 0 => {
                m.live.withdraw();
                return Some(answer);
            }
            Ok(answer) => {
                pause = Pause::new(m.limits());
                m.leaving(answer.missing);
            }
            Err(why) => m.waiting(&format!(
                "the destination has to say whether it has all of the memory: {why}"
            )),
        }
        tokio::select! {
            () = pause.wait() => {}
            () = m.live.decided() => return taken_back(m).await,
        }
    }
}

/// What is true when the service was lost while pages of it were here, and what a person may do.
fn lost_after_the_switch(m: &Migration, why: &str) -> String {
    let request = m.saga().request();
    let (here, there, service, id) = (
        &request.source,
        &request.destination,
        &request.service,
        request.id,
    );
    format!(
        "`{service}` ran on `{there}` and is dead there: {why}. `{here}` has it frozen, with the memory of the \
         commit: what it did on `{there}` since is lost. Decide with `ums resolve {id}` on `{here}` to let it run on \
         from there, after `ums rm {service}` on `{there}`"
    )
}

/// Asks the destination for what it could not set again and where the time went, and tells it that this
/// side is done.
async fn closed(
    client: &peer::PeerClient,
    id: MigrationId,
    (account, at_risk_us): (&CloseRequest, Option<u64>),
) -> Result<Output, ClientError> {
    let (losses, spans) = (client.losses(id).await?, client.spans(id).await?);
    client.close(id, account).await?;
    Ok(Output::Closed {
        losses,
        spans,
        at_risk_us,
    })
}

fn done(step: Step, at_us: u64, output: Output) -> Event {
    Event::StepDone {
        step,
        at_us,
        output,
    }
}

/// Writes what a crash would have undone in the same way.
async fn written(m: &mut Migration, step: Step, events: Vec<Event>) -> Result<(), Failure> {
    m.record(events, Write::Lazy)
        .await
        .map_err(|error| Failure::of(step, chain(&error)))
}

fn destination(m: &Migration, step: Step) -> Result<peer::PeerClient, Failure> {
    m.peer()
        .ok_or_else(|| Failure::of(step, "the destination is no peer any more"))
}

/// Begin and end of the other side's part of an exchange, and its end here, as this side's clock
/// would have shown them if both ways over the network take the same time.
fn split(asked_us: u64, answered_us: u64, processing_us: u64) -> [u64; 3] {
    let there = processing_us.min(answered_us.saturating_sub(asked_us));
    let one_way = (answered_us.saturating_sub(asked_us) - there) / 2;
    [asked_us + one_way, asked_us + one_way + there, answered_us]
}

/// Repeats until done: there is no way back.
async fn until_done<F: Future<Output = Result<(), ClientError>>>(
    m: &Migration,
    what: &str,
    action: impl Fn() -> F,
) {
    let mut pause = Pause::new(m.limits());
    while let Err(error) = action().await {
        m.waiting(&format!("{what}: {}", error.chain()));
        pause.wait().await;
    }
}

/// Does a step's work, while an abort is listened for, the progress is watched and the lease is
/// renewed.
async fn attempt<T>(
    m: &Migration,
    step: Step,
    work: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, Failure> {
    tokio::select! {
        biased;
        reason = m.live.aborted() => Err(Failure::of(step, reason)),
        done = work => done.map_err(|error| Failure {
            without_effect: without_effect(&error) && step < Step::Checkpoint,
            ..Failure::of(step, words(&error))
        }),
        never = watch_progress(m, step) => match never {},
        never = renew_lease(m, step) => match never {},
    }
}

fn words(error: &ClientError) -> String {
    match error.problem() {
        Some(problem) => problem.to_string(),
        None => {
            let remedy = match error {
                ClientError::Connect { .. } => "see whether it runs (`ums serve` starts both)",
                _ => "its log (`agent.log` in the state directory there) may say why",
            };
            format!("{}; {remedy}", error.chain())
        }
    }
}

/// Asks the agent how far it is, as long as the step lasts.
async fn watch_progress(m: &Migration, step: Step) -> Infallible {
    if !(Step::OpenDataPath..=Step::Checkpoint).contains(&step) {
        return std::future::pending().await;
    }
    let (agent, id, every) = (m.agent(), m.id(), m.limits().progress_every);
    let mut last = m.live.view().progress.bytes;
    let mut last_at = monotonic_ns();
    loop {
        tokio::time::sleep(every).await;
        let Ok(state) = agent.migration(id).await else {
            continue;
        };
        let now = monotonic_ns();
        let bytes = state.bytes.wire;
        let elapsed_ms = (now.saturating_sub(last_at) / 1_000_000).max(1);
        let rate = bytes.saturating_sub(last).saturating_mul(1000) / elapsed_ms;
        (last, last_at) = (bytes, now);
        let total_ms = m.now_us() / 1000;
        m.live.update(|view| {
            view.report.bytes = state.bytes;
            if let Some(round) = state.round.filter(|_| step == Step::OpenDataPath) {
                view.report.rounds = round.number;
                view.progress.phase = round_in_words(&round);
            }
            view.progress.bytes = bytes;
            view.progress.bytes_per_second = rate;
            view.progress.elapsed_ms = total_ms;
        });
    }
}

fn round_in_words(round: &Round) -> String {
    let mib = round.bytes.div_ceil(1 << 20);
    match round.number {
        1 => format!("sending memory while the service runs: {mib} MiB"),
        number => format!(
            "sending memory while the service runs: round {number}, {mib} MiB that have changed"
        ),
    }
}

/// Tells the destination that we live, as long as the step lasts. That it fails is no reason to
/// give up: the steps themselves find out.
async fn renew_lease(m: &Migration, step: Step) -> Infallible {
    let (true, Some(client)) = (step > Step::SendSpecification, m.peer()) else {
        return std::future::pending().await;
    };
    let every = (m.limits().lease / 3).max(Duration::from_millis(10));
    loop {
        tokio::time::sleep(every).await;
        if let Err(error) = client.renew(m.id()).await {
            tracing::debug!(migration = %m.id(), error = error.chain(), "the lease was not renewed");
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::clock::boot;
    use crate::clock::test::asked_now;

    #[test]
    fn how_long_a_service_stood_still_is_not_told_over_a_reboot_of_its_source() {
        let told = |boot| {
            let stopwatch = Stopwatch::of(&asked_now(boot));
            match interruption(&stopwatch, (1_000, Some(1_500), 1_700), Vec::new()) {
                Output::Running {
                    downtime_us,
                    freeze_us,
                    ..
                } => [downtime_us, freeze_us],
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(told(boot()), [Some(700), Some(500)]);
        assert_eq!(told("another".to_owned()), [None, None]);
    }
}
