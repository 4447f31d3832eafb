//! Disks, kernels and initrds of stock Debian systems, and a qemu to run them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::{apt, paths, run};

/// Raised when machines made before can't be used any more.
const RECIPE: &str = "1";

/// The releases that UMS is for.
const SUITES: [&str; 2] = ["bookworm", "trixie"];

/// The suite that qemu is taken from.
const QEMU_SUITE: &str = "trixie";

/// What a machine has beside `required` and `important` packages: what any server has, and what the
/// tests use there. None of it is there for UMS, whose package must bring or name what it needs.
const PACKAGES: &str = "apparmor,busybox-static,ca-certificates,curl,dbus,initramfs-tools,iproute2,\
    iptables,iputils-ping,kmod,less,linux-image-amd64,mount,nftables,openssh-server,procps,strace,\
    systemd-sysv,systemd-timesyncd,udev,util-linux,zstd";

/// Size of a disk; what is not written to takes no room.
const DISK: u64 = 6 << 30;

/// A small initrd: under software emulation a large one takes long to unpack.
const INITRD: &str = r##"d=$1/etc/initramfs-tools
mkdir -p "$d/conf.d" "$d/hooks"
printf 'MODULES=list\nCOMPRESS=zstd\n' >"$d/conf.d/vm"
printf '#!/bin/sh\n[ "$1" = prereqs ] && exit 0\n. /usr/share/initramfs-tools/hook-functions\nmanual_add_modules virtio_pci virtio_blk ext4 crc32c_generic\n' >"$d/hooks/vm"
chmod +x "$d/hooks/vm""##;

/// What is done to a system before its disk is made.
const CUSTOMIZE: &str = include_str!("customize.sh");

/// Makes what is missing; the directory with all of it.
///
/// # Errors
/// A tool that fails, with what it said. What was half made is made anew the next time.
pub(crate) fn ensure() -> Result<PathBuf> {
    let base = paths::target()?.join("ums-vm");
    fs::create_dir_all(&base).with_context(|| format!("cannot create {}", base.display()))?;
    // Two at once would empty each other's work folder.
    let lock = File::create(base.join("lock"))?;
    lock.lock().context("cannot lock the machines' images")?;
    let images = base.join(RECIPE);
    fs::create_dir_all(&images)?;
    let mirror = apt::mirror()?;
    once(&images.join("qemu"), |new| qemu(new, &mirror))?;
    once(&images.join("key"), key)?;
    for suite in SUITES {
        once(&images.join(suite), |new| {
            system(new, suite, &mirror, &images.join("key/id.pub"))
        })?;
    }
    Ok(images)
}

/// Makes a directory, unless it is there: whole, or not at all.
fn once(place: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if place.exists() {
        return Ok(());
    }
    eprintln!("vm: making {}", place.display());
    let new = place.with_extension("new");
    remove(&new)?;
    fs::create_dir_all(&new)?;
    make(&new).with_context(|| format!("cannot make {}", place.display()))?;
    fs::rename(&new, place).with_context(|| format!("cannot make {}", place.display()))
}

/// qemu with its libraries, unpacked and not installed: the host's packages stay as they are.
fn qemu(new: &Path, mirror: &str) -> Result<()> {
    let mut command = run::root("mmdebstrap");
    command.args(["--quiet", "--variant=extract", "--mode=root"]);
    command.arg("--include=qemu-system-x86,qemu-utils");
    run::quiet(command.arg(QEMU_SUITE).arg(new.join("root")).arg(mirror)).map(drop)
}

fn key(new: &Path) -> Result<()> {
    let mut command = Command::new("ssh-keygen");
    command.args(["-q", "-t", "ed25519", "-N", "", "-C", "ums-vm", "-f"]);
    run::quiet(command.arg(new.join("id"))).map(drop)
}

/// A release: `disk`, `vmlinuz` and `initrd`.
fn system(new: &Path, suite: &str, mirror: &str, key: &Path) -> Result<()> {
    let (root, script) = (new.join("root"), new.join("customize.sh"));
    fs::write(&script, CUSTOMIZE)?;
    // In a mount namespace of its own: what it mounts below `root` goes with it, however it ends.
    let mut command = run::root("unshare");
    command.args(["--mount", "mmdebstrap"]);
    command.args(["--quiet", "--variant=important", "--mode=root"]);
    command.arg(format!("--include={PACKAGES}"));
    command.arg(format!("--setup-hook={INITRD}"));
    command.arg(format!(
        "--customize-hook=sh '{}' \"$1\" '{}'",
        script.display(),
        key.display()
    ));
    command.args([
        "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*",
        "--dpkgopt=force-unsafe-io",
    ]);
    command.arg(suite).arg(&root);
    command.arg(format!("deb {mirror} {suite} main"));
    command.arg(format!("deb {mirror} {suite}-updates main"));
    run::quiet(&mut command)?;
    for (begin, name) in [("vmlinuz-", "vmlinuz"), ("initrd.img-", "initrd")] {
        let from = newest(&root.join("boot"), begin)?;
        run::quiet(
            run::root("install")
                .args(["-m", "644"])
                .arg(from)
                .arg(new.join(name)),
        )?;
    }
    let disk = new.join("disk");
    File::create(&disk)?.set_len(DISK)?;
    let mut make = run::root("mke2fs");
    make.args([
        "-q",
        "-F",
        "-t",
        "ext4",
        "-E",
        "lazy_itable_init=1,lazy_journal_init=1",
        "-d",
    ]);
    run::quiet(make.arg(&root).arg(&disk))?;
    remove(&root)
}

/// The last file by name that begins so.
fn newest(directory: &Path, begin: &str) -> Result<PathBuf> {
    let names = fs::read_dir(directory)?.flatten().map(|entry| entry.path());
    let found = names.filter(|path| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with(begin))
    });
    found
        .max()
        .with_context(|| format!("no {begin}… in {}", directory.display()))
}

/// Files of a system are root's.
fn remove(directory: &Path) -> Result<()> {
    run::quiet(
        run::root("rm")
            .args(["-rf", "--one-file-system"])
            .arg(directory),
    )
    .map(drop)
}
