//! One layer of settings, and how layers are merged.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::ValueEnum;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use ums_core::frontman::{FrontmanMode, PortRange};
use ums_core::id::SystemName;

use super::{ConfigError, FILE_DEFAULT, Peer};
use crate::value::{AbsolutePath, Bounded, EngineName, Lease, Network, Rate};

/// The largest configuration file that is read, bytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

impl FromStr for LogFormat {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        <Self as ValueEnum>::from_str(text, false)
            .map_err(|_| format!("`{text}` is not `human` or `json`"))
    }
}

/// When the pages of a service that arrives are put in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Restore {
    /// While it runs, by userfaultfd; where that can't be had, before it runs.
    #[default]
    Auto,
    /// All of them before it runs.
    Eager,
}

impl Restore {
    /// Its word.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Eager => "eager",
        }
    }
}

impl FromStr for Restore {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        <Self as ValueEnum>::from_str(text, false)
            .map_err(|_| format!("`{text}` is not `auto` or `eager`"))
    }
}

/// Settings as one layer gives them: flags and the file have the same names for them.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args, Deserialize)]
#[command(next_help_heading = "Settings (stronger than the configuration file)")]
#[serde(deny_unknown_fields)]
pub(crate) struct Layer {
    /// Name of this system, as in its certificate [default: the host name's first label]
    #[arg(long, global = true, value_name = "NAME", hide_short_help = true)]
    pub(crate) system: Option<SystemName>,
    /// Where images, services, the journal and certificates are kept [default: /var/lib/ums]
    #[arg(long, global = true, value_name = "DIR", hide_short_help = true)]
    pub(crate) state_dir: Option<PathBuf>,
    /// Where sockets are [default: /run/ums]
    #[arg(long, global = true, value_name = "DIR", hide_short_help = true)]
    pub(crate) run_dir: Option<PathBuf>,
    /// Where peers reach this Coordinator [default: 0.0.0.0:7443]
    #[arg(
        long,
        global = true,
        value_name = "ADDRESS:PORT",
        hide_short_help = true
    )]
    pub(crate) listen: Option<SocketAddr>,
    /// Address that peers and clients reach this system at [default: that of the default route]
    #[arg(long, global = true, value_name = "ADDRESS", hide_short_help = true)]
    pub(crate) advertise: Option<IpAddr>,
    /// Port of the data path; 0 takes any that is free [default: 0]
    #[arg(long, global = true, value_name = "PORT", hide_short_help = true)]
    pub(crate) data_port: Option<u16>,
    /// How a Frontman leads clients: packets or connections [default: packets]
    #[arg(long, global = true, value_name = "MODE", hide_short_help = true)]
    pub(crate) frontman: Option<FrontmanMode>,
    /// UDP ports for tunnels of packets, such as 7450-7499 [default: any that is free]
    #[arg(long, global = true, value_name = "PORTS", hide_short_help = true)]
    pub(crate) tunnel_ports: Option<PortRange>,
    /// Network of the services, the same on all systems [default: 10.88.0.0/16]
    #[arg(long, global = true, value_name = "NETWORK", hide_short_help = true)]
    pub(crate) service_network: Option<Network>,
    /// Certificate of the CA that peers are trusted by [default: STATE_DIR/pki/ca.pem]
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true)]
    pub(crate) ca: Option<PathBuf>,
    /// Certificate of this system [default: STATE_DIR/pki/cert.pem]
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true)]
    pub(crate) cert: Option<PathBuf>,
    /// Key of that certificate [default: STATE_DIR/pki/key.pem]
    #[arg(long, global = true, value_name = "FILE", hide_short_help = true)]
    pub(crate) key: Option<PathBuf>,
    /// The checkpoint/restore bundle [default: ums-bundle near the programs, or /usr/lib/ums/bundle]
    #[arg(long, global = true, value_name = "DIR", hide_short_help = true)]
    pub(crate) bundle: Option<PathBuf>,
    /// Where ums-agent and ums-frontman are [default: where ums is]
    #[arg(long, global = true, value_name = "DIR", hide_short_help = true)]
    pub(crate) bin_dir: Option<PathBuf>,
    /// The most that migrations may use of the link, such as 800mbit [default: no limit]
    #[arg(long, global = true, value_name = "RATE", hide_short_help = true)]
    pub(crate) bandwidth_limit: Option<Rate>,
    /// How long what is held for a silent peer is kept [default: 60s]
    #[arg(long, global = true, value_name = "TIME", hide_short_help = true)]
    pub(crate) lease: Option<Lease>,
    /// When pages of services that arrive are put in place: while they run (auto, where
    /// userfaultfd can be had) or before (eager) [default: auto]
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "MODE",
        hide_short_help = true
    )]
    pub(crate) restore: Option<Restore>,
    /// Form of the log [default: human on a terminal, json otherwise]
    #[arg(
        long,
        global = true,
        value_enum,
        value_name = "FORM",
        hide_short_help = true
    )]
    pub(crate) log_format: Option<LogFormat>,
    /// Bounds; only in the file.
    #[arg(skip)]
    #[serde(default)]
    pub(crate) limits: LimitsLayer,
    /// Container engines and their sockets; only in the file.
    #[arg(skip)]
    #[serde(default)]
    pub(crate) engines: BTreeMap<EngineName, AbsolutePath>,
    /// Peers; only in the file.
    #[arg(skip)]
    #[serde(default)]
    pub(crate) peers: BTreeMap<SystemName, Peer>,
}

