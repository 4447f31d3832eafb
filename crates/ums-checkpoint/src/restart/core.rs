//! Registers in CRIU's images of threads (`core-ID.img`; `images/core.proto`, `images/core-x86.proto`).
//!
//! Only the registers are taken apart and written again; every other field stays as it is, those that
//! we don't know too.

use std::io;

use prost::Message;
use prost::bytes::Buf;
use prost::encoding::{
    DecodeContext, WireType, decode_key, decode_varint, encode_varint, skip_field,
};

use super::call::{Abi, Call, INSTRUCTION, INTERRUPTED};
use crate::memory_dir::MemoryDir;

/// Two magic numbers and the length of the one message (`criu/include/magic.h`).
pub(super) const HEAD_LEN: usize = 12;
/// `thread_info` of a `core_entry`.
const THREAD_INFO: u32 = 2;
/// `gpregs` of a `thread_info_x86`.
const REGISTERS: u32 = 2;
/// `ax` and `ip` of a `user_x86_regs_entry`.
const AX: u32 = 11;
const IP: u32 = 17;
/// `user_x86_regs_mode` of a 32-bit program.
const COMPAT: i32 = 2;

#[derive(Clone, PartialEq, Message)]
struct Core {
    #[prost(message, optional, tag = "2")]
    thread_info: Option<ThreadInfo>,
    #[prost(message, optional, tag = "3")]
    task: Option<Task>,
    #[prost(message, optional, tag = "5")]
    thread: Option<Thread>,
}

#[derive(Clone, PartialEq, Message)]
struct ThreadInfo {
    #[prost(message, optional, tag = "2")]
    registers: Option<Registers>,
}

