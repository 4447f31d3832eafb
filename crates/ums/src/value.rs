//! Values as people write them, in a flag, an environment variable or the configuration file: one
//! parser for all three, so that a bad value is refused with the same words wherever it stands.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use ums_core::id::ServiceName;
use ums_core::specification::{PublishedPort, Transport, Volume};
use ums_image::Reference;
use ums_image::reference::InvalidReference;

/// A value that can't be used, and what it should look like.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{given}` is not {wanted}")]
pub(crate) struct BadValue {
    given: String,
    wanted: String,
}

impl BadValue {
    fn new(given: &str, wanted: impl Into<String>) -> Self {
        // An error is no place for a megabyte of nonsense.
        Self {
            given: given.chars().take(80).collect(),
            wanted: wanted.into(),
        }
    }
}

/// Lets a type that is read by `FromStr` stand as a string in the configuration file.
macro_rules! text_in_file {
    ($($name:ty),*) => {$(
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
                String::deserialize(input)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

text_in_file!(Network, Rate, Lease);

/// An IPv4 network: `10.88.0.0/16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Network {
    /// First address.
    pub(crate) address: Ipv4Addr,
    /// Prefix length.
    pub(crate) prefix_len: u8,
}

impl FromStr for Network {
    type Err = BadValue;
    fn from_str(text: &str) -> Result<Self, BadValue> {
        let wanted = "an IPv4 network of /8 to /29 without host bits, such as 10.88.0.0/16";
        let bad = || BadValue::new(text, wanted);
        let (address, prefix_len) = text.split_once('/').ok_or_else(bad)?;
        let address: Ipv4Addr = address.parse().map_err(|_| bad())?;
        let prefix_len: u8 = prefix_len.parse().map_err(|_| bad())?;
        // A /29 holds the gateway and five services.
        if !(8..=29).contains(&prefix_len) || address.to_bits() << prefix_len != 0 {
            return Err(bad());
        }
        Ok(Self {
            address,
            prefix_len,
        })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.address, self.prefix_len)
    }
}

/// A rate: `800mbit`, `1gbit`, kept in bytes per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rate {
    /// Bytes per second, never 0.
    pub(crate) bytes_per_second: u64,
}

impl FromStr for Rate {
    type Err = BadValue;
    fn from_str(text: &str) -> Result<Self, BadValue> {
        let bad = || BadValue::new(text, "a rate, such as 800mbit or 1gbit");
        let units = [("gbit", 125_000_000), ("mbit", 125_000), ("kbit", 125)];
        let bytes_per_second = scaled(text, &units)
            .filter(|rate| *rate > 0)
            .ok_or_else(bad)?;
        Ok(Self { bytes_per_second })
    }
}

/// An amount of memory: `512M`, `2G`, `65536`, kept in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

impl FromStr for Size {
    type Err = BadValue;
    fn from_str(text: &str) -> Result<Self, BadValue> {
        let units = [
            ("K", 1 << 10),
            ("M", 1 << 20),
            ("G", 1 << 30),
            ("T", 1 << 40),
            ("", 1),
        ];
        let bad = || BadValue::new(text, "a size of at least 1 byte, such as 512M or 2G");
        let short = text.strip_suffix("iB").unwrap_or(text);
        scaled(short, &units)
            .filter(|bytes| *bytes > 0)
            .map(Self)
            .ok_or_else(bad)
    }
}

/// A span of time: `500ms`, `30s`, `2m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span(pub(crate) Duration);

impl FromStr for Span {
    type Err = BadValue;
    fn from_str(text: &str) -> Result<Self, BadValue> {
        // `ms` before `s`: the first that fits is taken.
        let units = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)];
        let bad = || BadValue::new(text, "a span of time, such as 500ms, 30s or 2m");
        scaled(text, &units)
            .map(Duration::from_millis)
            .map(Self)
            .ok_or_else(bad)
    }
}

/// How long the destination keeps what it holds for a source that has fallen silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lease(pub(crate) Duration);

impl FromStr for Lease {
    type Err = BadValue;
    fn from_str(text: &str) -> Result<Self, BadValue> {
        let bad = || BadValue::new(text, "a lease of 5s to 24h, such as 60s");
        let Span(span) = text.parse().map_err(|_| bad())?;
        let sane = Duration::from_secs(5)..=Duration::from_secs(24 * 3600);
        if sane.contains(&span) {
            Ok(Self(span))
        } else {
            Err(bad())
        }
    }
}

/// A whole number between two bounds, both allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bounded<const MIN: u64, const MAX: u64>(pub(crate) u64);

