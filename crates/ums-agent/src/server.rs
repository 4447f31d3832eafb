//! The agent's API over HTTP (`ums_api::agent` describes it).

use axum::Router;
use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, FromRequest, Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Serialize;
use serde::de::DeserializeOwned;
use ums_api::agent::{
    CheckpointRequest, CreateRequest, LeadRequest, OfService, OpenRequest, RunRequest, Started,
};
use ums_api::problem::{MEDIA_TYPE, Problem, ProblemKind};
use ums_core::id::{MigrationId, ServiceName};
use ums_node::task::blocking;
use ums_node::{attendants, destination, look, problem, source, writing};
use ums_standalone::{removal, services};

use crate::agent::Agent;

/// The longest request, bytes.
const BODY_LEN_MAX: usize = 1 << 20;

type Shared = State<Agent>;
type Answer<T> = Result<axum::Json<T>, Failure>;

/// The routes.
pub fn router(agent: Agent) -> Router {
    let operation = |name: &str| format!("/v1/migrations/{{id}}/{name}");
    Router::new()
        .route("/v1/facts", get(facts))
        .route("/v1/attendants", get(attendants))
        .route("/v1/services", get(list).post(run))
        .route("/v1/services/{name}", get(describe).delete(remove))
        .route("/v1/services/{name}/image", get(unpacking))
        .route("/v1/services/{name}/writing", get(measure))
        .route("/v1/migrations", get(migrations))
        .route("/v1/migrations/{id}", get(migration))
        .route(&operation("block"), post(block))
        .route(&operation("unblock"), post(unblock))
        .route(&operation("open"), post(open))
        .route(&operation("frontman/hold"), post(hold))
        .route(&operation("frontman/lead"), post(lead))
        .route(&operation("frontman/yield"), post(give_way))
        .route(&operation("checkpoint"), post(checkpoint))
        .route(&operation("confirm"), post(confirm))
        .route(&operation("thaw"), post(thaw))
        .route(&operation("delete-source"), post(delete_source))
        .route(&operation("create"), post(create))
        .route(&operation("restore"), post(restore))
        .route(&operation("run"), post(resume))
        .route(&operation("discard"), post(discard))
        .route(&operation("settle"), post(settle))
        .layer(DefaultBodyLimit::max(BODY_LEN_MAX))
        .with_state(agent)
}

/// A problem as an answer.
struct Failure(Problem);

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status);
        let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self.0).unwrap_or_default();
        (status, [(header::CONTENT_TYPE, MEDIA_TYPE)], body).into_response()
    }
}

/// A JSON body whose faults are told as a problem.
struct Json<T>(T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = Failure;
    async fn from_request(request: axum::extract::Request, state: &S) -> Result<Self, Failure> {
        match axum::Json::<T>::from_request(request, state).await {
            Ok(axum::Json(value)) => Ok(Self(value)),
            Err(rejection) => Err(Failure(malformed(&rejection))),
        }
    }
}

fn malformed(rejection: &JsonRejection) -> Problem {
    let status = rejection.status().as_u16();
    Problem::refused(
        status,
        ProblemKind::Malformed,
        "malformed request",
        rejection.body_text(),
    )
}

fn answer<T: Serialize>(result: Result<T, Problem>) -> Answer<T> {
    Ok(axum::Json(result?))
}

#[derive(Serialize)]
struct Empty {}

fn empty(result: Result<(), Problem>) -> Answer<Empty> {
    answer(result.map(|()| Empty {}))
}

async fn facts(State(agent): Shared) -> impl IntoResponse {
    let facts = async move {
        agent.node.host.look(None).await?;
        blocking(move || look::facts(&agent.node)).await
    };
    answer(facts.await)
}

async fn attendants(State(agent): Shared) -> impl IntoResponse {
    answer(blocking(move || Ok(attendants::list(&agent.run_dir))).await)
}

async fn list(State(agent): Shared) -> impl IntoResponse {
    let services = async move {
        agent.node.host.look(None).await?;
        blocking(move || Ok(look::services(&agent.node))).await
    };
    answer(services.await)
}

async fn run(State(agent): Shared, Json(request): Json<RunRequest>) -> impl IntoResponse {
    // In a task of its own: half a service is nobody's.
    let run = async move {
        let (service, notes) = services::run(&agent.host, request).await?;
        let view = blocking(move || Ok(look::view(&agent.node, &service))).await?;
        Ok(Started { view, notes })
    };
    answer(detached(run).await)
}

async fn unpacking(State(agent): Shared, Path(name): Path<ServiceName>) -> impl IntoResponse {
    let far = agent.host.unpacking(&name);
    answer(far.ok_or_else(|| problem::unknown_service(&name)))
}

