//! `ums image`.

use std::path::PathBuf;

use serde::Serialize;
use ums_api::client::Login;
use ums_image::limits::Limits;
use ums_image::registry::Access;
use ums_image::wrap::{Programs, wrap};
use ums_image::{Image, Reference, registry};

use super::{Outcome, print_either};
use crate::config::Config;
use crate::exit::{Exit, Failure};
use crate::progress::Screen;
use crate::show;
use crate::value::image;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Make an image whose container can be moved with no more authority than it has
    Wrap(Wrap),
    /// Show what an image is made of
    Inspect(Inspect),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Wrap {
    /// oci:DIR[:TAG], docker-archive:FILE[:NAME:TAG] or docker://HOST[:PORT]/NAME[:TAG|@DIGEST]
    #[arg(value_name = "IMAGE", value_parser = image)]
    image: Reference,
    /// How the service is kept in it
    #[arg(long, value_name = "LEVEL")]
    level: Level,
    /// Where the wrapped image is written to, named likewise
    #[arg(long, value_name = "IMAGE", value_parser = image)]
    to: Reference,
    /// Speak to registries without TLS
    #[arg(long)]
    plain_http: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Level {
    /// In a container of its own inside the image's container
    Container,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Inspect {
    /// oci:DIR[:TAG], docker-archive:FILE[:NAME:TAG] or docker://HOST[:PORT]/NAME[:TAG|@DIGEST]
    #[arg(value_name = "IMAGE", value_parser = image)]
    image: Reference,
    /// Speak to its registry without TLS
    #[arg(long)]
    plain_http: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn execute(command: Command, config: &Config) -> Outcome {
    match command {
        Command::Wrap(args) => wrapped(&args, config),
        Command::Inspect(args) => inspect(&args),
    }
}

#[derive(Serialize)]
struct Wrapped {
    image: String,
    digest: String,
    original_digest: Option<String>,
    notes: Vec<String>,
}

fn wrapped(args: &Wrap, config: &Config) -> Outcome {
    let Level::Container = args.level;
    let original = open(&args.image, args.plain_http)?;
    let programs = Programs {
        agent: config.bin_dir.join("ums-agent"),
        frontman: config.bin_dir.join("ums-frontman"),
        bundle: config.bundle.clone(),
    };
    let access = access(&args.to, args.plain_http).map_err(refused)?;
    let made = wrap(&original, &args.image, &programs, &args.to, &access).map_err(refused)?;
    let mut notes = vec![match &made.original {
        Some(digest) => format!(
            "signatures of the original are of {digest} and none of the wrapped image: sign that, if somebody asks for \
             one"
        ),
        None => "the wrapped image has no signature: sign it, if somebody asks for one".to_owned(),
    }];
    notes.extend(made.dynamic.iter().map(|path| {
        format!(
            "`{}` is linked dynamically: the wrapped image starts only if it has a C library that fits; build programs \
             that need none (RUSTFLAGS='-C target-feature=+crt-static', docs/outer.md) and name their place (`--bin-dir`)",
            path.display()
        )
    }));
    let shown = Wrapped {
        image: args.to.to_string(),
        digest: made.digest.to_string(),
        original_digest: made.original.map(|it| it.to_string()),
        notes,
    };
    let mut screen = Screen::new(!args.json);
    for note in &shown.notes {
        screen.say(note);
    }
    print_either(args.json, &shown, |it| {
        format!("{} {}\n", it.image, it.digest)
    })
}

#[derive(Serialize)]
struct Inspected {
    image: String,
    digest: Option<String>,
    config_digest: String,
    platform: String,
    layers: Vec<Layer>,
    user: String,
    entrypoint: Vec<String>,
    command: Vec<String>,
    cwd: String,
    env: Vec<String>,
    ports: Vec<String>,
    volumes: Vec<String>,
    labels: std::collections::BTreeMap<String, String>,
    stop_signal: Option<String>,
    health_check: Vec<String>,
    wrapped: bool,
}

#[derive(Serialize)]
struct Layer {
    digest: String,
    bytes: u64,
}

fn inspect(args: &Inspect) -> Outcome {
    let image = open(&args.image, args.plain_http)?;
    let run = image.config.config.clone();
    let layers = image.layers.iter().map(|layer| Layer {
        digest: layer.descriptor.digest.to_string(),
        bytes: layer.descriptor.size,
    });
    let inspected = Inspected {
        image: args.image.to_string(),
        digest: image.manifest_digest.as_ref().map(ToString::to_string),
        config_digest: image.config_digest.to_string(),
        platform: image.config.platform.to_string(),
        layers: layers.collect(),
        wrapped: run.volumes.contains_key(ums_core::wrap::STATE),
        health_check: run.health().map(|it| it.test.clone()).unwrap_or_default(),
        user: run.user,
        entrypoint: run.entrypoint,
        command: run.cmd,
        cwd: run.working_dir,
        env: run.env,
        ports: run.exposed_ports.into_keys().collect(),
        volumes: run.volumes.into_keys().collect(),
        labels: run.labels,
        stop_signal: run.stop_signal,
    };
    print_either(args.json, &inspected, text)
}

fn text(of: &Inspected) -> String {
    let all: u64 = of.layers.iter().map(|layer| layer.bytes).sum();
    let quoted = |words: &[String]| {
        let words = words.iter().map(|word| format!("{word:?}"));
        words.collect::<Vec<_>>().join(" ")
    };
    let mut lines = vec![
        ("image", of.image.clone()),
        ("digest", of.digest.clone().unwrap_or_default()),
        ("id", of.config_digest.clone()),
        ("platform", of.platform.clone()),
        (
            "layers",
            format!("{}, {}", of.layers.len(), show::bytes(all)),
        ),
        ("entrypoint", quoted(&of.entrypoint)),
        ("command", quoted(&of.command)),
        ("user", of.user.clone()),
        ("directory", of.cwd.clone()),
        ("ports", of.ports.join(", ")),
        ("volumes", of.volumes.join(", ")),
        ("stop signal", of.stop_signal.clone().unwrap_or_default()),
        ("health check", quoted(&of.health_check)),
        (
            "wrapped",
            if of.wrapped { "container level" } else { "" }.to_owned(),
        ),
    ];
    lines.retain(|(_, value)| !value.is_empty());
    let line = |(name, value): &(&str, String)| format!("{name:<13} {value}\n");
    lines.iter().map(line).collect()
}

fn open(reference: &Reference, plain_http: bool) -> Result<Image, Failure> {
    let access = access(reference, plain_http).map_err(refused)?;
    Image::open(reference, &access, &Limits::default()).map_err(refused)
}

fn access(reference: &Reference, plain_http: bool) -> Result<Access, ums_image::Error> {
    let login = login(reference)?.map(|login| registry::Login {
        username: login.username,
        password: login.password,
    });
    Ok(Access { plain_http, login })
}

fn refused(error: ums_image::Error) -> Failure {
    let exit = match &error {
        ums_image::Error::Io { .. } => Exit::Failed,
        _ => Exit::Refused,
    };
    let error = anyhow::Error::new(error).context("the image can't be used");
    Failure::new(exit, error)
}

/// Who one is at the registry of an image, as `docker login` or `podman login` remembers it.
pub(crate) fn login(reference: &Reference) -> Result<Option<Login>, ums_image::Error> {
    let Reference::Registry(repository, _) = reference else {
        return Ok(None);
    };
    for file in remembered() {
        if let Some(login) = registry::Login::find(&file, &repository.host)? {
            return Ok(Some(Login {
                username: login.username,
                password: login.password,
            }));
        }
    }
    Ok(None)
}

/// Where logins are kept (`containers-auth.json(5)`, `docker login`).
fn remembered() -> Vec<PathBuf> {
    let of = |name: &str, below: &str| {
        let value = std::env::var_os(name).filter(|value| !value.is_empty());
        value.map(|value| PathBuf::from(value).join(below))
    };
    let named = std::env::var_os("REGISTRY_AUTH_FILE").map(PathBuf::from);
    let docker = of("DOCKER_CONFIG", "config.json").or_else(|| of("HOME", ".docker/config.json"));
    let podman = of("XDG_RUNTIME_DIR", "containers/auth.json");
    [named, docker, podman].into_iter().flatten().collect()
}
