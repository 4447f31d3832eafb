//! The store: which page goes where.

use super::*;

const CHILD: PageOwner = PageOwner((6 << 8) | 1);
const GRANDCHILD: PageOwner = PageOwner((7 << 8) | 1);

const TASK: PageOwner = PageOwner((5 << 8) | 1);

#[test]
fn late_pages_are_indexed_and_the_others_go_into_files() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED late_pages_are_indexed_and_the_others_go_into_files: needs root");
        return;
    }
    let images = MemoryDir::new(1 << 20).unwrap();
    let mut store = PageStore::new(1 << 20, true).unwrap();
    store
        .push(
            TASK,
            0x1000,
            PE_LAZY | PE_PRESENT,
            &[1; 2 * PAGE_LEN],
            &images,
        )
        .unwrap();
    store
        .push(TASK, 0x3000, PE_LAZY | PE_PRESENT, &[2; PAGE_LEN], &images)
        .unwrap();
    store
        .push(TASK, 0x9000, PE_PRESENT, &[3; PAGE_LEN], &images)
        .unwrap();
    let stored = store.finish(&images).unwrap();
    assert_eq!(
        stored.index[&5],
        [StoredExtent {
            address: 0x1000,
            pages: 3,
            offset: 0
        }]
    );
    assert_eq!(stored.lazy_bytes, 3 * PAGE_LEN as u64);
    let files = images.files().unwrap();
    assert_eq!(files.len(), 2);
    assert_eq!(files[1], ("pages-1.img".to_owned(), PAGE_LEN as u64));
    let mapped = Mapped::new(stored.lazy, stored.lazy_bytes).unwrap();
    assert!(
        mapped
            .address_of(2 * PAGE_LEN as u64, PAGE_LEN as u64)
            .is_some()
    );
    assert!(
        mapped
            .address_of(3 * PAGE_LEN as u64, PAGE_LEN as u64)
            .is_none()
    );
}

#[test]
fn bounds_and_nonsense_are_refused() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED bounds_and_nonsense_are_refused: needs root");
        return;
    }
    let images = MemoryDir::new(1 << 20).unwrap();
    let mut store = PageStore::new(PAGE_LEN as u64, true).unwrap();
    let page = [1; PAGE_LEN];
    assert!(matches!(
        store.push(PageOwner(9), 0, 0, &page, &images),
        Err(Error::Nonsense(_))
    ));
    let mut store = PageStore::new(PAGE_LEN as u64, true).unwrap();
    store.push(TASK, 0, PE_LAZY, &page, &images).unwrap();
    assert!(matches!(
        store.push(TASK, 4096, 0, &page, &images),
        Err(Error::TooMuch(_))
    ));
    let images = MemoryDir::new(1 << 20).unwrap();
    let mut store = PageStore::new(1 << 20, true).unwrap();
    store.push(TASK, 0, PE_LAZY, &page, &images).unwrap();
    store.push(TASK, 0, PE_LAZY, &page, &images).unwrap();
    assert!(matches!(store.finish(&images), Err(Error::Nonsense(_))));
}

/// A page that is full of one byte, for each byte.
fn pages(bytes: &[u8]) -> Vec<u8> {
    let pages = bytes.iter().map(|byte| [*byte; PAGE_LEN]);
    pages.flatten().collect()
}

/// The pages that CRIU gets of a process at the restore, as its page reader takes them from files, and
/// those that come late. By address, with the first byte of each.
fn restored(images: &MemoryDir, stored: &Stored, owner: PageOwner) -> [Vec<(u64, u8)>; 2] {
    let name = image::pagemap_name(owner).unwrap();
    let (id, map) = image::read_pagemap(&std::fs::read(images.path().join(name)).unwrap());
    let file = File::open(images.path().join(image::pages_name(id))).unwrap();
    let (mut offset, mut now) = (0, Vec::new());
    for extent in map {
        for page in 0..extent.pages {
            let mut byte = [0];
            if extent.flags & PE_PRESENT != 0 {
                file.read_exact_at(&mut byte, offset).unwrap();
                offset += PAGE_LEN as u64;
            }
            if extent.flags & PE_LAZY == 0 {
                let address = extent.address + image::byte_len(page);
                assert!(now.last().is_none_or(|(last, _)| *last < address));
                now.push((address, byte[0]));
            }
        }
    }
    let late = File::from(stored.lazy.try_clone().unwrap());
    let mut then = Vec::new();
    for extent in &stored.index[&owner.process().unwrap()] {
        for page in 0..extent.pages {
            let mut byte = [0];
            let place = extent.offset + image::byte_len(page);
            late.read_exact_at(&mut byte, place).unwrap();
            then.push((extent.address + image::byte_len(page), byte[0]));
        }
    }
    [now, then]
}

