//! A state of both systems, and every step that leads out of it.
//!
//! Each step is a list of effects in the program's order; a crash may cut it short after any of
//! them. A message that was sent may arrive at any time, any number of times, or never.

use ums_core::receiver::{self, Message, Rejected, State};
use ums_core::report::Outcome;
use ums_core::saga::{Action, SagaState, TakenBackBy};
use ums_core::step::Step as Number;

use crate::sagas::{Id, Line, Sagas, outcome};

/// How much may go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Bounds {
    /// Crashes of a Coordinator.
    pub(crate) crashes: u8,
    /// Instances whose keeper is lost at the destination.
    pub(crate) losses: u8,
    /// Decisions of operators.
    pub(crate) decisions: u8,
}

/// The protocol broken on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Break {
    CommitAfterFirstInstruction,
    ThawAfterCommit,
    RunInDoubt,
    CommitSentFirst,
    RunFirst,
    AskedCalledLost,
    PreparedNotWritten,
    DeleteAtCommit,
    LostNotTold,
    LeaseEndsPrepared,
}

/// The source's own copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Copied {
    Executing,
    Frozen,
    Deleted,
}

/// What the destination's agent has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Instance {
    None,
    Created,
    Held,
    Executing,
    /// Its keeper was lost.
    Gone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Post {
    Reserve,
    Reserved,
    Create,
    Created,
    Restore,
    Prepared,
    Commit,
    Ran,
    Lost,
    Abort,
    AbortAccepted,
    AbortRejected,
    Close,
    Closed,
    Ask,
    SaysCommitted,
    SaysAbandoned,
}

/// Where the receiver is: an index of [`states`], 0 for unknown.
type Place = u8;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct World {
    left: Bounds,
    source_up: bool,
    /// The saga as the running Coordinator knows it, and as its disk does.
    memory: Id,
    disk: Id,
    copied: Copied,
    destination_up: bool,
    place: Place,
    instance: Instance,
    delivered: bool,
    /// All that was ever sent.
    sent: u32,
    /// What an observer of the whole remembers.
    committed: bool,
    has_run: bool,
    risk_taken: bool,
}

/// A step out of a state.
pub(crate) struct Step {
    pub(crate) name: &'static str,
    /// Whether it is something that goes wrong, or a person's decision.
    pub(crate) fault: bool,
    pub(crate) world: World,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Source,
    Destination,
}

#[derive(Debug, Clone, Copy)]
enum Effect {
    /// Lines, durable when the next effect begins.
    Disk(&'static [Line]),
    /// Lines that reach the disk with the next durable ones.
    Lazy(&'static [Line]),
    Undoing(Number),
    Undone(Number),
    Source(Copied),
    Put(Place),
    Destination(Instance),
    Delivered,
    Send(Post),
}

use Effect::{Destination as Become, Disk, Lazy, Put, Send, Source};

fn states() -> [Option<State>; 9] {
    let digest = || String::from("d");
    [
        None,
        Some(State::Reserved),
        Some(State::Created),
        Some(State::Prepared { digest: digest() }),
        Some(State::Committed),
        Some(State::Running),
        Some(State::Closed),
        Some(State::Aborted),
        Some(State::Lost),
    ]
}

/// Beyond [`states`], to keep the array small.
const DISCARDED: Place = 9;

fn state_of(place: Place) -> Option<State> {
    match place {
        DISCARDED => Some(State::Discarded),
        place => states()[usize::from(place)].clone(),
    }
}

fn place_of(state: &State) -> Place {
    if *state == State::Discarded {
        return DISCARDED;
    }
    let is = |it: &Option<State>| it.as_ref() == Some(state);
    let place = states()
        .iter()
        .position(is)
        .expect("a state that is written");
    Place::try_from(place).expect("few states")
}

/// The program's transition. *Delivered* is never written, so it has no place: a restore goes on to
/// *Prepared*.
fn receive(place: Place, message: &Message) -> Result<Place, Rejected> {
    match receiver::receive(state_of(place).as_ref(), message)? {
        delivered @ State::Delivered { .. } => {
            receiver::receive(Some(&delivered), &Message::Prepared).map(|state| place_of(&state))
        }
        state => Ok(place_of(&state)),
    }
}

fn restore() -> Message {
    Message::Restore {
        digest: "d".to_owned(),
    }
}

impl World {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self {
            left: bounds,
            source_up: true,
            memory: 0,
            disk: 0,
            copied: Copied::Executing,
            destination_up: true,
            place: 0,
            instance: Instance::None,
            delivered: false,
            sent: 0,
            committed: false,
            has_run: false,
            risk_taken: false,
        }
    }

    fn has(&self, post: Post) -> bool {
        self.sent & (1 << post as u32) != 0
    }

    fn is(&self, wanted: impl Fn(&State) -> bool) -> bool {
        state_of(self.place).is_some_and(|state| wanted(&state))
    }

    fn is_prepared(&self) -> bool {
        self.is(|state| matches!(state, State::Prepared { .. }))
    }

    /// What must never be, if it is.
    pub(crate) fn wrong(&self, _: &Sagas) -> Option<&'static str> {
        let here = self.copied == Copied::Executing;
        let there = self.instance == Instance::Executing;
        if !self.risk_taken && there && !self.committed {
            return Some("executes without a commit");
        }
        if !self.risk_taken && here && there {
            return Some("two instances execute");
        }
        if !self.risk_taken && here && self.has_run {
            return Some("two instances have executed, one after the other");
        }
        if self.copied == Copied::Deleted && !self.has_run {
            return Some("the source is gone, and the destination has not executed");
        }
        None
    }

