use std::net::Ipv4Addr;
use std::path::Path;

use ums_api::client::{Permission, Progress};
use ums_core::budget::{Part, Span};
use ums_core::facts::{LossKind, NodeFacts};
use ums_core::id::MigrationId;
use ums_core::plan::{self, Route};
use ums_core::preflight::{Estimates, MigrateOptions};
use ums_core::report::{Bytes, StepTiming};
use ums_core::specification::{ImageId, PublishedPort, Specification, Transport};

use super::*;

/// A migration that has just been asked for.
pub(crate) fn view() -> MigrationView {
    MigrationView {
        report: MigrationReport {
            migration_id: MigrationId(uuid::Uuid::nil()),
            service: "redis".parse().expect("a name"),
            source: "a".parse().expect("a name"),
            destination: "b".parse().expect("a name"),
            approach: None,
            technique: None,
            outcome: Outcome::Running,
            total_ms: 0,
            downtime_ms: None,
            freeze_ms: None,
            at_risk_ms: None,
            downtime_parts: Vec::new(),
            steps: Vec::new(),
            bytes: Bytes::default(),
            rounds: 0,
            endpoint: None,
            error: None,
            losses: Vec::new(),
            predicted: None,
        },
        progress: Progress::default(),
        refusals: Vec::new(),
        resolvable: false,
        asked_at_ms: 1_700_000_000_123,
    }
}

fn completed() -> MigrationView {
    let mut view = view();
    let ends = [
        12, 30, 41, 42, 95, 96, 210, 280, 1400, 1410, 1411, 1450, 1460, 1470, 1500,
    ];
    let mut started_ms = 0;
    view.report.steps = Step::ALL
        .iter()
        .zip(ends)
        .map(|(step, end)| {
            let timing = StepTiming {
                step: step.number(),
                name: step.name().to_owned(),
                started_ms,
                ended_ms: Some(end),
            };
            started_ms = end;
            timing
        })
        .collect();
    view.report.approach = Some(Approach::OrchestratorLevel);
    view.report.technique = Some(Technique::StopAndCopy);
    view.report.outcome = Outcome::Completed;
    view.report.total_ms = 1500;
    view.report.downtime_ms = Some(1249.6);
    view.report.freeze_ms = Some(1240.2);
    view.report.bytes = Bytes {
        memory: 134_217_728,
        wire: 135_000_000,
        filesystem: 4096,
        frozen: 1 << 20,
    };
    view.report.endpoint = Some("10.77.0.2:6379".to_owned());
    view
}

fn service_view() -> ServiceView {
    ServiceView {
        specification: Specification {
            name: "redis".parse().expect("a name"),
            image: ImageId::try_from("ab".repeat(32)).expect("an image id"),
            command: vec![
                "/usr/bin/redis-server".to_owned(),
                "--save".to_owned(),
                "\x1b[2J".to_owned(),
            ],
            env: Vec::new(),
            cwd: "/".to_owned(),
            uid: 0,
            gid: 0,
            memory_limit_bytes: Some(512 << 20),
            volumes: Vec::new(),
            address: Ipv4Addr::new(10, 88, 0, 2),
            prefix_len: 16,
            ports: vec![PublishedPort {
                transport: Transport::Tcp,
                system_port: 6379,
                service_port: 6379,
            }],
            mounts: Vec::new(),
            creation: None,
            engine: None,
            capabilities: Vec::new(),
            hostname: "redis".to_owned(),
        },
        status: ServiceStatus::Running,
        init_pid: Some(42),
        migration: None,
        memory_bytes: None,
        engine: None,
        endpoints: vec!["10.77.0.1:6379".parse().expect("an address")],
        losses: Vec::new(),
        pages: None,
    }
}

fn facts() -> ServiceFacts {
    ServiceFacts {
        specification: service_view().specification,
        running: true,
        processes: 1,
        threads: 4,
        memory_bytes: 128 << 20,
        filesystem_bytes: 4096,
        image_bytes: 0,
        connections: 2,
        obstacles: Vec::new(),
        losses: Vec::new(),
        migrating: None,
    }
}

fn node() -> NodeFacts {
    NodeFacts {
        architecture: "x86_64".to_owned(),
        cpu_features: ["avx2".to_owned()].into(),
        kernel: "6.1.0".to_owned(),
        criu: Some((4, 2, 1)),
        eager_restore: None,
        proc_paths: [].into(),
        memory_available_bytes: 1 << 30,
        disk_available_bytes: 1 << 30,
        warnings: Vec::new(),
        outer: false,
        tracks_memory: false,
        engines: Vec::new(),
        images: [].into(),
        limits: Default::default(),
        system: ums_core::facts::SystemFacts {
            services: [].into(),
            addresses: [].into(),
            service_network: (Ipv4Addr::new(10, 88, 0, 0), 16),
            ports: [].into(),
            udp_ports: [].into(),
            readdresses: true,
            carries: ums_core::facts::CARRIES,
        },
    }
}

