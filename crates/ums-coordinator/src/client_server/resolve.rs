//! A migration that was cut off at the commit: what is known of it here, and what an operator
//! decides about it.
//!
//! Nothing is offered that the two systems would settle by themselves: a source offers to take its
//! copy back once the destination has kept it waiting, and a destination offers to run or to discard
//! once the source, asked again at that moment, does not answer.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use ums_api::client::{Offer, Resolution, ResolveRequest, ResolveView};
use ums_api::problem::{Problem, ProblemKind};
use ums_core::id::MigrationId;
use ums_core::receiver::{Message, State as Received};

use super::Own;
use super::migrations::{migration_unknown, parse_id, remembered};
use crate::journal::Incoming;
use crate::problem::{Given, Refused, Reply, ending, json, ok};
use crate::shared::Shared;
use crate::status::Live;
use crate::{destination, policy};

/// How long the source is waited for before an operator may decide in its place: as long as a
/// connection may take.
const SOURCE_PATIENCE: Duration = Duration::from_secs(5);

pub(super) async fn look(State(shared): Own, Path(id): Path<String>) -> Reply<Response> {
    Ok(ok(&view(&shared, parse_id(&id)?).await?))
}

/// Carried out to its end even if the client goes away.
pub(super) async fn decide(
    State(shared): Own,
    Path(id): Path<String>,
    Given(request): Given<ResolveRequest>,
) -> Reply<Response> {
    let id = parse_id(&id)?;
    let tasks = Arc::clone(&shared.tasks);
    let done = tasks.detached(async move { carry_out(&shared, id, &request).await });
    done.await.ok_or_else(ending)?
}

async fn carry_out(shared: &Shared, id: MigrationId, request: &ResolveRequest) -> Reply<Response> {
    let view = view(shared, id).await?;
    if request.confirm != id.to_string() && request.confirm != view.service.as_str() {
        let detail = format!(
            "`confirm` has to be the migration's id or `{}`; read the risk first",
            view.service
        );
        let title = "the decision is not confirmed";
        return Err(Refused(Problem::refused(
            400,
            ProblemKind::NotConfirmed,
            title,
            detail,
        )));
    }
    if !view
        .offers
        .iter()
        .any(|offer| offer.choice == request.choice)
    {
        let detail = format!(
            "`{}` can't decide that; `ums resolve {id}` tells what it can",
            view.system
        );
        return Err(not_needed(detail));
    }
    match request.choice {
        Resolution::TakeBack => {
            let live = shared.registry.get(id).filter(|live| live.decide());
            let live = live.ok_or_else(|| not_needed("the destination has just answered"))?;
            return Ok(json(StatusCode::ACCEPTED, &live.view()));
        }
        Resolution::Run => destination::decide(shared, id, &Message::OperatorRun).await?,
        Resolution::Discard => destination::decide(shared, id, &Message::OperatorDiscard).await?,
    }
    let view = remembered(shared, id).await?;
    Ok(json(
        StatusCode::ACCEPTED,
        &view.ok_or_else(|| migration_unknown(id))?,
    ))
}

async fn view(shared: &Shared, id: MigrationId) -> Reply<ResolveView> {
    if let Some(live) = shared.registry.get(id) {
        return of_source(shared, &live);
    }
    let incoming = shared.journal(move |journal| journal.incoming(id)).await?;
    match incoming {
        Some(incoming) => of_destination(shared, id, &incoming).await,
        None if remembered(shared, id).await?.is_some() => Err(not_needed("it is over")),
        None => Err(migration_unknown(id)),
    }
}

fn of_source(shared: &Shared, live: &Live) -> Reply<ResolveView> {
    let report = live.view().report;
    let Some((since, why)) = live.offered() else {
        let detail =
            "it is not cut off at the commit: it goes on, or can be given up with `ums abort`";
        return Err(not_needed(detail));
    };
    let there = &report.destination;
    let offer = Offer {
        choice: Resolution::TakeBack,
        effect: format!(
            "`{}` thaws its own copy, which goes on from the moment of the freeze; `{there}` is told \
             to give up its copy as soon as it can be reached",
            report.source
        ),
        risk: format!(
            "if `{there}` runs its copy, or runs it later because the commit is still under way to \
             it, two copies execute, and what one of them has acknowledged is lost; make sure that \
             `{there}` is off or does not run it (`ums status {}` there)",
            report.migration_id
        ),
    };
    Ok(ResolveView {
        migration_id: report.migration_id,
        service: report.service,
        source: report.source.clone(),
        known: format!(
            "committed: `{}` keeps its own copy frozen and whole, and repeats the commit; {why}",
            report.source
        ),
        since_ms: milliseconds(since),
        other: format!(
            "`{there}` holds the service before its first instruction, or runs it, or has lost it"
        ),
        destination: report.destination,
        system: shared.config.system.clone(),
        offers: vec![offer],
    })
}

