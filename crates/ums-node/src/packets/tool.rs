//! Running `ip` and `nft`, here or in a service's network namespace.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::PacketError;

/// These tools take milliseconds; on a loaded machine much more, but never this.
const TOOL_WITHIN: Duration = Duration::from_secs(20);

/// How much of a tool's complaint goes into an error.
const SAID_BYTES_MAX: usize = 2000;

/// Where the tools are.
#[derive(Debug)]
pub struct Tools {
    bin_dir: Option<PathBuf>,
}

impl Tools {
    /// `bin_dir` is where they are looked for before PATH.
    pub fn new(bin_dir: Option<PathBuf>) -> Self {
        Self { bin_dir }
    }

    /// Runs a tool to its end, with `input` on its standard input, and returns what it printed.
    pub async fn run(
        &self,
        tool: &str,
        arguments: &[&str],
        input: &str,
        netns: Option<&Path>,
    ) -> Result<String, PacketError> {
        let mut command = Command::new(self.find(tool));
        command.args(arguments).current_dir("/").kill_on_drop(true);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let shown = || format!("{tool} {}", arguments.join(" "));
        let start = |source| PacketError::Start {
            tool: tool.to_owned(),
            source,
        };
        let child = match netns {
            None => command.spawn().map_err(start)?,
            Some(path) => within(path, move || command.spawn())
                .await?
                .map_err(start)?,
        };
        let ended = timeout(TOOL_WITHIN, finish(child, input)).await;
        let output = match ended {
            Ok(output) => output.map_err(start)?,
            Err(_) => {
                let seconds = TOOL_WITHIN.as_secs();
                return Err(PacketError::TimedOut {
                    command: shown(),
                    seconds,
                });
            }
        };
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let said = said.trim().chars().take(SAID_BYTES_MAX).collect();
            return Err(PacketError::Failed {
                command: shown(),
                said,
            });
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn find(&self, tool: &str) -> PathBuf {
        let given = self.bin_dir.as_ref().map(|directory| directory.join(tool));
        given
            .filter(|path| path.exists())
            .unwrap_or_else(|| tool.into())
    }
}

async fn finish(mut child: Child, input: &str) -> std::io::Result<std::process::Output> {
    if let Some(mut stdin) = child.stdin.take() {
        // A tool that ends without reading it all says why by itself.
        let _ = stdin.write_all(input.as_bytes()).await;
    }
    child.wait_with_output().await
}

/// Calls `action` inside a network namespace, on a thread of its own that ends afterwards: a thread
/// that has changed its namespace must never serve anything else.
pub async fn within<T: Send + 'static>(
    netns: &Path,
    action: impl FnOnce() -> T + Send + 'static,
) -> Result<T, PacketError> {
    let failed = |source| PacketError::Namespace {
        path: netns.to_owned(),
        source,
    };
    let file = File::open(netns).map_err(failed)?;
    let runtime = Handle::current();
    let (done, result) = oneshot::channel();
    std::thread::Builder::new()
        .name("netns".to_owned())
        .spawn(move || {
            let _entered = runtime.enter();
            let entered = setns(file, CloneFlags::CLONE_NEWNET);
            let _ = done.send(entered.map_err(std::io::Error::from).map(|()| action()));
        })
        .map_err(failed)?;
    let result = result
        .await
        .unwrap_or_else(|_| Err(std::io::Error::other("its thread ended")));
    result.map_err(failed)
}
