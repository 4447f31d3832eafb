//! Starts the Migration Interface when nobody answers at its socket. It is not a child to be kept:
//! it outlives the Coordinator, and one that is there is used as it is.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use ums_api::http::ClientError;

use crate::config::AgentCommand;
use crate::shared::Shared;

/// Period of looking whether it is there.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Pause after a start, so that one that ends at once is not started over and over in a moment.
const START_PAUSE: Duration = Duration::from_secs(3);

/// Keeps an agent running, for ever.
pub(crate) async fn keep(shared: Arc<Shared>, command: AgentCommand) {
    loop {
        if matches!(
            shared.agents.node().migrations().await,
            Err(ClientError::Connect { .. })
        ) {
            match start(&command) {
                Ok(()) => tracing::info!(program = %command.program.display(), "agent started"),
                Err(error) => {
                    tracing::error!(program = %command.program.display(), %error, "the agent can't be started");
                }
            }
            tokio::time::sleep(START_PAUSE).await;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn start(command: &AgentCommand) -> std::io::Result<()> {
    let (out, err) = match &command.log {
        Some(path) => {
            let file = File::options().create(true).append(true).open(path)?;
            (Stdio::from(file.try_clone()?), Stdio::from(file))
        }
        None => (Stdio::null(), Stdio::null()),
    };
    let mut child = Command::new(&command.program)
        .args(&command.args)
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        // Signals to the Coordinator's terminal or group are not meant for it.
        .process_group(0)
        .spawn()?;
    // A thread waits for it, so that it leaves no zombie; it ends with the agent or with us.
    let log = command.log.clone();
    std::thread::spawn(move || match child.wait() {
        Ok(status) if !status.success() => {
            // One that still loads answers nobody yet: another one finds that, and ends.
            let log = log.as_deref().unwrap_or(Path::new("no log"));
            tracing::warn!(%status, log = %log.display(), "an agent has ended; its log says why");
        }
        _ => {}
    });
    Ok(())
}
