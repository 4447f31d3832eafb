//! Programs that are tracked: one process group each.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tempfile::TempDir;
use ums_checkpoint::carry::Process;
use ums_checkpoint::cgroup::Cgroup;
use ums_checkpoint::dirty::{self, Backend, Tracker};

/// How long anything here may take.
const PATIENCE: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_millis(1);

/// The devices that it needs: null and zero.
const DEVICES: [&str; 2] = ["c 1:3 rw", "c 1:5 r"];

/// A program's processes, in a control group of their own.
pub(crate) struct Program {
    first: Child,
    group: Pid,
    cgroup: Cgroup,
    dir: TempDir,
}

/// A group that nobody else has.
fn cgroup() -> Cgroup {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let path = format!("/ums-dirty-{}-{number}", std::process::id());
    let cgroup = Cgroup::at(&path).unwrap();
    cgroup.create(None, &DEVICES.map(String::from)).unwrap();
    cgroup
}

/// The compiled source, for all tests of this process.
pub(crate) fn compiled(name: &'static str, source: &str) -> PathBuf {
    static DIR: OnceLock<TempDir> = OnceLock::new();
    let dir = DIR.get_or_init(|| TempDir::new().unwrap()).path();
    let (program, text) = (dir.join(name), dir.join(format!("{name}.c")));
    fs::write(&text, source).unwrap();
    let mut cc = Command::new("cc");
    cc.args(["-O1", "-pthread", "-o"]).arg(&program).arg(&text);
    assert!(cc.status().unwrap().success(), "a C compiler (cc)");
    program
}

impl Program {
    /// Does everything at random.
    pub(crate) fn torture(seed: u64) -> Self {
        static TORTURE: OnceLock<PathBuf> = OnceLock::new();
        let program = TORTURE.get_or_init(|| compiled("ums-rummage", include_str!("torture.c")));
        let dir = TempDir::new().unwrap();
        let damages = dir.path().join("damages");
        let mut command = Command::new(program);
        command.arg(seed.to_string()).arg(damages);
        Self::start(command, dir)
    }

    /// Any other one. It is told where to write what damage it finds by `UMS_DAMAGES`.
    pub(crate) fn of(mut command: Command) -> Self {
        let dir = TempDir::new().unwrap();
        command.env("UMS_DAMAGES", dir.path().join("damages"));
        Self::start(command, dir)
    }

