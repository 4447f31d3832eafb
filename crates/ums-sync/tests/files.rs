//! Trees of files: both passes, over a real stream, into real directories.
//!
//! Devices, owners and `trusted` attributes need root; without it these tests say so and check
//! what an ordinary user can have.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use common::{chain, limits, pair};
use proptest::prelude::*;
use rustix::fs::{CWD, FileType, Gid, Mode, SeekFrom, Uid, XattrFlags};
use tempfile::TempDir;
use ums_sync::files::{Always, Applier, ApplyError, Look, Stats, Tree, first_pass, second_pass};
use ums_sync::frame::{Entry, Kind, RelativePath, RootName};
use ums_sync::receive::{Block, FileOperation, Sink, SinkError};

/// A sink that writes files and nothing else.
struct Writing(Applier);

impl Sink for Writing {
    fn image(&mut self, _: &str, _: Vec<u8>) -> Result<(), SinkError> {
        Err("no images are expected".into())
    }
    fn pages(&mut self, _: &Block<'_>) -> Result<(), SinkError> {
        Err("no pages are expected".into())
    }
    fn file(&mut self, operation: &FileOperation<'_>) -> Result<(), SinkError> {
        Ok(self.0.apply(operation)?)
    }
    fn finish(&mut self) -> Result<(), SinkError> {
        Ok(self.0.finish()?)
    }
}

/// A source and a destination directory for each tree.
struct Place {
    base: TempDir,
    roots: Vec<RootName>,
}

impl Place {
    fn new() -> Self {
        Self::with(&["upper", "volume/data"])
    }

    fn with(roots: &[&str]) -> Self {
        let base = tempfile::tempdir().unwrap();
        let roots: Vec<RootName> = roots.iter().map(|root| root.parse().unwrap()).collect();
        let place = Self { base, roots };
        for root in &place.roots {
            fs::create_dir_all(place.source(root)).unwrap();
            fs::create_dir_all(place.destination(root)).unwrap();
        }
        place
    }

    fn source(&self, root: &RootName) -> PathBuf {
        self.base.path().join("source").join(root.to_string())
    }

    fn destination(&self, root: &RootName) -> PathBuf {
        self.base.path().join("destination").join(root.to_string())
    }

    fn upper(&self) -> PathBuf {
        self.source(&RootName::Upper)
    }

    fn tree(&self) -> Tree {
        Tree {
            roots: self
                .roots
                .iter()
                .map(|root| (root.clone(), self.source(root)))
                .collect(),
        }
    }

    fn applier(&self) -> Applier {
        let roots = self
            .roots
            .iter()
            .map(|root| (root.clone(), self.destination(root)));
        Applier::new(roots).unwrap()
    }

    /// Both passes with `between` in the middle.
    fn migrate(&self, always: &Always, between: impl FnOnce() + Send) -> Result<Stats, String> {
        self.migrate_mapped(always, &mut || Ok(Always::new()), between)
    }

    /// The same, where some files are mapped during the first pass.
    fn migrate_mapped(
        &self,
        always: &Always,
        mapped: &mut Look<'_>,
        between: impl FnOnce() + Send,
    ) -> Result<Stats, String> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let (sender, receiver) = runtime.block_on(pair(limits(), Writing(self.applier())));
        let sender = sender.unwrap();
        let mut writer = sender.files();
        let manifest = first_pass(&self.tree(), &mut writer, mapped);
        let manifest = manifest.map_err(|error| chain(&error))?;
        between();
        let stats = second_pass(&self.tree(), &manifest, always, &mut writer)
            .map_err(|error| chain(&error))?;
        drop(writer);
        runtime
            .block_on(sender.finish())
            .map_err(|error| chain(&error))?;
        let received = runtime.block_on(receiver).unwrap();
        received.map(|_| stats).map_err(|error| chain(&error))
    }

    fn assert_same(&self) {
        for root in &self.roots {
            let (source, destination) = (self.source(root), self.destination(root));
            let (from, to) = (snapshot(&source), snapshot(&destination));
            for (path, expected) in &from {
                assert_eq!(to.get(path), Some(expected), "{root}/{}", path.display());
            }
            assert_eq!(from.len(), to.len(), "{root}: {:?}", to.keys());
        }
    }
}

