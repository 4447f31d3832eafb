//! Starting pagers.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use ums_api::problem::{Problem, ProblemKind};
use ums_core::id::{MigrationId, SystemName};

use super::{Bring, Serve, Stayed, Task, lease_path};
use crate::node::Node;
use crate::problem;

/// Starts the pager of a service that is about to be frozen for this migration; it reads nothing before it
/// is asked. Blocks.
///
/// # Errors
/// When it can't be started or can't listen.
pub(crate) fn serve(
    node: &Node,
    id: MigrationId,
    destination: &SystemName,
    cgroup: &str,
) -> Result<Stayed, Problem> {
    let failed = problem::failed(ProblemKind::Pages, "the pager can't be started");
    let lease = lease_path(node, id);
    let dir = lease.parent().unwrap_or(&lease);
    let written = std::fs::create_dir_all(dir).and_then(|()| std::fs::write(&lease, b""));
    written.map_err(|error| failed(&error))?;
    let permit = crate::permit::random()?;
    let permit = blake3::Hash::from_bytes(permit).to_hex().to_string();
    let task = Task::Serve(Serve {
        identity: (&node.identity).into(),
        migration: id,
        destination: destination.clone(),
        permit: permit.clone(),
        cgroup: cgroup.to_owned(),
        address: node.settings.address,
        ports: node.frontmen.settings.tunnel_ports,
        lease,
    });
    let started = (|| {
        let mut child = start(&task, Stdio::piped())?;
        let mut said = String::new();
        if let Some(out) = child.stdout.take() {
            BufReader::new(out).read_line(&mut said)?;
        }
        collect(child);
        said.trim().parse::<u16>().map_err(|_| {
            let text = "it can't listen: see the agent's log, and the setting `tunnel_ports`";
            std::io::Error::other(text)
        })
    })();
    let port = started.map_err(|error| {
        let _ = super::end(node, id);
        failed(&error)
    })?;
    Ok(Stayed {
        address: SocketAddr::new(node.settings.address, port),
        system: node.settings.system.clone(),
        permit,
    })
}

/// Starts the pager that brings pages to a keeper; returns the keeper's end. Blocks.
///
/// # Errors
/// When it can't be started.
pub(crate) fn bring(node: &Node, id: MigrationId, stayed: Stayed) -> Result<OwnedFd, Problem> {
    let failed = problem::failed(ProblemKind::Pages, "the pager can't be started");
    let task = Task::Bring(Bring {
        identity: (&node.identity).into(),
        migration: id,
        stayed,
        patience_ms: u64::try_from(node.settings.idle.as_millis()).unwrap_or(u64::MAX),
    });
    let started = (|| {
        let (ours, theirs) = UnixStream::pair()?;
        collect(start(&task, Stdio::from(OwnedFd::from(theirs)))?);
        Ok::<_, std::io::Error>(OwnedFd::from(ours))
    })();
    started.map_err(|error| failed(&error))
}

fn start(task: &Task, out: Stdio) -> std::io::Result<Child> {
    let mut child = Command::new(std::env::current_exe()?)
        .arg("pager")
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(out)
        .spawn()?;
    let text = serde_json::to_vec(task)?;
    match child.stdin.take() {
        Some(mut input) => input.write_all(&text)?,
        None => return Err(std::io::ErrorKind::BrokenPipe.into()),
    }
    Ok(child)
}

/// Whoever started it may live longer: it is collected when it ends.
fn collect(mut child: Child) {
    std::thread::spawn(move || child.wait());
}
