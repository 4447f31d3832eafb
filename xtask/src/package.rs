//! `cargo xtask package`: a Debian package of the programs, the bundle, a unit for systemd, man pages and
//! completions.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::{bundle, paths, run};

/// Programs of the package, each in `/usr/bin`.
const PROGRAMS: [&str; 4] = ["ums", "ums-agent", "ums-frontman", "ums-runtime"];

/// What `ums-runtime` is called besides: Docker finds a runtime of this name without being told of it.
const SHIM: &str = "usr/bin/containerd-shim-ums-v2";

/// Shells, and where each looks for completions of `ums`.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "usr/share/bash-completion/completions/ums"),
    ("zsh", "usr/share/zsh/vendor-completions/_ums"),
    ("fish", "usr/share/fish/vendor_completions.d/ums.fish"),
];

/// Files of `packaging/`, where each goes, and its mode.
const FILES: [(&str, &str, u32); 5] = [
    ("ums.service", "usr/lib/systemd/system/ums.service", 0o644),
    ("ums.toml", "etc/ums/ums.toml", 0o644),
    ("postinst", "DEBIAN/postinst", 0o755),
    ("prerm", "DEBIAN/prerm", 0o755),
    ("postrm", "DEBIAN/postrm", 0o755),
];

/// Builds the package and says where it is.
pub(crate) fn main() -> Result<()> {
    println!("{}", build()?.display());
    Ok(())
}

/// Builds the package; its path.
pub(crate) fn build() -> Result<PathBuf> {
    let bundle = bundle::ensure()?;
    let packages = PROGRAMS.iter().flat_map(|program| ["-p", program]);
    let mut cargo = run::cargo();
    run::shown(cargo.args(["build", "--release", "--bins"]).args(packages))?;
    let target = paths::target()?;
    let root = target.join("ums-package");
    match fs::remove_dir_all(&root) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot remove {}", root.display()));
        }
        _ => {}
    }
    for program in PROGRAMS {
        let (built, place) = (target.join("release").join(program), root.join("usr/bin"));
        put(&built, &place.join(program), 0o755)?;
        // Its names of functions stay, for backtraces; lines of the source are four fifths of it.
        run::quiet(
            Command::new("strip")
                .arg("--strip-debug")
                .arg(place.join(program)),
        )?;
    }
    std::os::unix::fs::symlink("ums-runtime", root.join(SHIM))
        .with_context(|| format!("cannot make {SHIM}"))?;
    for (name, place, mode) in FILES {
        let file = paths::workspace().join("packaging").join(name);
        put(&file, &root.join(place), mode)?;
    }
    documents(&root, &target.join("release/ums"))?;
    copy_tree(&bundle, &root.join("usr/lib/ums/bundle"))?;
    let architecture = run::text(Command::new("dpkg").arg("--print-architecture"))?;
    control(&root, &architecture)?;
    let package = target.join(format!(
        "ums_{}_{architecture}.deb",
        env!("CARGO_PKG_VERSION")
    ));
    let mut build = Command::new("dpkg-deb");
    build.args(["--root-owner-group", "-Zzstd", "--build"]);
    run::quiet(build.arg(&root).arg(&package))?;
    Ok(package)
}

/// Man pages, completions and licence, of which `ums` itself makes the first two.
fn documents(root: &Path, ums: &Path) -> Result<()> {
    let pages = root.join("usr/share/man/man1");
    fs::create_dir_all(&pages)?;
    run::quiet(Command::new(ums).arg("man").arg(&pages))?;
    for (shell, place) in COMPLETIONS {
        let text = run::text(Command::new(ums).args(["completions", shell]))?;
        write(&root.join(place), &(text + "\n"))?;
    }
    let licence = paths::workspace().join("LICENSE");
    put(&licence, &root.join("usr/share/doc/ums/copyright"), 0o644)
}

fn control(root: &Path, architecture: &str) -> Result<()> {
    let kib = size(root)?.div_ceil(1024);
    let text = format!(
        "Package: ums\n\
         Version: {}\n\
         Architecture: {architecture}\n\
         Maintainer: UMS maintainers <ums@localhost>\n\
         Installed-Size: {kib}\n\
         Depends: libc6 (>= 2.36), procps\n\
         Section: admin\n\
         Priority: optional\n\
         Description: live migration of containerized services between autonomous systems\n \
         Moves a running service, with its memory, files and open connections, from one host,\n \
         cluster or cloud to another. Carries the CRIU and runc that it was tested with.\n",
        env!("CARGO_PKG_VERSION")
    );
    write(&root.join("DEBIAN/control"), &text)?;
    write(&root.join("DEBIAN/conffiles"), "/etc/ums/ums.toml\n")
}

fn put(from: &Path, to: &Path, mode: u32) -> Result<()> {
    parent(to)?;
    fs::copy(from, to)
        .and_then(|_| fs::set_permissions(to, fs::Permissions::from_mode(mode)))
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}

fn write(to: &Path, text: &str) -> Result<()> {
    parent(to)?;
    fs::write(to, text).with_context(|| format!("cannot write {}", to.display()))
}

fn parent(of: &Path) -> Result<()> {
    let Some(parent) = of.parent() else {
        return Ok(());
    };
    fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))
}

/// With its hard links: one launcher has many names.
fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    parent(to)?;
    run::quiet(Command::new("cp").arg("-a").arg(from).arg(to)).map(drop)
}

fn size(root: &Path) -> Result<u64> {
    let text = run::text(Command::new("du").args(["-s", "-B1"]).arg(root))?;
    let number = text.split_whitespace().next().unwrap_or_default();
    number.parse().context("`du` printed no number")
}
