//! The server against the kernel's own userfaultfd: this process's memory is what is restored.

#![expect(
    unsafe_code,
    reason = "mappings whose pages come late, and their content"
)]

use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, mprotect};

use super::*;
use crate::store::{Mapped, StoredExtent};

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn the_probe_agrees_with_what_the_kernel_says_of_itself() {
    let there = std::path::Path::new("/proc/sys/vm/unprivileged_userfaultfd").exists();
    match probe() {
        Ok(()) => assert!(there),
        Err(Unusable::Absent) => assert!(!there),
        // A container's profile may forbid it.
        Err(error) => assert!(error.to_string().contains("userfaultfd"), "{error}"),
    }
}

/// Says by name why a test does not run here.
fn unusable(test: &str) -> bool {
    match probe() {
        Ok(()) => false,
        Err(reason) => {
            eprintln!("SKIPPED {test}: {reason}");
            true
        }
    }
}

/// Anonymous memory, of which nothing is there yet.
#[derive(Clone, Copy)]
struct Area {
    base: std::ptr::NonNull<libc::c_void>,
    pages: usize,
}

// SAFETY: an address and a length; who reads there does so through volatile reads.
unsafe impl Send for Area {}

impl Area {
    fn new(pages: usize) -> Self {
        let len = NonZeroUsize::new(pages * PAGE_LEN).unwrap();
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let flags = MapFlags::MAP_PRIVATE;
        // SAFETY: a fresh mapping at an address that the kernel chooses. It stays until the end
        // of the test program: other threads may still look at it.
        let base = unsafe { mmap_anonymous(None, len, protection, flags) }.unwrap();
        Self { base, pages }
    }

    fn address(self) -> u64 {
        self.base.as_ptr() as u64
    }

    fn part(self, first: usize, pages: usize) -> Self {
        assert!(first + pages <= self.pages);
        // SAFETY: within the mapping, checked above.
        let base = unsafe { self.base.byte_add(first * PAGE_LEN) };
        Self { base, pages }
    }

    fn advise(self, advice: MmapAdvise) {
        // SAFETY: the range is a mapping of this test's; nothing is borrowed from it.
        unsafe { madvise(self.base, self.pages * PAGE_LEN, advice) }.unwrap();
    }

    fn protect(self, protection: ProtFlags) {
        // SAFETY: as above; the test reads what it has made readable.
        unsafe { mprotect(self.base, self.pages * PAGE_LEN, protection) }.unwrap();
    }

    /// Moves it as a whole to where the kernel finds room.
    fn moved(self) -> Self {
        let len = self.pages * PAGE_LEN;
        // SAFETY: the mapping is this test's own and is only known by the returned value from now on.
        let to = unsafe { libc::mremap(self.base.as_ptr(), len, len, libc::MREMAP_MAYMOVE) };
        assert_ne!(to, libc::MAP_FAILED);
        let elsewhere = Self::new(self.pages);
        // SAFETY: the target is a mapping of this test's that nobody else knows.
        let to = unsafe {
            let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
            libc::mremap(to, len, len, flags, elsewhere.base.as_ptr())
        };
        assert_eq!(to, elsewhere.base.as_ptr());
        elsewhere
    }

    fn first_byte(self, page: usize) -> u8 {
        assert!(page < self.pages);
        // SAFETY: within the mapping; a page that is missing stops the thread until it is there.
        unsafe {
            self.base
                .byte_add(page * PAGE_LEN)
                .cast::<u8>()
                .read_volatile()
        }
    }

    fn first_bytes(self) -> Vec<u8> {
        (0..self.pages).map(|page| self.first_byte(page)).collect()
    }
}

/// Content of the n-th page.
fn content(page: usize) -> u8 {
    (page % 251) as u8 + 1
}

fn expected(pages: usize) -> Vec<u8> {
    (0..pages).map(content).collect()
}

/// Pages for `area`, in the order of their addresses, all of them missing.
fn late(area: Area) -> (Server, OwnedFd) {
    let store = std::fs::File::from(memfd_create("test", MFdFlags::MFD_CLOEXEC).unwrap());
    for page in 0..area.pages {
        let bytes = [content(page); PAGE_LEN];
        store
            .write_all_at(&bytes, (page * PAGE_LEN) as u64)
            .unwrap();
    }
    let len = (area.pages * PAGE_LEN) as u64;
    let mut server = Server::new(Mapped::new(store.into(), len).unwrap(), false);
    let uffd = sys::open().unwrap();
    sys::agree(uffd.as_fd()).unwrap();
    sys::register(uffd.as_fd(), area.address(), len).unwrap();
    let extent = StoredExtent {
        address: area.address(),
        pages: area.pages as u64,
        offset: 0,
    };
    let ours = uffd.try_clone().unwrap();
    server.add(uffd, &[extent]);
    (server, ours)
}

/// Serves until every page is in, as the keeper does. Whether that came about in time.
fn serve(server: &mut Server) -> bool {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        server.serve_events().unwrap();
        if server.install_chunk().unwrap() == Progress::Done {
            return true;
        }
    }
    false
}

