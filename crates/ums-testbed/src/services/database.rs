//! PostgreSQL, with clients in transactions.

use std::net::SocketAddr;

use anyhow::Result;

use super::{Clients, PERIOD, Service, nobody_gave_up};
use crate::client::postgresql::Psql;
use crate::client::{Loads, Summary, bank};
use crate::system::System;
use crate::testbed::Testbed;
use crate::workload::postgresql::{self, Installation, PORT};

/// Connections of clients.
const CONNECTIONS: u64 = 6;

/// PostgreSQL, with a process for each connection.
pub(super) const POSTGRESQL: Service = Service {
    name: "postgresql",
    port: PORT,
    mib_max: 32,
    needs: |tools| Installation::find(tools).map(drop),
    start: |testbed, system, _| {
        postgresql::start(testbed, system, &Installation::find(testbed.tools())?)
    },
    clients: |testbed, address| {
        let psql = Installation::find(testbed.tools())?.psql();
        let digest = testbed.world.in_network(|| bank::make(&psql, address))?;
        let mut loads = Loads::default();
        for client in 0..CONNECTIONS {
            let (name, psql) = (format!("transfers{client}"), psql.clone());
            let work = move |stop: &_| bank::run(&psql, address, client, PERIOD, stop);
            loads.start(&testbed.world, &name, work)?;
        }
        Ok(Box::new(Customers {
            loads,
            psql,
            digest,
        }))
    },
};

struct Customers {
    loads: Loads,
    psql: Psql,
    /// Of what nobody changes.
    digest: String,
}

impl Clients for Customers {
    fn check(&mut self, testbed: &Testbed, at: &System) -> Result<()> {
        nobody_gave_up(&mut self.loads)?;
        let address = SocketAddr::from((at.ip(), PORT));
        let check = || bank::check(&self.psql, address, &self.digest);
        testbed.world.in_network(check)
    }

    fn stop(self: Box<Self>) -> Vec<(String, Result<Summary>)> {
        self.loads.stop()
    }
}
