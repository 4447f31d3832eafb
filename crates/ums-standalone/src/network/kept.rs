//! What the host's own tools take away from under us, and is put back: a `flush ruleset` (Debian's
//! `nftables.service` makes one whenever it is started) removes our table with everybody's, and `sysctl
//! --system` may switch forwarding off. And what is not ours to change, and cuts clients off: it is told.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use serde_json::Value;
use tokio::sync::mpsc;

use ums_node::packets::{PacketError, has_v6, set};

use super::{BRIDGE, Driver, NetworkError, Table, is_missing, rules};

/// The group of netlink that is told of changes of nftables (`NFNLGRP_NFTABLES`), as a mask.
const NFTABLES_GROUP: u32 = 1 << (7 - 1);

/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_DELTABLE`: a table was removed.
const TABLE_REMOVED: u16 = 10 << 8 | 2;

/// Longer than any message that is looked into; the rest of one is of no interest.
const MESSAGE_BYTES: usize = 8192;

impl Driver {
    /// What the kernel has; where somebody has removed all of it, that is put back first. To be called
    /// while nothing else changes it.
    pub(super) async fn held(&self) -> Result<Table, NetworkError> {
        if let Some(table) = self.kernel_table().await? {
            return Ok(table);
        }
        let Some(text) = self.kept.as_deref().and_then(read) else {
            return Ok(Table::default());
        };
        self.nft(&text, None).await?;
        tracing::warn!(
            "somebody removed all rules of nftables on this host (`flush ruleset`), the services' \
             endpoints among them: they are put back; what was under way may have been cut off"
        );
        Ok(self.kernel_table().await?.unwrap_or_default())
    }

    /// Keeps what the kernel is to have from now on, for [`Driver::put_back`].
    pub(super) fn keep(&self, table: &Table) {
        let Some(path) = self.kept.as_deref() else {
            return;
        };
        let all = table.all();
        let mut text = rules::base(self.network) + &all.text();
        if has_v6() {
            text.push_str(&rules::base_v6(self.network));
            text.push_str(&all.text_v6());
        }
        if let Err(error) = write(path, &text) {
            tracing::warn!(%error, path = %path.display(), "the endpoints can't be kept for a flush");
        }
    }

    /// Nothing is to be put back any more.
    pub(super) fn keep_nothing(&self) {
        if let Some(path) = self.kept.as_deref() {
            // Most often there is none.
            let _ = std::fs::remove_file(path);
        }
    }

    /// Puts back what others have taken away: the table, and that the system forwards.
    pub async fn put_back(&self) -> Result<(), NetworkError> {
        let _changing = self.changing.lock().await;
        self.held().await?;
        if self.has_link(BRIDGE).await? {
            set("net/ipv4/ip_forward", "1")?;
        }
        Ok(())
    }

    /// What cuts clients off from services and is not ours to change, for people.
    pub async fn obstructions(&self) -> Result<Vec<String>, NetworkError> {
        let listing = self.tools.run("nft", &["-j", "list", "ruleset"], "", None);
        let ruleset = serde_json::from_str(&listing.await?);
        let ruleset = ruleset.map_err(|source| PacketError::Unreadable {
            tool: "nft",
            source,
        })?;
        Ok(dropping(&ruleset).collect())
    }

    pub(super) async fn kernel_table(&self) -> Result<Option<Table>, NetworkError> {
        let list = ["-j", "list", "table", "ip", rules::TABLE];
        match self.tools.run("nft", &list, "", None).await {
            Ok(text) => {
                let table = rules::parse(&text);
                Ok(Some(table.map_err(|source| PacketError::Unreadable {
                    tool: "nft",
                    source,
                })?))
            }
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// Chains that drop what is forwarded unless a rule accepts it, and have none that names our bridge.
fn dropping(ruleset: &Value) -> impl Iterator<Item = String> + '_ {
    let objects = || ruleset["nftables"].as_array().into_iter().flatten();
    let chains = objects().map(|object| &object["chain"]);
    let forward = chains.filter(|chain| chain["hook"] == "forward" && chain["policy"] == "drop");
    let bridge = format!("\"{BRIDGE}\"");
    let open = move |chain: &Value| {
        objects().any(|object| {
            let rule = &object["rule"];
            rule["family"] == chain["family"]
                && rule["table"] == chain["table"]
                && rule.to_string().contains(&bridge)
        })
    };
    forward.filter(move |chain| !open(chain)).map(|chain| {
        let word = |name: &str| chain[name].as_str().unwrap_or_default().to_owned();
        let (family, table, name) = (word("family"), word("table"), word("name"));
        format!(
            "the chain `{family} {table} {name}` of nftables drops what this host forwards, and with it \
             what clients and services send each other: `nft insert rule {family} {table} {name} iifname \
             {BRIDGE} accept` and the same with `oifname` let it through"
        )
    })
}

fn read(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    let new = path.with_extension("new");
    std::fs::write(&new, text)?;
    std::fs::rename(&new, path)
}

/// Hears of tables of nftables that are removed, in the network namespace that it was made in.
#[derive(Debug)]
pub struct Removals(mpsc::Receiver<()>);

impl Removals {
    /// Listens from now on, in a thread of its own that goes with the process.
    pub fn listen() -> io::Result<Self> {
        let protocol = SockProtocol::NetlinkNetFilter;
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, NFTABLES_GROUP))?;
        // One that waits to be told says it all.
        let (tell, told) = mpsc::channel(1);
        std::thread::Builder::new()
            .name("nftables".to_owned())
            .spawn(move || hear(&socket, &tell))?;
        Ok(Self(told))
    }

    /// Waits until a table has been removed, or may have been; `None` when nobody tells any more.
    ///
    /// *Cancel safety*: what was removed meanwhile is told the next time.
    pub async fn next(&mut self) -> Option<()> {
        self.0.recv().await
    }
}

/// Tells until nobody listens, or the socket fails.
fn hear(socket: &OwnedFd, tell: &mpsc::Sender<()>) {
    while !tell.is_closed() {
        let removed = match heard(socket.as_raw_fd()) {
            Ok(removed) => removed,
            // More than there is room for: some of it may have been that.
            Err(Errno::ENOBUFS) => true,
            Err(Errno::EINTR) => false,
            Err(error) => {
                tracing::warn!(%error, "removed tables of nftables are not heard of any more");
                return;
            }
        };
        if removed {
            // Full: somebody is told already.
            let _ = tell.try_send(());
        }
    }
}

/// Whether the next datagram tells of a removed table.
fn heard(socket: i32) -> nix::Result<bool> {
    let mut bytes = [0; MESSAGE_BYTES];
    let length = recv(socket, &mut bytes, MsgFlags::empty())?;
    Ok(types(&bytes[..length]).any(|kind| kind == TABLE_REMOVED))
}

/// The types of the messages in a datagram (`netlink(7)`).
fn types(mut bytes: &[u8]) -> impl Iterator<Item = u16> {
    std::iter::from_fn(move || {
        let (length, rest) = bytes.split_first_chunk::<4>()?;
        let kind = rest.first_chunk::<2>()?;
        let length = u32::from_ne_bytes(*length) as usize;
        // Each begins at a multiple of four; one that claims less than its own header ends it.
        let next = length.max(16).next_multiple_of(4);
        bytes = bytes.get(next..).unwrap_or_default();
        Some(u16::from_ne_bytes(*kind))
    })
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_removed_table_is_found_among_other_messages() {
        let message = |kind: u16, length: u32| {
            let mut bytes = length.to_ne_bytes().to_vec();
            bytes.extend(kind.to_ne_bytes());
            bytes.resize(length.next_multiple_of(4) as usize, 0);
            bytes
        };
        let all = [message(10 << 8 | 14, 21), message(TABLE_REMOVED, 20)].concat();
        assert_eq!(
            types(&all).collect::<Vec<_>>(),
            [10 << 8 | 14, TABLE_REMOVED]
        );
        assert_eq!(types(&message(TABLE_REMOVED, 20)[..5]).count(), 0);
    }

    #[test]
    fn chains_that_drop_are_told_unless_they_know_the_bridge() {
        let chain = |policy: &str| {
            serde_json::json!({"chain": {"family": "ip", "table": "filter", "name": "FORWARD",
                "hook": "forward", "policy": policy}})
        };
        let rule = serde_json::json!({"rule": {"family": "ip", "table": "filter", "chain": "FORWARD",
            "expr": [{"match": {"right": "ums0"}}, {"accept": null}]}});
        let told = |objects: &[Value]| {
            let ruleset = serde_json::json!({"nftables": objects});
            dropping(&ruleset).collect::<Vec<_>>()
        };
        assert_eq!(told(&[chain("accept")]), [] as [&str; 0]);
        let [one] = &told(&[chain("drop")])[..] else {
            panic!("one chain drops");
        };
        assert!(one.contains("`ip filter FORWARD`"), "{one}");
        assert_eq!(told(&[chain("drop"), rule]), [] as [&str; 0]);
    }
}
