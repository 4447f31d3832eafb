//! Sockets may be bound to addresses that are not there: by IP_FREEBIND or IP_TRANSPARENT (ip(7)), or because
//! the address has gone since. CRIU binds those of IPv4 before it sets the options again (its `inet_bind`;
//! those of IPv6 it binds with IP_FREEBIND). So while it does, the service's network namespace lets any
//! address be bound (`net.ipv4.ip_nonlocal_bind`); nothing of the service runs meanwhile.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::sched::{CloneFlags, setns};

/// The setting, of the network namespace that the reading thread is in.
const SETTING: &str = "/proc/sys/net/ipv4/ip_nonlocal_bind";

/// While it lives any address can be bound in a network namespace.
#[derive(Debug)]
pub(super) struct AnyAddress {
    netns: OwnedFd,
    before: Vec<u8>,
}

impl AnyAddress {
    /// Allows it, until it is dropped.
    ///
    /// # Errors
    /// The namespace can't be entered, or the setting can't be written.
    pub(super) fn allow(netns: BorrowedFd<'_>) -> io::Result<Self> {
        let netns = netns.try_clone_to_owned()?;
        let change = || {
            let before = fs::read(SETTING)?;
            fs::write(SETTING, "1")?;
            Ok(before)
        };
        let before = within(&netns, change)?;
        Ok(Self { netns, before })
    }
}

impl Drop for AnyAddress {
    fn drop(&mut self) {
        if let Err(error) = within(&self.netns, || fs::write(SETTING, &self.before)) {
            tracing::warn!(%error, "the service's network lets any address be bound");
        }
    }
}

/// Does it in a thread of its own: the namespace is a thread's, and this process stays where it is.
fn within<T: Send>(netns: &OwnedFd, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            setns(netns.as_fd(), CloneFlags::CLONE_NEWNET)?;
            work()
        });
        let gone = || io::Error::other("network namespace thread");
        thread.join().map_err(|_| gone())?
    })
}

#[cfg(test)]
mod test {
    use std::fs::File;
    use std::net::UdpSocket;
    use std::process::Command;

    use nix::sched::unshare;

    use super::*;

    #[test]
    fn any_address_can_be_bound_meanwhile() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED nonlocal: needs root");
            return;
        }
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        // Where there is no address at all the kernel lets any be bound.
        let up = Command::new("ip")
            .args(["link", "set", "lo", "up"])
            .status();
        assert!(up.unwrap().success());
        let netns = File::open("/proc/thread-self/ns/net").unwrap();
        let binds = || UdpSocket::bind("198.51.100.7:0").is_ok();
        assert!(!binds());
        let allowed = AnyAddress::allow(netns.as_fd()).unwrap();
        assert!(binds());
        drop(allowed);
        assert!(!binds());
    }
}
