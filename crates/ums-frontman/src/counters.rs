//! Counting what becomes of connections.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::control::Counts;

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Finished,
    Broken,
    RefusedBound,
    RefusedTime,
    RefusedRetired,
    Gone,
    Cut,
}

/// The live form of [`Counts`]: statistics, on which nothing depends, so relaxed order suffices.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    accepted: AtomicU64,
    holding: AtomicU64,
    leading: AtomicU64,
    finished: AtomicU64,
    broken: AtomicU64,
    refused_bound: AtomicU64,
    refused_time: AtomicU64,
    refused_retired: AtomicU64,
    gone: AtomicU64,
    cut: AtomicU64,
}

impl Counters {
    pub(crate) fn accepted(&self) {
        self.accepted.fetch_add(1, Relaxed);
    }

    pub(crate) fn ended(&self, outcome: Outcome) {
        let counter = match outcome {
            Outcome::Finished => &self.finished,
            Outcome::Broken => &self.broken,
            Outcome::RefusedBound => &self.refused_bound,
            Outcome::RefusedTime => &self.refused_time,
            Outcome::RefusedRetired => &self.refused_retired,
            Outcome::Gone => &self.gone,
            Outcome::Cut => &self.cut,
        };
        counter.fetch_add(1, Relaxed);
    }

    /// Counts one connection among those held, for as long as the guard lives.
    pub(crate) fn holding(&self) -> Guard<'_> {
        Guard::new(&self.holding)
    }

    /// Counts one connection among those led, for as long as the guard lives.
    pub(crate) fn leading(&self) -> Guard<'_> {
        Guard::new(&self.leading)
    }

    pub(crate) fn read(&self) -> Counts {
        Counts {
            accepted: self.accepted.load(Relaxed),
            holding: self.holding.load(Relaxed),
            leading: self.leading.load(Relaxed),
            finished: self.finished.load(Relaxed),
            broken: self.broken.load(Relaxed),
            refused_bound: self.refused_bound.load(Relaxed),
            refused_time: self.refused_time.load(Relaxed),
            refused_retired: self.refused_retired.load(Relaxed),
            gone: self.gone.load(Relaxed),
            cut: self.cut.load(Relaxed),
        }
    }
}

/// Counts down again when dropped.
pub(crate) struct Guard<'a>(&'a AtomicU64);

impl<'a> Guard<'a> {
    fn new(counter: &'a AtomicU64) -> Self {
        counter.fetch_add(1, Relaxed);
        Self(counter)
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
