//! What a migration asks for of packets; [`Inside`] documents each operation.

use std::collections::BTreeSet;
use std::path::Path;
use std::pin::Pin;

use super::{Connections, Flow, Inside, PacketError, Policy, Remembered};

type Pending<'a, T> = Pin<Box<dyn Future<Output = Result<T, PacketError>> + Send + 'a>>;

/// Does what concerns packets in the network namespace that a file stands for.
pub trait Packets: Send + Sync {
    /// What becomes of a service's packets from now on.
    fn direct<'a>(&'a self, netns: &'a Path, policy: Policy) -> Pending<'a, ()>;

    /// Holds what arrives and what leaves, but connections that are winding up.
    fn freeze<'a>(&'a self, netns: &'a Path, closing: &'a BTreeSet<Flow>) -> Pending<'a, ()>;

    /// The connections of a namespace.
    fn connections<'a>(&'a self, netns: &'a Path) -> Pending<'a, Connections>;

    /// Whether datagrams wait in its sockets.
    fn has_unread_datagrams<'a>(&'a self, netns: &'a Path) -> Pending<'a, bool>;

    /// What reached it otherwise than by a connection of its own.
    fn remembered<'a>(&'a self, netns: &'a Path) -> Pending<'a, Remembered>;

    /// Whether a connection that was carried here still lives.
    fn has_carried<'a>(&'a self, netns: &'a Path) -> Pending<'a, bool>;

    /// Has the answers of these connections go back to where they came from; those of `home` never do.
    fn carry<'a>(
        &'a self,
        netns: &'a Path,
        carried: &'a BTreeSet<Flow>,
        home: &'a BTreeSet<Flow>,
    ) -> Pending<'a, ()>;

    /// Leads what is held to a device that is there now.
    fn lead_into<'a>(&'a self, netns: &'a Path, device: &'a str) -> Pending<'a, ()>;

    /// Ends the connections of a frozen service that has moved, without a word.
    fn forget_connections<'a>(&'a self, netns: &'a Path) -> Pending<'a, ()>;
}

impl Packets for Inside {
    fn direct<'a>(&'a self, netns: &'a Path, policy: Policy) -> Pending<'a, ()> {
        Box::pin(Self::direct(self, netns, policy))
    }

    fn freeze<'a>(&'a self, netns: &'a Path, closing: &'a BTreeSet<Flow>) -> Pending<'a, ()> {
        Box::pin(Self::freeze(self, netns, closing))
    }

    fn connections<'a>(&'a self, netns: &'a Path) -> Pending<'a, Connections> {
        Box::pin(Self::connections(self, netns))
    }

    fn has_unread_datagrams<'a>(&'a self, netns: &'a Path) -> Pending<'a, bool> {
        Box::pin(Self::has_unread_datagrams(self, netns))
    }

    fn remembered<'a>(&'a self, netns: &'a Path) -> Pending<'a, Remembered> {
        Box::pin(Self::remembered(self, netns))
    }

    fn has_carried<'a>(&'a self, netns: &'a Path) -> Pending<'a, bool> {
        Box::pin(Self::has_carried(self, netns))
    }

    fn carry<'a>(
        &'a self,
        netns: &'a Path,
        carried: &'a BTreeSet<Flow>,
        home: &'a BTreeSet<Flow>,
    ) -> Pending<'a, ()> {
        Box::pin(Self::carry(self, netns, carried, home))
    }

    fn lead_into<'a>(&'a self, netns: &'a Path, device: &'a str) -> Pending<'a, ()> {
        Box::pin(Self::lead_into(self, netns, device))
    }

    fn forget_connections<'a>(&'a self, netns: &'a Path) -> Pending<'a, ()> {
        Box::pin(Self::forget_connections(self, netns))
    }
}
