//! Migrations: planned, begun, watched, aborted, remembered.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use ums_api::client::{
    AbortRequest, HISTORY_MAX, HistoryQuery, MigrateRequest, MigrationView, Permission,
    REASON_BYTES_MAX, WATCH_MS_MAX, WatchQuery,
};
use ums_api::problem::{Problem, ProblemKind};
use ums_core::id::{MigrationId, ServiceName, SystemName};
use ums_core::plan::{self, Route};
use ums_core::preflight::{MigrateOptions, Refusal};
use ums_core::receiver;
use ums_core::report::{MigrationReport, Outcome};
use ums_core::saga::{self, Action, Event, Request};

use super::{Own, parse_query};
use crate::clock::{boot, fresh_uuid, monotonic_ns, unix_ms};
use crate::journal::{Incoming, Write};
use crate::problem::{Given, Refused, Reply, ending, json, ok, unknown};
use crate::shared::Shared;
use crate::source::{self, Migration, finished_view, view_of};
use crate::status::final_progress;
use crate::{destination, estimates, peer, policy};

pub(super) async fn plan(
    State(shared): Own,
    Given(request): Given<MigrateRequest>,
) -> Reply<Response> {
    let destination = &request.destination;
    known_peer(&shared, destination)?;
    let agent = shared.agents.of(&request.service);
    let source = agent.facts().await?;
    let service = agent.service(&request.service).await?;
    let options = MigrateOptions {
        max_downtime_ms: request.max_downtime_ms,
        technique: request.technique,
        approach: request.approach,
        accept_loss: request.accept_loss,
        engine: request.engine.clone(),
    };
    let (facts, agreed) = ask_destination(&shared, destination, &request.service).await;
    let route = Route {
        source: shared.config.system.clone(),
        destination: destination.clone(),
    };
    let measure = request.measure || request.max_downtime_ms.is_some();
    let known = estimates::of(&shared, &request.service, destination, measure).await;
    let mut plan = plan::make(
        route,
        &source,
        &service,
        facts.as_ref(),
        &options,
        &known.estimates,
    );
    plan.unmeasured = known.unmeasured;
    let refusal = match agreed {
        Ok(version) => plan
            .technique
            .and_then(|technique| peer::unspoken(destination, version, technique)),
        Err(refusal) => Some(refusal),
    };
    plan.refusals.extend(refusal);
    Ok(ok(&plan))
}

/// The destination's facts, and the version agreed on with it, or what stands in the way.
async fn ask_destination(
    shared: &Shared,
    name: &SystemName,
    service: &ServiceName,
) -> (Option<ums_core::facts::NodeFacts>, Result<u32, Refusal>) {
    let peer = match policy::peer(shared, name) {
        Ok(peer) => peer,
        Err(denied) => return (None, Err(denied.refusal(name))),
    };
    let ours = policy::allowed(shared, name, Permission::Receive).err();
    let hello = match shared
        .peers
        .client(name, peer.address)
        .hello(Some(service))
        .await
    {
        Ok(hello) => hello,
        Err(error) => return (None, Err(peer::refusal(name, &error))),
    };
    let theirs = || {
        let why = format!("`{name}` does not let `{}` send", shared.config.system);
        (!hello.you_may_send).then(|| Refusal::peer_denied(name.as_str(), why))
    };
    let agreed = peer::agree(&shared.config.peer_versions, name, &hello).and_then(|version| {
        let denied = ours.map(|denied| denied.refusal(name)).or_else(theirs);
        denied.map_or(Ok(version), Err)
    });
    (hello.facts, agreed)
}

fn known_peer(shared: &Shared, name: &SystemName) -> Reply<()> {
    if policy::peer(shared, name).is_ok() {
        return Ok(());
    }
    let settings = shared.settings.now();
    let known: Vec<&str> = settings.peers.keys().map(SystemName::as_str).collect();
    let refusal = Refusal::peer_unknown(name.as_str(), &known);
    Err(unknown(
        ProblemKind::PeerUnknown,
        "no such peer",
        refusal.to_string(),
    ))
}

pub(super) async fn migrate(
    State(shared): Own,
    Given(request): Given<MigrateRequest>,
) -> Reply<Response> {
    known_peer(&shared, &request.destination)?;
    let tasks = Arc::clone(&shared.tasks);
    tasks
        .detached(async move { admit(&shared, request).await })
        .await
        .ok_or_else(ending)?
}

