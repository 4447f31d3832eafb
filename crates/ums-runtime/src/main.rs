//! `ums-runtime`: an OCI container runtime that is runc, but for containers whose service arrives by a migration.
//!
//! It takes runc's command line and hands it to runc, which it becomes ([`command`]). Only where a service is awaited
//! for a container ([`ums_checkpoint::offers`]), its `create` becomes `runc restore`, so that runc makes everything of
//! the container as its engine wants it, with this program in CRIU's place ([`criu`]): it has the keeper of that
//! service restore and hold the processes. The `start` that follows finds them there.

mod command;
mod create;
mod criu;
mod netns;
mod rootfs;
mod runc;
mod wire;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use ums_checkpoint::offers::Offers;

use command::{Action, CommandLine};

/// Names the directory of the offer that is taken, to this program in CRIU's place.
const PLACE: &str = "UMS_RUNTIME_PLACE";
/// The directory of offers where nobody says otherwise.
const OFFERS: &str = "/run/ums/runtime";

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    if let (Some(place), Some(fd)) = (std::env::var_os(PLACE), command::swrk(&args)) {
        return criu::serve(fd, &PathBuf::from(place));
    }
    let line = CommandLine::parse(args);
    let why = match run(&line) {
        Ok(code) => return code,
        Err(why) => why,
    };
    runc::complain(&line, &why);
    ExitCode::FAILURE
}

/// Does what was asked, mostly by becoming runc.
fn run(line: &CommandLine) -> Result<ExitCode, String> {
    let given = std::env::var_os("UMS_RUNTIME_DIR").map(PathBuf::from);
    let dir = line.offers.clone().or(given);
    let offers = Offers::new(dir.unwrap_or_else(|| OFFERS.into()));
    match &line.action {
        Action::Create(create) => create::run(line, create, &offers),
        Action::Start { id } => match offers.start(id) {
            Ok(true) => Ok(ExitCode::SUCCESS),
            Ok(false) => Err(runc::become_it(line)),
            Err(error) => Err(format!(
                "it can't be seen whether `{id}` was restored: {error}"
            )),
        },
        Action::Other => Err(runc::become_it(line)),
    }
}
