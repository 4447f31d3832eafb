//! Calls of futex(2) that a restored thread makes again, whose words have to be in memory by then.
//!
//! Where such a call changes a word itself (FUTEX_LOCK_PI and its like, FUTEX_WAKE_OP) the kernel brings
//! in a missing page in a way in which userfaultfd can't be waited for (`fault_in_user_writeable` in
//! `kernel/futex/core.c`), and the call fails with EFAULT: a mutex that inherits priority ends the program.
//! A program that makes the call by itself has looked at the word before; one that makes it again has not.

use std::io::{self, IoSliceMut};

use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;
use prost::Message;

use super::core::{HEAD_LEN, each};
use crate::carry::{self, Process};
use crate::memory_dir::MemoryDir;

/// Calls that change a word: FUTEX_WAKE_OP, FUTEX_LOCK_PI, FUTEX_UNLOCK_PI, FUTEX_TRYLOCK_PI,
/// FUTEX_WAIT_REQUEUE_PI, FUTEX_CMP_REQUEUE_PI, FUTEX_LOCK_PI2.
const CHANGING: [u64; 7] = [5, 6, 7, 8, 11, 12, 13];
/// FUTEX_PRIVATE_FLAG and FUTEX_CLOCK_REALTIME are beside them.
const COMMAND: u64 = 0x7f;

#[derive(Clone, PartialEq, Message)]
struct Core {
    #[prost(message, optional, tag = "2")]
    thread_info: Option<ThreadInfo>,
}

#[derive(Clone, PartialEq, Message)]
struct ThreadInfo {
    #[prost(message, optional, tag = "2")]
    registers: Option<Registers>,
}

/// Those that hold the arguments of a call of a 64-bit program (`images/core-x86.proto`).
#[derive(Clone, PartialEq, Message)]
struct Registers {
    #[prost(uint64, required, tag = "10")]
    r8: u64,
    #[prost(uint64, required, tag = "14")]
    si: u64,
    #[prost(uint64, required, tag = "15")]
    di: u64,
    #[prost(uint64, required, tag = "16")]
    orig_ax: u64,
}

/// Words of such calls, by the thread's id in the service's PID namespace.
///
/// # Errors
/// When an image can't be read, or is malformed.
pub(crate) fn words(images: &MemoryDir) -> io::Result<Vec<(i32, u64)>> {
    let mut found = Vec::new();
    each(images, |name, id, file| {
        let core = Core::decode(file.get(HEAD_LEN..).unwrap_or_default());
        let core = core.map_err(|error| {
            io::Error::new(io::ErrorKind::InvalidData, format!("`{name}`: {error}"))
        })?;
        let registers = core.thread_info.and_then(|info| info.registers);
        found.extend(registers.iter().flat_map(of).map(|word| (id, word)));
        Ok(())
    })?;
    Ok(found)
}

/// The words of a thread's call.
fn of(registers: &Registers) -> Vec<u64> {
    let is_futex = registers.orig_ax.cast_signed() == nix::libc::SYS_futex;
    if !is_futex || !CHANGING.contains(&(registers.si & COMMAND)) {
        return Vec::new();
    }
    // What the second is for others is no address, and found nowhere.
    vec![registers.di, registers.r8]
}

/// Waits until these words are in the memory of the restored processes.
pub(crate) fn bring_in(words: &[(i32, u64)], processes: &[Process]) {
    for process in processes {
        let threads = match words {
            [] => return,
            _ => carry::threads_of(process.pid),
        };
        for (_, word) in words.iter().filter(|(id, _)| threads.contains(id)) {
            // One that is not mapped is the program's affair.
            let _ = look(process.pid, *word);
        }
    }
}

/// Reads of another process's memory in a way that waits for a missing page.
fn look(pid: i32, word: u64) -> io::Result<usize> {
    let mut byte = [0];
    let mut into = [IoSliceMut::new(&mut byte)];
    let base = usize::try_from(word).map_err(io::Error::other)?;
    let from = [RemoteIoVec { base, len: 1 }];
    Ok(process_vm_readv(Pid::from_raw(pid), &mut into, &from)?)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn words_of_calls_that_change_them() {
        let call = |orig_ax: i64, si: u64| Registers {
            r8: 0x2000,
            si,
            di: 0x1000,
            orig_ax: orig_ax.cast_unsigned(),
        };
        let futex = nix::libc::SYS_futex;
        for command in [6, 6 | 128, 13 | 128 | 256, 5] {
            assert_eq!(of(&call(futex, command)), [0x1000, 0x2000]);
        }
        assert!(of(&call(futex, 0)).is_empty(), "FUTEX_WAIT reads first");
        assert!(of(&call(-1, 6)).is_empty() && of(&call(futex + 1, 6)).is_empty());
    }

    #[test]
    fn a_word_is_read_and_what_is_not_mapped_is_not() {
        let (pid, word) = (std::process::id().cast_signed(), 7_u8);
        let address = (&raw const word).addr() as u64;
        assert_eq!(look(pid, address).unwrap(), 1);
        assert!(look(pid, 8).is_err());
    }
}
