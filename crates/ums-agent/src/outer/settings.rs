//! What an outer container is told: by its image (`wrap.json`), its engine's mounts, and environment
//! variables whose names begin with `UMS_`, which the service does not see.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use ums_core::id::ServiceName;
use ums_core::specification::{PublishedPort, Transport};
use ums_core::wrap::{self, Wrap, WrapError};

/// What begins the names of variables that are meant for the outer container.
const PREFIX: &str = "UMS_";
/// Where the data path listens unless `UMS_DATA_PORT` says otherwise: beside the node's own.
const DATA_PORT: u16 = 7446;

/// What an outer container has to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Settings {
    /// Name of the service.
    pub service: ServiceName,
    /// What it runs.
    pub command: Vec<String>,
    /// Its environment.
    pub env: Vec<String>,
    /// Its working directory.
    pub cwd: String,
    /// Its user, as the image names it.
    pub user: String,
    /// Ports of the outer container that lead to it.
    pub ports: Vec<PublishedPort>,
    /// Whether it comes from elsewhere, and is not started here.
    pub awaits: bool,
    /// Where peers' data paths arrive, on every address.
    pub data_port: u16,
    /// Flags of `ums-agent serve` that have the values of variables.
    pub flags: Vec<(String, String)>,
}

/// Variables that are flags of `ums-agent serve`.
const FLAGS: [(&str, &str); 6] = [
    ("UMS_TUNNEL_PORTS", "--tunnel-ports"),
    ("UMS_SERVICE_NETWORK", "--service-network"),
    ("UMS_RETIRE_SECONDS", "--retire-seconds"),
    ("UMS_FRONTMAN", "--frontman"),
    ("UMS_RESTORE", "--restore"),
    ("UMS_BANDWIDTH_BYTES", "--bandwidth-bytes"),
];

impl Settings {
    /// Reads image, mounts and environment of this container. `arguments` are what the container was
    /// started with.
    pub(crate) fn read(arguments: &[String]) -> anyhow::Result<Self> {
        let text = fs::read(wrap::FILE)
            .with_context(|| format!("{} is not there: this is no wrapped image", wrap::FILE))?;
        let wrap: Wrap = serde_json::from_slice(&text).context(wrap::FILE)?;
        wrap.check()?;
        let variables: BTreeMap<String, String> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let cwd = std::env::current_dir().unwrap_or_else(|_| "/".into());
        let cwd = cwd.to_str().unwrap_or("/");
        Self::from(
            &wrap,
            arguments,
            &variables,
            mounted_from(&mounts, wrap::RUN),
            cwd,
        )
    }

    fn from(
        wrap: &Wrap,
        arguments: &[String],
        variables: &BTreeMap<String, String>,
        run_from: Option<&str>,
        cwd: &str,
    ) -> anyhow::Result<Self> {
        let variable = |name: &str| variables.get(name).map(String::as_str);
        let named = variable("UMS_SERVICE").or_else(|| Path::new(run_from?).file_name()?.to_str());
        let Some(service) = named else {
            bail!(
                "the service has no name: mount a directory of that name of the system's, with \
                 `-v /run/ums/outer/NAME:{}`, or set UMS_SERVICE",
                wrap::RUN
            );
        };
        let ports = match variable("UMS_PORTS") {
            Some(text) => text
                .split([',', ' '])
                .filter(|it| !it.is_empty())
                .map(port)
                .collect(),
            None => Ok(wrap
                .ports
                .iter()
                .map(|it| PublishedPort {
                    transport: it.transport,
                    system_port: it.port,
                    service_port: it.port,
                })
                .collect()),
        };
        let env = variables
            .iter()
            .filter(|(name, _)| !name.starts_with(PREFIX));
        let awaits = variable("UMS_AWAIT").is_some_and(|it| !matches!(it, "" | "0" | "no"));
        // What comes from elsewhere brings its command along.
        let command = match wrap.command(arguments) {
            Err(WrapError::NothingToRun) if awaits => Vec::new(),
            command => command?,
        };
        Ok(Self {
            service: service.parse().context("the service's name")?,
            command,
            env: env.map(|(name, value)| format!("{name}={value}")).collect(),
            cwd: cwd.to_owned(),
            user: wrap.user.clone(),
            ports: ports?,
            awaits,
            data_port: match variable("UMS_DATA_PORT") {
                Some(text) => text.parse().context("UMS_DATA_PORT is no port")?,
                None => DATA_PORT,
            },
            flags: FLAGS
                .iter()
                .filter_map(|(name, flag)| Some(((*flag).to_owned(), variable(name)?.to_owned())))
                .collect(),
        })
    }

    /// The address of this container that an engine's published ports lead to: the first one that is
    /// not its loopback's.
    pub(crate) fn address() -> IpAddr {
        let all = nix::ifaddrs::getifaddrs().into_iter().flatten();
        let mut all = all.filter_map(|it| Some(it.address?.as_sockaddr_in()?.ip()));
        all.find(|ip| !ip.is_loopback())
            .unwrap_or(Ipv4Addr::LOCALHOST)
            .into()
    }
}

