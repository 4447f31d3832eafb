//! Two systems, the two namespaces of a service that moves from one to the other, and a client,
//! each in a network namespace that has no name: it is held by a descriptor of this process, so
//! nothing of it can be left behind.

use std::fs::File;
use std::io::Write;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::Signal;
use tempfile::TempDir;
use ums_frontman::client::ClientError;
use ums_frontman::packet::client::{Client, spawn_far, spawn_near};
use ums_frontman::packet::{End, FarLaunch, Limits, NearLaunch, Permit, Ports, Status};
use ums_frontman::record;
use ums_tls::Identity;
use ums_tls::ca::{Authority, SYSTEM_VALIDITY};

/// Longest wait for anything that should come about.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The service's addresses, which move with it.
pub(crate) const SERVICE: &str = "10.88.0.5";
pub(crate) const SERVICE6: &str = "fd00:88::5";

const DIVERT: &str = r#"
table inet divert {
    chain prerouting {
        type filter hook prerouting priority mangle
        iifname != "eth0" accept
        icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
        ip daddr 10.88.0.5 meta mark set 77
        ip6 daddr fd00:88::5 meta mark set 77
    }
}
"#;

const LOSE: &str = r#"
table inet lose {
    chain prerouting {
        type filter hook prerouting priority mangle
        iifname "wan" numgen random mod 100 < 1 drop
    }
}
"#;

/// Leaves the test, and says so, when it can't be run.
macro_rules! skip_unless_root {
    ($name:literal) => {
        if let Some(reason) = crate::fixture::lacking() {
            crate::fixture::skipped($name, reason);
            return;
        }
    };
}
pub(crate) use skip_unless_root;

pub(crate) fn lacking() -> Option<&'static str> {
    if !nix::unistd::Uid::effective().is_root() {
        return Some("network namespaces need root");
    }
    if File::open("/dev/net/tun").is_err() {
        return Some("/dev/net/tun is missing");
    }
    let there = |tool: &str| Command::new(tool).arg("-V").output().is_ok();
    (!there("ip") || !there("nft")).then_some("`ip` or `nft` is missing")
}

pub(crate) fn skipped(name: &str, reason: &str) {
    let line = format!("SKIPPED {name}: {reason}\n");
    eprint!("{line}");
    if let Some(path) = std::env::var_os("UMS_SKIP_LOG") {
        let mut file = File::options()
            .create(true)
            .append(true)
            .open(path)
            .unwrap();
        file.write_all(line.as_bytes()).unwrap();
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Namespace(Arc<File>);

impl Namespace {
    pub(crate) fn create() -> Self {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        let namespace = Self(Arc::new(made.join().unwrap()));
        namespace.run("ip link set lo up");
        namespace
    }

    pub(crate) fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()).into()
    }

    /// Calls `action` inside, on a thread of its own.
    pub(crate) fn enter<T: Send + 'static>(
        &self,
        action: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let file = self.0.clone();
        std::thread::spawn(move || {
            setns(file.as_ref(), CloneFlags::CLONE_NEWNET).unwrap();
            action()
        })
    }

    pub(crate) fn within<T: Send + 'static>(
        &self,
        action: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        match self.enter(action).join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Runs a command inside; its words are separated by single spaces.
    pub(crate) fn run(&self, command: &str) -> String {
        let words: Vec<String> = command.split(' ').map(str::to_owned).collect();
        let output = self.within(move || Command::new(&words[0]).args(&words[1..]).output());
        let output = output.unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn set(&self, parameter: &'static str, value: &'static str) {
        self.within(move || std::fs::write(format!("/proc/sys/net/{parameter}"), value))
            .unwrap();
    }
}

/// A service under way.
pub(crate) struct Fixture {
    pub(crate) client: Namespace,
    /// The service's namespace at the source, and the one at the destination.
    pub(crate) old: Namespace,
    pub(crate) new: Namespace,
    /// The systems' own namespaces.
    pub(crate) source: Namespace,
    pub(crate) destination: Namespace,
    pub(crate) directory: TempDir,
    /// Of the ends that are started.
    pub(crate) limits: Limits,
    authority: Authority,
}

impl Fixture {
    /// `mtu` is that of the link between the systems.
    pub(crate) fn new(mtu: u16) -> Self {
        let [client, old, new, source, destination] = [(); 5].map(|()| Namespace::create());
        join(
            (&client, "eth0", ["10.88.0.9/24", "fd00:88::9/64"]),
            (&old, "eth0", ["10.88.0.5/24", "fd00:88::5/64"]),
            1500,
        );
        join(
            (&source, "wan", ["192.0.2.1/24", "2001:db8::1/64"]),
            (&destination, "wan", ["192.0.2.2/24", "2001:db8::2/64"]),
            mtu,
        );
        old.set("ipv4/ip_forward", "1");
        old.set("ipv6/conf/all/forwarding", "1");
        for address in ["10.88.0.5/32 dev lo", "fd00:88::5/128 dev lo nodad"] {
            new.run(&format!("ip addr add {address}"));
        }
        Self {
            client,
            old,
            new,
            source,
            destination,
            directory: TempDir::new().unwrap(),
            limits: Limits::default(),
            authority: Authority::new("test").unwrap().0,
        }
    }

    pub(crate) fn identity(&self, name: &str) -> Identity {
        let system = name.parse().unwrap();
        let issued = self.authority.issue(&system, &[], SYSTEM_VALIDITY).unwrap();
        Identity {
            ca_pem: self.authority.cert_pem().to_owned(),
            cert_pem: issued.cert_pem,
            key_pem: issued.key_pem,
        }
    }

