//! What outlives a migration on purpose: each such process leaves a state file, so that it is found
//! by whoever comes later, with its owner and its end.

use std::path::Path;

use ums_api::agent::Attendant;
use ums_frontman::control::{self, Port};
use ums_frontman::packet::{self, Role};
use ums_frontman::record;

/// Where a Frontman that works on connections has its state file, below the run directory.
const PROXIES: &str = "frontman";
/// Where the ends of tunnels have theirs.
const TUNNEL_ENDS: [&str; 2] = ["tunnel/near", "tunnel/far"];

/// All that are there, by kind and service. One whose state file can't be read is left out. Blocks.
pub fn list(run_dir: &Path) -> Vec<Attendant> {
    let proxies = record::list(&run_dir.join(PROXIES)).unwrap_or_default();
    let proxies = proxies
        .into_iter()
        .filter_map(|record| proxy(record.status));
    let ends = TUNNEL_ENDS
        .iter()
        .flat_map(|directory| record::list(&run_dir.join(directory)).unwrap_or_default());
    proxies
        .chain(ends.filter_map(|record| tunnel_end(record.status)))
        .collect()
}

fn proxy(status: control::Status) -> Option<Attendant> {
    let state = match status.phase {
        control::Mode::Holding => "holding",
        control::Mode::Leading => "leading",
        control::Mode::Retiring => "retiring",
    };
    let lead = |port: &Port| {
        let upstream = port.upstream?;
        Some(format!("{} → {upstream}", port.system_port))
    };
    Some(Attendant {
        kind: "frontman".to_owned(),
        service: status.service.parse().ok()?,
        owner: status.owner,
        state: state.to_owned(),
        leads: status.ports.iter().filter_map(lead).collect(),
        ends_at_ms: status.ends_at.saturating_mul(1000),
        pid: status.pid,
    })
}

fn tunnel_end(status: packet::Status) -> Option<Attendant> {
    let state = match status.phase {
        packet::EndMode::Holding => "holding",
        packet::EndMode::Leading => "leading",
        packet::EndMode::GivingBack | packet::EndMode::Retiring => "retiring",
    };
    let (kind, leads) = match status.role {
        Role::Near => ("frontman", format!("packets → {}", status.peer)),
        Role::Far => ("tunnel", format!("packets ← {}", status.peer)),
    };
    Some(Attendant {
        kind: kind.to_owned(),
        service: status.service.parse().ok()?,
        owner: status.migration,
        state: state.to_owned(),
        leads: vec![leads],
        ends_at_ms: status.ends_at.saturating_mul(1000),
        pid: status.pid,
    })
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn state_files_are_listed_and_others_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let frontmen = dir.path().join("frontman");
        std::fs::create_dir(&frontmen).unwrap();
        let record = r#"{"socket":"/run/x.sock","status":{"service":"redis","owner":"7",
            "pid":42,"phase":"leading","limits":{"hold_connections":1,"hold_bytes":1,
            "hold_seconds":1,"lead_connections":1,"retire_after_seconds":1,"drain_seconds":1},
            "ports":[{"system_port":6379,"listen":"10.88.0.1:4000","upstream":"192.0.2.20:6379"}],
            "counts":{"accepted":0,"holding":0,"leading":0,"finished":0,"broken":0,
            "refused_bound":0,"refused_time":0,"refused_retired":0,"gone":0,"cut":0},
            "started_at":1,"ends_at":100}}"#;
        std::fs::write(frontmen.join("redis.json"), record).unwrap();
        std::fs::write(frontmen.join("broken.json"), "{").unwrap();
        let found = list(dir.path());
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].leads, ["6379 → 192.0.2.20:6379"]);
        assert_eq!((found[0].ends_at_ms, found[0].pid), (100_000, 42));
        assert_eq!(list(&dir.path().join("none")), []);
    }
}
