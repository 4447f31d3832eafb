//! What really is on the two nodes, whoever knows of it, and the judge who sees every change.
//!
//! The service keeps a ledger. Whenever an instance executes it acknowledges one more entry, so an
//! instance that begins to execute without the last acknowledged entry in its memory has lost
//! something, whether or not another one still executes.

use ums_core::id::{MigrationId, SystemName};
use ums_core::specification::Specification;

use super::fault::Side;

/// Both nodes.
#[derive(Debug, Default)]
pub(super) struct Truth {
    pub(super) nodes: [Node; 2],
    /// The last entry that the service acknowledged to a client.
    acknowledged: u64,
    executing: [bool; 2],
    /// What must never be, and was.
    pub(super) violations: Vec<String>,
    /// What happened, line by line.
    pub(super) trace: Vec<String>,
    /// Instances that were lost or ended by themselves, by a fault.
    pub(super) lost: [bool; 2],
    /// A person has decided, and taken the risk that the instance which was lost had acknowledged
    /// something.
    pub(super) risk_taken: bool,
}

/// What outlives an agent on a node.
#[derive(Debug, Default)]
pub(super) struct Node {
    /// The service's record and its keeper, while it is there.
    pub(super) service: Option<Container>,
    pub(super) frontman: Option<Frontman>,
}

/// A container: its record on disk, and its keeper.
#[derive(Debug, Clone)]
pub(super) struct Container {
    pub(super) specification: Specification,
    pub(super) gate: Option<MigrationId>,
    pub(super) arriving: Option<(MigrationId, SystemName)>,
    /// `None`: lost, and the container dead.
    pub(super) keeper: Option<Keeper>,
    pub(super) packets_held: bool,
}

/// A keeper, with what its container has in memory.
#[derive(Debug, Clone)]
pub(super) struct Keeper {
    pub(super) phase: Life,
    /// The last entry of the ledger in memory.
    pub(super) ledger: u64,
    pub(super) resumed: bool,
}

/// What a container is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    /// It has no processes yet.
    Created,
    Executing,
    Frozen,
    /// Restored, and held before its first instruction.
    Held,
    /// Its init has exited.
    Dead,
}

/// What the Frontman does, which is a process of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Frontman {
    Holding,
    Leading,
}

impl Truth {
    pub(super) fn node(&mut self, side: Side) -> &mut Node {
        &mut self.nodes[side.index()]
    }

    /// What a container is doing; `None` where there is none, or it is lost.
    pub(super) fn life(&self, side: Side) -> Option<Life> {
        let keeper = self.nodes[side.index()].service.as_ref()?.keeper.as_ref()?;
        Some(keeper.phase)
    }

    pub(super) fn note(&mut self, text: impl Into<String>) {
        let ms = super::host::elapsed_ns() / 1_000_000;
        let line = format!("{:>4}.{:03} {}", ms / 1000, ms % 1000, text.into());
        self.trace.push(line);
    }

    pub(super) fn violation(&mut self, text: impl Into<String>) {
        let text = text.into();
        self.note(format!("VIOLATION: {text}"));
        self.violations.push(text);
    }

    /// To be called after every change: judges who executes, and with what in memory.
    pub(super) fn judge(&mut self) {
        for side in Side::BOTH {
            let executes = self.life(side) == Some(Life::Executing);
            let began = executes && !self.executing[side.index()];
            self.executing[side.index()] = executes;
            if !began {
                continue;
            }
            self.note(format!("{} executes", side.name()));
            if self.life(side.other()) == Some(Life::Executing) {
                self.violation("two instances execute");
            }
            let acknowledged = self.acknowledged;
            let ledger = match &mut self.nodes[side.index()].service {
                Some(Container {
                    keeper: Some(keeper),
                    ..
                }) => {
                    let found = keeper.ledger;
                    keeper.ledger = acknowledged + 1;
                    found
                }
                _ => continue,
            };
            if ledger != acknowledged && !std::mem::take(&mut self.risk_taken) {
                self.violation(format!(
                    "{} executes with {ledger} of {acknowledged} acknowledged entries",
                    side.name()
                ));
            }
            self.acknowledged += 1;
        }
    }

    /// The keeper is lost, and its container with it.
    pub(super) fn lose_keeper(&mut self, side: Side) {
        let Some(service) = &mut self.node(side).service else {
            return;
        };
        if service.keeper.take().is_some() {
            self.lost[side.index()] = true;
            self.note(format!("{}: the keeper is lost", side.name()));
        }
        self.judge();
    }

    /// The service exits by itself, which only one that executes can.
    pub(super) fn exit(&mut self, side: Side) {
        if let Some(Container {
            keeper: Some(keeper),
            ..
        }) = &mut self.node(side).service
            && keeper.phase == Life::Executing
        {
            keeper.phase = Life::Dead;
            self.lost[side.index()] = true;
            self.note(format!("{}: the service exits", side.name()));
        }
        self.judge();
    }
}
