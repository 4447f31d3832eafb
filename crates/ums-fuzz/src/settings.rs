//! Files and lines of this host: the configuration, a Frontman's words, the kernel's texts.

use std::path::{Path, PathBuf};

use ums_frontman::control::{Request, Response, Status};
use ums_frontman::record;

/// The configuration file, and a peer's.
pub(crate) fn config(data: &[u8]) -> bool {
    in_a_file("ums.toml", data, |file| {
        let (config, peer) = ums::fuzzing::config(file);
        config || peer
    })
}

/// What is said to a Frontman and by it, and its state file.
pub(crate) fn frontman(data: &[u8]) -> bool {
    let request = serde_json::from_slice::<Request>(data);
    if let Ok(request) = &request {
        let text = serde_json::to_vec(request).expect("what was read can be written");
        assert_eq!(
            &serde_json::from_slice::<Request>(&text).expect("read again"),
            request
        );
    }
    let response = serde_json::from_slice::<Response>(data).is_ok();
    let recorded = in_a_file("a.json", data, |file| {
        let directory = file.parent().expect("it is in one");
        !record::list::<Status>(directory)
            .expect("readable")
            .is_empty()
    });
    request.is_ok() || response || recorded
}

/// Texts below `/proc` that a service can put words into.
pub(crate) fn proc(data: &[u8]) -> bool {
    let text = String::from_utf8_lossy(data);
    ums_node::inspect::understand(&text);
    true
}

fn in_a_file<T>(name: &str, data: &[u8], read: impl FnOnce(&Path) -> T) -> T {
    thread_local! {
        static DIRECTORY: tempfile::TempDir = tempfile::tempdir().expect("a directory");
    }
    let file: PathBuf = DIRECTORY.with(|directory| directory.path().join(name));
    std::fs::write(&file, data).expect("a file");
    let done = read(&file);
    std::fs::remove_file(&file).expect("it was written just now");
    done
}
