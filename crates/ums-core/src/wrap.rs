//! What a wrapped image remembers of the image that it was made from: `/.ums/wrap.json`.
//!
//! A wrapped image holds the files of the original as they were, and beside them one directory:
//!
//! ```text
//! /.ums/wrap.json             this file
//! /.ums/bin/ums-agent         programs; they run whatever C library the image has, or none
//! /.ums/bin/ums-frontman
//! /.ums/bundle/               the C/R bundle (docs/bundle.md)
//! /.ums/state/                what the service changes, and the image store: a volume (`VOLUME` of the image),
//!                             because an overlay can't be an overlay's upper layer
//! /.ums/run/                  sockets; whoever starts the outer container mounts the system's directory here
//! /.ums/pki/                  ca.pem, cert.pem, key.pem of the system; mounted likewise, read-only
//! ```
//!
//! Its configuration (OCI image specification) is the original's, but for these: `Entrypoint` is
//! [`ENTRYPOINT`], `User` is root, and [`STATE`] is one more of `Volumes`. `Cmd`, `Env`, `WorkingDir`,
//! `ExposedPorts`, `StopSignal`, `Healthcheck`, `Labels` stay, so that a person who overrides one of them when
//! starting the container overrides what the service gets.

use serde::{Deserialize, Serialize};

use crate::specification::Transport;

/// The directory that wrapping adds.
pub const DIRECTORY: &str = "/.ums";
/// This file in it.
pub const FILE: &str = "/.ums/wrap.json";
/// Programs.
pub const PROGRAMS: &str = "/.ums/bin";
/// The C/R bundle.
pub const BUNDLE: &str = "/.ums/bundle";
/// What has to be a volume.
pub const STATE: &str = "/.ums/state";
/// Sockets.
pub const RUN: &str = "/.ums/run";
/// The system's certificate and key, and the authority that its peers' come from.
pub const PKI: &str = "/.ums/pki";
/// `Entrypoint` of a wrapped image of the container level.
pub const ENTRYPOINT: [&str; 2] = ["/.ums/bin/ums-agent", "outer"];
/// The layout of this file that is written.
pub const VERSION: u32 = 1;

/// How a service is kept in the container of a wrapped image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// In a container of its own inside it (UMS §III-C, container level).
    Container,
    /// As its processes (service level).
    Service,
}

/// The original image, as far as its configuration does not tell any more. Fields that a later release adds
/// are passed over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wrap {
    /// Layout of this file.
    pub version: u32,
    /// How the service is kept.
    pub level: Level,
    /// The reference of the original image, as it was named when it was wrapped; for people.
    #[serde(default)]
    pub image: String,
    /// Its `Entrypoint`.
    #[serde(default)]
    pub entrypoint: Vec<String>,
    /// Its `Cmd`: what is run where the container is started without arguments of its own and the engine
    /// gives none.
    #[serde(default)]
    pub cmd: Vec<String>,
    /// Its `User`: `USER[:GROUP]`, names of the image's `/etc/passwd` and `/etc/group`, or numbers; empty is
    /// root.
    #[serde(default)]
    pub user: String,
    /// Its `Env`, `NAME=value` each.
    #[serde(default)]
    pub env: Vec<String>,
    /// Its `WorkingDir`; empty is `/`.
    #[serde(default)]
    pub cwd: String,
    /// Its `StopSignal`.
    #[serde(default)]
    pub stop_signal: Option<String>,
    /// Its `ExposedPorts`.
    #[serde(default)]
    pub ports: Vec<Exposed>,
    /// Its `Volumes`, without [`STATE`].
    #[serde(default)]
    pub volumes: Vec<String>,
}

/// A port that an image exposes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Exposed {
    /// Transport protocol.
    pub transport: Transport,
    /// The port.
    pub port: u16,
}

/// Why a wrapped image can't be started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WrapError {
    /// A later layout.
    #[error(
        "{FILE} is of version {0}, this program knows {VERSION}: wrap the image with this release"
    )]
    Version(u32),
    /// Wrapped for something else.
    #[error("the image was wrapped with `--level {}`, which is started otherwise", level_name(*.0))]
    Level(Level),
    /// Neither an entrypoint nor a command.
    #[error("the image names nothing to run: give the command when starting the container")]
    NothingToRun,
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::Container => "container",
        Level::Service => "service",
    }
}

impl Wrap {
    /// Whether it is one that this release starts at the container level.
    pub fn check(&self) -> Result<(), WrapError> {
        match (self.version, self.level) {
            (VERSION, Level::Container) => Ok(()),
            (VERSION, level) => Err(WrapError::Level(level)),
            (version, _) => Err(WrapError::Version(version)),
        }
    }

    /// What the service runs: the original's entrypoint with the arguments that the container was started
    /// with, as an engine does it.
    pub fn command(&self, arguments: &[String]) -> Result<Vec<String>, WrapError> {
        let arguments = if arguments.is_empty() {
            &self.cmd[..]
        } else {
            arguments
        };
        let command = [&self.entrypoint[..], arguments].concat();
        match command.is_empty() {
            true => Err(WrapError::NothingToRun),
            false => Ok(command),
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn wrap(json: &str) -> Wrap {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn arguments_take_the_place_of_cmd_and_not_of_the_entrypoint() {
        let wrap = wrap(r#"{"version":1,"level":"container","entrypoint":["/run"],"cmd":["-v"]}"#);
        let own = ["--help".to_owned()];
        assert_eq!(wrap.command(&[]).unwrap(), ["/run", "-v"]);
        assert_eq!(wrap.command(&own).unwrap(), ["/run", "--help"]);
    }

    #[test]
    fn what_names_nothing_to_run_is_refused() {
        let wrap = wrap(r#"{"version":1,"level":"container","later":true}"#);
        assert_eq!(wrap.command(&[]), Err(WrapError::NothingToRun));
        assert_eq!(wrap.check(), Ok(()));
    }

    #[test]
    fn a_later_layout_and_another_level_are_refused_by_name() {
        let later = wrap(r#"{"version":2,"level":"container"}"#);
        assert_eq!(later.check(), Err(WrapError::Version(2)));
        let service = wrap(r#"{"version":1,"level":"service"}"#);
        let error = service.check().unwrap_err().to_string();
        assert!(error.contains("--level service"), "{error}");
    }
}