/// All that is carried of an entry.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, i64),
    device: u64,
    content: Vec<u8>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first of its names.
    same_as: PathBuf,
    extents: Vec<(u64, u64)>,
}

fn snapshot(base: &Path) -> BTreeMap<PathBuf, Seen> {
    let (mut seen, mut inodes) = (BTreeMap::new(), BTreeMap::new());
    look(base, base, &mut seen, &mut inodes);
    seen
}

fn look(
    base: &Path,
    path: &Path,
    seen: &mut BTreeMap<PathBuf, Seen>,
    inodes: &mut BTreeMap<u64, PathBuf>,
) {
    let metadata = fs::symlink_metadata(path).unwrap();
    let relative = path.strip_prefix(base).unwrap().to_owned();
    let kind = FileType::from_raw_mode(metadata.mode());
    if kind == FileType::Socket {
        return;
    }
    let (content, extents) = match kind {
        FileType::Symlink => (
            fs::read_link(path).unwrap().as_os_str().as_bytes().to_vec(),
            vec![],
        ),
        FileType::RegularFile => (fs::read(path).unwrap(), data_extents(path)),
        _ => (Vec::new(), vec![]),
    };
    let same_as = inodes
        .entry(metadata.ino())
        .or_insert_with(|| relative.clone())
        .clone();
    let entry = Seen {
        mode: metadata.mode(),
        owner: (metadata.uid(), metadata.gid()),
        mtime: (metadata.mtime(), metadata.mtime_nsec()),
        device: metadata.rdev(),
        content,
        xattrs: xattrs(path),
        same_as,
        extents,
    };
    seen.insert(relative, entry);
    if kind == FileType::Directory {
        let mut names: Vec<PathBuf> = fs::read_dir(path)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        names.sort();
        for name in names {
            look(base, &name, seen, inodes);
        }
    }
}

fn data_extents(path: &Path) -> Vec<(u64, u64)> {
    let (file, mut found, mut at) = (File::open(path).unwrap(), Vec::new(), 0);
    while let Ok(begin) = rustix::fs::seek(&file, SeekFrom::Data(at)) {
        at = rustix::fs::seek(&file, SeekFrom::Hole(begin)).unwrap();
        found.push((begin, at));
    }
    found
}

fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut list = vec![0; 65536];
    let length = rustix::fs::llistxattr(path, &mut list[..]).unwrap();
    let names = list[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty());
    let value = |name: &[u8]| {
        let mut value = vec![0; 65536];
        let length = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
        value.truncate(length);
        value
    };
    names.map(|name| (name.to_vec(), value(name))).collect()
}

fn set(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
}

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("not root: devices, owners and trusted attributes are not checked");
    }
    root
}

