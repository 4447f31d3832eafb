//! `ums-frontman`: the process around [`ums_frontman::engine`] (connection mode) and
//! [`ums_frontman::packet`] (packet mode).
//!
//! When it listens, or can't, it says so in one line on standard output (a
//! [`Response`](ums_frontman::control::Response)); its log goes to standard error.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use ums_frontman::control::{Limits, Response, Status};
use ums_frontman::engine::{Config, Frontman};
use ums_frontman::packet::{self, launch::LAUNCH_BYTES_MAX};

/// Stands at a service's endpoint while the service moves.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    role: Role,
}

/// What it stands there as.
#[derive(Debug, Subcommand)]
enum Role {
    /// Holds and leads connections
    Connections(Connections),
    /// Holds and leads packets at the source; its launch is one JSON object on standard input
    Near(Place),
    /// Takes packets at the destination; its launch is one JSON object on standard input
    Far(Place),
}

#[derive(Debug, Args)]
struct Place {
    /// Waits for the death of the end that standard input comes from, and then goes on in its place
    #[arg(long)]
    standby: bool,
}

#[derive(Debug, Args)]
struct Connections {
    /// The service it stands for
    #[arg(long)]
    service: String,
    /// The migration that wants it
    #[arg(long)]
    owner: String,
    /// Control socket
    #[arg(long)]
    socket: PathBuf,
    /// State file
    #[arg(long)]
    state: PathBuf,
    /// A port of the system and where to listen for it, such as 8080=10.88.0.1:0; repeatable
    #[arg(long = "port", value_parser = parse_port, required = true)]
    ports: Vec<(u16, SocketAddr)>,
    /// Most connections kept without an upstream
    #[arg(long, default_value_t = Limits::default().hold_connections)]
    hold_connections: usize,
    /// Most bytes read ahead from them together
    #[arg(long, default_value_t = Limits::default().hold_bytes)]
    hold_bytes: usize,
    /// Longest time a connection waits for an upstream, seconds
    #[arg(long, default_value_t = Limits::default().hold_seconds)]
    hold_seconds: u64,
    /// Most connections led
    #[arg(long, default_value_t = Limits::default().lead_connections)]
    lead_connections: usize,
    /// Retires by itself this long after the last change, seconds
    #[arg(long, default_value_t = Limits::default().retire_after_seconds)]
    retire_after: u64,
    /// Drains this long when it retires by itself, seconds
    #[arg(long, default_value_t = Limits::default().drain_seconds)]
    drain_seconds: u64,
}

fn parse_port(text: &str) -> Result<(u16, SocketAddr), String> {
    let usage = || format!("`{text}` is not PORT=ADDRESS:PORT, such as 8080=10.88.0.1:0");
    let (system_port, listen) = text.split_once('=').ok_or_else(usage)?;
    let system_port: u16 = system_port.parse().map_err(|_| usage())?;
    Ok((system_port, listen.parse().map_err(|_| usage())?))
}

impl Connections {
    fn config(self) -> Result<Config, String> {
        let mut ports = BTreeMap::new();
        for (system_port, listen) in self.ports {
            if ports.insert(system_port, listen).is_some() {
                return Err(format!("port {system_port} is given twice"));
            }
        }
        Ok(Config {
            service: self.service,
            owner: self.owner,
            socket: self.socket,
            state: self.state,
            ports,
            limits: Limits {
                hold_connections: self.hold_connections,
                hold_bytes: self.hold_bytes,
                hold_seconds: self.hold_seconds,
                lead_connections: self.lead_connections,
                retire_after_seconds: self.retire_after,
                drain_seconds: self.drain_seconds,
            },
        })
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut reason = error.to_string();
            let mut source = error.source();
            while let Some(cause) = source {
                reason = format!("{reason}: {cause}");
                source = cause.source();
            }
            tracing::error!("{reason}");
            say(&Response::<Status>::Error(reason));
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<(), Box<dyn Error>> {
    let standby = matches!(&arguments.role, Role::Near(place) | Role::Far(place) if place.standby);
    let handover = match standby.then(|| packet::standby::wait(std::io::stdin())) {
        // What it was a standby of has retired.
        Some(Ok(None)) => return Ok(()),
        Some(handover) => handover?,
        None => None,
    };
    allow_descriptors();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        // Handled before anybody knows of the process, so that no early signal ends it.
        let stop = stop_on_signal()?;
        if let Some(handover) = handover {
            tracing::warn!("the end has died: its standby goes on");
            packet::live(handover, |_| {}, stop).await?;
            return Ok(());
        }
        match arguments.role {
            Role::Connections(arguments) => {
                let frontman = Frontman::start(arguments.config()?)?;
                say(&Response::Ok(Box::new(frontman.status())));
                frontman.run(stop).await;
            }
            Role::Near(_) => packet::near(launch()?, say_ready, stop).await?,
            Role::Far(_) => packet::far(launch()?, say_ready, stop).await?,
        }
        Ok(())
    })
}

/// What to do, from standard input, which its writer closes.
fn launch<T: DeserializeOwned>() -> Result<T, Box<dyn Error>> {
    let mut text = Vec::new();
    let bounded = std::io::stdin().lock().take(LAUNCH_BYTES_MAX);
    { bounded }.read_to_end(&mut text)?;
    serde_json::from_slice(&text)
        .map_err(|error| format!("standard input holds no launch for this role: {error}").into())
}

fn say_ready(status: packet::Status) {
    say(&Response::Ok(Box::new(status)));
}

fn stop_on_signal() -> std::io::Result<mpsc::Receiver<()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let (stop, stopped) = mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                Some(()) = terminate.recv() => {
                    // A full channel means that it has been asked already.
                    let _ = stop.try_send(());
                }
                // The end of somebody's terminal is no reason to leave clients alone.
                Some(()) = hang_up.recv() => {}
                else => return,
            }
        }
    });
    Ok(stopped)
}

/// Two descriptors for each connection: the usual soft limit of 1024 would end it too early.
fn allow_descriptors() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

/// One line to whoever started this; if nobody reads it, that is no reason to stop.
fn say<S: Serialize>(response: &Response<S>) {
    if let Ok(text) = serde_json::to_string(response) {
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "{text}").and_then(|()| out.flush());
    }
}
