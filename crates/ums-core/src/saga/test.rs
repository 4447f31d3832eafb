use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::plan;
use crate::preflight::Estimates;
use crate::report::Bytes;
use crate::technique::{Approach, Technique};

fn request() -> Request {
    Request {
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
        asked_at_ms: 1,
        asked_at_ns: 1,
        boot: "boot".to_owned(),
    }
}

fn output(step: Step) -> Output {
    match step {
        Step::DetermineApproach => Output::Planned {
            approach: Approach::OrchestratorLevel,
            technique: Technique::StopAndCopy,
            endpoint: Some("10.0.0.1:80".parse().expect("an address")),
            losses: Vec::new(),
            predicted: None,
        },
        Step::ConfirmContainer => Output::Created {
            endpoints: vec!["10.0.0.2:80".parse().expect("an address")],
        },
        Step::ImageComplete => Output::Delivered {
            frozen_at_us: 0,
            digest: "d".to_owned(),
            bytes: Bytes {
                memory: 3,
                wire: 2,
                filesystem: 1,
                frozen: 1,
            },
            rounds: 0,
            spans: Vec::new(),
        },
        Step::Commit => Output::Running {
            downtime_us: Some(1500),
            freeze_us: Some(1000),
            spans: Vec::new(),
        },
        _ => Output::None,
    }
}

/// Every event there is, with fixed times.
fn events(saga: &Saga) -> Vec<Event> {
    let mut events = vec![
        Event::Requested(request()),
        Event::Abandoned {
            at_us: 0,
            reason: "asked to".to_owned(),
        },
        Event::Committed { at_us: 0 },
        taken_back(TakenBackBy::Lost),
        taken_back(TakenBackBy::Operator),
    ];
    for step in Step::ALL {
        let error = || "broken".to_owned();
        events.extend([
            Event::StepStarted { step, at_us: 0 },
            Event::StepDone {
                step,
                at_us: 0,
                output: output(step),
            },
            failed(step, false),
            failed(step, true),
            Event::CompensationStarted { step, at_us: 0 },
            Event::CompensationDone {
                step,
                at_us: 0,
                frozen_since_us: None,
            },
            Event::CompensationFailed {
                step,
                at_us: 0,
                error: error(),
            },
            Event::CompensationPutOff {
                step,
                at_us: 0,
                error: error(),
            },
            Event::Conflict {
                step,
                at_us: 0,
                error: error(),
            },
        ]);
    }
    for outcome in [
        Outcome::Running,
        Outcome::Completed,
        Outcome::Abandoned,
        Outcome::Stuck,
    ] {
        let report = Box::new(MigrationReport {
            outcome,
            ..saga.report(0, None)
        });
        events.push(Event::Finished { report });
    }
    events
}

fn taken_back(by: TakenBackBy) -> Event {
    Event::TakenBack {
        at_us: 0,
        by,
        reason: "lost there".to_owned(),
    }
}

fn failed(step: Step, without_effect: bool) -> Event {
    let error = "broken".to_owned();
    Event::StepFailed {
        step,
        at_us: 0,
        error,
        without_effect,
        refusals: Vec::new(),
    }
}

/// The event that does what comes next, when all goes well.
fn obey(saga: &Saga) -> Option<Event> {
    let event = match saga.what_next() {
        Action::Run(step) if saga.is_under_way(step) => Event::StepDone {
            step,
            at_us: 0,
            output: output(step),
        },
        Action::Run(step) => Event::StepStarted { step, at_us: 0 },
        Action::Commit => Event::Committed { at_us: 0 },
        Action::Compensate(step) | Action::Stuck { step, .. } => {
            if saga.is_being_undone(step) {
                Event::CompensationDone {
                    step,
                    at_us: 0,
                    frozen_since_us: None,
                }
            } else {
                Event::CompensationStarted { step, at_us: 0 }
            }
        }
        Action::CatchUp(step) => Event::CompensationDone {
            step,
            at_us: 0,
            frozen_since_us: None,
        },
        Action::Finish(_) => Event::Finished {
            report: Box::new(saga.report(0, None)),
        },
        Action::Rest => return None,
    };
    Some(event)
}

