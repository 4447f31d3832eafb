use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use std::time::{Duration, UNIX_EPOCH};

use super::*;

fn store(dir: &Path) -> ImageStore {
    ImageStore::open(dir, Bounds::default()).unwrap()
}

/// A tree with one of each kind of entry.
fn tree(top: &Path) {
    fs::create_dir_all(top.join("bin/deep")).unwrap();
    fs::write(top.join("bin/sh"), vec![7; 300_000]).unwrap();
    fs::set_permissions(top.join("bin/sh"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::hard_link(top.join("bin/sh"), top.join("bin/deep/ash")).unwrap();
    fs::write(top.join("bin/empty"), "").unwrap();
    symlink("/nowhere", top.join("link")).unwrap();
    nix::unistd::mkfifo(&top.join("fifo"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    fs::create_dir(top.join("locked")).unwrap();
    fs::write(top.join("locked/file"), "x").unwrap();
    fs::set_permissions(top.join("locked"), fs::Permissions::from_mode(0o555)).unwrap();
}

#[test]
fn the_same_tree_at_two_places_is_one_image() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    tree(&a);
    tree(&b);
    // Times and hard links don't tell them apart.
    fs::remove_file(b.join("bin/deep/ash")).unwrap();
    fs::copy(b.join("bin/sh"), b.join("bin/deep/ash")).unwrap();
    fs::set_permissions(b.join("bin/deep/ash"), fs::Permissions::from_mode(0o4755)).unwrap();
    let store = store(dir.path());
    let id = store.import(&a).unwrap();
    assert_eq!(store.import(&b).unwrap(), id);
    assert_eq!(store.list().unwrap().len(), 1);
    store.verify(&id).unwrap();
    // `bin/sh` under both its names, `locked/file`.
    assert_eq!(store.bytes(&id).unwrap(), 600_001);
    assert_eq!(store.bytes(&id).unwrap(), 600_001, "remembered");
}

#[test]
fn a_copy_keeps_everything() {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().join("a");
    tree(&top);
    let old = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
    for path in ["bin/sh", "locked"] {
        fs::File::open(top.join(path))
            .unwrap()
            .set_modified(old)
            .unwrap();
    }
    let attribute = xattr::set(top.join("bin/sh"), "user.ums", b"1").is_ok();
    let store = store(dir.path());
    let rootfs = store.rootfs(&store.import(&top).unwrap());
    let copy = fs::symlink_metadata(rootfs.join("bin/sh")).unwrap();
    assert_eq!(copy.mode() & 0o7777, 0o4755);
    assert_eq!(copy.modified().unwrap(), old);
    assert_eq!(
        copy.ino(),
        fs::metadata(rootfs.join("bin/deep/ash")).unwrap().ino()
    );
    assert_ne!(copy.ino(), fs::metadata(top.join("bin/sh")).unwrap().ino());
    if attribute {
        assert_eq!(
            xattr::get(rootfs.join("bin/sh"), "user.ums")
                .unwrap()
                .unwrap(),
            b"1"
        );
    }
    let locked = fs::metadata(rootfs.join("locked")).unwrap();
    assert_eq!(
        (locked.mode() & 0o7777, locked.modified().unwrap()),
        (0o555, old)
    );
    assert_eq!(
        fs::read_link(rootfs.join("link")).unwrap(),
        Path::new("/nowhere")
    );
    let fifo = fs::symlink_metadata(rootfs.join("fifo")).unwrap();
    assert!(std::os::unix::fs::FileTypeExt::is_fifo(&fifo.file_type()));
}

#[test]
fn every_difference_that_a_service_sees_makes_another_image() {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().join("a");
    tree(&top);
    let id = || manifest::id_of(&top, Bounds::default()).unwrap();
    let mut seen = vec![id()];
    let changes: [&dyn Fn(); 6] = [
        &|| fs::write(top.join("bin/empty"), "1").unwrap(),
        &|| fs::write(top.join("bin/empty"), "2").unwrap(),
        &|| fs::set_permissions(top.join("bin"), fs::Permissions::from_mode(0o700)).unwrap(),
        &|| fs::rename(top.join("link"), top.join("link2")).unwrap(),
        &|| fs::create_dir(top.join("more")).unwrap(),
        &|| std::os::unix::fs::chown(top.join("bin/empty"), Some(12), None).unwrap(),
    ];
    for change in changes {
        change();
        assert!(!seen.contains(&id()));
        seen.push(id());
    }
}

#[test]
fn the_same_tree_is_imported_twice_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().join("a");
    tree(&top);
    let store = store(dir.path());
    // Two that have read the tree and know of no image yet.
    let import = || store.import(&top).unwrap();
    let (one, other) = std::thread::scope(|scope| {
        let both = [scope.spawn(import), scope.spawn(import)];
        let [one, other] = both.map(|thread| thread.join().unwrap());
        (one, other)
    });
    assert_eq!(one, other);
    let names = fs::read_dir(dir.path().join("images")).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name());
    let images: Vec<_> = names.filter(|name| *name != *STAMPS).collect();
    assert_eq!(images, [one.as_str()]);
}

#[test]
fn a_second_import_reads_nothing_and_a_changed_tree_is_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().join("a");
    tree(&top);
    let store = store(dir.path());
    let id = store.import(&top).unwrap();
    let stamps = dir.path().join("images").join(STAMPS);
    assert_eq!(fs::read_dir(&stamps).unwrap().count(), 1);
    let stamp = stamp::of(&top, Bounds::default()).unwrap();
    let seconds_later = |seconds| {
        let now = UNIX_EPOCH + Duration::from_secs(stamp.youngest().unwrap() + seconds);
        stamp::remember(&stamps, &top, &stamp, &id, now);
        stamp::recall(&stamps, &top, &stamp)
    };
    assert_eq!(seconds_later(10), Some(id.clone()));
    assert_eq!(seconds_later(1), None, "a tree this young is not trusted");
    let other = ImageId::try_from("a".repeat(64)).unwrap();
    let later = UNIX_EPOCH + Duration::from_secs(stamp.youngest().unwrap() + 10);
    stamp::remember(&stamps, &top, &stamp, &other, later);
    assert_eq!(
        store.import(&top).unwrap(),
        id,
        "a stamp of an image that is gone is no use"
    );
    fs::write(top.join("bin/empty"), "changed").unwrap();
    let changed = stamp::of(&top, Bounds::default()).unwrap();
    assert_eq!(stamp::recall(&stamps, &top, &changed), None);
    assert_ne!(store.import(&top).unwrap(), id);
}

