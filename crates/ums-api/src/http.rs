//! A small typed HTTP/1.1 client: JSON in, JSON or a [`Problem`] out, over unix sockets or over
//! any stream that a [`Connector`] makes (so that TLS stays with whoever has the keys).
//!
//! Connections are kept open and used again, the last one first: what is asked inside the freeze
//! of a service must not wait for a handshake. A connection that turns out to be closed before
//! anything was sent is replaced without ado.

mod agent;

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::SendRequest;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};

pub use agent::AgentClient;

use crate::problem::{Effect, Problem};

/// Most idle connections kept: one for the steps, one for watching, one for renewing a lease, and
/// one to spare.
const IDLE_MAX: usize = 4;

/// Why there is no good answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection: nothing was sent.
    #[error("no connection to {server}")]
    Connect {
        /// Whom.
        server: String,
        /// Why.
        #[source]
        source: ConnectError,
    },
    /// The connection broke before the answer was whole: the request may have had its effect.
    #[error("{server} was cut off before its answer to {request} was whole")]
    Broken {
        /// Whom.
        server: String,
        /// What was asked.
        request: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No answer in time: the request may have had its effect.
    #[error("{server} did not answer {request} within {} s", limit.as_secs_f32())]
    Timeout {
        /// Whom.
        server: String,
        /// What was asked.
        request: String,
        /// How long was waited.
        limit: Duration,
    },
    /// It answered with a problem.
    #[error("{0}")]
    Problem(Box<Problem>),
    /// It answered something else.
    #[error("{server} answered {request} with {status} and a body that can't be understood")]
    Foreign {
        /// Whom.
        server: String,
        /// What was asked.
        request: String,
        /// The status.
        status: u16,
        /// What is wrong with the body.
        #[source]
        source: serde_json::Error,
    },
    /// The request can't be put into words.
    #[error("the request {request} can't be sent")]
    Request {
        /// What was asked.
        request: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Why a connection can't be made.
pub type ConnectError = Box<dyn std::error::Error + Send + Sync>;

impl ClientError {
    /// Whether the request may have had its effect.
    pub fn effect(&self) -> Effect {
        match self {
            Self::Connect { .. } | Self::Request { .. } => Effect::None,
            Self::Broken { .. } | Self::Timeout { .. } | Self::Foreign { .. } => Effect::Unknown,
            Self::Problem(problem) => problem.effect,
        }
    }

    /// Whether the connection is at fault, so that the same request may succeed on another one.
    pub fn is_connection(&self) -> bool {
        matches!(self, Self::Connect { .. } | Self::Broken { .. })
    }

    /// The problem, if the server answered with one.
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Problem(problem) => Some(problem),
            _ => None,
        }
    }

    /// The error with all its causes, in one line.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut next = std::error::Error::source(self);
        while let Some(cause) = next {
            text.push_str(": ");
            text.push_str(&cause.to_string());
            next = cause.source();
        }
        text
    }
}

/// A connected stream.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Stream for T {}

/// A stream that is being connected.
pub type Connecting<'a> =
    Pin<Box<dyn Future<Output = Result<Box<dyn Stream>, ConnectError>> + Send + 'a>>;

/// Makes connections to one server.
pub trait Connector: Send + Sync + 'static {
    /// A new connection.
    fn connect(&self) -> Connecting<'_>;
    /// Whom it leads to, for errors.
    fn server(&self) -> String;
}

/// Leads to a unix socket.
#[derive(Debug, Clone)]
pub struct Unix {
    socket: PathBuf,
    name: &'static str,
}

impl Unix {
    /// To the server of this name at this socket.
    pub fn new(name: &'static str, socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            name,
        }
    }
}

impl Connector for Unix {
    fn connect(&self) -> Connecting<'_> {
        Box::pin(async {
            let stream = tokio::net::UnixStream::connect(&self.socket).await?;
            Ok(Box::new(stream) as Box<dyn Stream>)
        })
    }

    fn server(&self) -> String {
        format!("{} at {}", self.name, self.socket.display())
    }
}