fn begun() -> Saga {
    next(None, &Event::Requested(request())).expect("the first line")
}

fn kind(event: &Event) -> String {
    let text = format!("{event:?}");
    text.split([' ', '(']).next().unwrap_or_default().to_owned()
}

fn phase(saga: &Saga) -> &'static str {
    match (saga.phase(), saga.what_next()) {
        (SagaState::Forward, Action::Commit) => "ready to commit",
        (SagaState::Forward, _) => "forward",
        (SagaState::Abandoning(_), Action::Stuck { .. }) => "stuck",
        (SagaState::Abandoning(_), Action::Finish(_)) => "undone",
        (SagaState::Abandoning(_), _) => "abandoning",
        (SagaState::Committed, Action::Finish(_)) => "done",
        (SagaState::Committed, _) => "committed",
        (SagaState::Ended(_), Action::CatchUp(_)) => "ended, put off",
        (SagaState::Ended(_), _) => "ended",
    }
}

/// Walks every state that can be reached by any legal events in any order.
#[test]
fn every_legal_transition() {
    let mut queue = vec![begun()];
    let mut seen = BTreeSet::from([format!("{:?}", begun())]);
    let mut legal = BTreeSet::new();
    while let Some(saga) = queue.pop() {
        for event in events(&saga) {
            let Ok(after) = next(Some(saga.clone()), &event) else {
                continue;
            };
            legal.insert(format!(
                "{:15} {:20} {}",
                phase(&saga),
                kind(&event),
                phase(&after)
            ));
            let backwards = matches!(after.phase(), SagaState::Forward | SagaState::Abandoning(_));
            let taken_back = matches!(event, Event::TakenBack { .. });
            assert!(
                !(saga.is_committed() && backwards) || taken_back,
                "{saga:?} left the commit by {event:?}"
            );
            if seen.insert(format!("{after:?}")) {
                queue.push(after);
            }
        }
        if let Some(event) = obey(&saga) {
            assert!(
                next(Some(saga.clone()), &event).is_ok(),
                "{saga:?} can't obey by {event:?}"
            );
        }
    }
    assert!(seen.len() > 100, "only {} states were reached", seen.len());
    let table: String = legal.iter().map(|line| format!("{line}\n")).collect();
    let expected = "\
abandoning      CompensationDone     abandoning
abandoning      CompensationDone     undone
abandoning      CompensationFailed   abandoning
abandoning      CompensationFailed   stuck
abandoning      CompensationPutOff   undone
abandoning      CompensationStarted  abandoning
abandoning      Conflict             undone
committed       StepDone             committed
committed       StepDone             done
committed       StepStarted          committed
committed       TakenBack            abandoning
done            Finished             ended
ended, put off  CompensationDone     ended
ended, put off  Conflict             ended
forward         Abandoned            abandoning
forward         Abandoned            undone
forward         StepDone             forward
forward         StepDone             ready to commit
forward         StepFailed           abandoning
forward         StepFailed           undone
forward         StepStarted          forward
ready to commit Abandoned            abandoning
ready to commit Committed            committed
stuck           CompensationDone     abandoning
stuck           CompensationDone     undone
stuck           CompensationFailed   stuck
stuck           CompensationPutOff   undone
stuck           Conflict             undone
undone          Finished             ended
undone          Finished             ended, put off
";
    assert_eq!(table, expected, "\n{table}");
}

