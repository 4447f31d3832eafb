//! A model of what really runs where, which the fake agents act on and the tests judge by.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use ums_api::agent::{Phase, Role};
use ums_core::id::MigrationId;
use ums_core::specification::Specification;

/// Everything there is.
#[derive(Debug, Default)]
pub struct World {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
pub struct Inner {
    pub nodes: BTreeMap<String, Node>,
    /// What must never be, and was.
    pub violations: Vec<String>,
    /// What happened, for the message of a test that fails.
    pub log: Vec<String>,
}

/// One system's node.
#[derive(Debug, Default)]
pub struct Node {
    pub services: BTreeMap<String, Service>,
    pub gates: BTreeMap<String, MigrationId>,
    pub frontmen: BTreeMap<String, Frontman>,
    pub held: BTreeMap<MigrationId, Held>,
}

#[derive(Debug, Clone)]
pub struct Service {
    pub specification: Specification,
    pub state: Life,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    Executing,
    Frozen,
    Arriving,
    Held,
    Exited,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frontman {
    Holding,
    Leading,
}

/// What an agent keeps for a migration.
#[derive(Debug, Clone)]
pub struct Held {
    pub role: Role,
    pub phase: Phase,
    pub service: String,
    pub permit: String,
    pub digest: Option<String>,
    /// Source: where the data goes.
    pub to: Option<String>,
}

impl World {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    pub fn look(&self) -> MutexGuard<'_, Inner> {
        self.inner
            .lock()
            .expect("no test thread has panicked in here")
    }

    /// Changes the world, and judges the result.
    pub fn change<T>(&self, what: &str, change: impl FnOnce(&mut Inner) -> T) -> T {
        let mut inner = self.look();
        let done = change(&mut inner);
        inner.log.push(what.to_owned());
        let mut executing = BTreeMap::<String, Vec<String>>::new();
        for (node, it) in &inner.nodes {
            for (name, service) in &it.services {
                if service.state == Life::Executing {
                    executing
                        .entry(name.clone())
                        .or_default()
                        .push(node.clone());
                }
            }
        }
        for (name, places) in executing {
            if places.len() > 1 {
                inner
                    .violations
                    .push(format!("`{name}` executes on {places:?} after {what}"));
            }
        }
        done
    }
}

impl Inner {
    pub fn node(&mut self, name: &str) -> &mut Node {
        self.nodes.entry(name.to_owned()).or_default()
    }

    /// What is wrong if things have settled, with the service to be on `place`.
    pub fn leftovers(&self, service: &str, place: &str, led_from: Option<&str>) -> Vec<String> {
        let mut wrong = self.violations.clone();
        for (name, node) in &self.nodes {
            let state = node.services.get(service).map(|service| service.state);
            let wanted = (name == place).then_some(Life::Executing);
            if state != wanted {
                wrong.push(format!(
                    "`{service}` on {name} is {state:?} instead of {wanted:?}"
                ));
            }
            if !node.gates.is_empty() {
                wrong.push(format!("gates shut on {name}: {:?}", node.gates));
            }
            if !node.held.is_empty() {
                wrong.push(format!("migrations held on {name}: {:?}", node.held));
            }
            let front = node.frontmen.get(service).copied();
            let wanted = (led_from == Some(name.as_str())).then_some(Frontman::Leading);
            if front != wanted {
                wrong.push(format!(
                    "Frontman on {name} is {front:?} instead of {wanted:?}"
                ));
            }
        }
        wrong
    }
}
