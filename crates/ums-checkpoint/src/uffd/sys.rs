//! The system calls. Layouts and numbers are those of `linux/userfaultfd.h`, errors those of
//! ioctl_userfaultfd(2) and of the kernel's `mm/userfaultfd.c`.
#![expect(
    unsafe_code,
    reason = "userfaultfd's ioctls and events have no safe wrapper that is kept"
)]

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;

use super::{Error, PAGE};

/// What a process has done, or waits for.
#[derive(Debug)]
pub(super) enum Event {
    /// A thread waits for the page at this address.
    Fault(u64),
    /// A child has what the process had at that moment, behind a descriptor of its own.
    Fork(OwnedFd),
    /// A mapping has moved.
    Remap { from: u64, to: u64, len: u64 },
    /// The content of a range is about to be dropped: it reads as zeros from now on.
    Remove { start: u64, end: u64 },
    /// A range is no longer mapped.
    Unmap { start: u64, end: u64 },
}

/// The kernel's answer to an attempt to install pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// So many bytes are in. Fewer than asked for: whatever stopped it answers the next attempt.
    Done(u64),
    /// The first page is there already, installed for another thread, which has been woken.
    There,
    /// Nothing is in: mappings are changing, and the event that tells how has to be read first.
    Changing,
    /// Nothing is in: the range is not within one mapping that is ours.
    NotOneMapping,
    /// Nothing is in: there is no memory, or the service has reached its own limit.
    NoMemory,
    /// The process is gone.
    Gone,
}

#[repr(C)]
pub(super) struct Range {
    start: u64,
    len: u64,
}

#[repr(C)]
pub(super) struct Copy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copy: i64,
}

#[repr(C)]
pub(super) struct Zeropage {
    range: Range,
    mode: u64,
    zeropage: i64,
}

#[repr(C)]
pub(super) struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

const MAGIC: u8 = 0xAA;
nix::ioctl_readwrite!(
    /// UFFDIO_API
    uffdio_api, MAGIC, 0x3F, Api);
nix::ioctl_read!(
    /// UFFDIO_WAKE
    uffdio_wake, MAGIC, 0x02, Range);
nix::ioctl_readwrite!(
    /// UFFDIO_COPY
    uffdio_copy, MAGIC, 0x03, Copy);
nix::ioctl_readwrite!(
    /// UFFDIO_ZEROPAGE
    uffdio_zeropage, MAGIC, 0x04, Zeropage);

const EVENT_PAGEFAULT: u8 = 0x12;
const EVENT_FORK: u8 = 0x13;
const EVENT_REMAP: u8 = 0x14;
const EVENT_REMOVE: u8 = 0x15;
const EVENT_UNMAP: u8 = 0x16;

/// Events of forks, and of mappings that move, are given back or go.
const FEATURES: u64 = (1 << 1) | (1 << 2) | (1 << 3) | (1 << 6);

pub(super) fn open() -> Result<OwnedFd, Errno> {
    // SAFETY: the call takes flags alone and gives a new descriptor or an error.
    let fd = unsafe {
        nix::libc::syscall(
            nix::libc::SYS_userfaultfd,
            nix::libc::O_CLOEXEC | nix::libc::O_NONBLOCK,
        )
    };
    let fd = Errno::result(fd)?;
    Ok(crate::message::own(fd as i32))
}

/// Agrees with the kernel on the protocol and on the events that are needed.
pub(super) fn agree(uffd: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut api = Api {
        api: u64::from(MAGIC),
        features: FEATURES,
        ioctls: 0,
    };
    // SAFETY: the kernel reads and writes one `Api`, which lives until the call returns.
    unsafe { uffdio_api(uffd.as_raw_fd(), &raw mut api) }.map(drop)
}

/// The next event; `None` when none waits.
pub(super) fn read_event(uffd: BorrowedFd<'_>) -> Result<Option<Event>, Error> {
    let failed = |source| Error::Kernel {
        operation: "read",
        address: 0,
        source,
    };
    let mut message = [0_u8; 32];
    match nix::unistd::read(uffd, &mut message) {
        Ok(32) => {}
        Err(Errno::EAGAIN | Errno::EINTR) => return Ok(None),
        // The kernel gives whole messages. A part of one would be an event that is lost.
        Ok(_) => return Err(failed(Errno::EIO)),
        Err(source) => return Err(failed(source)),
    }
    let word = |at: usize| u64::from_ne_bytes(message[at..at + 8].try_into().expect("8 bytes"));
    let (first, second) = (word(8), word(16));
    match message[0] {
        EVENT_PAGEFAULT => Ok(Some(Event::Fault(second))),
        EVENT_FORK => Ok(Some(Event::Fork(crate::message::own(first as u32 as i32)))),
        EVENT_REMAP => Ok(Some(Event::Remap {
            from: first,
            to: second,
            len: word(24),
        })),
        EVENT_REMOVE => Ok(Some(Event::Remove {
            start: first,
            end: second,
        })),
        EVENT_UNMAP => Ok(Some(Event::Unmap {
            start: first,
            end: second,
        })),
        // One that was not asked for, and may mean anything.
        _ => Err(failed(Errno::EPROTO)),
    }
}

