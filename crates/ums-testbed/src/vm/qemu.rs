//! qemu's command lines.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::{Place, Release, patience};
use crate::tools::run;

/// Memory of a machine, MiB: what a small server has. What it does not use it does not take.
const MEMORY_MIB: u32 = 1536;

/// A program of the private qemu: with its own loader and libraries, so that it runs on any Debian.
fn program(place: &Place, name: &str) -> Command {
    let mut command = Command::new(loader(place));
    with_libraries(&mut command, place, name);
    command
}

fn loader(place: &Place) -> std::path::PathBuf {
    place.qemu().join("usr/lib64/ld-linux-x86-64.so.2")
}

fn with_libraries(command: &mut Command, place: &Place, name: &str) {
    let libraries = place.qemu().join("usr/lib/x86_64-linux-gnu");
    let path = libraries.display();
    command.env("QEMU_MODULE_DIR", libraries.join("qemu"));
    command.arg("--library-path");
    command.arg(format!("{path}:{path}/pulseaudio"));
    command.arg(place.qemu().join("usr/bin").join(name));
}

/// Makes a disk that begins as the release's and keeps what differs.
pub(super) fn make_disk(place: &Place, release: Release, disk: &Path) -> Result<()> {
    let mut command = program(place, "qemu-img");
    command.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]);
    run(command.arg(place.image(release, "disk")).arg(disk)).map(drop)
}

/// How a machine is started.
pub(super) struct Start<'a> {
    pub(super) release: Release,
    /// Port of the host that leads to the machine's sshd.
    pub(super) ssh_port: u16,
    /// The saved state that it goes on from; without one it boots.
    pub(super) state: Option<&'a str>,
    /// Whether it ends with the thread that starts it.
    pub(super) tied: bool,
}

/// The command that runs a machine. It is to be started in [`Place::machines`], with the machine's
/// directory there.
pub(super) fn machine(place: &Place, start: &Start<'_>) -> Result<Command> {
    let mut command = Command::new("setpriv");
    if start.tied {
        command.args(["--pdeathsig", "KILL"]);
    }
    // A session of its own: a signal to the group of who started it is not meant for the machine, and
    // the scheduler shares a processor out by sessions.
    command.arg("setsid").arg(loader(place));
    with_libraries(&mut command, place, "qemu-system-x86_64");
    for firmware in ["qemu", "seabios"] {
        command
            .arg("-L")
            .arg(place.qemu().join("usr/share").join(firmware));
    }
    let name = start.release.name();
    command.args(["-name", name, "-M", "q35,usb=off,smm=off", "-nodefaults"]);
    command.args(["-no-user-config", "-display", "none", "-smp", "1"]);
    // No KVM: the same processor on every host, and the hosts of this project are machines themselves.
    command.args(["-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max"]);
    command.args(["-m", &MEMORY_MIB.to_string()]);
    command
        .arg("-kernel")
        .arg(place.image(start.release, "vmlinuz"));
    command
        .arg("-initrd")
        .arg(place.image(start.release, "initrd"));
    command.args(["-append", &kernel_arguments(start.release)]);
    command.args(devices(start));
    if let Some(state) = start.state {
        command.args(["-loadvm", state]);
    }
    let log = place.of(start.release, "qemu.log");
    let log =
        std::fs::File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    command.current_dir(place.machines());
    Ok(command)
}

/// A job of systemd's fails as late as everything else here.
fn kernel_arguments(release: Release) -> String {
    let (name, address) = (release.name(), release.address());
    let limit = patience(60).as_secs();
    format!(
        "root=/dev/vda rw console=ttyS0 quiet net.ifnames=1 mitigations=off \
         systemd.default_timeout_start_sec={limit} systemd.default_device_timeout_sec={limit} \
         vm.name={name} vm.address={address}/24"
    )
}

/// Disk, cards, console and monitor. A frame for the other machine is a datagram to its socket: while
/// it isn't there, the link is as good as unplugged.
fn devices(start: &Start<'_>) -> Vec<String> {
    let name = start.release.name();
    let other = start.release.other().name();
    let (port, hardware) = (start.ssh_port, start.release.hardware_address());
    let options = [
        (
            "-drive",
            format!("file={name}/disk.qcow2,if=none,id=d,cache=unsafe,aio=threads"),
        ),
        ("-device", "virtio-blk-pci,drive=d".to_owned()),
        (
            "-netdev",
            format!("user,id=u,hostfwd=tcp:127.0.0.1:{port}-:22"),
        ),
        (
            "-device",
            "virtio-net-pci,netdev=u,mac=52:54:00:aa:00:01,romfile=".to_owned(),
        ),
        (
            "-netdev",
            format!(
                "dgram,id=l,local.type=unix,local.path={name}/link,remote.type=unix,\
                 remote.path={other}/link"
            ),
        ),
        (
            "-device",
            format!("virtio-net-pci,netdev=l,mac={hardware},romfile="),
        ),
        (
            "-object",
            "rng-random,id=r,filename=/dev/urandom".to_owned(),
        ),
        ("-device", "virtio-rng-pci,rng=r".to_owned()),
        (
            "-chardev",
            format!("socket,id=s,path={name}/serial,server=on,wait=off,logfile={name}/console.log"),
        ),
        ("-serial", "chardev:s".to_owned()),
        (
            "-monitor",
            format!("unix:{name}/monitor,server=on,wait=off"),
        ),
    ];
    options
        .into_iter()
        .flat_map(|(option, value)| [option.to_owned(), value])
        .collect()
}
