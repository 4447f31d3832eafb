//! What this node is and has: the facts that a preflight judges.
//!
//! Reading them takes microseconds, except the version of CRIU, which needs a process and is
//! asked for once. All calls here block; none waits longer than [`CRIU_PATIENCE`].

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use ums_checkpoint::cgroup::Cgroup;
use ums_checkpoint::dirty::{self, Backend};
use ums_checkpoint::keeper;
use ums_core::facts::{EngineFacts, NodeFacts, NodeLimits};
use ums_core::specification::{ImageId, Transport};

mod cpu;
mod memory;
mod parse;
mod ports;

pub use ports::{Port, has_sockets, listening_ports};

/// Longest wait for an answer of CRIU's, which takes milliseconds.
pub const CRIU_PATIENCE: Duration = Duration::from_secs(5);

/// Version as major, minor, sublevel.
pub type Version = (u32, u32, u32);

/// Why a fact could not be had.
#[derive(Debug, thiserror::Error)]
pub enum FactsError {
    /// A file of the kernel's could not be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A file of the kernel's says something else than expected.
    #[error("`{}` has no {what}: is /proc mounted here?", path.display())]
    Unexpected {
        /// Which.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
    /// The filesystem that services are kept on could not be asked.
    #[error("cannot find the free space of `{}`", path.display())]
    Space {
        /// Where.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// What the agent knows by itself, and a look at the node can't tell.
#[derive(Debug, Clone)]
pub struct Known {
    /// Names of services and reservations.
    pub services: BTreeSet<ums_core::id::ServiceName>,
    /// Their addresses.
    pub addresses: BTreeSet<Ipv4Addr>,
    /// Ports of the system that lead to them.
    pub ports: BTreeSet<Port>,
    /// The service network.
    pub service_network: (Ipv4Addr, u8),
    /// Images in the store.
    pub images: BTreeSet<ImageId>,
    /// Paths below `/proc` on which containers have mounts, where the kernel has them.
    pub covered: Vec<&'static str>,
    /// What stands in the way of clients here, for people.
    pub warnings: Vec<String>,
    /// Container engines.
    pub engines: Vec<EngineFacts>,
    /// Whether this is the inside of an outer container.
    pub outer: bool,
}

/// Looks at one node.
#[derive(Debug)]
pub struct Machine {
    criu: PathBuf,
    state_dir: PathBuf,
    cgroup: String,
    eager_restore: Option<String>,
    version: OnceLock<Version>,
    tracks_memory: OnceLock<bool>,
}

impl Machine {
    /// `bundle` is the C/R bundle, `cgroup` the path below each hierarchy that services lie under
    /// (it need not exist), `eager_restore` why pages are all put in place before a service runs.
    pub fn new(
        bundle: &Path,
        state_dir: &Path,
        cgroup: &str,
        eager_restore: Option<String>,
    ) -> Self {
        Self {
            criu: bundle.join("bin/criu"),
            state_dir: state_dir.to_path_buf(),
            cgroup: cgroup.to_owned(),
            eager_restore,
            version: OnceLock::new(),
            tracks_memory: OnceLock::new(),
        }
    }

    fn tracks_memory(&self) -> bool {
        let tracks = || dirty::choose(dirty::features()) != Backend::None;
        *self.tracks_memory.get_or_init(tracks)
    }

    /// Gathers all facts.
    pub fn facts(&self, known: Known) -> Result<NodeFacts, FactsError> {
        let mut ports = known.ports;
        ports.extend(listening_ports());
        let numbers = |transport| {
            let of_it = ports.iter().filter(move |port| port.transport == transport);
            of_it.map(|port| port.number).collect()
        };
        Ok(NodeFacts {
            architecture: architecture(),
            cpu_features: cpu_features()?,
            kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            criu: self.criu_version(),
            eager_restore: self.eager_restore.clone(),
            tracks_memory: self.tracks_memory(),
            proc_paths: proc_paths(&known.covered),
            memory_available_bytes: memory::available(&self.cgroup)?,
            disk_available_bytes: self.disk_available()?,
            warnings: known.warnings,
            outer: known.outer,
            images: known.images,
            limits: limits(&self.cgroup),
            engines: known.engines,
            system: ums_core::facts::SystemFacts {
                services: known.services.into_iter().map(String::from).collect(),
                addresses: known.addresses,
                service_network: known.service_network,
                ports: numbers(Transport::Tcp),
                udp_ports: numbers(Transport::Udp),
                readdresses: true,
                carries: ums_core::facts::CARRIES,
            },
        })
    }

    /// The version of the bundle's CRIU; `None` if it doesn't start. Only success is remembered, so
    /// that a bundle put in place later is found.
    pub fn criu_version(&self) -> Option<Version> {
        if let Some(version) = self.version.get() {
            return Some(*version);
        }
        match ask(&self.criu, &["--version"], CRIU_PATIENCE) {
            Ok(said) => {
                let version = parse::criu_version(&said)?;
                Some(*self.version.get_or_init(|| version))
            }
            Err(error) => {
                tracing::warn!(%error, criu = %self.criu.display(), "CRIU does not start");
                None
            }
        }
    }

    /// Has CRIU probe this kernel, which takes it some 30 ms the first time after a boot. It keeps
    /// what it has seen (`criu.kdat`, where `/run` is a tmpfs), so that no service waits for that while
    /// it is frozen. Blocks.
    pub fn probe_kernel(&self) {
        // Whether it has the feature is not the question.
        if let Err(error) = ask(&self.criu, &["check", "--feature", "uffd"], CRIU_PATIENCE) {
            tracing::debug!(%error, "CRIU can't look at this kernel yet");
        }
    }

    /// Memory that can be had now, bytes.
    pub fn memory_available(&self) -> Result<u64, FactsError> {
        memory::available(&self.cgroup)
    }

    fn disk_available(&self) -> Result<u64, FactsError> {
        let space = nix::sys::statvfs::statvfs(&self.state_dir);
        let space = space.map_err(|errno| FactsError::Space {
            path: self.state_dir.clone(),
            source: errno.into(),
        })?;
        Ok(space
            .blocks_available()
            .saturating_mul(space.fragment_size()))
    }
}

/// What of a service's confinement can be had here. Where there are no control groups at all,
/// nothing of it can. `cgroup` is the path below each hierarchy that services lie under (it need not
/// exist).
pub fn limits(cgroup: &str) -> NodeLimits {
    let (no_device_filter, no_memory_limit) = match Cgroup::at(cgroup) {
        Ok(cgroup) => (cgroup.lacks_device_filter(), cgroup.lacks_memory_limit()),
        Err(error) => (Some(error.to_string()), Some(error.to_string())),
    };
    NodeLimits {
        no_device_filter,
        no_memory_limit,
        processes_max: Some(keeper::processes_max()),
    }
}

fn read(path: &str) -> Result<String, FactsError> {
    fs::read_to_string(path).map_err(|source| FactsError::Read {
        path: PathBuf::from(path),
        source,
    })
}

/// As the kernel says it (since Linux 6.1), else as we were compiled.
fn architecture() -> String {
    let kernel = fs::read_to_string("/proc/sys/kernel/arch");
    kernel.map_or_else(
        |_| std::env::consts::ARCH.to_owned(),
        |text| text.trim().to_owned(),
    )
}

fn cpu_features() -> Result<BTreeSet<String>, FactsError> {
    const PATH: &str = "/proc/cpuinfo";
    let features = parse::cpu_features(&read(PATH)?).map(cpu::features);
    features.ok_or_else(|| FactsError::Unexpected {
        path: PATH.into(),
        what: "CPU flags",
    })
}

/// What containers cover, of what is there: the same in every instance of procfs.
fn proc_paths(covered: &[&str]) -> BTreeSet<String> {
    covered
        .iter()
        .filter(|path| Path::new(path).exists())
        .map(|path| (*path).to_owned())
        .collect()
}

/// Runs CRIU for an answer, and returns what it says.
fn ask(criu: &Path, question: &[&str], patience: Duration) -> io::Result<String> {
    let mut child = Command::new(criu)
        .args(question)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let deadline = Instant::now() + patience;
    // It says less than a pipe holds, so it can end without our reading.
    while child.try_wait()?.is_none() {
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let mut said = String::new();
    if let Some(mut out) = child.stdout.take() {
        out.read_to_string(&mut said)?;
    }
    Ok(said)
}

#[cfg(test)]
mod test {
    use super::*;

    fn known() -> Known {
        Known {
            services: BTreeSet::from(["web".parse().unwrap()]),
            addresses: BTreeSet::new(),
            ports: BTreeSet::from([Port::tcp(8080)]),
            service_network: (Ipv4Addr::new(10, 88, 0, 0), 16),
            images: BTreeSet::new(),
            covered: Vec::new(),
            warnings: Vec::new(),
            engines: Vec::new(),
            outer: false,
        }
    }

    #[test]
    fn this_node_has_facts() {
        let dir = tempfile::tempdir().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let node = Machine::new(dir.path(), dir.path(), "/ums/none", None);
        let facts = node.facts(known()).unwrap();
        assert!(facts.system.ports.contains(&8080));
        assert!(
            facts
                .system
                .ports
                .contains(&listener.local_addr().unwrap().port())
        );
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let facts_then = node.facts(known()).unwrap();
        let port = socket.local_addr().unwrap().port();
        assert!(facts_then.system.udp_ports.contains(&port));
        assert!(facts.memory_available_bytes > 1 << 20);
        assert!(facts.disk_available_bytes > 0);
        assert!(!facts.kernel.is_empty() && !facts.cpu_features.is_empty());
        assert_eq!(facts.criu, None, "there is no bundle here");
    }

    #[test]
    fn the_version_is_asked_for_until_it_is_known_and_then_kept() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let node = Machine::new(dir.path(), dir.path(), "/ums/none", None);
        assert_eq!(node.criu_version(), None);
        let criu = dir.path().join("bin/criu");
        fs::create_dir(dir.path().join("bin")).unwrap();
        fs::write(&criu, "#!/bin/sh\necho Version: 4.2.1\n").unwrap();
        fs::set_permissions(&criu, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(node.criu_version(), Some((4, 2, 1)));
        fs::remove_file(&criu).unwrap();
        assert_eq!(node.criu_version(), Some((4, 2, 1)));
    }

    #[test]
    fn a_criu_that_hangs_is_ended() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let criu = dir.path().join("criu");
        fs::write(&criu, "#!/bin/sh\nexec sleep 60\n").unwrap();
        fs::set_permissions(&criu, fs::Permissions::from_mode(0o755)).unwrap();
        let error = ask(&criu, &["--version"], Duration::from_millis(50)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
