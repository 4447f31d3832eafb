//! Memory that a service could have here: what the node has, within what the groups above the
//! service allow.

use std::fs;
use std::path::{Path, PathBuf};

use super::{FactsError, parse, read};

/// Bytes that can be had without swapping by a service below `cgroup`.
pub(super) fn available(cgroup: &str) -> Result<u64, FactsError> {
    const PATH: &str = "/proc/meminfo";
    let node = parse::memory_available(&read(PATH)?);
    let node = node.ok_or_else(|| FactsError::Unexpected {
        path: PATH.into(),
        what: "MemAvailable",
    })?;
    let hierarchy = parse::memory_hierarchy(&read("/proc/self/mountinfo")?);
    let group = hierarchy.and_then(|(root, v2)| within(Path::new(&root), cgroup, v2));
    Ok(group.map_or(node, |group| group.min(node)))
}

/// The least that any group from `cgroup` up to `root` leaves; `None` if none has a limit.
fn within(root: &Path, cgroup: &str, v2: bool) -> Option<u64> {
    let below = PathBuf::from(cgroup.trim_start_matches('/'));
    below
        .ancestors()
        .filter_map(|group| left(&root.join(group), v2))
        .min()
}

/// What one group leaves: its limit without what it uses, but with the page cache that would be given back.
fn left(group: &Path, v2: bool) -> Option<u64> {
    let [limit, usage, cache] = match v2 {
        true => ["memory.max", "memory.current", "inactive_file"],
        false => [
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        ],
    };
    let number = |name: &str| {
        fs::read_to_string(group.join(name))
            .ok()?
            .trim()
            .parse::<u64>()
            .ok()
    };
    // `max` is no number; version 1 says "no limit" with a number near 2^63.
    let limit = number(limit).filter(|limit| *limit < 1 << 62)?;
    let usage = number(usage)?;
    let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
    let cache = parse::stat(&stat, cache).unwrap_or(0);
    Some(limit.saturating_sub(usage.saturating_sub(cache)))
}

#[cfg(test)]
mod test {
    use super::*;

    fn group(root: &Path, path: &str, files: &[(&str, &str)]) {
        fs::create_dir_all(root.join(path)).unwrap();
        for (name, text) in files {
            fs::write(root.join(path).join(name), text).unwrap();
        }
    }

    #[test]
    fn the_tightest_group_above_a_service_counts() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let unlimited = "9223372036854771712\n";
        group(
            root,
            "",
            &[
                ("memory.limit_in_bytes", unlimited),
                ("memory.usage_in_bytes", "5"),
            ],
        );
        group(
            root,
            "ums",
            &[
                ("memory.limit_in_bytes", "1000\n"),
                ("memory.usage_in_bytes", "600\n"),
                ("memory.stat", "inactive_file 1\ntotal_inactive_file 100\n"),
            ],
        );
        group(
            root,
            "ums/a",
            &[
                ("memory.limit_in_bytes", "800"),
                ("memory.usage_in_bytes", "100"),
            ],
        );
        assert_eq!(within(root, "/ums/a", false), Some(500));
        assert_eq!(within(root, "/ums/none/below", false), Some(500));
        assert_eq!(within(root, "/other", false), None);
    }

    #[test]
    fn version_2_and_a_group_that_is_over_its_limit() {
        let dir = tempfile::tempdir().unwrap();
        group(
            dir.path(),
            "a",
            &[("memory.max", "max\n"), ("memory.current", "5\n")],
        );
        assert_eq!(within(dir.path(), "/a", true), None);
        group(
            dir.path(),
            "a",
            &[("memory.max", "100\n"), ("memory.current", "105\n")],
        );
        assert_eq!(within(dir.path(), "/a", true), Some(0));
    }
}
