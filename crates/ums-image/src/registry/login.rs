//! Who one is at a registry, as `docker login` and `podman login` remember it.

use std::io::Read;
use std::path::Path;

use base64::Engine as _;
use serde::Deserialize;

use crate::document::parse;
use crate::error::Error;
use crate::limits::DOCUMENT_BYTES_MAX;

/// Who asks a registry.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// User name.
    pub username: String,
    /// Password or token.
    pub password: String,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Login")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    auths: std::collections::BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    auth: String,
}

impl Login {
    /// The value of an `Authorization` header (RFC 7617).
    pub(super) fn basic(&self) -> String {
        let pair = format!("{}:{}", self.username, self.password);
        let encoded = base64::engine::general_purpose::STANDARD.encode(pair);
        format!("Basic {encoded}")
    }

    /// Looks a registry's host up in a `config.json` of Docker or an `auth.json` of Podman. What a credential helper
    /// keeps is not asked for.
    ///
    /// # Errors
    /// When the file is there and can't be read.
    pub fn find(file: &Path, host: &str) -> Result<Option<Self>, Error> {
        let opened = match std::fs::File::open(file) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            opened => opened.map_err(Error::io("open", file))?,
        };
        let mut bytes = Vec::new();
        opened
            .take(DOCUMENT_BYTES_MAX)
            .read_to_end(&mut bytes)
            .map_err(Error::io("read", file))?;
        let what = format!("`{}`", file.display());
        let read: File = parse(&what, &bytes)?;
        let entry = read
            .auths
            .iter()
            .find(|(name, entry)| !entry.auth.is_empty() && host_of(name) == canonical(host));
        let Some((_, entry)) = entry else {
            return Ok(None);
        };
        let pair = base64::engine::general_purpose::STANDARD
            .decode(entry.auth.trim())
            .ok()
            .and_then(|bytes| String::from_utf8(bytes).ok());
        let pair = pair.as_deref().and_then(|pair| pair.split_once(':'));
        let (username, password) = pair.ok_or_else(|| {
            Error::malformed(what, format!("`auth` of {host} is not a user and password"))
        })?;
        Ok(Some(Self {
            username: username.to_owned(),
            password: password.trim_end_matches('\0').to_owned(),
        }))
    }
}

/// Keys are hosts, or addresses of old versions of the protocol.
fn host_of(key: &str) -> &str {
    let key = key
        .strip_prefix("https://")
        .or(key.strip_prefix("http://"))
        .unwrap_or(key);
    canonical(key.split('/').next().unwrap_or(key))
}

fn canonical(host: &str) -> &str {
    match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn what_docker_login_remembers_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.json");
        assert_eq!(Login::find(&file, "docker.io").unwrap(), None);
        // me:secret:1
        let json = r#"{"auths":{"https://index.docker.io/v1/":{"auth":"bWU6c2VjcmV0OjE="},
            "host.example:5000":{"auth":"x"},"kept.example":{}},"credsStore":"pass"}"#;
        std::fs::write(&file, json).unwrap();
        let found = Login::find(&file, "docker.io").unwrap().unwrap();
        assert_eq!((&*found.username, &*found.password), ("me", "secret:1"));
        assert!(!format!("{found:?}").contains("secret"));
        assert_eq!(found.basic(), "Basic bWU6c2VjcmV0OjE=");
        assert_eq!(Login::find(&file, "kept.example").unwrap(), None);
        assert!(Login::find(&file, "host.example:5000").is_err());
    }
}
