//! `ums-agent outer`: the first process of an *outer container* (UMS §III-C, container level), which any
//! engine runs from a wrapped image (`ums_core::wrap`). The service runs in a container of its own inside it,
//! made by runc: no engine is needed in there, and the engine outside knows the outer container alone.
//!
//! ```text
//! outer container, as any engine makes it
//!   ums-agent outer            the first process: signals, exit code, the agent's parent (`first`)
//!   ├─ ums-agent outer-agent   the Migration Interface, with the standalone host (`tend`, `host`)
//!   ├─ ums-agent keeper        … and all else that a service has on a node
//!   │    └─ the service's init
//!   └─ ums-frontman            once the service has left, as long as somebody is led
//! ```
//!
//! - What the service writes goes to the container's standard output and standard error.
//! - A signal to the container is one to the service; its exit code is the container's.
//! - `docker exec` and health checks are in the service's namespaces (`view`), but for that of PIDs.
//! - Limits of the container hold for the service: its control groups lie below (`ground`).
//! - A service that has left is not started again (`slot`), whoever starts the container anew.
//! - What an engine has not given and is needed is named with the flag that gives it (`needs`).

mod first;
mod ground;
mod host;
mod needs;
mod settings;
mod slot;
mod tend;
mod told;
mod view;

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Parser;
use ums_core::wrap::{self, Wrap};
use ums_engine::host::Hosts;
use ums_node::host::Host;
use ums_standalone::images::Bounds;
use ums_standalone::state::Standalone;
use ums_tls::Identity;

use self::first::First;
use self::host::OuterHost;
pub(crate) use self::settings::Settings;
use self::slot::Slot;
use crate::agent::{Agent, Making};
use crate::config::AgentConfig;

/// The agent's log, beside what the service has written: that goes to the engine.
const LOG: &str = "agent.log";
/// Where the container's own standard output and standard error can be opened.
const OUTPUTS: [&str; 2] = ["/proc/1/fd/1", "/proc/1/fd/2"];

/// Is the first process of an outer container that was started with these arguments; gives its exit code.
pub fn run(arguments: &[String]) -> anyhow::Result<u8> {
    if std::process::id() != 1 {
        bail!(
            "this is the first process of a container that is made from a wrapped image, and nothing else"
        );
    }
    let settings = Settings::read(arguments)?;
    let volumes: Wrap = serde_json::from_slice(&fs::read(wrap::FILE)?)?;
    let missing = needs::missing(&volumes.volumes);
    if !missing.is_empty() {
        bail!(
            "this container lacks what it needs:\n  {}",
            missing.join("\n  ")
        );
    }
    ground::prepare()?;
    fs::create_dir_all(wrap::RUN)?;
    let log = Path::new(wrap::STATE).join(LOG);
    let log = File::options()
        .create(true)
        .append(true)
        .open(&log)
        .context(LOG)?;
    First::start(&settings, log)?.run()
}

/// Is the agent of an outer container; its first process has started it with these settings.
pub fn agent(settings: &str) -> anyhow::Result<()> {
    let settings: Settings = serde_json::from_str(settings)?;
    crate::serve_outer(config(&settings)?, settings)
}

/// Flags of an agent, as a command line.
#[derive(Debug, Parser)]
struct Flags {
    #[command(flatten)]
    config: AgentConfig,
}

fn config(settings: &Settings) -> anyhow::Result<AgentConfig> {
    let pki = |name: &str| Path::new(wrap::PKI).join(name);
    let (ca, cert, key) = (pki("ca.pem"), pki("cert.pem"), pki("key.pem"));
    let system = Identity::load(&ca, &cert, &key)?.name()?;
    let path = |path: &Path| path.display().to_string();
    let mut flags = vec!["ums-agent".to_owned()];
    let mut flag = |name: &str, value: String| flags.extend([name.to_owned(), value]);
    flag("--run-dir", wrap::RUN.to_owned());
    flag("--state-dir", wrap::STATE.to_owned());
    flag("--system", system.to_string());
    flag("--data-address", Settings::address().to_string());
    flag("--data-port", settings.data_port.to_string());
    flag("--bundle", wrap::BUNDLE.to_owned());
    flag("--bin-dir", wrap::PROGRAMS.to_owned());
    flag("--ca", path(&ca));
    flag("--cert", path(&cert));
    flag("--key", path(&key));
    for (name, value) in &settings.flags {
        flag(name, value.clone());
    }
    Ok(Flags::try_parse_from(flags)?.config)
}

/// What is different of an agent in an outer container.
pub(crate) struct Outer {
    settings: Settings,
    slot: Slot,
}

impl Outer {
    pub(crate) fn of(config: &AgentConfig, settings: Settings) -> Self {
        let slot = Slot::of(&config.state_dir, &config.run_dir);
        Self { settings, slot }
    }

    /// Tends the service until the container ends.
    pub(crate) async fn tend(&self, agent: &Agent) -> anyhow::Result<()> {
        tend::tend(agent, &self.settings, &self.slot).await
    }
}

impl Making for Outer {
    fn bounds(&self) -> Bounds {
        Bounds {
            without: tend::not_the_services(),
            ..Bounds::default()
        }
    }

    fn log_pump(&self) -> Vec<String> {
        let [out, err] = OUTPUTS.map(str::to_owned);
        [
            "log".to_owned(),
            "--out".to_owned(),
            out,
            "--err".to_owned(),
            err,
        ]
        .into()
    }

    fn hosts(
        &self,
        _config: &AgentConfig,
        standalone: &Arc<Standalone>,
    ) -> (Arc<dyn Host>, Option<Hosts>) {
        let (service, slot) = (self.settings.service.clone(), self.slot.clone());
        let host = OuterHost::new(Arc::clone(standalone), service, slot);
        (Arc::new(host), None)
    }
}
