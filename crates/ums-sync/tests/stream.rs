//! Whole streams from a sender to a sink, and what happens when they are not whole.

mod common;

use std::io::Read;
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use common::{Memory, chain, limits, migration, pair, random, receive, settings};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use ums_sync::frame::{Counts, Frame, HEADER_LEN, Header, PAGE_BYTES};
use ums_sync::receive::{Limits, ReceiveError};
use ums_sync::send::{PageWriter, SendError, Sender, Settings};

const PAGE: u64 = PAGE_BYTES as u64;

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// Random, compressible and zero pages in turn.
fn memory(pages: usize) -> Vec<u8> {
    let mut bytes = random(1, pages * PAGE_BYTES);
    for (at, page) in bytes.chunks_mut(PAGE_BYTES).enumerate() {
        match at % 200 {
            0..70 => {}
            70..150 => page.fill(at as u8 | 1),
            _ => page.fill(0),
        }
    }
    bytes
}

async fn write(mut writer: PageWriter, process: u64, address: u64, data: Vec<u8>) {
    blocking(move || writer.write(process, address, 4, &data))
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_arrives_and_both_sides_agree() {
    let sink = Memory::default();
    let (sender, receiver) = pair(limits(), sink.clone()).await;
    let sender = sender.unwrap();
    let data = memory(1000);
    let large = random(2, 700_000);
    sender.image("core-1.img", b"small").await.unwrap();
    sender.image("empty.img", b"").await.unwrap();
    let images = sender.images();
    let copy = large.clone();
    blocking(move || images.image("pagemap-1.img", &copy))
        .await
        .unwrap();
    write(sender.pages(), 0x1_0000_002a, 0x7000_0000, data.clone()).await;
    let mut pages = sender.pages();
    blocking(move || pages.absent(3, 0, 0, 1_000_000))
        .await
        .unwrap();
    let delivered = sender.finish().await.unwrap();
    let received = receiver.await.unwrap().unwrap();

    assert_eq!(delivered.digest, received.digest);
    assert_eq!(delivered.counts, received.counts);
    assert_eq!(delivered.counts.pages, 1000);
    assert_eq!(delivered.bytes.memory, 1000 * PAGE);
    assert_eq!(received.bytes.memory, 1000 * PAGE);
    // Zero pages are not carried, and pages that compress take less.
    assert!(
        delivered.counts.bytes < 1_000_000 + 450 * PAGE,
        "{:?}",
        delivered.counts
    );
    let got = sink.got();
    assert!(got.finished);
    assert_eq!(got.absent, [(3, 0, 1_000_000)]);
    assert_eq!(got.images["core-1.img"], b"small");
    assert_eq!(got.images["empty.img"], b"");
    assert_eq!(got.images["pagemap-1.img"], large);
    assert_eq!(got.pages.len(), 1000);
    for (at, page) in data.chunks(PAGE_BYTES).enumerate() {
        let arrived = &got.pages[&(0x1_0000_002a, 0x7000_0000 + at as u64 * PAGE)];
        match arrived {
            Some(bytes) => assert_eq!(bytes, page),
            None => assert!(page.iter().all(|byte| *byte == 0)),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_on_several_threads_share_one_stream() {
    let sink = Memory::default();
    let (sender, receiver) = pair(limits(), sink.clone()).await;
    let sender = sender.unwrap();
    let writers = (1..4).map(|process| {
        let writer = sender.pages();
        tokio::spawn(write(writer, process, 0, random(process, 300 * PAGE_BYTES)))
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    sender.finish().await.unwrap();
    receiver.await.unwrap().unwrap();
    let got = sink.got();
    for process in 1..4 {
        for (at, page) in random(process, 300 * PAGE_BYTES)
            .chunks(PAGE_BYTES)
            .enumerate()
        {
            assert_eq!(
                got.pages[&(process, at as u64 * PAGE)].as_deref(),
                Some(page)
            );
        }
    }
}

#[tokio::test]
async fn a_wrong_permit_is_refused_in_the_destinations_words() {
    let (near, far) = tokio::io::duplex(4096);
    let refusing = tokio::spawn(async move {
        let pending = ums_sync::receive::accept(far, common::IDLE).await.unwrap();
        assert_eq!(pending.migration(), migration());
        assert_eq!(pending.permit(), [9; 32]);
        pending.refuse("the permit was used before").await.unwrap();
    });
    let refused = Sender::open(near, migration(), [9; 32], settings())
        .await
        .err()
        .unwrap();
    assert!(matches!(&refused, SendError::Refused { reason } if reason.contains("used before")));
    refusing.await.unwrap();
}

#[tokio::test]
async fn another_version_is_refused_on_both_sides() {
    let (mut near, far) = tokio::io::duplex(4096);
    let receiver = tokio::spawn(receive(far, limits(), Memory::default()));
    let hello = ums_sync::frame::Hello {
        version_min: 7,
        version_max: 9,
        migration: migration().0,
        permit: [0; 32],
    };
    let mut bytes = Vec::new();
    Frame::Hello(hello).encode(&mut bytes).unwrap();
    near.write_all(&bytes).await.unwrap();
    let mut answer = Vec::new();
    near.read_to_end(&mut answer).await.unwrap();
    let header = Header::decode(answer[..HEADER_LEN].try_into().unwrap()).unwrap();
    let answer = Frame::decode(header, &answer[HEADER_LEN..]).unwrap();
    assert!(matches!(answer, Frame::Refused { reason } if reason.contains("(7, 9)")));
    assert!(matches!(
        receiver.await.unwrap(),
        Err(ReceiveError::Version { theirs: (7, 9) })
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sinks_failure_reaches_every_writer() {
    let sink = Memory {
        fail_at_page: Some(500 * PAGE),
        ..Memory::default()
    };
    let (sender, receiver) = pair(limits(), sink.clone()).await;
    let sender = sender.unwrap();
    let mut writer = sender.pages();
    // Far more than all buffers hold: the failure comes while pages are being written.
    let failed = blocking(move || {
        let page = random(3, 64 * PAGE_BYTES);
        (0..10_000_u64).find_map(|at| writer.write(1, at * 64 * PAGE, 0, &page).err())
    });
    let failed = failed.await.expect("the sink fails");
    assert!(matches!(&failed, SendError::Failed { reason } if reason.contains("3 MiB are left")));
    let failed = sender.failed().await;
    assert!(chain(&failed).contains("3 MiB are left"));
    assert!(chain(&sender.finish().await.unwrap_err()).contains("3 MiB are left"));
    let error = receiver.await.unwrap().unwrap_err();
    assert!(chain(&error).contains("3 MiB are left"), "{error}");
    assert!(!sink.got().finished);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_at_the_very_end_is_no_delivery() {
    let sink = Memory {
        fail_at_finish: true,
        ..Memory::default()
    };
    let (sender, receiver) = pair(limits(), sink).await;
    let error = sender.unwrap().finish().await.unwrap_err();
    assert!(
        chain(&error).contains("the images make no sense"),
        "{error}"
    );
    assert!(receiver.await.unwrap().is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_hold() {
    let tight = Limits {
        memory_bytes_max: 10 * PAGE,
        image_bytes_max: 1000,
        images_max: 2,
        ..Limits::default()
    };
    let refused = |reason: &SendError| chain(reason);
    let (sender, receiver) = pair(tight.clone(), Memory::default()).await;
    let sender = sender.unwrap();
    let mut writer = sender.pages();
    // Zero pages count as well: they take no room on the wire, but in memory.
    let zero = vec![0; 11 * PAGE_BYTES];
    blocking(move || writer.write(1, 0, 0, &zero))
        .await
        .unwrap();
    let error = sender.failed().await;
    assert!(
        refused(&error).contains("more bytes of memory arrives than the 40960"),
        "{error}"
    );
    assert!(matches!(
        receiver.await.unwrap(),
        Err(ReceiveError::TooMuch { .. })
    ));

    let (sender, receiver) = pair(tight.clone(), Memory::default()).await;
    let sender = sender.unwrap();
    sender.image("a", &[1; 1001]).await.unwrap();
    assert!(refused(&sender.failed().await).contains("bytes of metadata images"));
    assert!(receiver.await.unwrap().is_err());

    let (sender, receiver) = pair(tight, Memory::default()).await;
    let sender = sender.unwrap();
    for name in ["a", "b", "c"] {
        // The third may be told of the failure of the first two's successor already.
        let _ = sender.image(name, b"x").await;
    }
    assert!(refused(&sender.failed().await).contains("more metadata images arrives than the 2"));
    assert!(receiver.await.unwrap().is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_image_comes_once_and_its_name_is_plain() {
    let (sender, receiver) = pair(limits(), Memory::default()).await;
    let sender = sender.unwrap();
    let error = sender.image("../passwd", b"x").await.unwrap_err();
    assert!(matches!(error, SendError::Unsendable(_)));
    sender.image("a", b"x").await.unwrap();
    let _ = sender.image("a", b"x").await;
    assert!(chain(&sender.failed().await).contains("complete already"));
    assert!(receiver.await.unwrap().is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_can_not_end_under_a_writer() {
    let sink = Memory::default();
    let (sender, receiver) = pair(limits(), sink.clone()).await;
    let sender = sender.unwrap();
    let writer = sender.pages();
    assert!(matches!(
        sender.finish().await,
        Err(SendError::StillWriting)
    ));
    drop(writer);
    let error = receiver.await.unwrap().unwrap_err();
    assert!(matches!(error, ReceiveError::Truncated { .. }), "{error}");
    assert!(!sink.got().finished);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn abandoning_names_the_reason_and_dropping_truncates() {
    let (sender, receiver) = pair(limits(), Memory::default()).await;
    sender
        .unwrap()
        .abandon("the service exited by itself")
        .await;
    let error = receiver.await.unwrap().unwrap_err();
    assert!(
        chain(&error).contains("the service exited by itself"),
        "{error}"
    );

    let (sender, receiver) = pair(limits(), Memory::default()).await;
    let sender = sender.unwrap();
    let mut writer = sender.pages();
    drop(sender);
    let error = receiver.await.unwrap().unwrap_err();
    assert!(chain(&error).contains("closed the connection"), "{error}");
    let error = blocking(move || writer.write(1, 0, 0, &[1; PAGE_BYTES]))
        .await
        .unwrap_err();
    assert!(matches!(error, SendError::Closed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_ends_early_is_an_error_that_says_where() {
    let (sender, receiver) = pair(limits(), Memory::default()).await;
    let sender = sender.unwrap();
    let mut writer = sender.pages();
    let error = blocking(move || {
        let mut short = std::io::repeat(1).take(100 * PAGE);
        writer.write_from(1, 0x1000, 0, 128, &mut short)
    });
    let error = error.await.unwrap_err();
    assert!(
        chain(&error).contains("64 pages at 0x41000"),
        "{}",
        chain(&error)
    );
    sender.abandon("no pages").await;
    assert!(receiver.await.unwrap().is_err());
}

#[tokio::test]
async fn a_peer_that_hangs_is_given_up() {
    let idle = Duration::from_millis(300);
    let (near, mut far) = tokio::io::duplex(16);
    let hanging = tokio::spawn(async move {
        let mut hello = [0; HEADER_LEN + 52];
        far.read_exact(&mut hello).await.unwrap();
        let mut welcome = Vec::new();
        Frame::Welcome { version: 1 }.encode(&mut welcome).unwrap();
        far.write_all(&welcome).await.unwrap();
        far
    });
    let settings = Settings { idle, ..settings() };
    let sender = Sender::open(near, migration(), [9; 32], settings)
        .await
        .unwrap();
    let _open = hanging.await.unwrap();
    let error = sender.failed().await;
    assert!(chain(&error).contains("made no progress"), "{error}");

    let (near, far) = tokio::io::duplex(64);
    let error = ums_sync::receive::accept(far, idle).await.err().unwrap();
    assert!(chain(&error).contains("made no progress"), "{error}");
    drop(near);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_on_a_healthy_stream_is_no_failure() {
    let idle = Duration::from_millis(300);
    let (near, far) = tokio::io::duplex(4096);
    let sink = Memory::default();
    let kept = sink.clone();
    let receiver = tokio::spawn(async move {
        let pending = ums_sync::receive::accept(far, idle).await?;
        pending
            .welcome(limits(), ums_sync::Meter::default(), kept)
            .await
    });
    let settings = Settings { idle, ..settings() };
    let sender = Sender::open(near, migration(), [9; 32], settings)
        .await
        .unwrap();
    // The silence itself is what is tested: several times as long as either side tolerates.
    let silence = tokio::time::timeout(4 * idle, sender.failed()).await;
    assert!(silence.is_err(), "{silence:?}");
    sender.image("a", b"x").await.unwrap();
    sender.finish().await.unwrap();
    receiver.await.unwrap().unwrap();
    assert!(sink.got().finished);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bandwidth_limit_holds() {
    let (near, far) = tokio::io::duplex(1 << 20);
    let receiver = tokio::spawn(receive(far, limits(), Memory::default()));
    let bandwidth = NonZeroU64::new(4_000_000);
    let settings = Settings {
        bandwidth,
        ..settings()
    };
    let sender = Sender::open(near, migration(), [9; 32], settings)
        .await
        .unwrap();
    let begin = Instant::now();
    write(sender.pages(), 1, 0, random(4, 512 * PAGE_BYTES)).await;
    sender.finish().await.unwrap();
    let took = begin.elapsed();
    assert!(took >= Duration::from_millis(500), "{took:?}");
    receiver.await.unwrap().unwrap();
}

/// The network is what the writer sees of it, so a limit makes it slow.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compressible_pages_are_compressed_where_the_network_is_slow() {
    let (near, far) = tokio::io::duplex(1 << 20);
    let sink = Memory::default();
    let receiver = tokio::spawn(receive(far, limits(), sink.clone()));
    let settings = Settings {
        bandwidth: NonZeroU64::new(8_000_000),
        ..settings()
    };
    let sender = Sender::open(near, migration(), [9; 32], settings)
        .await
        .unwrap();
    let page: Vec<u8> = (0..PAGE_BYTES).map(|at| (at / 37) as u8 | 1).collect();
    write(sender.pages(), 1, 0, page.repeat(4096)).await;
    let delivered = sender.finish().await.unwrap();
    receiver.await.unwrap().unwrap();
    assert!(
        delivered.bytes.wire * 5 < delivered.bytes.memory,
        "{delivered:?}"
    );
    assert!(
        sink.got()
            .pages
            .values()
            .all(|arrived| arrived.as_ref() == Some(&page))
    );
}

/// A whole stream as it is on the wire, from the source's side, and where its frames begin.
async fn recorded() -> (Vec<u8>, Vec<usize>) {
    let (near, middle) = tokio::io::duplex(1 << 20);
    let (mut relay, far) = tokio::io::duplex(1 << 20);
    let receiver = tokio::spawn(receive(far, limits(), Memory::default()));
    let recorder = tokio::spawn(async move {
        let (mut from_source, mut to_source) = tokio::io::split(middle);
        let (mut from_destination, mut to_destination) = tokio::io::split(&mut relay);
        let mut record = Vec::new();
        let forth = async {
            let mut buffer = [0; 4096];
            loop {
                let read = from_source.read(&mut buffer).await.unwrap();
                if read == 0 {
                    return;
                }
                record.extend_from_slice(&buffer[..read]);
                to_destination.write_all(&buffer[..read]).await.unwrap();
            }
        };
        tokio::select! {
            () = forth => {}
            back = tokio::io::copy(&mut from_destination, &mut to_source) => { back.unwrap(); }
        }
        record
    });
    let sender = Sender::open(near, migration(), [9; 32], settings())
        .await
        .unwrap();
    sender
        .image("core-1.img", b"state of one process")
        .await
        .unwrap();
    write(
        sender.pages(),
        1,
        0,
        memory(150)[60 * PAGE_BYTES..].to_vec(),
    )
    .await;
    sender.image("inventory.img", b"all of it").await.unwrap();
    sender.finish().await.unwrap();
    receiver.await.unwrap().unwrap();
    let record = recorder.await.unwrap();
    let (mut begins, mut at) = (Vec::new(), 0);
    while at < record.len() {
        begins.push(at);
        let header = Header::decode(record[at..at + HEADER_LEN].try_into().unwrap()).unwrap();
        at += HEADER_LEN + header.length;
    }
    (record, begins)
}

/// Plays a recorded stream to a receiver; what it got, and what it said.
async fn play(bytes: Vec<u8>) -> (Result<Counts, ReceiveError>, bool) {
    let sink = Memory::default();
    let (mut near, far) = tokio::io::duplex(1 << 20);
    let receiver = tokio::spawn(receive(far, limits(), sink.clone()));
    // A receiver that has seen enough closes early.
    let _ = near.write_all(&bytes).await;
    let _ = near.shutdown().await;
    let mut answers = Vec::new();
    let _ = near.read_to_end(&mut answers).await;
    let outcome = receiver.await.unwrap().map(|received| received.counts);
    (outcome, sink.got().finished)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_cut_anywhere_is_not_delivered() {
    let (record, begins) = recorded().await;
    assert!(begins.len() >= 6, "{begins:?}");
    let (whole, finished) = play(record.clone()).await;
    assert!(finished && whole.is_ok(), "{whole:?}");
    for begin in begins.iter().skip(1) {
        for cut in [
            begin - 1,
            *begin,
            begin + 1,
            begin + HEADER_LEN,
            begin + HEADER_LEN + 1,
        ] {
            let (outcome, finished) = play(record[..cut].to_vec()).await;
            let error = outcome.unwrap_err();
            assert!(!finished);
            assert!(
                chain(&error).contains("closed the connection"),
                "{cut}: {}",
                chain(&error)
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_changed_anywhere_is_not_delivered() {
    let (record, begins) = recorded().await;
    let mut places = Vec::new();
    for (index, begin) in begins.iter().enumerate().skip(1) {
        let end = begins.get(index + 1).copied().unwrap_or(record.len());
        places.extend([0, 1, 2, 3, 5].map(|at| begin + at));
        places.extend([begin + HEADER_LEN, (begin + end) / 2, end - 1]);
    }
    for place in places {
        for bit in [0, 3, 7] {
            let mut changed = record.clone();
            changed[place] ^= 1 << bit;
            let (outcome, finished) = play(changed).await;
            assert!(
                outcome.is_err() && !finished,
                "bit {bit} of byte {place}: {outcome:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_left_out_repeated_or_moved_is_not_delivered() {
    let (record, begins) = recorded().await;
    let ends = begins.iter().skip(1).copied().chain([record.len()]);
    let frames: Vec<&[u8]> = begins
        .iter()
        .zip(ends)
        .map(|(at, end)| &record[*at..end])
        .collect();
    for at in 1..frames.len() - 1 {
        let mut missing = frames.clone();
        missing.remove(at);
        let mut repeated = frames.clone();
        repeated.insert(at, frames[at]);
        let mut variants = vec![missing, repeated];
        if at + 1 < frames.len() - 1 {
            let mut swapped = frames.clone();
            swapped.swap(at, at + 1);
            variants.push(swapped);
        }
        for variant in variants {
            let (outcome, finished) = play(variant.concat()).await;
            let error = outcome.unwrap_err();
            assert!(!finished);
            assert!(
                matches!(
                    error,
                    ReceiveError::Differs { .. } | ReceiveError::Misplaced { .. }
                ),
                "{error}"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]
    #[test]
    fn garbage_after_the_opening_never_panics(garbage: Vec<u8>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let hello = ums_sync::frame::Hello {
                version_min: 1, version_max: 1, migration: migration().0, permit: [0; 32],
            };
            let mut bytes = Vec::new();
            Frame::Hello(hello).encode(&mut bytes).unwrap();
            bytes.extend(garbage);
            let (outcome, finished) = play(bytes).await;
            assert!(outcome.is_err() && !finished);
        });
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_sent_is_in_its_place_before_the_source_goes_on() {
    let sink = Memory::default();
    let (sender, receiver) = pair(limits(), sink.clone()).await;
    let sender = sender.unwrap();
    sender.image("core-1.img", b"first").await.unwrap();
    sender.settle().await.unwrap();
    let got = sink.got();
    assert_eq!((got.settled, got.finished), (vec![1], false));
    sender.image("core-2.img", b"second").await.unwrap();
    sender.settle().await.unwrap();
    assert_eq!(sink.got().settled, [1, 2]);
    let delivered = sender.finish().await.unwrap();
    assert_eq!(delivered.digest, receiver.await.unwrap().unwrap().digest);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_not_be_settled_is_told_while_the_source_waits() {
    let sink = Memory {
        fail_at_settle: true,
        ..Memory::default()
    };
    let (sender, receiver) = pair(limits(), sink).await;
    let error = sender.unwrap().settle().await.unwrap_err();
    assert!(chain(&error).contains("another one"), "{}", chain(&error));
    assert!(receiver.await.unwrap().is_err());
}
