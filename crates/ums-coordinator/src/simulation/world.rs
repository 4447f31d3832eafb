//! The two systems, the link between them, and what strikes them.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::agent::Agent;
use super::disk::{Disk, Fate};
use super::fault::{DOWN, DOWN_LONG, Fates, Fault, Kind, LATE, OUTAGE, Side, Way, Which, Will};
use super::system::{self, Coordinator};
use super::truth::Truth;
use crate::tasks::Tasks;

/// Pause before a program that can't start is started again.
const START_AGAIN: Duration = Duration::from_millis(500);

/// A protocol that is broken on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mutant {
    /// The source sends the commit before it is durable: its disk says that it has kept it.
    CommitsBeforeItIsDurable,
    /// The destination answers *prepared* before it is durable, in the same way.
    PreparesBeforeItIsDurable,
    /// The source thaws when the destination does not answer the commit.
    ThawsAfterTheCommit,
    /// The destination runs what it restores, before the commit.
    RunsAtRestore,
}

/// A program with its tasks: what is killed.
pub(super) struct Process {
    doomed: AtomicBool,
    pub(super) tasks: Arc<Tasks>,
}

impl Default for Process {
    fn default() -> Self {
        Self {
            doomed: AtomicBool::new(false),
            tasks: Arc::new(Tasks::new()),
        }
    }
}

impl Process {
    /// Whether it is dead, or about to be: nothing of it has an effect any more.
    pub(super) fn is_doomed(&self) -> bool {
        self.doomed.load(Ordering::SeqCst)
    }
}

/// One system.
#[derive(Default)]
struct Place {
    disk: Disk,
    coordinator: Option<Coordinator>,
    agent: Option<Agent>,
    memory_full: u32,
    disk_full: u32,
}

/// What a moment brings for who passes it.
pub(super) enum Verdict {
    Go,
    Fail,
    Break,
    Lose,
    /// It is done once more, after this time.
    Twice(Duration),
}

/// Everything.
pub(super) struct World {
    truth: Mutex<Truth>,
    fates: Mutex<Fates>,
    places: Mutex<[Place; 2]>,
    /// How many outages cut the way to B, and to A.
    cut: Mutex<[u32; 2]>,
    /// What is still to come by itself: ends of outages, late messages, restarts.
    pending: AtomicU32,
    mutant: Option<Mutant>,
}

/// Something that is still to come.
pub(super) struct Pending(Arc<World>);

impl Drop for Pending {
    fn drop(&mut self) {
        self.0.pending.fetch_sub(1, Ordering::SeqCst);
    }
}

impl World {
    pub(super) fn new(will: Will, mutant: Option<Mutant>) -> Arc<Self> {
        Arc::new(Self {
            truth: Mutex::default(),
            fates: Mutex::new(Fates::new(will)),
            places: Mutex::default(),
            cut: Mutex::default(),
            pending: AtomicU32::new(0),
            mutant,
        })
    }

