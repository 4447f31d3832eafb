//! What is fuzzed: each target hands bytes to code that reads what somebody else can choose, and
//! panics where that code breaks a promise.
//!
//! A target is a function of bytes. The real fuzzers in `fuzz/` (`cargo xtask fuzz`) call it under
//! libFuzzer; the tests of this crate replay `fuzz/corpus` through it and mutate that, on any
//! machine and in a few seconds. Nothing is taken apart here: every byte is read by the code that
//! reads it in the programs.

mod checkpoint;
mod identity;
mod journal;
pub mod mutate;
mod settings;
mod stream;
mod tree;
mod words;

/// One target.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name: that of its fuzzer and of its corpus.
    pub name: &'static str,
    /// Reads bytes; says whether they were accepted. Panics if a promise is broken.
    pub run: fn(&[u8]) -> bool,
    /// How often the tests mutate its corpus: what takes a second or so.
    pub mutations: u32,
}

/// All targets.
pub const TARGETS: [Target; 14] = [
    target("frames", stream::frames, 20_000),
    target("stream", stream::stream, 2_000),
    target("tree", tree::tree, 200),
    target("pages", checkpoint::pages, 400),
    target("page_server", checkpoint::page_server, 20_000),
    target("criu", checkpoint::criu, 20_000),
    target("keeper", checkpoint::keeper, 4_000),
    target("journal", journal::journal, 400),
    target("specification", words::specification, 10_000),
    target("messages", words::messages, 5_000),
    target("frontman", settings::frontman, 2_000),
    target("config", settings::config, 2_000),
    target("certificates", identity::certificates, 4_000),
    target("proc", settings::proc, 20_000),
];

const fn target(name: &'static str, run: fn(&[u8]) -> bool, mutations: u32) -> Target {
    Target {
        name,
        run,
        mutations,
    }
}

/// The target of this name.
pub fn find(name: &str) -> Option<Target> {
    TARGETS.into_iter().find(|target| target.name == name)
}

/// Runs the target of this name, for libFuzzer.
///
/// # Panics
///
/// If there is none of this name, or if a promise is broken.
pub fn under_libfuzzer(name: &str, data: &[u8]) {
    let target = find(name).expect("a fuzzer for each target, and no other");
    (target.run)(data);
}
