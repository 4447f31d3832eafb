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
mod shim;
mod unfit;
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
    let mut args: Vec<OsString> = std::env::args_os().collect();
    let program = match args.is_empty() {
        true => OsString::new(),
        false => args.remove(0),
    };
    if shim::is_asked_for(&program) {
        eprintln!("{}", shim::become_it(&args, &offers()));
        return ExitCode::FAILURE;
    }
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

/// The directory of offers where the command line does not say.
fn offers() -> PathBuf {
    let given = std::env::var_os("UMS_RUNTIME_DIR");
    given.unwrap_or_else(|| OFFERS.into()).into()
}

/// Does what was asked, mostly by becoming runc.
fn run(line: &CommandLine) -> Result<ExitCode, String> {
    let offers = Offers::new(line.offers.clone().unwrap_or_else(offers));
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
