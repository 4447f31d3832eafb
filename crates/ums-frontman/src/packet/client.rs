//! The agent's side of packet mode: starting an end and telling it what to do.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::control::{Request, Role, Status};
use super::launch::{End, FarLaunch, NearLaunch};
use crate::client::{ClientError, ask, start};

/// Speaks to one end. Each request is a conversation of its own, so nothing has to be mended after
/// an error.
#[derive(Debug, Clone)]
pub struct Client {
    path: PathBuf,
}

/// The end on this control socket; [`ClientError::NotThere`] when nobody answers.
pub async fn connect(path: impl Into<PathBuf>) -> Result<(Client, Status), ClientError> {
    let client = Client { path: path.into() };
    let status = client.status().await?;
    Ok((client, status))
}

/// Starts a near end that outlives its starter, and returns when the far end has let it in: from
/// then on it holds what comes into its device. Its log is appended to `log`; without one it is
/// dropped.
///
/// *Idempotence*: one that answers already and is of the same migration is taken as it is.
pub async fn spawn_near(
    binary: &Path,
    launch: &NearLaunch,
    log: Option<&Path>,
) -> Result<(Client, Status), ClientError> {
    spawn(binary, Role::Near, &launch.end, launch, log).await
}

/// Starts a far end that outlives its starter, and returns when its port and its device are there:
/// the port is in [`Status::address`]. Its log is appended to `log`; without one it is dropped.
///
/// *Idempotence*: one that answers already and is of the same migration is taken as it is.
pub async fn spawn_far(
    binary: &Path,
    launch: &FarLaunch,
    log: Option<&Path>,
) -> Result<(Client, Status), ClientError> {
    spawn(binary, Role::Far, &launch.end, launch, log).await
}

impl Client {
    /// Its control socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How it stands.
    pub async fn status(&self) -> Result<Status, ClientError> {
        ask(&self.path, &Request::Status {}).await
    }

    /// Near end: release what is held, in order, then pass packets both ways.
    pub async fn lead(&self) -> Result<Status, ClientError> {
        ask(&self.path, &Request::Lead {}).await
    }

    /// Near end, before `lead`: write what is held into the device, for the service that stayed,
    /// then end. When this returns it is written.
    ///
    /// *Idempotence*: a repetition finds nobody; that counts as done, and gives `None`.
    pub async fn give_back(&self) -> Result<Option<Status>, ClientError> {
        present(ask(&self.path, &Request::GiveBack {}).await)
    }

    /// Far end: both ends' time begins anew.
    pub async fn renew(&self) -> Result<Status, ClientError> {
        ask(&self.path, &Request::Renew {}).await
    }

    /// End, and have the other end end too.
    ///
    /// *Idempotence*: from the first call on its socket's name is free for the next end, so a
    /// repetition finds nobody; that counts as done, and gives `None`.
    pub async fn retire(&self) -> Result<Option<Status>, ClientError> {
        present(ask(&self.path, &Request::Retire {}).await)
    }
}

fn present(answer: Result<Status, ClientError>) -> Result<Option<Status>, ClientError> {
    match answer {
        Ok(status) => Ok(Some(status)),
        Err(ClientError::NotThere(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

async fn spawn(
    binary: &Path,
    role: Role,
    end: &End,
    launch: &impl Serialize,
    log: Option<&Path>,
) -> Result<(Client, Status), ClientError> {
    match connect(&end.socket).await {
        Ok((client, status)) => {
            let same = status.role == role
                && status.service == end.service
                && status.migration == end.migration;
            if same {
                return Ok((client, status));
            }
            return Err(ClientError::Other(client.path));
        }
        Err(ClientError::NotThere(_)) => {}
        Err(error) => return Err(error),
    }
    let failed = |error: serde_json::Error| ClientError::Start {
        binary: binary.to_owned(),
        reason: error.to_string(),
    };
    let input = serde_json::to_vec(launch).map_err(failed)?;
    let name = match role {
        Role::Near => "near",
        Role::Far => "far",
    };
    let arguments = std::iter::once(name.to_owned());
    let status = start(binary, arguments, Some(&input), log).await?;
    let path = end.socket.clone();
    Ok((Client { path }, status))
}
