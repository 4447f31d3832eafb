//! The mappings of a process that hold private anonymous memory (`/proc/PID/maps`, proc_pid_maps(5)).

use std::io;

use nix::sys::stat::{major, minor};

/// Addresses of one mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mapping {
    pub(crate) start: u64,
    pub(crate) end: u64,
}

/// Mappings of the kernel's own, which have no file either.
const KERNELS: &[&str] = &[
    "[vdso]",
    "[vvar]",
    "[vvar_vclock]",
    "[vsyscall]",
    "[uprobes]",
];
/// The ring of io_setup(2) (`fs/aio.c`): whoever has one may have reads under way.
const AIO_RING: &str = "/[aio]";

/// What a process has mapped.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Maps {
    /// Private anonymous memory.
    pub(super) private: Vec<Mapping>,
    /// What can be executed.
    pub(super) executable: Vec<Mapping>,
    /// Whether it reads asynchronously.
    pub(super) has_aio_ring: bool,
}

/// A text about the memory of a process (`maps`, `smaps`). Names in it may hold any byte.
pub(crate) fn text(pid: i32, name: &str) -> io::Result<String> {
    let bytes = std::fs::read(format!("/proc/{pid}/{name}"))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Takes the text apart.
///
/// # Errors
/// When a line isn't understood: a mapping that was passed over would be missed.
pub(super) fn parse(text: &str) -> io::Result<Maps> {
    let mut maps = Maps::default();
    for line in text.lines() {
        let line = Line::understood(line)?;
        maps.has_aio_ring |= line.name.starts_with(AIO_RING);
        if line.is_private_anonymous() {
            maps.private.push(line.mapping);
        }
        if line.is_executable() && line.name != "[vsyscall]" {
            maps.executable.push(line.mapping);
        }
    }
    // The kernel's code has the instruction that is looked for, and is the smallest.
    maps.executable
        .sort_by_key(|mapping| mapping.end - mapping.start);
    Ok(maps)
}

/// Mappings of files of one device (`st_dev`), with the files' inodes. A line that isn't understood is passed over.
pub(crate) fn of_device(text: &str, device: u64) -> impl Iterator<Item = (Mapping, u64)> {
    let device = format!("{:02x}:{:02x}", major(device), minor(device));
    let lines = text.lines().filter_map(Line::parse);
    let lines = lines.filter(move |line| line.device == device);
    lines.filter_map(|line| Some((line.mapping, line.inode.parse().ok()?)))
}

/// A line of it.
pub(crate) struct Line<'a> {
    pub(crate) mapping: Mapping,
    permissions: &'a str,
    /// Major and minor number, in hexadecimal.
    device: &'a str,
    inode: &'a str,
    name: &'a str,
}

impl<'a> Line<'a> {
    /// Takes it apart; one that isn't understood is an error.
    pub(crate) fn understood(line: &'a str) -> io::Result<Self> {
        let malformed = || io::Error::new(io::ErrorKind::InvalidData, line.to_owned());
        Self::parse(line).ok_or_else(malformed)
    }

    fn parse(line: &'a str) -> Option<Self> {
        // Fields are separated by one blank each; the name is padded, and may hold blanks.
        let mut fields = line.splitn(6, ' ');
        let (start, end) = fields.next()?.split_once('-')?;
        let permissions = fields.next()?;
        let (_offset, device) = (fields.next()?, fields.next()?);
        let inode = fields.next()?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        Some(Self {
            mapping: Mapping {
                start: number(start)?,
                end: number(end)?,
            },
            permissions,
            device,
            inode,
            name: fields.next().unwrap_or_default().trim_start(),
        })
    }

    /// Private, and not the kernel's own.
    pub(crate) fn is_private(&self) -> bool {
        self.permissions.ends_with('p') && !KERNELS.contains(&self.name)
    }

    pub(crate) fn is_shared(&self) -> bool {
        self.permissions.ends_with('s')
    }

    pub(crate) fn has_file(&self) -> bool {
        self.inode != "0" || self.name.starts_with('/')
    }

    pub(crate) fn is_executable(&self) -> bool {
        self.permissions.contains('x')
    }

    fn is_private_anonymous(&self) -> bool {
        self.is_private() && !self.has_file()
    }
}

#[cfg(test)]
mod test {
    use super::*;

    const TEXT: &str = "\
00400000-00401000 r-xp 00000000 fd:01 1234                               /bin/a b
01000000-01021000 rw-p 00000000 00:00 0                                  [heap]
7f0000000000-7f0000021000 ---p 00000000 00:00 0 
7f0000100000-7f0000121000 rw-s 00000000 00:01 77                         /dev/zero (deleted)
7f0000200000-7f0000201000 rw-p 00000000 00:00 0                          [anon:a b]
7f0000300000-7f0000301000 rw-s 00000000 00:10 9                          /[aio] (deleted)
7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0                          [stack]
7ffd00100000-7ffd00104000 r--p 00000000 00:00 0                          [vvar]
7ffd00104000-7ffd00106000 r-xp 00000000 00:00 0                          [vdso]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
";

    #[test]
    fn private_anonymous_ones() {
        let maps = parse(TEXT).unwrap();
        let starts: Vec<u64> = maps.private.iter().map(|mapping| mapping.start).collect();
        let wanted = [
            0x100_0000,
            0x7f00_0000_0000,
            0x7f00_0020_0000,
            0x7ffd_0000_0000,
        ];
        assert_eq!(starts, wanted);
        assert_eq!(maps.private[0].end, 0x102_1000);
        assert!(maps.has_aio_ring);
        let code: Vec<u64> = maps
            .executable
            .iter()
            .map(|mapping| mapping.start)
            .collect();
        assert_eq!(code, [0x40_0000, 0x7ffd_0010_4000]);
    }

    #[test]
    fn those_of_one_device() {
        let of = |device| of_device(TEXT, device).collect::<Vec<_>>();
        let shared = Mapping {
            start: 0x7f00_0010_0000,
            end: 0x7f00_0012_1000,
        };
        assert_eq!(of(nix::sys::stat::makedev(0, 1)), [(shared, 77)]);
        assert_eq!(of(nix::sys::stat::makedev(0xfd, 1)).len(), 1);
        assert_eq!(of(nix::sys::stat::makedev(0xfd, 2)), []);
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        assert!(parse("7f00 rw-p\n").is_err());
        assert!(parse("zz-zz rw-p 0 0 0\n").is_err());
        assert_eq!(parse("").unwrap(), Maps::default());
    }
}
