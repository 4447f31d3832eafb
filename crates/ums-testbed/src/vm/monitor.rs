//! qemu's monitor: a prompt on a socket.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::patience;

/// What the monitor says when it waits for a command.
const PROMPT: &[u8] = b"(qemu) ";

/// Longest answer that is read.
const LONGEST: usize = 1 << 20;

/// The monitor of a running machine.
pub(super) struct Monitor {
    stream: UnixStream,
}

impl Monitor {
    /// Of the machine whose socket this is; `None` where no machine runs.
    ///
    /// # Errors
    /// A monitor that does not come to its prompt.
    pub(super) fn open(directory: &Path, socket: &str) -> Result<Option<Self>> {
        // By way of a descriptor: the path itself may be longer than one of a socket can be.
        let Ok(directory) = std::fs::File::open(directory) else {
            return Ok(None);
        };
        let descriptor = std::os::fd::AsRawFd::as_raw_fd(&directory);
        let Ok(stream) = UnixStream::connect(format!("/proc/self/fd/{descriptor}/{socket}")) else {
            return Ok(None);
        };
        stream.set_read_timeout(Some(patience(10)))?;
        let mut monitor = Self { stream };
        monitor
            .answer()
            .context("the machine's monitor is silent")?;
        Ok(Some(monitor))
    }

    /// Says a command; what was answered, without the command itself.
    ///
    /// # Errors
    /// No answer in time.
    pub(super) fn say(&mut self, command: &str) -> Result<String> {
        self.stream.write_all(format!("{command}\n").as_bytes())?;
        let answer = self
            .answer()
            .with_context(|| format!("`{command}` was not answered"))?;
        Ok(without_echo(&answer))
    }

    /// Says that the machine shall end, and waits until it has.
    ///
    /// # Errors
    /// A machine that goes on.
    pub(super) fn quit(mut self) -> Result<()> {
        // It may end before it has read all of it.
        let _ = self.stream.write_all(b"quit\n");
        let mut rest = [0; 4096];
        loop {
            match self.stream.read(&mut rest) {
                Ok(0) => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return Ok(()),
                Err(error) => return Err(error).context("the machine did not end"),
            }
        }
    }

    fn answer(&mut self) -> Result<String> {
        let mut said = Vec::new();
        let mut part = [0; 4096];
        while !said.ends_with(PROMPT) {
            let count = self.stream.read(&mut part)?;
            ensure!(count > 0, "the machine ended");
            said.extend_from_slice(&part[..count]);
            ensure!(said.len() < LONGEST, "the answer does not end");
        }
        said.truncate(said.len() - PROMPT.len());
        Ok(String::from_utf8_lossy(&said).into_owned())
    }
}

/// The monitor edits the line while it is typed: all of that is before the first line's end.
fn without_echo(answer: &str) -> String {
    let after = answer.split_once('\n').map_or("", |(_, after)| after);
    after.replace('\r', "").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_what_follows_the_line_that_was_typed() {
        let said = "s\u{1b}[K\u{1b}[Dsa\u{1b}[K savevm x\r\nError: no room\r\n";
        assert_eq!(without_echo(said), "Error: no room");
        assert_eq!(without_echo("savevm x\r\n"), "");
    }

    #[test]
    fn a_machine_that_does_not_run_has_no_monitor() {
        let gone = Monitor::open(Path::new("/nonexistent"), "monitor").expect("no fault");
        assert!(gone.is_none());
    }
}
