//! What is measured, and in which order. Pure.

use super::{Cell, OURS, Technique, Workload};

/// Sizes of the paper's Figure 4, MiB.
pub const FIGURE_4: [u64; 8] = [0, 4, 16, 64, 128, 256, 512, 1024];
/// Processes of the paper's Figure 6, and beyond it.
pub const FIGURE_6: [u32; 7] = [1, 2, 4, 8, 16, 32, 64];
/// Rates at which 1 GiB is written anew, MiB/s.
pub const DIRTY: [u64; 4] = [50, 100, 200, 400];

/// Ways beside ours.
const OTHERS: [Technique; 5] = [
    Technique::Paper,
    Technique::RuncLazy,
    Technique::Podman,
    Technique::Criu,
    Technique::WireFloor,
];

/// One thing to measure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// In these circumstances.
    pub cell: Cell,
    /// By these ways, one after the other.
    pub techniques: Vec<Technique>,
}

/// What `--quick` measures in each of its runs.
pub fn quick() -> Vec<Task> {
    sizes(&[0, 128])
}

/// Idle hogs of these sizes, by all ways.
pub fn sizes(sizes: &[u64]) -> Vec<Task> {
    let task = |mib: &u64| Task {
        cell: Cell::of(*mib),
        techniques: [&OURS[..], &OTHERS[..]].concat(),
    };
    sizes.iter().map(task).collect()
}

/// What is measured in each run otherwise.
pub fn whole() -> Vec<Task> {
    let with = |cell, others: &[Technique]| Task {
        cell,
        techniques: [&OURS[..], others].concat(),
    };
    let mut tasks = sizes(&FIGURE_4);
    let idle = Cell::of(0);
    for processes in &FIGURE_6[1..] {
        let cell = Cell {
            processes: *processes,
            ..idle
        };
        tasks.push(with(cell, &[Technique::Paper]));
    }
    let large = Cell::of(1024);
    for dirty_mib_s in DIRTY {
        let cell = Cell {
            dirty_mib_s,
            ..large
        };
        tasks.push(with(cell, &[Technique::Paper, Technique::RuncLazy]));
    }
    let compressible = Cell {
        workload: Workload::Compressible,
        ..large
    };
    let fast = Cell {
        link_gbps: 10,
        ..large
    };
    for cell in [compressible, fast, Cell::of(4096)] {
        tasks.push(with(cell, &[Technique::Paper, Technique::WireFloor]));
    }
    tasks
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn each_is_measured_once_in_a_run() {
        for tasks in [quick(), whole()] {
            let cells: std::collections::BTreeSet<Cell> =
                tasks.iter().map(|task| task.cell).collect();
            assert_eq!(cells.len(), tasks.len());
            // What the wire's floor is measured with is told by those before it.
            let floor_is_last = |task: &Task| {
                let floor = Technique::WireFloor;
                !task.techniques.contains(&floor) || task.techniques.last() == Some(&floor)
            };
            assert!(tasks.iter().all(floor_is_last));
        }
    }
}