async fn admit(shared: &Arc<Shared>, wanted: MigrateRequest) -> Reply<Response> {
    let services = shared.agents.services().await?;
    if !services
        .iter()
        .any(|view| view.specification.name == wanted.service)
    {
        return Err(super::service_unknown(&wanted.service));
    }
    let request = Request {
        id: MigrationId(fresh_uuid()),
        service: wanted.service,
        source: shared.config.system.clone(),
        destination: wanted.destination,
        approach: wanted.approach,
        accept_loss: wanted.accept_loss,
        engine: wanted.engine,
        technique: wanted.technique,
        max_downtime_ms: wanted.max_downtime_ms,
        asked_at_ms: unix_ms(),
        asked_at_ns: monotonic_ns(),
        boot: boot(),
    };
    let id = request.id;
    let event = Event::Requested(request);
    let saga = saga::next(None, &event).map_err(|error| {
        Refused(Problem::failed(
            ProblemKind::Saga,
            "the migration can't be begun",
            error.to_string(),
        ))
    })?;
    let max = shared.settings.now().outgoing_max;
    let live = shared
        .registry
        .admit(view_of(&saga), max)
        .map_err(Problem::from)?;
    let append = move |journal: &crate::journal::Journal| {
        journal.append(id, 0, &[event], true, Write::Durable)
    };
    if let Err(error) = shared.journal(append).await {
        shared.registry.forget(id);
        return Err(error.into());
    }
    let view = live.view();
    let migration = Migration::new(Arc::clone(shared), saga, 1, live);
    source::begin(shared, migration);
    Ok(json(StatusCode::ACCEPTED, &view))
}

pub(super) async fn watch(State(shared): Own, Path(id): Path<String>, uri: Uri) -> Reply<Response> {
    let id = parse_id(&id)?;
    let query: WatchQuery = parse_query(&uri)?;
    let Some(live) = shared.registry.get(id) else {
        let view = remembered(&shared, id)
            .await?
            .ok_or_else(|| migration_unknown(id))?;
        return Ok(ok(&view));
    };
    if let Some(after) = query.after {
        let wait = Duration::from_millis(query.wait_ms.unwrap_or(WATCH_MS_MAX).min(WATCH_MS_MAX));
        let mut changes = live.watch();
        let changed = changes.wait_for(|view| view.progress.generation > after);
        // Neither the end of the wait nor of the migration is an error: the view tells.
        let _ = tokio::time::timeout(wait, changed).await;
    }
    Ok(ok(&live.view()))
}

pub(super) async fn history(State(shared): Own, uri: Uri) -> Reply<Response> {
    let query: HistoryQuery = parse_query(&uri)?;
    let limit = query.limit.unwrap_or(HISTORY_MAX).min(HISTORY_MAX);
    let outgoing = shared.journal(|journal| journal.outgoing()).await?;
    let incoming = shared
        .journal(|journal| journal.all_incoming(false))
        .await?;
    let outgoing = outgoing
        .into_iter()
        .map(|(id, asked_at_ms, _)| (asked_at_ms, id));
    let incoming = incoming
        .iter()
        .map(|(id, incoming)| (incoming.asked_at_ms, *id));
    let mut all: Vec<(u64, MigrationId)> = outgoing.chain(incoming).collect();
    all.sort_unstable_by(|a, b| b.cmp(a));
    let mut views: Vec<MigrationView> = Vec::new();
    for (_, id) in all {
        if views.len() == limit {
            break;
        }
        let view = match shared.registry.get(id) {
            Some(live) => Some(live.view()),
            None => remembered(&shared, id).await?,
        };
        let wanted = |view: &MigrationView| {
            query
                .service
                .as_ref()
                .is_none_or(|service| *service == view.report.service)
        };
        views.extend(view.filter(wanted));
    }
    Ok(ok(&views))
}

