//! Which calls end with `EINTR` although no handler ran, by their number (`arch/x86/entry/syscalls`).
//!
//! All of these have done nothing when they say so and can be called again. Others that may say it are
//! left out, first of all close(2), which has closed.

use nix::libc;

/// `-ERESTARTNOHAND`: the kernel starts the call again, unless a handler ran: then it is `-EINTR`
/// (`include/linux/errno.h`).
pub(super) const RESTART_UNLESS_HANDLED: i64 = -514;
/// `-ERESTART_RESTARTBLOCK`: the same, by the kernel's own note of when the call ends.
pub(super) const RESTART_BY_NOTE: i64 = -516;
/// What a call has returned that was interrupted.
pub(super) const INTERRUPTED: i64 = -(libc::EINTR as i64);
/// Bytes of the instruction that makes a call: `syscall`, `sysenter` and `int $0x80` have two.
pub(super) const INSTRUCTION: u64 = 2;

/// The calls that a thread makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Abi {
    /// `syscall` of a 64-bit program.
    Native,
    /// `int $0x80` of a 32-bit program.
    Compat,
}

/// How a call goes on that was interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    /// By being made again.
    Again,
    /// The kernel would go on with it by its note; it can be made again as well.
    Noted,
    /// By the kernel's note alone: it is restart_syscall(2), and what was called is not known.
    NoteOnly,
}

/// io_pgetevents(2), which libc lacks.
const IO_PGETEVENTS: i64 = 333;

/// Calls of 64-bit programs that say `-EINTR` themselves.
const AGAIN: &[i64] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_select,
    libc::SYS_sendfile,
    libc::SYS_connect,
    libc::SYS_accept,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_semop,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_io_getevents,
    libc::SYS_semtimedop,
    libc::SYS_epoll_wait,
    libc::SYS_pselect6,
    libc::SYS_ppoll,
    libc::SYS_splice,
    libc::SYS_tee,
    libc::SYS_vmsplice,
    libc::SYS_epoll_pwait,
    libc::SYS_accept4,
    libc::SYS_recvmmsg,
    libc::SYS_sendmmsg,
    IO_PGETEVENTS,
    libc::SYS_epoll_pwait2,
];

/// Calls of 64-bit programs that the kernel goes on with by its note.
const NOTED: &[i64] = &[
    libc::SYS_poll,
    libc::SYS_nanosleep,
    libc::SYS_futex,
    libc::SYS_clock_nanosleep,
];

/// The same of 32-bit programs: read, write, ipc, select, readv, writev, rt_sigtimedwait, sendfile,
/// io_getevents, epoll_wait, pselect6, ppoll, splice, tee, vmsplice, epoll_pwait, recvmmsg, sendmmsg,
/// accept4 and connect to sendmmsg, socketcall, io_pgetevents, and those with 64-bit times.
const AGAIN_COMPAT: &[i64] = &[
    3, 4, 82, 102, 117, 142, 145, 146, 177, 187, 239, 247, 256, 308, 309, 313, 315, 316, 319, 337,
    345, 362, 364, 369, 370, 371, 372, 385, 413, 414, 416, 417, 420, 421, 441,
];

/// poll, nanosleep, futex, clock_nanosleep, and the last two with 64-bit times.
const NOTED_COMPAT: &[i64] = &[168, 162, 240, 267, 407, 422];

/// restart_syscall(2) of 32-bit programs.
const NOTE_ONLY_COMPAT: i64 = 0;

impl Call {
    /// Of a number; `None` when an `EINTR` of it is its own.
    pub(super) fn of(abi: Abi, number: i64) -> Option<Self> {
        let (again, noted, note_only) = match abi {
            Abi::Native => (AGAIN, NOTED, libc::SYS_restart_syscall),
            Abi::Compat => (AGAIN_COMPAT, NOTED_COMPAT, NOTE_ONLY_COMPAT),
        };
        match number {
            number if again.contains(&number) => Some(Self::Again),
            number if noted.contains(&number) => Some(Self::Noted),
            number if number == note_only => Some(Self::NoteOnly),
            _ => None,
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn by_number() {
        let native = |number| Call::of(Abi::Native, number);
        assert_eq!(native(libc::SYS_epoll_wait), Some(Call::Again));
        assert_eq!(native(libc::SYS_nanosleep), Some(Call::Noted));
        assert_eq!(native(libc::SYS_restart_syscall), Some(Call::NoteOnly));
        assert_eq!(native(libc::SYS_close), None, "it has closed");
        assert_eq!(native(-1), None, "not in a call");
        assert_eq!(Call::of(Abi::Compat, 162), Some(Call::Noted));
        assert_eq!(Call::of(Abi::Compat, 6), None);
    }

    #[test]
    fn no_number_is_two_things() {
        for (again, noted) in [(AGAIN, NOTED), (AGAIN_COMPAT, NOTED_COMPAT)] {
            assert!(again.iter().all(|number| !noted.contains(number)));
        }
    }
}