    /// How it ended, if all has settled.
    pub(crate) fn settled(&self, sagas: &Sagas) -> Option<&'static str> {
        if !self.source_up || !self.destination_up {
            return None;
        }
        let saga = sagas.get(self.memory);
        let nothing_there =
            self.instance == Instance::None && (self.place == 0 || self.is(State::is_given_up));
        let may_have_run = self.is(|state| *state == State::Discarded)
            || self.is(|state| *state == State::Committed) && self.instance == Instance::Gone;
        if saga.may_be_taken_back() && may_have_run && self.copied == Copied::Frozen {
            return Some("stuck");
        }
        if saga.what_next() != Action::Rest {
            return None;
        }
        match outcome(saga)? {
            Outcome::Completed if self.is(|state| *state == State::Closed) => {
                let moved = self.copied == Copied::Deleted;
                moved.then_some(if self.risk_taken { "decided" } else { "moved" })
            }
            Outcome::Abandoned | Outcome::Refused
                if nothing_there && self.copied == Copied::Executing =>
            {
                Some(if self.risk_taken { "decided" } else { "stayed" })
            }
            // Told on both sides, after a decision that risked it.
            Outcome::Stuck if self.risk_taken => Some("conflict"),
            _ => None,
        }
    }

    pub(crate) fn describe(&self, sagas: &Sagas) -> String {
        let saga = sagas.get(self.memory);
        let next = saga.what_next();
        format!("{self:?}\n{:?}, next: {next:?}\n", saga.phase())
    }

    /// Every step out of this state.
    pub(crate) fn steps(&self, sagas: &mut Sagas, breakage: Option<Break>) -> Vec<Step> {
        let mut steps = Steps {
            from: self,
            sagas,
            breakage,
            found: Vec::new(),
        };
        if self.source_up {
            steps.source();
        } else {
            steps.source_recovers();
        }
        if self.destination_up {
            steps.destination();
        } else {
            steps.change("the destination is started again", false, |world| {
                world.destination_up = true;
            });
        }
        steps.faults();
        steps.found
    }
}

struct Steps<'a> {
    from: &'a World,
    sagas: &'a mut Sagas,
    breakage: Option<Break>,
    found: Vec<Step>,
}

