//! Every specimen there is.

use super::Specimen;

/// Mappings that touch and differ, by name and kind: few pieces, so that a border is met with often
/// enough and a round is short.
const fn adjacent(name: &'static str, arguments: &'static [&'static str]) -> Specimen {
    Specimen {
        name,
        program: "adjacent",
        source: include_str!("../../specimens/adjacent.c"),
        arguments,
        memory: None,
    }
}

/// All of them.
pub const ALL: &[Specimen] = &[
    adjacent("same", &["same", "16", "8"]),
    adjacent("read-only", &["read-only", "16", "8"]),
    adjacent("read-execute", &["read-execute", "16", "8"]),
    adjacent("read-write-execute", &["read-write-execute", "16", "8"]),
    adjacent("no-access", &["no-access", "16", "8"]),
    adjacent("dontfork", &["dontfork", "16", "8"]),
    adjacent("dontdump", &["dontdump", "16", "8"]),
    adjacent("wipeonfork", &["wipeonfork", "16", "8"]),
    adjacent("nohugepage", &["nohugepage", "16", "256"]),
    adjacent("hugepage", &["hugepage", "4", "512"]),
    adjacent("locked", &["locked", "16", "2"]),
    Specimen {
        name: "forked",
        program: "forked",
        source: include_str!("../../specimens/forked.c"),
        arguments: &["60", "6"],
        memory: Some("128M"),
    },
    Specimen {
        name: "changing",
        program: "changing",
        source: include_str!("../../specimens/changing.c"),
        arguments: &["32"],
        memory: None,
    },
    Specimen {
        name: "stopped",
        program: "stopped",
        source: include_str!("../../specimens/stopped.c"),
        arguments: &[],
        memory: None,
    },
    Specimen {
        name: "options",
        program: "options",
        source: include_str!("../../specimens/options.c"),
        arguments: &[],
        memory: None,
    },
    Specimen {
        name: "timers",
        program: "timers",
        source: include_str!("../../specimens/timers.c"),
        arguments: &[],
        memory: None,
    },
];
