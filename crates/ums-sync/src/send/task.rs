//! The task that owns the connection: it limits the rate, writes, and listens.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::producer::{Batch, Shared};
use super::{Delivered, QUEUE_DEPTH, SendError, Settings};
use crate::bucket::Bucket;
use crate::frame::{Counts, Digest, Frame};
use crate::link::{LinkError, alive_every, flush, read_frame, write_all, write_frame};

/// Small batches are written together up to this size: each write is at least one TLS record.
const COALESCE_BYTES: usize = 256 * 1024;

/// A batch from this size on is written from where it is.
const LARGE_BYTES: usize = 64 * 1024;

/// The network's rate is measured over at least so many bytes.
const RATE_WINDOW_BYTES: u64 = 1024 * 1024;

/// After a broken write: how long to wait for the destination's own word on it.
const REASON_WAIT: Duration = Duration::from_secs(2);

/// What writers ask for.
#[derive(Debug)]
pub(crate) enum Message {
    Batch(Batch),
    End,
    Abandon(String),
}

pub(super) struct Task {
    shared: Arc<Shared>,
    messages: mpsc::Receiver<Message>,
    settings: Settings,
}

impl Task {
    pub(super) fn new(
        shared: &Arc<Shared>,
        messages: mpsc::Receiver<Message>,
        settings: Settings,
    ) -> Self {
        Self {
            shared: Arc::clone(shared),
            messages,
            settings,
        }
    }

    pub(super) async fn run<S>(mut self, stream: S) -> Result<Delivered, SendError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let outcome = self.drive(stream).await;
        if let Err(error) = &outcome {
            // Before the queue closes, so that every writer finds the reason.
            let _ = self.shared.failure.set(error.clone());
        }
        outcome
    }

    async fn drive<S>(&mut self, stream: S) -> Result<Delivered, SendError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let idle = self.settings.idle;
        let (mut reader, writer) = tokio::io::split(stream);
        let mut output = Output::new(writer, Arc::clone(&self.shared), self.settings.clone());
        let answer = answer(&mut reader, &self.shared, idle);
        tokio::pin!(answer);
        let mut early = None;
        let sent = {
            let writing = output.write_messages(&mut self.messages);
            tokio::pin!(writing);
            tokio::select! {
                biased;
                sent = &mut writing => sent,
                // A failure ends the writing. A confirmation can overtake the last write's own
                // completion; one that comes too soon has the wrong digest.
                answer = &mut answer => {
                    early = Some(answer?);
                    writing.await
                }
            }
        };
        let (counts, digest) = match sent {
            Ok(sent) => sent,
            Err(broken) if early.is_some() => return Err(broken),
            Err(broken) => return Err(word_of_peer(answer, broken).await),
        };
        let confirmed = match early {
            Some(confirmed) => confirmed,
            None => answer.await?,
        };
        if confirmed != digest {
            return Err(SendError::Differs);
        }
        // Everything has been said; a peer that is gone already doesn't change that.
        let _ = tokio::time::timeout(REASON_WAIT, output.writer.shutdown()).await;
        Ok(Delivered {
            digest,
            counts,
            bytes: self.shared.meter.bytes(),
        })
    }
}

/// A write that failed is often the consequence of a failure that the destination has described.
async fn word_of_peer(
    answer: impl Future<Output = Result<Digest, SendError>>,
    broken: SendError,
) -> SendError {
    match tokio::time::timeout(REASON_WAIT, answer).await {
        Ok(Err(described @ SendError::Failed { .. })) => described,
        _ => broken,
    }
}

/// Listens until the destination has said its last word.
async fn answer(
    reader: &mut (impl AsyncRead + Unpin),
    shared: &Shared,
    idle: Duration,
) -> Result<Digest, SendError> {
    let mut payload = Vec::new();
    loop {
        let header = read_frame(reader, &mut payload, idle).await?;
        match Frame::decode(header, &payload).map_err(LinkError::from)? {
            Frame::Alive => {}
            Frame::Settled => shared.settled.send_modify(|count| *count += 1),
            Frame::Delivered { digest } => return Ok(digest),
            Frame::Failed { reason } => {
                return Err(SendError::Failed {
                    reason: reason.to_owned(),
                });
            }
            other => {
                return Err(SendError::Unexpected {
                    frame: other.kind().name(),
                });
            }
        }
    }
}

struct Output<W> {
    writer: W,
    shared: Arc<Shared>,
    settings: Settings,
    began: Instant,
    bucket: Option<Bucket>,
    hasher: blake3::Hasher,
    counts: Counts,
    coalesced: Vec<u8>,
    window: (u64, Duration),
}

