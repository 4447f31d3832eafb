//! What an expert would do: `runc checkpoint --lazy-pages`, which serves the pages itself, the images by
//! `rsync` over ssh, `criu lazy-pages` at the destination and `runc restore --lazy-pages`.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::Sample;
use super::container::{NAME, Place};
use super::paper_way::{PATIENCE, Way, failed, rsync, verified};
use crate::tools::wait_for;

/// Port of the page server at the source.
const PAGES_PORT: u16 = 27;

/// How long all pages may take to be over.
const PAGES_PATIENCE: Duration = Duration::from_secs(300);

/// Moves the hog that runs at the source.
pub(super) fn moved(way: &Way<'_>) -> Result<Sample> {
    let (from, to) = (&way.from, &way.to);
    let began = Instant::now();
    let mut dumping = Ended(checkpoint(from)?);
    serving(from, &mut dumping)?;
    rsync(from, to, way.ssh)?;
    let mut pages = Ended(lazy_pages(from, to)?);
    restore(to)?;
    // Only then the source may go.
    let over = |child: &mut Child| child.try_wait().ok().flatten();
    let wait = |child: &mut Child, what| {
        let status = wait_for(what, PAGES_PATIENCE, || over(child))?;
        ensure!(status.success(), "{what} did not come about ({status})");
        Ok(())
    };
    wait(&mut pages.0, "the end of the lazy pages")?;
    let total = began.elapsed();
    wait(&mut dumping.0, "the end of the dump")?;
    verified(way, to, total)
}

/// A program that is not left behind.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // `nsenter` only waits for the program that it started.
        for pid in crate::tools::children_of(i32::try_from(self.0.id()).unwrap_or_default()) {
            let pid = nix::unistd::Pid::from_raw(pid);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn quietly(command: &mut Command) -> Result<Child> {
    let null = || Stdio::null();
    let started = command.stdin(null()).stdout(null()).stderr(null()).spawn();
    started.context("cannot start a program")
}

/// runc goes on serving pages until all are fetched; in the status file is a byte once it serves.
fn checkpoint(from: &Place<'_>) -> Result<Child> {
    let status = from.status();
    let server = format!("{}:{PAGES_PORT}", from.system.ip());
    let mut runc = from.runc_with_status(&status);
    runc.args(["checkpoint", "--tcp-established", "--lazy-pages"]);
    runc.args(["--status-fd", "3", "--page-server", &server, "--image-path"]);
    runc.arg(from.images())
        .arg("--work-path")
        .arg(from.images());
    quietly(runc.arg(NAME))
}

fn serving(from: &Place<'_>, dumping: &mut Ended) -> Result<()> {
    let status = from.system.outside(&from.status());
    let served = wait_for("the page server", PATIENCE, || {
        let told = std::fs::metadata(&status).is_ok_and(|status| status.len() > 0);
        let ended = dumping.0.try_wait().ok().flatten();
        (told || ended.is_some()).then_some(ended)
    })?;
    match served {
        None => Ok(()),
        Some(_) => Err(failed(from, "runc checkpoint --lazy-pages")),
    }
}

fn lazy_pages(from: &Place<'_>, to: &Place<'_>) -> Result<Child> {
    let mut criu = to.criu();
    criu.args(["lazy-pages", "--page-server", "--address"]);
    criu.arg(from.system.ip().to_string());
    criu.args(["--port", &PAGES_PORT.to_string(), "-D"])
        .arg(to.images());
    criu.arg("-W").arg(to.images());
    let child = quietly(&mut criu)?;
    let socket = to.system.outside(&to.images().join("lazy-pages.socket"));
    wait_for("criu lazy-pages", PATIENCE, || {
        std::fs::symlink_metadata(&socket).is_ok().then_some(())
    })
    .map_err(|_| failed(to, "criu lazy-pages"))?;
    Ok(child)
}

fn restore(to: &Place<'_>) -> Result<()> {
    let mut runc = to.runc();
    runc.args(["restore", "--detach", "--tcp-established", "--lazy-pages"]);
    runc.arg("--image-path").arg(to.images());
    runc.arg("--work-path").arg(to.images());
    runc.arg("--bundle").arg(to.bundle()).arg(NAME);
    super::paper_way::quiet(&mut runc, to)
}