#[test]
fn what_a_child_shares_with_its_parent_is_there_at_the_restore_and_kept_once() {
    let name = "what_a_child_shares_with_its_parent_is_there_at_the_restore_and_kept_once";
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED {name}: needs root");
        return;
    }
    let images = MemoryDir::new(8 << 20).unwrap();
    let mut store = PageStore::new(8 << 20, true).unwrap();
    store.set_parents(Parents::from([(6, 5), (7, 6)]));
    let mut push = |owner, address, flags, bytes: &[u8]| {
        let flags = PE_PRESENT | flags;
        store
            .push(owner, address, flags, &pages(bytes), &images)
            .unwrap();
    };
    // A stack's top page is never late.
    push(TASK, 0x1000, PE_LAZY, &[1, 2, 3, 4, 5, 6]);
    push(TASK, 0x9000, 0, &[9]);
    push(TASK, 0xa000, PE_LAZY, &[10, 11]);
    // It has written to its second and fifth page, and has one that its parent lacks.
    push(CHILD, 0x1000, PE_LAZY, &[1, 20, 3, 4, 50, 6, 7]);
    push(CHILD, 0x9000, 0, &[90]);
    push(CHILD, 0xa000, PE_LAZY, &[10]);
    // The child of that one shares what it has written, and has the parent's parent's fifth page.
    push(GRANDCHILD, 0x2000, PE_LAZY, &[20, 3, 40, 5]);
    let len_before_sharing = 8 + 3 + 2;
    let stored = store.finish(&images).unwrap();

    let [now, late] = restored(&images, &stored, TASK);
    let shared = [(0x1000, 1), (0x3000, 3), (0x4000, 4), (0x6000, 6)];
    let own = [(0x9000, 9), (0xa000, 10)];
    assert_eq!(now, [&shared[..], &own].concat());
    assert_eq!(late, [(0x2000, 2), (0x5000, 5), (0xb000, 11)]);

    let [now, late] = restored(&images, &stored, CHILD);
    let expected = [
        (0x1000, 1),
        (0x2000, 20),
        (0x3000, 3),
        (0x4000, 4),
        (0x6000, 6),
        (0x9000, 90),
        (0xa000, 10),
    ];
    assert_eq!(now, expected);
    assert_eq!(late, [(0x5000, 50), (0x7000, 7)]);

    let [now, late] = restored(&images, &stored, GRANDCHILD);
    assert_eq!(now, [(0x2000, 20), (0x3000, 3)]);
    assert_eq!(late, [(0x4000, 40), (0x5000, 5)]);

    // Each page once, in whichever of the two: 6 that are shared, and two stacks.
    assert_eq!(stored.shared_bytes, (6 + 2) * PAGE_LEN as u64);
    assert_eq!(stored.lazy_bytes, (len_before_sharing) * PAGE_LEN as u64);
    assert!(!index::has_shared_places(&stored.index));
}

#[test]
fn pages_that_a_child_finds_empty_do_not_come_late() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED pages_that_a_child_finds_empty_do_not_come_late: needs root");
        return;
    }
    let images = MemoryDir::new(1 << 20).unwrap();
    let mut store = PageStore::new(1 << 20, true).unwrap();
    let bytes = pages(&[1, 2, 3, 4]);
    store.push(TASK, 0x1000, PE_LAZY, &bytes, &images).unwrap();
    let mm = image::mm_with(&[(0x1000, 0x2000, 0), (0x2000, 0x4000, 1 << 18)]);
    images.write(&image::mm_name(5), &mm).unwrap();
    let stored = store.finish(&images).unwrap();
    let [now, late] = restored(&images, &stored, TASK);
    assert_eq!(now, [(0x2000, 2), (0x3000, 3)]);
    assert_eq!(late, [(0x1000, 1), (0x4000, 4)]);
}