fn node(path: &Path, kind: FileType, major: u32, minor: u32) {
    let mode = Mode::from_raw_mode(0o620);
    rustix::fs::mknodat(CWD, path, kind, mode, rustix::fs::makedev(major, minor)).unwrap();
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn old(path: &Path) {
    let time = SystemTime::UNIX_EPOCH + Duration::new(1_234_567_890, 987_654_321);
    File::open(path).unwrap().set_modified(time).unwrap();
}

/// Version 2 of `vfs_cap_data` with CAP_NET_BIND_SERVICE, effective.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// One of everything that a tree can hold.
fn populate(upper: &Path) {
    let at = |name: &str| upper.join(name);
    fs::create_dir_all(at("etc/deep/er")).unwrap();
    fs::write(at("etc/empty"), b"").unwrap();
    fs::write(at("etc/plain"), b"text ".repeat(100_000)).unwrap();
    fs::write(at("etc/deep/random"), common::random(6, 700_001)).unwrap();
    fs::write(at("etc/with \n newline \u{fffd}"), b"odd").unwrap();
    fs::hard_link(at("etc/plain"), at("etc/deep/same")).unwrap();
    fs::hard_link(at("etc/plain"), at("another")).unwrap();
    symlink("/etc/passwd", at("etc/absolute")).unwrap();
    symlink("../nowhere", at("etc/dangling")).unwrap();
    fs::hard_link(at("etc/dangling"), at("etc/dangling too")).unwrap();
    rustix::fs::mkfifoat(CWD, at("etc/fifo"), Mode::RWXU).unwrap();
    drop(std::os::unix::net::UnixListener::bind(at("socket")).unwrap());
    let sparse = File::create(at("sparse")).unwrap();
    sparse.write_all_at(b"middle", 5 << 20).unwrap();
    sparse.set_len(9 << 20).unwrap();
    fs::write(at("suid"), b"#!").unwrap();
    fs::create_dir(at("tmp")).unwrap();
    set(&at("etc/plain"), "user.note", b"value");
    set(&at("etc"), "user.big", &[b'x'; 3000]);
    if is_root() {
        node(&at("whiteout"), FileType::CharacterDevice, 0, 0);
        node(&at("null"), FileType::CharacterDevice, 1, 3);
        node(&at("block"), FileType::BlockDevice, 7, 200);
        set(&at("etc/deep"), "trusted.overlay.opaque", b"y");
        set(&at("suid"), "security.capability", &CAPABILITY);
        set(&at("etc/dangling"), "trusted.on-a-link", b"1");
        rustix::fs::chown(
            at("etc/plain"),
            Some(Uid::from_raw(1234)),
            Some(Gid::from_raw(99)),
        )
        .unwrap();
        std::os::unix::fs::lchown(at("etc/absolute"), Some(7), Some(8)).unwrap();
    }
    mode(&at("suid"), 0o4755);
    if is_root() {
        set(&at("suid"), "security.capability", &CAPABILITY);
    }
    mode(&at("tmp"), 0o1777);
    mode(&at("etc/deep/er"), 0o2550);
    for name in ["etc/empty", "etc/deep", "etc", "."] {
        old(&at(name));
    }
}

/// Waits until changes from now on show in the times of what was there before.
fn settle() {
    std::thread::sleep(Duration::from_millis(80));
}

#[test]
fn everything_a_tree_can_hold_arrives_as_it_was() {
    let place = Place::new();
    populate(&place.upper());
    fs::write(
        place.source(&place.roots[1]).join("dump.rdb"),
        common::random(1, 1000),
    )
    .unwrap();
    settle();
    let stats = place.migrate(&Always::new(), || {}).unwrap();
    assert_eq!((stats.sent, stats.removed), (0, 0), "{stats:?}");
    place.assert_same();
    let destination = place.destination(&RootName::Upper);
    assert!(!destination.join("socket").exists());
    assert!(fs::metadata(destination.join("sparse")).unwrap().blocks() < 1000);
    assert_eq!(
        fs::metadata(destination.join("another")).unwrap().nlink(),
        3
    );
}

#[test]
fn the_second_pass_corrects_whatever_changed() {
    let place = Place::new();
    let upper = place.upper();
    populate(&upper);
    let at = |name: &str| upper.join(name);
    fs::write(at("grows"), b"a").unwrap();
    fs::write(at("shrinks"), common::random(2, 900_000)).unwrap();
    fs::write(at("becomes a directory"), b"a").unwrap();
    fs::create_dir(at("becomes a file")).unwrap();
    fs::write(at("becomes a file/inside"), b"a").unwrap();
    fs::create_dir(at("becomes a link")).unwrap();
    fs::write(at("becomes a link/inside"), b"a").unwrap();
    fs::create_dir_all(at("gone/with/all")).unwrap();
    fs::write(at("gone/with/all/this"), b"a").unwrap();
    fs::write(at("becomes a socket"), b"a").unwrap();
    fs::write(at("renamed"), b"same content").unwrap();
    settle();
    let stats = place.migrate(&Always::new(), || {
        fs::write(at("grows"), common::random(3, 600_000)).unwrap();
        File::options()
            .write(true)
            .open(at("shrinks"))
            .unwrap()
            .set_len(10)
            .unwrap();
        fs::remove_file(at("becomes a directory")).unwrap();
        fs::create_dir(at("becomes a directory")).unwrap();
        fs::write(at("becomes a directory/new"), b"n").unwrap();
        fs::remove_dir_all(at("becomes a file")).unwrap();
        fs::write(at("becomes a file"), b"file").unwrap();
        fs::remove_dir_all(at("becomes a link")).unwrap();
        symlink("etc", at("becomes a link")).unwrap();
        fs::remove_dir_all(at("gone")).unwrap();
        fs::remove_file(at("becomes a socket")).unwrap();
        drop(std::os::unix::net::UnixListener::bind(at("becomes a socket")).unwrap());
        fs::rename(at("renamed"), at("etc/renamed")).unwrap();
        fs::rename(at("etc/deep"), at("etc/moved")).unwrap();
        fs::remove_file(at("another")).unwrap();
        fs::write(at("another"), b"a file of its own").unwrap();
        fs::hard_link(at("sparse"), at("sparse too")).unwrap();
        mode(&at("tmp"), 0o700);
        set(&at("etc"), "user.big", b"small");
        rustix::fs::removexattr(at("etc/plain"), "user.note").unwrap();
        old(&at("etc"));
    });
    let stats = stats.unwrap();
    assert_eq!(stats.removed, 4, "{stats:?}");
    place.assert_same();
}

#[test]
fn only_what_changed_is_sent_again() {
    let place = Place::new();
    for number in 0..300 {
        fs::write(
            place.upper().join(format!("{number:03}")),
            [number as u8; 5000],
        )
        .unwrap();
    }
    settle();
    let (changed, mapped) = (place.upper().join("123"), place.upper().join("200"));
    fs::hard_link(&mapped, place.upper().join("201 too")).unwrap();
    settle();
    let always = BTreeSet::from([
        (RootName::Upper, PathBuf::from("200")),
        (RootName::Upper, PathBuf::from("was deleted")),
    ]);
    let stats = place
        .migrate(&always, || fs::write(changed, b"new").unwrap())
        .unwrap();
    // The changed file, and the mapped one under both its names.
    assert_eq!(
        (stats.sent, stats.removed, stats.bytes),
        (3, 0, 5003),
        "{stats:?}"
    );
    assert_eq!(stats.seen, 303);
    place.assert_same();
}

#[test]
fn what_is_mapped_in_the_first_pass_is_sent_again_whatever_its_times_say() {
    let place = Place::with(&["upper"]);
    for name in ["mapped", "mapped later", "not mapped"] {
        fs::write(place.upper().join(name), name).unwrap();
    }
    settle();
    let later = place.upper().join("mapped later");
    let mut mapped = || {
        // Changed after the look that does not find it.
        fs::write(&later, "stored to, and once more")?;
        settle();
        Ok(Always::from([(RootName::Upper, PathBuf::from("mapped"))]))
    };
    let stats = place.migrate_mapped(&Always::new(), &mut mapped, || {});
    let stats = stats.unwrap();
    assert_eq!((stats.sent, stats.seen), (2, 4), "{stats:?}");
    place.assert_same();
}

#[test]
fn where_no_store_changes_a_time_all_files_are_sent_again() {
    let shm = Path::new("/dev/shm");
    let is_memory = rustix::fs::statfs(shm).is_ok_and(|about| about.f_type == 0x0102_1994);
    assert!(is_memory, "/dev/shm is not in memory");
    let mut place = Place::with(&["upper"]);
    place.base = tempfile::tempdir_in(shm).unwrap();
    fs::create_dir_all(place.upper().join("directory")).unwrap();
    fs::create_dir_all(place.destination(&RootName::Upper)).unwrap();
    fs::write(place.upper().join("file"), "content").unwrap();
    settle();
    let stats = place.migrate(&Always::new(), || {}).unwrap();
    assert_eq!((stats.sent, stats.bytes), (1, 7), "{stats:?}");
    place.assert_same();
}

/// Writes at an offset, leaving the rest of the file.
fn overwrite(path: &Path, offset: u64, bytes: &[u8]) {
    let file = File::options().write(true).open(path).unwrap();
    file.write_all_at(bytes, offset).unwrap();
}

fn resize(path: &Path, size: u64) {
    let file = File::options().write(true).open(path).unwrap();
    file.set_len(size).unwrap();
}

const MIB: u64 = 1 << 20;

#[test]
fn of_large_files_only_what_changed_is_sent_again() {
    let place = Place::with(&["upper"]);
    let at = |name: &str| place.upper().join(name);
    let large = common::random(1, 4 * MIB as usize);
    for name in [
        "appended",
        "overwritten",
        "cut",
        "emptied",
        "punched",
        "same",
        "linked",
    ] {
        fs::write(at(name), &large).unwrap();
    }
    fs::hard_link(at("linked"), at("linked too")).unwrap();
    mode(&at("overwritten"), 0o4755);
    File::create(at("sparse"))
        .unwrap()
        .set_len(64 * MIB)
        .unwrap();
    overwrite(&at("sparse"), 10 * MIB, &large[..MIB as usize]);
    settle();
    let always = BTreeSet::from([(RootName::Upper, PathBuf::from("same"))]);
    let stats = place
        .migrate(&always, || {
            let mut log = File::options().append(true).open(at("appended")).unwrap();
            std::io::Write::write_all(&mut log, b"one more line").unwrap();
            overwrite(&at("overwritten"), 2 * MIB - 1, b"ab");
            overwrite(&at("overwritten"), 0, b"c");
            resize(&at("cut"), MIB + 5);
            resize(&at("emptied"), 0);
            resize(&at("emptied"), 3 * MIB);
            let punched = File::options().write(true).open(at("punched")).unwrap();
            let flags =
                rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(&punched, flags, MIB, MIB).unwrap();
            overwrite(&at("sparse"), 40 * MIB, b"new");
            resize(&at("sparse"), 80 * MIB);
            overwrite(&at("linked"), 7, b"x");
        })
        .unwrap();
    place.assert_same();
    // Blocks are 64 KiB: one appended, three overwritten, one cut, one in the sparse file (of which
    // the file system tells one of its own), one under two names.
    assert!(stats.bytes <= 8 * 64 * 1024, "{stats:?}");
    assert!(stats.sent >= 8, "{stats:?}");
    let sparse = fs::metadata(place.destination(&RootName::Upper).join("sparse")).unwrap();
    assert!(
        sparse.blocks() * 512 < 2 * MIB,
        "{} blocks",
        sparse.blocks()
    );
}

#[test]
fn a_file_that_took_the_place_of_another_is_sent_whole() {
    let place = Place::with(&["upper"]);
    let at = |name: &str| place.upper().join(name);
    let [one, two] = [1, 2].map(|seed| common::random(seed, MIB as usize));
    fs::write(at("a"), &one).unwrap();
    fs::hard_link(at("a"), at("keeps the first")).unwrap();
    fs::write(at("b"), &two).unwrap();
    fs::create_dir(at("d")).unwrap();
    fs::write(at("d/c"), &one).unwrap();
    settle();
    let stats = place
        .migrate(&Always::new(), || {
            // Swapped, with a name that stays with the first.
            fs::rename(at("a"), at("x")).unwrap();
            fs::rename(at("b"), at("a")).unwrap();
            fs::rename(at("x"), at("b")).unwrap();
            overwrite(&at("a"), 100, b"changed");
            // Replaced as editors and databases do.
            fs::write(at("d/new"), &two).unwrap();
            fs::rename(at("d/new"), at("d/c")).unwrap();
        })
        .unwrap();
    place.assert_same();
    assert!(stats.bytes >= 2 * MIB, "{stats:?}");
}

/// Changes to one large file, made of numbers so that they meet each other.
fn scribble(path: &Path, (action, from, length): (u8, u32, u32)) {
    let (from, length) = (u64::from(from) % MIB, u64::from(length) % (MIB / 2));
    match action % 5 {
        0 => overwrite(path, from, &common::random(from, length as usize)),
        1 => resize(path, from),
        2 => overwrite(path, from, &vec![0; length as usize]),
        3 if length > 0 => {
            let file = File::options().write(true).open(path).unwrap();
            let flags =
                rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(&file, flags, from, length).unwrap();
        }
        _ => {
            let mut file = File::options().append(true).open(path).unwrap();
            std::io::Write::write_all(&mut file, &common::random(length, 5000)).unwrap();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(96) })]
    #[test]
    fn a_large_file_arrives_after_any_changes(
        before in prop::collection::vec(any::<(u8, u32, u32)>(), 0..6),
        after in prop::collection::vec(any::<(u8, u32, u32)>(), 0..6),
    ) {
        let place = Place::with(&["upper"]);
        let file = place.upper().join("file");
        fs::write(&file, common::random(9, 300_000)).unwrap();
        before.iter().for_each(|step| scribble(&file, *step));
        place.migrate(&Always::new(), || {
            after.iter().for_each(|step| scribble(&file, *step));
        }).unwrap();
        let arrived = place.destination(&RootName::Upper).join("file");
        // Not with `assert_eq`: nobody reads a megabyte of numbers.
        prop_assert!(fs::read(&arrived).unwrap() == fs::read(&file).unwrap());
        let [here, there] = [&file, &arrived].map(|path| fs::metadata(path).unwrap());
        prop_assert_eq!(here.mtime_nsec(), there.mtime_nsec());
    }
}

