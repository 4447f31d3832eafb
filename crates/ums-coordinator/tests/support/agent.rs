//! A fake Migration Interface: the agent's API on a real unix socket, over the model in
//! [`super::world`]. Any operation can be made to fail or to hang, before or after its effect.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::Notify;
use ums_api::agent::{
    CheckpointRequest, Checkpointed, CreateRequest, Created, LeadRequest, MigrationState,
    OfService, OpenRequest, Phase, Restored, Role, RunRequest, Running, ServiceStatus, ServiceView,
};
use ums_api::problem::{Fault as Whose, Problem, ProblemKind};
use ums_core::budget::{Part, Span};
use ums_core::facts::{Loss, LossKind, NodeFacts, ServiceFacts};
use ums_core::id::MigrationId;
use ums_core::report::Bytes as Moved;

use super::world::{Frontman, Held, Inner, Life, Service, World};

/// When a fault strikes, seen from the operation's effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    Before,
    After,
}

/// What happens to an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// It is answered with a problem.
    Fail,
    /// It stands still until [`FakeAgent::release`]; the test is told.
    Hang,
    /// The service exits by itself.
    Exit,
}

#[derive(Debug, Clone, Copy)]
struct Fault {
    operation: &'static str,
    when: When,
    what: What,
    times: u32,
}

/// One fake agent.
pub struct FakeAgent {
    system: String,
    world: Arc<World>,
    faults: Mutex<Vec<Fault>>,
    /// Told when an operation hangs.
    pub reached: Notify,
    released: Notify,
}

type Answer = Result<Value, Problem>;

impl FakeAgent {
    /// Serves at `socket` until the runtime ends.
    pub fn serve(system: &str, world: &Arc<World>, socket: &Path) -> Arc<Self> {
        world.look().node(system);
        let agent = Arc::new(Self {
            system: system.to_owned(),
            world: Arc::clone(world),
            faults: Mutex::default(),
            reached: Notify::new(),
            released: Notify::new(),
        });
        let listener = tokio::net::UnixListener::bind(socket).expect("the agent's socket");
        let serving = Arc::clone(&agent);
        let router = Router::new().fallback(move |method: Method, uri: Uri, body: Bytes| {
            let agent = Arc::clone(&serving);
            // An operation runs to its end, whatever becomes of who asked.
            async move {
                let work = tokio::spawn(async move { agent.answer(method, uri, body).await });
                work.await.expect("the fake agent does not panic")
            }
        });
        tokio::spawn(async move { axum::serve(listener, router).await });
        agent
    }

    /// Lets an operation go wrong the next `times` times.
    pub fn fault(&self, operation: &'static str, when: When, what: What, times: u32) {
        self.faults.lock().expect("not poisoned").push(Fault {
            operation,
            when,
            what,
            times,
        });
    }

    /// Loses what is held for a migration: the container's keeper is killed, or the node rebooted.
    pub fn lose(&self, id: MigrationId) {
        let what = format!("{}: the keeper is lost", self.system);
        self.world.change(&what, |world| {
            let node = world.node(&self.system);
            let held = node.held.get_mut(&id).expect("it is held");
            held.phase = Phase::Failed;
            let service = node.services.get_mut(&held.service);
            service.expect("it was created").state = Life::Exited;
        });
    }

    /// Waits until a fault that hangs was reached.
    pub async fn is_reached(&self) {
        let reached = tokio::time::timeout(super::PATIENCE, self.reached.notified()).await;
        reached.unwrap_or_else(|_| panic!("never reached: {:#?}", self.world.look().log));
    }

    /// Lets what hangs go on.
    pub fn release(&self) {
        self.released.notify_one();
    }

    /// Lets nothing go wrong any more.
    pub fn heal(&self) {
        self.faults.lock().expect("not poisoned").clear();
    }

