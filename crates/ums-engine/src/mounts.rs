//! The mounts of a container that an engine has made: which CRIU makes again by itself, and what the others are.

use std::collections::{BTreeMap, BTreeSet};

use ums_core::specification::{Mount, MountContent};

/// File systems that CRIU makes anew, with what is in them.
const MADE_ANEW: [&str; 5] = ["proc", "sysfs", "tmpfs", "devpts", "mqueue"];
/// Where the hierarchies of control groups are.
const CONTROL_GROUPS: &str = "/sys/fs/cgroup";
/// Where shared memory is, which the Synchronization module carries.
const SHARED_MEMORY: &str = "/dev/shm";
/// Files that engines make for each container, by where they are in it.
const FILES: [(&str, &str); 4] = [
    ("/etc/hosts", "hosts"),
    ("/etc/hostname", "hostname"),
    ("/etc/resolv.conf", "resolv.conf"),
    ("/run/.containerenv", "containerenv"),
];

/// A line of `/proc/PID/mountinfo` (proc_pid_mountinfo(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    device: String,
    root: String,
    /// Where it is in the container.
    pub path: String,
    kind: String,
    /// Options of its file system.
    pub options: String,
}

/// What is mounted in a container.
pub fn read(mountinfo: &str) -> Vec<Mounted> {
    mountinfo.lines().filter_map(line).collect()
}

fn line(line: &str) -> Option<Mounted> {
    let (front, back) = line.split_once(" - ")?;
    let front: Vec<&str> = front.split(' ').collect();
    let mut back = back.split(' ');
    Some(Mounted {
        device: (*front.get(2)?).to_owned(),
        root: unescape(front.get(3)?),
        path: unescape(front.get(4)?),
        kind: back.next()?.to_owned(),
        options: back.nth(1).unwrap_or_default().to_owned(),
    })
}

/// The kernel writes blanks and backslashes as three octal digits.
fn unescape(text: &str) -> String {
    let codes = [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ];
    codes.iter().fold(text.to_owned(), |text, (code, letter)| {
        text.replace(code, letter)
    })
}

/// What becomes of the mounts of a container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sorted {
    /// Those that are not CRIU's, nor volumes.
    pub mounts: Vec<Mount>,
    /// Paths of those that nobody can make again, with the reason.
    pub foreign: Vec<String>,
}

/// Sorts them; `volumes` are the paths of those that are volumes, `empty` says of a path whether nothing is there.
pub fn sort(all: &[Mounted], volumes: &BTreeSet<String>, empty: impl Fn(&str) -> bool) -> Sorted {
    let files = BTreeMap::from(FILES);
    let anew = |mount: &Mounted| MADE_ANEW.contains(&mount.kind.as_str());
    // What is bound from such a file system is CRIU's too.
    let whole: BTreeSet<&str> = all
        .iter()
        .filter(|mount| anew(mount) && mount.root == "/")
        .map(|mount| mount.device.as_str())
        .collect();
    let mut sorted = Sorted::default();
    for mount in all {
        let path = mount.path.as_str();
        if path == "/" || path == SHARED_MEMORY || volumes.contains(path) {
            continue;
        }
        let masked = path.starts_with("/proc/") || path.starts_with("/sys/");
        let content = if masked && mount.kind == "tmpfs" && mount.root == "/" && empty(path) {
            Some(MountContent::Empty)
        } else if whole.contains(mount.device.as_str()) {
            continue;
        } else if let Some(name) = files.get(path) {
            Some(MountContent::File((*name).to_owned()))
        } else {
            control_group(mount)
        };
        let path = path.to_owned();
        match content {
            Some(content) => sorted.mounts.push(Mount { path, content }),
            None => sorted.foreign.push(format!("{path} ({})", mount.kind)),
        }
    }
    sorted
}

fn control_group(mount: &Mounted) -> Option<MountContent> {
    if mount.kind != "cgroup" && mount.kind != "cgroup2" {
        return None;
    }
    let hierarchy = mount.path.strip_prefix(CONTROL_GROUPS)?.strip_prefix('/')?;
    let plain = !hierarchy.is_empty() && !hierarchy.contains(['/', '[', ']', ':']);
    plain.then(|| MountContent::ControlGroup(hierarchy.to_owned()))
}

