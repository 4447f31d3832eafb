use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use super::*;
use crate::tar::Writer;

/// Ids of the tester's own: root's tests give files away, others can't.
fn own(mut entry: Entry) -> Entry {
    let own = fs::metadata("/proc/self").unwrap();
    (entry.uid, entry.gid) = (own.uid(), own.gid());
    entry
}

pub(super) fn directory(path: &str) -> (Entry, Vec<u8>) {
    (own(Entry::new(path, Kind::Directory, 0o755)), Vec::new())
}

pub(super) fn file(path: &str, content: &str) -> (Entry, Vec<u8>) {
    let mut entry = own(Entry::new(path, Kind::File, 0o644));
    entry.size = content.len() as u64;
    (entry, content.into())
}

fn link(path: &str, kind: Kind, to: &str) -> (Entry, Vec<u8>) {
    let mut entry = own(Entry::new(path, kind, 0o777));
    entry.link = to.into();
    (entry, Vec::new())
}

pub(super) fn layer(entries: &[(Entry, Vec<u8>)]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (entry, content) in entries {
        writer.entry(entry, &mut &content[..]).unwrap();
    }
    writer.finish().unwrap()
}

struct Made {
    dir: tempfile::TempDir,
    unpacker: Unpacker,
}

impl Made {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let rootfs = dir.path().join("rootfs");
        fs::create_dir(&rootfs).unwrap();
        let unpacker = Unpacker::new(&rootfs, Limits::default()).unwrap();
        Self { dir, unpacker }
    }

    fn with(mut self, entries: &[(Entry, Vec<u8>)]) -> Self {
        self.add(entries).unwrap();
        self
    }

    fn add(&mut self, entries: &[(Entry, Vec<u8>)]) -> Result<(), Error> {
        self.unpacker.layer(&layer(entries)[..])
    }

    fn at(&self, path: &str) -> std::path::PathBuf {
        self.dir.path().join("rootfs").join(path)
    }

    fn has(&self, path: &str) -> bool {
        fs::symlink_metadata(self.at(path)).is_ok()
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.at(path)).unwrap()
    }
}

#[test]
fn whiteouts_concern_what_is_below_wherever_they_stand() {
    for whiteout_first in [true, false] {
        let mut upper = vec![
            file("gone/.wh..wh..opq", ""),
            file(".wh.dir", ""),
            file(".wh.file", ""),
            file(".wh.never", ""),
        ];
        let own = [
            directory("dir/"),
            file("dir/new", "2"),
            file("file", "2"),
            file("gone/new", "2"),
        ];
        match whiteout_first {
            true => upper.extend(own),
            false => drop(upper.splice(0..0, own)),
        }
        let made = Made::new()
            .with(&[
                directory("dir/"),
                file("dir/old", "1"),
                file("dir/deep/old", "1"),
                file("file", "1"),
                file("gone/old", "1"),
                file("stays", "1"),
            ])
            .with(&upper);
        assert!(!made.has("dir/old") && !made.has("dir/deep") && !made.has("gone/old"));
        assert_eq!(
            made.read("dir/new") + &made.read("file") + &made.read("gone/new"),
            "222"
        );
        assert_eq!(made.read("stays"), "1");
        assert!(!made.has(".wh.file") && !made.has("gone/.wh..wh..opq"));
    }
}

#[test]
fn what_takes_a_name_removes_what_had_it() {
    let made = Made::new()
        .with(&[
            file("a/b/c", "1"),
            file("x", "1"),
            link("l", Kind::Symlink, "a"),
        ])
        .with(&[
            file("a", "2"),
            directory("x/"),
            directory("l/"),
            file("l/f", "2"),
        ]);
    assert_eq!(made.read("a"), "2");
    assert!(fs::symlink_metadata(made.at("x")).unwrap().is_dir());
    assert!(fs::symlink_metadata(made.at("l")).unwrap().is_dir());
}

