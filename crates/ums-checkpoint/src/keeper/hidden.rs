//! Memory that CRIU is not shown, because somebody else reads it.
//!
//! CRIU reads every page of a service in the freeze, and sends it on; so the freeze would grow with memory
//! whoever has it already. Which pages a process has CRIU asks of `/proc/PID/pagemap` alone (`criu/pagemap-cache.c`).
//! In the keeper's mount namespace, which is CRIU's, another process's lies over it meanwhile: a small
//! program's that has nothing where the service has something. CRIU then finds mappings without pages,
//! and dumps everything else as it does. What it dumps without a look at the pagemap (the kernel's own
//! code in each process, rings of `io_setup(2)`, shared memory) goes its usual way.
//!
//! From the same file CRIU reads where a process has guards (`MADV_GUARD_INSTALL`); those we put into its image.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::carry::Process;
use crate::criu::{image, swrk};
use crate::dirty;
use crate::memory_dir::MemoryDir;

/// A small program of the C/R bundle. It waits for its standard input, and ends with who holds that.
const PROGRAM: &str = "gzip";
/// How often it is started until it has nothing where the service has something: addresses are drawn
/// by lot among many millions.
const STARTS_MAX: usize = 4;
/// How often it is looked, a millisecond apart, whether it waits: its loader maps memory until then.
const LOOKS_MAX: usize = 200;

/// A process that has next to no memory.
pub(super) struct Stranger(Child);

/// The pagemaps of a service are hidden until this is dropped.
pub(super) struct Hidden(Vec<PathBuf>);

impl Stranger {
    /// Starts one whose memory is elsewhere than that of these processes, and tries whether its pagemap
    /// can be put over another.
    pub(super) fn start(bundle_bin: &Path, processes: &[Process]) -> Result<Self, String> {
        for _ in 0..STARTS_MAX {
            let stranger = Self::start_one(bundle_bin).map_err(|error| not_hidden(&error))?;
            if stranger.is_elsewhere(processes) {
                let own = pagemap(stranger.pid());
                drop(
                    stranger
                        .over(vec![own])
                        .map_err(|error| not_hidden(&error))?,
                );
                return Ok(stranger);
            }
        }
        Err(not_hidden(&io::Error::other(
            "the service has memory everywhere",
        )))
    }

    fn start_one(bundle_bin: &Path) -> io::Result<Self> {
        let alone = swrk::starting();
        let child = Command::new(bundle_bin.join(PROGRAM))
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        drop(alone);
        let stranger = Self(child);
        // Where it does not come to that on a busy machine, its memory is looked at again before it is shown.
        for _ in 0..LOOKS_MAX {
            if stranger.waits() {
                break;
            }
            thread::sleep(Duration::from_millis(1));
        }
        Ok(stranger)
    }

    /// Whether it sleeps (`proc_pid_stat(5)`): it does that for its standard input alone.
    fn waits(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid()));
        stat.is_ok_and(|stat| {
            stat.rsplit_once(") ")
                .is_some_and(|(_, rest)| rest.starts_with('S'))
        })
    }

    fn pid(&self) -> i32 {
        self.0.id().cast_signed()
    }

    fn is_elsewhere(&self, processes: &[Process]) -> bool {
        let Ok(own) = dirty::mapped(self.pid()) else {
            return false;
        };
        processes.iter().all(|process| {
            let theirs = dirty::mapped(process.pid).unwrap_or_default();
            own.iter()
                .all(|(start, end)| theirs.within(start, end).next().is_none())
        })
    }

    /// Hides the memory of frozen processes. Where the service has got some since that is in the way, another one is
    /// started.
    pub(super) fn hide(
        &mut self,
        bundle_bin: &Path,
        processes: &[Process],
    ) -> Result<Hidden, String> {
        for _ in 1..STARTS_MAX {
            if self.is_elsewhere(processes) {
                break;
            }
            *self = Self::start_one(bundle_bin).map_err(|error| not_hidden(&error))?;
        }
        if !self.is_elsewhere(processes) {
            let reason = "the service has got memory where another program has some";
            return Err(format!("{reason}: migrate again"));
        }
        let over = processes.iter().map(|process| pagemap(process.pid));
        self.over(over.collect())
            .map_err(|error| not_hidden(&error))
    }

    fn over(&self, paths: Vec<PathBuf>) -> io::Result<Hidden> {
        let from = pagemap(self.pid());
        let mut hidden = Hidden(Vec::new());
        for path in paths {
            mount(
                Some(&from),
                &path,
                None::<&str>,
                MsFlags::MS_BIND,
                None::<&str>,
            )?;
            hidden.0.push(path);
        }
        Ok(hidden)
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        for path in &self.0 {
            // One of a process that has ended is gone with it.
            let _ = umount2(path, MntFlags::MNT_DETACH);
        }
    }
}

fn pagemap(pid: i32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/pagemap"))
}

fn not_hidden(error: &io::Error) -> String {
    format!(
        "the service's memory can't be hidden from CRIU, which would read all of it in the freeze: {error}; \
         see whether the agent runs with CAP_SYS_ADMIN, the C/R bundle is whole (`ums doctor`), and nothing \
         forbids mounts below /proc (a security module's profile)"
    )
}

/// Puts the guards of frozen processes, whose pagemaps are not hidden any more, into their images.
pub(super) fn add_guards(images: &MemoryDir, processes: &[Process]) -> io::Result<()> {
    for process in processes {
        let mapped = dirty::mapped(process.pid)?;
        if mapped.is_empty() {
            // A zombie.
            continue;
        }
        let guards = dirty::guards(File::open(pagemap(process.pid))?.as_fd(), &mapped)?;
        if guards.is_empty() {
            continue;
        }
        let name = image::mm_name(process.inner.cast_unsigned());
        let file = fs::read(images.path().join(&name))?;
        let guards: Vec<_> = guards.iter().collect();
        images.write(&name, &image::with_guards(file, &guards))?;
    }
    Ok(())
}
