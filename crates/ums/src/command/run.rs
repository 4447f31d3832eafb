//! `ums run`.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use tokio::time::Instant;
use ums_api::client::{RunRequest, ServiceView, paths};
use ums_core::id::ServiceName;
use ums_core::specification::{PublishedPort, Volume};

use super::{Outcome, print_either};
use crate::connection::Connection;
use crate::exit::Failure;
use crate::progress::Screen;
use crate::show;
use crate::value::{Size, User, published_port, variable, volume};

/// How often it is told that the start is waited for. One that takes less is not worth a word.
const TELL_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Name of the service
    name: ServiceName,
    /// The root filesystem to start from; the service gets a copy of its own
    #[arg(long, value_name = "DIR")]
    rootfs: PathBuf,
    /// A directory that is kept apart from the root filesystem; may be repeated
    #[arg(long = "volume", value_name = "NAME:/PATH", value_parser = volume)]
    volumes: Vec<Volume>,
    /// A port of this system that leads to a port of the service; may be repeated
    #[arg(long = "publish", value_name = "SYSTEM:SERVICE", value_parser = published_port)]
    ports: Vec<PublishedPort>,
    /// Memory limit, such as 512M
    #[arg(long, value_name = "SIZE")]
    memory: Option<Size>,
    /// A variable of the service's environment; may be repeated
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<String>,
    /// Working directory inside
    #[arg(long, value_name = "DIR", default_value = "/")]
    cwd: String,
    /// User and group id inside
    #[arg(long, value_name = "UID:GID", default_value = "0:0")]
    user: User,
    /// Address on the service network [default: one that follows from the names of system and service]
    #[arg(long, value_name = "ADDRESS")]
    address: Option<Ipv4Addr>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<String>,
}

impl Args {
    /// What is asked of the Coordinator; a relative root filesystem lies in `here`.
    pub(crate) fn request(&self, here: &Path) -> anyhow::Result<RunRequest> {
        if !self.cwd.starts_with('/') {
            return Err(anyhow!("--cwd: `{}` is not an absolute path", self.cwd));
        }
        let rootfs = here.join(&self.rootfs);
        let rootfs = rootfs.to_str().with_context(|| {
            format!(
                "--rootfs: `{}` is not UTF-8; rename the directory",
                rootfs.display()
            )
        })?;
        Ok(RunRequest {
            name: self.name.clone(),
            rootfs: rootfs.to_owned(),
            command: self.command.clone(),
            env: self.env.clone(),
            cwd: self.cwd.clone(),
            uid: self.user.uid,
            gid: self.user.gid,
            memory_limit_bytes: self.memory.map(|Size(bytes)| bytes),
            volumes: self.volumes.clone(),
            address: self.address,
            ports: self.ports.clone(),
        })
    }
}

/// Waits for an answer, and tells so each second. A copy of a large root filesystem takes minutes.
async fn told_meanwhile<T>(screen: &mut Screen, what: &str, asked: impl Future<Output = T>) -> T {
    let mut asked = std::pin::pin!(asked);
    let began = Instant::now();
    let mut every = tokio::time::interval_at(began + TELL_EVERY, TELL_EVERY);
    loop {
        tokio::select! {
            biased;
            answer = &mut asked => return answer,
            _ = every.tick() => screen.waiting(what, began.elapsed()),
        }
    }
}

pub(crate) async fn execute(args: Args, coordinator: Connection) -> Outcome {
    let here = std::env::current_dir().context("the working directory is gone")?;
    let request = args.request(&here).map_err(Failure::usage)?;
    let what = format!(
        "taking a copy of `{}` into the image store, and starting `{}`",
        args.rootfs.display(),
        args.name
    );
    let mut screen = Screen::new(!args.json);
    let asked = coordinator.post::<ServiceView>(paths::SERVICES, &request);
    let view = told_meanwhile(&mut screen, &what, asked).await;
    screen.clear();
    let view = view?;
    print_either(args.json, &view, |view| {
        show::services(std::slice::from_ref(view))
    })
}
