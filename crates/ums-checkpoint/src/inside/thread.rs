//! Calls made in one thread that is held.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use nix::libc::{self, user_regs_struct};
use nix::sys::ptrace;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::held::{stopped, unsupported};
use super::raw;
use super::section::Section;

/// Code segment of a 64-bit program (`arch/x86/include/asm/segment.h`, `__USER_CS`).
const CS_NATIVE: u64 = 0x33;
/// The instruction `syscall`.
const SYSCALL: [u8; 2] = [0x0f, 0x05];
/// PTRACE_SYSCALL_INFO_ENTRY and PTRACE_SYSCALL_INFO_EXIT (`linux/ptrace.h`).
const ENTRY: u8 = 1;
const EXIT: u8 = 2;
/// PTRACE_EVENT_STOP, as `si_code` has it.
const EVENT_STOP: i32 = 128;
/// Most stops on the way into or out of a call that are none of its own.
const STOPS_MAX: usize = 16;
/// Most bytes of the vDSO that are looked at.
const VDSO_MAX: usize = 64 << 10;
/// Length of the page that is lent.
pub(crate) const PAGE: usize = 4096;

/// The first thread of a process, in which calls are made.
///
/// It has to be [left](Inside::leave): dropped before, the thread goes on where the last call has ended.
pub(crate) struct Inside {
    thread: Pid,
    end: Instant,
    registers: user_regs_struct,
    mask: u64,
    /// Extended registers, where a call changes them.
    xstate: Option<Vec<u8>>,
    section: Option<Section>,
    gate: u64,
    memory: File,
    page: Option<u64>,
    /// A SIGSTOP has come meanwhile, which can't be blocked.
    stop: bool,
    /// Why nothing can be called any more.
    broken: Option<String>,
}

impl Inside {
    /// Of a process that [`hold`](super::hold) holds. From here on until it is [left](Self::leave) the process
    /// is killed when the calling thread ends, however that comes about: it would go on with what is ours.
    ///
    /// # Errors
    /// `Unsupported` for a 32-bit program, and one that has unmapped its vDSO.
    pub(crate) fn enter(pid: i32, end: Instant) -> io::Result<Self> {
        let thread = Pid::from_raw(pid);
        let registers = ptrace::getregs(thread)?;
        if registers.cs != CS_NATIVE {
            return Err(unsupported("a 32-bit program"));
        }
        let memory = File::options()
            .read(true)
            .write(true)
            .open(format!("/proc/{pid}/mem"))?;
        let gate = gate(pid, &memory)?;
        let section = Section::of(thread);
        let mask = raw::mask(thread)?;
        raw::bind(thread)?;
        raw::set_mask(thread, !0)?;
        Ok(Self {
            thread,
            end,
            registers,
            mask,
            xstate: None,
            section,
            gate,
            memory,
            page: None,
            stop: false,
            broken: None,
        })
    }

    /// Has its extended registers put back in the end: to be called before a call that changes them.
    pub(crate) fn keep_extended(&mut self) -> io::Result<()> {
        if self.xstate.is_none() {
            self.xstate = Some(raw::xstate(self.thread)?);
        }
        Ok(())
    }

    /// Whether it answers its system calls itself (PR_SET_SYSCALL_USER_DISPATCH): none may come through.
    pub(crate) fn dispatches(&self) -> io::Result<bool> {
        Ok(crate::dirty::dispatches(self.thread.as_raw())?)
    }

    /// Whether there is something in its tile registers (AMX): XTILECFG and XTILEDATA in the header of what the
    /// instruction XSAVE writes (Intel's manual, volume 1, 13.4).
    pub(crate) fn has_tiles(&self) -> io::Result<bool> {
        const HEADER: usize = 512;
        const TILES: u64 = 1 << 17 | 1 << 18;
        let saved = raw::xstate(self.thread)?;
        let used = saved.get(HEADER..HEADER + 8);
        let used = used.and_then(|used| used.try_into().ok());
        Ok(used.map_or(0, u64::from_le_bytes) & TILES != 0)
    }

    /// Makes a call; what it returns.
    ///
    /// # Errors
    /// What the call says; or that it could not be made, which [`Inside::leave`] says too.
    pub(crate) fn call(&mut self, number: libc::c_long, arguments: &[u64]) -> io::Result<u64> {
        if let Some(broken) = &self.broken {
            return Err(io::Error::other(broken.clone()));
        }
        let result = self.make(number, arguments).inspect_err(|error| {
            self.broken = Some(error.to_string());
        })?;
        match result.cast_signed() {
            error @ -4095..0 => Err(io::Error::from_raw_os_error(-error as i32)),
            _ => Ok(result),
        }
    }

