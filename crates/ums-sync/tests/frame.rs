//! Frames: what is written is read back, and no bytes whatever make the reader panic.

use proptest::prelude::*;
use ums_sync::frame::{
    BLOCK_PAGES, Content, Counts, Entry, Frame, FrameError, FrameType, HEADER_LEN, Header, Hello,
    Kind, PAGE_BYTES, PAYLOAD_MAX, Pages, RelativePath, RootName, Xattr,
};

fn round_trip(frame: &Frame<'_>) {
    let mut bytes = vec![7; 3];
    frame.encode(&mut bytes).unwrap();
    assert_eq!(&bytes[..3], [7; 3]);
    let head: [u8; HEADER_LEN] = bytes[3..3 + HEADER_LEN].try_into().unwrap();
    let header = Header::decode(head).unwrap();
    assert_eq!(header.length, bytes.len() - 3 - HEADER_LEN);
    assert_eq!(
        &Frame::decode(header, &bytes[3 + HEADER_LEN..]).unwrap(),
        frame
    );
    // Cut anywhere inside, or continued, it is another frame or none, never a panic.
    for cut in 0..header.length.min(300) {
        let short = Header {
            length: cut,
            ..header
        };
        if let Ok(other) = Frame::decode(short, &bytes[3 + HEADER_LEN..][..cut]) {
            assert_ne!(&other, frame);
        }
    }
}

fn path() -> impl Strategy<Value = Vec<u8>> {
    let name = prop::collection::vec(prop::sample::select(b"ab.\xff ".to_vec()), 1..6)
        .prop_filter("dots alone are no names", |name| {
            name != b"." && name != b".."
        });
    prop::collection::vec(name, 1..5).prop_map(|names| names.join(&b'/'))
}

fn root() -> impl Strategy<Value = RootName> {
    prop_oneof![
        Just(RootName::Upper),
        Just(RootName::Image),
        Just(RootName::Volume("data".parse().unwrap())),
    ]
}

proptest! {
    #[test]
    fn hello_round_trips(
        version_min: u16, version_max: u16, migration: u128, permit: [u8; 32],
    ) {
        let migration = uuid::Uuid::from_u128(migration);
        round_trip(&Frame::Hello(Hello { version_min, version_max, migration, permit }));
    }

    #[test]
    fn ends_round_trip(frames: u64, pages: u64, bytes: u64, digest: [u8; 32], reason in ".{0,99}") {
        round_trip(&Frame::End { counts: Counts { frames, pages, bytes }, digest });
        round_trip(&Frame::Delivered { digest });
        round_trip(&Frame::Failed { reason: &reason });
        round_trip(&Frame::Refused { reason: &reason });
    }

    #[test]
    fn images_round_trip(name in "[a-z0-9][a-z0-9._-]{0,50}", more: bool, bytes: Vec<u8>) {
        round_trip(&Frame::Image { name: &name, more, bytes: &bytes });
    }

    #[test]
    fn pages_round_trip(
        process: u64, page in 0_u64..1 << 40, count in 1..=BLOCK_PAGES as u32, flags: u32,
        bits: u64, fill: u8, zstd: bool,
    ) {
        let present = if count == 64 { bits } else { bits & ((1 << count) - 1) };
        let full = present.count_ones() as usize * PAGE_BYTES;
        let bytes = vec![fill; if zstd { full / 3 } else { full }];
        let content = match (zstd, present) {
            (true, 1..) => Content::Zstd { present, bytes: &bytes },
            _ => Content::Raw { present, bytes: &bytes },
        };
        let address = page * PAGE_BYTES as u64;
        let pages = Pages { process, address, count, flags, content };
        round_trip(&Frame::Pages(pages));
        round_trip(&Frame::Pages(Pages { count: count + 1000, content: Content::Absent, ..pages }));
    }

    #[test]
    fn entries_round_trip(
        root in root(), at in path(), other in path(), mode in 0..=0o7777_u32, uid: u32, gid: u32,
        mtime_s: i64, mtime_ns in 0..1_000_000_000_u32, major: u32, minor: u32, kind in 0..8,
        xattrs in prop::collection::vec(("[a-z]{1,9}", any::<Vec<u8>>()), 0..4),
    ) {
        let kind = match kind {
            0 => Kind::Directory,
            1 => Kind::File,
            2 => Kind::Symlink { target: &other },
            3 => Kind::Fifo,
            4 => Kind::CharacterDevice { major, minor },
            5 => Kind::BlockDevice { major, minor },
            6 => Kind::Patch,
            _ => Kind::Link { target: RelativePath::new(&other).unwrap() },
        };
        let path = RelativePath::new(&at).unwrap();
        let xattrs = xattrs.iter().map(|(name, value)| Xattr { name: name.as_bytes(), value });
        round_trip(&Frame::Entry(Entry {
            root: root.clone(), path, kind, mode, uid, gid, mtime_s, mtime_ns,
            xattrs: xattrs.collect(),
        }));
        round_trip(&Frame::Remove { root, path });
    }

    #[test]
    fn file_data_round_trips(offset: u64, zstd: bool, bytes: Vec<u8>, size: u64) {
        round_trip(&Frame::FileData { offset, zstd, bytes: &bytes });
        round_trip(&Frame::FileEnd { size });
    }

    #[test]
    fn arbitrary_bytes_never_panic(head: [u8; HEADER_LEN], payload: Vec<u8>) {
        if let Ok(header) = Header::decode(head) {
            prop_assert!(header.length <= PAYLOAD_MAX);
        }
        for frame in FrameType::ALL {
            for flags in 0..8 {
                let length = payload.len();
                let read = Frame::decode(Header { frame, flags, length }, &payload);
                prop_assert!(read.is_ok() || read.is_err());
            }
        }
    }
}