/// Pages that came in rounds, and what the freeze says of them.
#[test]
fn rounds_count_only_as_the_freeze_confirms_them() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED rounds_count_only_as_the_freeze_confirms_them: needs root");
        return;
    }
    for lazy in [true, false] {
        let images = MemoryDir::new(1 << 20).unwrap();
        let mut store = PageStore::new(12 * PAGE_LEN as u64, lazy).unwrap();
        store
            .stage(TASK, 0x1000, &pages(&[1, 2, 3, 4, 5, 6]))
            .unwrap();
        // The later page wins; one that was dropped is gone; one is written in the freeze.
        store.stage(TASK, 0x2000, &pages(&[20])).unwrap();
        store.unstage(TASK, 0x3000, 0x4000);
        store.stage(CHILD, 0x1000, &pages(&[1, 2])).unwrap();
        store.keep(TASK, 0x1000, PE_LAZY, 3, &images).unwrap();
        store
            .push(TASK, 0x4000, PE_LAZY, &pages(&[40]), &images)
            .unwrap();
        store.keep(TASK, 0x5000, 0, 1, &images).unwrap();
        // The sixth is not named, nor is any page of the child.
        let stored = store.finish(&images).unwrap();
        match lazy {
            true => {
                let [now, late] = restored(&images, &stored, TASK);
                assert_eq!(now, [(0x5000, 5)]);
                assert_eq!(late, [(0x1000, 1), (0x2000, 20), (0x4000, 40)]);
            }
            // All in its page file, in their order.
            false => {
                let file = std::fs::read(images.path().join(image::pages_name(1))).unwrap();
                assert_eq!(file, pages(&[1, 20, 0, 40, 5]));
            }
        }
        assert!(!stored.index.contains_key(&CHILD.process().unwrap()));
    }
}

#[test]
fn a_round_that_is_confirmed_is_shared_with_the_parent() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED a_round_that_is_confirmed_is_shared_with_the_parent: needs root");
        return;
    }
    let images = MemoryDir::new(1 << 20).unwrap();
    let mut store = PageStore::new(1 << 20, true).unwrap();
    store.stage(TASK, 0x1000, &pages(&[1, 2, 3])).unwrap();
    store.stage(CHILD, 0x1000, &pages(&[1, 20, 3])).unwrap();
    store.set_parents(
        [(CHILD, TASK)]
            .map(|(c, p)| (c.process().unwrap(), p.process().unwrap()))
            .into(),
    );
    store.keep(TASK, 0x1000, PE_LAZY, 3, &images).unwrap();
    store.keep(CHILD, 0x1000, PE_LAZY, 3, &images).unwrap();
    let stored = store.finish(&images).unwrap();
    let [now, late] = restored(&images, &stored, CHILD);
    assert_eq!(now, [(0x1000, 1), (0x3000, 3)]);
    assert_eq!(late, [(0x2000, 20)]);
    assert_eq!(stored.shared_bytes, 2 * PAGE_LEN as u64);
}

/// What is here at once is bounded, not what has come.
#[test]
fn rounds_of_shared_memory_are_there_at_the_restore() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED rounds_of_shared_memory_are_there_at_the_restore: needs root");
        return;
    }
    let object = PageOwner((77 << 8) | 2);
    let images = MemoryDir::new(1 << 20).unwrap();
    let mut store = PageStore::new(1 << 20, true).unwrap();
    let page = PAGE_LEN as u64;
    store.stage(object, 0, &[1; 4 * PAGE_LEN]).unwrap();
    store.stage(object, page, &[2; PAGE_LEN]).unwrap();
    // The freeze confirms some, sends one, and does not name the rest.
    store.keep(object, 0, PE_PRESENT, 2, &images).unwrap();
    store
        .push(object, 2 * page, PE_PRESENT, &[3; PAGE_LEN], &images)
        .unwrap();
    assert!(store.stage(PageOwner(9), 0, &[1; PAGE_LEN]).is_err());
    let stored = store.finish(&images).unwrap();
    assert!(stored.index.is_empty());
    let file = std::fs::read(images.path().join("pagemap-shmem-77.img")).unwrap();
    let (pages_id, map) = image::read_pagemap(&file);
    let covered: Vec<_> = map.iter().map(|it| (it.address / page, it.pages)).collect();
    assert_eq!(covered, [(0, 3)]);
    let pages = std::fs::read(images.path().join(image::pages_name(pages_id))).unwrap();
    let first: Vec<u8> = pages.chunks(PAGE_LEN).map(|page| page[0]).collect();
    assert_eq!(first, [1, 2, 3]);
}