impl<W: AsyncWrite + Unpin> Output<W> {
    fn new(writer: W, shared: Arc<Shared>, settings: Settings) -> Self {
        Self {
            writer,
            shared,
            bucket: settings
                .bandwidth
                .map(|rate| Bucket::new(rate, Duration::ZERO)),
            settings,
            began: Instant::now(),
            hasher: blake3::Hasher::new(),
            counts: Counts::default(),
            coalesced: Vec::with_capacity(COALESCE_BYTES),
            window: (0, Duration::ZERO),
        }
    }

    async fn write_messages(
        &mut self,
        messages: &mut mpsc::Receiver<Message>,
    ) -> Result<(Counts, Digest), SendError> {
        let alive_every = alive_every(self.settings.idle);
        let mut waiting = Vec::with_capacity(QUEUE_DEPTH);
        loop {
            match tokio::time::timeout(alive_every, messages.recv_many(&mut waiting, QUEUE_DEPTH))
                .await
            {
                Err(_) => self.put(alive()?).await?,
                Ok(0) => return Err(SendError::Closed),
                Ok(_) => {}
            }
            for message in waiting.drain(..) {
                match message {
                    Message::Batch(batch) => self.put(batch).await?,
                    Message::End => return self.end().await,
                    Message::Abandon(reason) => {
                        self.write_coalesced().await?;
                        let failed = Frame::Failed { reason: &reason };
                        write_frame(&mut self.writer, &failed, self.settings.idle).await?;
                        return Err(SendError::Closed);
                    }
                }
            }
            self.write_coalesced().await?;
            flush(&mut self.writer, self.settings.idle).await?;
        }
    }

    async fn put(&mut self, batch: Batch) -> Result<(), SendError> {
        for digest in &batch.digests {
            self.hasher.update(digest);
        }
        self.counts.frames += batch.digests.len() as u64;
        self.counts.pages += batch.pages;
        self.counts.bytes += batch.bytes.len() as u64;
        if self.coalesced.len() + batch.bytes.len() > COALESCE_BYTES {
            self.write_coalesced().await?;
        }
        if batch.bytes.len() >= LARGE_BYTES {
            self.write_coalesced().await?;
            self.write(&batch.bytes).await?;
        } else {
            self.coalesced.extend_from_slice(&batch.bytes);
        }
        self.shared.pool.give(batch.bytes);
        Ok(())
    }

    async fn write_coalesced(&mut self) -> Result<(), SendError> {
        if self.coalesced.is_empty() {
            return Ok(());
        }
        let mut bytes = std::mem::take(&mut self.coalesced);
        self.write(&bytes).await?;
        bytes.clear();
        self.coalesced = bytes;
        Ok(())
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), SendError> {
        let slice = self
            .bucket
            .as_ref()
            .map_or(bytes.len().max(1), Bucket::slice);
        for part in bytes.chunks(slice) {
            if let Some(bucket) = &mut self.bucket {
                let wait = bucket.take(part.len(), self.began.elapsed());
                tokio::time::sleep(wait).await;
            }
            let begin = Instant::now();
            write_all(&mut self.writer, part, self.settings.idle).await?;
            self.measure(part.len(), begin.elapsed());
        }
        Ok(())
    }

    fn measure(&mut self, bytes: usize, took: Duration) {
        self.shared.meter.add_wire(bytes as u64);
        self.window.0 += bytes as u64;
        self.window.1 += took;
        if self.window.0 < RATE_WINDOW_BYTES {
            return;
        }
        let (bytes, took) = std::mem::take(&mut self.window);
        let rate = bytes as f64 / took.as_secs_f64().max(1e-6);
        let limit = self
            .settings
            .bandwidth
            .map_or(f64::MAX, |limit| limit.get() as f64);
        self.shared
            .link_rate
            .store(rate.min(limit) as u64, Ordering::Relaxed);
    }

    async fn end(&mut self) -> Result<(Counts, Digest), SendError> {
        self.write_coalesced().await?;
        let digest = *self.hasher.finalize().as_bytes();
        let end = Frame::End {
            counts: self.counts,
            digest,
        };
        write_frame(&mut self.writer, &end, self.settings.idle).await?;
        Ok((self.counts, digest))
    }
}

fn alive() -> Result<Batch, SendError> {
    let mut batch = Batch::default();
    batch.push(&Frame::Alive)?;
    Ok(batch)
}
