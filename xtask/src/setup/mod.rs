//! `cargo xtask setup`: installs what is missing, says what and why, and can undo it.

mod needs;
mod record;
mod unpacked;

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::run;
pub(crate) use needs::Purpose;
use needs::{Need, Setting};
use record::Record;

/// Arguments of `cargo xtask setup`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Undo what earlier runs changed, and nothing else
    #[arg(long)]
    undo: bool,
}

/// Runs the command.
pub(crate) fn main(args: &Args) -> Result<()> {
    if args.undo {
        undo()
    } else {
        ensure(Purpose::All)
    }
}

/// Makes sure that the machine has what a purpose needs.
///
/// # Idempotence
/// A second run finds nothing missing and changes nothing.
pub(crate) fn ensure(purpose: Purpose) -> Result<()> {
    let missing = needs::missing(purpose);
    let low = needs::low_settings()?;
    let unpacked = unpacked::ensure(purpose)?;
    if missing.is_empty() && low.is_empty() {
        if !unpacked {
            eprintln!("setup: nothing is missing, nothing was changed");
        }
        return Ok(());
    }
    let mut record = Record::read()?;
    if !missing.is_empty() {
        install(&missing, &mut record)?;
    }
    for (setting, before) in low {
        record.add_setting(setting.name, before);
        // Noted before it is done: undoing what was not done is harmless.
        record.write()?;
        eprintln!(
            "setup: {} {before} -> {}: {}",
            setting.name, setting.value, setting.why
        );
        eprintln!(
            "       to undo: sysctl -w {}={before} (or a reboot)",
            setting.name
        );
        set(setting.name, setting.value)?;
    }
    eprintln!("setup: done; `cargo xtask setup --undo` undoes all of it");
    Ok(())
}

fn install(missing: &[&'static Need], record: &mut Record) -> Result<()> {
    let mut packages: Vec<&str> = missing.iter().map(|need| need.package).collect();
    packages.dedup();
    for need in missing {
        eprintln!(
            "setup: installing {}: {} {}",
            need.package, need.program, need.why
        );
        eprintln!("       to undo: apt-get purge {}", need.package);
    }
    let before = installed()?;
    let outcome = run::quiet(run::root("sh").args(["-c", INSTALL, "sh"]).args(&packages));
    // Even a failed installation may have left packages behind.
    let new: Vec<String> = installed()?.difference(&before).cloned().collect();
    if !new.is_empty() {
        eprintln!("setup: apt installed {}", new.join(" "));
    }
    record.add_packages(new);
    record.write()?;
    outcome.context("cannot install packages: is a Debian mirror reachable?")?;
    let left: Vec<&str> = missing
        .iter()
        .map(|n| n.program)
        .filter(|p| !needs::is_installed(p))
        .collect();
    ensure!(
        left.is_empty(),
        "installed, but still not found: {}",
        left.join(", ")
    );
    Ok(())
}

/// Installs packages without starting a service, now or at the next boot.
///
/// Debian asks `policy-rc.d` before it starts a service; a machine's own is put back afterwards.
/// A source that can't be updated is no failure: the lists at hand may do.
const INSTALL: &str = r#"
set -eu
policy=/usr/sbin/policy-rc.d
restore() {
    rm -f "$policy"
    if [ -e "$policy.before-ums" ]; then mv "$policy.before-ums" "$policy"; fi
}
if [ -e "$policy" ] && [ ! -e "$policy.before-ums" ]; then mv "$policy" "$policy.before-ums"; fi
trap restore EXIT
trap 'exit 1' HUP INT TERM
printf '#!/bin/sh\nexit 101\n' >"$policy"
chmod 755 "$policy"
export DEBIAN_FRONTEND=noninteractive LC_ALL=C
apt-get update -q || echo "some package lists could not be updated"
apt-get install -q -y --no-install-recommends "$@"
for package in "$@"; do
    case $package in
    redis-server) service=redis-server ;;
    docker-registry) service=docker-registry ;;
    openssh-server) service=ssh ;;
    docker.io)
        service=docker
        if command -v systemctl >/dev/null; then
            systemctl disable docker.service docker.socket containerd.service
        fi
        ;;
    podman)
        if command -v systemctl >/dev/null; then
            systemctl disable podman.socket podman.service podman-restart.service podman-auto-update.timer
        fi
        continue
        ;;
    *) continue ;;
    esac
    update-rc.d "$service" disable
done
"#;

fn undo() -> Result<()> {
    let record = Record::read()?;
    for changed in &record.settings {
        eprintln!("setup: {} -> {}", changed.name, changed.before);
        set(&changed.name, changed.before)?;
    }
    let present = installed()?;
    let ours: Vec<&String> = record
        .packages
        .iter()
        .filter(|p| present.contains(*p))
        .collect();
    if !ours.is_empty() {
        let planned = run::text(apt("purge").arg("--simulate").args(&ours))?;
        let foreign = removed_beyond(&planned, &record.packages);
        ensure!(
            foreign.is_empty(),
            "not removing {ours:?}: what was installed since needs them, and would go too: {}",
            foreign.join(" ")
        );
        eprintln!("setup: removing {ours:?}");
        run::quiet(apt("purge").arg("--yes").args(&ours))?;
    }
    unpacked::undo()?;
    Record::default().write()?;
    eprintln!("setup: undone");
    Ok(())
}

fn apt(verb: &str) -> Command {
    let mut command = run::root("env");
    command.args([
        "LC_ALL=C",
        "DEBIAN_FRONTEND=noninteractive",
        "apt-get",
        "-q",
        verb,
    ]);
    command
}

/// Packages that a simulated purge would remove beyond the given ones.
fn removed_beyond(simulation: &str, ours: &[String]) -> Vec<String> {
    let removed = simulation.lines().filter_map(|line| {
        let rest = line
            .strip_prefix("Remv ")
            .or_else(|| line.strip_prefix("Purg "))?;
        rest.split(' ').next()
    });
    removed
        .filter(|name| !ours.iter().any(|own| own == name))
        .map(str::to_owned)
        .collect()
}

fn installed() -> Result<BTreeSet<String>> {
    let format = "--showformat=${db:Status-Status} ${Package}\n";
    let list = run::text(Command::new("dpkg-query").args(["--show", format]))?;
    Ok(present(&list))
}

/// Packages that are on the system: also those half configured, or with triggers still to run, which an
/// installation may find so and finish.
fn present(list: &str) -> BTreeSet<String> {
    let all = list.lines().filter_map(|line| line.split_once(' '));
    all.filter(|(status, _)| !["not-installed", "config-files"].contains(status))
        .map(|(_, package)| package.to_owned())
        .collect()
}

fn set(name: &str, value: u64) -> Result<()> {
    let file = Setting::file(name);
    let write = format!("echo {value} >{file}");
    run::quiet(run::root("sh").args(["-c", &write]))
        .with_context(|| format!("cannot set {name}: this needs root on the host itself"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{present, removed_beyond};

    #[test]
    fn a_package_with_triggers_to_run_is_there_already() {
        let list = "installed a\ntriggers-pending libc-bin\nconfig-files sudo\nnot-installed b\n";
        let found: Vec<String> = present(list).into_iter().collect();
        assert_eq!(found, ["a", "libc-bin"]);
    }

    #[test]
    fn finds_what_a_purge_would_take_along() {
        let simulation = "Reading…\nPurg redis-server [5:7]\nRemv other [1] [x]\n";
        assert_eq!(
            removed_beyond(simulation, &["redis-server".to_owned()]),
            ["other"]
        );
        assert!(removed_beyond("", &[]).is_empty());
    }
}
