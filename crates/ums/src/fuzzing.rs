//! What the fuzzer calls: the configuration as it is read from a file.

use std::path::Path;

use crate::config::{Config, Layer, Sources};

/// Reads this file as the configuration and as a peer's file; whether each was accepted.
pub fn config(file: &Path) -> (bool, bool) {
    let sources = Sources {
        flags: Layer::default(),
        file: Some(file.to_owned()),
        variable: &|_| None,
    };
    let config = Config::load(sources).map(|config| (config.system(), config.peers()));
    (config.is_ok(), crate::config::is_peer(file))
}
