//! Starts one program of the bundle with the bundle's own loader and libraries.
//!
//! Every `bin/NAME` of a bundle is this one static program; it runs `libexec/NAME` beside it.
//! A static program needs neither a shell nor a libc from the system it runs on, so the bundle
//! works in any image, and it starts faster than a shell script. All is found from the program's
//! own place.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

fn main() {
    let mut args = std::env::args_os();
    let called = args.next().unwrap_or_default();
    let own = std::env::current_exe().unwrap_or_else(|_| PathBuf::from(&called));
    let error = start(&own, args);
    eprintln!("{}: cannot start: {error}", own.display());
    // The status by which a shell says "found, but can't be executed".
    exit(126);
}

fn start(own: &Path, args: impl Iterator<Item = OsString>) -> String {
    let Some((root, name)) = own.parent().and_then(Path::parent).zip(own.file_name()) else {
        return "the program's own path has no bundle around it".to_owned();
    };
    let program = root.join("libexec").join(name);
    let lib = root.join("lib");
    let mut command = if name == "runc" {
        // runc executes itself again through /proc/self/exe, which must not be the loader: it
        // runs on the host's libc (2.34 or later) and takes only its seccomp library from here.
        let mut command = Command::new(&program);
        command.env("LD_LIBRARY_PATH", lib.join("runc"));
        command
    } else {
        let mut command = Command::new(lib.join("ld.so"));
        command.args(["--inhibit-cache", "--argv0"]).arg(name);
        command.arg("--library-path").arg(&lib).arg(&program);
        command
    };
    command
        .env("CRIU_LIBS_DIR", lib.join("criu"))
        .env("XTABLES_LIBDIR", lib.join("xtables"));
    format!("{}: {}", program.display(), command.args(args).exec())
}