#[test]
fn what_was_received_counts_only_if_it_is_what_the_id_says() {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().join("a");
    tree(&top);
    let id = manifest::id_of(&top, Bounds::default()).unwrap();
    let store = store(dir.path());
    let staging = store.staging(&id).unwrap();
    let rootfs = staging.rootfs();
    tree_into(&rootfs);
    fs::write(rootfs.join("bin/sh"), "evil").unwrap();
    assert!(matches!(staging.commit(), Err(ImageError::Mismatch { .. })));
    assert!(!store.present(&id) && !rootfs.exists());
    let (one, other) = (store.staging(&id).unwrap(), store.staging(&id).unwrap());
    tree_into(&one.rootfs());
    tree_into(&other.rootfs());
    assert!(!store.present(&id));
    one.commit().unwrap();
    // The same image came twice at once: the first one stays, and nothing of the second.
    let rootfs = other.rootfs();
    other.commit().unwrap();
    assert!(!rootfs.exists());
    store.verify(&id).unwrap();
    fs::write(store.rootfs(&id).join("bin/empty"), "damage").unwrap();
    assert!(matches!(
        store.verify(&id),
        Err(ImageError::Mismatch { .. })
    ));
}

fn tree_into(staging: &Path) {
    fs::remove_dir(staging).unwrap();
    tree(staging);
}