impl<const MIN: u64, const MAX: u64> FromStr for Bounded<MIN, MAX> {
    type Err = BadValue;
    fn from_str(text: &str) -> Result<Self, BadValue> {
        let bad = || BadValue::new(text, format!("a whole number from {MIN} to {MAX}"));
        let number = text.parse().map_err(|_| bad())?;
        if (MIN..=MAX).contains(&number) {
            Ok(Self(number))
        } else {
            Err(bad())
        }
    }
}

impl<'de, const MIN: u64, const MAX: u64> Deserialize<'de> for Bounded<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let number = i64::deserialize(input)?;
        number.to_string().parse().map_err(serde::de::Error::custom)
    }
}

/// The name of a container engine on a node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct EngineName(String);

/// As the agent takes it, bytes.
const ENGINE_NAME_LEN_MAX: usize = 20;

impl EngineName {
    /// The name.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for EngineName {
    type Error = BadValue;
    fn try_from(name: String) -> Result<Self, BadValue> {
        let usable = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let is_named = (1..=ENGINE_NAME_LEN_MAX).contains(&name.len()) && name.bytes().all(usable);
        match is_named && !name.starts_with('-') {
            true => Ok(Self(name)),
            false => Err(BadValue::new(
                &name,
                format!(
                    "the name of an engine: 1 to {ENGINE_NAME_LEN_MAX} lower-case letters, digits and hyphens"
                ),
            )),
        }
    }
}

/// A path from the root.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct AbsolutePath(pub(crate) std::path::PathBuf);

impl TryFrom<String> for AbsolutePath {
    type Error = BadValue;
    fn try_from(path: String) -> Result<Self, BadValue> {
        match path.starts_with('/') {
            true => Ok(Self(path.into())),
            false => Err(BadValue::new(&path, "a path that begins with /")),
        }
    }
}

/// `--publish SYSTEM:SERVICE`, or one number for both, with `/udp` behind it for datagrams.
pub(crate) fn published_port(text: &str) -> Result<PublishedPort, BadValue> {
    let bad = || {
        BadValue::new(
            text,
            "a pair of ports from 1 on, such as 8080:80 or 5353:53/udp",
        )
    };
    let port = |part: &str| {
        part.parse()
            .ok()
            .filter(|port: &u16| *port > 0)
            .ok_or_else(bad)
    };
    let (ports, transport) = text.split_once('/').unwrap_or((text, "tcp"));
    let (system, service) = ports.split_once(':').unwrap_or((ports, ports));
    Ok(PublishedPort {
        transport: Transport::from_name(transport).ok_or_else(bad)?,
        system_port: port(system)?,
        service_port: port(service)?,
    })
}

/// `--volume NAME:/PATH`.
pub(crate) fn volume(text: &str) -> Result<Volume, BadValue> {
    let bad = || {
        BadValue::new(
            text,
            "a name and an absolute path, such as data:/var/lib/data; directories of this host don't move, and \
             there are no options behind the path",
        )
    };
    let (name, path) = text.split_once(':').ok_or_else(bad)?;
    let name: ServiceName = name.parse().map_err(|_| bad())?;
    let walks = path.split('/').any(|part| part == ".." || part == ".");
    if !path.starts_with('/') || path.len() < 2 || walks || path.contains(':') {
        return Err(bad());
    }
    Ok(Volume {
        name,
        path: path.to_owned(),
    })
}

/// `--env NAME=VALUE`, or the name of one that this program has.
pub(crate) fn variable(text: &str) -> Result<String, BadValue> {
    let bad = || {
        BadValue::new(
            text,
            "a variable, such as LANG=C.UTF-8, or the name of one that is set here",
        )
    };
    match text.split_once('=') {
        Some((name, _)) if !name.is_empty() && !text.contains('\0') => Ok(text.to_owned()),
        None if !text.is_empty() => match std::env::var(text) {
            Ok(value) => Ok(format!("{text}={value}")),
            Err(_) => Err(bad()),
        },
        _ => Err(bad()),
    }
}

/// `--label NAME[=VALUE]`.
pub(crate) fn label(text: &str) -> Result<(String, String), BadValue> {
    let (name, value) = text.split_once('=').unwrap_or((text, ""));
    if name.is_empty() || text.contains('\0') {
        return Err(BadValue::new(text, "a label, such as owner=me"));
    }
    Ok((name.to_owned(), value.to_owned()))
}

/// The reference of an image.
pub(crate) fn image(text: &str) -> Result<Reference, InvalidReference> {
    text.parse()
}

/// `--restart`. No service is started again here: what can't be done is refused by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Restart;

impl FromStr for Restart {
    type Err = BadValue;
    fn from_str(text: &str) -> Result<Self, BadValue> {
        let wanted = "a policy that UMS has: it starts no service again that has ended, so leave it out, or give \
                      `no`";
        match text {
            "no" => Ok(Self),
            _ => Err(BadValue::new(text, wanted)),
        }
    }
}

