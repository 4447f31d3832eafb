//! Outer containers: wrapped images, and the flags with which an engine starts one.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;
use ums_core::wrap;

use crate::engine::Engine;
use crate::rootfs;
use crate::system::System;
use crate::testbed::Testbed;
use crate::tools::text;

/// Port of the data path of an outer container, published under the same number.
pub const DATA_PORT: u16 = 7446;
/// Ports of its tunnels, likewise.
const TUNNEL_PORTS: (u16, u16) = (7450, 7453);

/// Makes a wrapped image of one program of the host's in an engine, as `ums image wrap --level container` does of
/// an image: a root filesystem, and `/.ums` beside it.
pub fn image(
    testbed: &Testbed,
    engine: &Engine<'_>,
    name: &str,
    program: &Path,
    ports: &[u16],
) -> Result<()> {
    let directory = testbed
        .directory()
        .join("wrapped")
        .join(program.file_name().context("a program")?);
    let busybox = rootfs::program("busybox")?;
    if !directory.exists() {
        rootfs::minimal(&directory, &[program])?;
        rootfs::copy(&busybox, &directory.join("bin/busybox"))?;
        for applet in ["sh", "cat", "ls", "sleep", "ps"] {
            std::os::unix::fs::symlink("busybox", directory.join("bin").join(applet))?;
        }
        wrap(testbed, &directory, ports)?;
    }
    let changes = [
        format!("ENTRYPOINT {}", json!(wrap::ENTRYPOINT)),
        format!("VOLUME {}", wrap::STATE),
    ];
    engine.import_with(&directory.display().to_string(), name, &changes)
}

fn wrap(testbed: &Testbed, root: &Path, ports: &[u16]) -> Result<()> {
    let inside = |path: &str| root.join(path.trim_start_matches('/'));
    for path in [
        wrap::PROGRAMS,
        wrap::STATE,
        wrap::RUN,
        wrap::PKI,
        "/.ums/lib",
    ] {
        std::fs::create_dir_all(inside(path))?;
    }
    for program in ["ums-agent", "ums-frontman"] {
        let from = testbed.tools().bin_dir().join(program);
        let to = inside(wrap::PROGRAMS).join(program);
        rootfs::copy(&from, &to)?;
        // Linked against the host's C library, where a wrapped image's programs need none: the image has it, and
        // what the bundle lacks of it lies beside.
        rootfs::with_libraries(root, &from, Path::new("/"))?;
        if let Ok(strip) = rootfs::program("strip") {
            text(std::process::Command::new(strip).arg(&to))?;
        }
    }
    let libraries = inside("/.ums/lib");
    for place in ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"] {
        let from = root.join(place).join("libgcc_s.so.1");
        if from.exists() {
            rootfs::copy(&from, &libraries.join("libgcc_s.so.1"))?;
        }
    }
    text(
        std::process::Command::new("cp")
            .arg("-a")
            .arg(testbed.tools().bundle())
            .arg(inside(wrap::BUNDLE)),
    )?;
    let exposed: Vec<_> = ports
        .iter()
        .map(|port| json!({"transport": "tcp", "port": port}))
        .collect();
    let wrapped = json!({"version": wrap::VERSION, "level": "container", "ports": exposed});
    std::fs::write(inside(wrap::FILE), wrapped.to_string())?;
    Ok(())
}

/// Flags with which an engine of this system starts an outer container for a service of this name.
pub fn flags(system: &System, service: &str) -> Vec<String> {
    let (first, last) = TUNNEL_PORTS;
    let run = system.run_dir().join("outer").join(service);
    let pki = system.state_dir().join("pki");
    let mut flags: Vec<String> = needed().map(str::to_owned).into();
    let mut flag = |name: &str, value: String| flags.extend([name.to_owned(), value]);
    flag("-v", format!("{}:{}", run.display(), wrap::RUN));
    flag("-v", format!("{}:{}:ro", pki.display(), wrap::PKI));
    flag("-p", format!("{DATA_PORT}:{DATA_PORT}"));
    flag("-p", format!("{first}-{last}:{first}-{last}/udp"));
    flag("-e", format!("UMS_TUNNEL_PORTS={first}-{last}"));
    flag("-e", format!("UMS_DATA_PORT={DATA_PORT}"));
    flags
}

/// What an outer container has to be given beside what every container gets.
pub fn needed() -> [&'static str; 14] {
    [
        "--cap-add",
        "SYS_ADMIN",
        "--cap-add",
        "NET_ADMIN",
        "--cap-add",
        "SYS_PTRACE",
        "--cap-add",
        "SYS_TIME",
        "--cap-add",
        "SYS_NICE",
        "--security-opt",
        "seccomp=unconfined",
        "--device",
        "/dev/net/tun",
    ]
}
