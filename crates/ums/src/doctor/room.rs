//! Memory and disk.

use std::fs;
use std::path::Path;

use ums_core::preflight::MEMORY_MARGIN_BYTES;

use super::Check;
use crate::config::Config;
use crate::show;

/// Less disk than this is worth a warning: an image and a service's files want more.
const DISK_BYTES_LOW: u64 = 1 << 30;

pub(super) fn checks(config: &Config) -> Vec<Check> {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    vec![memory(&meminfo), disk(&config.state_dir)]
}

fn memory(meminfo: &str) -> Check {
    const NAME: &str = "memory";
    let kibibytes = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    match kibibytes.map(|amount| amount.saturating_mul(1024)) {
        None => Check::fail(NAME, "/proc/meminfo can't be read", "mount proc on /proc"),
        Some(available) if available <= MEMORY_MARGIN_BYTES => Check::fail(
            NAME,
            format!(
                "{} available, and receiving alone takes more",
                show::bytes(available)
            ),
            "free memory",
        ),
        Some(available) => Check::ok(NAME, format!("{} available", show::bytes(available))),
    }
}

/// The state directory need not exist yet: the nearest one above it tells.
fn disk(state_dir: &Path) -> Check {
    const NAME: &str = "disk";
    let Some(existing) = state_dir.ancestors().find(|directory| directory.is_dir()) else {
        let detail = format!(
            "{} has no directory above it that exists",
            state_dir.display()
        );
        return Check::fail(NAME, detail, "make it, or name another with `state_dir`");
    };
    match nix::sys::statvfs::statvfs(existing) {
        Err(error) => Check::fail(
            NAME,
            format!("{} can't be examined: {error}", existing.display()),
            "name another directory with `state_dir`",
        ),
        Ok(facts) => {
            let free = facts
                .blocks_available()
                .saturating_mul(facts.fragment_size());
            let detail = format!("{} free in {}", show::bytes(free), existing.display());
            match free < DISK_BYTES_LOW {
                true => Check::warn(
                    NAME,
                    detail,
                    "free space, or name a larger disk's `state_dir`",
                ),
                false => Check::ok(NAME, detail),
            }
        }
    }
}

#[cfg(test)]
mod test {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn available_memory_is_read() {
        let check = memory("MemTotal:  9 kB\nMemAvailable:    2097152 kB\n");
        assert_eq!(
            (check.verdict, check.detail.as_str()),
            (Verdict::Ok, "2.0 GiB available")
        );
        assert_eq!(memory("MemAvailable: 1024 kB\n").verdict, Verdict::Fail);
        assert_eq!(memory("").verdict, Verdict::Fail);
    }

    #[test]
    fn a_state_directory_that_is_not_there_yet_is_judged_by_its_parent() {
        let dir = tempfile::TempDir::new().expect("a directory");
        let check = disk(&dir.path().join("not/yet"));
        assert!(
            check
                .detail
                .ends_with(&format!("free in {}", dir.path().display()))
        );
    }
}
