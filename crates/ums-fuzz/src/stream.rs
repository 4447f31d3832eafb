//! The data path: frames by themselves, and whole streams through the receiver.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use ums_sync::Meter;
use ums_sync::frame::{
    BLOCK_PAGES, Content, Counts, Frame, HEADER_LEN, Header, Hello, Kind, PAGE_BYTES,
};
use ums_sync::receive::{
    self, Block, FileOperation, Limits, ReceiveError, Received, Sink, SinkError,
};

/// Nothing waits: the whole input is there.
const IDLE: Duration = Duration::from_secs(60);

/// Memory and files that a stream may bring, bytes: small, so that the bounds are met.
const BYTES_MAX: u64 = 4 << 20;

/// What a whole stream may bring.
pub(crate) fn limits() -> Limits {
    Limits {
        memory_bytes_max: BYTES_MAX,
        file_bytes_max: BYTES_MAX,
        entries_max: 1000,
        image_bytes_max: 1 << 20,
        images_max: 16,
    }
}

/// Frames, one after the other: each that is read must be written as it was.
pub(crate) fn frames(data: &[u8]) -> bool {
    let (walked, rest) = walk(data, |_, frame, bytes| {
        let mut again = Vec::new();
        frame
            .encode(&mut again)
            .expect("what was read can be written");
        assert_eq!(again, bytes, "{frame:?}");
    });
    walked > 0 && rest == 0
}

/// A whole stream, the sink of which checks what it is promised.
pub(crate) fn stream(data: &[u8]) -> bool {
    let received = receive(data, Checked::default());
    if let Ok(received) = &received {
        assert!(received.sink.finished);
        assert!(received.bytes.memory <= BYTES_MAX && received.bytes.filesystem <= BYTES_MAX);
    }
    received.is_ok()
}

/// Runs the frames in `data` through the receiver, between a good opening and, if they are whole
/// frames, a true end, so that not everything fails at the digest.
pub(crate) fn receive<S: Sink>(data: &[u8], sink: S) -> Result<Received<S>, ReceiveError> {
    thread_local! {
        static RUNTIME: Runtime = Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("a runtime");
    }
    let input = opened_and_ended(data);
    let stream = tokio::io::join(&input[..], tokio::io::sink());
    let received = RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let pending = receive::accept(stream, IDLE).await?;
            pending.welcome(limits(), Meter::default(), sink).await
        })
    });
    let panicked = matches!(received, Err(ReceiveError::Thread));
    assert!(!panicked, "the receiver's thread panicked");
    received
}

fn opened_and_ended(data: &[u8]) -> Vec<u8> {
    let hello = Hello {
        version_min: 1,
        version_max: 1,
        migration: Default::default(),
        permit: [7; 32],
    };
    let mut input = Vec::new();
    let opened = Frame::Hello(hello).encode(&mut input);
    opened.expect("a good frame");
    input.extend_from_slice(data);
    let (mut counts, mut digest) = (Counts::default(), blake3::Hasher::new());
    let (_, rest) = walk(data, |_, frame, bytes| {
        counts.frames += 1;
        counts.bytes += bytes.len() as u64;
        digest.update(blake3::hash(bytes).as_bytes());
        if let Frame::Pages(pages) = frame
            && pages.content != Content::Absent
        {
            counts.pages += u64::from(pages.count);
        }
    });
    if rest == 0 {
        let digest = *digest.finalize().as_bytes();
        let ended = Frame::End { counts, digest }.encode(&mut input);
        ended.expect("a good frame");
    }
    input
}

/// Goes over whole frames; says how many there were, and how many bytes were left.
fn walk(mut data: &[u8], mut each: impl FnMut(Header, &Frame<'_>, &[u8])) -> (usize, usize) {
    let mut count = 0;
    while let Some((head, rest)) = data.split_first_chunk::<HEADER_LEN>() {
        let Ok(header) = Header::decode(*head) else {
            break;
        };
        let Some(payload) = rest.get(..header.length) else {
            break;
        };
        let Ok(frame) = Frame::decode(header, payload) else {
            break;
        };
        let (bytes, rest) = data.split_at(HEADER_LEN + header.length);
        each(header, &frame, bytes);
        (data, count) = (rest, count + 1);
    }
    (count, data.len())
}

/// Holds the receiver to what [`Sink`] promises.
#[derive(Default)]
struct Checked {
    images: BTreeSet<String>,
    in_file: bool,
    finished: bool,
}

impl Sink for Checked {
    fn image(&mut self, name: &str, _: Vec<u8>) -> Result<(), SinkError> {
        assert!(!self.finished);
        assert!(!name.is_empty() && !name.contains(['/', '\0']) && !name.starts_with('.'));
        assert!(self.images.insert(name.to_owned()), "{name} came twice");
        Ok(())
    }

    fn pages(&mut self, block: &Block<'_>) -> Result<(), SinkError> {
        assert!(!self.finished);
        let length = u64::from(block.count) * PAGE_BYTES as u64;
        assert!(block.address.checked_add(length).is_some());
        if let Some(content) = block.content {
            assert!(block.count as usize <= BLOCK_PAGES);
            let present = content.present.count_ones() as usize;
            assert_eq!(content.bytes.len(), present * PAGE_BYTES);
            assert_eq!(block.pages().count(), block.count as usize);
        }
        for (_, page) in block.pages() {
            assert!(page.is_none_or(|page| page.len() == PAGE_BYTES));
        }
        Ok(())
    }

    fn file(&mut self, operation: &FileOperation<'_>) -> Result<(), SinkError> {
        assert!(!self.finished);
        let inside = |path: &[u8]| {
            let mut names = path.split(|byte| *byte == b'/');
            path.is_empty() || names.all(|name| !matches!(name, b"" | b"." | b".."))
        };
        match operation {
            FileOperation::Entry(entry) => {
                assert!(!self.in_file && inside(entry.path.as_bytes()));
                self.in_file = entry.kind == Kind::File;
            }
            FileOperation::Data { offset, bytes } => {
                assert!(self.in_file);
                assert!(offset.checked_add(bytes.len() as u64).is_some());
            }
            FileOperation::End { .. } => assert!(std::mem::take(&mut self.in_file)),
            FileOperation::Remove { path, .. } => {
                assert!(!self.in_file && inside(path.as_bytes()));
            }
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), SinkError> {
        assert!(!self.in_file && !self.finished);
        self.finished = true;
        Ok(())
    }
}
