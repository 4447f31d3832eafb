//! The program that says which devices a group of version 2 may use: assembled by a pure function,
//! loaded and attached by two system calls.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::{Kind, Rule};

/// One instruction: `struct bpf_insn` of `linux/bpf.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Instruction {
    code: u8,
    /// Destination register in the low four bits, source in the high four.
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// Registers: the result; the context, `struct bpf_cgroup_dev_ctx`; what is taken from it; scratch.
const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;

/// Operations, of `linux/bpf.h` and `linux/bpf_common.h`: load a word; move, and, shift right of 32
/// bits; jump unless equal; end.
const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xb4;
const MOVE_REGISTER: u8 = 0xbc;
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const UNLESS_EQUAL: u8 = 0x56;
const UNLESS_EQUAL_REGISTER: u8 = 0x5e;
const EXIT: u8 = 0x95;

/// Offsets in the context: access in the high and kind in the low 16 bits; the numbers.
const ACCESS_AND_KIND_AT: i16 = 0;
const MAJOR_AT: i16 = 4;
const MINOR_AT: i16 = 8;

/// The kernel's `BPF_DEVCG_DEV_*`.
const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;

fn with_value(code: u8, register: u8, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers: register,
        offset: 0,
        immediate,
    }
}

fn with_register(code: u8, to: u8, from: u8, offset: i16) -> Instruction {
    Instruction {
        code,
        registers: to | from << 4,
        offset,
        immediate: 0,
    }
}

/// A program that answers 1 where all that is asked for is in one rule, and else 0.
///
/// For each rule it jumps over the rest of it as soon as something differs.
pub(super) fn assemble(rules: &[Rule]) -> Vec<Instruction> {
    let mut program = vec![
        with_register(LOAD_WORD, KIND, CONTEXT, ACCESS_AND_KIND_AT),
        with_register(MOVE_REGISTER, ACCESS, KIND, 0),
        with_value(AND, KIND, 0xffff),
        with_value(SHIFT_RIGHT, ACCESS, 16),
        with_register(LOAD_WORD, MAJOR, CONTEXT, MAJOR_AT),
        with_register(LOAD_WORD, MINOR, CONTEXT, MINOR_AT),
    ];
    for rule in rules {
        let mut part = conditions(rule);
        part.push(with_value(MOVE, RESULT, 1));
        part.push(with_value(EXIT, RESULT, 0));
        let len = part.len();
        for (at, instruction) in part.iter_mut().enumerate() {
            if matches!(instruction.code, UNLESS_EQUAL | UNLESS_EQUAL_REGISTER) {
                // Counted from the next instruction; a part has ten at the most.
                instruction.offset = (len - at - 1) as i16;
            }
        }
        program.extend(part);
    }
    program.push(with_value(MOVE, RESULT, 0));
    program.push(with_value(EXIT, RESULT, 0));
    program
}

/// The conditions of one rule; where each jumps to is filled in by [`assemble`].
fn conditions(rule: &Rule) -> Vec<Instruction> {
    let kind = match rule.kind {
        Kind::Block => BLOCK,
        Kind::Character => CHARACTER,
    };
    let mut part = vec![
        with_value(UNLESS_EQUAL, KIND, kind),
        with_register(MOVE_REGISTER, SCRATCH, ACCESS, 0),
        with_value(AND, SCRATCH, rule.access as i32),
        with_register(UNLESS_EQUAL_REGISTER, SCRATCH, ACCESS, 0),
    ];
    for (register, number) in [(MAJOR, rule.major), (MINOR, rule.minor)] {
        if let Some(number) = number {
            // The same 32 bits: the comparison is one of words.
            part.push(with_value(UNLESS_EQUAL, register, number as i32));
        }
    }
    part
}

/// Gives the program to the kernel, which checks it.
pub(super) fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
    sys::load(program)
}

/// Has the kernel ask the program about each device that a process in the group, or in one below,
/// opens or makes.
pub(super) fn attach(group: &impl AsFd, program: &OwnedFd) -> io::Result<()> {
    sys::attach(group.as_fd(), program.as_fd())
}

/// bpf(2). Layouts and numbers are those of `linux/bpf.h`.
#[expect(unsafe_code, reason = "bpf(2) has no wrapper that is kept and small")]
mod sys {
    use std::io;
    use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

    use nix::errno::Errno;

    use super::Instruction;

    const PROG_LOAD: i32 = 5;
    const PROG_ATTACH: i32 = 8;
    const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
    const CGROUP_DEVICE: u32 = 6;
    const ALLOW_MULTI: u32 = 2;

    /// The beginning of `union bpf_attr` for `BPF_PROG_LOAD`; the kernel takes the rest as zero.
    #[repr(C)]
    struct Load {
        kind: u32,
        instructions: u32,
        program: u64,
        licence: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel_version: u32,
        flags: u32,
    }

    /// The beginning of `union bpf_attr` for `BPF_PROG_ATTACH`.
    #[repr(C)]
    struct Attach {
        target: u32,
        program: u32,
        kind: u32,
        flags: u32,
    }

