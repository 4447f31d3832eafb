//! The journal's lines: what a Coordinator folds at its start.

use ums_coordinator::fuzzing::Lines;

/// Each line of the input is a line of the journal: all of them the events of a migration that
/// leaves, each by itself one that arrives.
pub(crate) fn journal(data: &[u8]) -> bool {
    thread_local!(static JOURNAL: Lines = Lines::default());
    let lines: Vec<&[u8]> = data
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .collect();
    JOURNAL.with(|journal| {
        let outgoing = !lines.is_empty() && journal.outgoing(&lines);
        let incoming = lines.first().is_some_and(|line| journal.incoming(line));
        outgoing || incoming
    })
}
