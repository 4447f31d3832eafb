//! The paper's way, pinned: `runc checkpoint` into a tmpfs, `rsync` over ssh on the shaped link,
//! `runc restore` of the same kind of container at the destination.
//!
//! It is measured at its best: the destination is prepared beforehand, each part follows the
//! one before without any coordination between systems, and images never touch a disk.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::container::{NAME, Place, address};
use super::gap::Clients;
use super::{Cell, Sample, Technique, criu_way, runc_lazy};
use crate::hog::{self, Request};
use crate::testbed::Testbed;
use crate::tools::{run, text, wait_for};

/// Port of the ssh server at the destination.
const SSH_PORT: u16 = 2222;

/// Longest wait for the hog to answer: filling 1 GiB in an unoptimised build takes seconds.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// How long a client waits for an answer before it tries a new connection: those from before end.
const CLIENT_PATIENCE: Duration = Duration::from_secs(1);

/// An ssh server in the destination's namespaces, with keys made for it alone.
#[derive(Debug)]
pub struct SshServer {
    child: Child,
    /// The options after `ssh` that lead to it.
    client: String,
}

impl SshServer {
    /// Makes keys for both ends and starts the server on system `b`.
    pub fn start(testbed: &Testbed) -> Result<Self> {
        let dir = testbed.directory().join("ssh");
        fs::create_dir_all(&dir)?;
        fs::set_permissions(&dir, PermissionsExt::from_mode(0o700))?;
        let key = |name: &str| -> Result<PathBuf> {
            let path = dir.join(name);
            let mut keygen = Command::new("ssh-keygen");
            run(keygen
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(&path))?;
            Ok(path)
        };
        let (host, client) = (key("host")?, key("client")?);
        fs::copy(client.with_extension("pub"), dir.join("authorized_keys"))?;
        let b = &testbed.b;
        let public = fs::read_to_string(host.with_extension("pub"))?;
        fs::write(
            dir.join("known_hosts"),
            format!("[{}]:{SSH_PORT} {public}", b.ip()),
        )?;
        let config = dir.join("sshd_config");
        fs::write(&config, server_config(&dir, &b.ip().to_string()))?;
        run(b.exec("mkdir").args(["-p", "/run/sshd"]))?;
        let log = fs::File::create(dir.join("sshd.log"))?;
        let mut sshd = b.exec(crate::rootfs::program("sshd")?);
        sshd.args(["-D", "-e", "-f"])
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(log);
        let child = sshd.spawn().context("cannot start sshd")?;
        let client = format!(
            "ssh -F none -i {} -o UserKnownHostsFile={} -o BatchMode=yes -p {SSH_PORT}",
            client.display(),
            dir.join("known_hosts").display()
        );
        let server = Self { child, client };
        let target = format!("root@{}", b.ip());
        wait_for("the ssh server", PATIENCE, || {
            let mut words = server.client.split(' ');
            let mut ssh = testbed.a.exec(words.next().unwrap_or_default());
            run(ssh.args(words).args([&target, "true"])).ok()
        })
        .with_context(|| fs::read_to_string(dir.join("sshd.log")).unwrap_or_default())?;
        Ok(server)
    }
}

impl Drop for SshServer {
    fn drop(&mut self) {
        // `nsenter` only waits for the server that it started.
        for pid in crate::tools::children_of(i32::try_from(self.child.id()).unwrap_or_default()) {
            let pid = nix::unistd::Pid::from_raw(pid);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        }
        let _ = self.child.wait();
    }
}

fn server_config(dir: &std::path::Path, ip: &str) -> String {
    let dir = dir.display();
    format!(
        "ListenAddress {ip}:{SSH_PORT}\nHostKey {dir}/host\nAuthorizedKeysFile {dir}/authorized_keys\n\
         PidFile none\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\n\
         StrictModes no\nUseDNS no\n"
    )
}

/// One move between two prepared places.
pub(super) struct Way<'a> {
    pub(super) from: Place<'a>,
    pub(super) to: Place<'a>,
    pub(super) ssh: &'a SshServer,
    pub(super) technique: Technique,
    pub(super) cell: Cell,
    pub(super) run: u32,
}

/// Moves a hog from `a` to `b` once, in a container of runc's.
pub fn measure(
    testbed: &Testbed,
    ssh: &SshServer,
    technique: Technique,
    cell: Cell,
    run: u32,
) -> Result<Sample> {
    let way = Way {
        from: Place::prepare(testbed, &testbed.a, cell)?,
        to: Place::prepare(testbed, &testbed.b, cell)?,
        ssh,
        technique,
        cell,
        run,
    };
    let sample = watched(&way);
    let cleared = way.from.clear().and(way.to.clear());
    let sample = sample?;
    cleared?;
    Ok(sample)
}

