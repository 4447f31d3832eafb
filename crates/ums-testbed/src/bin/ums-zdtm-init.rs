//! The first process of a container with one of CRIU's tests.

use std::process::ExitCode;

fn main() -> anyhow::Result<ExitCode> {
    ums_testbed::zdtm::daemon()
}
