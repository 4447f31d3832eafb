//! A file of our own among Podman's (containers.conf(5)), which it reads at each command.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::{Args, RUNTIME, Runtime, read, replace};

/// Where Podman looks.
const FILE: &str = "/etc/containers/containers.conf.d/ums.conf";
/// The directory of offers that the runtime has by default: Podman has no place for another.
const OFFERS: &str = "/run/ums/runtime";

/// Registers the runtime, or takes it out; tells what became of it.
pub(super) fn set(args: &Args, runtime: Option<&Runtime>) -> Result<String> {
    let file = args.file.clone().unwrap_or_else(|| PathBuf::from(FILE));
    let Some(runtime) = runtime else {
        return remove(&file);
    };
    ensure!(
        runtime.offers == Path::new(OFFERS),
        "Podman can't be told to look for services in `{}`: set run_dir to /run/ums",
        runtime.offers.display()
    );
    let text = text(runtime);
    if read(&file)?.as_ref() == Some(&text) {
        return Ok(format!("`{}` says so already", file.display()));
    }
    replace(&file, &text)?;
    Ok(format!(
        "{RUNTIME} is registered with Podman in `{}`; a `podman system service` that runs reads it when it starts again",
        file.display()
    ))
}

fn remove(file: &Path) -> Result<String> {
    match fs::remove_file(file) {
        Ok(()) => Ok(format!("`{}` is removed", file.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Ok(format!("`{}` is not there", file.display()))
        }
        Err(error) => Err(error).with_context(|| format!("`{}` can't be removed", file.display())),
    }
}

fn text(runtime: &Runtime) -> String {
    // A path as TOML writes it.
    let path = toml::Value::String(runtime.path.display().to_string());
    format!(
        "# Written by `ums host install podman`, removed by `ums host uninstall podman`.\n\
         [engine.runtimes]\n{RUNTIME} = [{path}]\n"
    )
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn the_file_is_toml_and_names_the_program() {
        let text = text(&Runtime {
            path: "/opt/a \"b\"/ums-runtime".into(),
            offers: OFFERS.into(),
        });
        let table: toml::Table = toml::from_str(&text).unwrap();
        let path = &table["engine"]["runtimes"][RUNTIME][0];
        assert_eq!(path.as_str(), Some("/opt/a \"b\"/ums-runtime"));
    }
}
