use std::io::Read;

use super::*;
use crate::error::Error;

fn written(entries: &[(Entry, &[u8])]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (entry, content) in entries {
        writer.entry(entry, &mut &content[..]).unwrap();
    }
    writer.finish().unwrap()
}

fn file(path: &str, content: &[u8]) -> Entry {
    Entry {
        size: content.len() as u64,
        ..Entry::new(path, Kind::File, 0o644)
    }
}

#[test]
fn what_is_written_is_read() {
    let long = "d/".repeat(150) + "file";
    let mut odd = file(&long, b"odd");
    odd.uid = 4_000_000_000;
    odd.mtime = (-2, 750_000_000);
    odd.attributes = vec![(b"user.x".to_vec(), b"a\nb\0=".to_vec())];
    let link = Entry {
        link: "ä".repeat(80).into_bytes(),
        ..Entry::new("link", Kind::Symlink, 0o777)
    };
    let device = Entry {
        device: (1, 3),
        ..Entry::new("dev/null", Kind::Character, 0o666)
    };
    let block = vec![7; BLOCK];
    let entries = [
        (odd, &b"odd"[..]),
        (link, b""),
        (file("block", &block), &block),
        (device, b""),
        (Entry::new("dir/", Kind::Directory, 0o1777), b""),
    ];
    let bytes = written(&entries);
    let mut reader = Reader::new(&bytes[..]);
    for (wanted, content) in &entries {
        let found = reader.entry().unwrap().unwrap();
        let mut read = Vec::new();
        reader.read_to_end(&mut read).unwrap();
        assert_eq!(read, *content);
        let offset = usize::try_from(found.offset).unwrap();
        assert_eq!(&bytes[offset..offset + content.len()], *content);
        assert_eq!(Entry { offset: 0, ..found }, *wanted);
    }
    assert!(reader.entry().unwrap().is_none());
    assert!(reader.entry().unwrap().is_none());
}

#[test]
fn content_that_nobody_reads_is_passed_over() {
    let bytes = written(&[(file("a", &[1; 700]), &[1; 700]), (file("b", b"b"), b"b")]);
    let mut reader = Reader::seeking(std::io::Cursor::new(&bytes));
    assert_eq!(reader.entry().unwrap().unwrap().path, b"a");
    assert_eq!(reader.entry().unwrap().unwrap().path, b"b");
}

#[test]
fn what_is_cut_off_or_changed_is_told() {
    let bytes = written(&[(file("a", &[1; 700]), &[1; 700])]);
    let read = |bytes: &[u8]| {
        let mut reader = Reader::new(bytes);
        while let Some(_entry) = reader.entry()? {}
        Ok::<(), Error>(())
    };
    read(&bytes).unwrap();
    // Without the end that archives have, as some write them.
    read(&bytes[..BLOCK + 1024]).unwrap();
    for length in [1, BLOCK - 1, BLOCK + 1, BLOCK + 1023] {
        assert!(read(&bytes[..length]).is_err(), "{length}");
    }
    let mut changed = bytes.clone();
    changed[0] = b'b';
    assert!(read(&changed).unwrap_err().to_string().contains("checksum"));
}

#[test]
fn a_header_without_end_is_not_read() {
    let mut huge = written(&[(file("x", b""), b"")]);
    // A GNU long name that says that it has 8 GiB.
    huge[156] = b'L';
    huge[124..135].copy_from_slice(b"77777777777");
    huge[148..156].fill(b' ');
    let sum: u32 = huge[..BLOCK].iter().map(|byte| u32::from(*byte)).sum();
    huge[148..155].copy_from_slice(format!("{sum:07o}").as_bytes());
    let error = Reader::new(&huge[..]).entry().unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
}

#[test]
fn gnu_tar_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let name = "n".repeat(130);
    std::fs::write(dir.path().join(&name), "content").unwrap();
    std::os::unix::fs::symlink("t".repeat(120), dir.path().join("link")).unwrap();
    for format in ["gnu", "pax", "posix"] {
        let output = std::process::Command::new("tar")
            .args(["-c", "--format", format, "-C"])
            .arg(dir.path())
            .args([&name, "link"])
            .output()
            .unwrap();
        assert!(output.status.success());
        let mut reader = Reader::new(&output.stdout[..]);
        let first = reader.entry().unwrap().unwrap();
        assert_eq!(first.path, name.as_bytes());
        let mut content = String::new();
        reader.read_to_string(&mut content).unwrap();
        assert_eq!(content, "content");
        assert_eq!(
            reader.entry().unwrap().unwrap().link,
            "t".repeat(120).as_bytes()
        );
        assert!(reader.entry().unwrap().is_none());
    }
}