#[test]
fn compensations_run_in_reverse_and_only_for_what_was_begun() {
    // A failure at each step: what is undone, in order.
    let undone = |fail_at: Step, without_effect: bool| {
        let mut saga = begun();
        while saga.what_next() != Action::Run(fail_at) {
            saga = next(Some(saga.clone()), &obey(&saga).expect("an event")).expect("legal");
        }
        saga = next(
            Some(saga),
            &Event::StepStarted {
                step: fail_at,
                at_us: 0,
            },
        )
        .expect("legal");
        saga = next(Some(saga), &failed(fail_at, without_effect)).expect("legal");
        let mut order = Vec::new();
        while let Some(event) = obey(&saga) {
            if let Event::CompensationDone { step, .. } = event {
                order.push(step.number());
            }
            saga = next(Some(saga), &event).expect("legal");
        }
        let report = saga.report(0, None);
        assert_eq!(report.outcome, Outcome::Abandoned);
        assert_eq!(report.error.as_deref(), Some("broken"));
        order
    };
    for step in Step::ALL.into_iter().take(12) {
        let expected: &[u8] = match step.number() {
            1 | 2 => &[],
            3..=6 => &[3],
            7 => &[7, 3],
            _ => &[8, 7, 3],
        };
        assert_eq!(undone(step, false), expected, "{step:?}");
    }
    assert_eq!(undone(Step::SendSpecification, true), [0; 0]);
    assert_eq!(undone(Step::OpenDataPath, true), [3]);
}

/// A saga in which the destination was told of the commit and has not answered.
fn told() -> Saga {
    told_by(Technique::StopAndCopy)
}

fn told_by(chosen: Technique) -> Saga {
    let mut saga = begun();
    while saga.what_next() != Action::Commit {
        let mut event = obey(&saga).expect("an event");
        if let Event::StepDone {
            output: Output::Planned { technique, .. },
            ..
        } = &mut event
        {
            *technique = chosen;
        }
        saga = next(Some(saga), &event).expect("legal");
    }
    next(Some(saga), &Event::Committed { at_us: 0 }).expect("legal")
}

#[test]
fn a_commit_is_taken_back_until_the_destination_runs_it() {
    let saga = next(Some(told()), &taken_back(TakenBackBy::Lost)).expect("legal");
    assert!(!saga.is_committed());
    assert_eq!(saga.what_next(), Action::Compensate(Step::Checkpoint));
    let runs = Event::StepDone {
        step: Step::Commit,
        at_us: 0,
        output: output(Step::Commit),
    };
    let saga = next(Some(told()), &runs).expect("legal");
    for by in [TakenBackBy::Lost, TakenBackBy::Operator] {
        assert!(next(Some(saga.clone()), &taken_back(by)).is_err());
    }
}

#[test]
fn an_operator_takes_back_what_ran_while_pages_of_it_are_here() {
    for (technique, may_be) in [
        (Technique::PostCopy, true),
        (Technique::Hybrid, true),
        (Technique::PreCopy, false),
        (Technique::StopAndCopy, false),
    ] {
        let mut saga = told_by(technique);
        while !saga.is_under_way(Step::DeleteSource) {
            saga = next(Some(saga.clone()), &obey(&saga).expect("an event")).expect("legal");
        }
        assert_eq!(saga.may_be_taken_back(), may_be, "{technique:?}");
        // It has executed: no word of the destination's can prove that it has not.
        assert!(next(Some(saga.clone()), &taken_back(TakenBackBy::Lost)).is_err());
        match next(Some(saga), &taken_back(TakenBackBy::Operator)) {
            Ok(saga) => {
                assert!(may_be, "{technique:?}");
                assert_eq!(saga.what_next(), Action::Compensate(Step::Checkpoint));
            }
            Err(_) => assert!(!may_be, "{technique:?}"),
        }
    }
}