#[test]
fn only_a_regular_file_that_is_there_can_be_patched() {
    let place = Place::with(&["upper"]);
    let mut applier = place.applier();
    let upper = RootName::Upper;
    let outside = place.base.path().join("victim");
    fs::write(&outside, b"untouched").unwrap();
    let destination = place.destination(&upper);
    symlink(&outside, destination.join("link")).unwrap();
    fs::create_dir(destination.join("directory")).unwrap();
    node(&destination.join("pipe"), FileType::Fifo, 0, 0);
    for name in ["link", "directory", "pipe", "absent", "../victim"] {
        let Ok(_) = RelativePath::new(name.as_bytes()) else {
            continue;
        };
        let patch = entry(&upper, name.as_bytes(), Kind::Patch);
        let error = applier.apply(&patch).unwrap_err();
        assert!(chain(&error).contains(name), "{}", chain(&error));
    }
    assert_eq!(fs::read(&outside).unwrap(), b"untouched");
}

/// What a migration of a large file with small changes sends in the freeze, for the record.
#[test]
fn a_database_of_256_mib_with_small_changes() {
    if std::env::var_os("UMS_TEST_LONG").is_none() {
        return;
    }
    let place = Place::with(&["upper"]);
    let file = place.upper().join("database");
    fs::write(&file, common::random(1, 256 << 20)).unwrap();
    settle();
    let always = BTreeSet::from([(RootName::Upper, PathBuf::from("database"))]);
    let stats = place
        .migrate(&always, || {
            for index in 0..50_u64 {
                overwrite(&file, index * 5_000_000, b"one record");
            }
            let mut log = File::options().append(true).open(&file).unwrap();
            std::io::Write::write_all(&mut log, &common::random(2, 100_000)).unwrap();
        })
        .unwrap();
    eprintln!(
        "{} of {} bytes",
        stats.bytes,
        fs::metadata(&file).unwrap().len()
    );
    place.assert_same();
    assert!(stats.bytes < 4 << 20, "{stats:?}");
}

