//! Objects of this process, copied as if they were a service's.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::os::unix::fs::{FileExt, MetadataExt};

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::*;

const PAGE: u64 = PAGE_LEN as u64;

/// A destination that takes what a round sends.
#[derive(Default)]
struct Destination(BTreeMap<(PageOwner, u64), Vec<u8>>);

impl Destination {
    fn take(&mut self, owner: PageOwner, at: u64, bytes: &[u8]) -> Result<(), Infallible> {
        for (offset, page) in pages(at, bytes) {
            match page.iter().all(|byte| *byte == 0) {
                true => self.0.remove(&(owner, offset)),
                false => self.0.insert((owner, offset), page.to_vec()),
            };
        }
        Ok(())
    }
}

struct Object {
    file: File,
    owner: PageOwner,
}

impl Object {
    fn new() -> Self {
        let file = File::from(memfd_create("ums-test", MFdFlags::MFD_CLOEXEC).unwrap());
        let owner = PageOwner(file.metadata().unwrap().ino() << 8 | 2);
        Self { file, owner }
    }

    fn write(&self, page: u64, fill: u8) {
        self.file
            .write_all_at(&vec![fill; PAGE_LEN], page * PAGE)
            .unwrap();
    }
}

/// This process's objects, other tests' too.
fn here() -> [Process; 1] {
    let pid = std::process::id().cast_signed();
    [Process { pid, inner: pid }]
}

fn round(rounds: &mut SharedRounds, destination: &mut Destination) {
    rounds.look(&here());
    let sent = rounds.send(|owner, at, bytes| destination.take(owner, at, bytes));
    assert!(sent.is_ok());
}

#[test]
fn what_has_changed_is_sent_and_what_is_gone_is_dropped() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED what_has_changed_is_sent_and_what_is_gone_is_dropped: needs root");
        return;
    }
    let (object, other) = (Object::new(), Object::new());
    (0..200).for_each(|page| object.write(page, 1));
    object.write(1000, 2);
    object.file.write_all_at(b"the end", 2000 * PAGE).unwrap();
    other.write(0, 9);
    let mut rounds = SharedRounds::new().unwrap();
    let mut there = Destination::default();
    round(&mut rounds, &mut there);
    let of = |there: &Destination, owner| {
        let pages = there.0.keys().filter(|(of, _)| *of == owner);
        pages.map(|(_, at)| at / PAGE).collect::<Vec<_>>()
    };
    let first: Vec<u64> = (0..200).chain([1000, 2000]).collect();
    assert_eq!(of(&there, object.owner), first);
    assert!(rounds.known.is_right(object.owner, PAGE, &[1; PAGE_LEN]));
    assert!(!rounds.known.is_right(object.owner, PAGE, &[2; PAGE_LEN]));
    assert_eq!(&there.0[&(object.owner, 2000 * PAGE)][..8], b"the end\0");

    // Written by a call, and no more there, and new.
    object.write(3, 7);
    object.file.set_len(150 * PAGE).unwrap();
    object.write(160, 5);
    let gone = other.owner;
    drop(other);
    rounds.look(&here());
    let wanted = rounds.wanted[&object.owner].offsets.iter();
    let wanted: Vec<_> = wanted.map(|(from, to)| (from / PAGE, to / PAGE)).collect();
    assert_eq!(wanted, [(3, 4), (160, 161)]);
    round(&mut rounds, &mut there);
    let second: Vec<u64> = (0..150).chain([160]).collect();
    assert_eq!(of(&there, object.owner), second);
    assert!(of(&there, gone).is_empty());
    for page in second {
        let mut held = vec![0; PAGE_LEN];
        object.file.read_exact_at(&mut held, page * PAGE).unwrap();
        assert_eq!(there.0[&(object.owner, page * PAGE)], held);
        assert!(rounds.known.is_right(object.owner, page * PAGE, &held));
    }
    assert!(rounds.into_known().has(object.owner));
}
