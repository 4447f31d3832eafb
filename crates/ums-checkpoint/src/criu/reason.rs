//! Why CRIU gave up, from its log: the true cause among its lines, as a sentence with a remedy.
//!
//! CRIU logs an error where it meets it, and once more at each function that it returns through; and it
//! logs errors that change nothing. So the first line that is not harmless is the cause, and what is
//! known of that is said in words (`table`). A line that nobody knows is shown as it is.

mod table;

use std::fmt;

use table::{HARMLESS, KNOWN};

/// Most of a line that is shown, bytes: paths in it may be long.
const SHOWN_MAX: usize = 600;
/// Lines that are shown where none of them is known.
const LINES_MAX: usize = 3;

/// Why a run of CRIU failed, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// What is known of CRIU's line.
    Known {
        /// Cause and remedy.
        told: &'static str,
        /// CRIU's own words.
        line: String,
    },
    /// CRIU's first words on it, of which nothing is known.
    Unknown(Vec<String>),
    /// It has logged no error.
    Silent,
}

impl Reason {
    /// From the text of a log, in whatever state CRIU left that.
    pub fn of(log: &str) -> Self {
        let errors: Vec<&str> = log.lines().filter_map(error).filter(is_telling).collect();
        let known = |line: &&str| KNOWN.iter().find(|known| known.is_it(line));
        // The first that is known before the first at all: what is logged before may be new and harmless.
        let found = errors.iter().find_map(|line| Some((known(line)?, line)));
        match found {
            Some((known, line)) => Self::Known {
                told: known.told,
                line: shown(line),
            },
            None if errors.is_empty() => Self::Silent,
            None => {
                let first = errors.into_iter().take(LINES_MAX);
                Self::Unknown(first.map(shown).collect())
            }
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Known { told, line } => write!(f, "{told} (CRIU: `{line}`)"),
            Self::Unknown(lines) => write!(
                f,
                "it says `{}`, of which UMS knows no more: if it stays so, report it with these words",
                lines.join("`, `")
            ),
            Self::Silent => f.write_str("it has logged no error: see the kernel's log"),
        }
    }
}

/// What is said in a line of a log, where it tells of an error.
///
/// `(00.012345)     12: Error (criu/sk-unix.c:506): unix: Non-empty write queue …`: time, process and
/// place are for those who read CRIU's source.
fn error(line: &str) -> Option<&str> {
    let (_, rest) = line.split_once("Error (")?;
    let (_, said) = rest.split_once("): ")?;
    Some(said.trim())
}

fn is_telling(line: &&str) -> bool {
    let is_harmless = |words: &[&str]| words.iter().all(|word| line.contains(word));
    !line.is_empty() && !HARMLESS.iter().any(|words| is_harmless(words))
}

fn shown(line: &str) -> String {
    let mut end = line.len().min(SHOWN_MAX);
    while !line.is_char_boundary(end) {
        end -= 1;
    }
    let more = if end < line.len() { "…" } else { "" };
    format!("{}{more}", &line[..end])
}

#[cfg(test)]
mod test;