#[test]
fn an_image_is_sent_once() {
    let place = Place::with(&["image", "upper"]);
    let image = place.source(&RootName::Image);
    populate(&image);
    let stats = place.migrate(&Always::new(), || {}).unwrap();
    assert!(stats.seen <= 1, "{stats:?}");
    place.assert_same();
}

#[test]
fn a_tree_that_changes_all_the_time_arrives_as_it_was_in_the_end() {
    let place = Place::new();
    let upper = place.upper();
    for number in 0..50 {
        fs::write(
            upper.join(format!("stays {number}")),
            common::random(number, 50_000),
        )
        .unwrap();
    }
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let service = scope.spawn(|| {
            let mut round = 0_u64;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                round += 1;
                let name = upper.join(format!("log {}", round % 40));
                match round % 5 {
                    0 => drop(fs::remove_file(&name)),
                    1 => drop(fs::create_dir(&name)),
                    2 => drop(fs::remove_dir(&name)),
                    3 => drop(symlink("/etc", &name)),
                    _ => drop(fs::write(&name, common::random(round, 30_000))),
                }
                let _ = fs::write(upper.join("stays 7"), round.to_le_bytes());
            }
            round
        });
        let migrated = place.migrate(&Always::new(), || {
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(service.join().unwrap() > 0);
        });
        migrated.unwrap();
    });
    place.assert_same();
}