pub(super) async fn abort(
    State(shared): Own,
    Path(id): Path<String>,
    Given(request): Given<AbortRequest>,
) -> Reply<Response> {
    let id = parse_id(&id)?;
    let reason = request.reason.unwrap_or_default();
    if reason.len() > REASON_BYTES_MAX {
        let detail = format!("the reason is longer than {REASON_BYTES_MAX} bytes; shorten it");
        return Err(Refused(Problem::refused(
            400,
            ProblemKind::Reason,
            "the reason is too long",
            detail,
        )));
    }
    let reason = if reason.is_empty() {
        "aborted on request".to_owned()
    } else {
        format!("aborted on request: {reason}")
    };
    let late = |detail: String| {
        Refused(Problem::refused(
            409,
            ProblemKind::TooLate,
            "the migration can't be aborted any more",
            detail,
        ))
    };
    let is_over = |live: &crate::status::Live| {
        matches!(
            live.view().report.outcome,
            Outcome::Completed | Outcome::Abandoned | Outcome::Refused
        )
    };
    match shared.registry.get(id) {
        Some(live) if is_over(&live) => Err(late("it is over".to_owned())),
        Some(live) if live.abort(reason) => Ok(json(StatusCode::ACCEPTED, &live.view())),
        Some(live) if live.offered().is_some() => Err(late(format!(
            "it is committed, and the destination does not say that it runs; \
             `ums resolve {id}` tells what can be decided"
        ))),
        Some(_) => Err(late(
            "it is committed: the service is the destination's now".to_owned(),
        )),
        None => match remembered(&shared, id).await? {
            Some(view) if view.report.source != shared.config.system => Err(late(format!(
                "it is `{}` that sends it; abort it there",
                view.report.source
            ))),
            Some(_) => Err(late("it is over".to_owned())),
            None => Err(migration_unknown(id)),
        },
    }
}

/// What the journal tells about a migration that no task of ours runs.
pub(super) async fn remembered(shared: &Shared, id: MigrationId) -> Reply<Option<MigrationView>> {
    if let Some((saga, _)) = shared.journal(move |journal| journal.saga(id)).await? {
        let over = matches!(saga.what_next(), Action::Rest | Action::CatchUp(_));
        return Ok(Some(if over {
            finished_view(&saga)
        } else {
            view_of(&saga)
        }));
    }
    let incoming = shared.journal(move |journal| journal.incoming(id)).await?;
    Ok(incoming.and_then(|incoming| arrival(shared, id, &incoming)))
}

/// An arriving service's migration, as far as the destination can tell; the source's report has the
/// steps. `None` for one of which nothing but the abort is known.
fn arrival(shared: &Shared, id: MigrationId, incoming: &Incoming) -> Option<MigrationView> {
    let service = incoming.service.as_ref()?;
    let trouble = incoming.conflict.as_ref().or(incoming.stuck.as_ref());
    let outcome = match &incoming.state {
        _ if trouble.is_some() => Outcome::Stuck,
        receiver::State::Running | receiver::State::Closed => Outcome::Completed,
        state if state.is_given_up() => Outcome::Abandoned,
        _ => Outcome::Running,
    };
    let until = incoming.ended_at_ms.unwrap_or_else(unix_ms);
    let running = incoming.state.is_committed();
    let account = incoming.account.unwrap_or_default();
    let report = MigrationReport {
        migration_id: id,
        service: service.specification.name.clone(),
        source: incoming.source.clone(),
        destination: shared.config.system.clone(),
        approach: incoming.approach,
        technique: incoming.technique,
        outcome,
        total_ms: until.saturating_sub(incoming.asked_at_ms),
        downtime_ms: account.downtime_us.map(milliseconds),
        freeze_ms: account.freeze_us.map(milliseconds),
        at_risk_ms: None,
        downtime_parts: Vec::new(),
        steps: Vec::new(),
        bytes: account.bytes,
        rounds: 0,
        endpoint: incoming
            .endpoints()
            .first()
            .filter(|_| running)
            .map(ToString::to_string),
        error: trouble.or(incoming.reason.as_ref()).cloned(),
        losses: [service.losses.as_slice(), &incoming.losses].concat(),
        predicted: None,
    };
    let words = format!("arriving: {}", incoming.state.name());
    let mut progress = final_progress(None, &words, report.total_ms, 0);
    if outcome == Outcome::Running {
        // It may change without this view being told; whoever watches asks again.
        progress.generation = 0;
    }
    Some(MigrationView {
        report,
        progress,
        refusals: Vec::new(),
        asked_at_ms: incoming.asked_at_ms,
        resolvable: destination::is_cut_off(shared, id, incoming),
    })
}

fn milliseconds(us: u64) -> f64 {
    us as f64 / 1000.0
}

pub(super) fn migration_unknown(id: MigrationId) -> Refused {
    let detail = format!("no migration {id} is known here; `ums history` shows those that are");
    unknown(ProblemKind::MigrationUnknown, "no such migration", detail)
}

pub(super) fn parse_id(text: &str) -> Reply<MigrationId> {
    text.parse().map_err(|_| {
        unknown(
            ProblemKind::MigrationUnknown,
            "no such migration",
            "this is no migration's id (a UUID)",
        )
    })
}
