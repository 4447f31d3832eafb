//! How a Frontman stands in for a service that moves or has moved (DESIGN section 6).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What a Frontman works on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FrontmanMode {
    /// The packets of the service's address, through a tunnel: established connections move along.
    /// Takes effect where both systems have it.
    #[default]
    Packets,
    /// Connections to its endpoints, by a proxy: established ones are reset.
    Connections,
}

impl fmt::Display for FrontmanMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Packets => "packets",
            Self::Connections => "connections",
        })
    }
}

impl FromStr for FrontmanMode {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "packets" => Ok(Self::Packets),
            "connections" => Ok(Self::Connections),
            _ => Err("write `packets` or `connections`"),
        }
    }
}

/// Ports from one to another, both included; written `FIRST-LAST`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortRange {
    /// The first.
    pub first: u16,
    /// The last.
    pub last: u16,
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl FromStr for PortRange {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let range = text.split_once('-').and_then(|(first, last)| {
            let (first, last) = (first.parse().ok()?, last.parse().ok()?);
            Some(Self { first, last })
        });
        range
            .filter(|range| 0 < range.first && range.first <= range.last)
            .ok_or("write it as FIRST-LAST, such as 7450-7499")
    }
}

impl TryFrom<String> for PortRange {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<PortRange> for String {
    fn from(range: PortRange) -> Self {
        range.to_string()
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        for mode in [FrontmanMode::Packets, FrontmanMode::Connections] {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
        let range: PortRange = "7450-7499".parse().unwrap();
        assert_eq!(range.to_string().parse(), Ok(range));
        for bad in ["", "7450", "0-1", "2-1", "1-70000", "a-b", "1-2-3"] {
            assert!(bad.parse::<PortRange>().is_err(), "{bad}");
        }
    }
}
