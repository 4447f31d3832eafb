//! Choosing among policies that a namespace has, without a program.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::spawn_blocking;
use ums_checkpoint::nf_tables::Socket;

use super::Policy;
use super::inside::choose;

/// How long a socket is kept for the next change: from the first packet that a migration holds to the last freeze, or
/// from the restore to the commit. It keeps its namespace in being.
const KEPT_FOR: Duration = Duration::from_secs(2);
/// Sockets that are kept at most: one for each migration that has its packets in hand.
const KEPT_MAX: usize = 64;

/// Changes policies by sockets that it keeps for a moment: closing one takes the kernel as long as a program.
#[derive(Debug, Default)]
pub(super) struct Chooser(Arc<Sockets>);

/// By the inode of their namespace, which nobody else has while they live.
type Sockets = Mutex<BTreeMap<u64, Kept>>;

#[derive(Debug)]
struct Kept {
    socket: Socket,
    uses: u64,
}

impl Chooser {
    /// Puts a policy in force in a namespace that has the rules of all; `afresh` forgets which connections were
    /// winding up.
    ///
    /// # Errors
    /// Nothing was changed: the namespace has not these rules, or the kernel refuses.
    pub(super) async fn choose(
        &self,
        netns: &Path,
        policy: Policy,
        afresh: bool,
    ) -> io::Result<()> {
        let (kept, netns) = (Arc::clone(&self.0), netns.to_owned());
        let chosen = spawn_blocking(move || choose_now(&kept, &netns, policy, afresh));
        let (namespace, use_of) = chosen.await.map_err(io::Error::other)??;
        let kept = Arc::clone(&self.0);
        tokio::spawn(async move {
            tokio::time::sleep(KEPT_FOR).await;
            // Where closing it may take its time.
            let closed = spawn_blocking(move || let_go(&kept, namespace, use_of));
            if let Err(error) = closed.await {
                tracing::warn!(%error, "a socket for rules stays open");
            }
        });
        Ok(())
    }
}

/// Which namespace it was, and which use of its socket.
fn choose_now(
    kept: &Sockets,
    netns: &Path,
    policy: Policy,
    afresh: bool,
) -> io::Result<(u64, u64)> {
    let file = File::open(netns)?;
    let namespace = file.metadata()?.ino();
    let before = lock(kept).remove(&namespace);
    let (socket, uses) = match before {
        Some(Kept { socket, uses }) => (socket, uses),
        None => (Socket::in_namespace(file.as_fd())?, 0),
    };
    socket.change(&choose(policy, afresh))?;
    let uses = uses + 1;
    let mut sockets = lock(kept);
    let other = match sockets.len() < KEPT_MAX {
        true => sockets.insert(namespace, Kept { socket, uses }),
        false => Some(Kept { socket, uses }),
    };
    // Closing one takes its time, for which nobody else shall wait.
    drop(sockets);
    drop(other);
    Ok((namespace, uses))
}

/// Closes the socket of a namespace if it was not used since.
fn let_go(kept: &Sockets, namespace: u64, use_of: u64) {
    let mut sockets = lock(kept);
    let unused = sockets
        .get(&namespace)
        .is_some_and(|kept| kept.uses == use_of);
    let unused = unused.then(|| sockets.remove(&namespace)).flatten();
    drop(sockets);
    drop(unused);
}

fn lock(kept: &Sockets) -> MutexGuard<'_, BTreeMap<u64, Kept>> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}