/// Copies whole pages from our memory at `source` to `address` in the process.
pub(super) fn copy(
    uffd: BorrowedFd<'_>,
    address: u64,
    source: u64,
    len: u64,
) -> Result<Answer, Error> {
    let mut argument = Copy {
        dst: address,
        src: source,
        len,
        mode: 0,
        copy: 0,
    };
    // SAFETY: `argument` is a valid uffdio_copy for the length of the call; `src` is a range
    // of our own mapping, checked by `Mapped::address_of`. The kernel writes to the traced
    // process's memory only, in ranges that it registered with this descriptor.
    let result = unsafe { uffdio_copy(uffd.as_raw_fd(), &mut argument) };
    answer("copy", uffd, (address, len), result, argument.copy)
}

/// Lets a page read as zeros.
pub(super) fn zero(uffd: BorrowedFd<'_>, address: u64) -> Result<Answer, Error> {
    let mut argument = Zeropage {
        range: Range {
            start: address,
            len: PAGE,
        },
        mode: 0,
        zeropage: 0,
    };
    // SAFETY: `argument` is a valid uffdio_zeropage for the length of the call.
    let result = unsafe { uffdio_zeropage(uffd.as_raw_fd(), &mut argument) };
    answer("zeropage", uffd, (address, PAGE), result, argument.zeropage)
}

/// Lets the threads that wait for a page look again.
pub(super) fn wake(uffd: BorrowedFd<'_>, address: u64) {
    let mut range = Range {
        start: address,
        len: PAGE,
    };
    // SAFETY: `range` is a valid uffdio_range for the length of the call. It fails only for a
    // range that is not one, and then nobody waits there.
    let _ = unsafe { uffdio_wake(uffd.as_raw_fd(), &mut range) };
}

/// What the result of UFFDIO_COPY or UFFDIO_ZEROPAGE says of the memory.
///
/// A call that has installed some pages and not all answers EAGAIN with their number of bytes. One
/// that has installed none puts its error there too. In no other case is anything installed, so
/// nothing but `Done` and `There` says that a page is no longer missing.
fn answer(
    operation: &'static str,
    uffd: BorrowedFd<'_>,
    (address, len): (u64, u64),
    result: nix::Result<i32>,
    done: i64,
) -> Result<Answer, Error> {
    let errno = match result {
        Ok(_) => return Ok(Answer::Done(len)),
        Err(errno) => errno,
    };
    let done = u64::try_from(done).unwrap_or(0).min(len);
    match errno {
        Errno::EAGAIN if done > 0 => Ok(Answer::Done(done)),
        Errno::EAGAIN => Ok(Answer::Changing),
        Errno::EEXIST => {
            wake(uffd, address);
            Ok(Answer::There)
        }
        Errno::ENOENT => Ok(Answer::NotOneMapping),
        Errno::ENOMEM => Ok(Answer::NoMemory),
        // ENOSPC until Linux 5.13.
        Errno::ESRCH | Errno::ENOSPC => Ok(Answer::Gone),
        source => Err(Error::Kernel {
            operation,
            address,
            source,
        }),
    }
}

/// Registration of a range as CRIU does it in a restored process, for tests of our own.
#[cfg(test)]
pub(super) fn register(uffd: BorrowedFd<'_>, start: u64, len: u64) -> Result<(), Errno> {
    #[repr(C)]
    pub(super) struct Register {
        range: Range,
        mode: u64,
        ioctls: u64,
    }
    nix::ioctl_readwrite!(uffdio_register, MAGIC, 0x00, Register);
    const MISSING: u64 = 1;
    let mut argument = Register {
        range: Range { start, len },
        mode: MISSING,
        ioctls: 0,
    };
    // SAFETY: `argument` is a valid uffdio_register for the length of the call.
    unsafe { uffdio_register(uffd.as_raw_fd(), &raw mut argument) }.map(drop)
}
