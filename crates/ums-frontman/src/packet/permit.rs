//! Who may be the near end: the holder of a one-time permit.
//!
//! The far end keeps hashes only. Each admission shows a permit and is answered with the next, so
//! a permit that was seen by somebody is worth nothing once it was used. Because the answer can be
//! lost with the connection, the shown permit stays good until the near end has confirmed the next
//! one, or has shown it:
//!
//! ```text
//!  near                                  far
//!   │── hello, permit 1 ─────────────────▶│  1 is good; 2 is made
//!   │◀──────────────── welcome, permit 2 ─│  1 and 2 are good
//!   │── confirm ─────────────────────────▶│  2 is good
//! ```

use std::fmt;
use std::fs::File;
use std::io::{self, Read};

use serde::{Deserialize, Serialize};

/// 32 random bytes that let a near end in. In text: 64 hexadecimal digits.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Permit([u8; 32]);

impl Permit {
    /// A new one, from the kernel's random source.
    pub fn random() -> io::Result<Self> {
        let mut bytes = [0; 32];
        File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// One that was made elsewhere.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// What the far end keeps of it.
    pub fn hash(&self) -> PermitHash {
        PermitHash(blake3::hash(&self.0))
    }
}

impl fmt::Debug for Permit {
    /// Never shows it.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Permit")
    }
}

impl From<Permit> for String {
    fn from(permit: Permit) -> Self {
        blake3::Hash::from_bytes(permit.0).to_hex().to_string()
    }
}

impl TryFrom<String> for Permit {
    type Error = blake3::HexError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Ok(Self(*blake3::Hash::from_hex(text)?.as_bytes()))
    }
}

/// BLAKE3 of a permit. Comparing two takes the same time wherever they differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PermitHash(blake3::Hash);

impl From<PermitHash> for String {
    fn from(hash: PermitHash) -> Self {
        hash.0.to_hex().to_string()
    }
}

impl TryFrom<String> for PermitHash {
    type Error = blake3::HexError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Ok(Self(blake3::Hash::from_hex(text)?))
    }
}

/// The far end's memory of what is good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ValidPermits {
    current: PermitHash,
    next: Option<PermitHash>,
}

impl ValidPermits {
    pub(crate) fn new(first: PermitHash) -> Self {
        Self {
            current: first,
            next: None,
        }
    }

    /// Whether a permit is good; if so, `next` will be good too.
    pub(crate) fn admit(&mut self, shown: &Permit, next: PermitHash) -> bool {
        let shown = shown.hash();
        if self.next == Some(shown) {
            self.current = shown;
        } else if self.current != shown {
            return false;
        }
        self.next = Some(next);
        true
    }

    /// The near end has this one: what was good before is not any more.
    pub(crate) fn confirm(&mut self, next: PermitHash) {
        if self.next == Some(next) {
            self.current = next;
            self.next = None;
        }
    }
}

#[cfg(test)]
mod test {
    use proptest::prelude::*;

    use super::*;

    fn permit(number: u8) -> Permit {
        Permit::from_bytes([number; 32])
    }

    #[test]
    fn a_used_permit_is_refused() {
        let mut door = ValidPermits::new(permit(1).hash());
        assert!(!door.admit(&permit(2), permit(9).hash()), "another one's");
        assert!(door.admit(&permit(1), permit(2).hash()));
        door.confirm(permit(2).hash());
        assert!(!door.admit(&permit(1), permit(3).hash()), "used");
        assert!(door.admit(&permit(2), permit(3).hash()));
        // Showing the next one proves as well that it arrived.
        assert!(door.admit(&permit(3), permit(4).hash()));
        assert!(!door.admit(&permit(2), permit(5).hash()));
        assert!(!door.admit(&permit(5), permit(6).hash()), "never offered");
    }

    #[test]
    fn text_and_back() {
        let permit = Permit::random().unwrap();
        let text = serde_json::to_string(&permit).unwrap();
        assert_eq!(text.len(), 66);
        assert_eq!(serde_json::from_str::<Permit>(&text).unwrap(), permit);
        assert!(serde_json::from_str::<Permit>(r#""00""#).is_err());
        assert!(!format!("{permit:?}").contains(&text[1..9]));
    }

    proptest! {
        /// Whatever is lost, the near end gets in with the newest permit that it has.
        #[test]
        fn a_lost_answer_locks_nobody_out(lost in prop::collection::vec(0u8..3, 0..60)) {
            let mut door = ValidPermits::new(permit(0).hash());
            let mut has = permit(0);
            let mut used = Vec::new();
            for (number, lost) in (1u8..).zip(lost) {
                let next = permit(number);
                prop_assert!(door.admit(&has, next.hash()));
                if lost == 0 {
                    continue; // The welcome was lost.
                }
                used.push(std::mem::replace(&mut has, next.clone()));
                if lost == 1 {
                    continue; // The confirmation was lost.
                }
                door.confirm(next.hash());
                for old in &used {
                    prop_assert!(!door.admit(old, permit(255).hash()));
                }
            }
        }
    }
}
