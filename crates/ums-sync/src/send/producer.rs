//! What every writer has: the queue to the network, buffers, and the reason if it is gone.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::sync::{mpsc, watch};

use super::SendError;
use super::task::Message;
use crate::frame::{Digest, Frame, FrameError};
use crate::meter::Meter;
use crate::pool::Pool;

/// Whole frames, encoded, and what they count for.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) bytes: Vec<u8>,
    /// BLAKE3 of each frame, in order.
    pub(crate) digests: Vec<Digest>,
    pub(crate) pages: u64,
}

impl Batch {
    /// A batch of one frame.
    pub(crate) fn single(bytes: Vec<u8>, pages: u64) -> Self {
        let digests = vec![*blake3::hash(&bytes).as_bytes()];
        Self {
            bytes,
            digests,
            pages,
        }
    }

    /// Appends a frame.
    pub(crate) fn push(&mut self, frame: &Frame<'_>) -> Result<(), FrameError> {
        let begin = self.bytes.len();
        frame.encode(&mut self.bytes)?;
        self.digests
            .push(*blake3::hash(&self.bytes[begin..]).as_bytes());
        Ok(())
    }
}

/// What writers and the task share.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Why the data path is gone; set before the queue is closed.
    pub(super) failure: OnceLock<SendError>,
    pub(crate) pool: Pool,
    pub(crate) meter: Meter,
    pub(super) link_rate: AtomicU64,
    /// How often the destination has said `Settled`.
    pub(super) settled: watch::Sender<u64>,
}

impl Shared {
    /// Bytes per second that the network took lately; 0 until it is known.
    pub(crate) fn link_rate(&self) -> u64 {
        self.link_rate.load(Ordering::Relaxed)
    }
}

/// One writer's way to the network.
#[derive(Debug, Clone)]
pub(crate) struct Producer {
    queue: mpsc::Sender<Message>,
    shared: Arc<Shared>,
}

impl Producer {
    pub(super) fn new(queue: mpsc::Sender<Message>, meter: Meter) -> Self {
        let shared = Arc::new(Shared {
            failure: OnceLock::new(),
            pool: Pool::default(),
            meter,
            link_rate: AtomicU64::new(0),
            settled: watch::Sender::new(0),
        });
        Self { queue, shared }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// How many there are, this one included.
    pub(super) fn writers(&self) -> usize {
        self.queue.strong_count()
    }

    /// Waits while the queue is full.
    pub(crate) fn send_blocking(&self, batch: Batch) -> Result<(), SendError> {
        self.queue
            .blocking_send(Message::Batch(batch))
            .map_err(|_| self.failure())
    }

    pub(super) async fn send(&self, batch: Batch) -> Result<(), SendError> {
        self.send_message(Message::Batch(batch)).await
    }

    pub(super) async fn send_message(&self, message: Message) -> Result<(), SendError> {
        self.queue.send(message).await.map_err(|_| self.failure())
    }

    pub(super) async fn closed(&self) -> SendError {
        self.queue.closed().await;
        self.failure()
    }

    fn failure(&self) -> SendError {
        self.shared
            .failure
            .get()
            .cloned()
            .unwrap_or(SendError::Closed)
    }
}
