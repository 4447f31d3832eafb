//! One machine: started, used, saved and ended.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};

use super::monitor::Monitor;
use super::qemu::{self, Start};
use super::ssh::Ssh;
use super::{Place, Release, console_tail, patience};
use crate::tools::tail;

/// How often a machine is looked at: each look takes a good part of this there.
const POLL: std::time::Duration = std::time::Duration::from_millis(500);

/// Seconds that a boot takes at most, were it as fast as the host.
const BOOT_SECONDS: u64 = 30;

/// Seconds that a command takes at most, were it as fast as the host.
const COMMAND_SECONDS: u64 = 60;

/// Directory with a file for each state that is kept inside the disk.
const STATES: &str = "states";

/// Longest name of a saved state.
const LONGEST_STATE: usize = 64;

/// What a script did.
#[derive(Debug, Clone)]
pub struct Said {
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed.
    pub output: String,
    /// What it complained of.
    pub errors: String,
}

impl Said {
    /// Its exit code; `None` where a signal ended it.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// All that it said.
    pub fn all(&self) -> String {
        format!("{}{}", self.output, self.errors)
    }
}

/// A machine that runs. One that was started [for a test](Machine::start) ends with this value, and
/// with the thread that started it.
#[derive(Debug)]
pub struct Machine {
    place: Place,
    release: Release,
    ssh: Ssh,
    /// Of a machine that ends with this value.
    qemu: Option<Child>,
}

impl Machine {
    /// Starts a machine that ends with this value: anew, or from a state that was [saved](Self::save).
    /// It is up when [`Self::comes_up`] says so; others can be started meanwhile.
    ///
    /// # Errors
    /// A machine of that name that runs, and qemu or its disk that can't be had.
    pub fn start(place: &Place, release: Release, state: Option<&str>) -> Result<Self> {
        Self::launch(place, release, state, true)
    }