    fn end(&self, file: &str, own: &str, peer: &str, inside: &Namespace, device: &str) -> End {
        End {
            service: "web".to_owned(),
            migration: "m-1".to_owned(),
            socket: self.directory.path().join(format!("{file}.sock")),
            state: self.directory.path().join(format!("{file}.json")),
            namespace: inside.path(),
            device: device.to_owned(),
            mtu: 1500,
            identity: self.identity(own),
            peer: peer.parse().unwrap(),
            limits: self.limits,
        }
    }

    pub(crate) fn far_launch(&self, permit: &Permit) -> FarLaunch {
        FarLaunch {
            end: self.end("far", "destination", "source", &self.new, "ums-in"),
            listen: "::".parse().unwrap(),
            ports: Ports::ANY,
            permit: permit.hash(),
        }
    }

    pub(crate) fn near_launch(&self, permit: Permit, far: &Status, address: &str) -> NearLaunch {
        let address: IpAddr = address.parse().unwrap();
        NearLaunch {
            end: self.end("near", "source", "destination", &self.old, "ums-out"),
            address: (address, far.address.port()).into(),
            permit,
        }
    }

    pub(crate) fn start_far(&mut self, launch: FarLaunch) -> Result<(Client, Status), ClientError> {
        let log = self.directory.path().join("log");
        let started = self
            .destination
            .within(move || block_on(async { spawn_far(&binary(), &launch, Some(&log)).await }))?;
        self.new.run("ip route add default dev ums-in");
        self.new.run("ip -6 route add default dev ums-in");
        Ok(started)
    }

    pub(crate) fn start_near(
        &mut self,
        launch: NearLaunch,
    ) -> Result<(Client, Status), ClientError> {
        let log = self.directory.path().join("log");
        let started = self
            .source
            .within(move || block_on(async { spawn_near(&binary(), &launch, Some(&log)).await }))?;
        Ok(started)
    }

    /// Both ends, with the near end connected to the far end at this address.
    pub(crate) fn start(&mut self, address: &str) -> (Client, Client) {
        let permit = Permit::random().unwrap();
        let (far, status) = self.start_far(self.far_launch(&permit)).unwrap();
        let launch = self.near_launch(permit, &status, address);
        let (near, _) = self.start_near(launch).unwrap();
        (near, far)
    }

    /// From now on packets that come to the service at the source go into `ums-out`.
    ///
    /// By a mark, not by `iif eth0`: the kernel asks the same rules whether it shall answer ARP
    /// for an address, and an address that is routed elsewhere isn't answered for.
    pub(crate) fn divert(&self) {
        let rules = self.directory.path().join("divert.nft");
        std::fs::write(&rules, DIVERT).unwrap();
        self.old.run(&format!("nft -f {}", rules.display()));
        for family in ["-4", "-6"] {
            let old = &self.old;
            old.run(&format!(
                "ip {family} route add default dev ums-out table 77"
            ));
            old.run(&format!("ip {family} rule add pref 100 lookup local"));
            old.run(&format!("ip {family} rule add pref 50 fwmark 77 lookup 77"));
            old.run(&format!("ip {family} rule del pref 0"));
        }
    }

    /// From now on one of a hundred packets between the systems is lost, at random.
    pub(crate) fn lose_every_hundredth(&self) {
        let rules = self.directory.path().join("lose.nft");
        std::fs::write(&rules, LOSE).unwrap();
        for side in [&self.source, &self.destination] {
            side.run(&format!("nft -f {}", rules.display()));
        }
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        let records = record::list::<Status>(self.directory.path()).unwrap_or_default();
        for Status { pid, .. } in records.into_iter().map(|record| record.status) {
            // Standing still, it raises no other standby.
            send(pid, Signal::SIGSTOP);
            for standby in children(pid) {
                send(standby, Signal::SIGKILL);
            }
            send(pid, Signal::SIGKILL);
        }
    }
}

/// Sends a signal to a process if it is there.
pub(crate) fn send(pid: u32, signal: Signal) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
    let _ = nix::sys::signal::kill(pid, signal);
}

/// The children of a process that are not dead.
pub(crate) fn children(of: u32) -> Vec<u32> {
    let parent = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let mut words = stat.rsplit_once(") ")?.1.split(' ');
        let alive = words.next()? != "Z";
        words.next()?.parse().ok().filter(|_| alive)
    };
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| parent(pid) == Some(of)).collect()
}

type Side<'a> = (&'a Namespace, &'a str, [&'a str; 2]);

fn join(one: Side<'_>, other: Side<'_>, mtu: u16) {
    let path = other.0.path();
    let (name, there, path) = (one.1, other.1, path.display());
    one.0.run(&format!(
        "ip link add {name} type veth peer name {there} netns {path}"
    ));
    for (namespace, name, addresses) in [one, other] {
        for address in addresses {
            let nodad = if address.contains(':') { " nodad" } else { "" };
            namespace.run(&format!("ip addr add {address} dev {name}{nodad}"));
        }
        namespace.run(&format!("ip link set {name} mtu {mtu} up"));
    }
}

pub(crate) fn binary() -> PathBuf {
    env!("CARGO_BIN_EXE_ums-frontman").into()
}

pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime.unwrap().block_on(future)
}

/// Waits for a condition, at most [`PATIENCE`].
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "{what}: did not come about");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub(crate) fn status(client: &Client) -> Status {
    block_on(client.status()).unwrap()
}
