//! What comes from CRIU, from a keeper, and of a checkpoint from a peer.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, send, socketpair};
use prost::Message;
use ums_checkpoint::criu::page_server::{self, PAGE_LEN};
use ums_checkpoint::criu::rpc;
use ums_checkpoint::keeper::protocol::{CheckpointInfo, KeeperConfig, Reply, Request};
use ums_checkpoint::memory_dir::MemoryDir;
use ums_checkpoint::message;
use ums_checkpoint::store::{PageStore, index};
use ums_node::destination::keep_pages;
use ums_sync::receive::{Block, FileOperation, Sink, SinkError};

use crate::stream::{limits, receive};

/// A stream's pages put into the store: nothing of the index lies outside of it.
pub(crate) fn pages(data: &[u8]) -> bool {
    // A tmpfs needs root; who has not root has this target read nothing.
    let Ok(images) = MemoryDir::new(16 << 20) else {
        return false;
    };
    let store = PageStore::new(limits().memory_bytes_max, true).expect("memory");
    let Ok(received) = receive(data, Stored { store, images }) else {
        return false;
    };
    let Stored { store, images } = received.sink;
    let Ok(stored) = store.finish(&images) else {
        return false;
    };
    for extent in stored.index.values().flatten() {
        let bytes = extent.pages.checked_mul(PAGE_LEN as u64).expect("fits");
        assert!(extent.address.checked_add(bytes).is_some());
        let end = extent.offset.checked_add(bytes).expect("fits");
        assert!(end <= stored.lazy_bytes);
    }
    true
}

struct Stored {
    store: PageStore,
    images: MemoryDir,
}

impl Sink for Stored {
    fn image(&mut self, name: &str, bytes: Vec<u8>) -> Result<(), SinkError> {
        Ok(self.images.write(name, &bytes)?)
    }

    fn pages(&mut self, block: &Block<'_>) -> Result<(), SinkError> {
        Ok(keep_pages(&mut self.store, &self.images, block)?)
    }

    fn file(&mut self, _: &FileOperation<'_>) -> Result<(), SinkError> {
        Ok(())
    }

    fn finish(&mut self) -> Result<(), SinkError> {
        Ok(())
    }
}

/// CRIU's page stream. The first byte says how long CRIU's first command is.
pub(crate) fn page_server(data: &[u8]) -> bool {
    let Some((layout, input)) = data.split_first() else {
        return false;
    };
    let first = if layout & 1 == 0 { 24 } else { 32 };
    let mut criu = Criu { first, input };
    let mut page = [0; PAGE_LEN];
    let served = page_server::serve(
        &mut criu,
        || {},
        |run, stream| {
            for _ in 0..run.pages {
                stream.read_exact(&mut page)?;
            }
            Ok(())
        },
    );
    served.is_ok()
}

struct Criu<'a> {
    first: usize,
    input: &'a [u8],
}

impl Read for Criu<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let at_most = match std::mem::take(&mut self.first) {
            0 => into.len(),
            first => first.min(into.len()),
        };
        self.input.read(&mut into[..at_most])
    }
}

impl Write for Criu<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// CRIU's answers, and what a checkpoint says of itself.
pub(crate) fn criu(data: &[u8]) -> bool {
    let response = rpc::Response::decode(data);
    if let Ok(response) = &response {
        let again = rpc::Response::decode(&response.encode_to_vec()[..]);
        assert_eq!(again.as_ref(), Ok(response));
    }
    let info = serde_json::from_slice::<CheckpointInfo>(data);
    let index = index::decode(data);
    if let Ok(index) = &index {
        assert_eq!(index::decode(&index::encode(index)).as_ref(), Ok(index));
    }
    response.is_ok() || info.is_ok() || index.is_ok()
}

/// Messages between an agent and a keeper, over their kind of socket.
pub(crate) fn keeper(data: &[u8]) -> bool {
    let config = serde_json::from_slice::<KeeperConfig>(data).is_ok();
    let request = arrives::<Request>(data);
    let reply = arrives::<Reply>(data);
    config || request || reply
}

fn arrives<T: serde::de::DeserializeOwned>(data: &[u8]) -> bool {
    let flags = SockFlag::SOCK_CLOEXEC;
    let pair = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags);
    let (theirs, ours) = pair.expect("a socket pair");
    // What the kernel does not take as one packet, nobody can send.
    if send(theirs.as_raw_fd(), data, MsgFlags::MSG_NOSIGNAL).is_err() {
        return false;
    }
    matches!(message::receive::<T>(ours.as_fd()), Ok(Some(_)))
}
