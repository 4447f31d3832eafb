//! Container engines of this host, asked as the agent asks them.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use super::Check;
use crate::config::Config;

const NAME: &str = "engines";
/// Where engines have their sockets by default, and the program of each.
const USUAL: [(&str, &str, &str); 2] = [
    ("docker", "/run/docker.sock", "dockerd"),
    ("podman", "/run/podman/podman.sock", "podman"),
];
/// How long one is waited for.
const PATIENCE: Duration = Duration::from_secs(3);
/// The longest answer.
const ANSWER_LEN_MAX: u64 = 64 * 1024;

pub(super) fn checks(config: &Config) -> Vec<Check> {
    if !config.engines.is_empty() {
        let named = config.engines.iter();
        return named
            .map(|(name, socket)| asked(name.as_str(), socket))
            .collect();
    }
    let usual = USUAL.into_iter().filter_map(|(name, socket, program)| {
        let socket = PathBuf::from(socket);
        match socket.exists() {
            true => Some(asked(name, &socket)),
            false => is_installed(program).then(|| silent(name, &socket)),
        }
    });
    usual.collect()
}

fn asked(name: &str, socket: &Path) -> Check {
    match version(socket) {
        Ok(version) => Check::ok(NAME, format!("{name} answers, version {version}")),
        Err(error) => Check::warn(
            NAME,
            format!("{name} does not answer at {}: {error}", socket.display()),
            "start it, or take it out of the settings (`[engines]`)",
        ),
    }
}

fn silent(name: &str, socket: &Path) -> Check {
    let detail = format!(
        "{name} is installed, and nobody serves its API at {}: its containers are not seen",
        socket.display()
    );
    let remedy = match name {
        "podman" => "have its API served: `systemctl enable --now podman.socket`",
        _ => "start it, if its containers are to be moved",
    };
    Check::warn(NAME, detail, remedy)
}

fn is_installed(program: &str) -> bool {
    let directories = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin"];
    directories
        .iter()
        .any(|directory| Path::new(directory).join(program).exists())
}

/// What it answers to `GET /version` (Docker Engine API, which Podman serves too).
fn version(socket: &Path) -> Result<String, String> {
    let ask = || -> std::io::Result<String> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET /version HTTP/1.0\r\nHost: engine\r\n\r\n")?;
        let mut answer = String::new();
        stream.take(ANSWER_LEN_MAX).read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = ask().map_err(|error| error.to_string())?;
    read_version(&answer).ok_or_else(|| "its answer tells no version".to_owned())
}

fn read_version(answer: &str) -> Option<String> {
    let (_, body) = answer.split_once("\r\n\r\n")?;
    let body: Value = serde_json::from_str(body.trim()).ok()?;
    Some(body["Version"].as_str()?.to_owned())
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn an_answer_tells_a_version() {
        let answer =
            "HTTP/1.0 200 OK\r\nServer: x\r\n\r\n{\"Version\":\"20.10.24\",\"Os\":\"linux\"}\n";
        assert_eq!(read_version(answer).as_deref(), Some("20.10.24"));
        for bad in ["", "HTTP/1.0 500 No\r\n\r\n", "HTTP/1.0 200 OK\r\n\r\n{}"] {
            assert_eq!(read_version(bad), None);
        }
    }

    #[test]
    fn one_that_is_named_and_not_there_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let check = asked("docker", &directory.path().join("no.sock"));
        assert!(check.detail.contains("docker does not answer"), "{check:?}");
        assert!(check.remedy.is_some());
    }
}
