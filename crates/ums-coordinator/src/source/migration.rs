//! A migration at its source: its saga, its place in the journal, and its view.

use std::sync::Arc;
use std::time::Duration;

use ums_api::client::{MigrationView, Progress};
use ums_api::http::{AgentClient, ClientError};
use ums_api::peer::CloseRequest;
use ums_api::problem::Effect;
use ums_core::budget::{Part, Span};
use ums_core::id::MigrationId;
use ums_core::preflight::Refusal;
use ums_core::report::{Bytes, Outcome};
use ums_core::saga::{self, Action, Event, Output, Saga, SagaState, TakenBackBy};
use ums_core::step::Step;

use super::{abandon, ending_in_words};
use crate::clock::Stopwatch;
use crate::config::{Limits, PeerConfig};
use crate::journal::{JournalError, Write};
use crate::peer::PeerClient;
use crate::shared::Shared;
use crate::status::{Live, final_progress};

/// Why a migration is given up.
#[derive(Debug)]
pub(crate) struct Failure {
    /// In which step; `None` between steps.
    pub(super) step: Option<Step>,
    pub(super) error: String,
    /// Whether the step certainly had no effect.
    pub(super) without_effect: bool,
    pub(super) refusals: Vec<Refusal>,
}

impl Failure {
    /// Not a step's failure.
    pub(crate) fn between(error: impl Into<String>) -> Self {
        Self {
            step: None,
            error: error.into(),
            without_effect: false,
            refusals: Vec::new(),
        }
    }

    /// A step failed, and may have had an effect.
    pub(super) fn of(step: Step, error: impl Into<String>) -> Self {
        Self {
            step: Some(step),
            ..Self::between(error)
        }
    }

    /// A step was refused, and had no effect.
    pub(super) fn refused(step: Step, refusals: Vec<Refusal>) -> Self {
        let words: Vec<String> = refusals.iter().map(ToString::to_string).collect();
        Self {
            step: Some(step),
            error: words.join("; "),
            without_effect: true,
            refusals,
        }
    }
}

/// One migration at its source.
pub(crate) struct Migration {
    pub(super) shared: Arc<Shared>,
    pub(super) stopwatch: Stopwatch,
    pub(super) live: Arc<Live>,
    saga: Saga,
    /// Events that are durably in the journal.
    written: u32,
    /// Events that are not, because they were written lazily or could not be written. They go
    /// (again) with the next ones: a journal that had to be reopened has lost its lazy writes.
    unwritten: Vec<Event>,
    /// When the destination was first told of the commit.
    pub(super) told_at_us: Option<u64>,
    /// When the destination had all.
    delivered_at_us: Option<u64>,
    /// When *prepared* came.
    prepared_at_us: Option<u64>,
    /// Parts of the downtime since the delivery. A restart forgets them.
    spans: Vec<Span>,
    /// The destination as it was known at the beginning: one that is forgotten meanwhile is spoken to
    /// until the end.
    began_with: Option<PeerConfig>,
}

impl Migration {
    pub(crate) fn new(shared: Arc<Shared>, saga: Saga, written: u32, live: Arc<Live>) -> Self {
        let stopwatch = Stopwatch::of(saga.request());
        let began_with = shared.settings.peer(&saga.request().destination);
        let unwritten = Vec::new();
        Self {
            shared,
            stopwatch,
            live,
            saga,
            written,
            unwritten,
            told_at_us: None,
            delivered_at_us: None,
            prepared_at_us: None,
            spans: Vec::new(),
            began_with,
        }
    }

    pub(super) fn saga(&self) -> &Saga {
        &self.saga
    }

    pub(super) fn id(&self) -> MigrationId {
        self.saga.request().id
    }

    pub(super) fn agent(&self) -> AgentClient {
        self.shared.agents.of(&self.saga.request().service)
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.shared.config.limits
    }

    pub(super) fn now_us(&self) -> u64 {
        self.stopwatch.now_us()
    }

    /// A part of the downtime that was spent here, or between the two.
    pub(super) fn spent(&mut self, part: Part, us: u64) {
        self.spans.push(Span { part, us });
    }

    /// All that were told.
    pub(super) fn all_spent(&mut self) -> Vec<Span> {
        std::mem::take(&mut self.spans)
    }

