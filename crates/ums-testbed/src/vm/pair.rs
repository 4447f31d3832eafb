//! Both machines, in one of the states that tests begin with.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::machine::Machine;
use super::{Place, Release};
use crate::rootfs;
use crate::tools::is_root;

/// Names of states that begin so are of machines with UMS; the rest is the package's digest.
const WITH_UMS: &str = "ums-";

/// Both machines as they are after their first boot, and nothing of UMS there.
const STOCK: &str = "stock";

/// Where a machine has what `services` makes.
pub const SERVICES: &str = "/root/services";

/// The package under test.
pub const PACKAGE_VARIABLE: &str = "UMS_VM_PACKAGE";

/// Debian 12 and Debian 13. They end with this value.
#[derive(Debug)]
pub struct Pair {
    /// Debian 12.
    pub debian12: Machine,
    /// Debian 13.
    pub debian13: Machine,
    /// Held: there is one pair at a time.
    _lock: File,
}

/// What stands in the way of using machines here; `None` where nothing does.
pub fn lacking() -> Option<String> {
    if Place::find().is_none() || package().is_none() {
        return Some("`cargo xtask test --vm` runs it, in virtual machines".to_owned());
    }
    (!is_root()).then(|| "not root".to_owned())
}

/// The package under test, if there is one.
pub fn package() -> Option<PathBuf> {
    std::env::var_os(PACKAGE_VARIABLE).map(PathBuf::from)
}

impl Pair {
    /// Stock systems, without UMS.
    ///
    /// # Errors
    /// Machines that don't come up, each with the end of its console.
    pub fn stock() -> Result<Self> {
        let place = Place::required()?;
        let lock = lock(&place)?;
        if let Some(pair) = Self::resumed(&place, STOCK, &lock)? {
            return Ok(pair);
        }
        let mut pair = Self::start(&place, None, &lock)?;
        for machine in pair.machines_mut() {
            let script = "systemctl is-system-running --wait || systemctl --failed";
            eprintln!("{}: {}", machine.name(), machine.run(script)?.all().trim());
            machine.save(STOCK)?;
        }
        Ok(pair)
    }

    /// Systems with the package, as the README says, that know each other as peers.
    ///
    /// # Errors
    /// As [`Self::stock`], and whatever fails of the installation.
    pub fn with_ums() -> Result<Self> {
        let place = Place::required()?;
        let package = package().with_context(|| format!("{PACKAGE_VARIABLE} is not set"))?;
        let state = state_of(&package)?;
        let lock = lock(&place)?;
        if let Some(pair) = Self::resumed(&place, &state, &lock)? {
            return Ok(pair);
        }
        drop(lock);
        let pair = Self::stock()?;
        pair.prepare(&package)?;
        for machine in pair.machines() {
            for old in Machine::states(&place, machine.release()) {
                if old.starts_with(WITH_UMS) {
                    machine.forget(&old)?;
                }
            }
            machine.save(&state)?;
        }
        Ok(pair)
    }

    /// Both, Debian 12 first.
    pub fn machines(&self) -> [&Machine; 2] {
        [&self.debian12, &self.debian13]
    }

    fn machines_mut(&mut self) -> [&mut Machine; 2] {
        [&mut self.debian12, &mut self.debian13]
    }

    /// From a state that both have.
    fn resumed(place: &Place, state: &str, lock: &File) -> Result<Option<Self>> {
        let has = |release: Release| {
            let states = Machine::states(place, release);
            states.iter().any(|kept| kept == state)
        };
        if !Release::ALL.into_iter().all(has) {
            return Ok(None);
        }
        Self::start(place, Some(state), lock).map(Some)
    }

    fn start(place: &Place, state: Option<&str>, lock: &File) -> Result<Self> {
        let mut pair = Self {
            debian12: Machine::start(place, Release::Bookworm, state)?,
            debian13: Machine::start(place, Release::Trixie, state)?,
            _lock: lock.try_clone()?,
        };
        for machine in pair.machines_mut() {
            machine.comes_up()?;
        }
        Ok(pair)
    }

