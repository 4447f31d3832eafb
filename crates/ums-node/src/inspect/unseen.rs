//! What the kernel tells of by halves, and nobody carries.

use std::fs::File;
use std::io::Read;

use ums_checkpoint::carry;
use ums_core::facts::{Loss, LossKind};

use super::process::Process;
use super::{loss, parse, proc_file, proc_path};

/// Flags of a thread (`include/linux/sched.h`, PF_MEMALLOC_NOIO and PF_LOCAL_THROTTLE) that
/// PR_SET_IO_FLUSHER sets together.
const IO_FLUSHER: u64 = 0x0008_0000 | 0x0010_0000;

/// What may be of a process.
pub(super) fn losses(process: &Process) -> Vec<Loss> {
    let (pid, inner) = (process.pid, process.inner);
    let mut found = Vec::new();
    let maps = proc_file(pid, "maps").unwrap_or_default();
    if has_aio(&maps) {
        let what = "a poll (IOCB_CMD_POLL) that waits in its AIO context, if there is one";
        found.push(loss(LossKind::AsynchronousRequest, inner, what));
    }
    if is_flusher(&proc_file(pid, "stat").unwrap_or_default()) {
        let what = "it is one that I/O depends on (PR_SET_IO_FLUSHER)";
        found.push(loss(LossKind::ProcessAttribute, inner, what));
    }
    if is_narrow(pid) {
        let what = "what it has chosen for itself (prctl(2), mlockall(2), the deadlines of its timers, \
                    Landlock): a 32-bit program is not asked";
        found.push(loss(LossKind::ProcessAttribute, inner, what));
    }
    found
}

/// Whether a process runs a 32-bit program (elf(5), `EI_CLASS`).
fn is_narrow(pid: i32) -> bool {
    let mut begin = [0; 5];
    let read = File::open(proc_path(pid, "exe")).and_then(|mut exe| exe.read_exact(&mut begin));
    read.is_ok() && is_narrow_program(begin)
}

fn is_narrow_program(begin: [u8; 5]) -> bool {
    begin == *b"\x7fELF\x01"
}

/// What may be of the service as a whole.
pub(super) fn of_all(init: i32, tree: &[Process]) -> Vec<Loss> {
    let labels = proc_file(init, "net/ip6_flowlabel").unwrap_or_default();
    let labels = labels.lines().skip(1).count();
    let what = format!("{labels} IPv6 flow labels that it has leased (IPV6_FLOWLABEL_MGR)");
    let labels = (labels > 0).then(|| loss(LossKind::SocketOption, 1, what));
    let all = tree.iter().map(|process| carry::Process {
        pid: process.pid,
        inner: process.inner,
    });
    let all: Vec<carry::Process> = all.collect();
    let directories = carry::telling_directories(&all).unwrap_or_default();
    let told = directories.into_iter().map(|(pid, number)| {
        let what = format!("the directory behind descriptor {number} (F_NOTIFY)");
        loss(LossKind::DirectoryNotification, pid, what)
    });
    let not_asked = carry::not_asked().map(Loss::from);
    labels.into_iter().chain(told).chain(not_asked).collect()
}

/// The ring of an AIO context (`fs/aio.c`) is a mapping with this name.
fn has_aio(maps: &str) -> bool {
    parse::mappings(maps).any(|mapping| mapping.name.starts_with("/[aio]"))
}

/// Of the words of `/proc/PID/stat` behind the name, the seventh is the flags.
fn is_flusher(stat: &str) -> bool {
    let words = stat.rsplit_once(')').map(|(_, words)| words);
    let flags = words.and_then(|words| words.split_whitespace().nth(6)?.parse::<u64>().ok());
    flags.is_some_and(|flags| flags & IO_FLUSHER == IO_FLUSHER)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn what_is_told_by_halves() {
        assert!(has_aio(
            "7f00-7f01 rw-s 00000000 00:0f 7    /[aio] (deleted)\n"
        ));
        assert!(!has_aio("7f00-7f01 rw-s 00000000 00:0f 7    /aio\n"));
        let stat = |flags: u64| format!("7 (a) b) S 1 7 7 0 -1 {flags} 100 0");
        assert!(is_flusher(&stat(IO_FLUSHER | 0x0040_0000)));
        assert!(!is_flusher(&stat(0x0048_0000)));
        assert!(!is_flusher(""));
        assert!(is_narrow_program(*b"\x7fELF\x01") && !is_narrow_program(*b"\x7fELF\x02"));
        assert!(!is_narrow(std::process::id() as i32));
    }
}