/// Serves events until `done` gives something; nothing is installed in the background.
fn serve_until<T>(server: &mut Server, done: &mpsc::Receiver<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        server.serve_events().unwrap();
        match done.try_recv() {
            Ok(value) => return value,
            Err(_) => assert!(Instant::now() < end, "nobody got what it waits for"),
        }
    }
}

/// Does something in another thread, which may wait for pages.
fn elsewhere<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> mpsc::Receiver<T> {
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || tell.send(work()));
    told
}

#[test]
fn no_page_is_lost_at_the_border_of_two_mappings() {
    if unusable("no_page_is_lost_at_the_border_of_two_mappings") {
        return;
    }
    for first in 1..=7 {
        let area = Area::new(40);
        // Protections and advice make mappings of their own, which touch.
        area.part(first, 5).protect(ProtFlags::PROT_READ);
        area.part(first + 9, 7).advise(MmapAdvise::MADV_DONTFORK);
        let nohuge = area.part(first + 20, 1);
        nohuge.advise(MmapAdvise::MADV_NOHUGEPAGE);
        let (mut server, _uffd) = late(area);
        assert_eq!(server.pages_missing(), 40);
        assert!(serve(&mut server));
        assert_eq!(area.first_bytes(), expected(40));
    }
}

#[test]
fn a_fault_beside_a_border_gets_its_page_and_no_other_is_lost() {
    if unusable("a_fault_beside_a_border_gets_its_page_and_no_other_is_lost") {
        return;
    }
    let area = Area::new(32);
    area.part(8, 8).protect(ProtFlags::PROT_READ);
    let (mut server, _uffd) = late(area);
    for page in [7, 8, 15, 0, 31, 16] {
        let read = elsewhere(move || area.first_byte(page));
        assert_eq!(serve_until(&mut server, &read), content(page));
    }
    assert!(serve(&mut server));
    assert_eq!(area.first_bytes(), expected(32));
}

#[test]
fn a_page_that_is_there_already_is_no_longer_missing_and_its_neighbours_are() {
    if unusable("a_page_that_is_there_already_is_no_longer_missing_and_its_neighbours_are") {
        return;
    }
    let area = Area::new(8);
    let (mut server, uffd) = late(area);
    let page = area.part(3, 1);
    assert_eq!(
        sys::zero(uffd.as_fd(), page.address()).unwrap(),
        sys::Answer::Done(PAGE)
    );
    assert_eq!(
        sys::zero(uffd.as_fd(), page.address()).unwrap(),
        sys::Answer::There
    );
    assert!(serve(&mut server));
    let mut bytes = expected(8);
    bytes[3] = 0;
    assert_eq!(area.first_bytes(), bytes);
}

#[test]
fn what_a_process_drops_reads_as_zeros_and_the_rest_as_it_was() {
    if unusable("what_a_process_drops_reads_as_zeros_and_the_rest_as_it_was") {
        return;
    }
    let area = Area::new(24);
    let (mut server, uffd) = late(area);
    let dropped = elsewhere(move || {
        area.part(4, 8).advise(MmapAdvise::MADV_DONTNEED);
        (area.first_byte(4), area.first_byte(11), area.first_byte(12))
    });
    assert_eq!(serve_until(&mut server, &dropped), (0, 0, content(12)));
    assert!(serve(&mut server));
    // As the keeper does when all is in: what was dropped is the kernel's again.
    drop((server, uffd));
    let mut bytes = expected(24);
    bytes[4..12].fill(0);
    assert_eq!(area.first_bytes(), bytes);
}

#[test]
fn what_a_process_moves_finds_its_pages_where_it_goes() {
    if unusable("what_a_process_moves_finds_its_pages_where_it_goes") {
        return;
    }
    let area = Area::new(64);
    let (mut server, _uffd) = late(area);
    let moved = elsewhere(move || {
        let moved = area.part(16, 32).moved();
        (moved, moved.first_byte(31))
    });
    let (moved, last) = serve_until(&mut server, &moved);
    assert_eq!(last, content(47));
    assert!(serve(&mut server));
    assert_eq!(moved.first_bytes(), expected(64)[16..48]);
    assert_eq!(area.part(0, 16).first_bytes(), expected(64)[..16]);
    assert_eq!(area.part(48, 16).first_bytes(), expected(64)[48..]);
}

#[test]
fn mappings_that_go_do_not_keep_the_server_busy() {
    if unusable("mappings_that_go_do_not_keep_the_server_busy") {
        return;
    }
    let area = Area::new(32);
    let (mut server, _uffd) = late(area);
    let gone = elsewhere(move || {
        // The move makes the server wary of events; what is unmapped afterwards goes astray.
        let moved = area.part(24, 8).moved();
        let middle = area.part(8, 8);
        // SAFETY: nobody looks at this part any more.
        let unmapped = unsafe { libc::munmap(middle.base.as_ptr(), 8 * PAGE_LEN) };
        assert_eq!(unmapped, 0);
        moved
    });
    let moved = serve_until(&mut server, &gone);
    assert!(serve(&mut server));
    assert_eq!(moved.first_bytes(), expected(32)[24..]);
    assert_eq!(area.part(0, 8).first_bytes(), expected(32)[..8]);
    assert_eq!(area.part(16, 8).first_bytes(), expected(32)[16..24]);
}

