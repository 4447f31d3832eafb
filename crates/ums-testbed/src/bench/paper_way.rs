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

use anyhow::{Context, Result, bail, ensure};

use super::container::{NAME, Place, address};
use super::{Sample, Way};
use crate::hog::{self, Request};
use crate::testbed::Testbed;
use crate::tools::{run, text, wait_for};

/// Port of the ssh server at the destination.
const SSH_PORT: u16 = 2222;

/// Longest wait for the hog to answer: filling 1 GiB in an unoptimised build takes seconds.
const PATIENCE: Duration = Duration::from_secs(60);

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

/// Moves a hog of `mib` MiB from `a` to `b` once. The first number of the result is the size of
/// the image, for the wire floor.
pub fn measure(testbed: &Testbed, ssh: &SshServer, mib: u64, run_number: u32) -> Result<Sample> {
    let from = Place::prepare(testbed, &testbed.a, mib)?;
    let to = Place::prepare(testbed, &testbed.b, mib)?;
    let sample = measure_between(&from, &to, ssh, mib, run_number);
    let cleared = from.clear().and(to.clear());
    let sample = sample?;
    cleared?;
    Ok(sample)
}

fn measure_between(
    from: &Place<'_>,
    to: &Place<'_>,
    ssh: &SshServer,
    mib: u64,
    run_number: u32,
) -> Result<Sample> {
    start(from)?;
    ask(from, Request::Reset)?;
    let began = Instant::now();
    checkpoint(from)?;
    let checkpointed = began.elapsed();
    rsync(from, to, ssh)?;
    let transferred = began.elapsed();
    restore(to)?;
    let total = began.elapsed();
    let status = wait_for("the restored hog's answer", PATIENCE, || {
        ask(to, Request::Verify).ok()
    })?;
    ensure!(
        status.intact == Some(true),
        "the hog's memory was not restored as it was"
    );
    let image = text(from.system.exec("du").arg("-sb").arg(from.images()))?;
    let bytes = image
        .split_whitespace()
        .next()
        .context("du said nothing")?
        .parse()?;
    Ok(Sample {
        way: Way::PaperWay,
        mib,
        run: run_number,
        total_s: total.as_secs_f64(),
        gap_s: Some(status.largest_gap_ms / 1e3),
        downtime_s: None,
        bytes,
        parts: vec![
            ("checkpoint".to_owned(), checkpointed.as_secs_f64()),
            (
                "rsync".to_owned(),
                (transferred - checkpointed).as_secs_f64(),
            ),
            ("restore".to_owned(), (total - transferred).as_secs_f64()),
        ],
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

fn checkpoint(place: &Place<'_>) -> Result<()> {
    let mut runc = place.runc();
    runc.args(["checkpoint", "--tcp-established", "--image-path"])
        .arg(place.images());
    runc.arg("--work-path").arg(place.images()).arg(NAME);
    quiet(&mut runc, place)
}

fn rsync(from: &Place<'_>, to: &Place<'_>, ssh: &SshServer) -> Result<()> {
    let mut rsync = from.system.exec("rsync");
    rsync.arg("-a").arg("-e").arg(&ssh.client);
    rsync.arg(format!("{}/", from.images().display()));
    let target = format!("root@{}:{}/", to.system.ip(), to.images().display());
    run(rsync.arg(target)).map(|_| ())
}

fn restore(place: &Place<'_>) -> Result<()> {
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
fn quiet(runc: &mut Command, place: &Place<'_>) -> Result<()> {
    let status = runc
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    let status = status.context("cannot start runc")?;
    if status.success() {
        return Ok(());
    }
    let criu = |name: &str| {
        let path = place.images().join(name);
        text(place.system.exec("grep").arg("-m5").arg("Error").arg(path)).unwrap_or_default()
    };
    let said = text(place.system.exec("cat").arg(place.log())).unwrap_or_default();
    bail!(
        "runc failed ({status}): {said}\n{}\n{}",
        criu("dump.log"),
        criu("restore.log")
    )
}
