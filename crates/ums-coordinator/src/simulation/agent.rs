//! A Migration Interface whose node is [`Truth`]: the same operations, answers and memory as
//! `ums-agent`'s, with containers that are only words. What it does not remember over a restart is
//! in [`Memory`]; what it finds then is what a node keeps.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Bytes;
use axum::http::Method;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::{Mutex as AsyncMutex, watch};
use ums_api::agent::{
    CheckpointRequest, Checkpointed, CreateRequest, Created, LeadRequest, MigrationState,
    OfService, OpenRequest, Phase, Restored, Role, Running, ServiceStatus, ServiceView,
};
use ums_api::problem::{Effect, Fault as Whose, Problem, ProblemKind};
use ums_core::facts::{NodeFacts, ServiceFacts};
use ums_core::id::MigrationId;
use ums_core::report::Bytes as Moved;

use super::fault::{Kind, Side};
use super::host::monotonic_ns;
use super::truth::{Container, Frontman, Keeper, Life};
use super::world::{Process, Verdict, World};

/// How long `restore` waits for a delivery that the source believes complete.
const DELIVERY_PATIENCE: Duration = Duration::from_secs(2);

/// What goes with the agent's process.
#[derive(Default)]
pub(super) struct Memory {
    migrations: BTreeMap<MigrationId, Arc<Migration>>,
    ended: BTreeSet<MigrationId>,
}

/// What is remembered of one migration, on either side.
pub(super) struct Migration {
    role: Role,
    operation: AsyncMutex<()>,
    /// Set by `thaw` and `discard`: what is under way ends, and nothing new begins.
    given_up: watch::Sender<bool>,
    view: Mutex<View>,
}

#[derive(Default)]
struct View {
    phase: Option<Phase>,
    error: Option<String>,
    /// Source: the data path leads to this.
    path: Option<Arc<Migration>>,
    checkpointed: Option<Checkpointed>,
    /// Destination.
    permit: Option<String>,
    created: Option<Created>,
    /// Digest and ledger of what has arrived.
    delivery: Option<(String, u64)>,
    restored: Option<Restored>,
}

impl Migration {
    fn new(role: Role) -> Arc<Self> {
        Arc::new(Self {
            role,
            operation: AsyncMutex::new(()),
            given_up: watch::Sender::new(false),
            view: Mutex::default(),
        })
    }

    fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fail(&self, problem: &Problem) {
        let mut view = self.view();
        view.phase = Some(Phase::Failed);
        view.error = Some(problem.to_string());
        view.path = None;
    }

    async fn unless_given_up<T>(&self, work: impl Future<Output = Reply<T>>) -> Reply<T> {
        let mut given_up = self.given_up.subscribe();
        tokio::select! {
            biased;
            _ = given_up.wait_for(|given_up| *given_up) => Err(conflict(ProblemKind::Abandoned, "it was abandoned meanwhile")),
            done = work => done,
        }
    }
}

type Reply<T> = Result<T, Problem>;

/// One agent's process.
#[derive(Clone)]
pub(super) struct Agent {
    pub(super) world: Arc<World>,
    pub(super) side: Side,
    pub(super) memory: Arc<Mutex<Memory>>,
    pub(super) process: Arc<Process>,
}

