//! The client API's server (see [`ums_api::client`]).

mod migrations;
mod peers;
mod resolve;

use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{get, post};
use serde::de::DeserializeOwned;
use ums_api::client::{
    API_VERSION, Hello, REQUEST_BYTES_MAX, RunRequest, ServiceDetail, ServiceStatus, paths,
};
use ums_api::peer::Empty;
use ums_api::problem::{Problem, ProblemKind};
use ums_core::id::ServiceName;

use crate::problem::{Given, Refused, Reply, ending, json, ok, unknown};
use crate::shared::Shared;

/// The routes.
pub(crate) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route(paths::HELLO, get(hello))
        .route(paths::SERVICES, get(services).post(run))
        .route(paths::SERVICE_ROUTE, get(service).delete(delete))
        .route(paths::IMAGE_ROUTE, get(unpacking))
        .route(paths::ATTENDANTS, get(attendants))
        .route(paths::PEERS, get(peers::list))
        .route(paths::FACTS, get(facts))
        .route(paths::PLANS, post(migrations::plan))
        .route(
            paths::MIGRATIONS,
            get(migrations::history).post(migrations::migrate),
        )
        .route(paths::MIGRATION_ROUTE, get(migrations::watch))
        .route(paths::ABORT_ROUTE, post(migrations::abort))
        .route(
            paths::RESOLVE_ROUTE,
            get(resolve::look).post(resolve::decide),
        )
        .fallback(nowhere)
        .layer(DefaultBodyLimit::max(REQUEST_BYTES_MAX))
        .with_state(shared)
}

type Own = State<Arc<Shared>>;

async fn nowhere() -> Refused {
    unknown(
        ProblemKind::PathUnknown,
        "there is no such path",
        "see the client API's table of paths",
    )
}

async fn hello(State(shared): Own) -> Response {
    ok(&Hello {
        system: shared.config.system.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        api: API_VERSION,
    })
}

async fn facts(State(shared): Own) -> Reply<Response> {
    Ok(ok(&shared.agents.node().facts().await?))
}

async fn attendants(State(shared): Own) -> Reply<Response> {
    Ok(ok(&shared.agents.attendants().await?))
}

async fn services(State(shared): Own) -> Reply<Response> {
    Ok(ok(&shared.agents.services().await?))
}

async fn service(State(shared): Own, Path(name): Path<String>) -> Reply<Response> {
    let name = parse_name(&name)?;
    let services = shared.agents.services().await?;
    let view = services
        .into_iter()
        .find(|view| view.specification.name == name);
    let view = view.ok_or_else(|| service_unknown(&name))?;
    let facts = match view.status {
        ServiceStatus::Running => shared.agents.of(&name).service(&name).await.ok(),
        ServiceStatus::Frozen
        | ServiceStatus::Arriving
        | ServiceStatus::Exited
        | ServiceStatus::Paused => None,
    };
    Ok(ok(&ServiceDetail { view, facts }))
}

/// Of a service that is being started: it is in no list yet.
async fn unpacking(State(shared): Own, Path(name): Path<String>) -> Reply<Response> {
    let name = parse_name(&name)?;
    Ok(ok(&shared.agents.node().unpacking(&name).await?))
}

/// Runs to its end even if the client goes away: half a service is nobody's.
async fn run(State(shared): Own, Given(request): Given<RunRequest>) -> Reply<Response> {
    let tasks = Arc::clone(&shared.tasks);
    let work = async move {
        refuse_arriving(&shared, &request.name).await?;
        let _claim = shared
            .registry
            .control(&request.name)
            .map_err(Problem::from)?;
        refuse_outer(&shared, &request.name)?;
        let view = shared.agents.node().run_service(&request).await?;
        Ok(json(StatusCode::CREATED, &view))
    };
    tasks.detached(work).await.ok_or_else(ending)?
}

/// UMS §III-B, Step 8: control messages are refused while a migration has the service.
async fn delete(State(shared): Own, Path(name): Path<String>) -> Reply<Response> {
    let name = parse_name(&name)?;
    let tasks = Arc::clone(&shared.tasks);
    let work = async move {
        refuse_arriving(&shared, &name).await?;
        let _claim = shared.registry.control(&name).map_err(Problem::from)?;
        shared.agents.of(&name).delete_service(&name).await?;
        Ok(ok(&Empty {}))
    };
    tasks.detached(work).await.ok_or_else(ending)?
}

/// A name that an outer container has is that container's: its engine starts the service.
fn refuse_outer(shared: &Shared, name: &ServiceName) -> Reply<()> {
    if !shared.agents.is_outer(name) {
        return Ok(());
    }
    let detail = format!(
        "`{name}` is the name of an outer container: start that with its engine, or, if it is gone for good, remove \
         its directory `outer/{name}` in the run directory"
    );
    Err(Problem::refused(409, ProblemKind::NameTaken, "the name is taken", detail).into())
}

/// A service that arrives is its migration's until it runs.
async fn refuse_arriving(shared: &Shared, name: &ServiceName) -> Reply<()> {
    let arriving = shared.journal(|journal| journal.all_incoming(true)).await?;
    for (id, incoming) in arriving {
        let same = incoming
            .service
            .is_some_and(|service| service.specification.name == *name);
        if same && incoming.state.is_arriving() {
            let detail = format!("`{name}` arrives here by migration {id}; wait until it is over");
            let title = "the service is being migrated";
            return Err(Refused(Problem {
                retry: true,
                ..Problem::refused(409, ProblemKind::Migrating, title, detail)
            }));
        }
    }
    Ok(())
}

fn parse_name(text: &str) -> Reply<ServiceName> {
    text.parse().map_err(|error: ums_core::id::InvalidName| {
        unknown(
            ProblemKind::ServiceUnknown,
            "no such service",
            error.to_string(),
        )
    })
}

fn service_unknown(name: &ServiceName) -> Refused {
    let detail = format!("no service `{name}` is here; `ums list` shows those there are");
    unknown(ProblemKind::ServiceUnknown, "no such service", detail)
}

/// A query, with a problem that says what is wrong with it.
pub(crate) fn parse_query<T: DeserializeOwned>(uri: &axum::http::Uri) -> Reply<T> {
    axum::extract::Query::<T>::try_from_uri(uri)
        .map(|query| query.0)
        .map_err(|rejection| {
            let title = "the query can't be understood";
            Refused(Problem::refused(
                400,
                ProblemKind::Query,
                title,
                rejection.body_text(),
            ))
        })
}
