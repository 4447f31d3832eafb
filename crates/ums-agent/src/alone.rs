//! One agent for each state directory, run directory and network namespace.
//!
//! Two on one state directory would clear away each other's images and services. Two in one network
//! namespace would empty each other's map of endpoints, which is the namespace's, and take each
//! other's bridge.

use std::io;
use std::os::fd::AsRawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

use anyhow::{Context, bail};
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket};
use ums_api::lock::Lock;

use crate::config::AgentConfig;

/// Name of the abstract socket that stands for a network namespace: such names are the namespace's
/// (network_namespaces(7), unix(7)), and are free again when their process ends.
const NETWORK_NAME: &str = "ums-agent-of-this-network";

/// What this agent has to itself while it lives.
pub(crate) struct Alone {
    _directories: [Lock; 2],
    _network: UnixListener,
}

/// Takes all three, or says who has one of them.
pub(crate) fn take(config: &AgentConfig) -> anyhow::Result<Alone> {
    let no = "this agent does not start";
    let directories = [
        Lock::take(&config.run_dir, "agent-run.lock").context(no)?,
        Lock::take(&config.state_dir, "agent-state.lock").context(no)?,
    ];
    Ok(Alone {
        _directories: directories,
        _network: network(NETWORK_NAME).context(no)?,
    })
}

fn network(name: &str) -> anyhow::Result<UnixListener> {
    let address = SocketAddr::from_abstract_name(name)?;
    match UnixListener::bind_addr(&address) {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            bail!(
                "this network namespace belongs to the agent of another system already ({}): its \
                 endpoints and bridge can't be shared; end that one (its Coordinator first), or \
                 give this system a network namespace of its own",
                owner(name).map_or_else(
                    || "a process that can't be seen".to_owned(),
                    |pid| format!("process {pid}")
                ),
            )
        }
        Err(error) => Err(error).context("the network namespace can't be taken"),
    }
}

/// Who listens there; `None` if it is in another PID namespace, or gone since. Does not wait: nobody
/// accepts these connections, and of those only so many are kept.
fn owner(name: &str) -> Option<i32> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None).ok()?;
    let address = UnixAddr::new_abstract(name.as_bytes()).ok()?;
    connect(socket.as_raw_fd(), &address).ok()?;
    let pid = getsockopt(&socket, PeerCredentials).ok()?.pid();
    (pid > 0).then_some(pid)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_network_namespace_has_one_agent_and_the_other_names_it() {
        let name = format!("ums-agent-test-{}", std::process::id());
        let first = network(&name).unwrap();
        let error = network(&name).unwrap_err().to_string();
        assert!(
            error.contains(&format!("process {}", std::process::id())),
            "{error}"
        );
        drop(first);
        network(&name).unwrap();
    }
}
