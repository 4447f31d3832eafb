//! The ends of tunnels (DESIGN section 6, packet mode): processes of their own at both systems,
//! which outlive the agent. The *near* end, at the system that a service leaves, holds and then
//! leads its packets; the *far* end, at the system that it comes to, hands them to it.
//!
//! Each is found by its control socket: `RUN_DIR/tunnel/near/SERVICE.sock` and
//! `RUN_DIR/tunnel/far/MIGRATION.sock`. There can be several far ends of one service: it keeps the
//! namespace that it had at an earlier visit until it is back.

use std::path::PathBuf;
use std::sync::Arc;

use ums_api::agent::{DataEndpoint, TunnelEnd};
use ums_api::problem::{Effect, Fault, Problem};
use ums_core::frontman::FrontmanMode;
use ums_core::id::{MigrationId, ServiceName, SystemName};
use ums_frontman::client::ClientError;
use ums_frontman::packet::client::{self, Client};
use ums_frontman::packet::{End, FarLaunch, Limits, NearLaunch, Permit, Ports, Status};
use ums_frontman::record::{self, Record};

use crate::agent::{Agent, Service};
use crate::{frontman, reconcile, services};
use ums_node::packets::{IN_DEVICE, MTU, OUT_DEVICE};
use ums_node::problem;

/// How often to look in the life of a Frontman whether it is still needed.
const LOOKS: u64 = 4;

/// But at least once in so many rounds.
const LOOK_EVERY_MAX: u64 = 15;

/// Where the two kinds have their sockets and state files.
const NEAR: &str = "near";
const FAR: &str = "far";

/// Steps 4 to 6, at the destination: the far end, for a source that may want it. `None` when this
/// system works on connections.
pub async fn offer(
    agent: &Arc<Agent>,
    id: MigrationId,
    service: &Service,
) -> Result<Option<TunnelEnd>, Problem> {
    let Some(inbound) = &service.record.inbound else {
        return Ok(None);
    };
    if agent.config.frontman != FrontmanMode::Packets {
        return Ok(None);
    }
    let permit =
        Permit::random().map_err(|e| problem::failed("random", "no random numbers")(&e))?;
    let ports = agent.config.tunnel_ports;
    let launch = FarLaunch {
        end: end(agent, id, service, FAR, IN_DEVICE, &inbound.source).await?,
        listen: agent.config.data_address,
        ports: ports.map_or(Ports::ANY, |range| Ports {
            first: range.first,
            last: range.last,
        }),
        permit: permit.hash(),
    };
    let failed = problem::failed("tunnel", "the tunnel can't begin here");
    let spawned = client::spawn_far(&frontman::program(agent), &launch, Some(&log(agent))).await;
    let (_, status) = spawned.map_err(|error| failed(&error))?;
    let led = agent.packets.lead_into(&launch.end.namespace, IN_DEVICE);
    led.await.map_err(|error| failed(&error))?;
    Ok(Some(TunnelEnd {
        port: status.address.port(),
        permit: permit.into(),
    }))
}

/// Step 8, at the source: the near end, connected with the far end, and holding what comes.
pub async fn begin(
    agent: &Arc<Agent>,
    id: MigrationId,
    service: &Service,
    far: &DataEndpoint,
) -> Result<(), Problem> {
    let permit = Permit::try_from(far.permit.clone()).map_err(|_| {
        let detail = "a permit is 64 hexadecimal digits";
        Problem::refused(400, "permit", "malformed permit", detail)
    })?;
    let launch = NearLaunch {
        end: end(agent, id, service, NEAR, OUT_DEVICE, &far.system).await?,
        address: far.address,
        permit,
    };
    let (program, log) = (frontman::program(agent), log(agent));
    let mut spawned = client::spawn_near(&program, &launch, Some(&log)).await;
    if let Err(ClientError::Other(_)) = &spawned {
        // The service has come home since that one was made.
        retire(agent, &service.record.specification.name).await?;
        spawned = client::spawn_near(&program, &launch, Some(&log)).await;
    }
    spawned.map_err(|error| not_connected(&error))?;
    let led = agent.packets.lead_into(&launch.end.namespace, OUT_DEVICE);
    led.await
        .map_err(|error| problem::failed("tunnel", "packets can't be led")(&error))
}

