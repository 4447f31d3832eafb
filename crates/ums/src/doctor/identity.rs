//! This system's certificate: there, ours, in force.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use time::OffsetDateTime;
use ums_tls::Identity;
use x509_parser::pem::parse_x509_pem;

use super::Check;
use crate::config::Config;

/// So many days before it expires a certificate is worth a warning.
const EXPIRY_DAYS_LOW: i64 = 30;

const NAME: &str = "certificate";

pub(super) fn checks(config: &Config) -> Vec<Check> {
    let identity = match Identity::load(&config.ca, &config.cert, &config.key) {
        Ok(identity) => identity,
        Err(error) => return vec![Check::fail(NAME, error.to_string(), remedy(config))],
    };
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let mut checks = vec![
        name(config, &identity),
        validity("certificate time", &identity.cert_pem, now),
        validity("CA time", &identity.ca_pem, now),
    ];
    checks.push(key_mode(&config.key));
    checks
}

fn remedy(config: &Config) -> String {
    let system = config
        .system()
        .map_or_else(|_| "NAME".to_owned(), String::from);
    format!("issue one where the CA is: `ums ca issue {system}`, and put its three files there")
}

/// It has to fit its key and its CA, and to name this system.
fn name(config: &Config, identity: &Identity) -> Check {
    let usable = ums_tls::client_config(identity, &[])
        .map(drop)
        .and_then(|()| identity.name());
    let named = match usable {
        Ok(named) => named,
        Err(error) => return Check::fail(NAME, error.to_string(), remedy(config)),
    };
    match config.system() {
        Ok(system) if system == named => Check::ok(NAME, format!("of system {named}")),
        Ok(system) => Check::fail(
            NAME,
            format!("it is of system {named}, and this system is {system}"),
            format!("issue one for {system}, or set `system`"),
        ),
        Err(error) => Check::fail(NAME, error.to_string(), "set `system`"),
    }
}

/// The first certificate in a PEM file, against a time in seconds since the epoch.
fn validity(name: &'static str, pem: &str, now: i64) -> Check {
    let renew = "issue a new one with `ums ca`";
    let parsed = parse_x509_pem(pem.as_bytes());
    let Ok((_, document)) = parsed else {
        return Check::fail(name, "it is not PEM", renew);
    };
    let Ok(certificate) = document.parse_x509() else {
        return Check::fail(name, "it is not a certificate", renew);
    };
    let validity = certificate.validity();
    let (from, to) = (
        validity.not_before.timestamp(),
        validity.not_after.timestamp(),
    );
    let days = (to - now) / (24 * 60 * 60);
    if now < from {
        let clock = "set this host's clock, or issue a new one";
        return Check::fail(
            name,
            format!("not valid before {}", validity.not_before),
            clock,
        );
    }
    match (now > to, days) {
        (true, _) => Check::fail(name, format!("it expired at {}", validity.not_after), renew),
        (_, ..EXPIRY_DAYS_LOW) => Check::warn(name, format!("expires in {days} days"), renew),
        _ => Check::ok(name, format!("valid for {days} days")),
    }
}

fn key_mode(key: &Path) -> Check {
    const NAME: &str = "key";
    match std::fs::metadata(key).map(|file| file.permissions().mode() & 0o077) {
        Ok(0) => Check::ok(NAME, "only its owner can read it"),
        Ok(_) => Check::warn(
            NAME,
            format!("others can read {}", key.display()),
            format!("chmod 600 {}", key.display()),
        ),
        Err(error) => Check::fail(NAME, error.to_string(), "issue a new one with `ums ca`"),
    }
}

#[cfg(test)]
mod test {
    use std::time::Duration;

    use ums_tls::ca::Authority;

    use super::super::Verdict;
    use super::*;

    #[test]
    fn validity_has_a_beginning_a_warning_and_an_end() {
        let (authority, _) = Authority::new("test").expect("a CA");
        let day = 24 * 60 * 60;
        let system = "a".parse().expect("a name");
        let issued = authority
            .issue(&system, &[], Duration::from_secs(100 * day))
            .expect("a certificate");
        let now = OffsetDateTime::now_utc().unix_timestamp();
        let day = day as i64;
        let at = |days: i64| validity("x", &issued.cert_pem, now + days * day + 60).verdict;
        assert_eq!(at(0), Verdict::Ok);
        assert_eq!(at(69), Verdict::Ok);
        assert_eq!(at(71), Verdict::Warn);
        assert_eq!(at(101), Verdict::Fail);
        assert_eq!(at(-2), Verdict::Fail);
        assert_eq!(validity("x", "nonsense", now).verdict, Verdict::Fail);
    }
}
