//! nginx: a master and workers, which serve files.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::Result;

use super::{Clients, PERIOD, Service, nobody_gave_up, run, wait_in};
use crate::client::{Loads, Summary, pages};
use crate::rootfs::{self, copy, with_libraries};
use crate::system::System;
use crate::testbed::Testbed;
use crate::tools::Tools;
use crate::workload::postgresql::may_ask_for_limits;

const PORT: u16 = 8080;

/// Connections of clients.
const CONNECTIONS: usize = 8;

/// nginx with two workers.
pub(super) const NGINX: Service = Service {
    name: "nginx",
    port: PORT,
    mib_max: 8,
    needs: |tools| program(tools).map(drop),
    start: |testbed, system, service| {
        let command = ["/bin/nginx", "-p", "/data", "-c", "/etc/nginx.conf"];
        run(testbed, system, service, make, &[], &command)
    },
    clients: |testbed, address| {
        let mut loads = Loads::default();
        for index in 0..CONNECTIONS {
            let work = move |stop: &_| pages::run(address, PERIOD, stop);
            loads.start(&testbed.world, &format!("pages{index}"), work)?;
        }
        Ok(Box::new(Readers { loads }))
    },
};

struct Readers {
    loads: Loads,
}

impl Clients for Readers {
    fn check(&mut self, testbed: &Testbed, at: &System) -> Result<()> {
        nobody_gave_up(&mut self.loads)?;
        let address = SocketAddr::from((at.ip(), PORT));
        wait_in(testbed, "every file", || pages::all(address).map(|()| true))
    }

    fn stop(self: Box<Self>) -> Vec<(String, Result<Summary>)> {
        self.loads.stop()
    }
}

fn program(tools: &Tools) -> Result<std::path::PathBuf> {
    tools.installed_or_unpacked("nginx", "usr/sbin/nginx")
}

fn make(tools: &Tools, directory: &Path) -> Result<()> {
    let root = program(tools)?;
    let program = root.join("usr/sbin/nginx");
    rootfs::minimal(directory, &[])?;
    copy(&program, &directory.join("bin/nginx"))?;
    with_libraries(directory, &program, &root)?;
    // Where root lacks a capability, what runs as another user can't be moved.
    let user = if may_ask_for_limits()? { "www" } else { "root" };
    let passwd = "root:x:0:0:root:/:/bin/false\nwww:x:33:33:www:/:/bin/false\n";
    std::fs::write(directory.join("etc/passwd"), passwd)?;
    std::fs::write(directory.join("etc/group"), "root:x:0:\nwww:x:33:\n")?;
    std::fs::write(directory.join("etc/nginx.conf"), configuration(user))?;
    for name in ["srv", "var/lib/nginx", "var/log/nginx"] {
        std::fs::create_dir_all(directory.join(name))?;
    }
    for index in 0..pages::COUNT {
        std::fs::write(
            directory.join("srv").join(pages::name(index)),
            pages::content(index),
        )?;
    }
    Ok(())
}

fn configuration(user: &str) -> String {
    format!(
        "user {user}; daemon off; worker_processes 2; pid /run/nginx.pid;\n\
         error_log /data/error.log;\n\
         events {{ worker_connections 256; }}\n\
         http {{ access_log /data/access.log; sendfile on; keepalive_requests 1000000;\n\
         server {{ listen {PORT}; root /srv; }} }}\n"
    )
}
