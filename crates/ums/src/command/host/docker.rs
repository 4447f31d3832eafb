//! Docker's `daemon.json` (dockerd(8)): runtimes are among what its daemon reads again at SIGHUP.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Map, Value, json};

use super::{Args, RUNTIME, Runtime, read, replace};

/// Where the daemon looks.
const FILE: &str = "/etc/docker/daemon.json";

/// Registers the runtime, or takes it out; tells what became of it.
pub(super) fn set(args: &Args, runtime: Option<&Runtime>) -> Result<String> {
    let file = args.file.clone().unwrap_or_else(|| PathBuf::from(FILE));
    let before = read(&file)?;
    let after = changed(before.as_deref(), runtime).with_context(|| {
        format!(
            "`{}` is not as Docker wants it: mend it first",
            file.display()
        )
    })?;
    let Some(after) = after else {
        return Ok(format!("`{}` says so already", file.display()));
    };
    replace(&file, &after)?;
    let (what, then) = match runtime {
        Some(_) => ("registered with", ""),
        None => (
            "taken out of",
            "; containers that were made with it don't start without it",
        ),
    };
    let told = match reload(&args.pid_file)? {
        true => "its daemon has been told to read it again: no restart is needed",
        false => "no daemon runs: it reads it when it starts",
    };
    Ok(format!(
        "{RUNTIME} is {what} Docker in `{}`; {told}{then}",
        file.display()
    ))
}

/// The configuration with the runtime, or without it; `None` where nothing changes. Everything else stays.
fn changed(before: Option<&str>, runtime: Option<&Runtime>) -> Result<Option<String>> {
    let text = before
        .filter(|text| !text.trim().is_empty())
        .unwrap_or("{}");
    let mut config: Map<String, Value> = serde_json::from_str(text)?;
    let unchanged = config.clone();
    if runtime.is_none() && !config.contains_key("runtimes") {
        return Ok(None);
    }
    let runtimes = config.entry("runtimes").or_insert_with(|| json!({}));
    let Some(runtimes) = runtimes.as_object_mut() else {
        bail!("`runtimes` is no object");
    };
    match runtime {
        Some(Runtime { path, offers }) => {
            let entry = json!({ "path": path, "runtimeArgs": ["--ums-dir", offers] });
            runtimes.insert(RUNTIME.to_owned(), entry);
        }
        None => drop(runtimes.remove(RUNTIME)),
    }
    // An empty list stays: a daemon that reads its configuration again keeps the runtimes that it has where none
    // are named (moby `daemon/reload_unix.go`).
    let differs = config != unchanged;
    let text = format!("{}\n", serde_json::to_string_pretty(&config)?);
    Ok(differs.then_some(text))
}

/// Has a daemon that runs read its configuration again; false where none runs.
fn reload(pid_file: &Path) -> Result<bool> {
    let Some(pid) = read(pid_file)?.and_then(|text| text.trim().parse().ok()) else {
        return Ok(false);
    };
    // The file of one that was killed names whoever has its id now.
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    if name.trim() != "dockerd" {
        return Ok(false);
    }
    kill(Pid::from_raw(pid), Signal::SIGHUP)
        .context("Docker's daemon can't be told to read its configuration again: are you root?")?;
    Ok(true)
}

#[cfg(test)]
mod test {
    use super::*;

    fn runtime() -> Runtime {
        Runtime {
            path: "/usr/bin/ums-runtime".into(),
            offers: "/run/ums/runtime".into(),
        }
    }

    #[test]
    fn what_others_have_configured_stays() {
        let before = r#"{"log-level":"warn","runtimes":{"kata":{"path":"/usr/bin/kata"}}}"#;
        let with = changed(Some(before), Some(&runtime())).unwrap().unwrap();
        let value: Value = serde_json::from_str(&with).unwrap();
        assert_eq!(value["log-level"], "warn");
        assert_eq!(value["runtimes"]["kata"]["path"], "/usr/bin/kata");
        assert_eq!(
            value["runtimes"]["ums"]["runtimeArgs"][1],
            "/run/ums/runtime"
        );
        assert_eq!(changed(Some(&with), Some(&runtime())).unwrap(), None);
        let without = changed(Some(&with), None).unwrap().unwrap();
        let [before, without] = [before, &without].map(serde_json::from_str::<Value>);
        assert_eq!(before.unwrap(), without.unwrap());
    }

    #[test]
    fn no_runtime_is_left_where_there_was_none() {
        for before in [None, Some(""), Some("{}")] {
            let with = changed(before, Some(&runtime())).unwrap().unwrap();
            let without = changed(Some(&with), None).unwrap().unwrap();
            let without: Value = serde_json::from_str(&without).unwrap();
            assert_eq!(without, json!({ "runtimes": {} }));
            assert_eq!(changed(before, None).unwrap(), None);
        }
    }

    #[test]
    fn what_is_no_configuration_is_left_alone() {
        for bad in ["[", "[]", r#"{"runtimes":[]}"#] {
            assert!(changed(Some(bad), Some(&runtime())).is_err(), "{bad}");
        }
    }
}
