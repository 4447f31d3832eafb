//! Privileges and the kernel.

use std::fs;
use std::path::Path;
use std::process::Command;

use ums_core::preflight::KERNEL_MIN;

use super::Check;
use crate::config::{Config, Restore};

/// Capabilities, by number (`linux/capability.h`), that creating, dumping and restoring containers
/// needs.
const CAPABILITIES: [(u32, &str); 11] = [
    (0, "CAP_CHOWN"),
    (1, "CAP_DAC_OVERRIDE"),
    (3, "CAP_FOWNER"),
    (5, "CAP_KILL"),
    (6, "CAP_SETGID"),
    (7, "CAP_SETUID"),
    (12, "CAP_NET_ADMIN"),
    (18, "CAP_SYS_CHROOT"),
    (19, "CAP_SYS_PTRACE"),
    (21, "CAP_SYS_ADMIN"),
    (27, "CAP_MKNOD"),
];

const CAP_SYS_RESOURCE: u32 = 24;

/// A pipe this large holds what CRIU puts into one at a time.
const PIPE_BYTES_MIN: u64 = 64 * 1024 * 1024;

pub(super) fn checks(config: &Config) -> Vec<Check> {
    let capabilities = effective_capabilities();
    vec![
        privileges(capabilities),
        kernel(),
        userfaultfd(config),
        time_namespaces(),
        freezer(&fs::read_to_string("/proc/mounts").unwrap_or_default()),
        pipes(capabilities),
    ]
}

fn effective_capabilities() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

fn has(set: u64, capability: u32) -> bool {
    set & (1 << capability) != 0
}

fn privileges(capabilities: Option<u64>) -> Check {
    const NAME: &str = "privileges";
    let Some(set) = capabilities else {
        return Check::fail(
            NAME,
            "/proc/self/status can't be read",
            "mount proc on /proc",
        );
    };
    let lacking: Vec<&str> = CAPABILITIES
        .iter()
        .filter(|(number, _)| !has(set, *number))
        .map(|(_, name)| *name)
        .collect();
    match lacking.is_empty() {
        true => Check::ok(NAME, "all capabilities that are needed"),
        false => Check::fail(
            NAME,
            format!("lacking: {}", lacking.join(" ")),
            "run as root, outside of unprivileged containers",
        ),
    }
}

fn kernel() -> Check {
    const NAME: &str = "kernel";
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit());
    let version = numbers.next().zip(numbers.next());
    let version = version.and_then(|(one, two)| Some((one.parse().ok()?, two.parse().ok()?)));
    let (major, minor) = KERNEL_MIN;
    match version {
        Some(version) if version >= KERNEL_MIN => Check::ok(NAME, release),
        _ => Check::fail(
            NAME,
            format!("`{release}` is older than {major}.{minor}"),
            format!("run Linux {major}.{minor} or newer (Debian 12 has 6.1)"),
        ),
    }
}

/// Asked of the agent's program: what it may, what it starts may. Without it pages are put in place
/// before a service runs.
fn userfaultfd(config: &Config) -> Check {
    const NAME: &str = "userfaultfd";
    if config.restore == Restore::Eager {
        return Check::ok(NAME, "not used: `restore` is set to `eager`");
    }
    let agent = config.bin_dir.join("ums-agent");
    match Command::new(&agent).arg("probe").output() {
        Ok(output) if output.status.success() => {
            judge_userfaultfd(NAME, String::from_utf8_lossy(&output.stdout).trim())
        }
        Ok(_) | Err(_) => Check::warn(
            NAME,
            format!("{} can't be asked whether it may use it", agent.display()),
            "set `bin_dir` to where this release's ums-agent is",
        ),
    }
}

fn judge_userfaultfd(name: &'static str, objection: &str) -> Check {
    match objection {
        "" => Check::ok(name, "can be used"),
        objection => Check::warn(
            name,
            format!(
                "{objection}: all memory of a service that arrives is put in place before it runs, \
                 which takes longer and twice the memory"
            ),
            "use a kernel with CONFIG_USERFAULTFD, and run as root outside of profiles that forbid \
             it; or set `restore = \"eager\"` if it shall be so",
        ),
    }
}

fn time_namespaces() -> Check {
    const NAME: &str = "time namespaces";
    match Path::new("/proc/self/ns/time").exists() {
        true => Check::ok(NAME, "the kernel has them"),
        false => Check::fail(
            NAME,
            "the kernel has none, so the clocks of services would jump",
            "use a kernel with CONFIG_TIME_NS",
        ),
    }
}