fn entry<'a>(root: &RootName, path: &'a [u8], kind: Kind<'a>) -> FileOperation<'a> {
    FileOperation::Entry(Entry {
        root: root.clone(),
        path: RelativePath::new(path).unwrap(),
        kind,
        mode: 0o755,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        mtime_s: 1,
        mtime_ns: 2,
        xattrs: Vec::new(),
    })
}

#[test]
fn nothing_leads_out_of_a_tree() {
    let place = Place::new();
    let outside = place.base.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("victim"), b"untouched").unwrap();
    let upper = RootName::Upper;
    let mut applier = place.applier();
    let target = outside.as_os_str().as_bytes();
    applier
        .apply(&entry(&upper, b"link", Kind::Symlink { target }))
        .unwrap();
    applier
        .apply(&entry(
            &upper,
            b"up",
            Kind::Symlink {
                target: b"../../outside",
            },
        ))
        .unwrap();
    let victim = outside.join("victim");
    let to_victim = Kind::Symlink {
        target: victim.as_os_str().as_bytes(),
    };
    applier.apply(&entry(&upper, b"file", to_victim)).unwrap();

    for through in [&b"link/new"[..], b"link/victim", b"up/new"] {
        for kind in [Kind::File, Kind::Directory, Kind::Fifo] {
            let error = applier.apply(&entry(&upper, through, kind)).unwrap_err();
            assert!(matches!(error, ApplyError::Write { .. }), "{error}");
        }
        let path = RelativePath::new(through).unwrap();
        applier
            .apply(&FileOperation::Remove {
                root: upper.clone(),
                path,
            })
            .unwrap();
    }
    let from_outside = Kind::Link {
        target: RelativePath::new(b"link/victim").unwrap(),
    };
    assert!(
        applier
            .apply(&entry(&upper, b"stolen", from_outside))
            .is_err()
    );
    // A file over a link replaces the link.
    applier.apply(&entry(&upper, b"file", Kind::File)).unwrap();
    applier
        .apply(&FileOperation::Data {
            offset: 0,
            bytes: b"new",
        })
        .unwrap();
    applier.apply(&FileOperation::End { size: 3 }).unwrap();
    // So does a directory, and then it can be written into.
    applier
        .apply(&entry(&upper, b"link", Kind::Directory))
        .unwrap();
    applier
        .apply(&entry(&upper, b"link/victim", Kind::Fifo))
        .unwrap();
    let path = RelativePath::new(b"up").unwrap();
    applier
        .apply(&FileOperation::Remove {
            root: upper.clone(),
            path,
        })
        .unwrap();
    applier.finish().unwrap();

    let names: Vec<_> = fs::read_dir(&outside)
        .unwrap()
        .map(|name| name.unwrap().file_name())
        .collect();
    assert_eq!(names, ["victim"]);
    assert_eq!(fs::read(&victim).unwrap(), b"untouched");
    let destination = place.destination(&upper);
    assert_eq!(fs::read(destination.join("file")).unwrap(), b"new");
    assert!(
        fs::symlink_metadata(destination.join("file"))
            .unwrap()
            .is_file()
    );
}