impl Agent {
    /// A process that takes up what it finds on the node.
    pub(super) fn load(world: &Arc<World>, side: Side) -> Self {
        let mut memory = Memory::default();
        if let Some(service) = &world.truth().node(side).service {
            if let Some((id, _)) = &service.arriving {
                memory
                    .migrations
                    .insert(*id, Migration::new(Role::Destination));
            } else if let Some(id) = service.gate {
                memory.migrations.insert(id, Migration::new(Role::Source));
            }
        }
        Self {
            world: Arc::clone(world),
            side,
            memory: Arc::new(Mutex::new(memory)),
            process: Arc::default(),
        }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What this process still holds of migrations.
    pub(super) fn held(&self) -> usize {
        self.memory().migrations.len()
    }

    fn known(&self, id: MigrationId, role: Role) -> Reply<Arc<Migration>> {
        let found = self.memory().migrations.get(&id).cloned();
        found.filter(|it| it.role == role).ok_or_else(unknown)
    }

    fn enter(&self, id: MigrationId, role: Role) -> Reply<Arc<Migration>> {
        let mut memory = self.memory();
        if memory.ended.contains(&id) {
            return Err(unknown());
        }
        let entry = memory.migrations.entry(id);
        Ok(Arc::clone(entry.or_insert_with(|| Migration::new(role))))
    }

    fn forget(&self, id: MigrationId) {
        let mut memory = self.memory();
        memory.migrations.remove(&id);
        memory.ended.insert(id);
    }

    /// Passes a moment of an operation.
    async fn pass(&self, what: &str, edge: &str) -> Reply<()> {
        let place = format!("{} agent {what} {edge}", self.side.name());
        match self
            .world
            .pass(Kind::Agent, &place, Some(&self.process))
            .await
        {
            Verdict::Go | Verdict::Twice(_) => Ok(()),
            Verdict::Fail => Err(Problem::failed(
                ProblemKind::Other("fault".to_owned()),
                "a fault",
                place,
            )),
            Verdict::Break | Verdict::Lose => Err(cut_off()),
        }
    }

    /// Passes a moment inside an operation: what can break there is the data path.
    async fn part(&self, what: &str, edge: &str) -> Reply<()> {
        match self.pass(what, edge).await {
            Err(problem) if problem.kind.as_str() == CUT_OFF => Err(at_peer("the stream broke")),
            passed => passed,
        }
    }

    /// Answers one request. `None` breaks the connection.
    pub(super) async fn answer(
        &self,
        method: Method,
        path: String,
        body: Bytes,
    ) -> Option<Reply<Value>> {
        let parts: Vec<&str> = path.trim_start_matches("/v1/").splitn(3, '/').collect();
        let id = parts
            .get(1)
            .and_then(|text| text.parse::<MigrationId>().ok());
        let operation = match (&method, parts.as_slice()) {
            (&Method::GET, ["services", _]) => "service",
            (&Method::GET, ["migrations", _]) => "migration",
            (_, ["migrations", _, operation]) => operation,
            (_, [one]) => one,
            _ => "nothing",
        };
        let answer = self.perform(operation, id, &body).await;
        match answer {
            Err(problem) if problem.kind.as_str() == CUT_OFF => None,
            answer => Some(answer),
        }
    }

    async fn perform(&self, operation: &str, id: Option<MigrationId>, body: &[u8]) -> Reply<Value> {
        self.pass(operation, "before").await?;
        let answer = match (operation, id) {
            ("facts", _) => json!(self.facts()),
            ("services", _) => json!(self.services()),
            ("service", _) => json!(self.service()?),
            ("migration", Some(id)) => json!(self.state(id)?),
            ("block", Some(id)) => self.block(id, &parse(body)?)?,
            ("unblock", Some(id)) => self.unblock(id, &parse(body)?),
            ("open", Some(id)) => self.open(id, &parse(body)?).await?,
            ("frontman/hold", Some(id)) => self.hold(id)?,
            ("frontman/lead", Some(_)) => self.lead(&parse(body)?),
            ("frontman/yield", Some(_)) => self.yield_endpoint(),
            ("checkpoint", Some(id)) => json!(self.checkpoint(id, &parse(body)?).await?),
            ("thaw", Some(id)) => self.thaw(id).await?,
            ("delete-source", Some(id)) => self.delete_source(id),
            ("create", Some(id)) => json!(self.create(id, &parse(body)?).await?),
            ("restore", Some(id)) => json!(self.restore(id).await?),
            ("run", Some(id)) => json!(self.run(id).await?),
            ("discard", Some(id)) => self.discard(id)?,
            ("settle", Some(id)) => {
                self.forget(id);
                json!({})
            }
            _ => return Err(unknown()),
        };
        self.pass(operation, "after").await?;
        Ok(answer)
    }

    /// Changes what is on the node, and has it judged.
    fn change<T>(&self, change: impl FnOnce(&mut super::truth::Node) -> T) -> T {
        let mut truth = self.world.truth();
        let done = change(truth.node(self.side));
        truth.judge();
        done
    }

    /// The service, which must have its gate shut by this migration.
    fn gated<T>(
        &self,
        id: MigrationId,
        change: impl FnOnce(&mut Container) -> Reply<T>,
    ) -> Reply<T> {
        self.change(|node| match &mut node.service {
            Some(service) if service.gate == Some(id) => change(service),
            Some(_) => Err(conflict(
                ProblemKind::NotBlocked,
                "its gate is not shut by this migration",
            )),
            None => Err(service_unknown()),
        })
    }

    fn block(&self, id: MigrationId, _: &OfService) -> Reply<Value> {
        self.enter(id, Role::Source)?;
        self.change(|node| match &mut node.service {
            Some(service) if service.gate.is_none_or(|gate| gate == id) => {
                service.gate = Some(id);
                Ok(json!({}))
            }
            Some(_) => Err(conflict(
                ProblemKind::Migrating,
                "another migration moves it",
            )),
            None => Err(service_unknown()),
        })
    }

    fn unblock(&self, id: MigrationId, _: &OfService) -> Value {
        if let Ok(migration) = self.known(id, Role::Source) {
            migration.view().path = None;
        }
        self.change(|node| {
            if let Some(service) = &mut node.service
                && service.gate == Some(id)
            {
                service.gate = None;
            }
        });
        self.forget(id);
        json!({})
    }

    async fn open(&self, id: MigrationId, request: &OpenRequest) -> Reply<Value> {
        let migration = self.enter(id, Role::Source)?;
        let _operation = migration.operation.lock().await;
        {
            let view = migration.view();
            if view.path.is_some() || view.checkpointed.is_some() {
                return Ok(json!({}));
            }
        }
        migration.view().phase = Some(Phase::Copying);
        match migration.unless_given_up(self.connect(id, request)).await {
            Ok(there) => {
                migration.view().path = Some(there);
                Ok(json!({}))
            }
            Err(problem) => {
                migration.fail(&problem);
                self.forget(id);
                Err(problem)
            }
        }
    }

    /// The data path, by a permit that is good once.
    async fn connect(&self, id: MigrationId, request: &OpenRequest) -> Reply<Arc<Migration>> {
        self.part("connect", "before").await?;
        let there = self.path_to(id)?;
        {
            let mut view = there.view();
            if view.permit.take() != Some(request.endpoint.permit.clone()) {
                return Err(at_peer("the permit is not valid"));
            }
            view.phase = Some(Phase::Copying);
        }
        self.part("files", "after").await?;
        match self.change(|node| node.service.as_ref().and_then(|it| it.keeper.clone())) {
            Some(_) => Ok(there),
            None => Err(keeper_lost()),
        }
    }

    /// What the other side's agent holds, if it can be reached.
    fn path_to(&self, id: MigrationId) -> Reply<Arc<Migration>> {
        if !self.world.linked() {
            return Err(at_peer("no route"));
        }
        let Some(agent) = self.world.agent(self.side.other()) else {
            return Err(at_peer("connection refused"));
        };
        agent
            .known(id, Role::Destination)
            .map_err(|_| at_peer("no such migration is expected here"))
    }

    fn hold(&self, id: MigrationId) -> Reply<Value> {
        self.gated(id, |_| Ok(()))?;
        self.change(|node| node.frontman = Some(Frontman::Holding));
        Ok(json!({}))
    }

    fn lead(&self, request: &LeadRequest) -> Value {
        self.change(|node| {
            if let Some(frontman) = &mut node.frontman {
                *frontman = Frontman::Leading;
            }
        });
        if request.endpoints.is_empty() {
            self.world
                .truth()
                .violation("the Frontman is to lead nowhere");
        }
        json!({})
    }

    fn yield_endpoint(&self) -> Value {
        self.change(|node| node.frontman = None);
        json!({})
    }

    async fn checkpoint(&self, id: MigrationId, _: &CheckpointRequest) -> Reply<Checkpointed> {
        let migration = self.known(id, Role::Source)?;
        let _operation = migration.operation.lock().await;
        if let Some(done) = migration.view().checkpointed.clone() {
            return Ok(done);
        }
        self.gated(id, |_| Ok(()))?;
        let Some(path) = migration.view().path.take() else {
            return Err(conflict(ProblemKind::NotOpen, "the data path is not open"));
        };
        migration.view().phase = Some(Phase::Checkpointing);
        let done = migration
            .unless_given_up(self.freeze_and_send(id, path))
            .await;
        match &done {
            Ok(done) => {
                let mut view = migration.view();
                view.phase = Some(Phase::Delivered);
                view.checkpointed = Some(done.clone());
            }
            Err(problem) => migration.fail(problem),
        }
        done
    }

    async fn freeze_and_send(&self, id: MigrationId, path: Arc<Migration>) -> Reply<Checkpointed> {
        let ledger = self.gated(id, |service| {
            let Some(keeper) = &mut service.keeper else {
                return Err(keeper_lost());
            };
            if keeper.phase == Life::Dead {
                return Err(exited());
            }
            keeper.phase = Life::Frozen;
            service.packets_held = true;
            Ok(keeper.ledger)
        })?;
        let frozen_at_ns = monotonic_ns();
        self.part("freeze", "after").await?;
        self.part("transfer", "before").await?;
        let there = self.path_to(id)?;
        if !Arc::ptr_eq(&there, &path) || *there.given_up.borrow() {
            return Err(at_peer("the stream broke"));
        }
        if self.world.memory_full(self.side.other()) {
            let error = "more memory than there is";
            there.view().error = Some(error.to_owned());
            return Err(at_peer(error));
        }
        if self.change(|node| node.service.as_ref().is_none_or(|it| it.keeper.is_none())) {
            there.view().error = Some("the stream broke".to_owned());
            return Err(keeper_lost());
        }
        let digest = format!("digest of {ledger}");
        {
            let mut view = there.view();
            view.delivery = Some((digest.clone(), ledger));
            view.phase = Some(Phase::Delivered);
        }
        self.world.truth().note("all is delivered");
        // The destination has it all, and the source learns of it.
        self.part("transfer", "after").await?;
        if !self.world.linked() {
            return Err(at_peer("the confirmation did not arrive"));
        }
        Ok(Checkpointed {
            frozen_at_ns,
            dumped_at_ns: monotonic_ns(),
            delivered_at_ns: monotonic_ns(),
            digest,
            bytes: Moved {
                memory: 4096,
                wire: 5000,
                filesystem: 10,
                frozen: 0,
            },
            rounds: 0,
            spans: Vec::new(),
        })
    }

    async fn thaw(&self, id: MigrationId) -> Reply<Value> {
        if let Ok(migration) = self.known(id, Role::Source) {
            migration.given_up.send_replace(true);
            let _operation = migration.operation.lock().await;
            migration.view().path = None;
        }
        self.change(|node| {
            let Some(service) = &mut node.service else {
                return Ok(json!({}));
            };
            if service.gate.is_some_and(|gate| gate != id) {
                return Ok(json!({}));
            }
            // Without its keeper the container is dead, and nothing is left to thaw.
            if let Some(keeper) = &mut service.keeper
                && keeper.phase == Life::Frozen
            {
                keeper.phase = Life::Executing;
            }
            service.packets_held = false;
            Ok(json!({}))
        })
    }

    fn delete_source(&self, id: MigrationId) -> Value {
        let executes = self.change(|node| {
            let Some(service) = &node.service else {
                return false;
            };
            if service.gate != Some(id) {
                return false;
            }
            let executes = service
                .keeper
                .as_ref()
                .is_some_and(|it| it.phase == Life::Executing);
            node.service = None;
            executes
        });
        if executes {
            self.world
                .truth()
                .violation("an executing source was deleted");
        }
        self.forget(id);
        json!({})
    }

    async fn create(&self, id: MigrationId, request: &CreateRequest) -> Reply<Created> {
        let migration = self.enter(id, Role::Destination)?;
        let _operation = migration.operation.lock().await;
        if let Some(created) = migration.view().created.clone() {
            return Ok(created);
        }
        let created = self.create_once(id, request).await;
        match &created {
            // Discarded while it was being made.
            Ok(_) if self.known(id, Role::Destination).is_err() => {
                self.change(|node| node.service = None);
                return Err(unknown());
            }
            Ok(created) => {
                let mut view = migration.view();
                view.permit = Some(created.permit.clone());
                view.phase = Some(Phase::Prepared);
                view.created = Some(created.clone());
            }
            Err(_) => self.forget(id),
        }
        created
    }

    async fn create_once(&self, id: MigrationId, request: &CreateRequest) -> Reply<Created> {
        if self.world.memory_full(self.side) {
            return Err(Problem::failed(
                ProblemKind::Memory,
                "no memory",
                "nothing can be created",
            ));
        }
        let specification = request.specification.clone();
        self.change(|node| {
            if node.service.is_some() {
                return Err(conflict(ProblemKind::NameTaken, "the name is taken"));
            }
            node.service = Some(Container {
                specification: specification.clone(),
                gate: None,
                arriving: Some((id, request.source.clone())),
                keeper: Some(Keeper {
                    phase: Life::Created,
                    ledger: 0,
                    resumed: false,
                }),
                packets_held: false,
            });
            Ok(())
        })?;
        // The record is there, and the rest is not yet.
        if let Err(problem) = self.part("connect-network", "after").await {
            self.change(|node| node.service = None);
            return Err(problem);
        }
        Ok(Created {
            data_port: 9,
            permit: format!("permit {}", monotonic_ns()),
            image_needed: true,
            endpoints: vec![self.endpoint()],
            tunnel: None,
        })
    }

    async fn restore(&self, id: MigrationId) -> Reply<Restored> {
        let migration = self.known(id, Role::Destination)?;
        let _operation = migration.operation.lock().await;
        if let Some(restored) = migration.view().restored.clone() {
            return Ok(restored);
        }
        if migration.view().delivery.is_none() {
            tokio::time::sleep(DELIVERY_PATIENCE).await;
        }
        let (delivery, error) = {
            let mut view = migration.view();
            (view.delivery.take(), view.error.clone())
        };
        let Some((digest, ledger)) = delivery else {
            let detail = error.unwrap_or_else(|| "it has not arrived whole".to_owned());
            return Err(conflict(ProblemKind::NotDelivered, &detail));
        };
        let restored = self.restore_once(digest, ledger).await;
        let mut view = migration.view();
        match &restored {
            Ok(restored) => {
                view.phase = Some(Phase::Held);
                view.restored = Some(restored.clone());
            }
            Err(problem) => {
                view.phase = Some(Phase::Failed);
                view.error = Some(problem.to_string());
            }
        }
        restored
    }

    async fn restore_once(&self, digest: String, ledger: u64) -> Reply<Restored> {
        self.part("criu", "before").await?;
        if self.world.memory_full(self.side) {
            return Err(Problem::failed(
                ProblemKind::Memory,
                "no memory",
                "it can't be restored",
            ));
        }
        let runs_at_once = self.world.mutant(super::world::Mutant::RunsAtRestore);
        self.change(|node| {
            let keeper = node.service.as_mut().and_then(|it| it.keeper.as_mut());
            let keeper = keeper.ok_or_else(keeper_lost)?;
            keeper.ledger = ledger;
            keeper.phase = if runs_at_once {
                Life::Executing
            } else {
                Life::Held
            };
            Ok::<(), Problem>(())
        })?;
        Ok(Restored {
            restore_us: 10,
            digest,
            spans: Vec::new(),
        })
    }

    async fn run(&self, id: MigrationId) -> Reply<Running> {
        let migration = self.known(id, Role::Destination)?;
        let _operation = migration.operation.lock().await;
        let has_arrived = self.change(|node| {
            let service = node.service.as_ref();
            service.is_some_and(|service| service.arriving.is_none())
        });
        if has_arrived {
            return Ok(Running {
                resume_us: 0,
                losses: Vec::new(),
            });
        }
        self.change(|node| {
            let keeper = node.service.as_mut().and_then(|it| it.keeper.as_mut());
            let keeper = keeper.ok_or_else(keeper_lost)?;
            if keeper.phase == Life::Held {
                keeper.phase = Life::Executing;
                keeper.resumed = true;
            }
            if keeper.resumed {
                Ok(())
            } else {
                Err(Problem::failed(
                    ProblemKind::Keeper,
                    "it could not be resumed",
                    "nothing is held",
                ))
            }
        })?;
        // It executes, and its record still says that it arrives.
        self.part("publish", "before").await?;
        self.change(|node| {
            if let Some(service) = &mut node.service {
                service.arriving = None;
            }
            node.frontman = None;
        });
        migration.view().phase = Some(Phase::Installing);
        Ok(Running {
            resume_us: 10,
            losses: Vec::new(),
        })
    }

    fn discard(&self, id: MigrationId) -> Reply<Value> {
        let Ok(migration) = self.known(id, Role::Destination) else {
            if !self.memory().migrations.contains_key(&id) {
                self.forget(id);
            }
            return Ok(json!({}));
        };
        let ran = self.change(|node| match &node.service {
            Some(service) if service.arriving.as_ref().is_some_and(|(of, _)| *of == id) => {
                let resumed = service.keeper.as_ref().is_some_and(|it| it.resumed);
                if !resumed {
                    node.service = None;
                }
                resumed
            }
            Some(_) => true,
            None => false,
        });
        if ran {
            return Err(conflict(ProblemKind::Committed, "the service runs here"));
        }
        migration.given_up.send_replace(true);
        self.forget(id);
        Ok(json!({}))
    }

    fn endpoint(&self) -> std::net::SocketAddr {
        super::system::endpoint(self.side)
    }

    fn state(&self, id: MigrationId) -> Reply<MigrationState> {
        let migration = self
            .memory()
            .migrations
            .get(&id)
            .cloned()
            .ok_or_else(unknown)?;
        let truth = self.world.truth();
        let life = truth.life(self.side);
        let service = truth.nodes[self.side.index()].service.as_ref();
        let view = migration.view();
        let (phase, lost) = match (migration.role, service) {
            (Role::Source, _) => (view.phase.unwrap_or(Phase::Prepared), None),
            (Role::Destination, None) => (Phase::Failed, Some("its container is gone")),
            (Role::Destination, Some(service)) => arriving_phase(service, view.phase),
        };
        Ok(MigrationState {
            id,
            service: super::system::service_name(),
            role: migration.role,
            phase,
            frozen_at_ns: (migration.role == Role::Source && life == Some(Life::Frozen))
                .then(monotonic_ns),
            bytes: Moved::default(),
            round: None,
            pages_pending: 0,
            error: view.error.clone().or(lost.map(str::to_owned)),
        })
    }

    fn service(&self) -> Reply<ServiceFacts> {
        let truth = self.world.truth();
        let service = truth.nodes[self.side.index()].service.as_ref();
        let service = service.ok_or_else(service_unknown)?;
        let life = truth.life(self.side);
        Ok(ServiceFacts {
            specification: service.specification.clone(),
            running: matches!(life, Some(Life::Executing | Life::Frozen | Life::Held)),
            processes: 1,
            threads: 1,
            memory_bytes: 4096,
            filesystem_bytes: 10,
            image_bytes: 10,
            connections: 0,
            obstacles: Vec::new(),
            losses: Vec::new(),
            migrating: service.gate,
        })
    }

    fn services(&self) -> Vec<ServiceView> {
        let truth = self.world.truth();
        let view = |service: &Container| ServiceView {
            specification: service.specification.clone(),
            status: match &service.keeper {
                Some(keeper) if keeper.phase == Life::Frozen => ServiceStatus::Frozen,
                Some(keeper) if keeper.phase == Life::Executing => {
                    if service.arriving.is_none() || keeper.resumed {
                        ServiceStatus::Running
                    } else {
                        ServiceStatus::Arriving
                    }
                }
                Some(keeper) if keeper.phase != Life::Dead => ServiceStatus::Arriving,
                _ => ServiceStatus::Exited,
            },
            init_pid: None,
            migration: service
                .gate
                .or(service.arriving.as_ref().map(|(id, _)| *id)),
            memory_bytes: None,
            engine: None,
            endpoints: vec![self.endpoint()],
            losses: Vec::new(),
            pages: None,
        };
        truth.nodes[self.side.index()]
            .service
            .iter()
            .map(view)
            .collect()
    }

    fn facts(&self) -> NodeFacts {
        let truth = self.world.truth();
        let here = truth.nodes[self.side.index()].service.as_ref();
        let specification = here.map(|service| &service.specification);
        NodeFacts {
            architecture: "x86_64".to_owned(),
            cpu_features: BTreeSet::from(["fpu".to_owned()]),
            kernel: "6.12.0".to_owned(),
            criu: Some((4, 2, 1)),
            eager_restore: None,
            proc_paths: Default::default(),
            memory_available_bytes: 1 << 40,
            disk_available_bytes: 1 << 40,
            warnings: Vec::new(),
            outer: false,
            tracks_memory: false,
            engines: Vec::new(),
            images: BTreeSet::new(),
            limits: Default::default(),
            system: ums_core::facts::SystemFacts {
                services: specification.iter().map(|it| it.name.to_string()).collect(),
                addresses: specification.iter().map(|it| it.address).collect(),
                service_network: ([10, 88, 0, 0].into(), 16),
                ports: BTreeSet::new(),
                udp_ports: BTreeSet::new(),
                readdresses: true,
                carries: ums_core::facts::CARRIES,
            },
        }
    }
}

/// How far an arriving service is, by its keeper and by what the agent has seen.
fn arriving_phase(service: &Container, seen: Option<Phase>) -> (Phase, Option<&'static str>) {
    let Some(keeper) = &service.keeper else {
        return (Phase::Failed, Some("the container's keeper is lost"));
    };
    match (keeper.phase, seen) {
        _ if keeper.resumed => (Phase::Settled, None),
        (Life::Held, _) => (Phase::Held, None),
        (Life::Dead, _) | (_, Some(Phase::Held)) => (Phase::Failed, Some("what was held has died")),
        (_, None) => (
            Phase::Failed,
            Some("the agent was restarted while it was received"),
        ),
        (_, Some(seen)) => (seen, None),
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Reply<T> {
    serde_json::from_slice(body)
        .map_err(|error| Problem::refused(400, ProblemKind::Body, "malformed", error.to_string()))
}

fn conflict(kind: ProblemKind, detail: &str) -> Problem {
    Problem::refused(409, kind, "it can't be", detail)
}

fn unknown() -> Problem {
    Problem::refused(
        404,
        ProblemKind::MigrationUnknown,
        "unknown migration",
        "not known here",
    )
}

fn service_unknown() -> Problem {
    Problem::refused(
        404,
        ProblemKind::ServiceUnknown,
        "unknown service",
        "not here",
    )
}

fn keeper_lost() -> Problem {
    Problem {
        effect: Effect::None,
        retry: false,
        ..Problem::failed(
            ProblemKind::Keeper,
            "the container's keeper could not do it",
            "it can't be reached",
        )
    }
}

fn exited() -> Problem {
    Problem {
        fault: Whose::Service,
        ..conflict(ProblemKind::ServiceExited, "it ended by itself with code 3")
    }
}

fn at_peer(detail: &str) -> Problem {
    Problem {
        fault: Whose::Peer,
        effect: Effect::None,
        status: 502,
        ..Problem::failed(
            ProblemKind::DataPath,
            "the data path to the destination failed",
            detail,
        )
    }
}

/// Kind of a problem that is never told, because the connection breaks.
const CUT_OFF: &str = "cut-off";

fn cut_off() -> Problem {
    Problem::failed(ProblemKind::Other(CUT_OFF.to_owned()), "cut off", "cut off")
}