/// The `[limits]` table.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LimitsLayer {
    /// Migrations at once from here.
    pub(crate) outgoing: Option<Bounded<1, 64>>,
    /// Migrations at once to here.
    pub(crate) incoming: Option<Bounded<1, 64>>,
    /// Connections that a Frontman holds.
    pub(crate) hold_connections: Option<Bounded<1, 1_000_000>>,
    /// Seconds that it holds a connection.
    pub(crate) hold_seconds: Option<Bounded<1, 3600>>,
    /// Seconds after which one that leads clients elsewhere retires.
    pub(crate) retire_seconds: Option<Bounded<5, 31_536_000>>,
    /// Seconds for which an image that no service uses is kept; a minute at the least, for it is
    /// taken into the store before its service is there.
    pub(crate) keep_images_seconds: Option<Bounded<60, 31_536_000>>,
    /// Seconds that a peer may say nothing on the data path; a healthy one says something every 5.
    pub(crate) idle_seconds: Option<Bounded<15, 3600>>,
    /// Seconds that a service may stand still for what does not depend on its size.
    pub(crate) freeze_seconds: Option<Bounded<1, 600>>,
}

/// Where settings come from. The environment is a function, so that tests need not change it.
pub(crate) struct Sources<'a> {
    /// Flags.
    pub(crate) flags: Layer,
    /// `--config`.
    pub(crate) file: Option<PathBuf>,
    /// Reads a variable.
    pub(crate) variable: &'a dyn Fn(&str) -> Option<OsString>,
}

/// The file that counts, and all layers over each other.
pub(super) fn merge(sources: Sources<'_>) -> Result<(PathBuf, Layer), ConfigError> {
    let environment = Environment {
        variable: sources.variable,
    };
    let named = match sources.file {
        Some(path) => Some(path),
        None => environment.read("UMS_CONFIG")?,
    };
    let (path, file) = match named {
        Some(path) => {
            let layer = read_file(&path)?;
            (path, layer)
        }
        // The default file may be absent: every setting has a default.
        None => match read_file(Path::new(FILE_DEFAULT)) {
            Ok(layer) => (FILE_DEFAULT.into(), layer),
            Err(ConfigError::Read { source, .. })
                if source.kind() == std::io::ErrorKind::NotFound =>
            {
                (FILE_DEFAULT.into(), Layer::default())
            }
            Err(error) => return Err(error),
        },
    };
    Ok((path, sources.flags.over(environment.layer()?).over(file)))
}

