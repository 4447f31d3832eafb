//! Any layers make what a model of the specification makes of them: first what a layer removes, then what it brings.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use proptest::prelude::*;

use super::test::{directory, file, layer};
use super::*;

/// What a path holds: a directory, or a file with this content.
type Model = BTreeMap<String, Option<String>>;

#[derive(Debug, Clone)]
enum Step {
    File(String, String),
    Directory(String),
    Whiteout(String),
    Opaque(String),
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec("[ab]", 1..4).prop_map(|parts| parts.join("/"))
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (path(), "[0-9]").prop_map(|(path, content)| Step::File(path, content)),
        2 => path().prop_map(Step::Directory),
        2 => path().prop_map(Step::Whiteout),
        1 => path().prop_map(Step::Opaque),
    ]
}

fn remove(model: &mut Model, path: &str, itself: bool) {
    let below = format!("{path}/");
    model.retain(|other, _| !(other.starts_with(&below) || itself && other == path));
}

/// Whether a layer could have been made: no path of it is a file and has something below it.
fn is_layer(steps: &[Step]) -> bool {
    let brought = |step: &Step| match step {
        Step::File(path, _) | Step::Directory(path) => Some(path.clone()),
        Step::Whiteout(_) | Step::Opaque(_) => None,
    };
    let all: Vec<_> = steps.iter().filter_map(brought).collect();
    let unique: std::collections::BTreeSet<_> = all.iter().collect();
    unique.len() == all.len()
        && steps.iter().all(|step| match step {
            Step::File(path, _) => !all
                .iter()
                .any(|other| other.starts_with(&format!("{path}/"))),
            _ => true,
        })
}

fn apply(model: &mut Model, steps: &[Step]) {
    for step in steps {
        match step {
            Step::Whiteout(path) => remove(model, path, true),
            Step::Opaque(path) => remove(model, path, false),
            Step::File(..) | Step::Directory(_) => {}
        }
    }
    for step in steps {
        let (path, content) = match step {
            Step::File(path, content) => (path, Some(content.clone())),
            Step::Directory(path) => (path, None),
            Step::Whiteout(_) | Step::Opaque(_) => continue,
        };
        for (at, _) in path.match_indices('/') {
            // A file of a lower layer that is in the way gives way to a directory.
            model.insert(path[..at].to_owned(), None);
        }
        if content.is_some() {
            remove(model, path, true);
        }
        model.insert(path.clone(), content);
    }
}

fn entry(step: &Step) -> (Entry, Vec<u8>) {
    let named = |path: &str, name: &dyn Fn(&str) -> String| match path.rsplit_once('/') {
        Some((above, last)) => format!("{above}/{}", name(last)),
        None => name(path),
    };
    match step {
        Step::File(path, content) => file(path, content),
        Step::Directory(path) => directory(path),
        Step::Whiteout(path) => file(&named(path, &|last| format!(".wh.{last}")), ""),
        Step::Opaque(path) => file(&format!("{path}/.wh..wh..opq"), ""),
    }
}

fn read(dir: &Path, prefix: &str, model: &mut Model) {
    for found in fs::read_dir(dir).unwrap() {
        let found = found.unwrap();
        let path = format!("{prefix}{}", found.file_name().into_string().unwrap());
        if found.file_type().unwrap().is_dir() {
            read(&found.path(), &format!("{path}/"), model);
            model.insert(path, None);
        } else {
            model.insert(path, Some(fs::read_to_string(found.path()).unwrap()));
        }
    }
}

/// Directories above what a layer brings come first in its archive, as all programs write them.
fn in_order(steps: &[Step]) -> Vec<Step> {
    let mut ordered = Vec::new();
    for step in steps {
        if let Step::File(path, _) | Step::Directory(path) = step {
            for (at, _) in path.match_indices('/') {
                ordered.push(Step::Directory(path[..at].to_owned()));
            }
        }
        ordered.push(step.clone());
    }
    ordered
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn layers_make_what_the_model_says(
        layers in prop::collection::vec(prop::collection::vec(step(), 0..8), 1..4)
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut unpacker = Unpacker::new(dir.path(), Limits::default()).unwrap();
        let mut wanted = Model::new();
        for steps in layers.iter().filter(|steps| is_layer(steps)) {
            let entries: Vec<_> = in_order(steps).iter().map(entry).collect();
            unpacker.layer(&layer(&entries)[..]).unwrap();
            apply(&mut wanted, steps);
        }
        let mut found = Model::new();
        read(dir.path(), "", &mut found);
        prop_assert_eq!(found, wanted);
    }
}

/// Any entry: paths that climb, links to anywhere, and what replaces one by another.
fn any_entry() -> impl Strategy<Value = Entry> {
    let part = prop::sample::select(vec![
        "a",
        "b",
        "..",
        ".",
        "",
        ".wh.a",
        ".wh..wh..opq",
        ".wh...",
        "outside",
    ]);
    let path = || prop::collection::vec(part.clone(), 0..5).prop_map(|parts| parts.join("/"));
    let kinds = vec![
        Kind::File,
        Kind::HardLink,
        Kind::Symlink,
        Kind::Directory,
        Kind::Fifo,
    ];
    let absolute = (any::<bool>(), path()).prop_map(|(absolute, path)| match absolute {
        true => format!("/{path}"),
        false => path,
    });
    (path(), prop::sample::select(kinds), absolute).prop_map(|(path, kind, link)| {
        let (mut entry, _) = directory(&path);
        (entry.kind, entry.link) = (kind, link.into_bytes());
        entry
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn nothing_outside_is_touched(entries in prop::collection::vec(any_entry(), 0..12)) {
        let dir = tempfile::tempdir().unwrap();
        for name in ["outside", "rootfs"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("outside/file"), "safe").unwrap();
        let mut unpacker = Unpacker::new(&dir.path().join("rootfs"), Limits::default()).unwrap();
        // One layer for each, so that a refused one does not keep the others away.
        for entry in entries {
            let _ = unpacker.layer(&layer(&[(entry, Vec::new())])[..]);
        }
        let mut found = Model::new();
        read(&dir.path().join("outside"), "", &mut found);
        let wanted = Model::from([("file".to_owned(), Some("safe".to_owned()))]);
        prop_assert_eq!(found, wanted);
        prop_assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