    /// The destination has confirmed at this time that it has all.
    pub(super) fn delivered(&mut self, at_us: u64) {
        self.delivered_at_us = Some(at_us);
    }

    /// *Prepared* has come, asked for at this time; the destination took so long.
    pub(super) fn prepared(&mut self, asked_us: u64, processing_us: u64) {
        let now_us = self.now_us();
        let delivered_us = self.delivered_at_us.unwrap_or(asked_us);
        self.spent(Part::HandOn, asked_us.saturating_sub(delivered_us));
        let exchange_us = now_us.saturating_sub(asked_us);
        self.spent(Part::Link, exchange_us.saturating_sub(processing_us));
        self.prepared_at_us = Some(now_us);
    }

    /// The destination is told of the commit at this time.
    pub(super) fn told(&mut self, at_us: u64) {
        if self.told_at_us.is_none() {
            self.told_at_us = Some(at_us);
            let since = self.prepared_at_us.unwrap_or(at_us);
            self.spent(Part::Commit, at_us.saturating_sub(since));
        }
    }

    /// Where the destination is; `None` when it was no peer any more when this was taken up.
    pub(super) fn peer_config(&self) -> Option<PeerConfig> {
        let known = self.shared.settings.peer(&self.saga.request().destination);
        known.or_else(|| self.began_with.clone())
    }

    /// The destination's Coordinator, in the version that was agreed on with it.
    pub(super) fn peer(&self) -> Option<PeerClient> {
        let name = &self.saga.request().destination;
        let client = self.shared.peers.client(name, self.peer_config()?.address);
        Some(client.speaking(self.saga.peer_version()))
    }

    /// Begins a step.
    pub(super) async fn start(&mut self, step: Step) -> Result<(), Failure> {
        let event = Event::StepStarted {
            step,
            at_us: self.now_us(),
        };
        self.record(vec![event], Write::Durable)
            .await
            .map_err(|error| Failure::of(step, chain(&error)))
    }

    /// Ends a step.
    pub(super) async fn done(&mut self, step: Step, output: Output) -> Result<(), Failure> {
        // What is done is certain only to us: a crash finds the step begun, and undoes it.
        let event = Event::StepDone {
            step,
            at_us: self.now_us(),
            output,
        };
        self.record(vec![event], Write::Lazy)
            .await
            .map_err(|error| Failure::of(step, chain(&error)))
    }

    /// Writes events and applies them; on an error neither.
    pub(super) async fn record(
        &mut self,
        events: Vec<Event>,
        write: Write,
    ) -> Result<(), JournalError> {
        let after = self.after(&events);
        let mut lines = self.unwritten.clone();
        lines.extend(events);
        let lines = Arc::new(lines);
        let (id, first, open) = (self.id(), self.written, after.what_next() != Action::Rest);
        let to_write = Arc::clone(&lines);
        self.shared
            .journal(move |journal| journal.append(id, first, &to_write, open, write))
            .await?;
        match write {
            Write::Durable => {
                self.written += u32::try_from(lines.len()).unwrap_or(u32::MAX);
                self.unwritten.clear();
            }
            Write::Lazy => self.unwritten = Arc::unwrap_or_clone(lines),
        }
        self.saga = after;
        self.publish();
        Ok(())
    }

    /// Applies events, and writes them if that can be done: what undoes a migration must not wait
    /// for a disk that is full. What is not written is undone again after a restart.
    pub(super) async fn note(&mut self, event: Event) {
        if let Err(error) = self.record(vec![event.clone()], Write::Durable).await {
            tracing::warn!(migration = %self.id(), error = chain(&error), "the journal can't be written");
            self.saga = self.after(std::slice::from_ref(&event));
            self.unwritten.push(event);
            self.publish();
        }
    }

    /// Writes events, however long that takes.
    pub(super) async fn record_until_written(&mut self, events: Vec<Event>) {
        let mut pause = Pause::new(self.limits());
        while let Err(error) = self.record(events.clone(), Write::Durable).await {
            self.waiting(&chain(&error));
            pause.wait().await;
        }
    }

