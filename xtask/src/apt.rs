//! Packages of another Debian suite through apt, without touching the system's own apt.
//!
//! Every suite gets folders of its own for sources, lists, status and cache. apt still checks
//! the archive's signature, so nothing is trusted that the machine's keyring doesn't trust.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::run;

/// The keyring that Debian's own `debian-archive-keyring` installs.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// One suite of the Debian archive, seen through private apt folders.
pub(crate) struct Suite {
    name: String,
    dir: PathBuf,
}

impl Suite {
    /// Prepares the folders below `cache` and fetches the suite's lists.
    pub(crate) fn open(cache: &Path, name: &str, mirror: &str, kind: Kind) -> Result<Self> {
        let dir = cache.join(format!("apt-{name}-{}", kind.target().to_lowercase()));
        let archives = cache.join("archives");
        for sub in [
            dir.join("lists/partial"),
            dir.join("sources"),
            archives.join("partial"),
        ] {
            fs::create_dir_all(&sub).with_context(|| format!("cannot create {}", sub.display()))?;
        }
        // An empty status file makes apt resolve every dependency, whatever the host has.
        fs::write(dir.join("status"), "")?;
        let source = format!(
            "Types: {}\nURIs: {mirror}\nSuites: {name}\nComponents: main\nTargets: {}\n\
             Signed-By: {KEYRING}\n",
            kind.types(),
            kind.target(),
        );
        fs::write(dir.join("sources/suite.sources"), source)?;
        let suite = Self {
            name: name.to_owned(),
            dir,
        };
        run::quiet(suite.apt_get().arg("update"))
            .with_context(|| format!("cannot read the package lists of {name} from {mirror}"))?;
        Ok(suite)
    }

    /// Lets apt know what the host has, so that only what is missing there is downloaded.
    pub(crate) fn knowing_the_host(self) -> Result<Self> {
        let status = "/var/lib/dpkg/status";
        fs::copy(status, self.dir.join("status"))
            .with_context(|| format!("cannot copy {status}"))?;
        Ok(self)
    }

    /// The suite's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The version apt would take, if the suite has the package at all.
    pub(crate) fn candidate(&self, package: &str) -> Result<Option<String>> {
        let mut command = self.tool("apt-cache");
        let policy = run::text(command.args(["policy", package]))?;
        let line = policy
            .lines()
            .find_map(|line| line.trim().strip_prefix("Candidate: "));
        Ok(line
            .filter(|version| *version != "(none)")
            .map(str::to_owned))
    }

    /// Downloads packages with all they depend on; returns the files.
    pub(crate) fn download(&self, packages: &[&str]) -> Result<Vec<PathBuf>> {
        let install = [
            "install",
            "--no-install-recommends",
            "--download-only",
            "-y",
            "-q",
        ];
        let mut uris = self.apt_get();
        uris.args(install).arg("--print-uris").args(packages);
        // With everything cached already, apt prints no address; so the names are asked for
        // with an empty cache of their own.
        uris.arg(format!(
            "-oDir::Cache::archives={}",
            self.dir.join("none").display()
        ));
        fs::create_dir_all(self.dir.join("none/partial"))?;
        let listing = run::text(&mut uris)?;
        run::quiet(self.apt_get().args(install).args(packages))
            .with_context(|| format!("cannot download {packages:?} from {}", self.name))?;
        let files: Vec<PathBuf> = listing
            .lines()
            .filter_map(file_name_of)
            .map(|f| self.archives().join(f))
            .collect();
        if files.is_empty() {
            bail!("apt named no files for {packages:?} in {}", self.name);
        }
        Ok(files)
    }

    /// Downloads the sources of an exact version (`name=version`) into a folder.
    pub(crate) fn download_source(&self, source: &str, into: &Path) -> Result<()> {
        let mut command = self.apt_get();
        command
            .args(["source", "--download-only", "-q"])
            .arg(source)
            .current_dir(into);
        run::quiet(&mut command)
            .with_context(|| format!("cannot download {source} from {}", self.name))?;
        Ok(())
    }

    fn archives(&self) -> PathBuf {
        self.dir.with_file_name("archives")
    }

    fn apt_get(&self) -> Command {
        let mut command = self.tool("apt-get");
        // As root, apt would fetch as a user that may not enter the target directory.
        command.arg("-oAPT::Sandbox::User=root");
        command.arg("-oAcquire::Retries=3");
        command
    }

    fn tool(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let dir = self.dir.display();
        command
            .env("LC_ALL", "C")
            .env("DEBIAN_FRONTEND", "noninteractive");
        command.args([
            format!("-oDir::State={dir}"),
            format!("-oDir::State::Lists={dir}/lists"),
            format!("-oDir::State::status={dir}/status"),
            "-oDir::Etc::SourceList=/dev/null".to_owned(),
            format!("-oDir::Etc::SourceParts={dir}/sources"),
            "-oDir::Etc::Preferences=/dev/null".to_owned(),
            format!("-oDir::Etc::PreferencesParts={dir}/none"),
            format!("-oDir::Cache={dir}"),
            format!("-oDir::Cache::archives={}", self.archives().display()),
            // The lists of sid expire within days; a mirror may be a snapshot.
            "-oAcquire::Check-Valid-Until=false".to_owned(),
            "-oAcquire::Languages=none".to_owned(),
        ]);
        command
    }
}

/// What a suite is opened for.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    /// Packages to run.
    Binary,
    /// Their sources.
    Source,
}

impl Kind {
    fn types(self) -> &'static str {
        match self {
            Self::Binary => "deb",
            Self::Source => "deb-src",
        }
    }

    fn target(self) -> &'static str {
        match self {
            Self::Binary => "Packages",
            Self::Source => "Sources",
        }
    }
}

/// The Debian mirror that this machine itself is configured to use.
pub(crate) fn mirror() -> Result<String> {
    let mut command = Command::new("apt-get");
    command.args(["indextargets", "--format"]);
    command
        .arg("$(REPO_URI)|$(RELEASE)|$(COMPONENT)")
        .arg("Created-By: Packages");
    let targets = run::text(command.env("LC_ALL", "C"))
        .context("cannot read apt's configuration: is this a Debian system?")?;
    let codename = codename()?;
    let own = targets.lines().find_map(|line| {
        let fields: Vec<&str> = line.split('|').collect();
        match fields[..] {
            [uri, release, "main"] if release == codename || release == "stable" => Some(uri),
            _ => None,
        }
    });
    own.map(str::to_owned).with_context(|| {
        format!("apt's sources name no mirror for {codename} main: add one to apt's sources")
    })
}

/// The release this machine runs, such as `bookworm`.
pub(crate) fn codename() -> Result<String> {
    let release = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let name = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    Ok(name
        .context("the operating system names no codename: Debian 12 or 13 is needed")?
        .trim_matches('"')
        .to_owned())
}

/// The file name in a line of `apt-get --print-uris`: `'uri' file size hash`.
fn file_name_of(line: &str) -> Option<&str> {
    let rest = line.strip_prefix('\'')?;
    let (_, rest) = rest.split_once("' ")?;
    rest.split(' ').next().filter(|name| name.ends_with(".deb"))
}

#[cfg(test)]
mod tests {
    use super::file_name_of;

    #[test]
    fn reads_the_file_name_of_an_address_line() {
        let line = "'http://mirror/pool/c/criu_4.2.1-1_amd64.deb' criu_4.2.1-1_amd64.deb 7 MD5:0";
        assert_eq!(file_name_of(line), Some("criu_4.2.1-1_amd64.deb"));
        assert_eq!(file_name_of("Reading package lists..."), None);
    }
}