    fn struck(&self, operation: &str, when: When) -> Option<What> {
        let mut faults = self.faults.lock().expect("not poisoned");
        let hit = |fault: &&mut Fault| {
            fault.operation == operation && fault.when == when && fault.times > 0
        };
        let fault = faults.iter_mut().find(hit)?;
        fault.times -= 1;
        Some(fault.what)
    }

    async fn strike(&self, operation: &str, when: When) -> Result<(), Problem> {
        match self.struck(operation, when) {
            None => Ok(()),
            Some(What::Fail) => Err(Problem::failed(
                ProblemKind::Other("fault".to_owned()),
                "a fault",
                format!("in {operation}"),
            )),
            Some(What::Exit) => {
                self.world
                    .change(&format!("{}: the service exits", self.system), |world| {
                        for service in world.node(&self.system).services.values_mut() {
                            service.state = Life::Exited;
                        }
                    });
                let problem = Problem::failed(
                    ProblemKind::ServiceExited,
                    "the service has exited",
                    "it exited by itself with status 3",
                );
                Err(Problem {
                    fault: Whose::Service,
                    ..problem
                })
            }
            Some(What::Hang) => {
                self.reached.notify_one();
                self.released.notified().await;
                Ok(())
            }
        }
    }

    async fn answer(&self, method: Method, uri: Uri, body: Bytes) -> Response {
        let path = uri.path().to_owned();
        let parts: Vec<&str> = path.trim_start_matches("/v1/").splitn(3, '/').collect();
        let operation = match (&method, parts.as_slice()) {
            (&Method::GET, ["services", _]) => "service",
            (&Method::DELETE, ["services", _]) => "delete",
            (&Method::POST, ["services"]) => "run-service",
            (&Method::GET, ["migrations", _]) => "migration",
            (_, ["migrations", _, operation]) => operation,
            (_, [one]) => one,
            _ => "nothing",
        };
        let mut answer = self
            .strike(operation, When::Before)
            .await
            .map(|()| Value::Null);
        if answer.is_ok() {
            answer = self.perform(operation, &parts, &body);
        }
        if answer.is_ok()
            && let Err(problem) = self.strike(operation, When::After).await
        {
            answer = Err(problem);
        }
        match answer {
            Ok(value) => axum::Json(value).into_response(),
            Err(problem) => {
                let status = StatusCode::from_u16(problem.status).expect("a status");
                (status, axum::Json(problem)).into_response()
            }
        }
    }

    fn perform(&self, operation: &str, parts: &[&str], body: &[u8]) -> Answer {
        let what = format!("{}: {operation}", self.system);
        let me = self.system.clone();
        let id = parts
            .get(1)
            .and_then(|text| text.parse::<MigrationId>().ok());
        self.world.change(&what, |world| match (operation, id) {
            ("facts", _) => Ok(json!(facts(world, &me))),
            ("services", _) => Ok(json!(services(world, &me))),
            ("service", _) => service(world, &me, parts[1]),
            ("delete", _) => delete(world, &me, parts[1]),
            ("run-service", _) => run_service(world, &me, &parse(body)?),
            ("migrations", _) => Ok(json!(
                world
                    .node(&me)
                    .held
                    .iter()
                    .map(|(id, held)| state(*id, held))
                    .collect::<Vec<_>>()
            )),
            ("migration", Some(id)) => match world.node(&me).held.get(&id) {
                Some(held) => Ok(json!(state(id, held))),
                None => Err(unknown()),
            },
            (operation, Some(id)) => order(world, &me, operation, id, body),
            _ => Err(unknown()),
        })
    }
}