impl Layer {
    /// This layer where it says something, `weaker` elsewhere.
    fn over(self, weaker: Layer) -> Layer {
        Layer {
            system: self.system.or(weaker.system),
            state_dir: self.state_dir.or(weaker.state_dir),
            run_dir: self.run_dir.or(weaker.run_dir),
            listen: self.listen.or(weaker.listen),
            advertise: self.advertise.or(weaker.advertise),
            data_port: self.data_port.or(weaker.data_port),
            frontman: self.frontman.or(weaker.frontman),
            tunnel_ports: self.tunnel_ports.or(weaker.tunnel_ports),
            service_network: self.service_network.or(weaker.service_network),
            ca: self.ca.or(weaker.ca),
            cert: self.cert.or(weaker.cert),
            key: self.key.or(weaker.key),
            bundle: self.bundle.or(weaker.bundle),
            bin_dir: self.bin_dir.or(weaker.bin_dir),
            bandwidth_limit: self.bandwidth_limit.or(weaker.bandwidth_limit),
            lease: self.lease.or(weaker.lease),
            restore: self.restore.or(weaker.restore),
            log_format: self.log_format.or(weaker.log_format),
            // Only the file, the weakest layer, has these.
            limits: weaker.limits,
            engines: weaker.engines,
            peers: weaker.peers,
        }
    }
}

struct Environment<'a> {
    variable: &'a dyn Fn(&str) -> Option<OsString>,
}

impl Environment<'_> {
    fn layer(&self) -> Result<Layer, ConfigError> {
        Ok(Layer {
            system: self.read("UMS_SYSTEM")?,
            state_dir: self.read("UMS_STATE_DIR")?,
            run_dir: self.read("UMS_RUN_DIR")?,
            listen: self.read("UMS_LISTEN")?,
            advertise: self.read("UMS_ADVERTISE")?,
            data_port: self.read("UMS_DATA_PORT")?,
            frontman: self.read("UMS_FRONTMAN")?,
            tunnel_ports: self.read("UMS_TUNNEL_PORTS")?,
            service_network: self.read("UMS_SERVICE_NETWORK")?,
            ca: self.read("UMS_CA")?,
            cert: self.read("UMS_CERT")?,
            key: self.read("UMS_KEY")?,
            bundle: self.read("UMS_BUNDLE")?,
            bin_dir: self.read("UMS_BIN_DIR")?,
            bandwidth_limit: self.read("UMS_BANDWIDTH_LIMIT")?,
            lease: self.read("UMS_LEASE")?,
            restore: self.read("UMS_RESTORE")?,
            log_format: self.read("UMS_LOG_FORMAT")?,
            ..Layer::default()
        })
    }

    fn read<T: FromStr<Err: std::fmt::Display>>(
        &self,
        name: &'static str,
    ) -> Result<Option<T>, ConfigError> {
        let bad = |reason: String| ConfigError::Variable { name, reason };
        let Some(value) = (self.variable)(name) else {
            return Ok(None);
        };
        let text = value
            .into_string()
            .map_err(|_| bad("it is not UTF-8".to_owned()))?;
        if text.is_empty() {
            return Err(bad("it is empty; unset it, or give it a value".to_owned()));
        }
        let describe = |error: T::Err| bad(format!("`{text}` can't be used: {error}"));
        text.parse().map(Some).map_err(describe)
    }
}

/// Reads one TOML file; what is wrong with it is told with line and column.
pub(super) fn read_file<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let failed = |source| ConfigError::Read {
        path: path.to_owned(),
        source,
    };
    if std::fs::metadata(path).map_err(failed)?.len() > FILE_BYTES_MAX {
        let large = std::io::Error::from(std::io::ErrorKind::FileTooLarge);
        return Err(failed(large));
    }
    let text = std::fs::read_to_string(path).map_err(failed)?;
    toml::from_str(&text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start).min(text.len());
        let before = text.get(..at).unwrap_or_default();
        let (line, column) = match before.rsplit_once('\n') {
            Some((lines, rest)) => (lines.matches('\n').count() + 2, rest.chars().count() + 1),
            None => (1, before.chars().count() + 1),
        };
        let message = error.message().replace('\n', " ");
        ConfigError::File {
            path: path.to_owned(),
            line,
            column,
            message,
        }
    })
}
