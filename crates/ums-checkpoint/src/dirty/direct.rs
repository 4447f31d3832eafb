//! Processes into whose memory a device may write behind the page tables' back: those that read files
//! directly (`O_DIRECT`, open(2)) or asynchronously (`io_setup(2)`). The kernel pins the pages of such a
//! read when it begins, and what arrives later is written to no protected page.

use std::fs;

use super::Untracked;
use super::mappings::Maps;

/// `O_DIRECT`, as the octal `flags` of `/proc/PID/fdinfo` have it.
const O_DIRECT: u32 = nix::libc::O_DIRECT as u32;

/// Whether a process may have such a read under way. One that ends meanwhile has none.
pub(super) fn reads(pid: i32, maps: &Maps) -> Option<Untracked> {
    let has = maps.has_aio_ring || has_direct_file(pid);
    has.then_some(Untracked::DirectReads)
}

fn has_direct_file(pid: i32) -> bool {
    let entries = fs::read_dir(format!("/proc/{pid}/fd"));
    let mut files = entries.into_iter().flatten().flatten().filter(|entry| {
        // A pipe with this flag has packets (pipe(2)).
        fs::read_link(entry.path()).is_ok_and(|link| link.is_absolute())
    });
    files.any(|entry| {
        let path = format!("/proc/{pid}/fdinfo/{}", entry.file_name().display());
        fs::read_to_string(path).is_ok_and(|text| is_direct(&text))
    })
}

fn is_direct(fdinfo: &str) -> bool {
    let flags = fdinfo.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
    flags.is_some_and(|flags| flags & O_DIRECT != 0)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn by_its_flags() {
        assert!(is_direct("pos:\t0\nflags:\t0140002\nmnt_id:\t29\n"));
        assert!(!is_direct("pos:\t0\nflags:\t0100002\nmnt_id:\t29\n"));
        assert!(!is_direct("pos:\t0\n"));
    }
}
