use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use super::*;
use crate::preflight::RefusalKind;
use crate::specification::{ImageId, PublishedPort, Specification, Transport};

/// A node that is fit for everything.
pub(crate) fn node() -> NodeFacts {
    NodeFacts {
        architecture: "x86_64".to_owned(),
        cpu_features: BTreeSet::from(["sse2", "avx2", "fma"].map(str::to_owned)),
        kernel: "6.1.0-18-amd64".to_owned(),
        criu: Some((4, 2, 1)),
        eager_restore: None,
        proc_paths: BTreeSet::from(["/proc/keys".to_owned()]),
        memory_available_bytes: 8 << 30,
        disk_available_bytes: 8 << 30,
        warnings: Vec::new(),
        outer: false,
        tracks_memory: false,
        engines: Vec::new(),
        images: BTreeSet::new(),
        limits: Default::default(),
        system: crate::facts::SystemFacts {
            services: BTreeSet::new(),
            addresses: BTreeSet::new(),
            service_network: (Ipv4Addr::new(10, 88, 0, 0), 16),
            ports: BTreeSet::new(),
            udp_ports: [].into(),
            readdresses: true,
            carries: crate::facts::CARRIES,
        },
    }
}

/// A service that can be moved.
pub(crate) fn service() -> ServiceFacts {
    ServiceFacts {
        specification: Specification {
            name: "redis".parse().expect("a name"),
            image: ImageId::try_from("a".repeat(64)).expect("an image id"),
            command: vec!["redis-server".to_owned()],
            env: Vec::new(),
            cwd: "/".to_owned(),
            uid: 0,
            gid: 0,
            memory_limit_bytes: None,
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
        running: true,
        processes: 1,
        threads: 4,
        memory_bytes: 128 << 20,
        filesystem_bytes: 1 << 20,
        image_bytes: 0,
        connections: 2,
        obstacles: Vec::new(),
        losses: Vec::new(),
        migrating: None,
    }
}

fn route() -> Route {
    Route {
        source: "a".parse().expect("a name"),
        destination: "b".parse().expect("a name"),
    }
}

fn predicted(memory_bytes: u64, link_bytes_per_second: u64) -> Prediction {
    let service = ServiceFacts {
        memory_bytes,
        ..service()
    };
    predict(
        &service,
        Some(&node()),
        Technique::StopAndCopy,
        &Estimates {
            link_bytes_per_second,
            writing: None,
        },
    )
}

#[test]
fn the_downtime_grows_with_memory_over_the_link() {
    let gigabit = preflight::LINK_BYTES_PER_SECOND_ASSUMED;
    let empty = predicted(0, gigabit).downtime_ms;
    let full = predicted(1 << 30, gigabit).downtime_ms;
    assert!((100..300).contains(&empty), "{empty}");
    // The wire alone takes 9177 ms for a GiB.
    assert!((9177..9177 + 400).contains(&full), "{full}");
    let slower = predicted(1 << 30, gigabit / 2).downtime_ms;
    assert!(slower > full + 9000, "{slower}");
}

#[test]
fn with_pre_copy_it_does_not() {
    let predicted = |memory_bytes| {
        let service = ServiceFacts {
            memory_bytes,
            ..service()
        };
        let estimates = Estimates::default();
        predict(&service, Some(&node()), Technique::PreCopy, &estimates)
    };
    let (empty, full) = (predicted(0), predicted(1 << 30));
    assert!(full.downtime_ms < empty.downtime_ms + 100, "{full:?}");
    assert!(full.total_ms > empty.total_ms + 9000, "{full:?}");
}

#[test]
fn what_was_measured_is_reckoned_with() {
    let predicted = |writing| {
        let service = ServiceFacts {
            memory_bytes: 1 << 30,
            ..service()
        };
        let estimates = Estimates {
            writing: Some(writing),
            ..Estimates::default()
        };
        predict(&service, Some(&node()), Technique::PreCopy, &estimates)
    };
    let idle = Writing {
        bytes_per_second: 0,
        untracked_bytes: 0,
        read_bytes_per_second: None,
    };
    let quiet = predicted(idle);
    assert_eq!((quiet.rounds, quiet.frozen_bytes), (1, 0));
    let busy = predicted(Writing {
        bytes_per_second: 50 << 20,
        ..idle
    });
    assert!(
        busy.rounds > quiet.rounds && busy.total_ms > quiet.total_ms,
        "{busy:?}"
    );
    assert!(busy.downtime_ms < quiet.downtime_ms + 100, "{busy:?}");
    let hopeless = predicted(Writing {
        bytes_per_second: 1 << 30,
        ..idle
    });
    assert!(hopeless.downtime_ms > 9000, "{hopeless:?}");
    let untracked = predicted(Writing {
        untracked_bytes: 1 << 29,
        ..idle
    });
    assert!(
        (4500..5000).contains(&untracked.downtime_ms),
        "{untracked:?}"
    );
    let slow = predicted(Writing {
        read_bytes_per_second: Some(50_000_000),
        ..idle
    });
    assert_eq!(slow.bytes_per_second, 50_000_000);
}

#[test]
fn pre_copy_is_chosen_where_the_kernel_tells_what_changes() {
    let tracking = NodeFacts {
        tracks_memory: true,
        ..node()
    };
    let chosen = |source: &NodeFacts, technique| {
        let options = MigrateOptions {
            technique,
            ..MigrateOptions::default()
        };
        let (service, estimates) = (service(), Estimates::default());
        make(
            route(),
            source,
            &service,
            Some(&node()),
            &options,
            &estimates,
        )
        .technique
    };
    assert_eq!(chosen(&tracking, None), Some(Technique::PreCopy));
    assert_eq!(chosen(&node(), None), Some(Technique::StopAndCopy));
    let asked = Some(Technique::StopAndCopy);
    assert_eq!(chosen(&tracking, asked), asked);
    assert_eq!(chosen(&node(), Some(Technique::PreCopy)), None);
}

#[test]
fn a_fast_link_leaves_the_dump_as_the_limit_and_none_divides_by_zero() {
    let fast = predicted(1 << 30, 10_000_000_000);
    assert_eq!(fast.bytes_per_second, DUMP_BYTES_PER_SECOND);
    assert!(predicted(u64::MAX, 0).total_ms >= predicted(u64::MAX, 0).downtime_ms);
}

#[test]
fn files_and_a_missing_image_count_in_the_total_only() {
    let estimates = Estimates::default();
    let service = || ServiceFacts {
        image_bytes: 500_000_000,
        ..service()
    };
    let lacking = predict(
        &service(),
        Some(&node()),
        Technique::StopAndCopy,
        &estimates,
    );
    let mut having_it = node();
    having_it.images.insert(service().specification.image);
    let having = predict(
        &service(),
        Some(&having_it),
        Technique::StopAndCopy,
        &estimates,
    );
    assert_eq!(lacking.downtime_ms, having.downtime_ms);
    assert!(
        lacking.total_ms > having.total_ms + 4000,
        "{lacking:?} {having:?}"
    );
    assert_eq!(
        lacking.filesystem_bytes,
        having.filesystem_bytes + 500_000_000
    );
}

#[test]
fn a_feasible_plan_names_what_it_chose_and_why_not_the_others() {
    let options = MigrateOptions::default();
    let plan = make(
        route(),
        &node(),
        &service(),
        Some(&node()),
        &options,
        &Estimates::default(),
    );
    assert!(plan.feasible());
    assert_eq!(plan.approach, Some(Approach::OrchestratorLevel));
    assert_eq!(plan.technique, Some(Technique::StopAndCopy));
    for choice in &plan.approaches {
        assert_eq!(
            choice.infeasible.is_none(),
            Some(choice.choice) == plan.approach
        );
    }
    let (can, can_not): (Vec<_>, Vec<_>) = plan
        .techniques
        .iter()
        .partition(|choice| choice.infeasible.is_none());
    let words = |choices: Vec<&Choice<Technique>>| -> Vec<Technique> {
        choices.iter().map(|one| one.choice).collect()
    };
    // Never by itself: the service would depend on both systems for a while.
    assert_eq!(words(can), [Technique::StopAndCopy, Technique::PostCopy]);
    assert_eq!(words(can_not), [Technique::PreCopy, Technique::Hybrid]);
}

#[test]
fn a_plan_that_is_refused_is_not_feasible_and_still_predicts() {
    let options = MigrateOptions {
        technique: Some(Technique::Hybrid),
        max_downtime_ms: Some(1),
        ..MigrateOptions::default()
    };
    let plan = make(
        route(),
        &node(),
        &service(),
        None,
        &options,
        &Estimates::default(),
    );
    assert!(!plan.feasible());
    assert_eq!(plan.technique, None);
    assert!(!plan.destination_known);
    let kinds: Vec<RefusalKind> = plan.refusals.iter().map(|refusal| refusal.kind).collect();
    assert_eq!(
        kinds,
        [RefusalKind::TechniqueUnavailable, RefusalKind::MaxDowntime]
    );
    assert!(plan.prediction.downtime_ms > 1);
}

#[test]
fn what_stays_at_the_source_is_not_part_of_the_downtime() {
    let of = |technique| predict(&service(), None, technique, &Estimates::default());
    let (all, none) = (of(Technique::StopAndCopy), of(Technique::PostCopy));
    assert!(none.downtime_ms < all.downtime_ms);
    assert_eq!(none.total_ms, all.total_ms);
}

#[test]
fn what_an_earlier_release_does_not_carry_is_told() {
    let (source, mut destination) = (node(), node());
    assert_eq!(carried_less(&source, &destination), None);
    destination.system.carries = 0;
    let loss = carried_less(&source, &destination).expect("it carries less");
    assert!(!loss.kind.needs_consent(), "an update must not stop moves");
    assert_eq!(carried_less(&destination, &source), None);
}

#[test]
fn what_is_nested_moves_at_the_container_level_and_nothing_else_does() {
    let plain = node();
    let outer = NodeFacts {
        outer: true,
        ..node()
    };
    assert_eq!(approach_here(&outer), Approach::ContainerLevel);
    let unavailable =
        |approach, source: &NodeFacts| approach_unavailable(approach, source).unwrap_or_default();
    assert_eq!(unavailable(Approach::ContainerLevel, &outer), "");
    assert!(unavailable(Approach::OrchestratorLevel, &outer).contains("nested"));
    assert_eq!(unavailable(Approach::OrchestratorLevel, &plain), "");
    assert!(unavailable(Approach::ContainerLevel, &plain).contains("wrapped image"));
}