    /// Package, certificates, settings, peers.
    fn prepare(&self, package: &Path) -> Result<()> {
        let services = services()?;
        let put = &|machine: &Machine| -> Result<()> {
            install(machine, package, "/root")?;
            machine.put(&[services.path()], "/root")?;
            let name = services.path().file_name().unwrap_or_default().display();
            machine.ok(&format!("mv /root/{name} {SERVICES}")).map(drop)
        };
        // Side by side: each has a processor of its own to wait for.
        std::thread::scope(|scope| {
            let others = self
                .machines()
                .map(|machine| scope.spawn(move || put(machine)));
            others.into_iter().try_for_each(|other| {
                let panicked = |panic| std::panic::resume_unwind(panic);
                other.join().unwrap_or_else(panicked)
            })
        })?;
        self.identify()?;
        for machine in self.machines() {
            configure(machine)?;
        }
        for machine in self.machines() {
            let (name, address) = (
                machine.release().other().name(),
                machine.release().other().address(),
            );
            machine.ok(&format!("ums peer add {name} --address {address}:7443"))?;
        }
        for machine in self.machines() {
            peer_is_ready(machine)?;
        }
        Ok(())
    }

    /// Certificates of an authority on the first machine.
    fn identify(&self) -> Result<()> {
        let directory = Temporary::create()?;
        let authority = &self.debian12;
        authority.ok("cd /root && ums ca init --dir ums-ca")?;
        for machine in self.machines() {
            let name = machine.name();
            authority.ok(&format!(
                "cd /root && ums ca issue {name} --dir ums-ca --out pki-{name}"
            ))?;
            authority.get(&format!("/root/pki-{name}"), directory.path())?;
            machine.put(&[&directory.path().join(format!("pki-{name}"))], "/root")?;
            machine.ok(&format!(
                "install -d -m 700 /var/lib/ums/pki && cp /root/pki-{name}/* /var/lib/ums/pki/"
            ))?;
        }
        Ok(())
    }
}

/// Puts a package into a directory of the machine, and installs it as the README says.
///
/// # Errors
/// What apt says.
pub fn install(machine: &Machine, package: &Path, directory: &str) -> Result<()> {
    machine.put(&[package], directory)?;
    let name = package.file_name().unwrap_or_default().display();
    machine
        .ok(&format!(
            "cd {directory} && DEBIAN_FRONTEND=noninteractive apt-get install -q -y ./{name}"
        ))
        .map(drop)
}

/// The settings of a system, and its Coordinator.
fn configure(machine: &Machine) -> Result<()> {
    let (name, address) = (machine.name(), machine.release().address());
    machine.ok(&format!(
        "cat >/etc/ums/ums.toml <<'T'\nsystem = \"{name}\"\nadvertise = \"{address}\"\n\
         data_port = 7444\ntunnel_ports = \"7450-7499\"\nT\nsystemctl restart ums"
    ))?;
    machine.until("an answer of the Coordinator", 20, "ums list")?;
    Ok(())
}

/// Waits until the other system is ready.
///
/// # Errors
/// What `ums peer list` says instead.
pub fn peer_is_ready(machine: &Machine) -> Result<()> {
    let script = "ums peer list | tee /dev/stderr | grep -qw ready";
    machine.until("a peer that is ready", 20, script).map(drop)
}

/// Root filesystems: `redis`, with busybox and a client in it.
fn services() -> Result<Temporary> {
    let directory = Temporary::create()?;
    let root = directory.path().join("redis");
    let programs = ["redis-server", "redis-cli"].map(rootfs::program);
    let programs = programs.into_iter().collect::<Result<Vec<_>>>()?;
    let programs: Vec<&Path> = programs.iter().map(PathBuf::as_path).collect();
    rootfs::minimal(&root, &programs)?;
    std::fs::copy(rootfs::program("busybox")?, root.join("bin/busybox"))?;
    std::os::unix::fs::symlink("busybox", root.join("bin/sh"))?;
    Ok(directory)
}

/// Changes with the package's content.
fn state_of(package: &Path) -> Result<String> {
    let bytes =
        std::fs::read(package).with_context(|| format!("cannot read {}", package.display()))?;
    let digest = blake3::hash(&bytes).to_hex();
    Ok(format!("{WITH_UMS}{}", &digest[..16]))
}

/// One pair at a time: whoever comes later waits.
fn lock(place: &Place) -> Result<File> {
    std::fs::create_dir_all(place.machines())?;
    let lock = File::create(place.machines().join("lock"))?;
    lock.lock().context("cannot lock the machines")?;
    Ok(lock)
}

/// A directory of the host that goes with this value.
#[derive(Debug)]
pub struct Temporary(PathBuf);

impl Temporary {
    /// An empty one.
    ///
    /// # Errors
    /// What the file system says.
    pub fn create() -> Result<Self> {
        let template = std::env::temp_dir().join("ums-vm-XXXXXX");
        Ok(Self(nix::unistd::mkdtemp(&template)?))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
