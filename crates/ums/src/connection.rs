//! Asks the Coordinator of this system, over its unix socket.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use ums_api::client::{RESPONSE_BYTES_MAX, WATCH_MS_MAX};
use ums_api::http::{Client, ClientError, Unix};

use crate::exit::{Exit, Failure};

/// The longest wait for an answer. `ums run` may copy a root filesystem before it answers, and a
/// plan asks a peer; both are bounded at the Coordinator, so this only ends what has gone wrong.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(600);

/// The longest wait for the answer of a watch: what it was asked to wait, and a margin.
const WATCH_TIME_MAX: Duration = Duration::from_millis(WATCH_MS_MAX + 10_000);

/// How long a Coordinator may take from making its socket to answering at it.
const START_TIME_MAX: Duration = Duration::from_secs(3);

/// Pause between two attempts to reach it.
const START_PAUSE: Duration = Duration::from_millis(20);

/// What helps when nobody answers.
const ABSENCE_REMEDY: &str = "the Coordinator does not answer; start it with `ums serve`, or name \
                              its run directory with --run-dir or UMS_RUN_DIR";

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let exit = match &error {
            ClientError::Connect { .. }
            | ClientError::Broken { .. }
            | ClientError::Timeout { .. } => Exit::Unreachable,
            ClientError::Problem(problem) => Exit::of_problem(problem),
            ClientError::Foreign { .. } | ClientError::Request { .. } => Exit::Failed,
        };
        let error = match &error {
            ClientError::Connect { .. } => anyhow::Error::new(error).context(ABSENCE_REMEDY),
            ClientError::Foreign { .. } => anyhow::Error::new(error)
                .context("the Coordinator is not of the same release as this program"),
            _ => error.into(),
        };
        Failure::new(exit, error)
    }
}

/// The way to one Coordinator, or another server of ours on a unix socket.
#[derive(Clone)]
pub(crate) struct Connection {
    client: Client,
    socket: PathBuf,
}

impl Connection {
    /// To the Coordinator at this socket.
    pub(crate) fn new(socket: PathBuf) -> Self {
        Self::named("the Coordinator", socket)
    }

    /// To the server of this name at this socket.
    pub(crate) fn named(name: &'static str, socket: PathBuf) -> Self {
        Self {
            client: Client::new(Unix::new(name, socket.clone()), RESPONSE_BYTES_MAX),
            socket,
        }
    }

    /// Asks again while nobody answers at a socket that is there: the Coordinator is starting.
    /// Nothing was sent by an attempt that found no connection.
    async fn patiently<T, F: Future<Output = Result<T, ClientError>>>(
        &self,
        ask: impl Fn() -> F,
    ) -> Result<T, ClientError> {
        let end = tokio::time::Instant::now() + START_TIME_MAX;
        loop {
            match ask().await {
                Err(ClientError::Connect { .. })
                    if self.socket.exists() && tokio::time::Instant::now() < end =>
                {
                    tokio::time::sleep(START_PAUSE).await;
                }
                result => return result,
            }
        }
    }

    /// `GET`.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.patiently(|| self.client.get(path, ANSWER_TIME_MAX))
            .await
    }

    /// `GET` of something that waits for a change.
    pub(crate) async fn watch<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.client.get(path, WATCH_TIME_MAX).await
    }

    /// `POST`.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<T, ClientError> {
        self.patiently(|| self.client.post(path, body, ANSWER_TIME_MAX))
            .await
    }

    /// `DELETE`.
    pub(crate) async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.patiently(|| self.client.delete(path, ANSWER_TIME_MAX))
            .await
    }
}

#[cfg(test)]
mod test {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use ums_api::problem::Problem;
    use ums_api::problem::ProblemKind;

    use super::*;

    #[tokio::test]
    async fn a_missing_coordinator_is_named_with_its_socket() {
        let directory = tempfile::TempDir::new().expect("a directory");
        let connection = Connection::new(directory.path().join("ums.sock"));
        let error = connection
            .get::<()>("/v1/hello")
            .await
            .expect_err("nobody is there");
        assert!(error.is_connection());
        let failure = Failure::from(error);
        assert_eq!(failure.exit, Exit::Unreachable);
        let text = failure.to_string();
        assert!(
            text.contains("start it with `ums serve`") && text.contains("ums.sock"),
            "{text}"
        );
    }

    #[tokio::test]
    async fn problems_and_nonsense_are_told_apart() {
        let problem = Problem::refused(
            404,
            ProblemKind::ServiceUnknown,
            "no such service",
            "`x`: see list",
        );
        let body = serde_json::to_string(&problem).expect("a document");
        let failure = answered(404, &body).await;
        assert_eq!(failure.exit, Exit::Refused);
        assert_eq!(failure.to_string(), "no such service: `x`: see list");
        let failure = answered(502, "<html>").await;
        assert_eq!(failure.exit, Exit::Failed);
        assert!(
            failure.to_string().contains("not of the same release"),
            "{failure}"
        );
        assert_eq!(answered(200, "").await.exit, Exit::Failed);
    }

    /// What is made of one answer of a server.
    async fn answered(status: u16, body: &str) -> Failure {
        let directory = tempfile::TempDir::new().expect("a directory");
        let socket = directory.path().join("ums.sock");
        let listener = tokio::net::UnixListener::bind(&socket).expect("a socket");
        let connection = Connection::new(socket);
        let (length, body) = (body.len(), body.to_owned());
        let serve = async move {
            let (mut stream, _) = listener.accept().await.expect("a client");
            let mut request = [0; 4096];
            let read = stream.read(&mut request).await.expect("a request");
            assert!(request[..read].starts_with(b"GET /v1/hello HTTP/1.1\r\n"));
            let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\n\r\n{body}");
            stream.write_all(answer.as_bytes()).await.expect("answered");
        };
        let (_, asked) = tokio::join!(serve, connection.get::<()>("/v1/hello"));
        asked.expect_err("no good answer").into()
    }
}
