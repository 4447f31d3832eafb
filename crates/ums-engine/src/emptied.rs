//! The files of a container whose service has moved, taken out of its root filesystem: nobody can start it again, and
//! its disk is free.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::Path;

use nix::libc::makedev;
use nix::sys::stat::{Mode, SFlag, mknod};

/// Removes what it has changed, and hides what its image has (whiteouts of overlayfs: devices with number 0; kernel
/// `filesystems/overlayfs.rst`). `upper` is its own layer, `lower` those of its image, separated by colons.
/// Volumes are not touched: they are in neither. Repeating it is harmless.
///
/// # Errors
/// When a layer can't be read or changed.
pub(crate) fn empty(upper: &Path, lower: &str) -> io::Result<()> {
    if !upper.is_absolute() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for entry in fs::read_dir(upper)? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => fs::remove_dir_all(entry.path())?,
            false => fs::remove_file(entry.path())?,
        }
    }
    let mut hidden = BTreeSet::<OsString>::new();
    for layer in lower.split(':').filter(|layer| !layer.is_empty()) {
        for entry in fs::read_dir(layer)? {
            hidden.insert(entry?.file_name());
        }
    }
    for name in hidden {
        mknod(
            &upper.join(name),
            SFlag::S_IFCHR,
            Mode::empty(),
            makedev(0, 0),
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod test {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};

    use super::*;

    #[test]
    fn nothing_of_it_is_to_be_seen_any_more() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED nothing_of_it_is_to_be_seen_any_more: needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let [upper, one, two] = ["upper", "one", "two"].map(|name| dir.path().join(name));
        for path in [upper.join("data/deep"), one.join("bin"), two.join("etc")] {
            fs::create_dir_all(path).unwrap();
        }
        fs::write(upper.join("bin"), "changed").unwrap();
        let lower = format!("{}:{}", one.display(), two.display());
        for _ in 0..2 {
            empty(&upper, &lower).unwrap();
        }
        let names: BTreeSet<OsString> = fs::read_dir(&upper)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, BTreeSet::from(["bin".into(), "etc".into()]));
        let hidden = fs::symlink_metadata(upper.join("bin")).unwrap();
        assert!(hidden.file_type().is_char_device() && hidden.rdev() == 0);
        assert!(empty(Path::new(""), &lower).is_err());
        assert!(one.join("bin").is_dir(), "the image is everybody's");
    }
}
