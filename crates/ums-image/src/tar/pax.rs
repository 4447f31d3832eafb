//! Extended headers (`pax(1)`, "pax Extended Header").

use super::Entry;
use super::header::malformed;
use crate::error::{Error, shown};

/// What an extended header says of the entry that follows.
#[derive(Debug, Default)]
pub(super) struct Extended {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<(i64, u32)>,
    attributes: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: bool,
}

/// What begins the key of an extended attribute.
pub(super) const ATTRIBUTE: &[u8] = b"SCHILY.xattr.";

impl Extended {
    /// Reads records: `LENGTH KEY=VALUE` and a line's end.
    pub(super) fn records(&mut self, mut rest: &[u8]) -> Result<(), Error> {
        while !rest.is_empty() {
            let blank = rest.iter().position(|byte| *byte == b' ');
            let blank = blank.ok_or_else(|| malformed("a record has no length"))?;
            let length: usize = number(&rest[..blank])?;
            if length <= blank + 1 || length > rest.len() || rest[length - 1] != b'\n' {
                return Err(malformed("a record's length is wrong"));
            }
            let record = &rest[blank + 1..length - 1];
            let equals = record.iter().position(|byte| *byte == b'=');
            let equals = equals.ok_or_else(|| malformed("a record has no value"))?;
            self.record(&record[..equals], &record[equals + 1..])?;
            rest = &rest[length..];
        }
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), Error> {
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(number(value)?),
            b"uid" => self.uid = Some(number(value)?),
            b"gid" => self.gid = Some(number(value)?),
            b"mtime" => self.mtime = Some(time(value)?),
            _ if key.starts_with(b"GNU.sparse.") => self.sparse = true,
            _ => {
                if let Some(name) = key.strip_prefix(ATTRIBUTE) {
                    self.attributes.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Ok(())
    }

    /// Puts into an entry what was said of it.
    pub(super) fn onto(self, entry: &mut Entry) -> Result<(), Error> {
        if self.sparse {
            return Err(sparse(&entry.path));
        }
        entry.path = self.path.unwrap_or_else(|| std::mem::take(&mut entry.path));
        entry.link = self.link.unwrap_or_else(|| std::mem::take(&mut entry.link));
        entry.size = self.size.unwrap_or(entry.size);
        entry.uid = self.uid.unwrap_or(entry.uid);
        entry.gid = self.gid.unwrap_or(entry.gid);
        entry.mtime = self.mtime.unwrap_or(entry.mtime);
        entry.attributes = self.attributes;
        Ok(())
    }
}

pub(super) fn sparse(path: &[u8]) -> Error {
    Error::Unsupported(format!(
        "`{}` is a sparse file in the archive: write the archive without `--sparse`",
        shown(path)
    ))
}

fn number<T: std::str::FromStr>(text: &[u8]) -> Result<T, Error> {
    let parsed = std::str::from_utf8(text)
        .ok()
        .and_then(|it| it.parse().ok());
    parsed.ok_or_else(|| malformed(format!("`{}` is no number here", shown(text))))
}

/// Seconds, with a fraction behind a dot; nothing finer than nanoseconds counts.
fn time(text: &[u8]) -> Result<(i64, u32), Error> {
    let dot = text.iter().position(|byte| *byte == b'.');
    let (whole, fraction) = match dot {
        Some(dot) => (&text[..dot], &text[dot + 1..]),
        None => (text, &b""[..]),
    };
    let seconds: i64 = number(whole)?;
    let digits: Vec<u8> = fraction
        .iter()
        .copied()
        .chain(*b"000000000")
        .take(9)
        .collect();
    let nanoseconds: u32 = number(&digits)?;
    // -1.25 is 0.75 after -2.
    Ok(match (text.starts_with(b"-"), nanoseconds) {
        (true, 1..) => (seconds - 1, 1_000_000_000 - nanoseconds),
        _ => (seconds, nanoseconds),
    })
}
