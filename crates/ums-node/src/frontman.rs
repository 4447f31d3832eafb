//! The Frontman of a service that moves (DESIGN section 6), in one of two modes:
//!
//! - *packets*: the service's namespace stays, its packets are held, and then led through a tunnel
//!   to wherever the service is. Established connections live on.
//! - *connections*: a proxy takes the endpoints, holds new connections, then leads them to the
//!   service's new endpoints. Established connections are reset.
//!
//! Packets where both systems can, connections elsewhere.

use std::collections::BTreeMap;
use std::net::{SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::time::Duration;

use ums_api::agent::LeadRequest;
use ums_api::problem::{Problem, ProblemKind};
use ums_core::id::{MigrationId, ServiceName};
use ums_core::specification::Transport;
use ums_frontman::client::{self, FrontmanClient, Launch};
use ums_frontman::control::{Limits, Status};

use crate::host::{Keep, Service};
use crate::launch::Launcher;
use crate::{problem, tunnel};

/// How long connections that a Frontman holds may go on when it hands them back.
pub const YIELD_DRAIN: Duration = Duration::from_secs(3600);

fn paths(frontmen: &Launcher, name: &ServiceName) -> (PathBuf, PathBuf) {
    let dir = frontmen.settings.run_dir.join("frontman");
    (
        dir.join(format!("{name}.sock")),
        dir.join(format!("{name}.json")),
    )
}

/// The proxy takes the endpoints of the service's TCP ports.
pub(crate) async fn take_endpoints(
    frontmen: &Launcher,
    id: MigrationId,
    service: &Service,
) -> Result<(), Problem> {
    let name = &service.specification.name;
    let ports = service.specification.ports.iter();
    let ports: Vec<_> = ports
        .filter(|port| port.transport == Transport::Tcp)
        .collect();
    if ports.is_empty() {
        return Ok(());
    }
    let (socket, state) = paths(frontmen, name);
    if let Some(dir) = socket.parent() {
        let made = std::fs::create_dir_all(dir);
        made.map_err(|error| {
            problem::failed(
                ProblemKind::Frontman,
                "there is no directory for the Frontman",
            )(&error)
        })?;
    }
    let gateway = frontmen.route.listen_address();
    let config = &frontmen.settings;
    let launch = Launch {
        service: name.to_string(),
        owner: id.to_string(),
        socket,
        state,
        log: Some(config.log.clone()),
        ports: ports
            .iter()
            .map(|port| (port.system_port, (gateway, 0).into()))
            .collect(),
        limits: Limits {
            hold_connections: config.hold_connections as usize,
            hold_seconds: config.hold_seconds,
            retire_after_seconds: config.retire_seconds,
            ..Limits::default()
        },
    };
    let failed = problem::failed(
        ProblemKind::Frontman,
        "the Frontman can't take the endpoint",
    );
    let program = &config.program;
    let mut spawned = client::spawn(program, &launch).await;
    if let Err(client::ClientError::Other(socket)) = &spawned {
        // The service has come home since that one was made: it has old connections left, if any.
        let older = FrontmanClient::connect(socket).await;
        if let Ok(older) = older {
            older.retire(YIELD_DRAIN).await.map_err(|e| failed(&e))?;
        }
        spawned = client::spawn(program, &launch).await;
    }
    let (client, status) = spawned.map_err(|e| failed(&e))?;
    client.hold().await.map_err(|error| failed(&error))?;
    let listeners: BTreeMap<u16, SocketAddrV4> = status
        .ports
        .iter()
        .filter_map(|port| match port.listen {
            SocketAddr::V4(listen) => Some((port.system_port, listen)),
            SocketAddr::V6(_) => None,
        })
        .collect();
    let taken = frontmen.route.take(name, &listeners).await;
    taken.map_err(|error| failed(&*error))
}

/// The proxy that stands for a service.
enum Proxy {
    /// Nobody does: nothing was published, or it has retired.
    None,
    /// This migration's.
    Own(FrontmanClient, Box<Status>),
    /// Another migration's: this one has nothing to say to it, however late it comes.
    Another,
}

async fn proxy(frontmen: &Launcher, id: MigrationId, name: &ServiceName) -> Result<Proxy, Problem> {
    let (socket, _) = paths(frontmen, name);
    let asked = match FrontmanClient::connect(socket).await {
        Ok(client) => client.status().await.map(|status| (client, status)),
        Err(error) => Err(error),
    };
    match asked {
        Ok((client, status)) if status.owner == id.to_string() => {
            Ok(Proxy::Own(client, Box::new(status)))
        }
        Ok((_, status)) => {
            tracing::info!(migration = %id, service = %name, of = status.owner, "the Frontman is another migration's");
            Ok(Proxy::Another)
        }
        Err(client::ClientError::NotThere(_)) => Ok(Proxy::None),
        Err(error) => Err(problem::failed(
            ProblemKind::Frontman,
            "the Frontman does not answer",
        )(&error)),
    }
}

/// Step 14: the Frontman leads clients to the new place. Content when none is the migration's: nothing
/// was published, or it has retired since the first time this was asked.
pub async fn lead(
    frontmen: &Launcher,
    id: MigrationId,
    request: LeadRequest,
) -> Result<(), Problem> {
    tunnel::lead(frontmen, id, &request.service).await?;
    let Proxy::Own(client, status) = proxy(frontmen, id, &request.service).await? else {
        return Ok(());
    };
    let failed = problem::failed(ProblemKind::Frontman, "the Frontman can't lead clients");
    // A service has the same ports on every system.
    let at = |port: u16| request.endpoints.iter().find(|to| to.port() == port);
    let ports = status.ports.iter().map(|port| port.system_port);
    let by_port: BTreeMap<u16, SocketAddr> =
        ports.filter_map(|port| Some((port, *at(port)?))).collect();
    client
        .lead(by_port)
        .await
        .map(drop)
        .map_err(|error| failed(&error))
}

/// Compensation of `take_endpoints` and [`tunnel::begin`]: the endpoint is the service's again, and what was held goes
/// to it. The service must run. Content when another migration has led it away since.
pub async fn yield_to_service(
    frontmen: &Launcher,
    id: MigrationId,
    name: &ServiceName,
    service: Option<&Service>,
) -> Result<(), Problem> {
    tunnel::give_back(frontmen, id, name).await?;
    let failed = problem::failed(ProblemKind::Frontman, "the endpoint can't be given back");
    let proxy = proxy(frontmen, id, name).await?;
    if matches!(proxy, Proxy::Another) {
        return Ok(());
    }
    let given = frontmen.route.give_back(name).await;
    given.map_err(|error| failed(&*error))?;
    let Proxy::Own(client, _) = proxy else {
        return Ok(());
    };
    if let Some(service) = service {
        let specification = &service.specification;
        let upstreams = specification.ports.iter().map(|port| {
            (
                port.system_port,
                (service.address, port.service_port).into(),
            )
        });
        client
            .lead(upstreams.collect())
            .await
            .map_err(|error| failed(&error))?;
    }
    client
        .retire(YIELD_DRAIN)
        .await
        .map(drop)
        .map_err(|error| failed(&error))
}

/// Whether a Frontman stands for the service, in either mode.
pub async fn is_there(frontmen: &Launcher, name: &ServiceName) -> Result<bool, Problem> {
    let (socket, _) = paths(frontmen, name);
    match FrontmanClient::connect(socket).await {
        Ok(_) => Ok(true),
        Err(client::ClientError::NotThere(_)) => tunnel::is_there(frontmen, name).await,
        Err(error) => Err(problem::failed(
            ProblemKind::Frontman,
            "the Frontman does not answer",
        )(&error)),
    }
}

/// Ends the Frontman of a service once its connections are drained; whether there was one. If the
/// service is here, it came by the migration `kept`, whose tunnel stays.
pub async fn retire(
    frontmen: &Launcher,
    name: &ServiceName,
    kept: Option<MigrationId>,
    drain: Duration,
) -> Result<bool, Problem> {
    let led = tunnel::retire(frontmen, name, kept).await?;
    let (socket, _) = paths(frontmen, name);
    let failed = problem::failed(ProblemKind::Frontman, "the Frontman can't retire");
    let client = match FrontmanClient::connect(socket).await {
        Ok(client) => client,
        Err(client::ClientError::NotThere(_)) => return Ok(led),
        Err(error) => return Err(failed(&error)),
    };
    let retired = client.retire(drain).await.map_err(|error| failed(&error))?;
    Ok(led || retired.is_some())
}

/// What stays of a service that never executed here, when it is destroyed: where it had been before, the
/// Frontman of that time keeps its place.
pub async fn keeps_of_arriving(frontmen: &Launcher, name: &ServiceName) -> Result<Keep, Problem> {
    match is_there(frontmen, name).await? {
        true => Ok(Keep::Place),
        false => Ok(Keep::Nothing),
    }
}
