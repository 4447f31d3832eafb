//! What a service has changed in its root filesystem comes before its container can be made: it is kept beside, and
//! moved to where the engine has that container's layer.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;

/// Moves all that is in a directory to another one, which gets its attributes. What has the same name there gives way:
/// nobody uses it yet. Blocks.
pub(super) fn move_all(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let new = to.join(entry.file_name());
        remove(&new)?;
        match fs::rename(entry.path(), &new) {
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                copy(&entry.path(), to)?;
            }
            done => done?,
        }
    }
    let is = fs::metadata(from)?;
    chown(to, Some(is.uid()), Some(is.gid()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(is.mode()))
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(is) if is.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// With all attributes, and holes as holes.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let copied = Command::new("cp")
        .arg("-a")
        .arg("--")
        .arg(from)
        .arg(to)
        .output()?;
    match copied.status.success() {
        true => Ok(()),
        false => {
            let said = String::from_utf8_lossy(&copied.stderr);
            Err(io::Error::other(format!("cp: {}", said.trim())))
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn what_came_takes_the_place_of_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        for path in ["from/etc/new", "to/etc/old"] {
            fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        fs::write(from.join("file"), "new").unwrap();
        fs::write(to.join("file"), "old").unwrap();
        fs::write(to.join("stays"), "").unwrap();
        fs::set_permissions(&from, fs::Permissions::from_mode(0o711)).unwrap();
        move_all(&from, &to).unwrap();
        assert!(to.join("etc/new").exists() && !to.join("etc/old").exists());
        assert_eq!(fs::read_to_string(to.join("file")).unwrap(), "new");
        assert!(to.join("stays").exists());
        assert_eq!(fs::metadata(&to).unwrap().mode() & 0o777, 0o711);
        assert_eq!(fs::read_dir(&from).unwrap().count(), 0);
    }
}
