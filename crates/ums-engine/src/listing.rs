//! What the engines of a node run, asked anew each time.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Mutex;
use ums_api::problem::{Problem, ProblemKind};
use ums_core::facts::EngineFacts;
use ums_core::frontman::FrontmanMode;
use ums_core::id::ServiceName;
use ums_node::problem;
use ums_node::task::blocking;

use crate::arriving;
use crate::arriving::record::{Coming, Stage};
use crate::client::{Client, EngineError};
use crate::describe::service_name;
use crate::gather;
use crate::host::Inner;
use crate::record::Record;
use crate::settings::Setting;

/// What is told of an engine whose containers run, and that nobody can ask.
fn unserved(setting: &Setting) -> Option<String> {
    (setting.name == PODMAN && is_running(CONMON)).then(|| {
        format!(
            "containers run here that are not listed: nobody serves Podman's API at `{}` (`systemctl enable --now \
             podman.socket`)",
            setting.socket.display()
        )
    })
}

/// The engine that runs containers without a daemon, and what watches each of them.
const PODMAN: &str = "podman";
const CONMON: &str = "conmon";

/// Whether there is a process of this name (`comm`, proc_pid_comm(5)).
fn is_running(name: &str) -> bool {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let is = |path: PathBuf| {
        std::fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm.trim_end() == name)
    };
    processes.map(|process| process.path()).any(is)
}

/// Who asks the engines.
#[derive(Debug, Default)]
pub(crate) struct Looks {
    /// Held by who does.
    one: Mutex<()>,
    /// How often that was begun.
    begun: AtomicU64,
}

impl Inner {
    /// Asks all engines what runs there, one after the other: whoever asks meanwhile waits, and takes what was asked
    /// after that.
    pub(crate) async fn refresh(self: &Arc<Self>) {
        let asked = self.looks.begun.load(Ordering::Relaxed);
        let _looking = self.looks.one.lock().await;
        if self.looks.begun.load(Ordering::Relaxed) > asked {
            return;
        }
        self.looks.begun.fetch_add(1, Ordering::Relaxed);
        self.ask_all().await;
    }

    async fn ask_all(self: &Arc<Self>) {
        arriving::settle_all(self).await;
        let (mut listed, mut warnings) = (BTreeMap::new(), Vec::new());
        let mut engines = Vec::new();
        for setting in &self.settings.engines {
            if !setting.expected && !setting.socket.exists() {
                warnings.extend(unserved(setting));
                continue;
            }
            let name = setting.name.clone();
            match self.list(setting, &mut listed).await {
                Ok((unnamed, unready)) => {
                    warnings.extend(unnamed);
                    engines.push(EngineFacts { name, unready });
                }
                Err(error) => {
                    let why = problem::chain(&error);
                    warnings.push(format!("what the engine `{name}` runs is not known: {why}"));
                    let unready = Some("it does not answer".to_owned());
                    engines.push(EngineFacts { name, unready });
                }
            }
        }
        let mut state = self.state();
        state.listed = listed;
        state.engines = engines;
        state.warnings = warnings;
    }

    /// Takes up what one engine runs; what can't have a name here is told.
    async fn list(
        &self,
        setting: &Setting,
        listed: &mut BTreeMap<ServiceName, Record>,
    ) -> Result<(Vec<String>, Option<String>), EngineError> {
        let mut unnamed = Vec::new();
        let client = Client::connect(&setting.socket).await?;
        let unready = client.unready().await?;
        // Some engines say nothing of a container that they are starting.
        let coming = self.state().coming.clone();
        let is_coming = |id: &String| {
            let made = |of: &Coming| of.made.as_ref().is_some_and(|made| made.id == *id);
            coming
                .values()
                .any(|of| of.stage != Stage::Settled && made(of))
        };
        let running = client.running().await?;
        let is_here = |id: &String| !self.state().remains.contains_key(id) && !is_coming(id);
        let stays = self.standalone.frontmen.settings.mode == FrontmanMode::Packets;
        for id in running.into_iter().filter(is_here) {
            let Some(inspected) = client.inspect(&id).await? else {
                continue;
            };
            let called = inspected.name.clone().unwrap_or_default();
            let called = called.trim_start_matches('/');
            let Some(name) = self.free_name(&setting.name, called, listed) else {
                unnamed.push(format!(
                    "the container `{called}` of the engine `{}` is not listed: no service can have its name, or another \
                     has it; rename it there",
                    setting.name
                ));
                continue;
            };
            let of_layers = |lower: &str| self.images.of_layers(lower);
            // A few small files each; nobody waits for this but who asks.
            let record = gather::record(&setting.name, name.clone(), inspected, of_layers, stays);
            let record = record.map(|mut record| {
                let came = coming.get(&name).filter(|of| of.init == Some(record.init));
                if let Some(came) = came {
                    // It knows no other, and neither do its connections.
                    record.specification.address = came.specification.address;
                    record.specification.prefix_len = came.specification.prefix_len;
                }
                (name, record)
            });
            listed.extend(record);
        }
        Ok((unnamed, unready))
    }

    /// Names are unique on a node: one that is taken gets its engine's before it.
    fn free_name(
        &self,
        engine: &str,
        container: &str,
        listed: &BTreeMap<ServiceName, Record>,
    ) -> Option<ServiceName> {
        let names = [container.to_owned(), format!("{engine}-{container}")];
        let free = |name: &ServiceName| {
            self.standalone.service(name).is_err() && !listed.contains_key(name)
        };
        names
            .iter()
            .filter_map(|name| service_name(name))
            .find(free)
    }

    /// Reads the image of a service, unless it was: from now on its id is the image's content's.
    pub(crate) async fn read_image(self: &Arc<Self>, name: &ServiceName) -> Result<(), Problem> {
        let Ok(record) = self.record(name) else {
            return self.is_unknown(name);
        };
        if record.gate.is_some() || !record.obstacles.is_empty() {
            return Ok(());
        }
        let this = Arc::clone(self);
        let image = blocking(move || this.images.read(&record.lower)).await?;
        if let Some(record) = self.state().listed.get_mut(name) {
            record.specification.image = image;
        }
        Ok(())
    }

    /// An engine that does not answer may have it: then that is why.
    fn is_unknown(&self, name: &ServiceName) -> Result<(), Problem> {
        if self.standalone.service(name).is_ok() {
            return Ok(());
        }
        match self.state().warnings.first() {
            Some(warning) => {
                let title = "no engine that answers has this service";
                Err(Problem::failed(
                    ProblemKind::Container,
                    title,
                    warning.clone(),
                ))
            }
            None => Ok(()),
        }
    }
}