    fn after(&self, events: &[Event]) -> Saga {
        let mut saga = self.saga.clone();
        for event in events {
            // Only this module's callers make events, in an order that the tests of the saga walk
            // through; an illegal one is a mistake here, and must not be written.
            saga = match saga::next(Some(saga), event) {
                Ok(saga) => saga,
                Err(error) => panic!("{error}"),
            };
        }
        saga
    }

    /// Gives the migration up.
    pub(super) async fn give_up(&mut self, failure: Failure) {
        if *self.saga.phase() != SagaState::Forward {
            return;
        }
        // From here on an abort that comes would change nothing.
        let error = failure.error.clone();
        tracing::warn!(migration = %self.id(), step = ?failure.step, error, "abandoned");
        let event = abandon(&self.saga, failure, self.now_us());
        self.note(event).await;
    }

    /// The commit (UMS §III-B, Step 13; DESIGN: commit before the first instruction).
    ///
    /// # Guarantees
    /// After `Ok` the commit is in the journal, durably. After `Err` it is not, and never will be.
    pub(super) async fn commit(&mut self) -> Result<(), Failure> {
        self.live.close().map_err(Failure::between)?;
        let at_us = self.now_us();
        let done = |step| Event::StepDone {
            step,
            at_us,
            output: Output::None,
        };
        let events = vec![done(Step::Restore), Event::Committed { at_us }];
        match self.record(events, Write::Durable).await {
            Ok(()) => Ok(()),
            Err(error) => self.settle_doubt(&error).await,
        }
    }

    /// The commit is taken back: what is here is the service after all. Returns when that is in the
    /// journal, durably.
    pub(super) async fn take_back(&mut self, by: TakenBackBy, reason: String) {
        tracing::warn!(migration = %self.id(), ?by, reason, "taken back after the commit");
        let at_us = self.now_us();
        self.record_until_written(vec![Event::TakenBack { at_us, by, reason }])
            .await;
        self.live.withdraw();
    }

    /// A person is needed, because of this. It is tried on.
    pub(super) fn stuck(&self, error: &str) {
        self.live.update(|view| {
            view.report.outcome = Outcome::Stuck;
            view.report.error = Some(error.to_owned());
        });
    }

    /// Whether a commit that could not be written was written after all is known only from the
    /// journal, opened again. Until it is known the service stays frozen: to thaw it would be a
    /// guess.
    async fn settle_doubt(&mut self, error: &JournalError) -> Result<(), Failure> {
        let reason = format!("the commit could not be written: {}", chain(error));
        let id = self.id();
        let mut pause = Pause::new(self.limits());
        loop {
            match self.shared.journal(move |journal| journal.saga(id)).await {
                Ok(Some((saga, written))) if saga.is_committed() => {
                    self.saga = saga;
                    self.written = written;
                    self.unwritten.clear();
                    return Ok(());
                }
                Ok(_) => {
                    let abandoned = abandon(&self.saga, Failure::between(&reason), self.now_us());
                    if self.record(vec![abandoned], Write::Durable).await.is_ok() {
                        return Err(Failure::between(reason));
                    }
                }
                Err(error) => self.waiting(&chain(&error)),
            }
            pause.wait().await;
        }
    }

    /// Writes the report.
    pub(super) async fn finish(&mut self, outcome: Outcome) {
        let report = self.saga.report(self.now_us(), self.moved());
        let error = report.error.clone();
        tracing::info!(migration = %self.id(), outcome = ending_in_words(outcome), error, downtime_ms = report.downtime_ms, "finished");
        self.shared.registry.release(self.id());
        let finished = Event::Finished {
            report: Box::new(report.clone()),
        };
        if self
            .record(vec![finished.clone()], Write::Durable)
            .await
            .is_err()
        {
            // How it ended is known, whether or not it can be written now.
            self.live.update(|view| view.report = report);
            self.record_until_written(vec![finished]).await;
        }
    }

    /// From now on the journal tells about it.
    pub(super) fn leave(&self) {
        self.shared.registry.forget(self.id());
    }

    /// What is known to have been moved, of a copy that is under way.
    pub(super) fn moved(&self) -> Option<Bytes> {
        Some(self.live.view().report.bytes)
    }

