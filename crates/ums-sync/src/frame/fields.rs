//! The fields of a payload, read one after the other.

use super::{DATA_MAX, FrameError, IMAGE_NAME_MAX, REASON_BYTES_MAX, RelativePath, RootName};

/// What is left of a payload.
pub(crate) struct Fields<'a> {
    frame: &'static str,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(crate) fn new(frame: &'static str, payload: &'a [u8]) -> Self {
        Self {
            frame,
            rest: payload,
        }
    }

    pub(crate) fn invalid(&self, reason: impl Into<String>) -> FrameError {
        FrameError::Invalid {
            frame: self.frame,
            reason: reason.into(),
        }
    }

    pub(crate) fn bytes(
        &mut self,
        field: &'static str,
        length: usize,
    ) -> Result<&'a [u8], FrameError> {
        match self.rest.split_at_checked(length) {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(taken)
            }
            None => Err(FrameError::Short {
                frame: self.frame,
                field,
            }),
        }
    }

    pub(crate) fn array<const N: usize>(
        &mut self,
        field: &'static str,
    ) -> Result<[u8; N], FrameError> {
        let short = FrameError::Short {
            frame: self.frame,
            field,
        };
        self.bytes(field, N)?.try_into().map_err(|_| short)
    }

    pub(crate) fn u8(&mut self, field: &'static str) -> Result<u8, FrameError> {
        self.array(field).map(u8::from_le_bytes)
    }

    pub(crate) fn u16(&mut self, field: &'static str) -> Result<u16, FrameError> {
        self.array(field).map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self, field: &'static str) -> Result<u32, FrameError> {
        self.array(field).map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self, field: &'static str) -> Result<u64, FrameError> {
        self.array(field).map(u64::from_le_bytes)
    }

    pub(crate) fn i64(&mut self, field: &'static str) -> Result<i64, FrameError> {
        self.array(field).map(i64::from_le_bytes)
    }

    /// Bytes after a length of one byte.
    pub(crate) fn short(&mut self, field: &'static str) -> Result<&'a [u8], FrameError> {
        let length = self.u8(field)?;
        self.bytes(field, length.into())
    }

    /// Bytes after a length of two bytes.
    pub(crate) fn long(&mut self, field: &'static str) -> Result<&'a [u8], FrameError> {
        let length = self.u16(field)?;
        self.bytes(field, length.into())
    }

    /// All that is left.
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// All that is left, as the content of a file or an image.
    pub(crate) fn data(&mut self) -> Result<&'a [u8], FrameError> {
        let data = self.rest();
        if data.len() > DATA_MAX {
            return Err(self.invalid(format!("more than {DATA_MAX} bytes of content")));
        }
        Ok(data)
    }

    pub(crate) fn reason(&mut self) -> Result<&'a str, FrameError> {
        let bytes = self.rest();
        match std::str::from_utf8(bytes) {
            Ok(text) if text.len() <= REASON_BYTES_MAX => Ok(text),
            Ok(_) => Err(self.invalid(format!("a reason longer than {REASON_BYTES_MAX} bytes"))),
            Err(_) => Err(self.invalid("a reason that is not UTF-8")),
        }
    }

    pub(crate) fn image_name(&mut self) -> Result<&'a str, FrameError> {
        let bytes = self.short("name")?;
        let name = std::str::from_utf8(bytes).unwrap_or_default();
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let usable = (1..=IMAGE_NAME_MAX).contains(&name.len())
            && name.bytes().all(plain)
            && !name.starts_with('.');
        if usable {
            return Ok(name);
        }
        let given = String::from_utf8_lossy(bytes).escape_debug().to_string();
        Err(self.invalid(format!(
            "`{given}` is no image name: 1 to {IMAGE_NAME_MAX} letters, digits and `-_.`, not \
             beginning with a dot"
        )))
    }

    pub(crate) fn root(&mut self) -> Result<RootName, FrameError> {
        let bytes = self.short("tree")?;
        std::str::from_utf8(bytes)
            .ok()
            .and_then(|text| text.parse().ok())
            .ok_or_else(|| {
                let given = String::from_utf8_lossy(bytes).escape_debug().to_string();
                self.invalid(format!(
                    "`{given}` is no tree: `upper`, `image` or `volume/<name>`"
                ))
            })
    }

    pub(crate) fn path(&mut self, field: &'static str) -> Result<RelativePath<'a>, FrameError> {
        let bytes = self.long(field)?;
        RelativePath::new(bytes).map_err(|reason| {
            let given = String::from_utf8_lossy(bytes).escape_debug().to_string();
            self.invalid(format!("{field} `{given}` {reason}"))
        })
    }

    pub(crate) fn end(self) -> Result<(), FrameError> {
        match self.rest.len() {
            0 => Ok(()),
            extra => Err(FrameError::Trailing {
                frame: self.frame,
                extra,
            }),
        }
    }
}

/// Appends bytes after a length of one byte. What doesn't fit makes a frame that its own encoder
/// refuses.
pub(crate) fn put_short(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(u8::try_from(bytes.len()).unwrap_or(u8::MAX));
    out.extend_from_slice(bytes);
}

/// Appends bytes after a length of two bytes; the same holds.
pub(crate) fn put_long(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_le_bytes());
    out.extend_from_slice(bytes);
}
