//! What a container's network namespace must have before its sockets are made.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Name of the file with the container's kernel parameters, in the directory of its offer.
pub(crate) const SYSCTL: &str = "sysctl.json";

/// Sets the parameters of the network that the container is to have, in the namespace that this process is in. Others
/// are those of namespaces that CRIU makes; it carries them.
pub(crate) fn set(place: &Path) -> Result<(), String> {
    let text = fs::read(place.join(SYSCTL)).map_err(|error| error.to_string())?;
    let all: BTreeMap<String, String> =
        serde_json::from_slice(&text).map_err(|error| format!("linux.sysctl: {error}"))?;
    for (name, value) in all.iter().filter(|(name, _)| name.starts_with("net.")) {
        let file = Path::new("/proc/sys").join(path_of(name));
        fs::write(&file, value).map_err(|error| format!("{name} can't be set: {error}"))?;
    }
    Ok(())
}

/// Dots separate, and stand for slashes; where slashes separate, dots are themselves (sysctl(8)).
fn path_of(name: &str) -> String {
    match name.contains('/') {
        true => name.to_owned(),
        false => name.replace('.', "/"),
    }
}

/// Brings the loopback device up, as runc does in a namespace that it makes. `bin` has `ip`.
pub(crate) fn loopback(bin: &Path) -> Result<(), String> {
    let ip = bin.join("ip");
    let up = Command::new(&ip).args(["link", "set", "lo", "up"]).output();
    match up {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!(
            "lo can't be brought up: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )),
        Err(error) => Err(format!("`{}` can't be started: {error}", ip.display())),
    }
}

#[cfg(test)]
mod test {
    use super::path_of;

    #[test]
    fn both_ways_to_write_a_parameter() {
        assert_eq!(path_of("net.ipv4.ip_forward"), "net/ipv4/ip_forward");
        assert_eq!(
            path_of("net/ipv4/conf/eth0.5/mtu"),
            "net/ipv4/conf/eth0.5/mtu"
        );
    }
}