#[test]
fn unused_images_and_unfinished_ones_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    tree(&a);
    fs::create_dir(&b).unwrap();
    let images = store(dir.path());
    let (a, b) = (images.import(&a).unwrap(), images.import(&b).unwrap());
    let in_use = BTreeSet::from([b.clone()]);
    let hour = Duration::from_secs(3600);
    let since = |id: &ImageId, ago: Duration| {
        let opened = fs::File::open(dir.path().join("images").join(id.as_str())).unwrap();
        opened.set_modified(SystemTime::now() - ago).unwrap();
    };
    assert_eq!(images.retire_unused(&in_use, hour).unwrap(), []);
    since(&a, hour * 2);
    since(&b, hour * 2);
    // Imported again, it is as good as new.
    assert_eq!(images.import(&dir.path().join("a")).unwrap(), a);
    assert_eq!(images.retire_unused(&in_use, hour).unwrap(), []);
    since(&a, hour * 2);
    let retired = images.retire_unused(&in_use, hour).unwrap();
    assert_eq!(retired, std::slice::from_ref(&a));
    assert!(!images.present(&a) && images.present(&b));
    assert_eq!(images.bytes(&a).unwrap(), 0);
    images.clear_retired().unwrap();
    assert_eq!(fs::read_dir(dir.path().join("images")).unwrap().count(), 2);
    // One that was in use a moment ago isn't old.
    assert_eq!(images.retire_unused(&BTreeSet::new(), hour).unwrap(), []);
    let given_up = images.staging(&a).unwrap();
    let rootfs = given_up.rootfs();
    drop(given_up);
    assert!(!rootfs.exists());
    let lost = images.staging(&a).unwrap();
    let rootfs = lost.rootfs();
    // As after a crash: nobody tidies up.
    std::mem::forget(lost);
    let reopened = store(dir.path());
    assert!(!rootfs.exists());
    assert_eq!(reopened.list().unwrap(), BTreeSet::from([b]));
}

#[test]
fn what_is_named_as_no_part_of_an_image_is_left_out_at_its_top_alone() {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().join("a");
    tree(&top);
    let plain = store(dir.path()).id_of(&top).unwrap();
    fs::create_dir_all(top.join("aside/aside")).unwrap();
    let bounds = Bounds {
        without: "aside",
        ..Bounds::default()
    };
    let store = ImageStore::open(dir.path(), bounds).unwrap();
    assert_eq!(store.import(&top).unwrap(), plain);
    assert!(!store.rootfs(&plain).join("aside").exists());
    fs::create_dir_all(top.join("bin/aside")).unwrap();
    assert_ne!(store.import(&top).unwrap(), plain);
}

#[test]
fn a_tree_over_the_bounds_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().join("a");
    tree(&top);
    let full = Bounds::default();
    let cases = [
        Bounds { entries: 3, ..full },
        Bounds { depth: 2, ..full },
        Bounds {
            bytes: 299_999,
            ..full
        },
    ];
    for bounds in cases {
        let store = ImageStore::open(dir.path(), bounds).unwrap();
        assert!(
            matches!(store.import(&top), Err(ImageError::TooLarge { .. })),
            "{bounds:?}"
        );
        assert_eq!(store.names().unwrap(), [STAMPS]);
    }
    let missing = store(dir.path()).import(&top.join("bin/sh"));
    assert!(matches!(missing, Err(ImageError::NotADirectory(_))));
}

#[test]
fn what_was_unpacked_under_a_key_is_found_until_it_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    assert_eq!(store.unpacked("layers 1").unwrap(), None);
    let unpack = |key| {
        let unpacking = store.unpacking().unwrap();
        fs::write(unpacking.rootfs().join("file"), "1").unwrap();
        unpacking.commit(key).unwrap()
    };
    let id = unpack("layers 1");
    assert_eq!(unpack("layers 2"), id, "the same content");
    assert_eq!(store.unpacked("layers 1").unwrap(), Some(id.clone()));
    store.verify(&id).unwrap();
    drop(store.unpacking().unwrap());
    let left = fs::read_dir(dir.path().join("images")).unwrap();
    assert_eq!(left.count(), 2, "the image and the stamps");
    let retired = store
        .retire_unused(&BTreeSet::new(), Duration::ZERO)
        .unwrap();
    assert_eq!(retired, [id]);
    assert_eq!(store.unpacked("layers 1").unwrap(), None);
}
