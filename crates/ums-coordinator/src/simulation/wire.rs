//! The network and the agents' sockets: HTTP over streams in memory. What is lost, late, doubled or
//! cut is decided for each message; who sent it may have given up, or died, when it arrives.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{Method, Request, Response, StatusCode};
use axum::{Extension, Router};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::DuplexStream;
use tokio::sync::oneshot;
use ums_api::http::{Client, Connecting, Connector, Stream};
use ums_api::peer::BODY_BYTES_MAX;
use ums_core::id::SystemName;

use super::agent::Agent;
use super::fault::{Kind, Side};
use super::system::{self, Coordinator};
use super::world::{Mutant, Verdict, World};
use crate::listen::PeerIdentity;
use crate::peer::Dial;

/// What a stream holds before its reader takes it.
const STREAM_BYTES: usize = 64 * 1024;
/// How long a connection takes to be given up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Period of looking whether the link is there again.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The connection broke.
#[derive(Debug, thiserror::Error)]
#[error("the connection broke")]
struct Broken;

/// Leads a Coordinator to the other.
pub(super) fn dial(world: &Arc<World>, from: Side) -> Dial {
    let world = Arc::clone(world);
    Box::new(move |_: &SystemName, _: SocketAddr| {
        let world = Arc::clone(&world);
        Client::new(ToPeer { world, from }, BODY_BYTES_MAX)
    })
}

struct ToPeer {
    world: Arc<World>,
    from: Side,
}

impl Connector for ToPeer {
    fn connect(&self) -> Connecting<'_> {
        Box::pin(async {
            if !self.world.linked() {
                tokio::time::sleep(CONNECT_TIMEOUT).await;
                return Err("timed out".into());
            }
            let there = self.world.coordinator(self.from.other());
            let there = there.ok_or("connection refused")?;
            let (ours, theirs) = tokio::io::duplex(STREAM_BYTES);
            let (world, from) = (Arc::clone(&self.world), self.from);
            let tasks = Arc::clone(&there.process.tasks);
            tasks.spawn(connection(theirs, move |method, path, body| {
                let (world, there) = (Arc::clone(&world), there.clone());
                let (answered, answer) = oneshot::channel();
                // It is on its way, whatever becomes of who sent it.
                tokio::spawn(async move {
                    let message = Message { method, path, body };
                    let _ = answered.send(deliver(&world, from, &there, message).await);
                });
                async move { answer.await.map_err(|_| Broken)? }
            }));
            Ok(Box::new(ours) as Box<dyn Stream>)
        })
    }

    fn server(&self) -> String {
        format!("the Coordinator of `{}`", self.from.other().name())
    }
}

/// Leads a Coordinator to its agent.
pub(super) struct ToAgent {
    world: Arc<World>,
    side: Side,
}

impl ToAgent {
    pub(super) fn new(world: &Arc<World>, side: Side) -> Self {
        let world = Arc::clone(world);
        Self { world, side }
    }
}

impl Connector for ToAgent {
    fn connect(&self) -> Connecting<'_> {
        Box::pin(async {
            let agent = self.world.agent(self.side).ok_or("connection refused")?;
            let (ours, theirs) = tokio::io::duplex(STREAM_BYTES);
            let tasks = Arc::clone(&agent.process.tasks);
            tasks.spawn(connection(theirs, move |method, path, body| {
                let agent = agent.clone();
                async move { operate(agent, method, path, body).await }
            }));
            Ok(Box::new(ours) as Box<dyn Stream>)
        })
    }

    fn server(&self) -> String {
        format!("the agent of `{}`", self.side.name())
    }
}

/// An operation runs to its end, or its agent's, whatever becomes of who asked.
async fn operate(
    agent: Agent,
    method: Method,
    path: String,
    body: Bytes,
) -> Result<Response<Body>, Broken> {
    let tasks = Arc::clone(&agent.process.tasks);
    let answer = tasks.detached(async move { agent.answer(method, path, body).await });
    match answer.await.flatten().ok_or(Broken)? {
        Ok(value) => Ok(response(StatusCode::OK, value.to_string())),
        Err(problem) => {
            let status = StatusCode::from_u16(problem.status).map_err(|_| Broken)?;
            let text = serde_json::to_string(&problem).map_err(|_| Broken)?;
            Ok(response(status, text))
        }
    }
}