async fn of_destination(
    shared: &Shared,
    id: MigrationId,
    incoming: &Incoming,
) -> Reply<ResolveView> {
    let service = incoming
        .service
        .as_ref()
        .ok_or_else(|| migration_unknown(id))?;
    let source = &incoming.source;
    let (known, other, offers) = match (&incoming.state, &incoming.stuck) {
        (Received::Prepared { .. }, _) => {
            source_is_silent(shared, id, incoming).await?;
            let known = "prepared: restored, and held before its first instruction; whether the \
                         source has committed is not known";
            let other = format!(
                "`{source}` keeps its own copy frozen and waits, or runs it because it has not \
                 committed, or is gone"
            );
            (
                known.to_owned(),
                other,
                vec![run_offer(incoming), discard_offer(incoming)],
            )
        }
        (Received::Committed, Some(stuck)) => {
            let other = format!("`{source}` keeps its own copy frozen and repeats the commit");
            (stuck.clone(), other, vec![discard_stuck_offer(incoming)])
        }
        (state, _) => {
            let detail = format!("it is {} here, which needs no decision", state.name());
            return Err(not_needed(detail));
        }
    };
    Ok(ResolveView {
        migration_id: id,
        service: service.specification.name.clone(),
        source: source.clone(),
        destination: shared.config.system.clone(),
        system: shared.config.system.clone(),
        known,
        since_ms: milliseconds(shared.arrivals.silent_for(id)),
        other,
        offers,
    })
}

/// The source decides whenever it can be asked.
async fn source_is_silent(shared: &Shared, id: MigrationId, incoming: &Incoming) -> Reply<()> {
    let source = &incoming.source;
    let Ok(peer) = policy::peer(shared, source) else {
        return Ok(());
    };
    let client = shared.peers.client(source, peer.address);
    let client = client.speaking(incoming.version);
    match tokio::time::timeout(SOURCE_PATIENCE, client.decision(id)).await {
        Ok(Ok(_)) => Err(not_needed(format!(
            "`{source}` answers, and what it has decided is carried out by itself; \
             `ums status {id}` there tells"
        ))),
        Ok(Err(_)) | Err(_) => Ok(()),
    }
}

fn run_offer(incoming: &Incoming) -> Offer {
    let source = &incoming.source;
    Offer {
        choice: Resolution::Run,
        effect: "the prepared copy is run here, from the moment of the freeze".to_owned(),
        risk: format!(
            "if `{source}` has not committed it runs its own copy: two copies execute, and what one \
             of them has acknowledged is lost; make sure that `{source}` is off, or shows the \
             migration as committed (`ums status` there)"
        ),
    }
}

fn discard_offer(incoming: &Incoming) -> Offer {
    let source = &incoming.source;
    Offer {
        choice: Resolution::Discard,
        effect: format!(
            "the prepared copy is removed without having executed; `{source}` takes its own copy \
             back by itself as soon as it is told"
        ),
        risk: format!(
            "if `{source}` never comes back, the service's memory and its last changes are lost: \
             this copy is the only other one"
        ),
    }
}

fn discard_stuck_offer(incoming: &Incoming) -> Offer {
    let source = &incoming.source;
    Offer {
        choice: Resolution::Discard,
        effect: format!(
            "what is left of the service here is killed and removed; `{source}` goes on only when \
             its operator takes its copy back (`ums resolve` there)"
        ),
        risk: format!(
            "what the service acknowledged while it executed here, if it did, is lost: the copy of \
             `{source}` is from the moment of the freeze"
        ),
    }
}

fn milliseconds(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

fn not_needed(detail: impl Into<String>) -> Refused {
    let title = "there is nothing to decide";
    Refused(Problem::refused(409, ProblemKind::NotNeeded, title, detail))
}