#[derive(Clone, PartialEq, Message)]
struct Registers {
    #[prost(uint64, required, tag = "11")]
    ax: u64,
    #[prost(uint64, required, tag = "16")]
    orig_ax: u64,
    #[prost(uint64, required, tag = "17")]
    ip: u64,
    #[prost(int32, optional, tag = "28")]
    mode: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
struct Task {
    #[prost(uint64, required, tag = "5")]
    blocked: u64,
    #[prost(message, optional, tag = "10")]
    pending: Option<Queue>,
}

#[derive(Clone, PartialEq, Message)]
struct Thread {
    #[prost(uint64, optional, tag = "6")]
    blocked: Option<u64>,
    #[prost(message, optional, tag = "9")]
    pending: Option<Queue>,
}

#[derive(Clone, PartialEq, Message)]
struct Queue {
    #[prost(message, repeated, tag = "1")]
    signals: Vec<Signal>,
}

#[derive(Clone, PartialEq, Message)]
struct Signal {
    #[prost(bytes = "vec", required, tag = "1")]
    info: Vec<u8>,
}

/// Lets every thread of a checkpoint go on with the call that the freeze has interrupted, and returns
/// the ids of those whose call ends with `EINTR` because it is not known what they had called.
///
/// # Errors
/// When an image can't be read or written, or is malformed.
pub(crate) fn images(images: &MemoryDir) -> io::Result<Vec<i32>> {
    let mut ended = Vec::new();
    each(images, |name, id, file| {
        let malformed =
            |error| io::Error::new(io::ErrorKind::InvalidData, format!("`{name}`: {error}"));
        if let Some(edited) = edit(file).map_err(malformed)? {
            images.write(name, &edited)?;
        } else if ends(file).map_err(malformed)? {
            ended.push(id);
        }
        Ok(())
    })?;
    Ok(ended)
}

/// Each image of a thread: its name, the thread's id, and what is in it.
pub(super) fn each(
    images: &MemoryDir,
    mut look: impl FnMut(&str, i32, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    for (name, _) in images.files()? {
        let id = name
            .strip_prefix("core-")
            .and_then(|rest| rest.strip_suffix(".img"));
        if let Some(id) = id.and_then(|id| id.parse().ok()) {
            look(&name, id, &std::fs::read(images.path().join(&name))?)?;
        }
    }
    Ok(())
}

/// Whether it is the image of a thread that goes on with restart_syscall(2), for which no note is there.
fn ends(file: &[u8]) -> Result<bool, prost::DecodeError> {
    let core = Core::decode(file.get(HEAD_LEN..).unwrap_or_default())?;
    let registers = core
        .thread_info
        .as_ref()
        .and_then(|info| info.registers.as_ref());
    let ends = registers.is_some_and(|registers| interrupted(registers) == Some(Call::NoteOnly));
    Ok(ends && !is_signalled(&core))
}

/// The image of a thread that makes its call again; `None` when it stays as it is.
fn edit(file: &[u8]) -> Result<Option<Vec<u8>>, prost::DecodeError> {
    let message = file.get(HEAD_LEN..).unwrap_or_default();
    let core = Core::decode(message)?;
    let Some(registers) = core
        .thread_info
        .as_ref()
        .and_then(|info| info.registers.as_ref())
    else {
        return Ok(None);
    };
    let Some((ax, ip)) = again(registers).filter(|_| !is_signalled(&core)) else {
        return Ok(None);
    };
    let edited = replace(message, THREAD_INFO, |info| {
        replace(info, REGISTERS, |registers| {
            set(&set(registers, AX, ax)?, IP, ip)
        })
    })?;
    let mut whole = file[..HEAD_LEN - size_of::<u32>()].to_vec();
    whole.extend(
        u32::try_from(edited.len())
            .unwrap_or(u32::MAX)
            .to_ne_bytes(),
    );
    whole.extend(edited);
    Ok(Some(whole))
}

/// The registers `ax` and `ip` with which a thread makes its interrupted call again.
fn again(registers: &Registers) -> Option<(u64, u64)> {
    let call = interrupted(registers).filter(|call| *call != Call::NoteOnly);
    call.map(|_| (registers.orig_ax, registers.ip.wrapping_sub(INSTRUCTION)))
}

/// The call of a thread that was interrupted and can go on.
fn interrupted(registers: &Registers) -> Option<Call> {
    let abi = match registers.mode {
        Some(COMPAT) => Abi::Compat,
        _ => Abi::Native,
    };
    // A 32-bit program has 32-bit registers.
    let signed = |value: u64| match abi {
        Abi::Native => value.cast_signed(),
        Abi::Compat => i64::from((value as u32).cast_signed()),
    };
    let call = Call::of(abi, signed(registers.orig_ax));
    call.filter(|_| signed(registers.ax) == INTERRUPTED)
}

/// Whether a signal waits that the thread takes before its next instruction: then the call ends by it.
/// One that is sent to the process is taken by its first thread, unless that blocks it.
fn is_signalled(core: &Core) -> bool {
    let unblocked = |queue: &Option<Queue>, blocked: u64| {
        let signals = queue.iter().flat_map(|queue| &queue.signals);
        signals
            .filter_map(number)
            .any(|signal| blocked & bit(signal) == 0)
    };
    let (task, thread) = (core.task.as_ref(), core.thread.as_ref());
    let blocked = task.map(|task| task.blocked);
    let own = thread
        .is_some_and(|thread| unblocked(&thread.pending, thread.blocked.or(blocked).unwrap_or(0)));
    own || task.is_some_and(|task| unblocked(&task.pending, task.blocked))
}

/// A signal's number, the first member of a `siginfo_t`.
fn number(signal: &Signal) -> Option<u32> {
    let (number, _) = signal.info.split_first_chunk::<4>()?;
    Some(u32::from_ne_bytes(*number))
}

/// Its place in a set of signals.
fn bit(signal: u32) -> u64 {
    1_u64.checked_shl(signal.wrapping_sub(1)).unwrap_or(0)
}

/// A message in which `edit` was done to each field of this number that holds a message.
fn replace(
    message: &[u8],
    field: u32,
    edit: impl Fn(&[u8]) -> Result<Vec<u8>, prost::DecodeError>,
) -> Result<Vec<u8>, prost::DecodeError> {
    fields(message, |number, wire, value, whole| {
        if (number, wire) != (field, WireType::LengthDelimited) {
            return Ok(whole.to_vec());
        }
        let mut inner = value;
        decode_varint(&mut inner)?;
        let edited = edit(inner)?;
        let mut bytes = whole[..whole.len() - value.len()].to_vec();
        encode_varint(edited.len() as u64, &mut bytes);
        bytes.extend(edited);
        Ok(bytes)
    })
}

/// A message in which the field of this number has this value.
fn set(message: &[u8], field: u32, new: u64) -> Result<Vec<u8>, prost::DecodeError> {
    fields(message, |number, wire, value, whole| {
        if (number, wire) != (field, WireType::Varint) {
            return Ok(whole.to_vec());
        }
        let mut bytes = whole[..whole.len() - value.len()].to_vec();
        encode_varint(new, &mut bytes);
        Ok(bytes)
    })
}

/// A message whose fields are what `edit` makes of each: of its number, its type, the bytes of its value
/// and those of the whole.
fn fields(
    message: &[u8],
    edit: impl Fn(u32, WireType, &[u8], &[u8]) -> Result<Vec<u8>, prost::DecodeError>,
) -> Result<Vec<u8>, prost::DecodeError> {
    let (mut rest, mut edited) = (message, Vec::with_capacity(message.len() + 16));
    while rest.has_remaining() {
        let begin = rest;
        let (number, wire) = decode_key(&mut rest)?;
        let value = rest;
        skip_field(wire, number, &mut rest, DecodeContext::default())?;
        let whole = &begin[..begin.len() - rest.len()];
        edited.extend(edit(
            number,
            wire,
            &value[..value.len() - rest.len()],
            whole,
        )?);
    }
    Ok(edited)
}

#[cfg(test)]
mod test {
    use nix::libc;

    use super::*;

    /// An image with a field that we don't know in front of and behind each that we do.
    fn image(core: &Core) -> Vec<u8> {
        let unknown = [0x98, 0x06, 0x96, 0x01];
        let info = core.thread_info.as_ref().unwrap();
        let registers = info.registers.as_ref().unwrap().encode_to_vec();
        let wrap = |inner: Vec<u8>| {
            let mut bytes = unknown.to_vec();
            bytes.push(0x12);
            encode_varint(inner.len() as u64, &mut bytes);
            bytes.extend(inner);
            bytes.extend(unknown);
            bytes
        };
        let rest = Core {
            thread_info: None,
            ..core.clone()
        };
        let mut message = wrap(wrap([&unknown[..], &registers].concat()));
        message.extend(rest.encode_to_vec());
        let mut file = vec![7; 8];
        file.extend(u32::try_from(message.len()).unwrap().to_ne_bytes());
        file.extend(message);
        file
    }

    fn core(ax: i64, orig_ax: i64, ip: u64) -> Core {
        Core {
            thread_info: Some(ThreadInfo {
                registers: Some(Registers {
                    ax: ax.cast_unsigned(),
                    orig_ax: orig_ax.cast_unsigned(),
                    ip,
                    mode: Some(1),
                }),
            }),
            task: None,
            thread: Some(Thread {
                blocked: Some(0),
                pending: None,
            }),
        }
    }

    fn queue(signal: i32) -> Option<Queue> {
        let info = signal.to_ne_bytes().to_vec();
        let signals = vec![Signal { info }];
        Some(Queue { signals })
    }

    #[test]
    fn an_interrupted_sleep_is_made_again_and_nothing_else_is_touched() {
        let before = core(INTERRUPTED, libc::SYS_nanosleep, 0x1001);
        let edited = edit(&image(&before)).unwrap().unwrap();
        let after = core(libc::SYS_nanosleep, libc::SYS_nanosleep, 0xfff);
        assert_eq!(edited, image(&after));
        assert_eq!(edit(&edited).unwrap(), None, "it is made again once");
    }

    #[test]
    fn what_was_not_interrupted_stays() {
        for (ax, call) in [
            (0, libc::SYS_nanosleep),
            (INTERRUPTED, -1),
            (INTERRUPTED, libc::SYS_close),
            (INTERRUPTED, libc::SYS_restart_syscall),
        ] {
            assert_eq!(
                edit(&image(&core(ax, call, 9))).unwrap(),
                None,
                "{ax} {call}"
            );
        }
    }

    #[test]
    fn a_call_that_is_not_known_is_told() {
        let unknown = image(&core(INTERRUPTED, libc::SYS_restart_syscall, 9));
        assert!(ends(&unknown).unwrap());
        assert!(!ends(&image(&core(INTERRUPTED, libc::SYS_close, 9))).unwrap());
        assert!(!ends(&image(&core(0, libc::SYS_restart_syscall, 9))).unwrap());
    }

    #[test]
    fn a_signal_that_is_taken_ends_the_call() {
        let mut signalled = core(INTERRUPTED, libc::SYS_poll, 9);
        let thread = signalled.thread.as_mut().unwrap();
        thread.pending = queue(libc::SIGUSR1);
        assert_eq!(edit(&image(&signalled)).unwrap(), None);
        signalled.thread.as_mut().unwrap().blocked = Some(bit(10));
        assert!(edit(&image(&signalled)).unwrap().is_some(), "it is blocked");
        let task = |blocked| Task {
            blocked,
            pending: queue(libc::SIGTERM),
        };
        signalled.task = Some(task(0));
        assert_eq!(edit(&image(&signalled)).unwrap(), None);
        signalled.task = Some(task(bit(15)));
        assert!(edit(&image(&signalled)).unwrap().is_some());
    }

    #[test]
    fn a_32_bit_program_has_numbers_and_registers_of_its_own() {
        let mut before = core(0, 162, 0x8002);
        let info = before.thread_info.as_mut().unwrap();
        let registers = info.registers.as_mut().unwrap();
        (registers.ax, registers.mode) = (u64::from(u32::MAX - 3), Some(COMPAT));
        let edited = edit(&image(&before)).unwrap().unwrap();
        let edited = Core::decode(&edited[HEAD_LEN..]).unwrap();
        let registers = edited.thread_info.unwrap().registers.unwrap();
        assert_eq!((registers.ax, registers.ip), (162, 0x8000));
    }

    #[test]
    fn what_is_malformed_is_an_error() {
        let mut file = image(&core(INTERRUPTED, libc::SYS_poll, 9));
        file.truncate(file.len() - 3);
        assert!(edit(&file).is_err());
        assert_eq!(edit(&[]).unwrap(), None);
    }
}
