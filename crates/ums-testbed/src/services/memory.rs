//! Databases in memory: memcached, and Redis while it saves.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use super::{Clients, PERIOD, Service, nobody_gave_up, run, wait_in};
use crate::client::resp::{Connection, Reply};
use crate::client::{Loads, Summary, connect, counter, keys, memcached, pipeline};
use crate::rootfs::{self, copy, with_libraries};
use crate::system::System;
use crate::testbed::Testbed;
use crate::tools::Tools;
use crate::workload::{REDIS_PORT, start_redis};

/// Keys that each holds.
const KEYS: u64 = 10_000;

const MEMCACHED_PORT: u16 = 11211;

/// Connections of memcached's clients.
const CONNECTIONS: usize = 4;

/// How long Redis waits before each key that it saves, microseconds: a save takes seconds.
const SAVE_DELAY_US: &[u8] = b"500";

/// memcached with its usual threads.
pub(super) const MEMCACHED: Service = Service {
    name: "memcached",
    port: MEMCACHED_PORT,
    mib_max: 24,
    needs: |tools| memcached_root(tools).map(drop),
    start: |testbed, system, service| {
        let command = ["/bin/memcached", "-u", "root", "-m", "64"];
        run(testbed, system, service, make_memcached, &[], &command)
    },
    clients: |testbed, address| {
        testbed.world.in_network(|| memcached::set(address, KEYS))?;
        let mut loads = Loads::default();
        for index in 0..CONNECTIONS {
            let name = format!("memcached{index}");
            let work = {
                let name = name.clone();
                move |stop: &_| memcached::run(&name, address, PERIOD, stop)
            };
            loads.start(&testbed.world, &name, work)?;
        }
        Ok(Box::new(Cache { loads }))
    },
};

/// Redis, with a child that saves.
pub(super) const REDIS: Service = Service {
    name: "redis",
    port: REDIS_PORT,
    mib_max: 24,
    needs: |_| rootfs::program("redis-server").map(drop),
    start: |testbed, system, _| start_redis(testbed, system),
    clients: |testbed, address| {
        testbed.world.in_network(|| keys::set(&[address], KEYS))?;
        let mut loads = Loads::default();
        loads.start(&testbed.world, "counter", move |stop| count(address, stop))?;
        let work = move |stop: &_| pipeline::run(address, PERIOD, stop);
        loads.start(&testbed.world, "pipeline", work)?;
        Ok(Box::new(Saving { loads }))
    },
};

fn count(address: SocketAddr, stop: &std::sync::atomic::AtomicBool) -> Result<Summary> {
    let counted = counter::run(&[address], PERIOD, stop)?;
    ensure!(counted.lost == 0 && counted.doubled == 0, "{counted:?}");
    Ok(counted.summary)
}

struct Cache {
    loads: Loads,
}

impl Clients for Cache {
    fn check(&mut self, testbed: &Testbed, at: &System) -> Result<()> {
        nobody_gave_up(&mut self.loads)?;
        let address = SocketAddr::from((at.ip(), MEMCACHED_PORT));
        let wrong = testbed
            .world
            .in_network(|| memcached::wrong(address, KEYS))?;
        ensure!(wrong == 0, "{wrong} values are wrong");
        Ok(())
    }

    fn stop(self: Box<Self>) -> Vec<(String, Result<Summary>)> {
        self.loads.stop()
    }
}

struct Saving {
    loads: Loads,
}

impl Clients for Saving {
    fn before_a_move(&mut self, testbed: &Testbed, at: &System) -> Result<()> {
        let address = SocketAddr::from((at.ip(), REDIS_PORT));
        testbed.world.in_network(|| {
            let mut redis = Connection::new(connect(address)?);
            if persistence(&mut redis, "rdb_bgsave_in_progress:0")? {
                redis.call(&[b"CONFIG", b"SET", b"rdb-key-save-delay", SAVE_DELAY_US])?;
                redis.call(&[b"BGSAVE"])?;
            }
            ensure!(
                persistence(&mut redis, "rdb_bgsave_in_progress:1")?,
                "no save is under way"
            );
            Ok(())
        })
    }

    fn check(&mut self, testbed: &Testbed, at: &System) -> Result<()> {
        nobody_gave_up(&mut self.loads)?;
        let address = SocketAddr::from((at.ip(), REDIS_PORT));
        let wrong = testbed.world.in_network(|| keys::wrong(&[address], KEYS))?;
        ensure!(wrong == 0, "{wrong} keys are wrong");
        wait_in(testbed, "the end of the save", || {
            let mut redis = Connection::new(connect(address)?);
            Ok(persistence(&mut redis, "rdb_bgsave_in_progress:0")?
                && persistence(&mut redis, "rdb_last_bgsave_status:ok")?)
        })
    }

    fn stop(self: Box<Self>) -> Vec<(String, Result<Summary>)> {
        self.loads.stop()
    }
}

/// Whether Redis says this of how it saves.
fn persistence(redis: &mut Connection, line: &str) -> Result<bool> {
    let Reply::Bulk(Some(text)) = redis.call(&[b"INFO", b"persistence"])? else {
        anyhow::bail!("INFO answered no text");
    };
    Ok(String::from_utf8_lossy(&text)
        .lines()
        .any(|told| told == line))
}

fn memcached_root(tools: &Tools) -> Result<PathBuf> {
    tools.installed_or_unpacked("memcached", "usr/bin/memcached")
}

fn make_memcached(tools: &Tools, directory: &Path) -> Result<()> {
    let root = memcached_root(tools)?;
    let program = root.join("usr/bin/memcached");
    rootfs::minimal(directory, &[])?;
    copy(&program, &directory.join("bin/memcached"))?;
    with_libraries(directory, &program, &root)
}
