//! Packets and connections inside a service's own network namespace, whoever made it: what of them
//! passes, is held or is led elsewhere, and what the kernel knows of them.
//!
//! [`Packets`] is what a migration asks for; [`Inside`] does it with nftables.
//!
//! *Idempotence*: every operation may be repeated, and completes one that was interrupted.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

mod chooser;
mod inside;
mod operations;
mod sockets;
mod tool;

use chooser::Chooser;
use inside::Set;
pub use inside::{IN_DEVICE, OUT_DEVICE, Policy};
pub use operations::Packets;
pub use sockets::{Connections, Flow};
pub use tool::{Tools, within};

/// Largest packet on all of a service's devices, bytes: Ethernet's.
pub const MTU: u16 = 1500;

/// Kernel settings of a service's namespace: it forwards between its devices, answers come by
/// another device than questions, also from its own address once the service is elsewhere, nobody
/// is told of better ways, and a packet of a connection that a socket has goes where the rules say,
/// not straight to the socket (which early demultiplexing would do, over all marks and routes; it
/// is off for IPv6 by the same setting). Neighbours are told of the address on the bridge alone.
const INSIDE_SETTINGS: [(&str, &str); 9] = [
    ("net/ipv4/conf/all/arp_ignore", "1"),
    ("net/ipv4/conf/all/arp_announce", "2"),
    ("net/ipv4/ip_early_demux", "0"),
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv4/conf/all/accept_local", "1"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/ipv4/conf/all/send_redirects", "0"),
    ("net/ipv4/conf/default/send_redirects", "0"),
];

/// The same for IPv6. The link-local address follows from a hardware address that nobody else has: it can be
/// used at once, and not a second or two after each move (duplicate address detection, RFC 4862).
const INSIDE_SETTINGS_V6: [(&str, &str); 2] = [
    ("net/ipv6/conf/all/forwarding", "1"),
    ("net/ipv6/conf/eth0/accept_dad", "0"),
];

/// What a namespace remembers of packets that came through it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Remembered {
    /// Connections and datagrams that came through [`IN_DEVICE`].
    pub carried: BTreeSet<Flow>,
    /// Datagrams that came through `eth0` of late.
    pub seen: BTreeSet<Flow>,
}

