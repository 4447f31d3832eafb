//! The devices that a service may use, enforced the same on both layouts of control groups.
//!
//! Version 1 has files for it (kernel `admin-guide/cgroup-v1/devices.rst`). Version 2 has none: a
//! program in the kernel, attached to the group, is asked at each `open` and `mknod` of a device
//! node (bpf(2), `BPF_PROG_TYPE_CGROUP_DEVICE`; kernel `admin-guide/cgroup-v2.rst`, "Device
//! controller"). Both are made here from one list of [`Rule`]s: what isn't in it is denied.

use std::fs;
use std::io;
use std::path::Path;
use std::str::FromStr;

mod program;

/// Kinds of device node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Block,
    Character,
}

/// Making a node; reading; writing: the kernel's `BPF_DEVCG_ACC_*`.
const MAKE: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;

/// What may be done with which devices: a line of the version 1 devices controller, such as
/// `c 1:3 rwm`. Kind `b` or `c`; major and minor number, `*` for any; `r` to read, `w` to write, `m`
/// to make a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    kind: Kind,
    /// `None` for any.
    major: Option<u32>,
    minor: Option<u32>,
    access: u32,
}

/// A line that is no [`Rule`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a device rule such as `c 1:3 rwm`")]
pub struct NotARule(String);

impl FromStr for Rule {
    type Err = NotARule;
    fn from_str(line: &str) -> Result<Self, NotARule> {
        parse(line).ok_or_else(|| NotARule(line.to_owned()))
    }
}

fn parse(line: &str) -> Option<Rule> {
    let mut words = line.split(' ');
    let (kind, numbers, access) = (words.next()?, words.next()?, words.next()?);
    let number = |text: &str| match text {
        "*" => Some(None),
        _ => text.parse().ok().map(Some),
    };
    let (major, minor) = numbers.split_once(':')?;
    let bit = |letter: char| match letter {
        'm' => Some(MAKE),
        'r' => Some(READ),
        'w' => Some(WRITE),
        _ => None,
    };
    let access: Option<u32> = access
        .chars()
        .try_fold(0, |bits, letter| Some(bits | bit(letter)?));
    let rule = Rule {
        kind: match kind {
            "b" => Kind::Block,
            "c" => Kind::Character,
            _ => return None,
        },
        major: number(major)?,
        minor: number(minor)?,
        access: access.filter(|bits| *bits != 0)?,
    };
    words.next().is_none().then_some(rule)
}

/// Reads all lines, or names the first that is no rule.
pub fn rules(lines: &[String]) -> io::Result<Vec<Rule>> {
    let rules: Result<_, NotARule> = lines.iter().map(|line| line.parse()).collect();
    rules.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

/// Lets the group at `dir` of the version 1 devices controller use what `lines` say, and no more.
///
/// # Errors
/// What the kernel answers. The group may be left with nothing allowed then.
pub(crate) fn confine_v1(dir: &Path, lines: &[String]) -> io::Result<()> {
    rules(lines)?;
    fs::write(dir.join("devices.deny"), "a")?;
    for line in lines {
        fs::write(dir.join("devices.allow"), line)?;
    }
    Ok(())
}

/// Lets the group at `dir` of the unified hierarchy use what `lines` say, and no more.
///
/// The program lives as long as the group. If there are others (runc attaches one of its own, the
/// groups above may have some), all of them have to agree, so that another call only adds a
/// program that says the same.
///
/// # Errors
/// What the kernel answers: it may have been built without `CONFIG_CGROUP_BPF`, or not let us.
pub(crate) fn confine_v2(dir: &Path, lines: &[String]) -> io::Result<()> {
    let code = program::assemble(&rules(lines)?);
    let attached = program::load(&code).and_then(|program| {
        let group = fs::File::open(dir)?;
        program::attach(&group, &program)
    });
    attached.map_err(|error| {
        let what = format!("can be attached to {}", dir.display());
        no_filter(&what, &error)
    })
}

/// Whether the kernel takes a filter for the unified hierarchy from us. Changes nothing.
pub(crate) fn probe_v2() -> io::Result<()> {
    let loaded = program::load(&program::assemble(&[]));
    loaded
        .map(drop)
        .map_err(|error| no_filter("can be loaded", &error))
}

fn no_filter(what: &str, error: &io::Error) -> io::Error {
    let text = format!(
        "no device filter {what}: {error}; a service without one could use every device of this \
         host. The kernel must have CONFIG_CGROUP_BPF, and UMS needs CAP_BPF and CAP_NET_ADMIN, or \
         CAP_SYS_ADMIN"
    );
    io::Error::new(error.kind(), text)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_rule_is_read_as_the_kernel_would() {
        let rule: Rule = "c 136:* rw".parse().unwrap();
        assert_eq!(rule.kind, Kind::Character);
        assert_eq!((rule.major, rule.minor), (Some(136), None));
        assert_eq!(rule.access, READ | WRITE);
        for bad in [
            "",
            "a *:* rwm",
            "c 1 rwm",
            "c 1:3",
            "c 1:3 x",
            "c 1:3 ",
            "c 1:3 r w",
            "c -1:3 r",
            "c 1:4294967296 r",
        ] {
            let error = bad.parse::<Rule>().unwrap_err();
            assert!(error.to_string().contains("c 1:3 rwm"), "{bad}: {error}");
        }
    }
}
