//! Every target's corpus is replayed, then mutated, the same way each time.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::PathBuf;

use ums_fuzz::mutate::{Random, mutate};
use ums_fuzz::{TARGETS, Target, find};

/// One seed for all: another one is another test.
const SEED: u64 = 20_260_701;

fn corpus(target: &Target) -> Vec<(String, Vec<u8>)> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    let entries = std::fs::read_dir(path.join(target.name)).expect("each target has a corpus");
    let mut found: Vec<_> = entries
        .map(|entry| entry.expect("readable").path())
        .map(|path| {
            let name = path
                .file_name()
                .expect("a name")
                .to_string_lossy()
                .into_owned();
            (name, std::fs::read(&path).expect("readable"))
        })
        .collect();
    found.sort();
    found
}

/// Keeps the input that broke something, so that it can become part of the corpus.
fn run(target: &Target, what: &str, input: &[u8]) -> bool {
    match catch_unwind(AssertUnwindSafe(|| (target.run)(input))) {
        Ok(accepted) => accepted,
        Err(panic) => {
            let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
            let path = path.join(format!("fuzz-{}-{what}", target.name));
            std::fs::write(&path, input).expect("the input is kept");
            eprintln!(
                "{} broke on {what}; the input is {}",
                target.name,
                path.display()
            );
            resume_unwind(panic)
        }
    }
}

fn replay_and_mutate(name: &str) {
    let target = find(name).expect("a target of this name");
    let corpus = corpus(&target);
    assert!(!corpus.is_empty());
    let mut accepted = 0;
    for (file, input) in &corpus {
        accepted += u32::from(run(&target, file, input));
    }
    // Else the corpus is out of date, and nothing behind the first check is reached.
    if name != "pages" || nix::unistd::geteuid().is_root() {
        assert!(accepted > 0, "no entry of {name}'s corpus is accepted");
    }
    let mut random = Random::new(SEED);
    for number in 0..target.mutations {
        let mut input = corpus[random.below(corpus.len())].1.clone();
        let other = &corpus[random.below(corpus.len())].1;
        mutate(&mut input, other, &mut random);
        run(&target, &format!("mutation {number}"), &input);
    }
}

macro_rules! each {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            replay_and_mutate(stringify!($name));
        })*

        #[test]
        fn no_target_is_left_out() {
            let tested = [$(stringify!($name)),*];
            assert_eq!(TARGETS.map(|target| target.name), tested);
        }
    };
}

each!(frames stream tree pages page_server criu keeper journal specification messages frontman config certificates proc);

/// What leads out is an error: the corpus of `tree` would show nothing if it were passed over.
#[test]
fn ways_out_of_a_tree_are_refused() {
    let target = find("tree").expect("a target");
    let entries = corpus(&target);
    for name in [
        "through-absolute",
        "through-relative",
        "own-link",
        "link-to-out",
    ] {
        let entry = entries.iter().find(|(file, _)| file == name);
        let (_, input) = entry.expect("it is in the corpus");
        assert!(!run(&target, name, input), "{name} was accepted");
    }
}
