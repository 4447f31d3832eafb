//! The bundle's self-test: a process with a listener and an established connection is dumped
//! and restored, and must go on where it was, with its connection alive.
//!
//! It runs in PID, mount and network namespaces of its own: the restored process gets its old
//! PID for certain, and the network lock touches nobody else.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::run;

/// Port of the process under test, in a network namespace where nobody else is.
const PORT: u16 = 4711;

/// Longest wait for the process to listen or answer: both take milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// Longest run of the whole test, which takes a fifth of a second.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs the self-test on a bundle. Needs root.
pub(crate) fn run(bundle: &Path) -> Result<()> {
    let own = std::env::current_exe()?;
    let dir = std::env::temp_dir().join(format!("ums-self-test-{}", std::process::id()));
    fs::create_dir(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let mut command = run::root("timeout");
    command.args(["--kill-after=5", &LIMIT.as_secs().to_string(), "unshare"]);
    command.args([
        "--pid",
        "--fork",
        "--kill-child",
        "--mount",
        "--mount-proc",
        "--net",
    ]);
    command
        .arg(own)
        .arg("self-test-driver")
        .arg(bundle)
        .arg(&dir);
    let outcome = run::quiet(&mut command);
    // The files are root's when the test ran through sudo.
    run::quiet(run::root("rm").arg("-rf").arg(&dir))?;
    outcome
        .context("the self-test failed: a process with sockets was not restored")
        .map(|_| ())
}

/// The part inside the namespaces, where it is PID 1.
pub(crate) fn driver(bundle: &Path, dir: &Path) -> Result<()> {
    let tools = Tools::new(bundle);
    run::quiet(tools.command("ip").args(["link", "set", "lo", "up"]))?;
    let mut peer = start_peer()?;
    let mut open = connect()?;
    let before = ask(&mut open)?;
    let dump = tools
        .criu("dump", dir)
        .args(["--tree", &peer.id().to_string()])
        .status()?;
    if !dump.success() {
        bail!("criu dump failed ({dump}):\n{}", log(dir, "dump"));
    }
    // Only once its remains are gone is the PID free again.
    wait_for_end(&mut peer)?;
    let restore = tools
        .criu("restore", dir)
        .arg("--restore-detached")
        .status()?;
    if !restore.success() {
        bail!("criu restore failed ({restore}):\n{}", log(dir, "restore"));
    }
    let after = ask(&mut open).context("the connection from before the dump is dead")?;
    ensure!(
        after > before,
        "the process began anew: it counted {before}, then {after}"
    );
    ask(&mut connect()?).context("the listener is dead after the restore")?;
    Ok(())
}

/// The process under test: counts forever, and tells its count to whoever asks.
///
/// It holds both ends of a connection to itself, and counts only what comes through.
pub(crate) fn peer(port: u16) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    let mut near = TcpStream::connect(listener.local_addr()?)?;
    let (far, _) = listener.accept()?;
    let mut far = BufReader::new(far);
    listener.set_nonblocking(true)?;
    let mut clients: Vec<BufReader<TcpStream>> = Vec::new();
    let mut line = String::new();
    loop {
        if let Ok((client, _)) = listener.accept() {
            client.set_nonblocking(false)?;
            client.set_read_timeout(Some(Duration::from_millis(1)))?;
            clients.push(BufReader::new(client));
        }
        let count: u64 = line.trim().parse().unwrap_or(0);
        near.write_all(format!("{}\n", count + 1).as_bytes())?;
        line.clear();
        far.read_line(&mut line)?;
        for client in &mut clients {
            let mut request = String::new();
            if client.read_line(&mut request).is_ok_and(|n| n > 0) {
                client.get_mut().write_all(line.as_bytes())?;
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The programs under test.
struct Tools {
    bundle: PathBuf,
}

impl Tools {
    fn new(bundle: &Path) -> Self {
        Self {
            bundle: bundle.to_path_buf(),
        }
    }

    fn command(&self, name: &str) -> Command {
        let bin = self.bundle.join("bin");
        let mut command = Command::new(bin.join(name));
        // Only the bundle's own programs can be found, so that one that lacks shows here.
        command.env("PATH", bin);
        command
    }

    fn criu(&self, verb: &str, dir: &Path) -> Command {
        let mut command = self.command("criu");
        command.arg(verb).arg("--images-dir").arg(dir);
        command.args([
            "--tcp-established",
            "--network-lock",
            "nftables",
            "-v4",
            "--log-file",
        ]);
        command.arg(format!("{verb}.log"));
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
    }
}

fn start_peer() -> Result<Child> {
    // A file that came from outside these namespaces could not be dumped: the shell closes
    // all but standard input and outputs, which go to /dev/null.
    let script = "for fd in /proc/self/fd/*; do fd=${fd##*/}; \
                  [ \"$fd\" -gt 2 ] && eval \"exec $fd>&-\"; done; exec setsid \"$@\"";
    Command::new("bash")
        .args(["-c", script, "bash"])
        .arg(std::env::current_exe()?)
        .args(["self-test-peer", &PORT.to_string()])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start the process under test")
}

fn wait_for_end(peer: &mut Child) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while peer.try_wait()?.is_none() {
        ensure!(
            Instant::now() < deadline,
            "criu dump said it was done, but the process goes on"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn connect() -> Result<BufReader<TcpStream>> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, PORT));
    let deadline = Instant::now() + PATIENCE;
    loop {
        match TcpStream::connect_timeout(&address, PATIENCE) {
            Ok(stream) => {
                stream.set_read_timeout(Some(PATIENCE))?;
                return Ok(BufReader::new(stream));
            }
            Err(error) if Instant::now() > deadline => {
                return Err(error).context("the process under test does not listen");
            }
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

fn ask(stream: &mut BufReader<TcpStream>) -> Result<u64> {
    stream.get_mut().write_all(b"?\n")?;
    let mut answer = String::new();
    stream
        .read_line(&mut answer)
        .context("the process under test does not answer")?;
    answer
        .trim()
        .parse()
        .with_context(|| format!("the process under test answered {answer:?}"))
}

fn log(dir: &Path, verb: &str) -> String {
    let text = fs::read_to_string(dir.join(format!("{verb}.log"))).unwrap_or_default();
    run::tail(&text)
}
