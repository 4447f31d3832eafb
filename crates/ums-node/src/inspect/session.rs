//! Sessions that CRIU can't make again.
//!
//! A session comes from setsid(2) of its leader alone, and goes on to children. CRIU makes each process in
//! its session by making it below the leader (CRIU `criu/pstree.c`, `prepare_pstree_ids`): one whose
//! leader is no ancestor of its can only have been made before its parent, or that one's parent, had a
//! session of its own. Of children that the first process has adopted CRIU makes the leader up.

use std::collections::BTreeMap;

use ums_core::facts::{Obstacle, ObstacleKind};

use super::process::Process;
use super::{obstacle, parse, proc_file};

/// Where a process is in the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    parent: i32,
    session: i32,
}

/// Processes whose session's leader is gone, and which were not adopted by the first process.
pub(super) fn obstacles(tree: &[Process]) -> Vec<Obstacle> {
    let Some(init) = tree.first() else {
        return Vec::new();
    };
    let place = |process: &Process| {
        let (parent, session) = parse::parent_and_session(&proc_file(process.pid, "status")?)?;
        Some((process.pid, Place { parent, session }))
    };
    // Who ends meanwhile leaves its children to others: what is so twice lasts.
    let look = || {
        let places: BTreeMap<i32, Place> = tree.iter().filter_map(place).collect();
        strays(init.pid, &places)
    };
    let (first, second) = (look(), look());
    let lasting = tree
        .iter()
        .filter(|process| first.contains(&process.pid) && second.contains(&process.pid));
    lasting
        .map(|process| {
            obstacle(
                ObstacleKind::Session,
                process.inner,
                "its leader is no ancestor of it",
            )
        })
        .collect()
}

/// The processes that CRIU finds no leader for, or two for one ancestor.
fn strays(init: i32, places: &BTreeMap<i32, Place>) -> Vec<i32> {
    let Some(first) = places.get(&init) else {
        return Vec::new();
    };
    let adopted = |pid: i32, place: &Place| {
        place.parent == init && place.session != first.session && place.session != pid
    };
    // The session that an ancestor was in when it made its child.
    let mut born: BTreeMap<i32, i32> = BTreeMap::new();
    let mut found = Vec::new();
    for (&pid, place) in places {
        let own = pid == init || place.session == pid || adopted(pid, place);
        let inherited = places
            .get(&place.parent)
            .is_some_and(|parent| parent.session == place.session);
        if own || inherited {
            continue;
        }
        if !has_leader(pid, (init, first.session), places, &mut born) {
            found.push(pid);
        }
    }
    found
}

/// Whether one of the ancestors of a process leads its session, and those in between may have been in it.
fn has_leader(
    pid: i32,
    (init, init_session): (i32, i32),
    places: &BTreeMap<i32, Place>,
    born: &mut BTreeMap<i32, i32>,
) -> bool {
    let session = places[&pid].session;
    let mut at = places[&pid].parent;
    // As many steps as there are processes: what was read may go round in a circle.
    for _ in 0..places.len() {
        if at == session {
            return true;
        }
        if *born.entry(at).or_insert(session) != session {
            return false;
        }
        let Some(place) = places.get(&at) else {
            return false;
        };
        if at == init {
            return false;
        }
        // CRIU makes up the leader of one that was adopted, above it.
        let adopted = place.parent == init && place.session != init_session;
        if adopted && place.session == session {
            return true;
        }
        at = place.parent;
    }
    false
}

#[cfg(test)]
mod test {
    use super::*;

    /// Process, parent, session.
    fn strays_of(all: &[(i32, i32, i32)]) -> Vec<i32> {
        let place = |&(pid, parent, session): &(i32, i32, i32)| (pid, Place { parent, session });
        strays(1, &all.iter().map(place).collect())
    }

    #[test]
    fn ordinary_trees_have_leaders() {
        assert!(strays_of(&[(1, 0, 1), (2, 1, 1), (3, 2, 2), (4, 3, 2)]).is_empty());
        // Made before its parent had a session of its own.
        assert!(strays_of(&[(1, 0, 1), (2, 1, 2), (3, 2, 1)]).is_empty());
        // Adopted, with and without a leader; and a child of it.
        assert!(strays_of(&[(1, 0, 1), (3, 1, 2), (4, 3, 2)]).is_empty());
        assert!(strays_of(&[(1, 0, 1), (2, 1, 2), (3, 1, 2)]).is_empty());
        // The first process is in a session from outside.
        assert!(strays_of(&[(1, 0, 0), (2, 1, 0), (3, 2, 3)]).is_empty());
    }

    #[test]
    fn a_leader_that_is_gone_or_stands_aside() {
        // 3 was made by 2 in the session of 9, which is gone, and 2 has one of its own since.
        assert_eq!(strays_of(&[(1, 0, 1), (2, 1, 2), (3, 2, 9)]), [3]);
        // Two children of one process from two earlier sessions of it.
        assert_eq!(
            strays_of(&[(1, 0, 1), (2, 1, 2), (3, 2, 8), (4, 2, 9)]),
            [3, 4]
        );
        // The leader lives, elsewhere.
        assert_eq!(
            strays_of(&[(1, 0, 1), (2, 1, 2), (3, 2, 5), (5, 1, 5)]),
            [3]
        );
    }
}