#[test]
fn links_lead_nowhere_out() {
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().to_str().unwrap();
    let up = format!("../../../../../../../..{target}");
    for to in [target, &up] {
        let made = Made::new()
            .with(&[
                link("out", Kind::Symlink, to),
                directory(&format!("{target}/")),
            ])
            .with(&[file("out/file", "1"), file("out/.wh.nothing", "")]);
        // Where a process inside finds it.
        assert_eq!(made.read(&format!("{}/file", &target[1..])), "1");
    }
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    let mut dangling = Made::new().with(&[link("out", Kind::Symlink, target)]);
    assert!(dangling.add(&[file("out/file", "1")]).is_err());
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[test]
fn symbolic_links_of_lower_layers_are_followed_inside() {
    let made = Made::new()
        .with(&[directory("usr/lib/"), link("lib", Kind::Symlink, "usr/lib")])
        .with(&[file("lib/libc", "1")])
        .with(&[file("lib/.wh.libc", ""), file("lib/other", "1")]);
    assert!(made.has("usr/lib/other") && !made.has("usr/lib/libc"));
    assert!(fs::symlink_metadata(made.at("lib")).unwrap().is_symlink());
}

#[test]
fn hostile_entries_are_refused() {
    let outside = tempfile::tempdir().unwrap();
    let victim = outside.path().join("victim");
    fs::write(&victim, "safe").unwrap();
    let victim = victim.to_str().unwrap();
    let deep = "d/".repeat(300);
    let cases = [
        file("../escape", "1"),
        file("a/../../escape", "1"),
        file("a/.wh...", ""),
        file("a/.wh..", ""),
        file("a/.wh.", ""),
        link("hard", Kind::HardLink, "../../etc/passwd"),
        link("hard", Kind::HardLink, victim),
        link("hard", Kind::HardLink, "missing"),
        own_device("gone", (0, 0)),
        file(".", "not a directory"),
        directory(&deep),
    ];
    for case in cases {
        let path = String::from_utf8_lossy(&case.0.path).into_owned();
        let mut made = Made::new().with(&[directory("a/")]);
        assert!(made.add(&[case]).is_err(), "{path}");
    }
    assert_eq!(fs::read_to_string(victim).unwrap(), "safe");
}

fn own_device(path: &str, numbers: (u32, u32)) -> (Entry, Vec<u8>) {
    let mut entry = own(Entry::new(path, Kind::Character, 0o600));
    entry.device = numbers;
    (entry, Vec::new())
}

#[test]
fn a_file_is_not_written_through_a_link_in_its_place() {
    let made = Made::new()
        .with(&[file("real", "1"), link("name", Kind::Symlink, "real")])
        .with(&[file("name", "2")]);
    assert_eq!(made.read("real"), "1");
    assert_eq!(made.read("name"), "2");
}

#[test]
fn attributes_and_hard_links_are_kept() {
    let mut entry = file("dir/file", "1");
    entry.0.mode = 0o4751;
    entry.0.mtime = (1_000_000_000, 5);
    entry.0.attributes = vec![
        (b"user.kept".to_vec(), b"value".to_vec()),
        (b"security.selinux".to_vec(), b"label".to_vec()),
    ];
    let mut dir = directory("dir/");
    dir.0.mode = 0o1777;
    dir.0.mtime = (5, 0);
    dir.0.attributes = vec![(b"user.old".to_vec(), b"1".to_vec())];
    let mut again = dir.clone();
    again.0.attributes = vec![(b"user.new".to_vec(), b"1".to_vec())];
    let link = link("dir/other", Kind::HardLink, "/dir/file");
    let fifo = (own(Entry::new("pipe", Kind::Fifo, 0o600)), Vec::new());
    let made = Made::new().with(&[dir, entry, link, fifo]).with(&[again]);
    let metadata = fs::metadata(made.at("dir/file")).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o4751);
    assert_eq!(
        (metadata.mtime(), metadata.mtime_nsec()),
        (1_000_000_000, 5)
    );
    assert_eq!(
        metadata.ino(),
        fs::metadata(made.at("dir/other")).unwrap().ino()
    );
    let dir = fs::metadata(made.at("dir")).unwrap();
    assert_eq!((dir.mode() & 0o7777, dir.mtime()), (0o1777, 5));
    assert!(fs::metadata(made.at("pipe")).unwrap().file_type().is_fifo());
    let get = |path: &str, name: &str| xattr::get(made.at(path), name).ok().flatten();
    if get("dir/file", "user.kept").is_some() {
        assert_ne!(
            get("dir/file", "security.selinux").as_deref(),
            Some(&b"label"[..])
        );
        assert!(get("dir", "user.old").is_none() && get("dir", "user.new").is_some());
    }
}

#[test]
fn more_than_the_limits_is_not_unpacked() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits {
        entries: 2,
        bytes: 10,
        ..Limits::default()
    };
    let unpack = |entries: &[(Entry, Vec<u8>)]| {
        let mut unpacker = Unpacker::new(dir.path(), limits).unwrap();
        unpacker.layer(&layer(entries)[..])
    };
    unpack(&[file("a", "12345"), file("b", "12345")]).unwrap();
    let many = [file("a", ""), file("a", ""), file("a", "")];
    assert!(matches!(unpack(&many), Err(Error::TooLarge { .. })));
    let much = [file("a", "12345678901")];
    assert!(matches!(unpack(&much), Err(Error::TooLarge { .. })));
}
