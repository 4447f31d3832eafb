//! Explores all states, breadth first, so that the way to a wrong one is a shortest one.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use crate::sagas::Sagas;
use crate::world::{Break, World};

/// What was found.
pub(crate) struct Explored {
    /// Distinct states.
    pub(crate) states: usize,
    /// Ways between them.
    pub(crate) transitions: usize,
    /// States in which all has settled.
    pub(crate) settled: usize,
    /// How things ended.
    pub(crate) endings: BTreeSet<&'static str>,
    /// What is wrong, and the way there.
    pub(crate) wrong: Option<String>,
    /// How long it took.
    pub(crate) took: Duration,
}

struct Graph {
    worlds: Vec<World>,
    /// How each was first reached.
    from: Vec<Option<(usize, &'static str)>>,
    /// From where each is reached without a further fault.
    healthy: Vec<Vec<u32>>,
}

/// Walks everything that can be reached. The invariants are looked at in every state, the progress
/// at the end: from each state, once faults stop, there must be a way to one in which all has
/// settled. As that holds in every state that such a way can pass, it means that every run without
/// end settles in which whatever is possible again and again is done at some time: a message that is
/// sent again and again arrives, a program that is ready goes on (strong fairness). Less is not
/// enough: a message that is sent again and again and never delivered is a circle without an end.
pub(crate) fn explore(first: World, breakage: Option<Break>) -> Explored {
    let begun = Instant::now();
    let mut sagas = Sagas::new();
    let mut graph = Graph {
        worlds: vec![first.clone()],
        from: vec![None],
        healthy: vec![Vec::new()],
    };
    let mut known = HashMap::from([(first, 0)]);
    let (mut at, mut transitions) = (0, 0);
    let mut wrong = None;
    while at < graph.worlds.len() && wrong.is_none() {
        let world = graph.worlds[at].clone();
        wrong = world.wrong(&sagas).map(|what| graph.way(what, at, &sagas));
        for step in world.steps(&mut sagas, breakage) {
            transitions += 1;
            let next = *known.entry(step.world.clone()).or_insert_with(|| {
                graph.worlds.push(step.world);
                graph.from.push(Some((at, step.name)));
                graph.healthy.push(Vec::new());
                graph.worlds.len() - 1
            });
            if !step.fault {
                graph.healthy[next].push(u32::try_from(at).expect("few enough states"));
            }
        }
        at += 1;
    }
    let endings: Vec<Option<&'static str>> = graph
        .worlds
        .iter()
        .map(|world| world.settled(&sagas))
        .collect();
    if wrong.is_none() {
        let dead = graph.without_a_way_on(&endings);
        wrong = dead.map(|at| graph.way("no way on", at, &sagas));
    }
    Explored {
        states: graph.worlds.len(),
        transitions,
        settled: endings.iter().flatten().count(),
        endings: endings.into_iter().flatten().collect(),
        wrong,
        took: begun.elapsed(),
    }
}

impl Graph {
    /// The first state from which nothing that has settled is reached without a further fault.
    fn without_a_way_on(&self, endings: &[Option<&'static str>]) -> Option<usize> {
        let mut alive: Vec<bool> = endings.iter().map(Option::is_some).collect();
        let mut queue: Vec<usize> = (0..alive.len()).filter(|at| alive[*at]).collect();
        while let Some(at) = queue.pop() {
            for before in &self.healthy[at] {
                let before = *before as usize;
                if !std::mem::replace(&mut alive[before], true) {
                    queue.push(before);
                }
            }
        }
        alive.iter().position(|alive| !alive)
    }

    fn way(&self, what: &str, mut at: usize, sagas: &Sagas) -> String {
        let end = self.worlds[at].describe(sagas);
        let mut names = Vec::new();
        while let Some((before, name)) = self.from[at] {
            names.push(name);
            at = before;
        }
        let mut text = format!("{what}\n");
        for name in names.iter().rev() {
            let _ = writeln!(text, "  {name}");
        }
        text + &end
    }
}
