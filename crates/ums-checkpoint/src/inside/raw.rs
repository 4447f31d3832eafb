//! Requests of ptrace(2) that have no wrapper in what is there. All are made of a thread that the
//! calling thread traces, and that is stopped.

#![expect(unsafe_code, reason = "requests of ptrace(2) without a wrapper")]

use std::io;

use nix::libc;
use nix::unistd::Pid;

/// PTRACE_O_TRACESYSGOOD and PTRACE_O_SUSPEND_SECCOMP (`linux/ptrace.h`).
const OPTIONS: usize = 0x1 | 1 << 21;
/// PTRACE_O_EXITKILL.
const EXITKILL: usize = 1 << 20;
const PTRACE_GETSIGMASK: libc::c_uint = 0x420a;
const PTRACE_SETSIGMASK: libc::c_uint = 0x420b;
const PTRACE_GET_RSEQ_CONFIGURATION: libc::c_uint = 0x420f;
/// Extended registers of x86 (`linux/elf.h`).
const NT_X86_XSTATE: usize = 0x202;
/// Room for them: AMX takes 11 KiB.
const XSTATE_LEN: usize = 32 << 10;

/// `struct ptrace_rseq_configuration`.
#[repr(C)]
#[derive(Default)]
struct Rseq {
    pointer: u64,
    size: u32,
    signature: u32,
    flags: u32,
    padding: u32,
}

fn answer(result: libc::c_long) -> io::Result<libc::c_long> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}

/// Has its system calls told, and no seccomp filter in force until it is let go of.
pub(super) fn prepare(thread: Pid) -> io::Result<()> {
    set_options(thread, OPTIONS)
}

/// The same, and its process does not outlive the calling thread: until [`prepare`] it is not what it was.
pub(super) fn bind(thread: Pid) -> io::Result<()> {
    set_options(thread, OPTIONS | EXITKILL)
}

fn set_options(thread: Pid, options: usize) -> io::Result<()> {
    // SAFETY: the request takes numbers alone.
    answer(unsafe { libc::ptrace(libc::PTRACE_SETOPTIONS, thread.as_raw(), 0_usize, options) })
        .map(drop)
}

/// Its signal mask.
pub(super) fn mask(thread: Pid) -> io::Result<u64> {
    let mut mask = 0_u64;
    let len = size_of::<u64>();
    // SAFETY: the kernel writes `len` bytes to the mask, which outlives the call.
    answer(unsafe { libc::ptrace(PTRACE_GETSIGMASK, thread.as_raw(), len, &raw mut mask) })?;
    Ok(mask)
}

pub(super) fn set_mask(thread: Pid, mask: u64) -> io::Result<()> {
    let len = size_of::<u64>();
    // SAFETY: the kernel reads `len` bytes of the mask, which outlives the call.
    answer(unsafe { libc::ptrace(PTRACE_SETSIGMASK, thread.as_raw(), len, &raw const mask) })
        .map(drop)
}

/// Where it keeps its restartable sequence (rseq(2)); `None` when it has none, or the kernel does not
/// tell.
pub(super) fn rseq(thread: Pid) -> Option<u64> {
    let mut rseq = Rseq::default();
    let len = size_of::<Rseq>();
    // SAFETY: the kernel writes at most `len` bytes to the structure, which outlives the call.
    let told = answer(unsafe {
        libc::ptrace(
            PTRACE_GET_RSEQ_CONFIGURATION,
            thread.as_raw(),
            len,
            &raw mut rseq,
        )
    });
    told.ok().and((rseq.pointer != 0).then_some(rseq.pointer))
}

/// Its extended registers, as the kernel has them.
pub(super) fn xstate(thread: Pid) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; XSTATE_LEN];
    let mut io = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: the kernel writes at most `iov_len` bytes to where `iov_base` leads, which are there, and
    // their number to `iov_len`; both outlive the call.
    answer(unsafe {
        libc::ptrace(
            libc::PTRACE_GETREGSET,
            thread.as_raw(),
            NT_X86_XSTATE,
            &raw mut io,
        )
    })?;
    bytes.truncate(io.iov_len);
    Ok(bytes)
}

pub(super) fn set_xstate(thread: Pid, bytes: &mut [u8]) -> io::Result<()> {
    let io = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: the kernel reads `iov_len` bytes from where `iov_base` leads, which outlive the call.
    answer(unsafe {
        libc::ptrace(
            libc::PTRACE_SETREGSET,
            thread.as_raw(),
            NT_X86_XSTATE,
            &raw const io,
        )
    })
    .map(drop)
}