/// Whether shared memory is the container's own.
pub fn has_own_shared_memory(all: &[Mounted]) -> bool {
    let own = |mount: &&Mounted| mount.path == SHARED_MEMORY;
    let mounted: Vec<&Mounted> = all.iter().filter(own).collect();
    matches!(mounted[..], [mount] if mount.kind == "tmpfs" && mount.root == "/")
}

/// Why the layers of the root filesystem can't be told apart by others; `None` when they can.
pub fn odd_root(all: &[Mounted]) -> Option<String> {
    let Some(root) = all.iter().find(|mount| mount.path == "/") else {
        return Some("it has no root filesystem".to_owned());
    };
    if root.kind != "overlay" {
        return Some(format!("it is {}, not overlay", root.kind));
    }
    let odd = ["metacopy=on", "redirect_dir=on", "userxattr"];
    let mut options = root.options.split(',');
    options
        .find(|option| odd.contains(option))
        .map(|option| format!("its overlay is mounted with {option}"))
}

#[cfg(test)]
mod test {
    use super::*;

    /// As Docker 20.10 makes it, shortened.
    const DOCKER: &str = "\
73 47 0:39 / / rw,relatime master:4 - overlay overlay rw,lowerdir=/l,upperdir=/u,workdir=/w
74 73 0:42 / /proc rw,nosuid - proc proc rw
75 73 0:43 / /dev rw,nosuid - tmpfs tmpfs rw,size=65536k,mode=755
76 75 0:44 / /dev/pts rw - devpts devpts rw,gid=5
77 73 0:45 / /sys ro - sysfs sysfs ro
78 77 0:46 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
82 78 0:32 /docker/f9 /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory
88 75 0:41 / /dev/mqueue rw - mqueue mqueue rw
89 75 0:47 / /dev/shm rw - tmpfs shm rw,size=65536k
90 73 254:0 /v/mydata/_data /data rw master:3 - ext4 /dev/vda rw
91 73 254:0 /c/resolv.conf /etc/resolv.conf rw - ext4 /dev/vda rw
48 74 0:42 /bus /proc/bus ro - proc proc rw
52 74 0:48 / /proc/acpi ro,relatime - tmpfs tmpfs ro
53 74 0:43 /null /proc/keys rw,nosuid - tmpfs tmpfs rw,size=65536k,mode=755
94 73 254:0 /srv/my\\040files /srv rw - ext4 /dev/vda rw
";

    #[test]
    fn what_criu_does_not_make_is_named() {
        let volumes = BTreeSet::from(["/data".to_owned()]);
        let sorted = sort(&read(DOCKER), &volumes, |path| path == "/proc/acpi");
        let mount = |path: &str, content| Mount {
            path: path.to_owned(),
            content,
        };
        assert_eq!(
            sorted.mounts,
            [
                mount(
                    "/sys/fs/cgroup/memory",
                    MountContent::ControlGroup("memory".into())
                ),
                mount("/etc/resolv.conf", MountContent::File("resolv.conf".into())),
                mount("/proc/acpi", MountContent::Empty),
            ]
        );
        assert_eq!(sorted.foreign, ["/srv (ext4)"]);
    }

    #[test]
    fn shared_memory_and_the_root_are_its_own() {
        let all = read(DOCKER);
        assert!(has_own_shared_memory(&all));
        assert!(!has_own_shared_memory(&read("")));
        assert_eq!(odd_root(&all), None);
        let odd = DOCKER.replace("upperdir=/u", "upperdir=/u,metacopy=on");
        assert!(odd_root(&read(&odd)).unwrap().contains("metacopy"));
        assert!(odd_root(&read("")).is_some());
    }

    #[test]
    fn what_is_no_line_is_passed_over() {
        assert_eq!(read("a b - c"), []);
        assert_eq!(read(DOCKER).last().unwrap().root, "/srv/my files");
    }
}