    /// Starts one that goes on when this value is [left](Self::leave) to itself, until somebody
    /// [ends](Self::end) it.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_untied(place: &Place, release: Release, state: Option<&str>) -> Result<Self> {
        Self::launch(place, release, state, false)
    }

    /// Lets it go on after this value.
    pub fn leave(mut self) {
        self.qemu = None;
    }

    fn launch(place: &Place, release: Release, state: Option<&str>, tied: bool) -> Result<Self> {
        let name = release.name();
        let directory = place.of(release, STATES);
        fs::create_dir_all(&directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        ensure!(
            Monitor::open(&place.machines(), &format!("{name}/monitor"))?.is_none(),
            "{name} runs already: `cargo xtask vm down` ends it"
        );
        match state {
            Some(state) => ensure!(
                Self::has(place, release, state),
                "{name} has no state `{state}`"
            ),
            None => Self::make_disk(place, release)?,
        }
        for socket in ["link", "monitor", "serial", "ssh", "console.log"] {
            remove(&place.of(release, socket))?;
        }
        let ssh_port = free_port()?;
        fs::write(place.of(release, "port"), ssh_port.to_string())?;
        let start = Start {
            release,
            ssh_port,
            state,
            tied,
        };
        let mut command = qemu::machine(place, &start)?;
        let qemu = command.spawn().context("cannot start `setpriv`")?;
        Ok(Self {
            place: place.clone(),
            release,
            ssh: Ssh::new(place, release, ssh_port),
            qemu: Some(qemu),
        })
    }

    /// A disk as the release's. The states that the one before it kept are gone with it.
    fn make_disk(place: &Place, release: Release) -> Result<()> {
        let (disk, states) = (place.of(release, "disk.qcow2"), place.of(release, STATES));
        fs::remove_dir_all(&states).and_then(|()| fs::create_dir(&states))?;
        remove(&disk)?;
        qemu::make_disk(place, release, &disk)
    }

    /// The states that a machine has kept.
    pub fn states(place: &Place, release: Release) -> Vec<String> {
        let entries = fs::read_dir(place.of(release, STATES));
        let names = entries.into_iter().flatten().flatten();
        names
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect()
    }

    fn has(place: &Place, release: Release, state: &str) -> bool {
        Self::states(place, release)
            .iter()
            .any(|kept| kept == state)
    }

    /// The machine that somebody else started, which goes on after this value.
    ///
    /// # Errors
    /// Where it does not run.
    pub fn running(place: &Place, release: Release) -> Result<Self> {
        let name = release.name();
        ensure!(
            Monitor::open(&place.machines(), &format!("{name}/monitor"))?.is_some(),
            "{name} does not run: `cargo xtask vm up` starts it"
        );
        let port = fs::read_to_string(place.of(release, "port"))?;
        let port = port
            .trim()
            .parse()
            .context("the file `port` holds no port")?;
        Ok(Self {
            place: place.clone(),
            release,
            ssh: Ssh::new(place, release, port),
            qemu: None,
        })
    }

    /// Ends a machine, whoever started it; whether one ran.
    ///
    /// # Errors
    /// A machine that goes on.
    pub fn end(place: &Place, release: Release) -> Result<bool> {
        let socket = format!("{}/monitor", release.name());
        match Monitor::open(&place.machines(), &socket)? {
            Some(monitor) => monitor.quit().map(|()| true),
            None => Ok(false),
        }
    }

    /// Which one.
    pub fn release(&self) -> Release {
        self.release
    }

    /// Its name, and the name of the system there.
    pub fn name(&self) -> &'static str {
        self.release.name()
    }

    /// Runs a script of the shell.
    ///
    /// # Errors
    /// Where the machine does not answer, or the script does not end. A script that fails is no error.
    pub fn run(&self, script: &str) -> Result<Said> {
        let output = self.ssh.run(script, patience(COMMAND_SECONDS));
        let output = output.with_context(|| self.described())?;
        Ok(Said {
            status: output.status,
            output: String::from_utf8_lossy(&output.stdout).into_owned(),
            errors: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs a script that must succeed; what it printed, without the white space around it.
    ///
    /// # Errors
    /// As [`Self::run`], and a script that fails, with what it said.
    pub fn ok(&self, script: &str) -> Result<String> {
        let said = self.run(script)?;
        let name = self.name();
        ensure!(
            said.status.success(),
            "on {name}, `{script}` failed ({}):\n{}",
            said.status,
            tail(&said.all())
        );
        Ok(said.output.trim().to_owned())
    }

    /// Waits until a script succeeds; what it printed then.
    ///
    /// # Errors
    /// Where it doesn't within the [`patience`] for so many seconds, with what it said the last time.
    pub fn until(&self, what: &str, seconds: u64, script: &str) -> Result<String> {
        let start = Instant::now();
        loop {
            let said = self.run(script)?;
            if said.status.success() {
                return Ok(said.output.trim().to_owned());
            }
            ensure!(
                start.elapsed() < patience(seconds),
                "{what} did not come about on {} within {:?}:\n{}",
                self.name(),
                patience(seconds),
                tail(&said.all())
            );
            std::thread::sleep(POLL);
        }
    }

    /// Puts files and directories into a directory of the machine, which is made.
    ///
    /// # Errors
    /// Where they can't be read or written.
    pub fn put(&self, files: &[&Path], directory: &str) -> Result<()> {
        self.ssh.put(files, directory, patience(COMMAND_SECONDS))
    }

    /// Gets a file or directory of the machine into a directory.
    ///
    /// # Errors
    /// Where it can't be read or written.
    pub fn get(&self, path: &str, directory: &Path) -> Result<()> {
        self.ssh.get(path, directory, patience(COMMAND_SECONDS))
    }

    /// `ssh` to this machine, for a person.
    pub fn ssh(&self) -> Command {
        self.ssh.command()
    }

    /// Keeps the machine's state, memory and disk, under a name. It goes on.
    ///
    /// # Errors
    /// What qemu says.
    pub fn save(&self, state: &str) -> Result<()> {
        is_a_name(state)?;
        let answer = self.monitor()?.say(&format!("savevm {state}"))?;
        ensure!(answer.is_empty(), "cannot save the state: {answer}");
        fs::write(self.place.of(self.release, STATES).join(state), "")?;
        Ok(())
    }

    /// Gives up a state that was kept.
    ///
    /// # Errors
    /// What qemu says.
    pub fn forget(&self, state: &str) -> Result<()> {
        is_a_name(state)?;
        remove(&self.place.of(self.release, STATES).join(state))?;
        let answer = self.monitor()?.say(&format!("delvm {state}"))?;
        ensure!(answer.is_empty(), "cannot give up the state: {answer}");
        Ok(())
    }

    fn monitor(&self) -> Result<Monitor> {
        let socket = format!("{}/monitor", self.name());
        let monitor = Monitor::open(&self.place.machines(), &socket)?;
        monitor.with_context(|| format!("{} has ended", self.name()))
    }

    /// Pulls its power cord: what was not written to the disk is lost, and it boots again.
    ///
    /// # Errors
    /// A machine that does not come up again.
    pub fn reset(&mut self) -> Result<()> {
        self.reset_without_waiting()?;
        self.comes_up()
    }

    /// The same, without waiting for the boot: [`Self::comes_up`] does.
    ///
    /// # Errors
    /// A machine that has ended.
    pub fn reset_without_waiting(&mut self) -> Result<()> {
        self.disconnect();
        self.monitor()?.say("system_reset").map(drop)
    }

    /// Reboots it in an orderly way and waits until it is up again.
    ///
    /// # Errors
    /// A machine that does not come up again.
    pub fn reboot(&mut self) -> Result<()> {
        const BOOT: &str = "cat /proc/sys/kernel/random/boot_id";
        let before = self.ok(BOOT)?;
        // The connection may end before the answer.
        let _ = self.run("systemctl reboot");
        let start = Instant::now();
        loop {
            self.disconnect();
            self.comes_up()?;
            if self.ok(BOOT).is_ok_and(|boot| boot != before) {
                return Ok(());
            }
            ensure!(
                start.elapsed() < patience(BOOT_SECONDS),
                "{} does not reboot",
                self.name()
            );
            std::thread::sleep(POLL);
        }
    }

    /// Waits until ssh answers, and sets its clock: a state goes on at the time at which it was saved.
    ///
    /// # Errors
    /// A qemu that ended, or a machine that does not answer in time, with the end of its console.
    pub fn comes_up(&mut self) -> Result<()> {
        let start = Instant::now();
        loop {
            if let Some(qemu) = &mut self.qemu
                && let Some(status) = qemu.try_wait()?
            {
                let log = fs::read_to_string(self.place.of(self.release, "qemu.log"));
                bail!(
                    "{} ended ({status}): {}",
                    self.name(),
                    tail(&log.unwrap_or_default())
                );
            }
            let answer = self.ssh.run("true", patience(2));
            match answer {
                Ok(output) if output.status.success() => break,
                _ if start.elapsed() < patience(BOOT_SECONDS) => std::thread::sleep(POLL),
                Ok(output) => bail!("{}: `true` fails there ({})", self.name(), output.status),
                Err(error) => return Err(error).with_context(|| self.described()),
            }
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        self.ok(&format!("date -s @{now}")).map(drop)
    }

    /// A connection to a machine that went down would be waited for.
    fn disconnect(&self) {
        let mut command = self.ssh.command();
        let _ = command.args(["-O", "exit"]).output();
        let _ = remove(&self.place.of(self.release, "ssh"));
    }

    fn described(&self) -> String {
        let console = self.place.of(self.release, "console.log");
        format!(
            "{} (console: {}):\n{}",
            self.name(),
            console.display(),
            console_tail(&console)
        )
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(mut qemu) = self.qemu.take() {
            let _ = qemu.kill();
            let _ = qemu.wait();
        }
    }
}

/// What the monitor takes as one word.
fn is_a_name(state: &str) -> Result<()> {
    let good = |c: char| c.is_ascii_alphanumeric() || c == '-';
    ensure!(
        (1..=LONGEST_STATE).contains(&state.len()) && state.chars().all(good),
        "`{state}` can't be the name of a state: letters, digits and hyphens can"
    );
    Ok(())
}

/// A port that nobody listens at now. Somebody else may take it before qemu does: then qemu says so.
fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no port is free")?;
    Ok(listener.local_addr()?.port())
}

fn remove(file: &Path) -> Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", file.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_one_word() {
        assert!(is_a_name("ready-1").is_ok());
        for bad in ["", "a b", "a;quit", "a\nquit", &"a".repeat(65)] {
            assert!(is_a_name(bad).is_err(), "{bad:?}");
        }
    }
}
