//! How pages that stayed at the source are asked for and come: between a keeper and the pager beside it, and
//! between the two pagers.
//!
//! ```text
//! question: place u64, address u64, process u32, pages u32
//! answer:   place u64, pages u32, refused u32; then the pages, or where it is refused that many bytes of text
//! ```
//!
//! All numbers are little-endian. Answers come in the order of the questions.

use std::io::{self, Read};

use crate::criu::page_server::PAGE_LEN;
use crate::uffd::Wanted;

/// Length of a question.
pub const QUESTION_LEN: usize = 24;
/// Length of the head of an answer.
pub const ANSWER_LEN: usize = 16;
/// The most pages that are asked for at once.
pub const PAGES_MAX: u32 = 64;
/// The longest reason of a refusal, bytes.
pub const REASON_LEN_MAX: u32 = 4096;

/// The head of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// As it was asked.
    pub place: u64,
    /// Pages that follow; where it is refused, bytes of the reason.
    pub count: u32,
    /// Whether there is a reason instead of pages.
    pub refused: bool,
}

/// The bytes of a question.
pub fn question(wanted: &Wanted) -> [u8; QUESTION_LEN] {
    let mut bytes = [0; QUESTION_LEN];
    bytes[..8].copy_from_slice(&wanted.place.to_le_bytes());
    bytes[8..16].copy_from_slice(&wanted.address.to_le_bytes());
    bytes[16..20].copy_from_slice(&wanted.process.to_le_bytes());
    bytes[20..].copy_from_slice(&wanted.pages.to_le_bytes());
    bytes
}

/// Reads a question.
///
/// # Errors
/// When more is asked for than may be at once, or nothing.
pub fn asked(bytes: &[u8; QUESTION_LEN]) -> io::Result<Wanted> {
    let wanted = Wanted {
        place: u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")),
        address: u64::from_le_bytes(bytes[8..16].try_into().expect("eight bytes")),
        process: u32::from_le_bytes(bytes[16..20].try_into().expect("four bytes")),
        pages: u32::from_le_bytes(bytes[20..].try_into().expect("four bytes")),
    };
    match wanted.pages {
        1..=PAGES_MAX => Ok(wanted),
        pages => Err(nonsense(format!("{pages} pages are asked for at once"))),
    }
}

impl Answer {
    /// Its bytes.
    pub fn encode(&self) -> [u8; ANSWER_LEN] {
        let mut bytes = [0; ANSWER_LEN];
        bytes[..8].copy_from_slice(&self.place.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.count.to_le_bytes());
        bytes[12..].copy_from_slice(&u32::from(self.refused).to_le_bytes());
        bytes
    }

    /// Reads one.
    ///
    /// # Errors
    /// When more is announced than an answer has.
    pub fn decode(bytes: &[u8; ANSWER_LEN]) -> io::Result<Self> {
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four"));
        let answer = Self {
            place: u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")),
            count: word(8),
            refused: word(12) != 0,
        };
        let most = if answer.refused {
            REASON_LEN_MAX
        } else {
            PAGES_MAX
        };
        match answer.count <= most {
            true => Ok(answer),
            false => Err(nonsense(format!("an answer of {} units", answer.count))),
        }
    }

    /// Bytes that follow.
    pub fn len(&self) -> usize {
        match self.refused {
            true => self.count as usize,
            false => self.count as usize * PAGE_LEN,
        }
    }

    /// Whether nothing follows.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// The bytes of a refusal.
pub fn refusal(place: u64, reason: &str) -> Vec<u8> {
    let reason = &reason.as_bytes()[..reason.len().min(REASON_LEN_MAX as usize)];
    let answer = Answer {
        place,
        count: reason.len() as u32,
        refused: true,
    };
    [&answer.encode()[..], reason].concat()
}

/// Reads one whole answer: its place and its pages, or why there are none.
pub(crate) fn read(from: &mut impl Read) -> io::Result<(u64, Result<Vec<u8>, String>)> {
    let mut head = [0; ANSWER_LEN];
    from.read_exact(&mut head)?;
    let answer = Answer::decode(&head)?;
    let mut bytes = vec![0; answer.len()];
    from.read_exact(&mut bytes)?;
    let content = match answer.refused {
        true => Err(String::from_utf8_lossy(&bytes).into_owned()),
        false => Ok(bytes),
    };
    Ok((answer.place, content))
}

fn nonsense(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn what_is_asked_is_understood() {
        let wanted = Wanted {
            place: 0x1000,
            process: 7,
            address: 0x7f00_0000_0000,
            pages: PAGES_MAX,
        };
        assert_eq!(asked(&question(&wanted)).unwrap(), wanted);
        for pages in [0, PAGES_MAX + 1, u32::MAX] {
            assert!(asked(&question(&Wanted { pages, ..wanted })).is_err());
        }
    }

    #[test]
    fn answers_are_pages_or_a_reason() {
        let answer = Answer {
            place: 0x2000,
            count: 2,
            refused: false,
        };
        let bytes = [&answer.encode()[..], &[9; 2 * PAGE_LEN]].concat();
        assert_eq!(
            read(&mut &bytes[..]).unwrap(),
            (0x2000, Ok(vec![9; 2 * PAGE_LEN]))
        );
        let refused = refusal(3, "it is gone");
        assert_eq!(
            read(&mut &refused[..]).unwrap(),
            (3, Err("it is gone".to_owned()))
        );
        let much = Answer {
            count: PAGES_MAX + 1,
            ..answer
        };
        assert!(read(&mut &much.encode()[..]).is_err());
        assert!(read(&mut &bytes[..bytes.len() - 1]).is_err());
    }
}