#[test]
fn a_conflict_is_stuck_and_stays_so() {
    let conflict = Event::Conflict {
        step: Step::SendSpecification,
        at_us: 0,
        error: "it runs there".to_owned(),
    };
    let mut saga = next(Some(told()), &taken_back(TakenBackBy::Operator)).expect("legal");
    while saga.what_next() != Action::Compensate(Step::SendSpecification) {
        saga = next(Some(saga.clone()), &obey(&saga).expect("an event")).expect("legal");
    }
    saga = next(Some(saga.clone()), &obey(&saga).expect("an event")).expect("legal");
    // Found at once, or when what was put off is caught up with.
    let put_off = Event::CompensationPutOff {
        step: Step::SendSpecification,
        at_us: 0,
        error: "cut off".to_owned(),
    };
    let ended = |saga: Saga| next(Some(saga.clone()), &obey(&saga).expect("an event"));
    let at_once = next(Some(saga.clone()), &conflict).and_then(ended);
    let late = next(Some(saga), &put_off).and_then(ended);
    let late = late.and_then(|saga| next(Some(saga), &conflict));
    for saga in [at_once.expect("legal"), late.expect("legal")] {
        let report = saga.report(0, None);
        assert_eq!(report.outcome, Outcome::Stuck);
        let error = report.error.expect("a reason");
        assert!(
            error.contains("CONFLICT") && error.contains("it runs there"),
            "{error}"
        );
        assert_eq!(saga.what_next(), Action::Rest);
    }
}

#[test]
fn the_table_is_whole() {
    for (row, step) in TABLE.iter().zip(Step::ALL) {
        assert_eq!(row.step, step);
        assert_eq!(
            row.compensation == Compensation::ForwardOnly,
            step >= PIVOT,
            "{step:?}"
        );
        if let Compensation::CoveredBy(other) = row.compensation {
            assert!(
                other < step && row_of(other).compensation.acts(),
                "{step:?}"
            );
        }
    }
}

#[test]
fn the_report_tells_what_happened() {
    let mut saga = begun();
    while let Some(event) = obey(&saga) {
        saga = next(Some(saga), &event).expect("legal");
    }
    let report = saga.report(9_000_000, None);
    assert_eq!(report.outcome, Outcome::Completed);
    assert_eq!(report.downtime_ms, Some(1.5));
    assert_eq!(report.freeze_ms, Some(1.0));
    assert_eq!(report.endpoint.as_deref(), Some("10.0.0.2:80"));
    assert_eq!(report.steps.len(), 15);
    assert_eq!(report.bytes.memory, 3);
    assert_eq!(report.error, None);
}

proptest! {
    /// Any tape of good and bad luck comes to an end, and what is written is what is read: a
    /// crash at any line, and folding what the journal holds, gives the same state.
    #[test]
    fn any_luck_ends(luck in proptest::collection::vec(0..6u8, 0..200)) {
        let mut luck = luck.into_iter();
        let mut journal = vec![Event::Requested(request())];
        let mut saga = begun();
        while let Some(good) = obey(&saga) {
            let error = "broken".to_owned();
            let event = match (luck.next().unwrap_or(5), saga.what_next()) {
                (0, Action::Run(step)) => failed(step, false),
                (1, Action::Run(step)) => failed(step, true),
                (2, Action::Run(_) | Action::Commit) => {
                    Event::Abandoned { at_us: 0, reason: "restarted".to_owned() }
                }
                (0..=2, Action::Compensate(step) | Action::Stuck { step, .. }) => {
                    Event::CompensationFailed { step, at_us: 0, error }
                }
                (4, Action::Run(PIVOT)) => taken_back(TakenBackBy::Lost),
                (3, Action::Compensate(step)) => Event::CompensationPutOff { step, at_us: 0, error },
                _ => good,
            };
            if let Ok(after) = next(Some(saga.clone()), &event) {
                let line = serde_json::to_string(&event).expect("an event as JSON");
                let read: Event = serde_json::from_str(&line).expect("the same event");
                prop_assert_eq!(&read, &event);
                journal.push(read);
                prop_assert_eq!(fold(&journal).expect("legal"), Some(after.clone()));
                saga = after;
            }
        }
        let report = saga.report(0, None);
        let committed = journal.iter().any(|event| matches!(event, Event::Committed { .. }));
        let taken_back = journal.iter().any(|event| matches!(event, Event::TakenBack { .. }));
        let expected = if committed && !taken_back { Outcome::Completed } else { Outcome::Abandoned };
        prop_assert_eq!(report.outcome, expected);
    }
}

