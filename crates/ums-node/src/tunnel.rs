//! The ends of tunnels (DESIGN section 6, packet mode): processes of their own at both systems,
//! which outlive the agent. The *near* end, at the system that a service leaves, holds and then
//! leads its packets; the *far* end, at the system that it comes to, hands them to it.
//!
//! Each is found by its control socket: `RUN_DIR/tunnel/near/SERVICE.sock` and
//! `RUN_DIR/tunnel/far/MIGRATION.sock`. There can be several far ends of one service: it keeps the
//! namespace that it had at an earlier visit until it is back.

use std::path::PathBuf;
use std::time::Duration;

use ums_api::agent::{DataEndpoint, TunnelEnd};
use ums_api::problem::{Effect, Fault, Problem, ProblemKind};
use ums_core::frontman::FrontmanMode;
use ums_core::id::{MigrationId, ServiceName, SystemName};
use ums_frontman::client::ClientError;
use ums_frontman::packet::client::{self, Client};
use ums_frontman::packet::{End, FarLaunch, Limits, NearLaunch, Permit, Ports, Status};
use ums_frontman::record::{self, Record};

use crate::host::{Host, Service};
use crate::launch::Launcher;
use crate::packets::{IN_DEVICE, MTU, OUT_DEVICE};
use crate::problem;

/// How often [`renew`] is to be called.
pub const ROUND: Duration = Duration::from_secs(2);

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
    frontmen: &Launcher,
    id: MigrationId,
    service: &Service,
) -> Result<Option<TunnelEnd>, Problem> {
    let Some(inbound) = &service.inbound else {
        return Ok(None);
    };
    if frontmen.settings.mode != FrontmanMode::Packets {
        return Ok(None);
    }
    let permit = Permit::random()
        .map_err(|e| problem::failed(ProblemKind::Random, "no random numbers")(&e))?;
    let ports = frontmen.settings.tunnel_ports;
    let launch = FarLaunch {
        end: end(frontmen, id, service, FAR, IN_DEVICE, &inbound.source).await?,
        listen: frontmen.settings.address,
        ports: ports.map_or(Ports::ANY, |range| Ports {
            first: range.first,
            last: range.last,
        }),
        permit: permit.hash(),
    };
    let failed = problem::failed(ProblemKind::Tunnel, "the tunnel can't begin here");
    let spawned = client::spawn_far(
        &frontmen.settings.program,
        &launch,
        Some(&frontmen.settings.log),
    )
    .await;
    let (_, status) = spawned.map_err(|error| failed(&error))?;
    let led = frontmen.packets.lead_into(&launch.end.namespace, IN_DEVICE);
    led.await.map_err(|error| failed(&error))?;
    Ok(Some(TunnelEnd {
        port: status.address.port(),
        permit: permit.into(),
    }))
}

/// Step 8, at the source: the near end, connected with the far end, and holding what comes.
pub async fn begin(
    frontmen: &Launcher,
    id: MigrationId,
    service: &Service,
    far: &DataEndpoint,
) -> Result<(), Problem> {
    let permit = Permit::try_from(far.permit.clone()).map_err(|_| {
        let detail = "a permit is 64 hexadecimal digits";
        Problem::refused(400, ProblemKind::Permit, "malformed permit", detail)
    })?;
    let launch = NearLaunch {
        end: end(frontmen, id, service, NEAR, OUT_DEVICE, &far.system).await?,
        address: far.address,
        permit,
    };
    let (program, log) = (&frontmen.settings.program, &frontmen.settings.log);
    let mut spawned = client::spawn_near(program, &launch, Some(log)).await;
    if let Err(ClientError::Other(_)) = &spawned {
        // The service has come home since that one was made.
        let kept = service.inbound.as_ref().map(|inbound| inbound.migration);
        retire(frontmen, &service.specification.name, kept).await?;
        spawned = client::spawn_near(program, &launch, Some(log)).await;
    }
    spawned.map_err(|error| not_connected(&error))?;
    let led = frontmen
        .packets
        .lead_into(&launch.end.namespace, OUT_DEVICE);
    led.await
        .map_err(|error| problem::failed(ProblemKind::Tunnel, "packets can't be led")(&error))
}