#[test]
fn rounds_have_the_bound_of_the_memory() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED rounds_have_the_bound_of_the_memory: needs root");
        return;
    }
    let mut store = PageStore::new(4 * PAGE_LEN as u64, true).unwrap();
    for _ in 0..5 {
        store.stage(TASK, 0x1000, &pages(&[1, 2, 3])).unwrap();
        store.unstage(TASK, 0x2000, 0x3000);
    }
    let error = store.stage(TASK, 0x9000, &pages(&[1, 2, 3])).unwrap_err();
    assert!(matches!(error, Error::TooMuch(_)), "{error}");
    let images = MemoryDir::new(1 << 20).unwrap();
    let error = store.keep(TASK, 0x1000, 0, 1 << 40, &images).unwrap_err();
    assert!(matches!(error, Error::TooMuch(_)), "{error}");
}

#[test]
fn a_page_file_is_in_the_order_of_addresses_whatever_came_first() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!(
            "SKIPPED a_page_file_is_in_the_order_of_addresses_whatever_came_first: needs root"
        );
        return;
    }
    let images = MemoryDir::new(1 << 20).unwrap();
    let mut store = PageStore::new(1 << 20, true).unwrap();
    for (address, fill) in [(0x9000, 9), (0x1000, 1), (0x5000, 5)] {
        let page = [fill; PAGE_LEN];
        store
            .push(TASK, address, PE_PRESENT, &page, &images)
            .unwrap();
    }
    store.finish(&images).unwrap();
    let path = images.path();
    let (id, map) = image::read_pagemap(&std::fs::read(path.join("pagemap-5.img")).unwrap());
    let pages = std::fs::read(path.join(image::pages_name(id))).unwrap();
    let addresses: Vec<u64> = map.iter().map(|extent| extent.address).collect();
    assert_eq!(addresses, [0x1000, 0x5000, 0x9000]);
    let fills: Vec<u8> = pages.chunks(PAGE_LEN).map(|page| page[0]).collect();
    assert_eq!(fills, [1, 5, 9]);
}

#[test]
fn pages_that_stay_away_have_a_place_and_are_compared_with_nothing() {
    let name = "pages_that_stay_away_have_a_place_and_are_compared_with_nothing";
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED {name}: needs root");
        return;
    }
    let images = MemoryDir::new(1 << 20).unwrap();
    let mut store = PageStore::new(1 << 20, true).unwrap();
    store.set_parents(Parents::from([(6, 5)]));
    // What went over in a round is not what the page holds now.
    store.stage(TASK, 0x2000, &pages(&[9])).unwrap();
    store
        .push(TASK, 0x1000, PE_LAZY, &pages(&[1]), &images)
        .unwrap();
    store.keep_place(TASK, 0x2000, PE_LAZY, 2, &images).unwrap();
    // The parent's place reads as zeros, as this page does.
    store
        .push(CHILD, 0x2000, PE_LAZY, &pages(&[0]), &images)
        .unwrap();
    let stored = store.finish(&images).unwrap();
    assert_eq!(stored.shared_bytes, 0);
    let away = StoredExtent {
        address: 0x2000,
        pages: 2,
        offset: stored.away[&5][0].offset,
    };
    assert_eq!(stored.away, Index::from([(5, vec![away])]));
    let [_, late] = restored(&images, &stored, TASK);
    assert_eq!(late, [(0x1000, 1), (0x2000, 0), (0x3000, 0)]);
    assert_eq!(stored.index[&6].len(), 1);
    assert!(stored.index[&6][0].offset >= away.offset + 2 * PAGE_LEN as u64);
}

#[test]
fn what_a_restore_needs_does_not_stay_away() {
    let name = "what_a_restore_needs_does_not_stay_away";
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIPPED {name}: needs root");
        return;
    }
    let images = MemoryDir::new(1 << 20).unwrap();
    let nonsense = |kept: Result<(), Error>| assert!(matches!(kept, Err(Error::Nonsense(_))));
    let mut store = PageStore::new(1 << 20, true).unwrap();
    nonsense(store.keep_place(TASK, 0x1000, PE_PRESENT, 1, &images));
    nonsense(store.keep_place(TASK, 0x1000, PE_LAZY, u64::MAX, &images));
    nonsense(store.keep_place(PageOwner(9), 0x1000, PE_LAZY, 1, &images));
    // Nobody could install it later.
    let mut eager = PageStore::new(1 << 20, false).unwrap();
    nonsense(eager.keep_place(TASK, 0x1000, PE_LAZY, 1, &images));
    let mut small = PageStore::new(PAGE_LEN as u64, true).unwrap();
    let much = small.keep_place(TASK, 0x1000, PE_LAZY, 2, &images);
    assert!(matches!(much, Err(Error::TooMuch(_))));
}
