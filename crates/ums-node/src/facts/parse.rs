//! Texts of the kernel and of CRIU, taken apart.

use std::collections::BTreeSet;

use super::Version;

/// Features of the first CPU in `/proc/cpuinfo`; all CPUs of a node are taken to be alike.
pub(super) fn cpu_features(cpuinfo: &str) -> Option<BTreeSet<String>> {
    // `flags` on x86, `Features` on ARM.
    let line = cpuinfo
        .lines()
        .find(|line| line.starts_with("flags") || line.starts_with("Features"));
    let (_, features) = line?.split_once(':')?;
    Some(features.split_whitespace().map(str::to_owned).collect())
}

/// `Version: 4.2.1`, the last part may lack.
pub(super) fn criu_version(said: &str) -> Option<Version> {
    let text = said
        .lines()
        .find_map(|line| line.strip_prefix("Version:"))?
        .trim();
    let mut parts = text.split('.').map(|part| part.parse::<u32>().ok());
    let major = parts.next()??;
    let minor = parts.next()??;
    Some((major, minor, parts.next().flatten().unwrap_or(0)))
}

/// `MemAvailable` of `/proc/meminfo`, bytes.
pub(super) fn memory_available(meminfo: &str) -> Option<u64> {
    let rest = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = rest.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Value of a key in `memory.stat`.
pub(super) fn stat(text: &str, key: &str) -> Option<u64> {
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))?;
    value.parse().ok()
}

/// Mount point of the memory controller in `/proc/self/mountinfo`, and whether it is of version 2.
pub(super) fn memory_hierarchy(mountinfo: &str) -> Option<(String, bool)> {
    let mount = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        let mut after = after.split(' ');
        let (kind, options) = (after.next()?, after.nth(1)?);
        let is_v1 = kind == "cgroup" && options.split(',').any(|option| option == "memory");
        let point = before.split(' ').nth(4)?.to_owned();
        (is_v1 || kind == "cgroup2").then_some((point, !is_v1))
    };
    let mounts: Vec<_> = mountinfo.lines().filter_map(mount).collect();
    // Where both are mounted, a controller of version 1 isn't in version 2.
    mounts
        .iter()
        .find(|(_, v2)| !v2)
        .or(mounts.first())
        .cloned()
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn features_of_both_kinds_of_processor() {
        let x86 = "processor\t: 0\nflags\t\t: fpu vme avx2\n\nprocessor\t: 1\nflags\t\t: fpu\n";
        assert_eq!(cpu_features(x86).unwrap().len(), 3);
        let arm = "processor\t: 0\nFeatures\t: fp asimd\n";
        assert!(cpu_features(arm).unwrap().contains("asimd"));
        assert_eq!(cpu_features("nonsense"), None);
    }

    #[test]
    fn versions() {
        assert_eq!(criu_version("Version: 4.2.1\nGitID: x\n"), Some((4, 2, 1)));
        assert_eq!(criu_version("Version: 4.2\n"), Some((4, 2, 0)));
        assert_eq!(criu_version("criu: not found\n"), None);
        assert_eq!(criu_version("Version: new\n"), None);
    }

    #[test]
    fn memory() {
        assert_eq!(
            memory_available("MemTotal: 9 kB\nMemAvailable:      12 kB\n"),
            Some(12288)
        );
        assert_eq!(memory_available("MemTotal: 9 kB\n"), None);
        assert_eq!(
            stat("cache 1\ninactive_file 77\n", "inactive_file"),
            Some(77)
        );
        let v1 = "38 32 0:33 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory";
        let v2 = "39 32 0:34 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";
        let both = format!("{v2}\n{v1}\n");
        assert_eq!(
            memory_hierarchy(&both),
            Some(("/sys/fs/cgroup/memory".to_owned(), false))
        );
        assert_eq!(
            memory_hierarchy(v2),
            Some(("/sys/fs/cgroup/unified".to_owned(), true))
        );
        assert_eq!(memory_hierarchy("1 1 0:1 / / rw - ext4 /dev/vda rw"), None);
    }
}