    pub(super) fn load(program: &[Instruction]) -> io::Result<OwnedFd> {
        let licence = c"Apache-2.0";
        let attributes = Load {
            kind: PROG_TYPE_CGROUP_DEVICE,
            instructions: program.len() as u32,
            program: program.as_ptr() as u64,
            licence: licence.as_ptr() as u64,
            log_level: 0,
            log_size: 0,
            log: 0,
            kernel_version: 0,
            flags: 0,
        };
        // SAFETY: the kernel reads `attributes` of the given size, and through it as many
        // instructions as `program` has (`Instruction` is laid out as `struct bpf_insn`) and a
        // string that ends with a zero; all of them live until the call returns. It writes nothing.
        let fd = unsafe {
            nix::libc::syscall(
                nix::libc::SYS_bpf,
                PROG_LOAD,
                &raw const attributes,
                size_of::<Load>(),
            )
        };
        Ok(crate::message::own(Errno::result(fd)? as i32))
    }

    pub(super) fn attach(group: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
        let attributes = Attach {
            target: group.as_raw_fd() as u32,
            program: program.as_raw_fd() as u32,
            kind: CGROUP_DEVICE,
            flags: ALLOW_MULTI,
        };
        // SAFETY: the kernel reads `attributes` of the given size, and writes nothing; the
        // descriptors in it are borrowed for the length of the call.
        let result = unsafe {
            nix::libc::syscall(
                nix::libc::SYS_bpf,
                PROG_ATTACH,
                &raw const attributes,
                size_of::<Attach>(),
            )
        };
        Ok(Errno::result(result).map(drop)?)
    }
}

#[cfg(test)]
mod test {
    use super::super::{MAKE, READ, WRITE};
    use super::*;

    const RULES: [&str; 6] = [
        "c *:* m",
        "b *:* m",
        "c 1:3 rwm",
        "c 5:2 rw",
        "c 136:* rwm",
        "b 7:1 r",
    ];

    /// Executes a program as the kernel would, with all that [`assemble`] uses of its language.
    fn execute(program: &[Instruction], context: [u32; 3]) -> u32 {
        let mut registers = [0_u32; 11];
        let mut at = 0;
        // Every jump goes forward.
        for _ in 0..program.len() {
            let instruction = program[at];
            at += 1;
            let to = usize::from(instruction.registers & 0xf);
            let from = usize::from(instruction.registers >> 4);
            let value = instruction.immediate as u32;
            let jump = match instruction.code {
                LOAD_WORD => {
                    assert_eq!(from, usize::from(CONTEXT));
                    registers[to] = context[instruction.offset as usize / 4];
                    false
                }
                MOVE => {
                    registers[to] = value;
                    false
                }
                MOVE_REGISTER => {
                    registers[to] = registers[from];
                    false
                }
                AND => {
                    registers[to] &= value;
                    false
                }
                SHIFT_RIGHT => {
                    registers[to] >>= value;
                    false
                }
                UNLESS_EQUAL => registers[to] != value,
                UNLESS_EQUAL_REGISTER => registers[to] != registers[from],
                EXIT => return registers[usize::from(RESULT)],
                other => panic!("operation {other:#x}"),
            };
            if jump {
                at += instruction.offset as usize;
            }
        }
        panic!("the program has no end")
    }

    fn allowed(program: &[Instruction], kind: i32, access: u32, major: u32, minor: u32) -> bool {
        let context = [access << 16 | kind as u32, major, minor];
        execute(program, context) == 1
    }

    fn by_rules(rules: &[Rule], kind: i32, access: u32, major: u32, minor: u32) -> bool {
        rules.iter().any(|rule| {
            let same_kind = matches!(
                (rule.kind, kind),
                (Kind::Block, BLOCK) | (Kind::Character, CHARACTER)
            );
            same_kind
                && access & !rule.access == 0
                && rule.major.is_none_or(|number| number == major)
                && rule.minor.is_none_or(|number| number == minor)
        })
    }

    #[test]
    fn the_program_says_what_the_rules_say() {
        let rules: Vec<Rule> = RULES.iter().map(|line| line.parse().unwrap()).collect();
        let program = assemble(&rules);
        let mut both = [0, 0];
        for kind in [BLOCK, CHARACTER] {
            for access in 1..=(MAKE | READ | WRITE) {
                for major in [0, 1, 5, 7, 8, 10, 136, u32::MAX] {
                    for minor in [0, 1, 2, 3, 200, 229, u32::MAX] {
                        let expected = by_rules(&rules, kind, access, major, minor);
                        let said = allowed(&program, kind, access, major, minor);
                        assert_eq!(said, expected, "{kind} {access} {major}:{minor}");
                        both[usize::from(expected)] += 1;
                    }
                }
            }
        }
        assert!(both.iter().all(|count| *count > 10), "{both:?}");
        // By hand, so that the comparison is not with a mistake of the same kind.
        assert!(allowed(&program, CHARACTER, READ | WRITE, 1, 3));
        assert!(allowed(&program, BLOCK, MAKE, 8, 0));
        assert!(!allowed(&program, BLOCK, READ, 8, 0));
        assert!(!allowed(&program, CHARACTER, READ, 10, 229));
        assert!(!allowed(&program, BLOCK, READ | WRITE, 7, 1));
    }

    #[test]
    fn without_rules_nothing_is_allowed() {
        let program = assemble(&[]);
        assert!(!allowed(&program, CHARACTER, READ, 1, 3));
    }

    #[test]
    fn the_kernel_takes_the_program() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED the_kernel_takes_the_program: needs root");
            return;
        }
        let rules: Vec<Rule> = RULES.iter().map(|line| line.parse().unwrap()).collect();
        load(&assemble(&rules)).expect("the kernel's check of it passes");
        let any: Vec<Rule> = ["c *:* rwm", "b *:* rwm"]
            .map(|l| l.parse().unwrap())
            .into();
        load(&assemble(&any)).expect("also where rules allow everything");
    }
}
