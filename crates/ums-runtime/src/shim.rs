//! This program under the name of a shim of containerd's: Docker (from 23 on) takes a runtime that is named
//! `io.containerd.ums.v2` without being told of it, where it finds `containerd-shim-ums-v2` in its PATH (containerd
//! `core/runtime/v2`, "runtime v2"). It becomes the shim of runc, which finds this program where it looks for runc.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// This program's name as a shim.
const NAME: &str = "containerd-shim-ums-v2";
/// containerd's own shim.
const SHIM: &str = "containerd-shim-runc-v2";
/// Directory with nothing but this program under runc's name, beside that of offers.
const IN_RUNCS_PLACE: &str = "in-place-of-runc";

/// Whether it was called by that name.
pub(crate) fn is_asked_for(program: &OsStr) -> bool {
    Path::new(program).file_name() == Some(OsStr::new(NAME))
}

/// Becomes the shim; returns why it can't. `offers` is the directory of offers.
pub(crate) fn become_it(args: &[OsString], offers: &Path) -> String {
    let dir = offers.with_file_name(IN_RUNCS_PLACE);
    if let Err(error) = stand_in(&dir) {
        return format!("`{}` can't be made: {error}", dir.display());
    }
    let mut path = dir.as_os_str().to_owned();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into()));
    let error = Command::new(SHIM).env("PATH", path).args(args).exec();
    format!("{SHIM} can't be started: {error}: it comes with containerd")
}

/// Puts this program into a directory under runc's name.
fn stand_in(dir: &Path) -> io::Result<()> {
    let own = std::env::current_exe()?;
    let runc = dir.join("runc");
    if fs::read_link(&runc).is_ok_and(|target| target == own) {
        return Ok(());
    }
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(dir)?;
    // Whoever looks at it meanwhile finds the one or the other.
    let new = dir.join(format!("new-{}", std::process::id()));
    symlink(&own, &new)?;
    fs::rename(&new, &runc)
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn it_stands_in_runcs_place_also_after_an_update() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("place");
        let own = std::env::current_exe().unwrap();
        for _ in 0..2 {
            stand_in(&place).unwrap();
            assert_eq!(fs::read_link(place.join("runc")).unwrap(), own);
            fs::remove_file(place.join("runc")).unwrap();
            symlink("/elsewhere", place.join("runc")).unwrap();
        }
        stand_in(&place).unwrap();
        let names = fs::read_dir(&place).unwrap().count();
        assert_eq!(names, 1, "nothing but runc");
    }

    #[test]
    fn only_the_name_of_a_shim_makes_a_shim() {
        assert!(is_asked_for("/usr/bin/containerd-shim-ums-v2".as_ref()));
        assert!(is_asked_for("containerd-shim-ums-v2".as_ref()));
        for other in ["ums-runtime", "runc", "/containerd-shim-ums-v2/x", ""] {
            assert!(!is_asked_for(other.as_ref()), "{other}");
        }
    }
}