impl Steps<'_> {
    fn broken(&self, breakage: Break) -> bool {
        self.breakage == Some(breakage)
    }

    fn change(&mut self, name: &'static str, fault: bool, change: impl FnOnce(&mut World)) {
        let mut world = self.from.clone();
        change(&mut world);
        self.found.push(Step { name, fault, world });
    }

    /// One step, whole, and cut short by a crash after each of its effects but the last.
    fn step(&mut self, side: Side, name: &'static str, fault: bool, effects: &[Effect]) {
        let mut world = self.from.clone();
        for (number, effect) in effects.iter().enumerate() {
            if number > 0 && world.left.crashes > 0 {
                let mut crashed = world.clone();
                crash(&mut crashed, side);
                let fault = true;
                self.found.push(Step {
                    name,
                    fault,
                    world: crashed,
                });
            }
            apply(&mut world, self.sagas, *effect);
        }
        self.found.push(Step { name, fault, world });
    }

    fn source_step(&mut self, name: &'static str, effects: &[Effect]) {
        self.step(Side::Source, name, false, effects);
    }

    fn destination_step(&mut self, name: &'static str, effects: &[Effect]) {
        self.step(Side::Destination, name, false, effects);
    }

    fn source_recovers(&mut self) {
        let (forward, disk) = (self.sagas.is_forward(self.from.disk), self.from.disk);
        let after = match forward {
            true => self.sagas.write(disk, Line::Abandoned),
            false => disk,
        };
        let thaws = self.broken(Break::ThawAfterCommit) && self.sagas.get(disk).is_committed();
        self.change("the source is started again", false, |world| {
            world.source_up = true;
            (world.memory, world.disk) = (after, after);
            if thaws && world.copied == Copied::Frozen {
                world.copied = Copied::Executing;
            }
        });
    }

    fn source(&mut self) {
        self.answer_the_question();
        let saga = self.sagas.get(self.from.memory);
        let forward = *saga.phase() == SagaState::Forward;
        match self.sagas.what_next(self.from.memory) {
            Action::Run(step) => self.run(step),
            Action::Compensate(step) | Action::Stuck { step, .. } => self.compensate(step),
            Action::CatchUp(step) => self.tell_of_the_end(step),
            Action::Finish(_) => {
                self.source_step("the report is written", &[Disk(&[Line::Finished])])
            }
            Action::Commit | Action::Rest => {}
        }
        if forward {
            // A timeout, a failure, an abort that was asked for.
            self.source_step("the source gives up", &[Disk(&[Line::Abandoned])]);
        }
    }

    fn answer_the_question(&mut self) {
        if !self.from.has(Post::Ask) {
            return;
        }
        let saga = self.sagas.get(self.from.memory);
        let answer = match (saga.phase(), saga.is_committed()) {
            (SagaState::Forward, _) => return,
            (_, true) => Post::SaysCommitted,
            (_, false) => Post::SaysAbandoned,
        };
        self.source_step("the source tells its decision", &[Send(answer)]);
    }

    fn run(&mut self, step: Number) {
        use Line::{Done, Started};
        let under_way = self.sagas.get(self.from.memory).is_under_way(step);
        let from = self.from;
        match (step, under_way) {
            (Number::DetermineApproach, _) => self.source_step(
                "1",
                &[
                    Disk(&[Started(Number::DetermineApproach)]),
                    Lazy(&[Done(Number::DetermineApproach)]),
                ],
            ),
            (Number::VerifyPeer, _) => self.source_step(
                "2",
                &[
                    Disk(&[Started(Number::VerifyPeer)]),
                    Lazy(&[Done(Number::VerifyPeer)]),
                ],
            ),
            (Number::SendSpecification, false) => self.source_step(
                "3: reserve is sent",
                &[
                    Disk(&[Started(Number::SendSpecification)]),
                    Send(Post::Reserve),
                ],
            ),
            (Number::SendSpecification, true) if from.has(Post::Reserved) => {
                self.source_step("3 is done", &[Lazy(&[Done(Number::SendSpecification)])]);
            }
            (Number::RequestContainer, false) => self.source_step(
                "4: create is sent",
                &[
                    Disk(&[Started(Number::RequestContainer)]),
                    Send(Post::Create),
                ],
            ),
            (Number::RequestContainer, true) if from.has(Post::Created) => {
                self.source_step("4 to 6 are done", &[Lazy(&CREATED)]);
            }
            (Number::OpenDataPath, _) => self.source_step(
                "7",
                &[
                    Disk(&[Started(Number::OpenDataPath)]),
                    Lazy(&[Done(Number::OpenDataPath)]),
                ],
            ),
            (Number::Checkpoint, false) => self.source_step(
                "8: frozen",
                &[Disk(&[Started(Number::Checkpoint)]), Source(Copied::Frozen)],
            ),
            (Number::Checkpoint, true)
                if from.copied == Copied::Frozen && from.instance == Instance::Created =>
            {
                self.source_step("10: delivered", &[Effect::Delivered, Lazy(&DELIVERED)]);
            }
            (Number::RequestRestore, _) if from.has(Post::Prepared) => {
                self.source_step("11 is done", &[Lazy(&PREPARED)]);
            }
            (Number::RequestRestore, _) => {
                self.source_step("11: restore is sent", &[Send(Post::Restore)]);
            }
            (Number::Restore, true) => self.commit(),
            (Number::Commit, _) => self.follow_the_commit(),
            (Number::Announce, _) => self.source_step("14", &[Disk(&ANNOUNCED)]),
            (Number::DeleteSource, _) if from.copied != Copied::Deleted => {
                self.source_step("15: deleted", &[Source(Copied::Deleted), Send(Post::Close)])
            }
            (Number::DeleteSource, _) if from.has(Post::Closed) => {
                self.source_step("15 is done", &[Disk(&[Done(Number::DeleteSource)])]);
            }
            (Number::DeleteSource, _) => {
                self.source_step("15: close is sent", &[Send(Post::Close)])
            }
            _ => {}
        }
    }

    fn commit(&mut self) {
        let name = "13: committed";
        if self.broken(Break::CommitSentFirst) {
            return self.source_step(name, &[Send(Post::Commit), Disk(&COMMITTED)]);
        }
        if self.broken(Break::DeleteAtCommit) {
            return self.source_step(
                name,
                &[
                    Disk(&COMMITTED),
                    Source(Copied::Deleted),
                    Send(Post::Commit),
                ],
            );
        }
        self.source_step(name, &[Disk(&COMMITTED), Send(Post::Commit)]);
    }

    fn follow_the_commit(&mut self) {
        if !self.from.has(Post::Commit) {
            self.source_step("13: commit is sent", &[Send(Post::Commit)]);
        }
        if self.from.has(Post::Ran) {
            self.source_step("13 is done", &[Disk(&RAN)]);
        }
        if self.from.has(Post::Lost) {
            self.source_step(
                "13: it is lost there, and taken back",
                &[Disk(&[Line::TakenBack(TakenBackBy::Lost)])],
            );
        }
        if self.from.left.decisions > 0 {
            let memory = self
                .sagas
                .write(self.from.memory, Line::TakenBack(TakenBackBy::Operator));
            self.change("the operator takes it back", true, |world| {
                world.left.decisions -= 1;
                world.risk_taken = true;
                (world.memory, world.disk) = (memory, memory);
            });
        }
    }

    fn compensate(&mut self, step: Number) {
        if !self.sagas.get(self.from.memory).is_being_undone(step) {
            return self.source_step("a compensation is begun", &[Effect::Undoing(step)]);
        }
        match step {
            Number::Checkpoint if self.from.copied == Copied::Frozen => self.source_step(
                "8 is undone: thawed",
                &[Source(Copied::Executing), Effect::Undone(step)],
            ),
            Number::SendSpecification => {
                self.tell_of_the_end(step);
                let put_off = [Disk(&[Line::PutOff(Number::SendSpecification)])];
                self.step(Side::Source, "the abort is put off", true, &put_off);
            }
            _ => self.source_step("a step is undone", &[Effect::Undone(step)]),
        }
    }

    fn tell_of_the_end(&mut self, step: Number) {
        if !self.from.has(Post::Abort) {
            self.source_step("abort is sent", &[Send(Post::Abort)]);
        }
        if self.from.has(Post::AbortAccepted) {
            self.source_step("3 is undone", &[Effect::Undone(step)]);
        }
        if self.from.has(Post::AbortRejected) {
            let conflict = [Disk(&[Line::Conflict(Number::SendSpecification)])];
            self.source_step("the conflict is written", &conflict);
        }
    }

    fn destination(&mut self) {
        let from = self.from;
        if from.has(Post::Reserve) && from.place <= place_of(&State::Reserved) {
            let reserved = Put(place_of(&State::Reserved));
            self.destination_step("reserved", &[reserved, Send(Post::Reserved)]);
        }
        if from.has(Post::Create) {
            self.create();
        }
        if from.has(Post::Restore) {
            self.restore();
        }
        if from.has(Post::Commit) {
            self.take_on(true);
        }
        if from.has(Post::SaysCommitted) {
            self.take_on(false);
        }
        if from.has(Post::Abort) {
            self.abort(true);
        }
        if from.has(Post::SaysAbandoned) {
            self.abort(false);
        }
        if let (true, Ok(closed)) = (from.has(Post::Close), receive(from.place, &Message::Close)) {
            self.destination_step("closed", &[Put(closed), Send(Post::Closed)]);
        }
        self.reconcile();
        self.decide();
    }

    fn create(&mut self) {
        let Ok(place) = receive(self.from.place, &Message::Create) else {
            return;
        };
        if place != place_of(&State::Reserved) {
            return self.destination_step("created, again", &[Send(Post::Created)]);
        }
        let created = receive(place, &Message::Created).expect("it was reserved");
        self.destination_step(
            "created",
            &[Become(Instance::Created), Put(created), Send(Post::Created)],
        );
    }

    fn restore(&mut self) {
        let Ok(prepared) = receive(self.from.place, &restore()) else {
            return;
        };
        if prepared == self.from.place {
            return self.destination_step("prepared, again", &[Send(Post::Prepared)]);
        }
        let there = matches!(self.from.instance, Instance::Created | Instance::Held);
        if !self.from.delivered || !there {
            return;
        }
        let held = match self.broken(Break::CommitAfterFirstInstruction) {
            true => Become(Instance::Executing),
            false => Become(Instance::Held),
        };
        if self.broken(Break::PreparedNotWritten) {
            return self.destination_step("prepared", &[held, Send(Post::Prepared)]);
        }
        self.destination_step("prepared", &[held, Put(prepared), Send(Post::Prepared)]);
    }

    /// `destination::commit`, asked by the source, or after its decision.
    fn take_on(&mut self, asked: bool) {
        let from = self.from;
        let answers = |post| asked.then_some(Send(post));
        let committed = place_of(&State::Committed);
        match receive(from.place, &Message::Commit) {
            Err(Rejected::Lost) => {
                let lost = [Some(Become(Instance::None)), answers(Post::Lost)];
                self.some("lost, again", &lost);
            }
            Err(_) => {}
            Ok(next) if next != from.place => match from.instance {
                Instance::Gone if self.broken(Break::LostNotTold) => {}
                Instance::Gone => {
                    let lost = receive(from.place, &Message::Gone).expect("it was prepared");
                    let none = Become(Instance::None);
                    self.some("lost", &[Some(Put(lost)), Some(none), answers(Post::Lost)]);
                }
                _ if self.broken(Break::RunFirst) => {
                    let run = Become(Instance::Executing);
                    self.some("run, then written", &[Some(run), Some(Put(committed))]);
                }
                _ => self.run_there(Some(Put(next)), answers(Post::Ran)),
            },
            Ok(place) if place == committed => match from.instance {
                Instance::Gone if self.broken(Break::AskedCalledLost) => {
                    let lost = Put(place_of(&State::Lost));
                    self.some("called lost", &[Some(lost), answers(Post::Lost)]);
                }
                // Nobody knows whether it has executed.
                Instance::Gone => {}
                _ => self.run_there(None, answers(Post::Ran)),
            },
            Ok(_) => self.some("runs, again", &[answers(Post::Ran)]),
        }
    }

    fn run_there(&mut self, first: Option<Effect>, answer: Option<Effect>) {
        let running = receive(place_of(&State::Committed), &Message::Ran).expect("committed");
        let run = Some(Become(Instance::Executing));
        self.some("run", &[first, run, Some(Put(running)), answer]);
    }

    fn some(&mut self, name: &'static str, effects: &[Option<Effect>]) {
        let effects: Vec<Effect> = effects.iter().flatten().copied().collect();
        if !effects.is_empty() {
            self.destination_step(name, &effects);
        }
    }

    fn abort(&mut self, asked: bool) {
        let answers = |post| asked.then_some(Send(post));
        match receive(self.from.place, &Message::Abort) {
            Ok(given_up) => {
                let none = Some(Become(Instance::None));
                self.some(
                    "aborted",
                    &[Some(Put(given_up)), none, answers(Post::AbortAccepted)],
                );
            }
            Err(Rejected::Committed) => {
                self.some("abort rejected", &[answers(Post::AbortRejected)])
            }
            Err(_) => {}
        }
    }

    /// What the destination does by itself.
    fn reconcile(&mut self) {
        let from = self.from;
        let ended = receive(from.place, &Message::LeaseEnded);
        if let (true, Ok(aborted)) = (from.place != 0, ended)
            && aborted != from.place
        {
            let lease = [Put(aborted), Become(Instance::None)];
            self.destination_step("the lease has ended", &lease);
        }
        if from.is_prepared() && self.broken(Break::LeaseEndsPrepared) {
            let aborted = Put(place_of(&State::Aborted));
            self.destination_step("the lease has ended", &[aborted, Become(Instance::None)]);
        }
        if from.is_prepared() && self.broken(Break::RunInDoubt) {
            self.run_there(Some(Put(place_of(&State::Committed))), None);
        }
        let doubtful = from.is_prepared() || from.risk_taken && from.is(State::is_committed);
        if doubtful && !from.has(Post::Ask) {
            self.destination_step("in doubt, the source is asked", &[Send(Post::Ask)]);
        }
        if from.is(|state| *state == State::Committed) && from.instance != Instance::Gone {
            self.run_there(None, None);
        }
        if from.is(State::is_given_up) && from.instance != Instance::None {
            self.destination_step("discarded", &[Become(Instance::None)]);
        }
    }

    fn decide(&mut self) {
        let from = self.from;
        if from.left.decisions == 0 {
            return;
        }
        let gone = from.instance == Instance::Gone;
        if from.is_prepared() {
            let run = match gone {
                true => &Message::Gone,
                false => &Message::OperatorRun,
            };
            self.decided("the operator has it run", run, !gone);
            self.decided("the operator discards it", &Message::OperatorDiscard, false);
        }
        if from.is(|state| *state == State::Committed) && gone {
            self.decided("the operator discards it", &Message::OperatorDiscard, false);
        }
    }

    fn decided(&mut self, name: &'static str, message: &Message, risk: bool) {
        let place = receive(self.from.place, message).expect("it is offered");
        self.change(name, true, |world| {
            world.left.decisions -= 1;
            world.risk_taken |= risk;
            world.place = place;
        });
    }

    fn faults(&mut self) {
        let from = self.from;
        if from.left.crashes > 0 && from.source_up {
            self.change("the source crashes", true, |world| {
                crash(world, Side::Source)
            });
        }
        if from.left.crashes > 0 && from.destination_up {
            self.change("the destination crashes", true, |world| {
                crash(world, Side::Destination);
            });
        }
        let alive = !matches!(from.instance, Instance::None | Instance::Gone);
        if from.left.losses > 0 && alive {
            self.change("the instance is lost", true, |world| {
                world.left.losses -= 1;
                world.instance = Instance::Gone;
            });
        }
    }
}