/// `SYSTEM:SERVICE[/udp]`, or one number for both.
fn port(text: &str) -> anyhow::Result<PublishedPort> {
    let (numbers, transport) = text.split_once('/').unwrap_or((text, "tcp"));
    let (system, service) = numbers.split_once(':').unwrap_or((numbers, numbers));
    let wrong = || format!("UMS_PORTS: `{text}` is not PORT or PORT:PORT, with /tcp or /udp");
    Ok(PublishedPort {
        transport: Transport::from_name(transport).with_context(wrong)?,
        system_port: system.parse().with_context(wrong)?,
        service_port: service.parse().with_context(wrong)?,
    })
}

/// What of its file system is mounted there (`proc_pid_mountinfo(5)`, the field *root*).
fn mounted_from<'a>(mountinfo: &'a str, place: &str) -> Option<&'a str> {
    let fields = |line: &'a str| {
        let mut fields = line.split(' ').skip(3);
        Some((fields.next()?, fields.next()?))
    };
    let mut all = mountinfo.lines().filter_map(fields);
    all.find_map(|(root, at)| (at == place).then_some(root))
}

/// Numbers of a user that an image names: `USER[:GROUP]`. `passwd` and `group` are the image's files.
///
/// # Errors
/// When one of them is not there by that name.
pub(super) fn user(named: &str, passwd: &str, group: &str) -> anyhow::Result<(u32, u32)> {
    let (user, given_group) = named.split_once(':').unwrap_or((named, ""));
    if user.is_empty() {
        return Ok((0, 0));
    }
    let entry = |file: &str, key: &str| -> Option<Vec<String>> {
        let mut lines = file
            .lines()
            .map(|line| line.split(':').map(str::to_owned).collect());
        lines.find(|fields: &Vec<String>| {
            fields.first().is_some_and(|it| it == key) || fields.get(2).is_some_and(|it| it == key)
        })
    };
    let number = |fields: &Option<Vec<String>>, at: usize| {
        fields
            .as_ref()
            .and_then(|it| it.get(at)?.parse::<u32>().ok())
    };
    let found = entry(passwd, user);
    let uid = number(&found, 2).or_else(|| user.parse().ok());
    let uid = uid.with_context(|| format!("the image has no user `{user}`"))?;
    let gid = match given_group {
        "" => number(&found, 3).unwrap_or(0),
        name => number(&entry(group, name), 2)
            .or_else(|| name.parse().ok())
            .with_context(|| format!("the image has no group `{name}`"))?,
    };
    Ok((uid, gid))
}

#[cfg(test)]
mod test {
    use super::*;

    fn wrapped() -> Wrap {
        serde_json::from_str(
            r#"{"version":1,"level":"container","entrypoint":["/srv"],
                "ports":[{"transport":"tcp","port":80}]}"#,
        )
        .unwrap()
    }

    fn variables(of: &[(&str, &str)]) -> BTreeMap<String, String> {
        of.iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn the_name_is_that_of_the_directory_which_is_mounted() {
        let mounts = "1 2 0:3 /ums/outer/web /.ums/run rw - tmpfs tmpfs rw\n\
                      2 2 0:4 / /proc rw - proc proc rw\n";
        let from = mounted_from(mounts, wrap::RUN);
        let settings = Settings::from(&wrapped(), &[], &variables(&[]), from, "/").unwrap();
        assert_eq!(settings.service.as_str(), "web");
        assert_eq!(
            (
                settings.ports[0].system_port,
                settings.ports[0].service_port
            ),
            (80, 80)
        );
        assert!(Settings::from(&wrapped(), &[], &variables(&[]), None, "/").is_err());
    }

    #[test]
    fn what_is_meant_for_the_outer_container_is_not_the_services() {
        let of = variables(&[
            ("UMS_SERVICE", "web"),
            ("UMS_PORTS", "8080:80,53/udp"),
            ("UMS_TUNNEL_PORTS", "7450-7451"),
            ("HOME", "/root"),
        ]);
        let settings = Settings::from(&wrapped(), &[], &of, None, "/").unwrap();
        assert_eq!(settings.env, ["HOME=/root"]);
        assert_eq!(settings.ports[0].system_port, 8080);
        assert_eq!(settings.ports[1].transport, Transport::Udp);
        assert_eq!(
            settings.flags,
            [("--tunnel-ports".to_owned(), "7450-7451".to_owned())]
        );
        let empty: Wrap = serde_json::from_str(r#"{"version":1,"level":"container"}"#).unwrap();
        assert!(Settings::from(&empty, &[], &of, None, "/").is_err());
        let awaits = variables(&[("UMS_SERVICE", "web"), ("UMS_AWAIT", "1")]);
        assert!(
            Settings::from(&empty, &[], &awaits, None, "/")
                .unwrap()
                .awaits
        );
        assert!(port("80:x").is_err() && port("80/sctp").is_err());
    }

    #[test]
    fn users_are_found_by_name_and_number() {
        let (passwd, group) = ("root:x:0:0::/:\nweb:x:33:44::/:\n", "wheel:x:7:\n");
        let of = |named| user(named, passwd, group).unwrap();
        assert_eq!(of(""), (0, 0));
        assert_eq!(of("web"), (33, 44));
        assert_eq!(of("33:wheel"), (33, 7));
        assert_eq!(of("99:98"), (99, 98));
        assert!(user("nobody", passwd, group).is_err());
    }
}
