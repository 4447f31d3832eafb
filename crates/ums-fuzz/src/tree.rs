//! Files that arrive, written into real directories: whatever is sent, nothing beside them changes.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use ums_sync::files::Applier;
use ums_sync::frame::RootName;
use ums_sync::receive::{Block, FileOperation, Sink, SinkError};

use crate::stream::receive;

/// Applies a stream's files to trees that hold links out of them, and looks whether what is
/// outside is as it was.
pub(crate) fn tree(data: &[u8]) -> bool {
    thread_local!(static PLACE: Place = Place::new());
    PLACE.with(|place| {
        place.begin();
        let before = place.outside();
        let accepted = receive(data, Written(place.applier())).is_ok();
        assert_eq!(before, place.outside(), "something outside was touched");
        accepted
    })
}

struct Place {
    base: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let base = tempfile::tempdir().expect("a directory");
        let place = Self { base };
        let outside = place.at("outside");
        fs::create_dir_all(outside.join("dir/deep")).expect("a directory");
        fs::write(outside.join("file"), "untouched").expect("a file");
        fs::write(outside.join("dir/deep/file"), "untouched").expect("a file");
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        self.base.path().join(name)
    }

    /// The trees as they are before each stream, with ways out for whoever follows links.
    fn begin(&self) {
        let inside = self.at("inside");
        if inside.exists() {
            fs::remove_dir_all(&inside).expect("root may remove anything");
        }
        fs::create_dir_all(inside.join("upper/dir/deep")).expect("a directory");
        fs::create_dir_all(inside.join("volume")).expect("a directory");
        fs::write(inside.join("upper/dir/file"), "old").expect("a file");
        let outside = self.at("outside");
        symlink(&outside, inside.join("upper/absolute")).expect("a link");
        symlink("../../outside", inside.join("upper/relative")).expect("a link");
        symlink("../../../outside/file", inside.join("upper/dir/link")).expect("a link");
        symlink("/proc/self/root", inside.join("volume/magic")).expect("a link");
    }

    fn applier(&self) -> Applier {
        let volume = RootName::Volume("data".parse().expect("a name"));
        let roots = [
            (RootName::Upper, self.at("inside/upper")),
            (volume, self.at("inside/volume")),
        ];
        Applier::new(roots).expect("the trees are there")
    }

    /// Everything about what is not in the trees.
    fn outside(&self) -> Vec<String> {
        let mut seen = Vec::new();
        look(&self.at("outside"), &mut seen);
        for directory in [self.base.path().to_owned(), self.at("inside")] {
            let mut names: Vec<_> = fs::read_dir(&directory)
                .expect("it is there")
                .map(|entry| entry.expect("readable").file_name())
                .collect();
            names.sort();
            seen.push(format!("{names:?}"));
        }
        seen
    }
}

fn look(path: &Path, seen: &mut Vec<String>) {
    let it = fs::symlink_metadata(path).expect("it is there");
    let content = if it.is_file() {
        fs::read(path).expect("readable")
    } else {
        Vec::new()
    };
    seen.push(format!(
        "{:?} {:o} {} {} {} {} {} {content:?}",
        path.as_os_str().as_bytes(),
        it.mode(),
        it.uid(),
        it.gid(),
        it.nlink(),
        it.mtime_nsec(),
        it.ctime_nsec(),
    ));
    if it.is_dir() {
        let mut inside: Vec<_> = fs::read_dir(path)
            .expect("readable")
            .map(|entry| entry.expect("readable").path())
            .collect();
        inside.sort();
        inside.iter().for_each(|path| look(path, seen));
    }
}

struct Written(Applier);

impl Sink for Written {
    fn image(&mut self, _: &str, _: Vec<u8>) -> Result<(), SinkError> {
        Ok(())
    }

    fn pages(&mut self, _: &Block<'_>) -> Result<(), SinkError> {
        Ok(())
    }

    fn file(&mut self, operation: &FileOperation<'_>) -> Result<(), SinkError> {
        Ok(self.0.apply(operation)?)
    }

    fn finish(&mut self) -> Result<(), SinkError> {
        Ok(self.0.finish()?)
    }
}

#[cfg(test)]
mod test {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn whatever_is_touched_outside_is_noticed() {
        let touches: [fn(&Place); 5] = [
            |place| fs::write(place.at("outside/file"), "Untouched").expect("written"),
            |place| fs::write(place.at("outside/new"), "").expect("written"),
            |place| fs::write(place.at("inside/beside"), "").expect("written"),
            |place| {
                let (from, to) = (place.at("outside/file"), place.at("inside/upper/hard"));
                fs::hard_link(from, to).expect("a link");
            },
            |place| {
                let mode = fs::Permissions::from_mode(0o4755);
                fs::set_permissions(place.at("outside/dir/deep/file"), mode).expect("changed");
            },
        ];
        for (number, touch) in touches.iter().enumerate() {
            let place = Place::new();
            place.begin();
            let before = place.outside();
            assert_eq!(before, place.outside(), "looking changes nothing");
            touch(&place);
            assert_ne!(before, place.outside(), "touch {number} is not noticed");
        }
    }
}