    fn make(&mut self, number: libc::c_long, arguments: &[u64]) -> io::Result<u64> {
        let argument = |at: usize| arguments.get(at).copied().unwrap_or(0);
        let registers = user_regs_struct {
            rip: self.gate,
            rax: number.cast_unsigned(),
            // Not in a call, which the kernel might start again.
            orig_rax: u64::MAX,
            rdi: argument(0),
            rsi: argument(1),
            rdx: argument(2),
            r10: argument(3),
            r8: argument(4),
            r9: argument(5),
            ..self.registers
        };
        ptrace::setregs(self.thread, registers)?;
        self.go_to(ENTRY)?;
        self.go_to(EXIT)?;
        Ok(ptrace::getregs(self.thread)?.rax)
    }

    /// Lets it go on to the beginning or end of a call.
    fn go_to(&mut self, wanted: u8) -> io::Result<()> {
        for _ in 0..STOPS_MAX {
            ptrace::syscall(self.thread, None)?;
            match stopped(self.thread, self.end)? {
                op if op == wanted => return Ok(()),
                ENTRY | EXIT => return Err(io::Error::other("another call is in the way")),
                _ => self.pass_over()?,
            }
        }
        Err(io::Error::other("it stops again and again"))
    }

    /// Of a stop that has nothing to do with a call.
    fn pass_over(&mut self) -> io::Result<()> {
        let info = ptrace::getsiginfo(self.thread)?;
        if info.si_code >> 8 == EVENT_STOP {
            return Ok(());
        }
        match info.si_signo {
            libc::SIGSTOP => self.stop = true,
            signal => return Err(io::Error::other(format!("signal {signal} has come"))),
        }
        Ok(())
    }

    /// Where a page is that it can be lent things in; it is taken away again in the end.
    pub(crate) fn page(&mut self) -> io::Result<u64> {
        if let Some(page) = self.page {
            return Ok(page);
        }
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let [protection, flags] = [protection, flags].map(|flags| flags as u64);
        let arguments = [0, PAGE as u64, protection, flags, u64::MAX, 0];
        let page = self.call(libc::SYS_mmap, &arguments)?;
        self.page = Some(page);
        Ok(page)
    }

    /// Lends it these bytes, at most a page; where they are.
    pub(crate) fn lend(&mut self, bytes: &[u8]) -> io::Result<u64> {
        let page = self.page()?;
        let bytes = bytes.get(..bytes.len().min(PAGE)).unwrap_or_default();
        self.memory.write_all_at(bytes, page)?;
        Ok(page)
    }

    /// What is at the beginning of the page that was lent.
    pub(crate) fn lent<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let page = self.page()?;
        let mut bytes = [0; N];
        self.memory.read_exact_at(&mut bytes, page)?;
        Ok(bytes)
    }

    /// Puts back all that was changed, so that the thread goes on where it was when it is let go of.
    ///
    /// # Errors
    /// Something could not be put back, or a call could not be made: the thread is not as it was.
    pub(crate) fn leave(mut self) -> io::Result<()> {
        if let Some(page) = self.page {
            // It is told below when this can't be done.
            let _ = self.call(libc::SYS_munmap, &[page, PAGE as u64]);
        }
        if let Some(xstate) = &mut self.xstate {
            raw::set_xstate(self.thread, xstate)?;
        }
        raw::set_mask(self.thread, self.mask)?;
        if let Some(section) = self.section {
            section.put_back(self.thread)?;
        }
        // A last stop where the kernel looks for signals, after which it looks at the registers for a call
        // that has to be started again.
        ptrace::interrupt(self.thread)?;
        ptrace::setregs(self.thread, self.registers)?;
        // All of it is its own again.
        raw::prepare(self.thread)?;
        for _ in 0..STOPS_MAX {
            ptrace::cont(self.thread, None)?;
            stopped(self.thread, self.end)?;
            if ptrace::getsiginfo(self.thread)?.si_code >> 8 == EVENT_STOP {
                break;
            }
            self.pass_over()?;
        }
        ptrace::setregs(self.thread, self.registers)?;
        if self.stop {
            kill(self.thread, Signal::SIGSTOP)?;
        }
        match self.broken {
            Some(broken) => Err(io::Error::other(broken)),
            None => Ok(()),
        }
    }
}

/// Where in a process there is an instruction that makes a call.
fn gate(pid: i32, memory: &File) -> io::Result<u64> {
    let maps = std::fs::read(format!("/proc/{pid}/maps"))?;
    let maps = String::from_utf8_lossy(&maps);
    let ranges = maps.lines().filter(|line| line.ends_with("[vdso]"));
    let found = ranges.filter_map(|line| {
        let (from, rest) = line.split_once('-')?;
        let from = u64::from_str_radix(from, 16).ok()?;
        let to = u64::from_str_radix(rest.split(' ').next()?, 16).ok()?;
        let mut code = vec![0; usize::try_from(to - from).ok()?.min(VDSO_MAX)];
        memory.read_exact_at(&mut code, from).ok()?;
        let at = code.windows(SYSCALL.len()).position(|two| two == SYSCALL)?;
        Some(from + at as u64)
    });
    let mut found = found;
    found
        .next()
        .ok_or_else(|| unsupported("a program without the kernel's vDSO"))
}
