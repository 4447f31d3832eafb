//! The `create` of a container whose service arrives: runc restores it.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::{Value, json};
use ums_checkpoint::offers::{Found, Offers};

use crate::command::{CommandLine, Create};
use crate::{PLACE, netns, runc, unfit};

/// Directory with nothing but this program under CRIU's name.
const IN_ITS_PLACE: &str = "in-place-of-criu";
/// What runc takes for a checkpoint.
const IMAGES: &str = "images";
/// Where runc and CRIU would log.
const WORK: &str = "work";
/// The standard streams of the checkpointed container, by which runc tells CRIU about pipes: the keeper does that.
const NO_PIPES: &str = r#"["/dev/null","/dev/null","/dev/null"]"#;

/// Creates a container; as runc does where no service is awaited for it.
pub(crate) fn run(
    line: &CommandLine,
    create: &Create,
    offers: &Offers,
) -> Result<ExitCode, String> {
    let id = &create.id;
    match offers.take(id) {
        Ok(Found::Offer(_)) => {}
        Ok(Found::Nothing) => return Err(runc::become_it(line)),
        Ok(Found::Taken) => {
            return Err(format!(
                "the service of container {id} arrives by a migration that is not over: it must not be started anew \
                 (`ums status` shows the migration)"
            ));
        }
        // runc decides what ids it takes.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            return Err(runc::become_it(line));
        }
        Err(error) => return Err(format!("offers of services can't be read: {error}")),
    }
    if create.preserve_fds > 0 {
        return Err(
            "a container that inherits descriptors (--preserve-fds) can't be restored".into(),
        );
    }
    let place = offers.place(id).map_err(|error| error.to_string())?;
    let bundle = bundle(create)?;
    let config = config(&bundle).map_err(|error| format!("config.json: {error}"))?;
    if let Some(reason) = unfit::reason(&config, unfit::is_own_network) {
        return Err(reason);
    }
    prepare(&place, &config).map_err(|error| {
        format!(
            "the restore of container {id} can't be prepared in `{}`: {error}",
            place.display()
        )
    })?;
    restore(line, create, &place, &bundle)
}

fn bundle(create: &Create) -> Result<PathBuf, String> {
    let here = || std::env::current_dir().map_err(|error| format!("no bundle: {error}"));
    create.bundle.clone().map_or_else(here, Ok)
}

fn config(bundle: &Path) -> io::Result<Value> {
    Ok(serde_json::from_slice(&fs::read(
        bundle.join("config.json"),
    )?)?)
}

fn prepare(place: &Path, config: &Value) -> io::Result<()> {
    for name in [IN_ITS_PLACE, IMAGES, WORK] {
        fs::create_dir(place.join(name))?;
    }
    symlink(
        std::env::current_exe()?,
        place.join(IN_ITS_PLACE).join("criu"),
    )?;
    fs::write(place.join(IMAGES).join("descriptors.json"), NO_PIPES)?;
    let sysctl = config.pointer("/linux/sysctl").cloned();
    fs::write(
        place.join(netns::SYSCTL),
        sysctl.unwrap_or(json!({})).to_string(),
    )
}

/// Becomes `runc restore`; returns why it can't.
fn restore(
    line: &CommandLine,
    create: &Create,
    place: &Path,
    bundle: &Path,
) -> Result<ExitCode, String> {
    let mut path = place.join(IN_ITS_PLACE).into_os_string();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into()));
    let mut runc = runc::command(line)?;
    runc.env("PATH", path)
        .env(PLACE, place)
        .args(&line.globals)
        .args(["restore", "--detach", "--bundle"])
        .arg(bundle)
        .arg("--image-path")
        .arg(place.join(IMAGES))
        .arg("--work-path")
        .arg(place.join(WORK));
    let valued = [
        ("--pid-file", &create.pid_file),
        ("--console-socket", &create.console_socket),
    ];
    for (name, value) in valued {
        if let Some(value) = value {
            runc.arg(name).arg(value);
        }
    }
    if create.no_pivot {
        runc.arg("--no-pivot");
    }
    Err(format!(
        "runc can't be started: {}",
        runc.arg(&create.id).exec()
    ))
}
