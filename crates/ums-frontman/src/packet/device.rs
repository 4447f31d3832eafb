//! TUN devices inside a service's network namespace.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};
use tokio::io::Interest;
use tokio::net::unix::pipe;
use tun_rs::{DeviceBuilder, Layer};

/// A device that can't be made.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The namespace can't be entered.
    #[error("cannot enter the network namespace {}", .path.display())]
    Namespace {
        /// Where it was said to be.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel refused the device.
    #[error("cannot make the device {name}; is /dev/net/tun there, and the name free?")]
    Make {
        /// Its name.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A device that is removed is not readable: it has an error.
const READABLE_OR_REMOVED: Interest = Interest::READABLE.add(Interest::ERROR);

/// A device that is up, and the namespace that it is in.
#[derive(Debug)]
pub(crate) struct Device {
    io: File,
    /// Tells when a packet can be read: to wait, a TUN device is like a pipe.
    arrivals: pipe::Receiver,
    /// Keeps the namespace, which the device alone doesn't.
    _namespace: OwnedFd,
}

impl Device {
    /// One that was [made](make). Called inside a runtime.
    pub(crate) fn open(device: OwnedFd, namespace: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&device, true)?;
        let io = File::from(device);
        Ok(Self {
            arrivals: pipe::Receiver::from_file_unchecked(io.try_clone()?)?,
            io,
            _namespace: namespace,
        })
    }

    /// Reads a packet when there is one. A device that is removed is an error.
    pub(crate) async fn receive(&self, packet: &mut [u8]) -> io::Result<usize> {
        loop {
            let ready = self.arrivals.ready(READABLE_OR_REMOVED).await?;
            if ready.is_error() {
                return Err(self.try_receive(packet).err().unwrap_or_else(gone));
            }
            match self.arrivals.try_read(packet) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return read,
            }
        }
    }

    /// Reads a packet if there is one.
    pub(crate) fn try_receive(&self, packet: &mut [u8]) -> io::Result<usize> {
        (&self.io).read(packet)
    }

    /// Writes a packet, which the device takes at once or never.
    pub(crate) fn send(&self, packet: &[u8]) -> io::Result<()> {
        (&self.io).write(packet).map(drop)
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "the device is gone")
}

/// Makes a device without an address and brings it up. Returns it, and its namespace.
///
/// The device disappears with the last descriptor of it.
pub(crate) fn make(
    namespace: &Path,
    name: &str,
    mtu: u16,
) -> Result<(OwnedFd, OwnedFd), DeviceError> {
    let enter = |source| DeviceError::Namespace {
        path: namespace.to_owned(),
        source,
    };
    let make = |source| DeviceError::Make {
        name: name.to_owned(),
        source,
    };
    let file = File::open(namespace).map_err(enter)?;
    // A thread that has changed its namespace must never serve anything else: it ends here.
    let made = std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            setns(&file, CloneFlags::CLONE_NEWNET).map_err(|error| enter(error.into()))?;
            make_here(name, mtu).map_err(make)
        });
        let ended = || make(io::Error::other("its thread ended"));
        inside.join().unwrap_or_else(|_| Err(ended()))
    })?;
    Ok((made, file.into()))
}

fn make_here(name: &str, mtu: u16) -> io::Result<OwnedFd> {
    let builder = DeviceBuilder::new().name(name).layer(Layer::L3).mtu(mtu);
    let device = builder.enable(false).build_sync()?;
    // No packets of the kernel's own: they would be held and led among the service's.
    set(name, "ipv6", "addr_gen_mode", "1")?;
    // What comes out bears the service's own address, and came in by another way.
    set(name, "ipv4", "accept_local", "1")?;
    set(name, "ipv4", "rp_filter", "0")?;
    device.enabled(true)?;
    device.as_fd().try_clone_to_owned()
}

/// Sets the device's kernel parameter; one that this kernel hasn't got needs no setting.
fn set(device: &str, family: &str, parameter: &str, value: &str) -> io::Result<()> {
    let path = format!("/proc/sys/net/{family}/conf/{device}/{parameter}");
    match std::fs::write(path, value) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