/// The operations of a migration.
fn order(world: &mut Inner, me: &str, operation: &str, id: MigrationId, body: &[u8]) -> Answer {
    match operation {
        "block" => {
            let service = of_service(body)?;
            world.node(me).gates.insert(service, id);
            Ok(json!({}))
        }
        "unblock" => {
            let service = of_service(body)?;
            let node = world.node(me);
            if node.gates.get(&service) == Some(&id) {
                node.gates.remove(&service);
            }
            Ok(json!({}))
        }
        "open" => open(world, me, id, &parse(body)?),
        "frontman/hold" => {
            let service = of_service(body)?;
            world.node(me).frontmen.insert(service, Frontman::Holding);
            Ok(json!({}))
        }
        "frontman/lead" => {
            let request: LeadRequest = parse(body)?;
            assert!(
                !request.endpoints.is_empty(),
                "the Frontman must know where to lead"
            );
            world
                .node(me)
                .frontmen
                .insert(request.service.to_string(), Frontman::Leading);
            Ok(json!({}))
        }
        "frontman/yield" => {
            let service = of_service(body)?;
            world.node(me).frontmen.remove(&service);
            Ok(json!({}))
        }
        "checkpoint" => checkpoint(world, me, id, &parse(body)?),
        "thaw" => thaw(world, me, id, &of_service(body)?),
        "delete-source" => {
            let service = of_service(body)?;
            let node = world.node(me);
            if node
                .services
                .get(&service)
                .is_some_and(|it| it.state == Life::Executing)
            {
                world
                    .violations
                    .push(format!("{me}: an executing source was deleted"));
                return Err(refused("executing"));
            }
            node.services.remove(&service);
            node.gates.remove(&service);
            node.held.remove(&id);
            Ok(json!({}))
        }
        "create" => create(world, me, id, &parse(body)?),
        "restore" => restore(world, me, id),
        "run" => run(world, me, id),
        "discard" => discard(world, me, id),
        "settle" => {
            world.node(me).held.remove(&id);
            Ok(json!({}))
        }
        _ => Err(unknown()),
    }
}

fn open(world: &mut Inner, me: &str, id: MigrationId, request: &OpenRequest) -> Answer {
    let to = request.endpoint.system.to_string();
    let permit = request.endpoint.permit.clone();
    let there = world
        .node(&to)
        .held
        .get(&id)
        .map(|held| held.permit.clone());
    if there.as_ref() != Some(&permit) {
        return Err(refused("the permit is not good"));
    }
    let held = Held {
        role: Role::Source,
        phase: Phase::Copying,
        service: request.service.to_string(),
        permit,
        digest: None,
        to: Some(to),
    };
    world.node(me).held.insert(id, held);
    Ok(json!({}))
}

fn checkpoint(world: &mut Inner, me: &str, id: MigrationId, request: &CheckpointRequest) -> Answer {
    let name = request.service.to_string();
    let digest = format!("digest-of-{id}");
    let node = world.node(me);
    let Some(held) = node.held.get_mut(&id) else {
        return Err(refused("the data path is shut"));
    };
    let to = held.to.clone().expect("a source knows where to");
    held.phase = Phase::Delivered;
    let frozen = monotonic_ns();
    match node.services.get_mut(&name) {
        Some(service) if service.state != Life::Exited => service.state = Life::Frozen,
        _ => return Err(refused("no such service")),
    }
    let Some(there) = world.node(&to).held.get_mut(&id) else {
        return Err(Problem::failed(
            ProblemKind::Other("stream".to_owned()),
            "the stream broke",
            "the destination has closed it",
        ));
    };
    there.phase = Phase::Delivered;
    there.digest = Some(digest.clone());
    let now = monotonic_ns();
    Ok(json!(Checkpointed {
        frozen_at_ns: frozen,
        dumped_at_ns: now,
        delivered_at_ns: now,
        digest,
        bytes: Moved {
            memory: 4096,
            wire: 5000,
            filesystem: 10,
            frozen: 0,
        },
        rounds: 0,
        spans: vec![spent(Part::Dump, 3)],
    }))
}