/// A client of one server. Clones share its connections.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    connector: Box<dyn Connector>,
    idle: Mutex<Vec<Sender>>,
    response_bytes_max: usize,
}

type Sender = SendRequest<Full<Bytes>>;

impl Client {
    /// A client that reads answers up to this size.
    pub fn new(connector: impl Connector, response_bytes_max: usize) -> Self {
        let idle = Mutex::new(Vec::new());
        let connector = Box::new(connector);
        Self {
            shared: Arc::new(Shared {
                connector,
                idle,
                response_bytes_max,
            }),
        }
    }

    /// `GET`, within a time.
    pub async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        limit: Duration,
    ) -> Result<T, ClientError> {
        self.ask(Method::GET, path, Bytes::new(), limit).await
    }

    /// `POST`, within a time.
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &(impl Serialize + Sync),
        limit: Duration,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|source| ClientError::Request {
            request: format!("POST {path}"),
            source: source.into(),
        })?;
        self.ask(Method::POST, path, body.into(), limit).await
    }

    /// `DELETE`, within a time.
    pub async fn delete<T: DeserializeOwned>(
        &self,
        path: &str,
        limit: Duration,
    ) -> Result<T, ClientError> {
        self.ask(Method::DELETE, path, Bytes::new(), limit).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        limit: Duration,
    ) -> Result<T, ClientError> {
        let server = || self.shared.connector.server();
        let name = format!("{method} {path}");
        let exchange = self.exchange(method, path, &name, body);
        let (status, body) = match tokio::time::timeout(limit, exchange).await {
            Ok(answer) => answer?,
            Err(_) => {
                return Err(ClientError::Timeout {
                    server: server(),
                    request: name,
                    limit,
                });
            }
        };
        let foreign = |source| ClientError::Foreign {
            server: server(),
            request: name.clone(),
            status: status.as_u16(),
            source,
        };
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(foreign);
        }
        let problem = serde_json::from_slice(&body).map_err(foreign)?;
        Err(ClientError::Problem(Box::new(problem)))
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        name: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let broken = |source: ConnectError| ClientError::Broken {
            server: self.shared.connector.server(),
            request: name.to_owned(),
            source,
        };
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "ums")
            .header("content-type", "application/json")
            .body(Full::new(body))
            .map_err(|source| ClientError::Request {
                request: name.to_owned(),
                source: source.into(),
            })?;
        // Every idle connection may have been closed by the server: each is tried once.
        let (mut sender, response) = loop {
            let (mut sender, fresh) = self.sender().await?;
            match sender.try_send_request(request).await {
                Ok(response) => break (sender, response),
                Err(mut error) => match error.take_message() {
                    Some(unsent) if !fresh => request = unsent,
                    _ => return Err(broken(error.into_error().into())),
                },
            }
        };
        let (status, body) = self.read(response).await.map_err(broken)?;
        if sender.ready().await.is_ok() {
            self.keep(sender);
        }
        Ok((status, body))
    }

    async fn read(
        &self,
        response: Response<hyper::body::Incoming>,
    ) -> Result<(StatusCode, Bytes), ConnectError> {
        let status = response.status();
        let body = Limited::new(response.into_body(), self.shared.response_bytes_max);
        Ok((status, body.collect().await?.to_bytes()))
    }

    /// A connection, and whether it is a new one.
    async fn sender(&self) -> Result<(Sender, bool), ClientError> {
        while let Some(sender) = self.idle().pop() {
            if !sender.is_closed() {
                return Ok((sender, false));
            }
        }
        let failed = |source: ConnectError| ClientError::Connect {
            server: self.shared.connector.server(),
            source,
        };
        let stream = self.shared.connector.connect().await.map_err(failed)?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| failed(error.into()))?;
        // It ends when its sender is dropped; its error is the sender's too.
        tokio::spawn(connection);
        Ok((sender, true))
    }

    fn keep(&self, sender: Sender) {
        let mut idle = self.idle();
        if idle.len() < IDLE_MAX {
            idle.push(sender);
        }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Sender>> {
        self.shared
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