/// A number of processors: `2`, `0.5`, kept in billionths of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cpus(pub(crate) u64);

impl FromStr for Cpus {
    type Err = BadValue;
    fn from_str(text: &str) -> Result<Self, BadValue> {
        let bad = || {
            BadValue::new(
                text,
                "a number of processors from 0.01 to 1024, such as 1.5",
            )
        };
        let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |part: &str| !part.is_empty() && part.bytes().all(|it| it.is_ascii_digit());
        if !digits(whole) || !digits(fraction) || fraction.len() > 9 {
            return Err(bad());
        }
        let fraction: u64 = format!("{fraction:0<9}").parse().map_err(|_| bad())?;
        let whole: u64 = whole.parse().map_err(|_| bad())?;
        let nano = whole
            .checked_mul(1_000_000_000)
            .and_then(|it| it.checked_add(fraction));
        nano.filter(|nano| (10_000_000..=1024 * 1_000_000_000).contains(nano))
            .map(Self)
            .ok_or_else(bad)
    }
}

/// Reads `NUMBER UNIT`; `None` when there is no number, no such unit, or no room in 64 bits.
fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    units.iter().find_map(|(unit, factor)| {
        let number = text.strip_suffix(unit)?;
        if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        number.parse::<u64>().ok()?.checked_mul(*factor)
    })
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn networks_have_no_host_bits() {
        let network: Network = "10.88.0.0/16".parse().expect("a network");
        assert_eq!(network.to_string(), "10.88.0.0/16");
        for bad in [
            "10.88.0.1/16",
            "10.88.0.0",
            "10.88.0.0/33",
            "0.0.0.0/0",
            "::/16",
            "x/16",
        ] {
            assert!(bad.parse::<Network>().is_err(), "{bad}");
        }
    }

    #[test]
    fn amounts_have_units_and_fit() {
        assert_eq!("512M".parse(), Ok(Size(512 << 20)));
        assert_eq!("512MiB".parse(), Ok(Size(512 << 20)));
        assert_eq!("65536".parse(), Ok(Size(65536)));
        assert_eq!(
            "1gbit".parse(),
            Ok(Rate {
                bytes_per_second: 125_000_000
            })
        );
        assert_eq!("500ms".parse(), Ok(Span(Duration::from_millis(500))));
        assert_eq!("2m".parse(), Ok(Span(Duration::from_secs(120))));
        for bad in [
            "",
            "M",
            "-1M",
            "0",
            "1.5G",
            "99999999999999999999",
            "18446744073709551615T",
        ] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
        for bad in ["0mbit", "100", "1gbyte"] {
            assert!(bad.parse::<Rate>().is_err(), "{bad}");
        }
        for bad in ["", "5", "ms", "1d"] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
        for bad in ["4s", "25h"] {
            assert!(bad.parse::<Lease>().is_err(), "{bad}");
        }
    }

    #[test]
    fn ports_volumes_variables_and_users() {
        let port = published_port("8080:80").expect("a pair");
        assert_eq!((port.system_port, port.service_port), (8080, 80));
        assert_eq!(published_port("80").expect("one port").service_port, 80);
        for bad in ["", "0:80", "80:0", "a:b", "1:2:3", "70000"] {
            assert!(published_port(bad).is_err(), "{bad}");
        }
        assert_eq!(volume("data:/var/lib").expect("a volume").path, "/var/lib");
        for bad in [
            "data",
            "data:",
            "data:/",
            "data:relative",
            "Data:/x",
            "data:/a/../etc",
            "/host:/data",
            "data:/data:ro",
        ] {
            assert!(volume(bad).is_err(), "{bad}");
        }
        assert!(variable("A=").is_ok());
        assert!(variable("=b").is_err());
        assert!(variable("UMS_NO_SUCH_VARIABLE").is_err());
        assert!(variable("PATH").expect("set").starts_with("PATH=/"));
        assert_eq!(label("a=b=c").expect("a label"), ("a".into(), "b=c".into()));
        assert!(label("=b").is_err());
    }

    #[test]
    fn processors_are_counted_in_parts() {
        assert_eq!("1.5".parse(), Ok(Cpus(1_500_000_000)));
        assert_eq!("2".parse(), Ok(Cpus(2_000_000_000)));
        for bad in [
            "",
            "0",
            "0.001",
            "-1",
            "1.",
            ".5",
            "1e3",
            "2000",
            "1.0000000001",
        ] {
            assert!(bad.parse::<Cpus>().is_err(), "{bad}");
        }
        assert_eq!("no".parse(), Ok(Restart));
        let error = "always"
            .parse::<Restart>()
            .expect_err("not here")
            .to_string();
        assert!(error.contains("starts no service again"), "{error}");
    }
}