fn not_connected(error: &ClientError) -> Problem {
    let remedy = "does a firewall between the systems let UDP through (setting `tunnel_ports`)? \
                  `frontman = \"connections\"` does without, and resets connections";
    let detail = format!("{}; {remedy}", problem::chain(error));
    Problem {
        fault: Fault::Peer,
        effect: Effect::None,
        ..Problem::failed(
            ProblemKind::Tunnel,
            "there is no tunnel to the destination",
            detail,
        )
    }
}

async fn end(
    frontmen: &Launcher,
    id: MigrationId,
    service: &Service,
    kind: &str,
    device: &str,
    peer: &SystemName,
) -> Result<End, Problem> {
    let name = &service.specification.name;
    let socket = match kind {
        NEAR => near_socket(frontmen, name),
        _ => far_socket(frontmen, id),
    };
    if let Some(dir) = socket.parent() {
        let made = std::fs::create_dir_all(dir);
        made.map_err(|error| {
            problem::failed(
                ProblemKind::Tunnel,
                "there is no directory for the Frontman",
            )(&error)
        })?;
    }
    Ok(End {
        service: name.to_string(),
        migration: id.to_string(),
        state: socket.with_extension("json"),
        socket,
        namespace: service.container.netns().await?,
        device: device.to_owned(),
        mtu: MTU,
        identity: frontmen.identity.clone(),
        peer: peer.clone(),
        limits: Limits {
            retire_after_seconds: frontmen.settings.retire_seconds,
            ..Limits::default()
        },
    })
}

fn near_socket(frontmen: &Launcher, name: &ServiceName) -> PathBuf {
    directory(frontmen, NEAR).join(format!("{name}.sock"))
}

fn far_socket(frontmen: &Launcher, id: MigrationId) -> PathBuf {
    directory(frontmen, FAR).join(format!("{id}.sock"))
}

fn directory(frontmen: &Launcher, kind: &str) -> PathBuf {
    frontmen.settings.run_dir.join("tunnel").join(kind)
}

/// The end that answers at a socket, if one does.
async fn at(socket: PathBuf) -> Result<Option<Client>, Problem> {
    match client::connect(socket).await {
        Ok((client, _)) => Ok(Some(client)),
        Err(ClientError::NotThere(_)) => Ok(None),
        Err(error) => Err(problem::failed(
            ProblemKind::Tunnel,
            "the Frontman does not answer",
        )(&error)),
    }
}

/// Whether a near end stands for the service.
pub async fn is_there(frontmen: &Launcher, name: &ServiceName) -> Result<bool, Problem> {
    Ok(at(near_socket(frontmen, name)).await?.is_some())
}

/// Services that a near end stands for. What ends have left behind that are gone is removed.
pub fn led(frontmen: &Launcher) -> Vec<String> {
    for kind in [NEAR, FAR] {
        let _ = record::remove_stale::<Status>(&directory(frontmen, kind));
    }
    let near = record::list::<Status>(&directory(frontmen, NEAR)).unwrap_or_default();
    near.into_iter()
        .map(|record| record.status.service)
        .collect()
}

/// Whether the near end of this migration is there, as far as its state file tells.
pub fn stands(frontmen: &Launcher, id: MigrationId, name: &ServiceName) -> bool {
    let near = record::list::<Status>(&directory(frontmen, NEAR)).unwrap_or_default();
    let mut all = near.into_iter().map(|record| record.status);
    all.any(|status| status.service == name.as_str() && status.migration == id.to_string())
}

/// The near end of a service, if it is this migration's: to another one's it has nothing to say, however
/// late it comes.
async fn near_of(
    frontmen: &Launcher,
    id: MigrationId,
    name: &ServiceName,
) -> Result<Option<Client>, Problem> {
    match client::connect(near_socket(frontmen, name)).await {
        Ok((client, status)) if status.migration == id.to_string() => Ok(Some(client)),
        Ok((_, status)) => {
            tracing::info!(migration = %id, service = %name, of = status.migration, "the tunnel is another migration's");
            Ok(None)
        }
        Err(ClientError::NotThere(_)) => Ok(None),
        Err(error) => Err(problem::failed(
            ProblemKind::Tunnel,
            "the Frontman does not answer",
        )(&error)),
    }
}

/// Step 14: what was held is led to the new place, and all that comes. Content when there is no
/// near end of the migration: the service has no tunnel, or the end has retired since the first time
/// this was asked.
pub async fn lead(frontmen: &Launcher, id: MigrationId, name: &ServiceName) -> Result<(), Problem> {
    let Some(client) = near_of(frontmen, id, name).await? else {
        return Ok(());
    };
    let led = client.lead().await;
    led.map(drop)
        .map_err(|error| problem::failed(ProblemKind::Tunnel, "packets can't be led")(&error))
}