    /// What the destination's history is told.
    pub(super) fn account(&self) -> CloseRequest {
        let (downtime_us, freeze_us) = match self.saga.output(Step::Commit) {
            Some(Output::Running {
                downtime_us,
                freeze_us,
                ..
            }) => (*downtime_us, *freeze_us),
            _ => (None, None),
        };
        let bytes = self.saga.report(self.now_us(), self.moved()).bytes;
        CloseRequest {
            downtime_us,
            freeze_us,
            bytes,
        }
    }

    /// Tells those who watch.
    fn publish(&self) {
        let mut report = self.saga.report(self.now_us(), self.moved());
        if matches!(self.saga.what_next(), Action::Finish(_)) {
            // It is over when the report is written, so that all who ask are told the same.
            report.outcome = Outcome::Running;
        }
        let refusals = self.saga.refusals().to_vec();
        let aborting = matches!(self.saga.phase(), SagaState::Abandoning(_));
        self.live.update(|view| {
            view.progress.step = self.saga.current_step().map(Step::number);
            view.progress.phase = phase_in_words(&self.saga);
            view.progress.aborting |= aborting;
            view.progress.elapsed_ms = report.total_ms;
            view.report = report;
            if !refusals.is_empty() {
                view.refusals = refusals;
            }
        });
    }

    /// Tells those who watch how much of the memory is still to go over while the service runs there.
    pub(super) fn leaving(&self, pages: u64) {
        let elapsed_ms = self.now_us() / 1000;
        self.live.update(|view| {
            view.progress.phase = format!(
                "running at the destination; {} MiB still come from here",
                pages.div_ceil(256)
            );
            view.progress.elapsed_ms = elapsed_ms;
        });
    }

    /// Tells those who watch what is being waited for.
    pub(super) fn waiting(&self, error: &str) {
        tracing::warn!(migration = %self.id(), error, "waiting to try again");
        let elapsed_ms = self.now_us() / 1000;
        self.live.update(|view| {
            view.progress.phase = format!("waiting to try again: {error}");
            view.progress.elapsed_ms = elapsed_ms;
        });
    }
}

/// What is being done, in words.
fn phase_in_words(saga: &Saga) -> String {
    let words = match saga.what_next() {
        Action::Run(Step::OpenDataPath) => "copying files",
        Action::Run(Step::Checkpoint | Step::Transfer) => "frozen, streaming memory",
        Action::Run(Step::RequestRestore | Step::Restore) => "restoring",
        Action::Run(Step::Commit) => "committed, running at the destination",
        Action::Run(step) => step.name(),
        Action::Commit => "committing",
        Action::Compensate(Step::Checkpoint) => "resuming at the source",
        Action::Compensate(_) => "undoing",
        Action::Stuck { .. } => "stuck",
        Action::Finish(outcome) => ending_in_words(outcome),
        Action::CatchUp(_) => "abandoned; the destination still has to be told",
        Action::Rest => "over",
    };
    words.to_owned()
}

/// The view of a migration from its journal, while it is under way.
pub(crate) fn view_of(saga: &Saga) -> MigrationView {
    let now_us = Stopwatch::of(saga.request()).now_us();
    let report = saga.report(now_us, None);
    let progress = Progress {
        phase: phase_in_words(saga),
        step: saga.current_step().map(Step::number),
        elapsed_ms: report.total_ms,
        ..Progress::default()
    };
    let refusals = saga.refusals().to_vec();
    MigrationView {
        report,
        progress,
        refusals,
        asked_at_ms: saga.request().asked_at_ms,
        resolvable: false,
    }
}

/// The view of a migration that is over, from its journal.
pub(crate) fn finished_view(saga: &Saga) -> MigrationView {
    let mut view = view_of(saga);
    let (step, bytes) = (view.progress.step, view.report.bytes.wire);
    let words = ending_in_words(view.report.outcome);
    view.progress = final_progress(step, words, view.report.total_ms, bytes);
    view
}

/// Pauses that grow.
pub(crate) struct Pause {
    next: Duration,
    max: Duration,
}

impl Pause {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            next: limits.retry_first,
            max: limits.retry_max,
        }
    }

    pub(crate) async fn wait(&mut self) {
        tokio::time::sleep(self.next).await;
        self.next = (self.next * 2).min(self.max);
    }
}

/// An error with its causes.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// Whether an error says that nothing happened.
pub(super) fn without_effect(error: &ClientError) -> bool {
    error.effect() == Effect::None
}