fn plan_for(destination: &NodeFacts, options: &MigrateOptions) -> Plan {
    let name = |text: &str| text.parse().expect("a name");
    let route = Route {
        source: name("a"),
        destination: name("b"),
    };
    plan::make(
        route,
        &node(),
        &facts(),
        Some(destination),
        options,
        &Estimates::default(),
    )
}

/// Compares with the file kept under this name; with `UMS_GOLDEN=write` in the environment the file
/// is written instead, to be read and committed.
fn golden(name: &str, text: &str) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/show/golden");
    let path = directory.join(name).with_extension("txt");
    if std::env::var_os("UMS_GOLDEN").is_some_and(|mode| mode == "write") {
        std::fs::write(&path, text).expect("the golden file is written");
    }
    let wanted = std::fs::read_to_string(&path).expect("a golden file");
    assert_eq!(text, wanted, "{}", path.display());
}

#[test]
fn a_completed_migration() {
    golden("completed", &migration(&completed()));
}

#[test]
fn a_refused_migration() {
    let mut view = view();
    view.report.outcome = Outcome::Refused;
    view.report.total_ms = 31;
    view.report.steps = vec![
        StepTiming {
            step: 1,
            name: String::new(),
            started_ms: 0,
            ended_ms: Some(12),
        },
        StepTiming {
            step: 2,
            name: String::new(),
            started_ms: 12,
            ended_ms: None,
        },
    ];
    view.report.error = Some("the preflight refused it".to_owned());
    view.refusals = vec![Refusal::peer_unreachable("b", "connection refused")];
    golden("refused", &migration(&view));
}

#[test]
fn a_feasible_plan() {
    let text = plan(&plan_for(&node(), &MigrateOptions::default()));
    golden("plan", &text);
}

#[test]
fn what_a_move_changes_is_told() {
    let of = |kind, detail: &str| Loss {
        kind,
        pid: 7,
        detail: detail.to_owned(),
    };
    let losses = vec![
        of(LossKind::SemaphoreUndo, "set 0"),
        of(LossKind::PeerCredentials, "/run/socket"),
    ];
    let mut planned = plan_for(&node(), &MigrateOptions::default());
    planned.losses = losses.clone();
    golden("plan-losses", &plan(&planned));
    let mut moved = completed();
    moved.report.losses = vec![losses[1].clone(); LOSSES_MAX + 1];
    let text = migration(&moved);
    assert!(
        text.contains("changed by the move:\n  - process 7: "),
        "{text}"
    );
    assert!(text.contains("and 1 more"), "{text}");
}

#[test]
fn a_plan_that_is_refused() {
    let mut destination = node();
    destination.system.ports.insert(6379);
    destination.cpu_features.clear();
    let options = MigrateOptions {
        max_downtime_ms: Some(200),
        ..MigrateOptions::default()
    };
    let text = plan(&plan_for(&destination, &options));
    golden("plan-refused", &text);
}

#[test]
fn lists() {
    golden("list", &services(&[service_view()]));
    assert_eq!(services(&[]), "no services; start one with `ums run`\n");
    golden("history", &history(&[completed(), view()]));
    let peer = PeerView {
        name: "b".parse().expect("a name"),
        address: "10.77.0.2:7443".parse().expect("an address"),
        allow: vec![Permission::Send, Permission::Receive],
        status: PeerStatus::Ready,
        version: Some("0.1.0".to_owned()),
        detail: None,
    };
    golden("peers", &peers(&[peer]));
}

#[test]
fn one_service() {
    let detail = ServiceDetail {
        view: service_view(),
        facts: Some(facts()),
    };
    golden("service", &service(&detail));
}

#[test]
fn amounts_spans_and_moments() {
    assert_eq!(bytes(0), "0 B");
    assert_eq!(bytes(1536), "1.5 KiB");
    assert_eq!(bytes(u64::MAX), "16777216.0 TiB");
    assert_eq!(span_ms(999.4), "999 ms");
    assert_eq!(span_ms(2411.0), "2.41 s");
    assert_eq!(span_ms(200_000.0), "3 min 20 s");
    assert_eq!(moment(1_700_000_000_123), "2023-11-14 22:13:20Z");
    assert_eq!(moment(u64::MAX), "?");
}

#[test]
fn a_downtime_that_nobody_knows_is_said_to_be_so() {
    let mut view = completed();
    view.report.downtime_ms = None;
    let text = migration(&view);
    assert!(
        text.contains("not known: the source was rebooted"),
        "{text}"
    );
}

#[test]
fn where_the_downtime_went_is_told_by_place() {
    let mut view = completed();
    assert!(!migration(&view).contains("downtime, ms"));
    let span = |part, us| Span { part, us };
    view.report.downtime_parts = vec![
        span(Part::Dump, 12_000),
        span(Part::LetGo, 40),
        span(Part::Restore, 8_000),
        span(Part::Resume, 4_500),
        span(Part::Between, 300),
    ];
    let expected = "\ndowntime, ms
  source         12.0  dump 12.0
  between         0.3  between 0.3
  destination    12.5  restore 8.0, resume 4.5
";
    let text = migration(&view);
    assert!(text.contains(expected), "{text}");
}
