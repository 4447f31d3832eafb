//! The source's journal: states of the program's own saga, each with a number, so that a state of
//! the model is small.

use std::collections::HashMap;

use ums_core::report::{Bytes, Outcome};
use ums_core::saga::{self, Action, Event, Output, Request, Saga, SagaState, TakenBackBy};
use ums_core::step::Step;
use ums_core::technique::{Approach, Technique};

/// A saga's number.
pub(crate) type Id = u16;

/// What is written to the journal, without the data that no transition looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Line {
    Started(Step),
    Done(Step),
    Abandoned,
    Committed,
    TakenBack(TakenBackBy),
    Undoing(Step),
    Undone(Step),
    PutOff(Step),
    Conflict(Step),
    Finished,
}

/// All sagas that were met with.
pub(crate) struct Sagas {
    all: Vec<Saga>,
    numbers: HashMap<String, Id>,
    nexts: HashMap<(Id, Line), Id>,
}

impl Sagas {
    /// With one that was just asked for, number 0.
    pub(crate) fn new() -> Self {
        let request = Request {
            id: "0190f0f0-0000-7000-8000-000000000001"
                .parse()
                .expect("an id"),
            service: "redis".parse().expect("a name"),
            source: "a".parse().expect("a name"),
            destination: "b".parse().expect("a name"),
            approach: None,
            technique: None,
            max_downtime_ms: None,
            accept_loss: false,
            engine: None,
            asked_at_ms: 0,
            asked_at_ns: 0,
            boot: String::new(),
        };
        let first = saga::next(None, &Event::Requested(request)).expect("a beginning");
        let mut sagas = Self {
            all: Vec::new(),
            numbers: HashMap::new(),
            nexts: HashMap::new(),
        };
        sagas.number(first);
        sagas
    }

    fn number(&mut self, saga: Saga) -> Id {
        let all = &mut self.all;
        *self.numbers.entry(format!("{saga:?}")).or_insert_with(|| {
            all.push(saga);
            Id::try_from(all.len() - 1).expect("few enough sagas")
        })
    }

    pub(crate) fn get(&self, id: Id) -> &Saga {
        &self.all[usize::from(id)]
    }

    /// The program's transition. The model writes only what the program may: an illegal line is a
    /// mistake of the model, or of the program, and ends the test.
    pub(crate) fn write(&mut self, id: Id, line: Line) -> Id {
        if let Some(next) = self.nexts.get(&(id, line)) {
            return *next;
        }
        let saga = self.get(id).clone();
        let event = event(&saga, line);
        let next = saga::next(Some(saga), &event).expect("the program may write it");
        let next = self.number(next);
        self.nexts.insert((id, line), next);
        next
    }

    pub(crate) fn what_next(&self, id: Id) -> Action {
        self.get(id).what_next()
    }

    pub(crate) fn is_forward(&self, id: Id) -> bool {
        *self.get(id).phase() == SagaState::Forward
    }
}

fn event(saga: &Saga, line: Line) -> Event {
    let (at_us, error) = (0, String::new());
    match line {
        Line::Started(step) => Event::StepStarted { step, at_us },
        Line::Done(step) => Event::StepDone {
            step,
            at_us,
            output: output(step),
        },
        Line::Abandoned => Event::Abandoned {
            at_us,
            reason: error,
        },
        Line::Committed => Event::Committed { at_us },
        Line::TakenBack(by) => Event::TakenBack {
            at_us,
            by,
            reason: error,
        },
        Line::Undoing(step) => Event::CompensationStarted { step, at_us },
        Line::Undone(step) => Event::CompensationDone {
            step,
            at_us,
            frozen_since_us: None,
        },
        Line::PutOff(step) => Event::CompensationPutOff { step, at_us, error },
        Line::Conflict(step) => Event::Conflict { step, at_us, error },
        Line::Finished => Event::Finished {
            report: Box::new(saga.report(0, None)),
        },
    }
}

fn output(step: Step) -> Output {
    match step {
        Step::DetermineApproach => Output::Planned {
            approach: Approach::OrchestratorLevel,
            technique: Technique::StopAndCopy,
            endpoint: None,
            losses: Vec::new(),
            predicted: None,
        },
        Step::ConfirmContainer => Output::Created {
            endpoints: Vec::new(),
        },
        Step::ImageComplete => Output::Delivered {
            frozen_at_us: 0,
            digest: String::new(),
            bytes: Bytes::default(),
            rounds: 0,
            spans: Vec::new(),
        },
        Step::Commit => Output::Running {
            downtime_us: Some(0),
            freeze_us: Some(0),
            spans: Vec::new(),
        },
        _ => Output::None,
    }
}

/// How a saga that is over ended.
pub(crate) fn outcome(saga: &Saga) -> Option<Outcome> {
    match saga.phase() {
        SagaState::Ended(report) => Some(report.outcome),
        _ => None,
    }
}
