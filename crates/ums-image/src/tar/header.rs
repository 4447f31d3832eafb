//! One block of a header.

use super::{BLOCK, Entry, Kind};
use crate::error::{Error, shown};

/// A block, and where things are in it.
pub(super) struct Header<'a>(pub(super) &'a [u8; BLOCK]);

impl Header<'_> {
    pub(super) fn is_end(&self) -> bool {
        self.0.iter().all(|byte| *byte == 0)
    }

    pub(super) fn type_flag(&self) -> u8 {
        self.0[156]
    }

    fn text(&self, from: usize, to: usize) -> &[u8] {
        let field = &self.0[from..to];
        let end = field.iter().position(|byte| *byte == 0);
        &field[..end.unwrap_or(field.len())]
    }

    /// Compares the checksum; some old archives have summed up signed bytes.
    pub(super) fn check(&self) -> Result<(), Error> {
        let wanted = self.number(148, 156)?;
        let byte = |(at, byte): (usize, &u8)| match at {
            148..156 => b' ',
            _ => *byte,
        };
        let bytes = || self.0.iter().enumerate().map(byte);
        let unsigned: u64 = bytes().map(u64::from).sum();
        let signed: i64 = bytes().map(|byte| i64::from(byte.cast_signed())).sum();
        if wanted == unsigned || i64::try_from(wanted) == Ok(signed) {
            Ok(())
        } else {
            Err(malformed("a header's checksum is wrong"))
        }
    }

    /// Octal digits, or the bytes of a number with the first bit set (GNU).
    fn number(&self, from: usize, to: usize) -> Result<u64, Error> {
        let field = &self.0[from..to];
        if field[0] & 0x80 != 0 {
            return binary(field);
        }
        let blank = |byte: &u8| matches!(byte, b' ' | 0);
        let digits = field.iter().skip_while(|byte| blank(byte));
        let mut number: u64 = 0;
        for digit in digits.take_while(|byte| !blank(byte)) {
            if !(b'0'..=b'7').contains(digit) {
                return Err(malformed(format!("`{}` is no number", shown(field))));
            }
            number = number << 3 | u64::from(digit - b'0');
        }
        Ok(number)
    }

    fn small(&self, from: usize, to: usize) -> Result<u32, Error> {
        u32::try_from(self.number(from, to)?).map_err(|_| malformed("a number is too large"))
    }

    pub(super) fn size(&self) -> Result<u64, Error> {
        self.number(124, 136)
    }

    fn mtime(&self) -> Result<i64, Error> {
        let field = &self.0[136..148];
        if field[0] == 0xff {
            // Before 1970: two's complement.
            let tail: [u8; 8] = field[4..].try_into().expect("eight bytes");
            return Ok(i64::from_be_bytes(tail));
        }
        i64::try_from(self.number(136, 148)?).map_err(|_| malformed("a time is too far away"))
    }

    fn path(&self) -> Vec<u8> {
        let name = self.text(0, 100);
        // In GNU's own format other things are where the prefix is.
        let prefix = match &self.0[257..263] {
            b"ustar\0" => self.text(345, 500),
            _ => b"",
        };
        if prefix.is_empty() {
            name.to_vec()
        } else {
            [prefix, b"/", name].concat()
        }
    }

    /// The entry that the block alone describes.
    pub(super) fn entry(&self) -> Result<Entry, Error> {
        let path = self.path();
        let kind = kind(self.type_flag(), &path)?;
        Ok(Entry {
            kind,
            link: self.text(157, 257).to_vec(),
            mode: self.small(100, 108)? & 0o7777,
            uid: self.small(108, 116)?,
            gid: self.small(116, 124)?,
            size: self.size()?,
            mtime: (self.mtime()?, 0),
            device: (self.small(329, 337)?, self.small(337, 345)?),
            attributes: Vec::new(),
            offset: 0,
            path,
        })
    }
}

fn kind(flag: u8, path: &[u8]) -> Result<Kind, Error> {
    Ok(match flag {
        // As archives wrote directories before there was a type for them.
        0 if path.ends_with(b"/") => Kind::Directory,
        0 | b'0' | b'7' => Kind::File,
        b'1' => Kind::HardLink,
        b'2' => Kind::Symlink,
        b'3' => Kind::Character,
        b'4' => Kind::Block,
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        b'S' => return Err(super::pax::sparse(path)),
        other => {
            return Err(Error::Unsupported(format!(
                "the archive has an entry of type `{}`, `{}`, that layers don't have: build the image again",
                char::from(other).escape_debug(),
                shown(path)
            )));
        }
    })
}

fn binary(field: &[u8]) -> Result<u64, Error> {
    if field[0] == 0xff {
        return Err(malformed("a number is negative"));
    }
    let mut number: u64 = u64::from(field[0] & 0x7f);
    for byte in &field[1..] {
        let room = number.leading_zeros() >= 8;
        number = room
            .then(|| number << 8 | u64::from(*byte))
            .ok_or_else(|| malformed("a number is too large"))?;
    }
    Ok(number)
}

pub(super) fn malformed(detail: impl Into<String>) -> Error {
    Error::malformed("the archive", detail)
}
