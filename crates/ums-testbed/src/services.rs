//! Real services, as people run them, each with clients that keep their connections, and with data
//! that can be checked.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::client::{Loads, Summary};
use crate::system::System;
use crate::testbed::Testbed;
use crate::tools::{Tools, wait_for};

mod database;
mod files;
mod footprint;
mod memory;
mod web;

pub use footprint::Footprint;

/// All of them.
pub const ALL: [Service; 9] = [
    web::GO,
    web::JVM,
    web::NODE,
    web::PREFORK,
    web::SUPERVISOR,
    files::NGINX,
    memory::MEMCACHED,
    memory::REDIS,
    database::POSTGRESQL,
];

/// How often each client makes a request.
const PERIOD: Duration = Duration::from_millis(10);

/// Longest wait for anything that a service does by itself.
const PATIENCE: Duration = Duration::from_secs(60);

/// A service.
#[derive(Debug, Clone, Copy)]
pub struct Service {
    /// Its name.
    pub name: &'static str,
    /// Its port, on the systems and inside.
    pub port: u16,
    /// What it needs of anonymous memory after a minute under load on an idle machine, doubled, MiB.
    pub mib_max: u64,
    /// Fails where something is missing that it is made of, and says what.
    needs: fn(&Tools) -> Result<()>,
    start: fn(&Testbed, &System, &Service) -> Result<()>,
    clients: fn(&Testbed, SocketAddr) -> Result<Box<dyn Clients>>,
}

/// The clients of a service, and what they know of its data.
pub trait Clients {
    /// Brings about what shall be under way when the service is frozen.
    fn before_a_move(&mut self, _testbed: &Testbed, _at: &System) -> Result<()> {
        Ok(())
    }

    /// Looks whether the service is well at a system: an error when its data is wrong, when it stands
    /// still, or when a client has given up.
    fn check(&mut self, testbed: &Testbed, at: &System) -> Result<()>;

    /// Stops all clients; what each saw.
    fn stop(self: Box<Self>) -> Vec<(String, Result<Summary>)>;
}

impl Service {
    /// The one of that name.
    pub fn named(name: &str) -> Option<Self> {
        ALL.into_iter().find(|service| service.name == name)
    }

    /// What is missing on this machine to run it; `None` when nothing is.
    pub fn lacking(&self, tools: &Tools) -> Option<String> {
        (self.needs)(tools)
            .err()
            .map(|error| format!("{error:#}: `cargo xtask test --long` installs what it needs"))
    }

    /// Starts it on `system`, and waits until it answers.
    pub fn start(&self, testbed: &Testbed, system: &System) -> Result<()> {
        (self.start)(testbed, system, self).with_context(|| format!("cannot start {}", self.name))
    }

    /// Starts its clients, which talk to `system` from now on, wherever the service is.
    pub fn clients(&self, testbed: &Testbed, system: &System) -> Result<Box<dyn Clients>> {
        let clients = (self.clients)(testbed, SocketAddr::from((system.ip(), self.port)));
        clients.with_context(|| format!("cannot start the clients of {}", self.name))
    }
}

/// Runs a service: what it is made of, made once in each testbed, further options of `ums run`, and the
/// command.
fn run(
    testbed: &Testbed,
    system: &System,
    service: &Service,
    make: impl Fn(&Tools, &Path) -> Result<()>,
    options: &[&str],
    command: &[&str],
) -> Result<()> {
    let directory = testbed.directory().join(format!("rootfs-{}", service.name));
    if !directory.exists() {
        make(testbed.tools(), &directory).context("cannot make its root filesystem")?;
    }
    let (root, publish) = (
        directory.display().to_string(),
        format!("{0}:{0}", service.port),
    );
    let mut arguments = vec![
        "run",
        service.name,
        "--rootfs",
        &root,
        "--publish",
        &publish,
    ];
    arguments.extend(options);
    arguments.push("--");
    arguments.extend(command);
    system.ums_ok(&arguments)?;
    crate::workload::answers(testbed, system, service.port)
}

/// Fails when one of the clients has ended by itself.
fn nobody_gave_up(loads: &mut Loads) -> Result<()> {
    let ended = loads.ended();
    ensure!(ended.is_empty(), "clients gave up: {ended:?}");
    Ok(())
}

/// Waits until `condition` holds, which looks from where clients live.
fn wait_in(
    testbed: &Testbed,
    what: &str,
    condition: impl Fn() -> Result<bool> + Sync,
) -> Result<()> {
    let mut last = Ok(false);
    let held = wait_for(what, PATIENCE, || {
        last = testbed.world.in_network(&condition);
        matches!(last, Ok(true)).then_some(())
    });
    held.or_else(|error| last.and(Err(error)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_services_share_a_name() {
        let names: BTreeSet<&str> = ALL.iter().map(|service| service.name).collect();
        assert_eq!(names.len(), ALL.len());
        assert!(names.iter().all(|name| Service::named(name).is_some()));
    }
}
