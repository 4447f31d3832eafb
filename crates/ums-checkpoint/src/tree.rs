//! Who is whose child in a container.

use std::collections::BTreeMap;
use std::fs;

use crate::cgroup::Cgroup;

/// Name of the image that tells it, which goes ahead of the pages.
pub const TREE_NAME: &str = "ums-tree.json";

/// The parent of each process, both by their ids inside the container.
pub type Parents = BTreeMap<u32, u32>;

/// The parents of the processes of a container, as they are now. A process that ends meanwhile is
/// left out.
pub fn parents(cgroup: &Cgroup) -> Parents {
    let statuses = cgroup.processes().into_iter().filter_map(|pid| {
        let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        Some((pid, parent_and_inner(&text)?))
    });
    let statuses: BTreeMap<i32, (i32, u32)> = statuses.collect();
    let inner_of = |pid| Some(statuses.get(&pid)?.1);
    let pairs = statuses.values();
    pairs
        .filter_map(|(parent, inner)| Some((*inner, inner_of(*parent)?)))
        .collect()
}

/// `PPid` and the innermost of `NSpid` (proc_pid_status(5)).
fn parent_and_inner(status: &str) -> Option<(i32, u32)> {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    let parent = field("PPid:")?.trim().parse().ok()?;
    let inner = field("NSpid:")?.split_whitespace().next_back()?;
    Some((parent, inner.parse().ok()?))
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_status_tells_both() {
        let text = "Name:\tx\nPid:\t70\nPPid:\t60\nNSpid:\t70\t3\n";
        assert_eq!(parent_and_inner(text), Some((60, 3)));
        assert_eq!(parent_and_inner("PPid:\tx\n"), None);
    }
}