fn thaw(world: &mut Inner, me: &str, id: MigrationId, name: &str) -> Answer {
    let node = world.node(me);
    node.held.remove(&id);
    match node.services.get_mut(name) {
        Some(service) if service.state == Life::Frozen => service.state = Life::Executing,
        Some(service) if service.state == Life::Exited => {
            return Err(Problem::failed(
                ProblemKind::ServiceExited,
                "the service has exited",
                "so be it",
            ));
        }
        _ => {}
    }
    Ok(json!({}))
}

fn create(world: &mut Inner, me: &str, id: MigrationId, request: &CreateRequest) -> Answer {
    let name = request.specification.name.to_string();
    let node = world.node(me);
    let permit = format!("permit-of-{id}");
    if !node.held.contains_key(&id) {
        if node.services.contains_key(&name) {
            return Err(refused("the name is taken"));
        }
        let specification = request.specification.clone();
        node.services.insert(
            name.clone(),
            Service {
                specification,
                state: Life::Arriving,
            },
        );
        let held = Held {
            role: Role::Destination,
            phase: Phase::Prepared,
            service: name,
            permit: permit.clone(),
            digest: None,
            to: None,
        };
        node.held.insert(id, held);
    }
    let endpoints = request
        .specification
        .ports
        .iter()
        .map(|port| std::net::SocketAddr::from(([10, 0, 0, 9], port.system_port)));
    Ok(json!(Created {
        data_port: 9,
        permit,
        image_needed: true,
        endpoints: endpoints.collect(),
        tunnel: None,
    }))
}

fn restore(world: &mut Inner, me: &str, id: MigrationId) -> Answer {
    let node = world.node(me);
    let Some(held) = node.held.get_mut(&id) else {
        return Err(unknown());
    };
    let Some(digest) = held.digest.clone() else {
        return Err(refused("nothing was delivered"));
    };
    held.phase = Phase::Held;
    let service = node
        .services
        .get_mut(&held.service)
        .expect("it was created");
    if service.state == Life::Arriving {
        service.state = Life::Held;
    }
    Ok(json!(Restored {
        restore_us: 10,
        digest,
        spans: vec![spent(Part::Restore, 5)],
    }))
}

fn spent(part: Part, us: u64) -> Span {
    Span { part, us }
}

fn run(world: &mut Inner, me: &str, id: MigrationId) -> Answer {
    let node = world.node(me);
    let Some(held) = node.held.get_mut(&id) else {
        return Err(unknown());
    };
    let service = node
        .services
        .get_mut(&held.service)
        .expect("it was created");
    if !matches!(service.state, Life::Held | Life::Executing) {
        return Err(refused("it was not restored"));
    }
    held.phase = Phase::Installing;
    service.state = Life::Executing;
    Ok(json!(Running {
        resume_us: 10,
        losses: vec![loss("what only the restore knows")],
    }))
}

fn discard(world: &mut Inner, me: &str, id: MigrationId) -> Answer {
    let node = world.node(me);
    let Some(held) = node.held.get(&id) else {
        return Err(unknown());
    };
    let name = held.service.clone();
    if node
        .services
        .get(&name)
        .is_some_and(|service| service.state == Life::Executing)
    {
        world
            .violations
            .push(format!("{me}: a service that executes was to be discarded"));
        return Err(refused("it runs"));
    }
    node.services.remove(&name);
    node.held.remove(&id);
    Ok(json!({}))
}

fn delete(world: &mut Inner, me: &str, name: &str) -> Answer {
    let node = world.node(me);
    if node.gates.contains_key(name) {
        return Err(refused("the gate is shut"));
    }
    node.services.remove(name);
    Ok(json!({}))
}

fn service(world: &mut Inner, me: &str, name: &str) -> Answer {
    let node = world.node(me);
    let Some(service) = node.services.get(name) else {
        return Err(Problem::refused(
            404,
            ProblemKind::ServiceUnknown,
            "no such service",
            name,
        ));
    };
    Ok(json!(ServiceFacts {
        specification: service.specification.clone(),
        running: service.state == Life::Executing,
        processes: 1,
        threads: 1,
        memory_bytes: 4096,
        filesystem_bytes: 10,
        image_bytes: 0,
        connections: 0,
        obstacles: Vec::new(),
        losses: vec![loss("what was seen before")],
        migrating: node.gates.get(name).copied(),
    }))
}

