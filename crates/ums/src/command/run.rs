//! `ums run`.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use tokio::time::Instant;
use ums_api::client::{ImageSource, RunRequest, Started, Unpacking, paths};
use ums_core::id::ServiceName;
use ums_core::specification::{PublishedPort, Volume};
use ums_image::Reference;

use super::{Outcome, print_either};
use crate::connection::Connection;
use crate::exit::Failure;
use crate::progress::Screen;
use crate::show;
use crate::value::{Cpus, Restart, Size, image, label, published_port, variable, volume};

/// How often it is told that the start is waited for. One that takes less is not worth a word.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// The longest wait for how far an image is.
const FAR_TIME_MAX: Duration = Duration::from_millis(500);

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Name of the service
    name: ServiceName,
    /// A root filesystem to start from in place of an image; the service gets a copy of its own
    #[arg(long, value_name = "DIR")]
    rootfs: Option<PathBuf>,
    /// A directory that is kept apart from the root filesystem; may be repeated
    #[arg(short = 'v', long = "volume", value_name = "NAME:/PATH", value_parser = volume)]
    volumes: Vec<Volume>,
    /// A port of this system that leads to a port of the service; may be repeated
    #[arg(short = 'p', long = "publish", value_name = "SYSTEM:SERVICE", value_parser = published_port)]
    ports: Vec<PublishedPort>,
    /// Memory limit, such as 512M
    #[arg(short = 'm', long, value_name = "SIZE")]
    memory: Option<Size>,
    /// Processors that it may use, such as 1.5
    #[arg(long, value_name = "NUMBER")]
    cpus: Option<Cpus>,
    /// A variable of the service's environment, of the same value as here when none is given; may be repeated
    #[arg(short = 'e', long = "env", value_name = "NAME[=VALUE]", value_parser = variable)]
    env: Vec<String>,
    /// A label; may be repeated
    #[arg(short = 'l', long = "label", value_name = "NAME[=VALUE]", value_parser = label)]
    labels: Vec<(String, String)>,
    /// Working directory inside [default: the image's, or /]
    #[arg(short = 'w', long, alias = "workdir", value_name = "DIR")]
    cwd: Option<String>,
    /// User and group inside, names of the image's own or numbers [default: the image's, or root]
    #[arg(short = 'u', long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// What is run in place of the image's entrypoint and command
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// What happens when it ends: nothing is started again here
    #[arg(long, value_name = "POLICY", default_value = "no")]
    restart: Restart,
    /// Don't wait for its end: nobody does
    #[arg(short = 'd', long)]
    detach: bool,
    /// Address on the service network [default: one that follows from the names of system and service]
    #[arg(long, value_name = "ADDRESS")]
    address: Option<Ipv4Addr>,
    /// Speak to the image's registry without TLS
    #[arg(long)]
    plain_http: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// The image, and what is run in place of its command; of --rootfs, what is run
    ///
    /// An image is oci:DIR[:TAG], docker-archive:FILE[:NAME:TAG], docker://HOST[:PORT]/NAME[:TAG|@DIGEST], or the path of
    /// a root filesystem that begins with `/` or `.`.
    #[arg(required = true, trailing_var_arg = true, value_name = "IMAGE|CMD")]
    words: Vec<String>,
}

impl Args {
    /// What is asked of the Coordinator; relative paths lie in `here`.
    pub(crate) fn request(&self, here: &Path) -> anyhow::Result<RunRequest> {
        let cwd = self.cwd.clone().unwrap_or_default();
        if !cwd.is_empty() && !cwd.starts_with('/') {
            return Err(anyhow!("--cwd: `{cwd}` is not an absolute path"));
        }
        let (rootfs, image, command) = self.base(here)?;
        if command.is_empty() && image.is_none() && self.entrypoint.is_none() {
            return Err(anyhow!(
                "a root filesystem does not say what is run: name it, `ums run NAME --rootfs DIR -- CMD`"
            ));
        }
        Ok(RunRequest {
            name: self.name.clone(),
            rootfs,
            image,
            command,
            entrypoint: self.entrypoint.clone(),
            env: self.env.clone(),
            cwd,
            user: self.user.clone(),
            uid: 0,
            gid: 0,
            memory_limit_bytes: self.memory.map(|Size(bytes)| bytes),
            nano_cpus: self.cpus.map(|Cpus(nano)| nano),
            labels: self.labels.iter().cloned().collect::<BTreeMap<_, _>>(),
            volumes: self.volumes.clone(),
            address: self.address,
            ports: self.ports.clone(),
        })
    }

    /// What it is started from: a root filesystem, or an image; and the command.
    fn base(&self, here: &Path) -> anyhow::Result<(String, Option<ImageSource>, Vec<String>)> {
        if let Some(rootfs) = &self.rootfs {
            return Ok((
                text(&here.join(rootfs), "--rootfs")?,
                None,
                self.words.clone(),
            ));
        }
        let (given, command) = self.words.split_first().context("name an image")?;
        let reference = image(given)?.below(here);
        if let Reference::Rootfs(dir) = &reference {
            return Ok((text(dir, "the image")?, None, command.to_vec()));
        }
        let source = ImageSource {
            login: super::image::login(&reference)?,
            reference: text(Path::new(&reference.to_string()), "the image")?,
            plain_http: self.plain_http,
        };
        Ok((String::new(), Some(source), command.to_vec()))
    }
}

fn text(path: &Path, what: &str) -> anyhow::Result<String> {
    let text = path.to_str().with_context(|| {
        let shown = path.display();
        format!("{what}: `{shown}` is not UTF-8; rename the directory")
    })?;
    Ok(text.to_owned())
}

/// Waits for an answer, and tells so each second. A large image takes minutes.
async fn told_meanwhile<T>(
    screen: &mut Screen,
    args: &Args,
    coordinator: &Connection,
    asked: impl Future<Output = T>,
) -> T {
    let mut asked = std::pin::pin!(asked);
    let began = Instant::now();
    let mut every = tokio::time::interval_at(began + TELL_EVERY, TELL_EVERY);
    let path = paths::image(&args.name);
    loop {
        tokio::select! {
            biased;
            answer = &mut asked => return answer,
            _ = every.tick() => {
                let far = tokio::time::timeout(FAR_TIME_MAX, coordinator.get::<Unpacking>(&path)).await;
                let what = what(args, far.ok().and_then(Result::ok));
                screen.waiting(&what, began.elapsed());
            }
        }
    }
}

fn what(args: &Args, far: Option<Unpacking>) -> String {
    if let Some(far) = far {
        let (done, all) = (show::bytes(far.bytes), show::bytes(far.bytes_total));
        return format!("unpacking the image, {done} of {all}");
    }
    match &args.rootfs {
        Some(rootfs) => format!(
            "taking a copy of `{}` into the image store, and starting `{}`",
            rootfs.display(),
            args.name
        ),
        None => format!(
            "having the image in the store, and starting `{}`",
            args.name
        ),
    }
}

pub(crate) async fn execute(args: Args, coordinator: Connection) -> Outcome {
    let here = std::env::current_dir().context("the working directory is gone")?;
    let request = args.request(&here).map_err(Failure::usage)?;
    let mut screen = Screen::new(!args.json);
    let asked = coordinator.post::<Started>(paths::SERVICES, &request);
    let started = told_meanwhile(&mut screen, &args, &coordinator, asked).await;
    screen.clear();
    let started = started?;
    for note in &started.notes {
        screen.say(note);
    }
    print_either(args.json, &started, |started| {
        show::services(std::slice::from_ref(&started.view))
    })
}
