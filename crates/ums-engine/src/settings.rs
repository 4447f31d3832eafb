//! Which engines there are on a node.

use std::path::PathBuf;
use std::str::FromStr;

/// The longest name of an engine, bytes.
const NAME_LEN_MAX: usize = 20;

/// The sockets that engines have by default; those that are not there are passed over.
const USUAL: [(&str, &str); 2] = [
    ("docker", "/run/docker.sock"),
    ("podman", "/run/podman/podman.sock"),
];

/// An engine and where it is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// Its name on this node: lower-case letters, digits and hyphens.
    pub name: String,
    /// The socket of its API: the Docker Engine's, or one that is compatible.
    pub socket: PathBuf,
    /// Whether somebody said that it is there: else it is passed over where it is not.
    pub expected: bool,
}

/// Not the name of an engine and its socket.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` names no engine: give NAME=SOCKET, such as `docker=/run/docker.sock`; a name has 1 to \
     {NAME_LEN_MAX} lower-case letters, digits and hyphens"
)]
pub struct InvalidSetting(String);

impl FromStr for Setting {
    type Err = InvalidSetting;

    fn from_str(text: &str) -> Result<Self, InvalidSetting> {
        let invalid = || InvalidSetting(text.to_owned());
        let (name, socket) = text.split_once('=').ok_or_else(invalid)?;
        let usable = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let named = (1..=NAME_LEN_MAX).contains(&name.len()) && name.bytes().all(usable);
        if !named || name.starts_with('-') || !socket.starts_with('/') {
            return Err(invalid());
        }
        Ok(Self {
            name: name.to_owned(),
            socket: socket.into(),
            expected: true,
        })
    }
}

/// Those that were named, or the usual ones.
pub fn or_usual(named: &[Setting]) -> Vec<Setting> {
    if !named.is_empty() {
        return named.to_vec();
    }
    let usual = USUAL.map(|(name, socket)| Setting {
        name: name.to_owned(),
        socket: socket.into(),
        expected: false,
    });
    usual.to_vec()
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn an_engine_is_named_with_its_socket() {
        let docker: Setting = "docker=/run/docker.sock".parse().unwrap();
        assert_eq!((docker.name.as_str(), docker.expected), ("docker", true));
        for bad in ["docker", "=/x", "Docker=/x", "docker=x", "-a=/x", "a_b=/x"] {
            assert!(bad.parse::<Setting>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_usual_ones_are_not_missed() {
        assert!(or_usual(&[]).iter().all(|setting| !setting.expected));
        let own: Setting = "x=/x".parse().unwrap();
        assert_eq!(or_usual(std::slice::from_ref(&own)), [own]);
    }
}