async fn describe(State(agent): Shared, Path(name): Path<ServiceName>) -> impl IntoResponse {
    let service = async move {
        agent.node.host.look(Some(&name)).await?;
        blocking(move || look::service(&agent.node, &name)).await
    };
    answer(service.await)
}

async fn measure(State(agent): Shared, Path(name): Path<ServiceName>) -> impl IntoResponse {
    answer(blocking(move || writing::measure(&agent.node, &name)).await)
}

async fn remove(State(agent): Shared, Path(name): Path<ServiceName>) -> impl IntoResponse {
    empty(detached(async move { removal::remove(&agent.host, &name).await }).await)
}

async fn migrations(State(agent): Shared) -> impl IntoResponse {
    answer(blocking(move || Ok(look::migrations(&agent.node))).await)
}

async fn migration(State(agent): Shared, Path(id): Path<MigrationId>) -> impl IntoResponse {
    answer(blocking(move || look::migration(&agent.node, id)).await)
}

async fn block(
    State(agent): Shared,
    Path(id): Path<MigrationId>,
    Json(of): Json<OfService>,
) -> impl IntoResponse {
    empty(source::block(&agent.node, id, of.service).await)
}

async fn unblock(
    State(agent): Shared,
    Path(id): Path<MigrationId>,
    Json(of): Json<OfService>,
) -> impl IntoResponse {
    empty(source::unblock(&agent.node, id, of.service).await)
}

async fn open(
    State(agent): Shared,
    Path(id): Path<MigrationId>,
    Json(request): Json<OpenRequest>,
) -> impl IntoResponse {
    empty(source::open(&agent.node, id, request).await)
}

async fn hold(
    State(agent): Shared,
    Path(id): Path<MigrationId>,
    Json(of): Json<OfService>,
) -> impl IntoResponse {
    empty(source::hold(&agent.node, id, of.service).await)
}

async fn lead(
    State(agent): Shared,
    Path(id): Path<MigrationId>,
    Json(request): Json<LeadRequest>,
) -> impl IntoResponse {
    empty(source::lead(&agent.node, id, request).await)
}

async fn give_way(
    State(agent): Shared,
    Path(id): Path<MigrationId>,
    Json(of): Json<OfService>,
) -> impl IntoResponse {
    empty(source::yield_to_service(&agent.node, id, of.service).await)
}

async fn checkpoint(
    State(agent): Shared,
    Path(id): Path<MigrationId>,
    Json(request): Json<CheckpointRequest>,
) -> impl IntoResponse {
    // In a task of its own: a caller that goes away must not cut a checkpoint in half.
    answer(detached(async move { source::checkpoint(&agent.node, id, request).await }).await)
}

async fn confirm(
    State(agent): Shared,
    Path(id): Path<MigrationId>,
    Json(of): Json<OfService>,
) -> impl IntoResponse {
    empty(source::confirm(&agent.node, id, of.service).await)
}

async fn thaw(
    State(agent): Shared,
    Path(id): Path<MigrationId>,
    Json(of): Json<OfService>,
) -> impl IntoResponse {
    empty(source::thaw(&agent.node, id, of.service).await)
}

async fn delete_source(
    State(agent): Shared,
    Path(id): Path<MigrationId>,
    Json(of): Json<OfService>,
) -> impl IntoResponse {
    empty(detached(async move { source::delete_source(&agent.node, id, of.service).await }).await)
}

async fn create(
    State(agent): Shared,
    Path(id): Path<MigrationId>,
    Json(request): Json<CreateRequest>,
) -> impl IntoResponse {
    answer(detached(async move { destination::create(&agent.node, id, request).await }).await)
}

async fn restore(State(agent): Shared, Path(id): Path<MigrationId>) -> impl IntoResponse {
    answer(detached(async move { destination::restore(&agent.node, id).await }).await)
}

async fn resume(State(agent): Shared, Path(id): Path<MigrationId>) -> impl IntoResponse {
    answer(detached(async move { destination::run(&agent.node, id).await }).await)
}

async fn discard(State(agent): Shared, Path(id): Path<MigrationId>) -> impl IntoResponse {
    empty(detached(async move { destination::discard(&agent.node, id).await }).await)
}

async fn settle(State(agent): Shared, Path(id): Path<MigrationId>) -> impl IntoResponse {
    empty(destination::settle(&agent.node, id).await)
}

/// Goes on when the caller is gone.
async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T, Problem>> + Send + 'static,
) -> Result<T, Problem> {
    tokio::spawn(work)
        .await
        .unwrap_or_else(|error| Err(problem::panicked(&error)))
}