#[test]
fn what_makes_no_sense_is_an_error_that_says_so() {
    let place = Place::new();
    let mut applier = place.applier();
    let error = applier
        .apply(&entry(&RootName::Image, b"a", Kind::Fifo))
        .unwrap_err();
    assert!(error.to_string().contains("image"), "{error}");
    let data = FileOperation::Data {
        offset: 0,
        bytes: b"x",
    };
    assert!(matches!(applier.apply(&data), Err(ApplyError::NoFile)));
    let orphan = applier
        .apply(&entry(&RootName::Upper, b"no/parent", Kind::Fifo))
        .unwrap_err();
    assert!(
        orphan.to_string().contains("`no/parent` of upper"),
        "{orphan}"
    );
    let itself = Kind::Link {
        target: RelativePath::new(b"me").unwrap(),
    };
    assert!(
        applier
            .apply(&entry(&RootName::Upper, b"me", itself))
            .is_err()
    );
    let missing = [(RootName::Upper, place.base.path().join("missing"))];
    let error = Applier::new(missing).err().unwrap();
    assert!(error.to_string().contains("missing"), "{error}");
}

#[test]
fn a_full_disk_names_the_place_and_what_is_left() {
    if !is_root() {
        return;
    }
    let place = Place::with(&["upper"]);
    let destination = place.destination(&RootName::Upper);
    let flags = rustix::mount::MountFlags::empty();
    let Ok(()) = rustix::mount::mount("ums-test", &destination, "tmpfs", flags, c"size=64k") else {
        eprintln!("mounting is not allowed here: the full disk is not checked");
        return;
    };
    fs::write(place.upper().join("large"), common::random(1, 1 << 20)).unwrap();
    let outcome = place.migrate(&Always::new(), || {});
    rustix::mount::unmount(&destination, rustix::mount::UnmountFlags::DETACH).unwrap();
    let error = outcome.unwrap_err();
    for part in [
        "writing `large` of upper",
        "bytes and",
        "files are left at",
        "make room there",
    ] {
        assert!(error.contains(part), "{error}");
    }
}