/// What can't be done in a network namespace.
#[derive(Debug, thiserror::Error)]
pub enum PacketError {
    /// A tool can't be started.
    #[error(
        "cannot start `{tool}`: install iproute2 and nftables, or give the C/R bundle's bin directory"
    )]
    Start {
        /// Which.
        tool: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A tool takes too long.
    #[error("`{command}` did not end within {seconds} s")]
    TimedOut {
        /// Its command line.
        command: String,
        /// The limit.
        seconds: u64,
    },
    /// A tool refused.
    #[error("`{command}` failed: {said}")]
    Failed {
        /// Its command line.
        command: String,
        /// What it said.
        said: String,
    },
    /// A tool said what we can't read.
    #[error("`{tool}` printed what this version of UMS can't read")]
    Unreadable {
        /// Which.
        tool: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A namespace can't be entered.
    #[error("cannot enter the network namespace {}: does its process live, and is this root?", .path.display())]
    Namespace {
        /// Its file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A kernel setting can't be written.
    #[error("cannot write {value} to {}: set it by hand, or make /proc/sys writable", .path.display())]
    Setting {
        /// Which.
        path: PathBuf,
        /// The wanted value.
        value: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The kernel does not tell of connections, or does not reset them.
    #[error(
        "cannot list or reset the connections in the service's network namespace: does the kernel have INET_DIAG and INET_DIAG_DESTROY?"
    )]
    Sockets(#[source] std::io::Error),
}

/// Does it with `ip`, `nft`, messages of nf_tables and the kernel's socket diagnostics.
#[derive(Debug)]
pub struct Inside {
    tools: Tools,
    chooser: Chooser,
}

impl Inside {
    /// `bin_dir` is where `ip` and `nft` are looked for before PATH.
    pub fn new(bin_dir: Option<PathBuf>) -> Self {
        Self {
            tools: Tools::new(bin_dir),
            chooser: Chooser::default(),
        }
    }

    /// Prepares a service's namespace for packets that leave it by other devices than `eth0`.
    pub async fn prepare(&self, netns: &Path) -> Result<(), PacketError> {
        let settings = || {
            let there = |(name, _): &(&str, &str)| Path::new("/proc/sys").join(name).exists();
            let v6 = INSIDE_SETTINGS_V6
                .into_iter()
                .filter(|it| has_v6() && there(it));
            let mut settings = INSIDE_SETTINGS.into_iter().chain(v6);
            settings.try_for_each(|(name, value)| set(name, value))
        };
        within(netns, settings).await??;
        for family in families() {
            let list = [family, "rule"];
            let listing = self.tools.run("ip", &list, "", Some(netns)).await?;
            if !inside::is_routed(&listing) {
                let rules = inside::routing();
                self.batch(&[family, "-batch", "-"], &rules, Some(netns))
                    .await?;
            }
        }
        self.nft(&inside::rules(Policy::Pass), Some(netns)).await
    }

    /// The settings of a namespace that [`prepare`](Self::prepare) changes, as they are.
    pub async fn settings(&self, netns: &Path) -> Result<BTreeMap<String, String>, PacketError> {
        let read = || {
            let names = INSIDE_SETTINGS.into_iter().chain(INSIDE_SETTINGS_V6);
            let value = |(name, _): (&str, &str)| {
                let text = std::fs::read_to_string(Path::new("/proc/sys").join(name)).ok()?;
                Some((name.to_owned(), text.trim().to_owned()))
            };
            names.filter_map(value).collect()
        };
        within(netns, read).await
    }

    /// Undoes [`prepare`](Self::prepare) in a namespace that goes on without us, with these settings.
    pub async fn undo(
        &self,
        netns: &Path,
        settings: BTreeMap<String, String>,
    ) -> Result<(), PacketError> {
        for family in families() {
            let listing = self
                .tools
                .run("ip", &[family, "rule"], "", Some(netns))
                .await?;
            if inside::is_routed(&listing) {
                let rules = inside::no_routing();
                self.batch(&[family, "-batch", "-"], &rules, Some(netns))
                    .await?;
            }
        }
        self.nft(&inside::no_rules(), Some(netns)).await?;
        let write = move || {
            // `ip_forward` sets others anew: it comes first.
            let first = settings.get_key_value("net/ipv4/ip_forward").into_iter();
            for (name, value) in first.chain(&settings) {
                let _ = std::fs::write(Path::new("/proc/sys").join(name), value);
            }
        };
        within(netns, write).await
    }

    /// Leads what is marked for a device to it, once it is there.
    pub async fn lead_into(&self, netns: &Path, device: &str) -> Result<(), PacketError> {
        if has_v6() {
            // Docker switches IPv6 off in a container without such addresses, in all that comes there later too.
            let setting = format!("net/ipv6/conf/{device}/disable_ipv6");
            within(netns, move || set(&setting, "0")).await??;
        }
        for family in families() {
            let default = if family == "-6" { "::/0" } else { "0.0.0.0/0" };
            let route = inside::route(device, default);
            self.batch(&[family, "-batch", "-"], &route, Some(netns))
                .await?;
        }
        Ok(())
    }

    /// Moves a device of ours, if it is there, to another namespace, where what is marked for it is led to it.
    pub async fn move_device(
        &self,
        device: &str,
        from: &Path,
        to: &Path,
    ) -> Result<(), PacketError> {
        let listing = self.tools.run("ip", &["link"], "", Some(from)).await?;
        if !listing.contains(&format!(" {device}: ")) {
            return Ok(());
        }
        let target = to.display();
        let leave = format!("link set dev {device} netns {target}\n");
        self.batch(&["-batch", "-"], &leave, Some(from)).await?;
        // No packets of the kernel's own.
        let up = format!("link set dev {device} addrgenmode none up\n");
        self.batch(&["-batch", "-"], &up, Some(to)).await?;
        self.lead_into(to, device).await
    }

    /// What becomes of the service's packets from now on. The rules are in the service's own
    /// namespace: they outlive CRIU and the agent, and go with the namespace.
    ///
    /// A frozen service's kernel would acknowledge data that no copy of it will ever see: so
    /// nothing is delivered to it from before the freeze until it is thawed.
    pub async fn direct(&self, netns: &Path, packets: Policy) -> Result<(), PacketError> {
        self.choose(netns, packets, false).await
    }

    /// Chooses among the rules that are there. Where they are not (somebody has flushed them, or an older release has
    /// made them) or the kernel refuses, they are made, by a program.
    async fn choose(&self, netns: &Path, policy: Policy, afresh: bool) -> Result<(), PacketError> {
        let Err(error) = self.chooser.choose(netns, policy, afresh).await else {
            return Ok(());
        };
        tracing::debug!(%error, ?policy, "the service's rules are made anew");
        let forgotten = if afresh {
            inside::empty(Set::Closing)
        } else {
            String::new()
        };
        let rules = inside::rules(policy);
        self.nft(&format!("{rules}{forgotten}"), Some(netns)).await
    }

    /// Keeps connections that no process has any more where they are, and holds or leads all others:
    /// [`Policy::Frozen`] with the connections that are winding up.
    pub async fn freeze(&self, netns: &Path, closing: &BTreeSet<Flow>) -> Result<(), PacketError> {
        if closing.is_empty() {
            return self.choose(netns, Policy::Frozen, true).await;
        }
        let (clear, keep) = (
            inside::empty(Set::Closing),
            inside::add(Set::Closing, closing),
        );
        let rules = inside::rules(Policy::Frozen);
        self.nft(&format!("{rules}{clear}{keep}"), Some(netns))
            .await
    }

    /// The connections in a service's namespace; of its own with itself those that can't move.
    pub async fn connections(&self, netns: &Path) -> Result<Connections, PacketError> {
        sockets::connections_of(netns).await
    }

    /// Whether datagrams wait in the service's sockets: a checkpoint does not carry them.
    pub async fn has_unread_datagrams(&self, netns: &Path) -> Result<bool, PacketError> {
        sockets::has_unread_datagrams(netns).await
    }

    /// What reached a service otherwise than by a connection of its own to the bridge: the
    /// connections that were carried here, and datagrams of late.
    pub async fn remembered(&self, netns: &Path) -> Result<Remembered, PacketError> {
        let list = ["-j", "list", "table", "inet", inside::TABLE];
        let text = self.tools.run("nft", &list, "", Some(netns)).await?;
        let listing: Value =
            serde_json::from_str(&text).map_err(|source| PacketError::Unreadable {
                tool: "nft",
                source,
            })?;
        Ok(Remembered {
            carried: &inside::flows(&listing, Set::Carried)
                | &inside::flows(&listing, Set::Learned),
            seen: inside::flows(&listing, Set::Seen),
        })
    }

    /// Whether a connection that was carried here still lives.
    pub async fn has_carried(&self, netns: &Path) -> Result<bool, PacketError> {
        let (remembered, connections) =
            tokio::join!(self.remembered(netns), self.connections(netns));
        let (carried, alive) = (remembered?.carried, connections?);
        let mut alive = alive.open.iter().chain(&alive.unaccepted);
        Ok(alive.any(|flow| carried.contains(flow)))
    }

    /// Has the answers of these connections go back through [`IN_DEVICE`]; those of `home` never do.
    pub async fn carry(
        &self,
        netns: &Path,
        carried: &BTreeSet<Flow>,
        home: &BTreeSet<Flow>,
    ) -> Result<(), PacketError> {
        if carried.is_empty() && home.is_empty() {
            return Ok(());
        }
        let mut elements = inside::add(Set::Carried, carried);
        elements.push_str(&inside::add(Set::Home, home));
        self.nft(&elements, Some(netns)).await
    }

    /// Ends the connections of a frozen service that has moved, without a word: they go on at its new
    /// place. What its kernel is winding up stays.
    ///
    /// Without this the kernel would close them when the processes are killed, be heard by nobody, and
    /// keep the namespace until it gives up after minutes (`tcp_orphan_retries`).
    pub async fn forget_connections(&self, netns: &Path) -> Result<(), PacketError> {
        sockets::reset_open_connections(netns).await.map(drop)
    }

    /// Resets all connections of a namespace that nothing shall reach any more; only resets leave it
    /// from then on.
    pub async fn reset(&self, netns: &Path) -> Result<(), PacketError> {
        self.direct(netns, Policy::OnlyResets).await?;
        sockets::reset_all_connections(netns).await.map(drop)
    }

    async fn batch(
        &self,
        arguments: &[&str],
        commands: &str,
        netns: Option<&Path>,
    ) -> Result<(), PacketError> {
        self.tools
            .run("ip", arguments, commands, netns)
            .await
            .map(drop)
    }

    async fn nft(&self, text: &str, netns: Option<&Path>) -> Result<(), PacketError> {
        self.tools
            .run("nft", &["-f", "-"], text, netns)
            .await
            .map(drop)
    }
}

/// Flags of `ip` for each family that this kernel has.
fn families() -> impl Iterator<Item = &'static str> {
    ["-4"].into_iter().chain(has_v6().then_some("-6"))
}

/// Whether this kernel has IPv6, and it is not switched off.
pub fn has_v6() -> bool {
    std::fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6")
        .is_ok_and(|off| off.trim() == "0")
}

/// Writes a kernel setting unless it has that value already, which needs no right to write.
pub fn set(setting: &str, value: &'static str) -> Result<(), PacketError> {
    let path = Path::new("/proc/sys").join(setting);
    if std::fs::read_to_string(&path).is_ok_and(|current| current.trim() == value) {
        return Ok(());
    }
    std::fs::write(&path, value).map_err(|source| PacketError::Setting {
        path,
        value,
        source,
    })
}