/// Moves it while clients ask, on the system that it leaves and on the one that it comes to.
fn watched(way: &Way<'_>) -> Result<Sample> {
    start(&way.from)?;
    ask(&way.from, Request::Reset)?;
    let places = [&way.from, &way.to].map(|place| (place.system.namespace(), address()));
    let clients = Clients::start(&places, CLIENT_PATIENCE)?;
    let sent = way.from.system.peer_bytes()?;
    let moved = match way.technique {
        Technique::RuncLazy => runc_lazy::moved(way),
        Technique::Criu => criu_way::moved(way),
        _ => moved(way),
    };
    let wire_bytes = way.from.system.peer_bytes()?.saturating_sub(sent);
    let seen = clients.stop()?;
    Ok(Sample {
        client_gap_ms: seen.map(|seen| seen.gap_ms),
        before_p99_ms: seen.map(|seen| seen.before_p99_ms),
        after_p99_ms: seen.map(|seen| seen.after_p99_ms),
        wire_bytes,
        ..moved?
    })
}

fn moved(way: &Way<'_>) -> Result<Sample> {
    let began = Instant::now();
    checkpoint(&way.from)?;
    rsync(&way.from, &way.to, way.ssh)?;
    restore(&way.to)?;
    verified(way, &way.to, began.elapsed())
}

/// The sample, once the hog has said where it is now that it has all its memory.
pub(super) fn verified(way: &Way<'_>, at: &Place<'_>, total: Duration) -> Result<Sample> {
    let status = wait_for("the restored hog's answer", PATIENCE, || {
        ask(at, Request::Verify).ok()
    })?;
    ensure!(
        status.intact == Some(true),
        "the hog's memory was not restored as it was"
    );
    Ok(Sample {
        technique: way.technique,
        cell: way.cell,
        run: way.run,
        total_ms: total.as_secs_f64() * 1e3,
        downtime_ms: Some(status.largest_gap_ms),
        client_gap_ms: None,
        before_p99_ms: None,
        after_p99_ms: None,
        wire_bytes: 0,
        agent_mib: None,
    })
}

fn start(place: &Place<'_>) -> Result<()> {
    let mut runc = place.runc();
    runc.args(["run", "--detach", "--bundle"])
        .arg(place.bundle())
        .arg(NAME);
    quiet(&mut runc, place)?;
    wait_for("the hog's answer", PATIENCE, || {
        ask(place, Request::Status).ok()
    })
    .map(|_| ())
}

pub(super) fn checkpoint(place: &Place<'_>) -> Result<()> {
    let mut runc = place.runc();
    runc.args(["checkpoint", "--tcp-established", "--image-path"])
        .arg(place.images());
    runc.arg("--work-path").arg(place.images()).arg(NAME);
    quiet(&mut runc, place)
}

pub(super) fn rsync(from: &Place<'_>, to: &Place<'_>, ssh: &SshServer) -> Result<()> {
    let mut rsync = from.system.exec("rsync");
    rsync.arg("-a").arg("-e").arg(&ssh.client);
    rsync.arg(format!("{}/", from.images().display()));
    let target = format!("root@{}:{}/", to.system.ip(), to.images().display());
    run(rsync.arg(target)).map(|_| ())
}

pub(super) fn restore(place: &Place<'_>) -> Result<()> {
    let mut runc = place.runc();
    runc.args(["restore", "--detach", "--tcp-established", "--image-path"])
        .arg(place.images());
    runc.arg("--work-path").arg(place.images());
    runc.arg("--bundle").arg(place.bundle()).arg(NAME);
    quiet(&mut runc, place)
}

fn ask(place: &Place<'_>, request: Request) -> Result<hog::Status> {
    place
        .system
        .namespace()
        .in_network(|| hog::ask(address(), request))
}

/// Runs runc without output: a container inherits it, and a file from outside its mounts can't
/// be checkpointed. What it has to say is in its own log.
pub(super) fn quiet(runc: &mut Command, place: &Place<'_>) -> Result<()> {
    let status = runc
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    let status = status.context("cannot start runc")?;
    if status.success() {
        return Ok(());
    }
    Err(failed(place, &format!("runc ({status})")))
}

/// What runc and CRIU have to say of a failure.
pub(super) fn failed(place: &Place<'_>, what: &str) -> anyhow::Error {
    let criu = |name: &str| {
        let path = place.images().join(name);
        text(place.system.exec("grep").arg("-m5").arg("Error").arg(path)).unwrap_or_default()
    };
    let said = text(place.system.exec("cat").arg(place.log())).unwrap_or_default();
    let logs = ["dump.log", "restore.log", "lazy-pages.log"].map(criu);
    anyhow::anyhow!("{what} failed: {said}\n{}", logs.join("\n"))
}