    /// It is in its group before its first instruction: a shell waits for a line, and becomes it.
    fn start(command: Command, dir: TempDir) -> Self {
        let mut shell = Command::new("sh");
        shell.args(["-c", "read -r line && exec \"$0\" \"$@\" </dev/null"]);
        shell.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            shell.env(name, value.unwrap_or_default());
        }
        shell.process_group(0);
        let mut first = shell
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let group = Pid::from_raw(first.id() as i32);
        let cgroup = cgroup();
        cgroup.enter(first.id()).unwrap();
        let mut line = first.stdin.take().unwrap();
        line.write_all(b"begin\n").unwrap();
        Self {
            first,
            group,
            cgroup,
            dir,
        }
    }

    /// Tracks it.
    pub(crate) fn tracker(&self, backend: Backend) -> Box<dyn Tracker + Send> {
        dirty::tracker(backend, &self.cgroup).unwrap().unwrap()
    }

    pub(crate) fn pid(&self) -> i32 {
        self.group.as_raw()
    }

    /// Waits until it says that it is.
    pub(crate) fn wait_until_ready(&mut self) {
        let mut word = [0; 6];
        let out = self.first.stdout.as_mut().unwrap();
        out.read_exact(&mut word).unwrap();
    }

    /// Its processes that have not ended.
    pub(crate) fn processes(&self) -> Vec<Process> {
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let of_group = pids.filter(|pid| {
            let fields = stat(*pid);
            fields
                .get(2)
                .is_some_and(|group| *group == self.pid().to_string())
                && !fields[0].starts_with(['Z', 'X'])
        });
        of_group.map(|pid| Process { pid, inner: pid }).collect()
    }

    /// Waits until its first process has used some of a processor.
    pub(crate) fn wait_for_work(&self) {
        let used = || -> u64 {
            let fields = stat(self.pid());
            let ticks = fields.get(11..13).unwrap_or_default();
            ticks
                .iter()
                .filter_map(|text| text.parse::<u64>().ok())
                .sum()
        };
        let before = used();
        let end = Instant::now() + PATIENCE;
        while used() <= before {
            let ended = waitpid(self.group, Some(WaitPidFlag::WNOHANG));
            assert_eq!(ended, Ok(WaitStatus::StillAlive), "{}", self.damages());
            assert!(
                Instant::now() < end,
                "it does nothing: {:#?}",
                self.states()
            );
            std::thread::sleep(PAUSE);
        }
    }

    /// Stops every process, and returns when all stand still.
    pub(crate) fn stop(&self) {
        killpg(self.group, Signal::SIGSTOP).unwrap();
        wait("all stand still", || {
            let _ = killpg(self.group, Signal::SIGSTOP);
            self.processes()
                .iter()
                .all(|process| is_stopped(process.pid))
        });
    }

    /// For messages: what each of its threads does.
    fn states(&self) -> Vec<String> {
        let of = |pid: i32| {
            let entries = fs::read_dir(format!("/proc/{pid}/task"))
                .into_iter()
                .flatten();
            entries.flatten().map(move |entry| {
                let read = |name| fs::read_to_string(entry.path().join(name)).unwrap_or_default();
                let stat = read("stat");
                let state = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
                format!(
                    "{pid}: {} {} {}",
                    &state[..state.len().min(12)],
                    read("syscall"),
                    read("wchan")
                )
            })
        };
        self.processes()
            .iter()
            .flat_map(|process| of(process.pid))
            .collect()
    }

    pub(crate) fn go_on(&self) {
        killpg(self.group, Signal::SIGCONT).unwrap();
    }

    /// What it has found wrong.
    pub(crate) fn damages(&self) -> String {
        fs::read_to_string(self.dir.path().join("damages")).unwrap_or_default()
    }

    /// No userfaultfd, no registered mapping, no tracer.
    pub(crate) fn check_nothing_is_left(&self) {
        for Process { pid, .. } in self.processes() {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            assert!(status.contains("TracerPid:\t0\n"), "{status}");
            let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
            let mut flags = smaps.lines().filter(|line| line.starts_with("VmFlags:"));
            let is_registered = |line: &str| line.contains(" uw") || line.contains(" um");
            assert!(!flags.any(is_registered), "{smaps}");
            for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten() {
                let link = fs::read_link(entry.path()).unwrap_or_default();
                assert!(
                    !link.ends_with("anon_inode:[userfaultfd]"),
                    "{pid}: {link:?}"
                );
            }
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = killpg(self.group, Signal::SIGKILL);
        let _ = self.first.wait();
        wait("all have ended", || {
            let left = self.processes();
            for process in &left {
                let _ = kill(Pid::from_raw(process.pid), Signal::SIGKILL);
            }
            left.is_empty()
        });
        self.cgroup.remove().unwrap();
    }
}

/// The fields of `/proc/PID/stat` after the name: state, parent, group, …
fn stat(pid: i32) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let rest = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    rest.split_whitespace().map(str::to_owned).collect()
}

/// Whether every thread of a process is.
pub(crate) fn is_stopped(pid: i32) -> bool {
    let entries = fs::read_dir(format!("/proc/{pid}/task"));
    entries.into_iter().flatten().flatten().all(|entry| {
        let text = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let state = text.rsplit_once(')').map(|(_, rest)| rest.trim_start());
        state.is_none_or(|state| state.starts_with(['T', 'Z', 'X']))
    })
}

/// Waits until something is so.
pub(crate) fn wait(what: &str, is_so: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "waited too long until {what}");
        std::thread::sleep(PAUSE);
    }
}
