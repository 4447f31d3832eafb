//! `ums ca`: a certificate authority in a directory.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};
use ums_core::id::SystemName;
use ums_tls::ca::{Authority, Issued, SYSTEM_VALIDITY};

use super::{Outcome, print};
use crate::exit::{Exit, Failure};
use crate::value::BadValue;

/// The CA's certificate: every system has to trust it.
const CA_CERT: &str = "ca.pem";

/// The CA's key: it stays in the directory it was made in.
const CA_KEY: &str = "ca-key.pem";

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Make a certificate authority
    Init {
        /// Where it is kept; its key never has to leave this directory
        #[arg(long, value_name = "DIR", default_value = "ums-ca")]
        dir: PathBuf,
        /// What people see as its name
        #[arg(long, value_name = "TEXT", default_value = "UMS")]
        label: String,
    },
    /// Issue the certificate of a system: ca.pem, cert.pem and key.pem for its pki directory
    Issue {
        /// The system, as in its configuration
        system: SystemName,
        /// Where the authority is kept
        #[arg(long, value_name = "DIR", default_value = "ums-ca")]
        dir: PathBuf,
        /// An address to put in besides, for clients that ask by address; may be repeated
        #[arg(long = "ip", value_name = "ADDRESS")]
        addresses: Vec<IpAddr>,
        /// For how many days it is valid
        #[arg(long, value_name = "DAYS", value_parser = days)]
        days: Option<u32>,
        /// Where the three files are put [default: a directory named like the system]
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
}

fn days(text: &str) -> Result<u32, BadValue> {
    let crate::value::Bounded::<1, 36_500>(days) = text.parse()?;
    Ok(days as u32)
}

pub(crate) fn execute(command: Command) -> Outcome {
    match command {
        Command::Init { dir, label } => init(&dir, &label),
        Command::Issue {
            system,
            dir,
            addresses,
            days,
            out,
        } => {
            let day = std::time::Duration::from_secs(24 * 60 * 60);
            let validity = days.map_or(SYSTEM_VALIDITY, |days| day * days);
            let authority = load(&dir)?;
            let issued = authority
                .issue(&system, &addresses, validity)
                .with_context(|| format!("no certificate for `{system}`"))?;
            let out = out.unwrap_or_else(|| PathBuf::from(system.as_str()));
            place(&out, authority.cert_pem(), &issued)?;
            print(&format!(
                "{system}: ca.pem, cert.pem and key.pem are in {}; they belong into the pki \
                 directory of that system (STATE_DIR/pki)\n",
                out.display()
            ))
        }
    }
}

fn init(dir: &Path, label: &str) -> Outcome {
    if dir.join(CA_KEY).exists() || dir.join(CA_CERT).exists() {
        let error = anyhow!(
            "{} holds an authority already; certificates that it issued would be worthless with \
             another one: choose another directory",
            dir.display()
        );
        return Err(Failure::new(Exit::Refused, error));
    }
    let (_, kept) = Authority::new(label).context("the authority could not be made")?;
    create_dir(dir)?;
    write(&dir.join(CA_KEY), &kept.key_pem, 0o600)?;
    write(&dir.join(CA_CERT), &kept.cert_pem, 0o644)?;
    print(&format!(
        "an authority is in {}; keep {CA_KEY} secret, and issue certificates with `ums ca issue`\n",
        dir.display()
    ))
}

fn load(dir: &Path) -> Result<Authority, Failure> {
    let read = |name: &str| {
        let path = dir.join(name);
        fs::read_to_string(&path).with_context(|| {
            format!(
                "{} can't be read; `ums ca init` makes an authority",
                path.display()
            )
        })
    };
    let kept = Issued {
        cert_pem: read(CA_CERT)?,
        key_pem: read(CA_KEY)?,
    };
    let authority = Authority::from_pem(&kept);
    Ok(authority.with_context(|| format!("the authority in {} is damaged", dir.display()))?)
}

fn place(out: &Path, ca_pem: &str, issued: &Issued) -> Result<(), Failure> {
    create_dir(out)?;
    // The key first: without it the others are useless, and a half-done renewal is seen at once.
    write(&out.join("key.pem"), &issued.key_pem, 0o600)?;
    write(&out.join("cert.pem"), &issued.cert_pem, 0o644)?;
    write(&out.join("ca.pem"), ca_pem, 0o644)
}

fn create_dir(dir: &Path) -> Result<(), Failure> {
    let made = fs::create_dir_all(dir);
    Ok(made.with_context(|| format!("directory {} can't be made", dir.display()))?)
}

/// Writes a file whole or not at all; its mode holds before the first byte is in it.
fn write(path: &Path, text: &str, mode: u32) -> Result<(), Failure> {
    let new = path.with_extension("new");
    let failed = || format!("{} can't be written", path.display());
    // What an interrupted attempt left may have another mode.
    let _ = fs::remove_file(&new);
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(mode);
    let written = options
        .open(&new)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())
                .and_then(|()| file.sync_all())
        })
        .and_then(|()| fs::rename(&new, path));
    Ok(written.with_context(failed)?)
}

#[cfg(test)]
mod test {
    use std::os::unix::fs::PermissionsExt;

    use ums_tls::Identity;

    use super::*;

    fn issue(dir: &Path, out: &Path) -> Outcome {
        execute(Command::Issue {
            system: "a".parse().expect("a name"),
            dir: dir.to_owned(),
            addresses: vec!["10.77.0.1".parse().expect("an address")],
            days: Some(30),
            out: Some(out.to_owned()),
        })
    }

    #[test]
    fn an_authority_issues_identities_that_can_be_loaded() {
        let top = tempfile::TempDir::new().expect("a directory");
        let (dir, out) = (top.path().join("ca"), top.path().join("pki"));
        let failure = issue(&dir, &out).expect_err("there is no authority yet");
        assert!(
            failure
                .to_string()
                .contains("`ums ca init` makes an authority"),
            "{failure}"
        );

        init(&dir, "test").expect("made");
        issue(&dir, &out).expect("issued");
        let file = |name: &str| out.join(name);
        let identity = Identity::load(&file("ca.pem"), &file("cert.pem"), &file("key.pem"));
        assert_eq!(
            identity.expect("loads").name().expect("named").as_str(),
            "a"
        );
        for key in [out.join("key.pem"), dir.join(CA_KEY)] {
            let mode = fs::metadata(&key).expect("there").permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{}", key.display());
        }
        issue(&dir, &out).expect("renewed");
    }

    #[test]
    fn an_authority_is_never_replaced() {
        let top = tempfile::TempDir::new().expect("a directory");
        init(top.path(), "first").expect("made");
        let before = fs::read(top.path().join(CA_KEY)).expect("a key");
        let failure = init(top.path(), "second").expect_err("there is one");
        assert_eq!(failure.exit, Exit::Refused);
        assert_eq!(fs::read(top.path().join(CA_KEY)).expect("a key"), before);
    }
}