const CREATED: [Line; 5] = [
    Line::Done(Number::RequestContainer),
    Line::Started(Number::CreateContainer),
    Line::Done(Number::CreateContainer),
    Line::Started(Number::ConfirmContainer),
    Line::Done(Number::ConfirmContainer),
];
const DELIVERED: [Line; 6] = [
    Line::Done(Number::Checkpoint),
    Line::Started(Number::Transfer),
    Line::Done(Number::Transfer),
    Line::Started(Number::ImageComplete),
    Line::Done(Number::ImageComplete),
    Line::Started(Number::RequestRestore),
];
const PREPARED: [Line; 2] = [
    Line::Done(Number::RequestRestore),
    Line::Started(Number::Restore),
];
const COMMITTED: [Line; 2] = [Line::Done(Number::Restore), Line::Committed];
const RAN: [Line; 2] = [Line::Done(Number::Commit), Line::Started(Number::Announce)];
const ANNOUNCED: [Line; 2] = [
    Line::Done(Number::Announce),
    Line::Started(Number::DeleteSource),
];

fn crash(world: &mut World, side: Side) {
    world.left.crashes -= 1;
    match side {
        Side::Source => {
            world.source_up = false;
            world.memory = world.disk;
        }
        Side::Destination => world.destination_up = false,
    }
}

fn apply(world: &mut World, sagas: &mut Sagas, effect: Effect) {
    let write = |world: &mut World, sagas: &mut Sagas, line: Line| {
        world.memory = sagas.write(world.memory, line);
        world.committed |= line == Line::Committed;
    };
    match effect {
        Effect::Lazy(lines) => {
            for line in lines {
                write(world, sagas, *line);
            }
        }
        Effect::Disk(lines) => {
            for line in lines {
                write(world, sagas, *line);
            }
            world.disk = world.memory;
        }
        Effect::Undoing(step) => {
            write(world, sagas, Line::Undoing(step));
            world.disk = world.memory;
        }
        Effect::Undone(step) => {
            write(world, sagas, Line::Undone(step));
            world.disk = world.memory;
        }
        Effect::Source(copied) => world.copied = copied,
        Effect::Put(place) => world.place = place,
        Effect::Destination(instance) => {
            // What is gone does not come back.
            let back = world.instance == Instance::Gone && instance != Instance::None;
            if !back {
                world.instance = instance;
                world.has_run |= instance == Instance::Executing;
            }
        }
        Effect::Delivered => world.delivered = true,
        Effect::Send(post) => world.sent |= 1 << post as u32,
    }
}
