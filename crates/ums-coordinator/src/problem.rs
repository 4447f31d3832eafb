//! How errors become problem documents: one exhaustive mapping for each kind.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use ums_api::http::ClientError;
use ums_api::problem::{Effect, Fault, MEDIA_TYPE, Problem, ProblemKind};
use ums_core::receiver::Rejected;

use crate::config::Limits;
use crate::journal::JournalError;
use crate::policy::Denied;

/// A problem on its way out.
#[derive(Debug)]
pub(crate) struct Refused(pub(crate) Problem);

/// What a handler gives.
pub(crate) type Reply<T> = Result<T, Refused>;

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = json(status, &self.0);
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        response
    }
}

impl From<Problem> for Refused {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl From<JournalError> for Refused {
    fn from(error: JournalError) -> Self {
        let problem = Problem::failed(
            ProblemKind::Journal,
            "the journal can't be used",
            error.to_string(),
        );
        Self(Problem {
            status: 507,
            ..problem
        })
    }
}

impl From<Denied> for Refused {
    fn from(denied: Denied) -> Self {
        let title = "the policy does not allow it";
        Self(Problem::refused(
            403,
            ProblemKind::PeerDenied,
            title,
            denied.to_string(),
        ))
    }
}

impl From<Rejected> for Refused {
    fn from(rejected: Rejected) -> Self {
        let (kind, title) = match rejected {
            Rejected::Committed => (ProblemKind::Committed, "the migration is committed"),
            Rejected::Aborted => (ProblemKind::Aborted, "the migration was aborted"),
            Rejected::Lost => (
                ProblemKind::Lost,
                "the prepared service is lost, and was never executed",
            ),
            Rejected::Discarded => (
                ProblemKind::Discarded,
                "the operator has discarded the service",
            ),
            Rejected::TooEarly => (ProblemKind::TooEarly, "the migration is not that far"),
            Rejected::TooLate => (ProblemKind::TooLate, "the migration is further than that"),
            Rejected::Digest => (ProblemKind::DigestMismatch, "the digests differ"),
        };
        Self(Problem::refused(409, kind, title, rejected.to_string()))
    }
}

/// An answer of the agent that is handed on: its problems as they are, silence as 503.
impl From<ClientError> for Refused {
    fn from(error: ClientError) -> Self {
        let problem = match &error {
            ClientError::Problem(problem) => return Self((**problem).clone()),
            ClientError::Connect { .. } => Problem {
                status: 503,
                effect: Effect::None,
                ..Problem::failed(
                    ProblemKind::AgentUnreachable,
                    "the Migration Interface does not answer",
                    format!(
                        "{}; see whether `ums-agent` runs (`ums doctor`)",
                        error.chain()
                    ),
                )
            },
            ClientError::Broken { .. }
            | ClientError::Timeout { .. }
            | ClientError::Foreign { .. }
            | ClientError::Request { .. } => Problem {
                status: 502,
                fault: Fault::Local,
                ..Problem::failed(
                    ProblemKind::AgentFailed,
                    "the Migration Interface gave no good answer",
                    format!(
                        "{}; `agent.log` in the state directory may say why",
                        error.chain()
                    ),
                )
            },
        };
        Self(problem)
    }
}

/// The Coordinator ends while it was asked.
pub(crate) fn ending() -> Refused {
    let detail = "it goes on when it is started again; ask again then";
    let problem = Problem::failed(ProblemKind::Ending, "the Coordinator is ending", detail);
    Refused(Problem {
        status: 503,
        ..problem
    })
}

/// A body as JSON.
pub(crate) fn json(status: StatusCode, value: &impl Serialize) -> Response {
    let body = serde_json::to_vec(value).unwrap_or_else(|_| b"{}".to_vec());
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// A good answer.
pub(crate) fn ok(value: &impl Serialize) -> Response {
    json(StatusCode::OK, value)
}

/// A request's body from JSON, with a problem that says where it is wrong.
pub(crate) struct Given<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Given<T> {
    type Rejection = Refused;

    async fn from_request(request: Request, _: &S) -> Result<Self, Refused> {
        parse(&body(request, Limits::default().arrival_timeout).await?).map(Self)
    }
}

/// A request's body, which has to be there within `limit`.
pub(crate) async fn body(request: Request, limit: Duration) -> Reply<Bytes> {
    let unreadable = |status, detail| {
        let title = "the request's body can't be read";
        Refused(Problem::refused(status, ProblemKind::Body, title, detail))
    };
    match tokio::time::timeout(limit, Bytes::from_request(request, &())).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(rejection)) => {
            let (status, detail) = (rejection.status().as_u16(), rejection.body_text());
            Err(unreadable(status, detail))
        }
        Err(_) => {
            let detail = format!("it was not there {} s after its head", limit.as_secs());
            Err(unreadable(408, detail))
        }
    }
}

/// Parses a body.
pub(crate) fn parse<T: DeserializeOwned>(body: &[u8]) -> Reply<T> {
    serde_json::from_slice(body).map_err(|error| {
        let title = "the request can't be understood";
        Refused(Problem::refused(
            400,
            ProblemKind::RequestMalformed,
            title,
            error.to_string(),
        ))
    })
}

/// There is no such thing.
pub(crate) fn unknown(kind: ProblemKind, title: &str, detail: impl Into<String>) -> Refused {
    Refused(Problem::refused(404, kind, title, detail))
}
