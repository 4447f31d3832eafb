//! Packets between the device, the hold and the tunnel.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use bytes::{Bytes, BytesMut};
use quinn::{Connection, SendDatagramError};

use super::control::EndMode;
use super::core::Core;
use super::fragment::{DATAGRAM_BYTES_MIN, Packer, Unpacker};
use super::quic::CLOSE_UNUSABLE;

/// Packets that are packed together.
const BATCH_PACKETS: usize = 64;

/// Packets are read into pieces of memory of this size: one allocation for some dozen of them.
const PIECE_BYTES: usize = 128 * 1024;

/// Reads packets from the device into the hold; ends only when the device fails.
pub(crate) async fn read(core: Arc<Core>) {
    let longest = usize::from(core.end.mtu);
    let mut piece = BytesMut::new();
    loop {
        core.room().await;
        if piece.capacity() < longest {
            piece = BytesMut::with_capacity(PIECE_BYTES.max(longest));
        }
        piece.resize(longest, 0);
        match core.device.receive(&mut piece).await {
            Ok(length) => {
                let packet = piece.split_to(length.min(longest)).freeze();
                piece.clear();
                core.keep(packet);
            }
            Err(error) => {
                tracing::error!(%error, "the device failed: its namespace has ended, or somebody removed it");
                core.retire();
                return;
            }
        }
    }
}

/// Sends what is in the hold to where the phase says, until the end is retiring.
pub(crate) async fn send(core: Arc<Core>) {
    let mut phases = core.phase.subscribe();
    let mut links = core.link.subscribe();
    let mut packer = Packer::default();
    loop {
        let phase = *phases.borrow_and_update();
        let link = links.borrow_and_update().clone();
        match (phase, link) {
            (EndMode::Retiring, _) => return,
            (EndMode::GivingBack, _) => return give_back(&core),
            (EndMode::Leading, Some(link)) => {
                let batch = core.take(BATCH_PACKETS);
                if !batch.is_empty() {
                    send_batch(&core, &link, &mut packer, batch).await;
                    continue;
                }
            }
            (EndMode::Holding, _) | (EndMode::Leading, None) => {}
        }
        tokio::select! {
            () = core.arrived.notified(), if phase == EndMode::Leading => {}
            _ = phases.changed() => {}
            _ = links.changed() => {}
        }
    }
}

/// Sends packets in order; what could not be sent goes back to the front of the hold.
async fn send_batch(core: &Core, link: &Connection, packer: &mut Packer, batch: Vec<Bytes>) {
    let size = link.max_datagram_size().unwrap_or(0);
    if size < DATAGRAM_BYTES_MIN {
        tracing::error!(size, "the other end takes no datagrams of a usable size");
        core.put_back(batch.into_iter());
        return drop_link(core, link);
    }
    // With each datagram, the first packet of which it has a part.
    let mut datagrams = Vec::with_capacity(batch.len() + batch.len() / 8 + 1);
    let mut first = 0;
    for (number, packet) in batch.iter().enumerate() {
        packer.add(packet, size, |datagram| {
            datagrams.push((first, datagram));
            first = number;
        });
    }
    datagrams.extend(packer.finish().map(|datagram| (first, datagram)));
    for (first, datagram) in datagrams {
        if let Err(error) = link.send_datagram_wait(datagram).await {
            count(core, &batch[..first]);
            core.put_back(batch.into_iter().skip(first));
            if !matches!(error, SendDatagramError::TooLarge) {
                drop_link(core, link);
            }
            // Too large: the path's MTU has become smaller, the next batch is packed for it.
            return;
        }
    }
    count(core, &batch);
}

fn drop_link(core: &Core, link: &Connection) {
    link.close(CLOSE_UNUSABLE, b"unusable");
    core.disconnect(link);
}

fn count(core: &Core, sent: &[Bytes]) {
    add(&core.totals.sent_packets, sent.len());
    add(&core.totals.sent_bytes, sent.iter().map(Bytes::len).sum());
}

/// Writes what is held into the device, for the service that stayed, and also what is still in the
/// device's own queue.
fn give_back(core: &Core) {
    let mut buffer = vec![0; usize::from(core.end.mtu)];
    loop {
        for packet in core.take(usize::MAX) {
            let given = deliver(core, &packet);
            add(&core.totals.given_back, given.into());
        }
        match core.device.try_receive(&mut buffer) {
            Ok(length) => core.keep(Bytes::copy_from_slice(&buffer[..length])),
            Err(_) => break,
        }
    }
    core.retire();
}

/// Writes packets from the tunnel into the device until the connection ends.
pub(crate) async fn receive(core: &Core, link: &Connection) -> quinn::ConnectionError {
    let mut unpacker = Unpacker::default();
    loop {
        let datagram = match link.read_datagram().await {
            Ok(datagram) => datagram,
            Err(error) => return error,
        };
        let before = unpacker.incomplete();
        unpacker.read(datagram, |packet| {
            if deliver(core, &packet) {
                add(&core.totals.received_packets, 1);
                add(&core.totals.received_bytes, packet.len());
            }
        });
        core.totals
            .incomplete
            .fetch_add(unpacker.incomplete() - before, Relaxed);
    }
}

/// Writes one packet into the device, which takes it at once or never.
fn deliver(core: &Core, packet: &[u8]) -> bool {
    loop {
        match core.device.send(packet) {
            Ok(()) => return true,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                tracing::debug!(%error, "the device refused a packet");
                add(&core.totals.refused_by_device, 1);
                return false;
            }
        }
    }
}

fn add(total: &AtomicU64, more: usize) {
    total.fetch_add(more as u64, Relaxed);
}