/// The freeze outlives whoever made it only where the kernel keeps it, in a control group.
fn freezer(mounts: &str) -> Check {
    const NAME: &str = "cgroup freezer";
    let of_type = |kind: &'static str| {
        mounts
            .lines()
            .filter(move |line| line.split(' ').nth(2) == Some(kind))
    };
    let options = |line: &str| line.split(' ').nth(3).unwrap_or_default().to_owned();
    if of_type("cgroup").any(|line| options(line).split(',').any(|option| option == "freezer")) {
        return Check::ok(NAME, "version 1");
    }
    match of_type("cgroup2").next() {
        Some(_) => Check::ok(NAME, "version 2"),
        None => Check::fail(
            NAME,
            "no control groups with a freezer are mounted",
            "mount cgroup2 on /sys/fs/cgroup",
        ),
    }
}

fn pipes(capabilities: Option<u64>) -> Check {
    const NAME: &str = "pipe sizes";
    if capabilities.is_some_and(|set| has(set, CAP_SYS_RESOURCE)) {
        return Check::ok(NAME, "not limited (CAP_SYS_RESOURCE)");
    }
    let setting = |name: &str| -> Option<u64> {
        fs::read_to_string(format!("/proc/sys/fs/{name}"))
            .ok()?
            .trim()
            .parse()
            .ok()
    };
    judge_pipes(
        NAME,
        setting("pipe-max-size"),
        setting("pipe-user-pages-soft"),
    )
}

fn judge_pipes(name: &'static str, max: Option<u64>, pages_soft: Option<u64>) -> Check {
    match (max, pages_soft) {
        (Some(PIPE_BYTES_MIN..), Some(0)) => {
            Check::ok(name, "large enough without CAP_SYS_RESOURCE")
        }
        (max, pages_soft) => {
            let told = |value: Option<u64>| value.map_or("?".to_owned(), |value| value.to_string());
            Check::warn(
                name,
                format!(
                    "fs.pipe-max-size {}, fs.pipe-user-pages-soft {}, and no CAP_SYS_RESOURCE: \
                     CRIU can't enlarge its pipes, and large services may fail to dump",
                    told(max),
                    told(pages_soft)
                ),
                format!("sysctl fs.pipe-max-size={PIPE_BYTES_MIN} fs.pipe-user-pages-soft=0"),
            )
        }
    }
}

#[cfg(test)]
mod test {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn the_freezer_is_found_in_either_version() {
        let v1 = "cgroup /sys/fs/cgroup/freezer cgroup rw,nosuid,freezer 0 0\n";
        assert_eq!(freezer(v1).detail, "version 1");
        let v2 = "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n";
        assert_eq!(freezer(v2).detail, "version 2");
        let none = "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\nproc /proc proc rw 0 0\n";
        assert_eq!(freezer(none).verdict, Verdict::Fail);
    }

    #[test]
    fn privileges_are_told_one_by_one() {
        assert_eq!(privileges(Some(u64::MAX)).verdict, Verdict::Ok);
        let check = privileges(Some(!(1 << 21) & !(1 << 12)));
        assert_eq!(check.detail, "lacking: CAP_NET_ADMIN CAP_SYS_ADMIN");
        assert_eq!(check.verdict, Verdict::Fail);
        assert_eq!(privileges(None).verdict, Verdict::Fail);
    }

    #[test]
    fn a_lacking_userfaultfd_is_a_warning_with_its_reason() {
        assert_eq!(judge_userfaultfd("u", "").verdict, Verdict::Ok);
        let check = judge_userfaultfd("u", "this kernel has none");
        assert_eq!(check.verdict, Verdict::Warn);
        assert!(check.detail.starts_with("this kernel has none: "));
    }

    #[test]
    fn small_pipes_are_a_warning() {
        assert_eq!(
            judge_pipes("p", Some(64 << 20), Some(0)).verdict,
            Verdict::Ok
        );
        assert_eq!(
            judge_pipes("p", Some(1 << 20), Some(0)).verdict,
            Verdict::Warn
        );
        assert_eq!(
            judge_pipes("p", Some(64 << 20), Some(16384)).verdict,
            Verdict::Warn
        );
        assert_eq!(judge_pipes("p", None, None).verdict, Verdict::Warn);
    }
}
