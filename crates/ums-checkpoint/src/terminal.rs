//! What a terminal that another process has open is set to (`termios(3)`).

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use rustix::termios::{LocalModes, OutputModes, tcgetattr};

/// How a terminal treats what goes through it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Its other end is closed: nothing goes through it any more.
    HungUp,
    /// Bytes as they are.
    Raw,
    /// It collects lines, echoes them, or changes what is written.
    Edits,
}

/// The mode of the terminal behind a descriptor of a process; `None` once that is gone.
pub fn mode(pid: i32, fd: i32) -> Option<Mode> {
    let process = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    let terminal = pidfd_getfd(&process, fd, PidfdGetfdFlags::empty()).ok()?;
    match tcgetattr(&terminal) {
        Err(Errno::IO) => Some(Mode::HungUp),
        Err(_) => None,
        Ok(modes) => {
            let edits = modes
                .local_modes
                .intersects(LocalModes::ICANON | LocalModes::ECHO)
                || modes.output_modes.contains(OutputModes::OPOST);
            Some(if edits { Mode::Edits } else { Mode::Raw })
        }
    }
}

#[cfg(test)]
mod test {
    use std::fs::{File, OpenOptions};
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::OpenOptionsExt;

    use rustix::fs::OFlags;
    use rustix::termios::{OptionalActions, tcsetattr};

    use super::*;

    #[test]
    fn modes_of_a_pseudo_terminal() {
        let master = rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let name = rustix::pty::ptsname(&master, Vec::new()).unwrap();
        let no_tty = OFlags::NOCTTY.bits().cast_signed();
        let slave: File = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(no_tty)
            .open(name.to_str().unwrap())
            .unwrap();
        let (pid, fd) = (std::process::id().cast_signed(), slave.as_raw_fd());
        assert_eq!(mode(pid, fd), Some(Mode::Edits));
        let mut modes = tcgetattr(&slave).unwrap();
        modes.make_raw();
        tcsetattr(&slave, OptionalActions::Now, &modes).unwrap();
        assert_eq!(mode(pid, fd), Some(Mode::Raw));
        drop(master);
        assert_eq!(mode(pid, fd), Some(Mode::HungUp));
        assert_eq!(mode(pid, i32::MAX), None);
    }
}
