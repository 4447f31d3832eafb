//! A container that somebody else has made, and whose processes run: its engine is the parent of its init and
//! goes on being it. A keeper of such a container dumps it, holds it frozen, lets it run or kills it, and leaves
//! nothing when it ends.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use nix::mount::{MsFlags, mount};

use super::protocol::{Adopted, CopiedFile, ExternalMount, Phase};
use super::server::Shared;
use crate::criu::watch;

/// Largest file that is mounted by itself and copied in the freeze, bytes: `/etc/hosts` has some lines.
pub const FILE_LEN_MAX: u64 = 1 << 20;

/// When a process began, in the kernel's ticks since boot: field 22 of proc_pid_stat(5). `None` where there
/// is no such process.
pub fn began(pid: i32) -> Option<u64> {
    parse_began(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Its name, in parentheses, may hold anything.
fn parse_began(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(19)?.parse().ok()
}

/// The network namespace of its init.
pub(super) fn netns(of: &Adopted) -> io::Result<OwnedFd> {
    Ok(File::open(format!("/proc/{}/ns/net", of.init))?.into())
}

/// Notes that it runs, and later that its init has ended.
///
/// # Errors
/// When it has ended already.
pub(super) fn take_over(shared: &Arc<Shared>, of: &Adopted) -> io::Result<()> {
    let gone = || io::Error::new(io::ErrorKind::NotFound, "the container has ended");
    // Whoever has its id later began later.
    if began(of.init) != Some(of.began) {
        return Err(gone());
    }
    shared.update(|state| {
        state.init_pid = Some(of.init);
        state.phase = Phase::Running;
    });
    let (shared, of) = (Arc::clone(shared), of.clone());
    std::thread::spawn(move || {
        if let Err(error) = watch::wait_for(of.init, |init| began(init) == Some(of.began)) {
            tracing::warn!(%error, "the end of the container will not be seen");
            return;
        }
        shared.update(|state| {
            // With which code only its parent is told.
            state.phase = Phase::Dead { code: 0 };
            state.init_pid = None;
        });
    });
    Ok(())
}

/// Names of mounts that only an engine's container has.
const OF_ENGINES: [&str; 3] = ["file-", "cgroup-", "empty"];

/// Makes the root filesystem, and what an engine's container had mounted from its host, mounts of this process's own, from which others
/// learn: such mounts are slaves of the host's (mount_namespaces(7)), and CRIU makes them so again only of a mount
/// that has others. Other containers' are private.
pub(super) fn share_sources(root: &Path, mounts: &[ExternalMount]) -> Result<(), String> {
    let of_engine =
        |mount: &&ExternalMount| OF_ENGINES.iter().any(|name| mount.key.starts_with(name));
    if !mounts.iter().any(|mount| of_engine(&mount)) {
        return Ok(());
    }
    let from_host = |mount: &&ExternalMount| {
        ["file-", "volume-"]
            .iter()
            .any(|name| mount.key.starts_with(name))
    };
    let none: Option<&str> = None;
    mount(none, root, none, MsFlags::MS_SHARED, none)
        .map_err(|errno| format!("{} can't be shared: {errno}", root.display()))?;
    for ExternalMount { source, .. } in mounts.iter().filter(from_host) {
        mount(Some(source), source, none, MsFlags::MS_BIND, none)
            .and_then(|()| mount(none, source, none, MsFlags::MS_SHARED, none))
            .map_err(|errno| format!("{} can't be mounted: {errno}", source.display()))?;
    }
    Ok(())
}

/// Copies the files that are mounted one by one, those that have changed since the last time.
pub(super) fn copy_files(files: &[CopiedFile]) -> Result<(), String> {
    for CopiedFile { source, copy } in files {
        copy_file(source, copy)
            .map_err(|error| format!("`{}` can't be copied: {error}", source.display()))?;
    }
    Ok(())
}

fn copy_file(source: &Path, copy: &Path) -> io::Result<()> {
    let metadata = fs::metadata(source)?;
    if !metadata.is_file() || metadata.len() > FILE_LEN_MAX {
        let text = format!("it is no file of at most {FILE_LEN_MAX} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    let bytes = fs::read(source)?;
    // What is as it was keeps its time, and is not sent again.
    if fs::read(copy).is_ok_and(|before| before == bytes) {
        return Ok(());
    }
    fs::write(copy, bytes)?;
    fs::set_permissions(copy, metadata.permissions())
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_process_is_known_by_when_it_began() {
        let own = std::process::id() as i32;
        assert!(began(own).is_some_and(|ticks| ticks > 0));
        assert_eq!(began(-1), None);
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 9 9";
        assert_eq!(parse_began(stat), Some(4711));
        assert_eq!(parse_began("7 (sh"), None);
    }

    #[test]
    fn a_copy_that_is_right_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (source, copy) = (dir.path().join("hosts"), dir.path().join("copy"));
        fs::write(&source, "127.0.0.1 localhost\n").unwrap();
        let files = [CopiedFile {
            source: source.clone(),
            copy: copy.clone(),
        }];
        copy_files(&files).unwrap();
        let first = fs::metadata(&copy).unwrap().modified().unwrap();
        copy_files(&files).unwrap();
        assert_eq!(fs::metadata(&copy).unwrap().modified().unwrap(), first);
        fs::write(&source, "10.0.0.1 db\n").unwrap();
        copy_files(&files).unwrap();
        assert_eq!(fs::read(&copy).unwrap(), b"10.0.0.1 db\n");
        assert!(
            copy_files(&[CopiedFile {
                source: dir.path().into(),
                copy
            }])
            .is_err()
        );
    }
}
