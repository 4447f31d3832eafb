//! Metadata images: small, and whole in memory at the destination.

use super::SendError;
use super::producer::{Batch, Producer};
use crate::frame::{DATA_MAX, Frame};

/// Sends metadata images from a blocking thread.
pub struct ImageWriter {
    producer: Producer,
}

impl ImageWriter {
    pub(super) fn new(producer: Producer) -> Self {
        Self { producer }
    }

    /// Sends one whole image. Each name can be sent once.
    pub fn image(&self, name: &str, bytes: &[u8]) -> Result<(), SendError> {
        for batch in batches(&self.producer, name, bytes) {
            self.producer.send_blocking(batch?)?;
        }
        Ok(())
    }
}

/// The frames of one image, each made when it is asked for. An empty image is one empty frame.
pub(super) fn batches(
    producer: &Producer,
    name: &str,
    bytes: &[u8],
) -> impl Iterator<Item = Result<Batch, SendError>> {
    let parts = bytes.len().div_ceil(DATA_MAX).max(1);
    (0..parts).map(move |part| {
        let end = bytes.len().min((part + 1) * DATA_MAX);
        let piece = &bytes[part * DATA_MAX..end];
        let mut batch = producer.shared().pool.take_empty();
        let frame = Frame::Image {
            name,
            more: part + 1 < parts,
            bytes: piece,
        };
        frame.encode(&mut batch)?;
        Ok(Batch::single(batch, 0))
    })
}