#[test]
fn headers_refuse_what_they_do_not_know() {
    let header = |bytes| Header::decode(bytes).unwrap_err();
    assert_eq!(header([0x7f, 0, 0, 0, 0, 0]), FrameError::UnknownType(0x7f));
    assert!(matches!(
        header([0x01, 1, 0, 0, 0, 0]),
        FrameError::UnknownFlags { .. }
    ));
    assert!(matches!(
        header([0x10, 0, 1, 0, 16, 0]),
        FrameError::TooLong { .. }
    ));
    for kind in 0..=u8::MAX {
        let known = FrameType::ALL.iter().any(|frame| *frame as u8 == kind);
        assert_eq!(Header::decode([kind, 0, 0, 0, 0, 0]).is_ok(), known);
    }
}

#[test]
fn what_can_not_be_read_is_not_written() {
    let mut out = vec![1];
    let bad_name = Frame::Image {
        name: "../x",
        more: false,
        bytes: b"",
    };
    let long_reason = "r".repeat(5000);
    let pages = Pages {
        process: 1,
        address: 1,
        count: 1,
        flags: 0,
        content: Content::Raw {
            present: 0,
            bytes: b"",
        },
    };
    let many = Pages {
        address: 0,
        count: 65,
        ..pages
    };
    let beyond = Pages {
        address: u64::MAX - 4095,
        count: 2,
        content: Content::Absent,
        ..pages
    };
    let bit = Content::Raw {
        present: 2,
        bytes: &[0; PAGE_BYTES],
    };
    let frames = [
        bad_name,
        Frame::Failed {
            reason: &long_reason,
        },
        Frame::Pages(pages),
        Frame::Pages(many),
        Frame::Pages(beyond),
        Frame::Pages(Pages {
            address: 0,
            content: bit,
            ..pages
        }),
        Frame::FileData {
            offset: 0,
            zstd: false,
            bytes: &vec![0; PAYLOAD_MAX + 1],
        },
    ];
    for frame in frames {
        assert!(frame.encode(&mut out).is_err(), "{:?}", frame.kind());
        assert_eq!(out, [1]);
    }
}