/// Compensation of [`begin`]: what was held goes to the service, which must run.
pub async fn give_back(
    frontmen: &Launcher,
    id: MigrationId,
    name: &ServiceName,
) -> Result<(), Problem> {
    let Some(client) = near_of(frontmen, id, name).await? else {
        return Ok(());
    };
    let given = client.give_back().await;
    given.map(drop).map_err(|error| {
        problem::failed(ProblemKind::Tunnel, "packets can't be given back")(&error)
    })
}

/// Begins the time of the far ends anew whose connections from before a move still live, and with
/// it that of their near ends. To be called each [`ROUND`]: most are passed over.
pub async fn renew(frontmen: &Launcher, host: &dyn Host, round: u64) {
    let near = record::list::<Status>(&directory(frontmen, NEAR)).unwrap_or_default();
    for far in record::list::<Status>(&directory(frontmen, FAR)).unwrap_or_default() {
        if !round.is_multiple_of(looks_every(&far.status)) {
            continue;
        }
        if let Err(error) = renew_one(frontmen, host, &far, &near).await {
            tracing::warn!(service = far.status.service, %error, "whether a Frontman is still needed is not to be seen");
        }
    }
}

/// In how many rounds to look once: often enough in the shorter one of two lives.
fn looks_every(far: &Status) -> u64 {
    let own = far.limits.retire_after_seconds;
    let life = own.min(far.peer_retires_after_seconds.unwrap_or(own));
    (life / (LOOKS * ROUND.as_secs())).clamp(1, LOOK_EVERY_MAX)
}

async fn renew_one(
    frontmen: &Launcher,
    host: &dyn Host,
    far: &Record<Status>,
    near: &[Record<Status>],
) -> Result<(), Problem> {
    if !is_needed(frontmen, host, &far.status, near).await? {
        return Ok(());
    }
    let Some(client) = at(far.socket.clone()).await? else {
        return Ok(());
    };
    let renewed = client.renew().await;
    renewed
        .map(drop)
        .map_err(|error| problem::failed(ProblemKind::Tunnel, "the tunnel can't live on")(&error))
}

async fn is_needed(
    frontmen: &Launcher,
    host: &dyn Host,
    far: &Status,
    near: &[Record<Status>],
) -> Result<bool, Problem> {
    let service = far.service.parse().ok();
    let service = service.and_then(|name| host.service(&name).ok());
    let comes_here = |service: &Service| {
        let inbound = service.inbound.as_ref();
        inbound.is_some_and(|inbound| inbound.migration.to_string() == far.migration)
    };
    match service.filter(comes_here) {
        Some(service) => {
            let Some(netns) = service.container.remaining_netns().await else {
                return Ok(false);
            };
            let carried = frontmen.packets.has_carried(&netns).await;
            carried.map_err(|error| {
                problem::failed(
                    ProblemKind::Tunnel,
                    "the service's connections are not to be seen",
                )(&error)
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
/// far ends of that namespace; whether there was one. If the service is here, it came by the migration
/// `kept`, whose far end stays.
pub async fn retire(
    frontmen: &Launcher,
    name: &ServiceName,
    kept: Option<MigrationId>,
) -> Result<bool, Problem> {
    let Some(client) = at(near_socket(frontmen, name)).await? else {
        return Ok(false);
    };
    let retired = client.retire().await;
    retired
        .map_err(|error| problem::failed(ProblemKind::Tunnel, "the tunnel can't end")(&error))?;
    for record in record::list::<Status>(&directory(frontmen, FAR)).unwrap_or_default() {
        let of_another = Some(&record.status.migration) != kept.map(|id| id.to_string()).as_ref();
        if record.status.service == name.as_str() && of_another {
            end_at(record.socket).await?;
        }
    }
    Ok(true)
}

/// Ends the far end through which a service's older connections come.
pub async fn end_inbound(frontmen: &Launcher, service: &Service) -> Result<(), Problem> {
    match &service.inbound {
        Some(inbound) => end_at(far_socket(frontmen, inbound.migration)).await,
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
        .map_err(|error| problem::failed(ProblemKind::Tunnel, "the tunnel can't end")(&error))
}
