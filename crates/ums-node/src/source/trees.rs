//! The directories of a service that moves, and what in them may have changed unseen.

use std::io;
use std::path::{Path, PathBuf};

use ums_api::problem::{Problem, ProblemKind};
use ums_checkpoint::keeper::protocol::Status;
use ums_sync::files::{Always, Tree};
use ums_sync::frame::RootName;

use crate::host::Service;
use crate::node::Node;
use crate::{inspect, problem};

/// The trees of a service, as the agent reaches them.
pub(super) fn all(node: &Node, service: &Service, status: &Status, with_image: bool) -> Tree {
    let mut roots = Vec::new();
    if with_image {
        let image = node.host.images().rootfs(&service.specification.image);
        roots.push((RootName::Image, image));
    }
    roots.extend(service.container.trees(&service.specification, status));
    Tree { roots }
}

/// Files that may have changed without a trace in their times, by tree and path in it.
pub(super) fn changing_files(service: &Service, status: &Status) -> Result<Always, Problem> {
    let Some(init) = status.init_pid else {
        return Ok(Always::new());
    };
    let failed = problem::failed(ProblemKind::Inspect, "the service can't be inspected");
    let pids = inspect::processes(init).map_err(|error| failed(&error))?;
    let files = inspect::shared_writable_files(&pids).map_err(|error| failed(&error))?;
    Ok(files.iter().map(|path| locate(service, path)).collect())
}

/// Of these, the ones that are mapped now.
pub(super) fn mapped_files(service: &Service, status: &Status) -> io::Result<Always> {
    let Some(init) = status.init_pid else {
        return Ok(Always::new());
    };
    let files = inspect::mapped_writable_files(init).map_err(io::Error::other)?;
    Ok(files.iter().map(|path| locate(service, path)).collect())
}

/// In which tree a path of the container is.
fn locate(service: &Service, path: &Path) -> (RootName, PathBuf) {
    let volumes = &service.specification.volumes;
    let inside = volumes.iter().filter_map(|volume| {
        let rest = path.strip_prefix(&volume.path).ok()?;
        Some((
            volume.path.len(),
            RootName::Volume(volume.name.clone()),
            rest,
        ))
    });
    let shm = path.strip_prefix("/dev/shm").ok();
    let shm = shm.map(|rest| ("/dev/shm".len(), RootName::SharedMemory, rest));
    match inside.chain(shm).max_by_key(|(len, _, _)| *len) {
        Some((_, root, rest)) => (root, rest.to_owned()),
        None => (
            RootName::Upper,
            path.strip_prefix("/").unwrap_or(path).to_owned(),
        ),
    }
}
