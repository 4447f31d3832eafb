//! Compressed layers: what they are is told by their first bytes, as engines do it, since media types are
//! wrong often enough.

use std::io::{self, BufReader, Read};

use crate::error::Error;

/// The largest window of zstd that is kept in memory (2 to this power): what `zstd --ultra` uses, and what
/// other programs accept without being told to.
const WINDOW_LOG_MAX: u32 = 27;

/// Longest of the first bytes that tell.
const MAGIC_LEN: usize = 6;

/// Reads what is compressed by gzip, zstd or not at all.
///
/// # Errors
/// When reading fails, or it is compressed otherwise.
pub fn decode<'a>(mut raw: impl Read + 'a) -> Result<Box<dyn Read + 'a>, Error> {
    let mut first = Vec::with_capacity(MAGIC_LEN);
    let failed = || Error::at("read", "a layer");
    raw.by_ref()
        .take(MAGIC_LEN as u64)
        .read_to_end(&mut first)
        .map_err(failed())?;
    let whole = BufReader::new(io::Cursor::new(first.clone()).chain(raw));
    match first[..] {
        [0x1f, 0x8b, ..] => Ok(Box::new(flate2::bufread::MultiGzDecoder::new(whole))),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(whole).map_err(failed())?;
            decoder.window_log_max(WINDOW_LOG_MAX).map_err(failed())?;
            Ok(Box::new(decoder))
        }
        [0xfd, b'7', b'z', b'X', b'Z', ..] | [b'B', b'Z', b'h', ..] => Err(Error::Unsupported(
            "a layer is compressed by xz or bzip2: use gzip, zstd or none".to_owned(),
        )),
        _ => Ok(Box::new(whole)),
    }
}

#[cfg(test)]
mod test {
    use std::io::Write;

    use super::*;

    fn read(raw: &[u8]) -> Vec<u8> {
        let mut plain = Vec::new();
        decode(raw).unwrap().read_to_end(&mut plain).unwrap();
        plain
    }

    #[test]
    fn gzip_zstd_and_plain_bytes_are_read() {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(b"content").unwrap();
        let gzip = gzip.finish().unwrap();
        assert_eq!(read(&gzip), b"content");
        // As pigz and stargz write it.
        assert_eq!(read(&[&gzip[..], &gzip[..]].concat()), b"contentcontent");
        assert_eq!(
            read(&zstd::encode_all(&b"content"[..], 1).unwrap()),
            b"content"
        );
        assert_eq!(read(b"content"), b"content");
        assert_eq!(read(b"c"), b"c");
        assert_eq!(read(b""), b"");
        assert!(decode(&b"BZh91AY"[..]).is_err());
    }
}