fn not_connected(error: &ClientError) -> Problem {
    let remedy = "does a firewall between the systems let UDP through (setting `tunnel_ports`)? \
                  `frontman = \"connections\"` does without, and resets connections";
    let detail = format!("{}; {remedy}", problem::chain(error));
    Problem {
        fault: Fault::Peer,
        effect: Effect::None,
        ..Problem::failed("tunnel", "there is no tunnel to the destination", detail)
    }
}

async fn end(
    agent: &Arc<Agent>,
    id: MigrationId,
    service: &Service,
    kind: &str,
    device: &str,
    peer: &SystemName,
) -> Result<End, Problem> {
    let name = &service.record.specification.name;
    let socket = match kind {
        NEAR => near_socket(agent, name),
        _ => far_socket(agent, id),
    };
    if let Some(dir) = socket.parent() {
        let made = std::fs::create_dir_all(dir);
        made.map_err(|error| {
            problem::failed("tunnel", "there is no directory for the Frontman")(&error)
        })?;
    }
    Ok(End {
        service: name.to_string(),
        migration: id.to_string(),
        state: socket.with_extension("json"),
        socket,
        namespace: services::netns(agent, service).await?,
        device: device.to_owned(),
        mtu: MTU,
        identity: agent.identity.clone(),
        peer: peer.clone(),
        limits: Limits {
            retire_after_seconds: agent.config.retire_seconds,
            ..Limits::default()
        },
    })
}

fn near_socket(agent: &Agent, name: &ServiceName) -> PathBuf {
    directory(agent, NEAR).join(format!("{name}.sock"))
}

fn far_socket(agent: &Agent, id: MigrationId) -> PathBuf {
    directory(agent, FAR).join(format!("{id}.sock"))
}

fn directory(agent: &Agent, kind: &str) -> PathBuf {
    agent.config.run_dir.join("tunnel").join(kind)
}

fn log(agent: &Agent) -> PathBuf {
    agent.config.state_dir.join("frontman.log")
}

/// The end that answers at a socket, if one does.
async fn at(socket: PathBuf) -> Result<Option<Client>, Problem> {
    match client::connect(socket).await {
        Ok((client, _)) => Ok(Some(client)),
        Err(ClientError::NotThere(_)) => Ok(None),
        Err(error) => Err(problem::failed("tunnel", "the Frontman does not answer")(
            &error,
        )),
    }
}

/// Whether a near end stands for the service.
pub async fn is_there(agent: &Arc<Agent>, name: &ServiceName) -> Result<bool, Problem> {
    Ok(at(near_socket(agent, name)).await?.is_some())
}

/// Services that a near end stands for. What ends have left behind that are gone is removed.
pub fn led(agent: &Agent) -> Vec<String> {
    for kind in [NEAR, FAR] {
        let _ = record::remove_stale::<Status>(&directory(agent, kind));
    }
    let near = record::list::<Status>(&directory(agent, NEAR)).unwrap_or_default();
    near.into_iter()
        .map(|record| record.status.service)
        .collect()
}

/// The near end of a service, if it is this migration's: to another one's it has nothing to say, however
/// late it comes.
async fn near_of(
    agent: &Agent,
    id: MigrationId,
    name: &ServiceName,
) -> Result<Option<Client>, Problem> {
    match client::connect(near_socket(agent, name)).await {
        Ok((client, status)) if status.migration == id.to_string() => Ok(Some(client)),
        Ok((_, status)) => {
            tracing::info!(migration = %id, service = %name, of = status.migration, "the tunnel is another migration's");
            Ok(None)
        }
        Err(ClientError::NotThere(_)) => Ok(None),
        Err(error) => Err(problem::failed("tunnel", "the Frontman does not answer")(
            &error,
        )),
    }
}

/// Step 14: what was held is led to the new place, and all that comes. Content when there is no
/// near end of the migration: the service has no tunnel, or the end has retired since the first time
/// this was asked.
pub async fn lead(agent: &Arc<Agent>, id: MigrationId, name: &ServiceName) -> Result<(), Problem> {
    let Some(client) = near_of(agent, id, name).await? else {
        return Ok(());
    };
    let led = client.lead().await;
    led.map(drop)
        .map_err(|error| problem::failed("tunnel", "packets can't be led")(&error))
}

