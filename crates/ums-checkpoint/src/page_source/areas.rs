//! Private mappings of a process (`/proc/PID/smaps`, proc_pid_smaps(5)).

use std::io;

use super::When;
use crate::dirty::mappings::{Line, Mapping};

/// A mapping, and how its pages are treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Area {
    pub(super) mapping: Mapping,
    pub(super) when: When,
    /// Whether CRIU lets its pages come after the restore (`vma_entry_can_be_lazy`): private anonymous memory
    /// that isn't locked, and not of huge pages of its own.
    pub(super) may_be_late: bool,
    /// Whether its pages may stay here until the service runs elsewhere: what a child shall find empty
    /// (`MADV_WIPEONFORK`) must be there before there can be one.
    pub(super) may_stay: bool,
}

/// Those of a process.
///
/// # Errors
/// When a line isn't understood: a mapping that was passed over would be lost.
pub(super) fn parse(text: &str) -> io::Result<Vec<Area>> {
    let mut areas = Vec::new();
    let mut current = None;
    for line in text.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            areas.extend(current.take().and_then(|line| area(&line, flags)));
            continue;
        }
        let first = line.split_whitespace().next().unwrap_or_default();
        if !first.ends_with(':') {
            current = Some(Line::understood(line)?);
        }
    }
    Ok(areas)
}

fn area(line: &Line<'_>, flags: &str) -> Option<Area> {
    let has = |flag: &str| flags.split_whitespace().any(|one| one == flag);
    // Memory of devices has no pages, and what may be dropped (MAP_DROPPABLE) need not be kept.
    if !line.is_private() || has("io") || has("pf") || has("dp") {
        return None;
    }
    let may_be_late = !line.has_file() && !has("lo") && !has("ht");
    let when = match may_be_late && !line.is_executable() {
        true => When::Dumping,
        false => When::Dumped,
    };
    Some(Area {
        mapping: line.mapping,
        when,
        may_be_late,
        may_stay: when == When::Dumping && !has("wf"),
    })
}

#[cfg(test)]
mod test {
    use super::*;

    const TEXT: &str = "\
00400000-00401000 r-xp 00000000 fd:01 1234                               /bin/a b
Size:                  4 kB
VmFlags: rd ex mr mw me
01000000-01021000 rw-p 00000000 00:00 0                                  [heap]
VmFlags: rd wr mr mw me ac lo
7f0000000000-7f0000021000 rwxp 00000000 00:00 0 
VmFlags: rd wr ex mr mw me
7f0000100000-7f0000121000 rw-s 00000000 00:01 77                         /dev/zero (deleted)
VmFlags: rd wr sh mr mw me ms
7f0000200000-7f0000201000 ---p 00000000 00:00 0                          [anon:a b]
VmFlags: mr mw me
7f0000300000-7f0000301000 rw-p 00000000 00:00 0 
VmFlags: rd wr mr mw me dp
7ffd00104000-7ffd00106000 r-xp 00000000 00:00 0                          [vdso]
VmFlags: rd ex mr mw me de
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
VmFlags: ex
";

    #[test]
    fn private_ones_and_how_they_are_treated() {
        let areas = parse(TEXT).unwrap();
        let told: Vec<_> = areas
            .iter()
            .map(|area| (area.mapping.start, area.when, area.may_be_late))
            .collect();
        let wanted = [
            (0x40_0000, When::Dumped, false),
            (0x100_0000, When::Dumped, false),
            (0x7f00_0000_0000, When::Dumped, true),
            (0x7f00_0020_0000, When::Dumping, true),
        ];
        assert_eq!(told, wanted);
    }

    #[test]
    fn what_a_child_shall_find_empty_does_not_stay() {
        let line = "7f0000200000-7f0000201000 rw-p 00000000 00:00 0 \n";
        let stays = |flags: &str| parse(&format!("{line}VmFlags: {flags}\n")).unwrap()[0].may_stay;
        assert!(stays("rd wr mr mw me ac"));
        assert!(!stays("rd wr mr mw me ac wf"));
        assert!(!stays("rd wr mr mw me ac lo"));
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        assert!(parse("7f00 rw-p\n").is_err());
        assert_eq!(parse("").unwrap(), []);
    }
}
