//! Records that outlive the agent: one small file each, in a directory for each kind, written by `ums_node::durable`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

/// The layout that is written, of all kinds of records.
pub const VERSION: u32 = 1;

/// A record that says in which layout it was written.
pub trait Stored: DeserializeOwned {
    /// The layout; [`VERSION`] is known here.
    fn version(&self) -> u32;
}

/// All records of a directory; what is none, or of another layout, is passed over and told.
pub fn read_all<T: Stored>(directory: &Path) -> Vec<T> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    let records = paths.filter(|path| path.extension().is_some_and(|end| end == "json"));
    let read = |path: PathBuf| {
        let record = read(&path);
        record
            .inspect_err(|error| tracing::warn!(path = %path.display(), %error, "not a record"))
            .ok()
    };
    records.filter_map(read).collect()
}

fn read<T: Stored>(path: &Path) -> io::Result<T> {
    let record: T = serde_json::from_slice(&fs::read(path)?)?;
    if record.version() != VERSION {
        let theirs = record.version();
        let text = format!("record of version {theirs}, this agent knows {VERSION}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(record)
}

#[cfg(test)]
mod test {
    use serde::{Deserialize, Serialize};

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct One {
        version: u32,
    }

    impl Stored for One {
        fn version(&self) -> u32 {
            self.version
        }
    }

    #[test]
    fn only_what_is_a_record_of_this_layout_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
        write("one.json", r#"{"version":1}"#);
        write("later.json", r#"{"version":2}"#);
        write("cut.json", r#"{"vers"#);
        write("other", r#"{"version":1}"#);
        assert_eq!(read_all::<One>(directory.path()), [One { version: 1 }]);
        assert_eq!(read_all::<One>(&directory.path().join("none")), []);
    }
}