#[test]
fn what_was_refused_ends_so_and_an_earlier_journal_of_it_is_read() {
    let step = Step::DetermineApproach;
    let started = next(Some(begun()), &Event::StepStarted { step, at_us: 0 }).expect("legal");
    let Event::StepFailed { error, .. } = failed(step, true) else {
        unreachable!("that is what it makes");
    };
    let refused = Event::StepFailed {
        step,
        at_us: 0,
        error,
        without_effect: true,
        refusals: vec![Refusal::peer_unreachable("b", "closed")],
    };
    let saga = next(Some(started), &refused).expect("legal");
    assert_eq!(saga.what_next(), Action::Finish(Outcome::Refused));
    for (outcome, legal) in [
        (Outcome::Refused, true),
        (Outcome::Abandoned, true),
        (Outcome::Completed, false),
    ] {
        let report = Box::new(MigrationReport {
            outcome,
            ..saga.report(0, None)
        });
        let ended = next(Some(saga.clone()), &Event::Finished { report });
        assert_eq!(ended.is_ok(), legal, "{outcome:?}");
    }
}

/// Whatever it is, with what a journal has of the step.
fn after(saga: Saga, step: Step, done: &str) -> Saga {
    let started = Event::StepStarted { step, at_us: 1 };
    let saga = next(Some(saga), &started).expect("legal");
    let done: Event = serde_json::from_str(done).expect("an event");
    next(Some(saga), &done).expect("legal")
}

const PLANNED: &str = r#"{"event":"step-done","step":"determine-approach","at_us":2,"output":{"kind":"planned",
    "approach":"orchestrator-level","technique":"stop-and-copy","endpoint":null}}"#;

/// What the facts of both ends allow is what is done; an earlier journal knows only what the source chose.
#[test]
fn approach_technique_and_version_are_those_of_step_2() {
    let planned = || after(begun(), Step::DetermineApproach, PLANNED);
    assert_eq!(planned().chosen().1, Some(Technique::StopAndCopy));
    for earlier in [r#"{"kind":"none"}"#, r#"{"kind":"verified","losses":[]}"#] {
        let done =
            format!(r#"{{"event":"step-done","step":"verify-peer","at_us":3,"output":{earlier}}}"#);
        let saga = after(planned(), Step::VerifyPeer, &done);
        assert_eq!(saga.chosen().1, Some(Technique::StopAndCopy), "{earlier}");
        assert_eq!(saga.peer_version(), 1, "{earlier}");
        assert!(!saga.leaves_pages());
    }
    let predicted = plan::predict(
        &plan::test::service(),
        None,
        Technique::PostCopy,
        &Estimates::default(),
    );
    let chosen = Chosen {
        approach: Approach::OrchestratorLevel,
        technique: Technique::PostCopy,
        predicted,
    };
    let output = Output::Verified {
        losses: Vec::new(),
        chosen: Some(chosen.clone()),
        version: 2,
    };
    let done = Event::StepDone {
        step: Step::VerifyPeer,
        at_us: 3,
        output,
    };
    let done = serde_json::to_string(&done).expect("JSON");
    let saga = after(planned(), Step::VerifyPeer, &done);
    let approach = Some(Approach::OrchestratorLevel);
    let technique = Some(Technique::PostCopy);
    assert_eq!(
        saga.chosen(),
        (approach, technique, Some(&chosen.predicted))
    );
    assert_eq!(saga.peer_version(), 2);
    assert!(saga.leaves_pages());
    assert_eq!(saga.report(4, None).technique, technique);
}