    pub(super) fn truth(&self) -> MutexGuard<'_, Truth> {
        self.truth.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn fates(&self) -> MutexGuard<'_, Fates> {
        self.fates.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn places(&self) -> MutexGuard<'_, [Place; 2]> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cut(&self) -> MutexGuard<'_, [u32; 2]> {
        self.cut.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn mutant(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    pub(super) fn coordinator(&self, side: Side) -> Option<Coordinator> {
        self.places()[side.index()].coordinator.clone()
    }

    pub(super) fn agent(&self, side: Side) -> Option<Agent> {
        self.places()[side.index()].agent.clone()
    }

    pub(super) fn disk(&self, side: Side) -> Disk {
        self.places()[side.index()].disk.clone()
    }

    pub(super) fn memory_full(&self, side: Side) -> bool {
        self.places()[side.index()].memory_full > 0
    }

    /// Whether messages from this side reach the other.
    pub(super) fn reaches(&self, from: Side) -> bool {
        self.cut()[from.index()] == 0
    }

    /// Whether a connection can be made and used.
    pub(super) fn linked(&self) -> bool {
        Side::BOTH.into_iter().all(|side| self.reaches(side))
    }

    pub(super) fn pending(self: &Arc<Self>) -> Pending {
        self.pending.fetch_add(1, Ordering::SeqCst);
        Pending(Arc::clone(self))
    }

    /// Whether nothing is still to come by itself.
    pub(super) fn is_calm(&self) -> bool {
        self.pending.load(Ordering::SeqCst) == 0
    }

    /// A moment passes, of a program if `process` is given: something may go wrong.
    pub(super) async fn pass(
        self: &Arc<Self>,
        kind: Kind,
        place: &str,
        process: Option<&Arc<Process>>,
    ) -> Verdict {
        let delay = self.fates().delay();
        tokio::time::sleep(delay).await;
        if process.is_some_and(|process| process.is_doomed()) {
            std::future::pending::<()>().await;
        }
        let fault = self.fates().pass(kind, place);
        let Some(fault) = fault else {
            self.truth().note(place);
            return Verdict::Go;
        };
        self.truth().note(format!("{place}: {fault:?}"));
        match fault {
            Fault::Fail(_) => Verdict::Fail,
            Fault::Break => Verdict::Break,
            Fault::Lose => Verdict::Lose,
            Fault::Twice => Verdict::Twice(Duration::ZERO),
            Fault::TwiceLate => Verdict::Twice(LATE),
            Fault::Late => {
                let _pending = self.pending();
                tokio::time::sleep(LATE).await;
                Verdict::Go
            }
            fault => {
                self.enact(fault, process).await;
                Verdict::Go
            }
        }
    }

    /// What becomes of a durable write.
    pub(super) fn fate(&self, side: Side) -> Fate {
        let place = format!("{} journal", side.name());
        let lies_after = match self.mutant {
            Some(Mutant::CommitsBeforeItIsDurable) => "a restore answered",
            Some(Mutant::PreparesBeforeItIsDurable) => "b agent restore after",
            _ => "",
        };
        let last = self.fates().last().to_owned();
        if last == lies_after && last.starts_with(side.name()) {
            self.truth().note(format!("{place}: it lies"));
            return Fate::Lied;
        }
        let fault = self.fates().pass(Kind::Write, &place);
        let nth = self
            .fates()
            .moments
            .last()
            .map_or(0, |(_, moment)| moment.nth);
        self.truth().note(match fault {
            Some(fault) => format!("{place} {nth}: {fault:?}"),
            None => format!("{place} {nth}"),
        });
        match fault {
            Some(Fault::Refused) => Fate::Refused,
            Some(Fault::Doubtful) => Fate::Doubtful,
            Some(Fault::DiesBefore) => Fate::DiesBefore,
            Some(Fault::DiesAfter) => Fate::DiesAfter,
            _ => Fate::Kept,
        }
    }

    async fn enact(self: &Arc<Self>, fault: Fault, process: Option<&Arc<Process>>) {
        match fault {
            Fault::Coordinator(which) => self.kill(which, true, DOWN, process).await,
            Fault::CoordinatorForLong(which) => self.kill(which, true, DOWN_LONG, process).await,
            Fault::Agent(which) => self.kill(which, false, DOWN, process).await,
            Fault::Keeper(side) => self.truth().lose_keeper(side),
            Fault::Exit(side) => self.truth().exit(side),
            Fault::Cut(way) => {
                let sides: &[Side] = match way {
                    Way::ToB => &[Side::A],
                    Way::ToA => &[Side::B],
                    Way::Both => &Side::BOTH,
                };
                for &side in sides {
                    self.for_a_while(move |world, by| {
                        let mut cut = world.cut();
                        cut[side.index()] = cut[side.index()].saturating_add_signed(by);
                    });
                }
            }
            Fault::DiskFull(side) => self.for_a_while(move |world, by| {
                let mut places = world.places();
                let place = &mut places[side.index()];
                place.disk_full = place.disk_full.saturating_add_signed(by);
                place.disk.set_full(place.disk_full > 0);
            }),
            Fault::MemoryFull(side) => self.for_a_while(move |world, by| {
                let place = &mut world.places()[side.index()];
                place.memory_full = place.memory_full.saturating_add_signed(by);
            }),
            Fault::Abort => {
                let (world, pending) = (Arc::clone(self), self.pending());
                tokio::spawn(async move {
                    system::abort(&world).await;
                    drop(pending);
                });
            }
            _ => {}
        }
    }

    /// Something lasts for the length of an outage.
    fn for_a_while(self: &Arc<Self>, change: impl Fn(&Self, i32) + Send + 'static) {
        change(self, 1);
        let (world, pending) = (Arc::clone(self), self.pending());
        tokio::spawn(async move {
            tokio::time::sleep(OUTAGE).await;
            change(&world, -1);
            world.truth().note("an outage is over");
            drop(pending);
        });
    }

    /// Kills programs, and starts them again after a while. If the one that asks is among them, this
    /// never returns.
    async fn kill(
        self: &Arc<Self>,
        which: Which,
        coordinator: bool,
        down: Duration,
        asks: Option<&Arc<Process>>,
    ) {
        let mut dead = Vec::new();
        for side in which.sides() {
            let process = {
                let place = &mut self.places()[side.index()];
                if coordinator {
                    place.coordinator.take().map(|it| it.process)
                } else {
                    place.agent.take().map(|it| it.process)
                }
            };
            let Some(process) = process else { continue };
            process.doomed.store(true, Ordering::SeqCst);
            if coordinator {
                let disk = self.disk(side);
                disk.lose(|| self.fates().kept());
            }
            self.restart(side, coordinator, down);
            dead.push(process);
        }
        let suicide = asks.is_some_and(|it| dead.iter().any(|process| Arc::ptr_eq(it, process)));
        let end = async move {
            for process in dead {
                process.tasks.end().await;
            }
        };
        if suicide {
            tokio::spawn(end);
            return std::future::pending().await;
        }
        end.await;
    }

    fn restart(self: &Arc<Self>, side: Side, coordinator: bool, after: Duration) {
        let (world, pending) = (Arc::clone(self), self.pending());
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            if coordinator {
                world.start_coordinator(side).await;
            } else {
                world.start_agent(side);
            }
            drop(pending);
        });
    }