/// One that nobody has to accept.
fn loss(detail: &str) -> Loss {
    Loss {
        kind: LossKind::CpuAffinity,
        pid: 1,
        detail: detail.to_owned(),
    }
}

fn run_service(world: &mut Inner, me: &str, request: &RunRequest) -> Answer {
    let service = Service {
        specification: super::specification(request.name.as_str()),
        state: Life::Executing,
    };
    let node = world.node(me);
    node.services.insert(request.name.to_string(), service);
    let started = services(world, me);
    let mut started = started.iter();
    Ok(json!(
        started.find(|view| view.specification.name == request.name)
    ))
}

fn services(world: &mut Inner, me: &str) -> Vec<ServiceView> {
    let node = world.node(me);
    let view = |service: &Service| ServiceView {
        specification: service.specification.clone(),
        status: match service.state {
            Life::Executing => ServiceStatus::Running,
            Life::Frozen => ServiceStatus::Frozen,
            Life::Arriving | Life::Held => ServiceStatus::Arriving,
            Life::Exited => ServiceStatus::Exited,
        },
        init_pid: None,
        migration: node.gates.get(service.specification.name.as_str()).copied(),
        memory_bytes: None,
        engine: None,
        endpoints: vec!["10.0.0.1:6379".parse().expect("an address")],
        losses: Vec::new(),
        pages: None,
    };
    node.services.values().map(view).collect()
}

fn facts(world: &mut Inner, me: &str) -> NodeFacts {
    let node = world.node(me);
    NodeFacts {
        architecture: "x86_64".to_owned(),
        cpu_features: BTreeSet::from(["fpu".to_owned()]),
        kernel: "6.12.0".to_owned(),
        criu: Some((4, 2, 1)),
        eager_restore: None,
        proc_paths: BTreeSet::new(),
        memory_available_bytes: 1 << 40,
        disk_available_bytes: 1 << 40,
        warnings: Vec::new(),
        outer: false,
        tracks_memory: false,
        engines: Vec::new(),
        images: BTreeSet::new(),
        limits: Default::default(),
        system: ums_core::facts::SystemFacts {
            services: node.services.keys().cloned().collect(),
            addresses: node
                .services
                .values()
                .map(|it| it.specification.address)
                .collect(),
            service_network: ([10, 88, 0, 0].into(), 16),
            ports: BTreeSet::new(),
            udp_ports: [].into(),
            readdresses: true,
            carries: ums_core::facts::CARRIES,
        },
    }
}

fn state(id: MigrationId, held: &Held) -> MigrationState {
    MigrationState {
        id,
        service: held.service.parse().expect("a name"),
        role: held.role,
        phase: held.phase,
        frozen_at_ns: (held.phase >= Phase::Checkpointing && held.role == Role::Source)
            .then(monotonic_ns),
        bytes: Moved::default(),
        round: None,
        pages_pending: 0,
        error: None,
    }
}

pub fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let nanoseconds = now.tv_sec * 1_000_000_000 + now.tv_nsec;
    u64::try_from(nanoseconds).expect("after boot")
}

fn of_service(body: &[u8]) -> Result<String, Problem> {
    parse::<OfService>(body).map(|request| request.service.to_string())
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(body)
        .map_err(|error| Problem::refused(400, ProblemKind::Body, "malformed", error.to_string()))
}

fn refused(detail: &str) -> Problem {
    Problem::refused(
        409,
        ProblemKind::Other("refused".to_owned()),
        "it can't be",
        detail,
    )
}

fn unknown() -> Problem {
    Problem::refused(
        404,
        ProblemKind::MigrationUnknown,
        "no such migration",
        "it is not known here",
    )
}