/// A change to a tree, made of small numbers so that changes meet each other.
fn change(base: &Path, (action, from, to): (u8, u8, u8)) {
    let name = |number: u8| {
        let parts = ["a", "b", "a/c", "b/d", "a/c/e", "f", "a/g", "b/d/h"];
        base.join(parts[usize::from(number) % parts.len()])
    };
    let (from, to) = (name(from), name(to));
    // Many changes are impossible where they come; those change nothing.
    let _ = match action % 8 {
        0 => fs::create_dir(&from),
        1 => fs::write(&from, common::random(action.into(), 3000)),
        2 => fs::remove_file(&from),
        3 => fs::remove_dir_all(&from),
        4 => fs::rename(&from, &to),
        5 => fs::hard_link(&from, &to),
        6 => symlink("a/c", &from),
        _ => fs::set_permissions(
            &from,
            fs::Permissions::from_mode(0o700 | u32::from(action % 64)),
        ),
    };
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(96) })]
    #[test]
    fn any_tree_arrives_after_any_changes(
        before in prop::collection::vec(any::<(u8, u8, u8)>(), 0..40),
        after in prop::collection::vec(any::<(u8, u8, u8)>(), 0..25),
    ) {
        let place = Place::with(&["upper"]);
        before.iter().for_each(|step| change(&place.upper(), *step));
        place.migrate(&Always::new(), || {
            after.iter().for_each(|step| change(&place.upper(), *step));
        }).unwrap();
        place.assert_same();
    }
}
