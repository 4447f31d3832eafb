//! What the tests of whole streams share: a sink that remembers, and both ends of a connection.
#![allow(dead_code, unreachable_pub, reason = "every test uses a part of it")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};
use ums_core::id::MigrationId;
use ums_sync::Meter;
use ums_sync::frame::PAGE_BYTES;
use ums_sync::receive::{
    self, Block, FileOperation, Limits, ReceiveError, Received, Sink, SinkError,
};
use ums_sync::send::{SendError, Sender, Settings};

pub const IDLE: Duration = Duration::from_secs(20);

/// What arrived, and whether it was finished.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Got {
    pub images: BTreeMap<String, Vec<u8>>,
    pub pages: BTreeMap<(u64, u64), Option<Vec<u8>>>,
    pub absent: Vec<(u64, u64, u32)>,
    pub files: Vec<String>,
    /// How many images there were whenever the source waited.
    pub settled: Vec<usize>,
    pub finished: bool,
}

/// Remembers everything; fails where it is told to.
#[derive(Debug, Default, Clone)]
pub struct Memory {
    pub got: Arc<Mutex<Got>>,
    pub fail_at_page: Option<u64>,
    pub fail_at_finish: bool,
    pub fail_at_settle: bool,
}

impl Memory {
    pub fn got(&self) -> Got {
        self.got.lock().unwrap().clone()
    }
}

impl Sink for Memory {
    fn image(&mut self, name: &str, bytes: Vec<u8>) -> Result<(), SinkError> {
        self.got
            .lock()
            .unwrap()
            .images
            .insert(name.to_owned(), bytes);
        Ok(())
    }

    fn pages(&mut self, block: &Block<'_>) -> Result<(), SinkError> {
        if block.content.is_none() {
            let absent = (block.process, block.address, block.count);
            self.got.lock().unwrap().absent.push(absent);
        }
        for (address, page) in block.pages() {
            if self.fail_at_page.is_some_and(|limit| address >= limit) {
                return Err("the page store is full: 3 MiB are left".into());
            }
            let key = (block.process, address);
            let page = page.map(<[u8]>::to_vec);
            assert!(page.as_ref().is_none_or(|page| page.len() == PAGE_BYTES));
            self.got.lock().unwrap().pages.insert(key, page);
        }
        Ok(())
    }

    fn file(&mut self, operation: &FileOperation<'_>) -> Result<(), SinkError> {
        self.got
            .lock()
            .unwrap()
            .files
            .push(format!("{operation:?}"));
        Ok(())
    }

    fn settle(&mut self) -> Result<(), SinkError> {
        if self.fail_at_settle {
            return Err("the root filesystem is another one".into());
        }
        let mut got = self.got.lock().unwrap();
        let images = got.images.len();
        got.settled.push(images);
        Ok(())
    }

    fn finish(&mut self) -> Result<(), SinkError> {
        if self.fail_at_finish {
            return Err("the images make no sense".into());
        }
        self.got.lock().unwrap().finished = true;
        Ok(())
    }
}

pub fn limits() -> Limits {
    let plenty = 1 << 40;
    Limits {
        memory_bytes_max: plenty,
        file_bytes_max: plenty,
        ..Limits::default()
    }
}

pub fn migration() -> MigrationId {
    MigrationId(uuid::Uuid::from_u128(7))
}

pub fn settings() -> Settings {
    Settings {
        idle: IDLE,
        ..Settings::default()
    }
}

/// Receives one stream, whoever sends it.
pub async fn receive<S: Sink>(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    limits: Limits,
    sink: S,
) -> Result<Received<S>, ReceiveError> {
    receive::accept(stream, IDLE)
        .await?
        .welcome(limits, Meter::default(), sink)
        .await
}

/// A sender whose stream arrives in `sink`.
pub async fn pair<S: Sink>(
    limits: Limits,
    sink: S,
) -> (
    Result<Sender, SendError>,
    tokio::task::JoinHandle<Result<Received<S>, ReceiveError>>,
) {
    let (near, far): (DuplexStream, DuplexStream) = tokio::io::duplex(256 * 1024);
    let receiver = tokio::spawn(receive(far, limits, sink));
    (
        Sender::open(near, migration(), [9; 32], settings()).await,
        receiver,
    )
}

/// All of an error, as a person sees it.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// Bytes that don't compress, the same for the same seed.
pub fn random(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}