/// Compensation of [`begin`]: what was held goes to the service, which must run.
pub async fn give_back(
    agent: &Arc<Agent>,
    id: MigrationId,
    name: &ServiceName,
) -> Result<(), Problem> {
    let Some(client) = near_of(agent, id, name).await? else {
        return Ok(());
    };
    let given = client.give_back().await;
    given
        .map(drop)
        .map_err(|error| problem::failed("tunnel", "packets can't be given back")(&error))
}

/// Begins the time of the far ends anew whose connections from before a move still live, and with
/// it that of their near ends. To be called in each round of [`reconcile`]: most are passed over.
pub async fn renew(agent: &Arc<Agent>, round: u64) {
    let near = record::list::<Status>(&directory(agent, NEAR)).unwrap_or_default();
    for far in record::list::<Status>(&directory(agent, FAR)).unwrap_or_default() {
        if !round.is_multiple_of(looks_every(&far.status)) {
            continue;
        }
        if let Err(error) = renew_one(agent, &far, &near).await {
            tracing::warn!(service = far.status.service, %error, "whether a Frontman is still needed is not to be seen");
        }
    }
}

/// In how many rounds to look once: often enough in the shorter one of two lives.
fn looks_every(far: &Status) -> u64 {
    let own = far.limits.retire_after_seconds;
    let life = own.min(far.peer_retires_after_seconds.unwrap_or(own));
    (life / (LOOKS * reconcile::PERIOD.as_secs())).clamp(1, LOOK_EVERY_MAX)
}

async fn renew_one(
    agent: &Arc<Agent>,
    far: &Record<Status>,
    near: &[Record<Status>],
) -> Result<(), Problem> {
    if !is_needed(agent, &far.status, near).await? {
        return Ok(());
    }
    let Some(client) = at(far.socket.clone()).await? else {
        return Ok(());
    };
    let renewed = client.renew().await;
    renewed
        .map(drop)
        .map_err(|error| problem::failed("tunnel", "the tunnel can't live on")(&error))
}

async fn is_needed(
    agent: &Arc<Agent>,
    far: &Status,
    near: &[Record<Status>],
) -> Result<bool, Problem> {
    let service = far.service.parse().ok();
    let service = service.and_then(|name| agent.service(&name).ok());
    let comes_here = |service: &Service| {
        let inbound = service.record.inbound.as_ref();
        inbound.is_some_and(|inbound| inbound.migration.to_string() == far.migration)
    };
    match service.filter(comes_here) {
        Some(service) => {
            let Some(netns) = services::remaining_netns(agent, &service).await else {
                return Ok(false);
            };
            let carried = agent.packets.has_carried(&netns).await;
            carried.map_err(|error| {
                problem::failed("tunnel", "the service's connections are not to be seen")(&error)
            })
        }
        // The service has gone on from here. What comes from the place before leaves by the near end,
        // which is told by the next place how long it is needed.
        None => Ok(near
            .iter()
            .any(|near| near.status.service == far.service && near.status.ends_at > far.ends_at)),
    }
}

/// Ends the near end of a service that is elsewhere, and with it the namespace that it kept and the
/// far ends of that namespace; whether there was one.
pub async fn retire(agent: &Arc<Agent>, name: &ServiceName) -> Result<bool, Problem> {
    let Some(client) = at(near_socket(agent, name)).await? else {
        return Ok(false);
    };
    let retired = client.retire().await;
    retired.map_err(|error| problem::failed("tunnel", "the tunnel can't end")(&error))?;
    let kept = agent.service(name).ok();
    let kept = kept.and_then(|service| Some(service.record.inbound?.migration));
    for record in record::list::<Status>(&directory(agent, FAR)).unwrap_or_default() {
        let of_another = Some(&record.status.migration) != kept.map(|id| id.to_string()).as_ref();
        if record.status.service == name.as_str() && of_another {
            end_at(record.socket).await?;
        }
    }
    Ok(true)
}

/// Ends the far end through which a service's older connections come.
pub async fn end_inbound(agent: &Arc<Agent>, service: &Service) -> Result<(), Problem> {
    match &service.record.inbound {
        Some(inbound) => end_at(far_socket(agent, inbound.migration)).await,
        None => Ok(()),
    }
}

async fn end_at(socket: PathBuf) -> Result<(), Problem> {
    let Some(client) = at(socket).await? else {
        return Ok(());
    };
    let retired = client.retire().await;
    retired
        .map(drop)
        .map_err(|error| problem::failed("tunnel", "the tunnel can't end")(&error))
}