    /// A Coordinator dies by itself, in the middle of a write.
    pub(super) async fn die(self: &Arc<Self>, side: Side, process: &Arc<Process>) {
        let which = match side {
            Side::A => Which::A,
            Side::B => Which::B,
        };
        self.kill(which, true, DOWN, Some(process)).await;
    }

    /// Kills and starts both Coordinators.
    pub(super) async fn restart_coordinators(self: &Arc<Self>) {
        self.kill(Which::Both, true, DOWN, None).await;
        while !self.is_calm() {
            tokio::time::sleep(DOWN).await;
        }
    }

    pub(super) fn start_agent(self: &Arc<Self>, side: Side) {
        let agent = Agent::load(self, side);
        self.truth().note(format!("{} agent starts", side.name()));
        self.places()[side.index()].agent = Some(agent);
    }

    pub(super) async fn start_coordinator(self: &Arc<Self>, side: Side) {
        loop {
            match Coordinator::open(self, side) {
                Ok(coordinator) => {
                    self.truth()
                        .note(format!("{} Coordinator starts", side.name()));
                    self.places()[side.index()].coordinator = Some(coordinator.clone());
                    if coordinator.begin().await.is_ok() {
                        return;
                    }
                    self.places()[side.index()].coordinator = None;
                    coordinator.process.tasks.end().await;
                }
                Err(error) => self.truth().note(format!("{}: {error}", side.name())),
            }
            tokio::time::sleep(START_AGAIN).await;
        }
    }

    /// Lets go of everything, which refers to itself in circles.
    pub(super) fn end(&self) {
        let places = std::mem::take(&mut *self.places());
        drop(places);
    }
}