fn response(status: StatusCode, body: String) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response
}

/// Serves one connection.
async fn connection<F>(
    stream: DuplexStream,
    answer: impl Fn(Method, String, Bytes) -> F + Clone + Send + 'static,
) where
    F: Future<Output = Result<Response<Body>, Broken>> + Send + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = answer.clone();
        async move {
            let (method, path) = (request.method().clone(), request.uri().path().to_owned());
            let body = request.into_body().collect().await.map_err(|_| Broken)?;
            answer(method, path, body.to_bytes()).await
        }
    });
    let served =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    // That it broke is what its other end is told too.
    let _ = served.await;
}

#[derive(Clone)]
struct Message {
    method: Method,
    path: String,
    body: Bytes,
}

/// One message and its answer.
async fn deliver(
    world: &Arc<World>,
    from: Side,
    there: &Coordinator,
    message: Message,
) -> Result<Response<Body>, Broken> {
    let operation = message.path.rsplit('/').next().unwrap_or_default();
    let operation = if message.path.contains("decisions") {
        "decision"
    } else {
        operation
    };
    let place = format!("{} {operation}", from.name());
    let asked = world
        .pass(Kind::Message, &format!("{place} asked"), None)
        .await;
    if operation == "commit"
        && !matches!(asked, Verdict::Go)
        && world.mutant(Mutant::ThawsAfterTheCommit)
    {
        thaw(world, &message.path).await;
    }
    match asked {
        Verdict::Go => {}
        Verdict::Fail | Verdict::Break => return Err(Broken),
        Verdict::Lose => return std::future::pending().await,
        Verdict::Twice(after) => again(world, from, there, message.clone(), after),
    }
    let answer = handle(world, from, there, message).await?;
    match world
        .pass(Kind::Message, &format!("{place} answered"), None)
        .await
    {
        Verdict::Go | Verdict::Twice(_) => {}
        Verdict::Fail | Verdict::Break => return Err(Broken),
        Verdict::Lose => return std::future::pending().await,
    }
    crossing(world, from.other()).await;
    Ok(answer)
}

/// What a source must never do.
async fn thaw(world: &Arc<World>, commit: &str) {
    if let Some(agent) = world.agent(Side::A) {
        let of_migration = commit
            .split_once("/migrations/")
            .map_or("", |(_, rest)| rest);
        let path = format!("/v1/migrations/{}", of_migration.replace("commit", "thaw"));
        agent.answer(Method::POST, path, Bytes::new()).await;
    }
}

/// The same once more; nobody waits for its answer.
fn again(world: &Arc<World>, from: Side, there: &Coordinator, message: Message, after: Duration) {
    let (world, there, pending) = (Arc::clone(world), there.clone(), world.pending());
    tokio::spawn(async move {
        tokio::time::sleep(after).await;
        // A connection does not outlive its ends, but the same message may come over a new one.
        let there = world.coordinator(from.other()).unwrap_or(there);
        let _ = handle(&world, from, &there, message).await;
        drop(pending);
    });
}

async fn handle(
    world: &Arc<World>,
    from: Side,
    there: &Coordinator,
    message: Message,
) -> Result<Response<Body>, Broken> {
    crossing(world, from).await;
    if there.process.is_doomed() {
        return Err(Broken);
    }
    let identity = Extension(PeerIdentity(system::system_name(from)));
    let request = Request::builder()
        .method(message.method)
        .uri(message.path)
        .header("content-type", "application/json")
        .body(Body::from(message.body))
        .map_err(|_| Broken)?;
    let answer = serve(&there.peers.clone().layer(identity), request).await;
    if there.process.is_doomed() {
        return Err(Broken);
    }
    Ok(answer)
}

/// Waits until messages from this side get through.
async fn crossing(world: &Arc<World>, from: Side) {
    while !world.reaches(from) {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Has a router answer a request.
pub(super) async fn serve(router: &Router, request: Request<Body>) -> Response<Body> {
    let service = TowerToHyperService::new(router.clone());
    let answer: Result<_, Infallible> = service.call(request).await;
    match answer {
        Ok(answer) => answer,
        Err(never) => match never {},
    }
}
