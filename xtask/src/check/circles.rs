//! Who uses whom inside a crate: modules beside each other form no circle. A module and its own
//! children are one thing, and may know each other.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::paths;

/// The crates that are kept free of circles.
const CRATES: [&str; 3] = ["ums-node", "ums-standalone", "ums-agent"];

/// A module, by the names on the way to it from the crate's root.
type Module = Vec<String>;
/// For each module those beside it that it, or one below it, uses.
type Graph = BTreeMap<Module, BTreeSet<Module>>;

/// Fails with the first circle of each crate.
pub(crate) fn check() -> Result<()> {
    let mut found = Vec::new();
    for name in CRATES {
        let root = paths::workspace().join("crates").join(name).join("src");
        let mut sources = BTreeMap::new();
        read(&root, &mut Vec::new(), &mut sources)?;
        if let Some(circle) = circle(&graph(&sources)) {
            let names: Vec<String> = circle.iter().map(|module| module.join("::")).collect();
            found.push(format!("{name}: {}", names.join(" uses ")));
        }
    }
    if !found.is_empty() {
        bail!(
            "modules that use each other in a circle: move what both need below them\n{}",
            found.join("\n")
        );
    }
    Ok(())
}

/// Reads a crate's modules; tests may use whatever they like.
fn read(dir: &Path, at: &mut Module, into: &mut BTreeMap<Module, String>) -> Result<()> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    for entry in entries {
        let path = entry?.path();
        let name = path.file_stem().and_then(|name| name.to_str());
        let Some(name) = name.filter(|name| !name.ends_with("test")) else {
            continue;
        };
        if path.is_dir() {
            at.push(name.to_owned());
            read(&path, at, into)?;
            at.pop();
        } else if !["lib", "main"].contains(&name) {
            let text = fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            let module = [at.as_slice(), &[name.to_owned()]].concat();
            into.insert(module, text);
        }
    }
    Ok(())
}

fn graph(sources: &BTreeMap<Module, String>) -> Graph {
    let mut graph = Graph::new();
    for (module, text) in sources {
        for path in used(module, text) {
            let known = (1..=path.len()).rev().map(|len| &path[..len]);
            let Some(target) = known.into_iter().find(|path| sources.contains_key(*path)) else {
                continue;
            };
            let shared = module.iter().zip(target);
            let shared = shared.take_while(|(one, other)| one == other).count();
            if shared < module.len() && shared < target.len() {
                let (from, to) = (&module[..=shared], &target[..=shared]);
                graph.entry(from.to_vec()).or_default().insert(to.to_vec());
            }
        }
    }
    graph
}

/// All paths into the crate that a module's text names, from the crate's root.
fn used(module: &Module, text: &str) -> Vec<Module> {
    let code = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let lines = code
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    let code: String = lines.flat_map(|line| [line, "\n"]).collect();
    let mut paths = Vec::new();
    for (word, up) in [("crate::", None), ("super::", Some(1))] {
        for (at, _) in code.match_indices(word) {
            let before = code[..at].chars().next_back();
            if before.is_some_and(|before| before.is_alphanumeric() || "_$:".contains(before)) {
                continue;
            }
            let mut rest = &code[at + word.len()..];
            let mut up = up;
            while let (Some(levels), Some(further)) = (up, rest.strip_prefix("super::")) {
                (up, rest) = (Some(levels + 1), further);
            }
            let kept = up.map_or(0, |levels| module.len().saturating_sub(levels));
            expand(&module[..kept], rest, &mut paths);
        }
    }
    paths
}

/// Adds what a path, or a group of them in braces, leads to, and returns the text behind it.
fn expand<'a>(base: &[String], mut text: &'a str, into: &mut Vec<Module>) -> &'a str {
    let mut path = base.to_vec();
    loop {
        if let Some(mut group) = text.strip_prefix('{') {
            loop {
                group = group.trim_start_matches([' ', '\n', ',']);
                match group.strip_prefix('}') {
                    Some(rest) => return rest,
                    None if group.is_empty() => return group,
                    None => {
                        let rest = expand(&path, group, into);
                        // What is no path, such as a renaming, is passed over.
                        let next = rest.find([',', '}']).unwrap_or(rest.len());
                        group = &rest[next..];
                    }
                }
            }
        }
        let word = |letter: char| letter.is_alphanumeric() || letter == '_';
        let end = text.find(|letter| !word(letter)).unwrap_or(text.len());
        path.push(text[..end].to_owned());
        text = &text[end..];
        match text.strip_prefix("::") {
            Some(rest) => text = rest,
            None => {
                into.push(path);
                return text;
            }
        }
    }
}

/// A circle, from a module back to itself; `None` if there is none.
fn circle(graph: &Graph) -> Option<Vec<Module>> {
    let mut done = BTreeSet::new();
    graph
        .keys()
        .find_map(|module| follow(graph, module, &mut Vec::new(), &mut done))
}

fn follow(
    graph: &Graph,
    module: &Module,
    way: &mut Vec<Module>,
    done: &mut BTreeSet<Module>,
) -> Option<Vec<Module>> {
    if let Some(begin) = way.iter().position(|before| before == module) {
        let mut circle = way[begin..].to_vec();
        circle.push(module.clone());
        return Some(circle);
    }
    if !done.insert(module.clone()) {
        return None;
    }
    way.push(module.clone());
    let next = graph.get(module).into_iter().flatten();
    let found = next
        .into_iter()
        .find_map(|next| follow(graph, next, way, done));
    way.pop();
    found
}

#[cfg(test)]
mod test {
    use super::*;

    fn sources(texts: &[(&str, &str)]) -> BTreeMap<Module, String> {
        let module = |name: &str| name.split("::").map(str::to_owned).collect();
        let texts = texts
            .iter()
            .map(|(name, text)| (module(name), (*text).to_owned()));
        texts.collect()
    }

    #[test]
    fn a_circle_of_siblings_is_found_through_their_children() {
        let found = sources(&[
            ("a", "mod b;"),
            ("a::b", "use crate::{c::{Thing as Other, d}, e};"),
            ("c", ""),
            ("e", "fn f() { crate::a::b::g() }"),
        ]);
        let circle = circle(&graph(&found)).expect("a circle");
        assert_eq!(circle.first(), circle.last());
        assert_eq!(circle.len(), 3, "{circle:?}");
    }

    #[test]
    fn a_module_and_its_children_may_know_each_other() {
        let found = sources(&[
            ("a", "use b::f;\nuse crate::c;"),
            (
                "a::b",
                "use super::g;\nuse super::super::c::h;\nuse crate::a::g;",
            ),
            (
                "c",
                "// crate::a is no use\n#[cfg(test)]\nmod test { use crate::a; }",
            ),
        ]);
        assert_eq!(circle(&graph(&found)), None);
        let edge = (vec!["a".to_owned()], BTreeSet::from([vec!["c".to_owned()]]));
        assert_eq!(graph(&found), Graph::from([edge]));
    }

    #[test]
    fn children_of_one_module_may_not_use_each_other_in_a_circle() {
        let found = sources(&[("a::b", "use super::c::x;"), ("a::c", "use crate::a::b;")]);
        assert!(circle(&graph(&found)).is_some());
    }

    #[test]
    fn the_crates_have_none() {
        check().unwrap();
    }
}
