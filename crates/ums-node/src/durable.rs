//! What an agent writes down and its successor reads.

use std::fs;
use std::io;
use std::path::Path;

use serde::Serialize;

/// Writes a value as JSON so that it is found whole, old or new, after any crash; makes its directory. Blocks.
///
/// # Errors
/// When the disk does not take it: the old one is there still.
pub fn write<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let new = path.with_extension("new");
    let mut file = fs::File::create(&new)?;
    serde_json::to_writer_pretty(&mut file, value)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    match path.parent() {
        Some(directory) => fs::File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn what_is_written_again_replaces_the_old_and_leaves_nothing_beside_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("made/value.json");
        for value in [1, 2] {
            write(&path, &value).unwrap();
            let read: i32 = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            assert_eq!(read, value);
        }
        let beside = fs::read_dir(path.parent().unwrap()).unwrap();
        assert_eq!(beside.count(), 1);
    }
}