#[test]
fn a_child_has_the_pages_that_its_parent_misses() {
    if unusable("a_child_has_the_pages_that_its_parent_misses") {
        return;
    }
    let area = Area::new(48);
    area.part(40, 8).advise(MmapAdvise::MADV_DONTFORK);
    let (mut server, _uffd) = late(area);
    let ended = elsewhere(move || {
        // Not fork(3), which holds the allocator's locks until the server has read of the fork: the
        // server is a thread of this process, and needs them.
        // SAFETY: the child touches the area's memory and ends, and uses nothing that another
        // thread of this process could have held at that moment.
        let child = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) } as i32;
        if child == 0 {
            let right = (0..40).all(|page| area.first_byte(page) == content(page));
            // SAFETY: ends at once, without anything that is meant for the parent's end.
            unsafe { libc::_exit(i32::from(!right)) };
        }
        let child = nix::unistd::Pid::from_raw(child);
        nix::sys::wait::waitpid(child, None).unwrap()
    });
    let end = Instant::now() + PATIENCE;
    let status = loop {
        server.serve_events().unwrap();
        server.install_chunk().unwrap();
        match ended.try_recv() {
            Ok(status) => break status,
            Err(_) => assert!(Instant::now() < end, "the child does not end"),
        }
    };
    let child_ended_well = matches!(status, nix::sys::wait::WaitStatus::Exited(_, 0));
    assert!(child_ended_well, "{status:?}");
    assert!(
        serve(&mut server),
        "what the child has not is not waited for"
    );
    assert_eq!(area.first_bytes(), expected(48));
}

/// All content is still at the source.
fn away(area: Area) -> (Server, OwnedFd) {
    let (mut server, uffd) = late(area);
    let extent = StoredExtent {
        address: area.address(),
        pages: area.pages as u64,
        offset: 0,
    };
    // What is in the store must not be taken for it.
    server.leave_away(&crate::store::Index::from([(1, vec![extent])]));
    (server, uffd)
}

/// The source's answers to what is wanted: pages that the store has not.
fn supply(server: &mut Server, base: u64) -> usize {
    let wanted = server.take_wanted();
    for one in &wanted {
        assert_eq!(one.address, base + one.place);
        let first = one.place / PAGE;
        let pages = first..first + u64::from(one.pages);
        let bytes: Vec<u8> = pages
            .flat_map(|page| [content(page as usize + 7); PAGE_LEN])
            .collect();
        server.arrived(one.place, &bytes).unwrap();
    }
    wanted.len()
}

#[test]
fn a_page_that_is_away_is_waited_for_and_never_empty() {
    if unusable("a_page_that_is_away_is_waited_for_and_never_empty") {
        return;
    }
    let area = Area::new(600);
    let (mut server, _uffd) = away(area);
    assert!(
        server.arrived(0, &[0; PAGE_LEN]).is_err(),
        "nobody has asked"
    );
    let read = elsewhere(move || area.first_byte(500));
    let end = Instant::now() + PATIENCE;
    while !server.awaits() {
        server.serve_events().unwrap();
        assert!(Instant::now() < end, "the fault asks");
    }
    assert!(!server.is_waiting() && read.try_recv().is_err());
    assert_eq!(supply(&mut server, area.address()), 1);
    assert_eq!(serve_until(&mut server, &read), content(507));
    // The rest comes by itself, in bounded pieces.
    loop {
        server.serve_events().unwrap();
        let progress = server.install_chunk().unwrap();
        supply(&mut server, area.address());
        if progress == Progress::Done {
            break;
        }
        assert!(Instant::now() < end, "all of it comes");
    }
    assert!(!server.has_away());
    let all: Vec<u8> = (0..600).map(|page| content(page + 7)).collect();
    assert_eq!(area.first_bytes(), all);
}

#[test]
fn what_is_moved_or_dropped_while_it_is_away_is_right() {
    if unusable("what_is_moved_or_dropped_while_it_is_away_is_right") {
        return;
    }
    let area = Area::new(96);
    let base = area.address();
    let (mut server, _uffd) = away(area);
    // Asked for at the old address.
    assert_eq!(server.install_chunk().unwrap(), Progress::Away);
    assert!(server.awaits());
    let moved = elsewhere(move || {
        area.part(0, 16).advise(MmapAdvise::MADV_DONTNEED);
        area.moved()
    });
    let area = serve_until(&mut server, &moved);
    let end = Instant::now() + PATIENCE;
    loop {
        server.serve_events().unwrap();
        supply(&mut server, base);
        if server.install_chunk().unwrap() == Progress::Done {
            break;
        }
        assert!(Instant::now() < end, "all of it comes");
    }
    let read = elsewhere(move || area.first_bytes());
    let bytes = serve_until(&mut server, &read);
    assert_eq!(bytes[..16], [0; 16]);
    let rest: Vec<u8> = (16..96).map(|page| content(page + 7)).collect();
    assert_eq!(bytes[16..], rest);
}
