use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use super::*;
use crate::facts::{Loss, LossKind, Obstacle, ObstacleKind};
use crate::plan::test::{node, service};
use crate::specification::Transport;

const GIB: u64 = 1 << 30;

fn kinds(refusals: &[Refusal]) -> Vec<RefusalKind> {
    refusals.iter().map(|refusal| refusal.kind).collect()
}

/// Judges one change to a pair of nodes and a service that are otherwise fit.
fn judged(change: impl FnOnce(&mut NodeFacts, &mut ServiceFacts, &mut NodeFacts)) -> Vec<Refusal> {
    let (mut source, mut service, mut destination) = (node(), service(), node());
    change(&mut source, &mut service, &mut destination);
    judge(
        &source,
        &service,
        Some(&destination),
        &MigrateOptions::default(),
        &Estimates::default(),
    )
}

fn only(refusals: Vec<Refusal>, kind: RefusalKind) -> Refusal {
    assert_eq!(kinds(&refusals), [kind]);
    refusals.into_iter().next().expect("one refusal")
}

#[test]
fn a_fit_pair_is_refused_nothing() {
    assert_eq!(judged(|_, _, _| ()), []);
}

#[test]
fn another_architecture_is_refused_without_a_list_of_features() {
    let refusal = only(
        judged(|_, _, destination| {
            destination.architecture = "aarch64".to_owned();
            destination.cpu_features = BTreeSet::from(["sve".to_owned()]);
        }),
        RefusalKind::Architecture,
    );
    assert_eq!(
        refusal.cause,
        "the service runs on x86_64, the destination is aarch64"
    );
}

#[test]
fn missing_cpu_features_are_listed_and_only_those_of_userspace() {
    let refusal = only(
        judged(|source, _, _| {
            for name in ["avx512f", "avx512bw", "smep"] {
                source.cpu_features.insert(name.to_owned());
            }
        }),
        RefusalKind::CpuFeatures,
    );
    assert!(
        refusal.cause.ends_with(": avx512bw avx512f"),
        "{}",
        refusal.cause
    );
    let more_at_the_destination = judged(|_, _, destination| {
        destination.cpu_features.insert("avx512f".to_owned());
    });
    assert_eq!(more_at_the_destination, []);
}

#[test]
fn an_old_kernel_is_refused_on_either_side() {
    let at_source = only(
        judged(|source, _, _| source.kernel = "5.12.19".to_owned()),
        RefusalKind::Kernel,
    );
    assert!(
        at_source
            .cause
            .contains("source's kernel 5.12.19 is older than 5.13"),
        "{at_source}"
    );
    let unreadable = only(
        judged(|_, _, destination| destination.kernel = "unknown".to_owned()),
        RefusalKind::Kernel,
    );
    assert!(unreadable.cause.contains("`unknown`"), "{unreadable}");
    assert_eq!(
        judged(|source, _, _| source.kernel = "5.13.0".to_owned()),
        []
    );
}

#[test]
fn criu_must_be_there_and_new_enough_on_either_side() {
    only(
        judged(|source, _, _| source.criu = None),
        RefusalKind::CriuMissing,
    );
    let old = only(
        judged(|_, _, destination| destination.criu = Some((4, 1, 1))),
        RefusalKind::CriuTooOld,
    );
    assert_eq!(
        old.cause,
        "CRIU at the destination is 4.1.1, older than 4.2.1"
    );
    assert_eq!(judged(|source, _, _| source.criu = Some((5, 0, 0))), []);
}

#[test]
fn without_userfaultfd_at_the_destination_twice_the_memory_and_more_downtime_are_needed() {
    let eager = |destination: &mut NodeFacts| {
        destination.eager_restore = Some("the kernel has no userfaultfd".to_owned());
    };
    assert_eq!(judged(|_, _, destination| eager(destination)), []);
    assert_eq!(judged(|source, _, _| eager(source)), []);
    let refusal = only(
        judged(|_, service, destination| {
            eager(destination);
            service.memory_bytes = GIB;
            destination.memory_available_bytes = 2 * GIB;
        }),
        RefusalKind::Memory,
    );
    assert!(
        refusal
            .cause
            .contains("2176 MiB are needed (1024 MiB for the service, twice without userfaultfd"),
        "{refusal}"
    );
    let (service, mut destination) = (service(), node());
    let predict = |destination: &NodeFacts| {
        let (technique, estimates) = (Technique::StopAndCopy, Estimates::default());
        plan::predict(&service, Some(destination), technique, &estimates)
    };
    let lazily = predict(&destination);
    eager(&mut destination);
    let eagerly = predict(&destination);
    assert!(eagerly.downtime_ms > lazily.downtime_ms + 50, "{eagerly:?}");
}

#[test]
fn the_destinations_kernel_must_have_the_files_that_are_covered() {
    let refusal = only(
        judged(|source, _, _| {
            source.proc_paths.insert("/proc/timer_list".to_owned());
        }),
        RefusalKind::KernelFiles,
    );
    assert!(
        refusal.cause.contains("lacks /proc/timer_list, which"),
        "{refusal}"
    );
    let more_at_the_destination = judged(|_, _, destination| {
        destination.proc_paths.insert("/proc/timer_list".to_owned());
    });
    assert_eq!(more_at_the_destination, []);
}

#[test]
fn a_loss_that_changes_behaviour_has_to_be_accepted() {
    let loss = |kind, pid| Loss {
        kind,
        pid,
        detail: format!("seen at {pid}"),
    };
    let mut service = service();
    service.losses = vec![
        loss(LossKind::SemaphoreUndo, 9),
        loss(LossKind::PeerCredentials, 2),
        loss(LossKind::SemaphoreUndo, 3),
    ];
    let judged = |accept_loss| {
        let options = MigrateOptions {
            accept_loss,
            ..MigrateOptions::default()
        };
        judge_local(&node(), &service, &options)
    };
    let refusal = only(judged(false), RefusalKind::Loss);
    assert!(refusal.cause.contains("process 3"), "{refusal}");
    assert!(
        refusal.cause.ends_with("seen at 3 (and 1 more)"),
        "{refusal}"
    );
    assert!(refusal.remedy.contains("--accept-loss"), "{refusal}");
    assert_eq!(judged(true), []);
}

#[test]
fn each_obstacle_is_refused_by_its_kind() {
    let pairs = [
        (ObstacleKind::IoUring, RefusalKind::IoUring),
        (ObstacleKind::Gpu, RefusalKind::Gpu),
        (ObstacleKind::Device, RefusalKind::Device),
        (ObstacleKind::Descriptor, RefusalKind::Descriptor),
        (ObstacleKind::ForeignFile, RefusalKind::ForeignFile),
        (ObstacleKind::Socket, RefusalKind::Socket),
        (ObstacleKind::SharedMemory, RefusalKind::SharedMemory),
        (ObstacleKind::OtherUser, RefusalKind::OtherUser),
        (ObstacleKind::MessageQueue, RefusalKind::Descriptor),
        (ObstacleKind::SecretMemory, RefusalKind::Descriptor),
        (ObstacleKind::PacketPipe, RefusalKind::Descriptor),
        (ObstacleKind::FileLease, RefusalKind::Descriptor),
        (ObstacleKind::ProcessDirectory, RefusalKind::Descriptor),
        (ObstacleKind::DeletedFile, RefusalKind::DeletedFile),
        (ObstacleKind::MemoryProgram, RefusalKind::Process),
        (ObstacleKind::MainThread, RefusalKind::Process),
        (ObstacleKind::Session, RefusalKind::Process),
        (ObstacleKind::PendingTrap, RefusalKind::Process),
        (ObstacleKind::ThreadTimer, RefusalKind::Process),
        (ObstacleKind::DescriptorLimit, RefusalKind::Process),
        (ObstacleKind::MemoryLimit, RefusalKind::Process),
        (ObstacleKind::SharedAddressSpace, RefusalKind::Process),
        (ObstacleKind::SharedPlaces, RefusalKind::Process),
        (ObstacleKind::ThreadApart, RefusalKind::Process),
        (ObstacleKind::UnreadMessages, RefusalKind::Socket),
        (ObstacleKind::HeldData, RefusalKind::Socket),
        (ObstacleKind::UnsharedMemory, RefusalKind::Memory),
        (ObstacleKind::SocketState, RefusalKind::Socket),
        (ObstacleKind::UrgentData, RefusalKind::Socket),
        (ObstacleKind::WaitingConnection, RefusalKind::Socket),
        (ObstacleKind::InFlight, RefusalKind::Descriptor),
        (ObstacleKind::Terminal, RefusalKind::Descriptor),
    ];
    for (obstacle, kind) in pairs {
        let detail = "what was seen".to_owned();
        let refusals = judged(|_, service, _| {
            service.obstacles = vec![Obstacle {
                kind: obstacle,
                pid: 7,
                detail,
            }];
        });
        let refusal = only(refusals, kind);
        assert!(refusal.cause.starts_with("process 7 "), "{refusal}");
        assert!(refusal.cause.ends_with(": what was seen"), "{refusal}");
    }
}

#[test]
fn a_service_full_of_obstacles_gets_a_bounded_list() {
    let refusals = judged(|_, service, _| {
        let detail = "/dev/x".to_owned();
        service.obstacles = vec![
            Obstacle {
                kind: ObstacleKind::Device,
                pid: 1,
                detail
            };
            1000
        ];
    });
    assert_eq!(refusals.len(), 20);
    assert!(
        refusals[19].cause.ends_with("(and 980 obstacles more)"),
        "{}",
        refusals[19]
    );
}

#[test]
fn a_taken_address_does_not_stand_in_the_way_and_transports_are_told_apart() {
    let refusals = judged(|_, service, destination| {
        destination
            .system
            .addresses
            .insert(service.specification.address);
        destination.system.udp_ports.insert(6379);
    });
    assert_eq!(kinds(&refusals), []);
    let refusals = judged(|_, service, destination| {
        service.specification.ports[0].transport = Transport::Udp;
        destination.system.ports.insert(6379);
    });
    assert_eq!(kinds(&refusals), []);
    let refusals = judged(|_, service, destination| {
        service.specification.ports[0].transport = Transport::Udp;
        destination.system.udp_ports.insert(6379);
    });
    assert_eq!(kinds(&refusals), [RefusalKind::PortTaken]);
}

#[test]
fn name_address_and_each_port_must_be_free() {
    let refusals = judged(|_, service, destination| {
        destination
            .system
            .services
            .insert(service.specification.name.to_string());
        destination
            .system
            .addresses
            .insert(service.specification.address);
        destination.system.ports.extend([6379, 22]);
        // An earlier release.
        destination.system.readdresses = false;
    });
    assert_eq!(
        kinds(&refusals),
        [
            RefusalKind::NameTaken,
            RefusalKind::AddressTaken,
            RefusalKind::PortTaken
        ]
    );
    assert!(refusals[2].cause.contains("port 6379"), "{}", refusals[2]);
}

#[test]
fn the_service_network_must_be_the_same() {
    let refusal = only(
        judged(|_, _, destination| {
            destination.system.service_network = (Ipv4Addr::new(10, 99, 0, 0), 16);
        }),
        RefusalKind::ServiceNetwork,
    );
    assert!(
        refusal.cause.contains("10.88.0.0/16 here and 10.99.0.0/16"),
        "{refusal}"
    );
}

#[test]
fn memory_must_hold_the_service_and_the_margin() {
    let fits = |available: u64| {
        judged(|_, service, destination| {
            service.memory_bytes = GIB;
            destination.memory_available_bytes = available;
        })
    };
    assert_eq!(fits(GIB + MEMORY_MARGIN_BYTES), []);
    let refusal = only(fits(GIB + MEMORY_MARGIN_BYTES - 1), RefusalKind::Memory);
    assert!(
        refusal
            .cause
            .contains("1152 MiB are needed (1024 MiB for the service"),
        "{refusal}"
    );
    only(
        judged(|_, service, _| service.memory_bytes = u64::MAX),
        RefusalKind::Memory,
    );
}

#[test]
fn disk_must_hold_the_files_and_a_missing_image() {
    let judged_with = |image_present: bool| {
        let (source, mut service, mut destination) = (node(), service(), node());
        service.filesystem_bytes = GIB;
        destination.disk_available_bytes = GIB + GIB / 2;
        if image_present {
            destination
                .images
                .insert(service.specification.image.clone());
        }
        service.image_bytes = GIB;
        judge(
            &source,
            &service,
            Some(&destination),
            &MigrateOptions::default(),
            &Estimates::default(),
        )
    };
    assert_eq!(judged_with(true), []);
    let refusal = only(judged_with(false), RefusalKind::Disk);
    assert!(
        refusal
            .cause
            .contains("1024 MiB of changed files and volumes, 1024 MiB of image")
    );
}

#[test]
fn a_maximum_downtime_is_held_against_the_prediction() {
    let judged_with = |max_downtime_ms| {
        let (source, mut service, destination) = (node(), service(), node());
        service.memory_bytes = GIB;
        let options = MigrateOptions {
            max_downtime_ms: Some(max_downtime_ms),
            ..MigrateOptions::default()
        };
        judge(
            &source,
            &service,
            Some(&destination),
            &options,
            &Estimates::default(),
        )
    };
    assert_eq!(judged_with(60_000), []);
    let refusal = only(judged_with(500), RefusalKind::MaxDowntime);
    assert!(
        refusal.cause.contains("at most 500 ms are wanted"),
        "{refusal}"
    );
    assert!(
        refusal
            .cause
            .contains("1024 MiB of memory in the freeze at 117 MB/s"),
        "{refusal}"
    );
}

#[test]
fn what_does_not_run_or_migrates_already_is_refused_once() {
    only(
        judged(|_, service, _| service.running = false),
        RefusalKind::NotRunning,
    );
    only(
        judged(|_, service, _| {
            service.running = false;
            service.migrating = Some(crate::id::MigrationId(uuid::Uuid::nil()));
        }),
        RefusalKind::Migrating,
    );
}

#[test]
fn techniques_and_approaches_that_are_not_here_are_refused_with_the_reason() {
    let asked = |technique, approach| {
        judge_local(
            &node(),
            &service(),
            &MigrateOptions {
                technique,
                approach,
                ..MigrateOptions::default()
            },
        )
    };
    for technique in [Technique::PreCopy, Technique::Hybrid] {
        let refusal = only(
            asked(Some(technique), None),
            RefusalKind::TechniqueUnavailable,
        );
        assert!(refusal.remedy.contains("--technique"), "{refusal}");
    }
    for approach in [Approach::ServiceLevel, Approach::ContainerLevel] {
        only(
            asked(None, Some(approach)),
            RefusalKind::ApproachUnavailable,
        );
    }
    assert_eq!(
        asked(
            Some(Technique::StopAndCopy),
            Some(Approach::OrchestratorLevel)
        ),
        []
    );
}

#[test]
fn pages_stay_nowhere_for_who_puts_all_in_place_before() {
    let mut eager = node();
    eager.eager_restore = Some("this kernel has no userfaultfd".to_owned());
    let asked = |technique, destination: &NodeFacts| {
        let options = MigrateOptions {
            technique: Some(technique),
            ..MigrateOptions::default()
        };
        let estimates = Estimates::default();
        judge(&node(), &service(), Some(destination), &options, &estimates)
    };
    let refused = asked(Technique::PostCopy, &eager);
    let refusal = only(refused, RefusalKind::TechniqueUnavailable);
    assert!(refusal.cause.contains("no userfaultfd"), "{refusal}");
    let unavailable = RefusalKind::TechniqueUnavailable;
    assert!(!kinds(&asked(Technique::StopAndCopy, &eager)).contains(&unavailable));
    assert!(!kinds(&asked(Technique::PostCopy, &node())).contains(&unavailable));
}

#[test]
fn local_judgement_needs_no_destination() {
    let (mut source, mut service) = (node(), service());
    source.criu = None;
    service.running = false;
    let local = judge_local(&source, &service, &MigrateOptions::default());
    assert_eq!(
        kinds(&local),
        [RefusalKind::NotRunning, RefusalKind::CriuMissing]
    );
    let same = judge(
        &source,
        &service,
        None,
        &MigrateOptions::default(),
        &Estimates::default(),
    );
    assert_eq!(local, same);
}

#[test]
fn what_the_peer_refuses_reads_the_same_way() {
    let refusal = Refusal::peer_unknown("c", &["a", "b"]);
    assert_eq!(
        refusal.to_string(),
        "no peer named `c` is known (known: a, b); check the name, or add it with \
         `ums peer add c --address …`"
    );
    assert_eq!(
        Refusal::peer_unreachable("b", "connection refused").kind,
        RefusalKind::PeerUnreachable
    );
    assert_eq!(
        Refusal::peer_untrusted("b", "expired").kind,
        RefusalKind::PeerUntrusted
    );
    assert_eq!(
        Refusal::peer_version("b", 1, 2).kind,
        RefusalKind::PeerVersion
    );
    assert_eq!(
        Refusal::peer_denied("b", "policy").kind,
        RefusalKind::PeerDenied
    );
}

#[test]
fn a_destination_that_can_not_filter_devices_takes_nothing() {
    let refusal = only(
        judged(|_, _, destination| {
            destination.limits.no_device_filter = Some("no CONFIG_CGROUP_BPF".to_owned());
        }),
        RefusalKind::Confinement,
    );
    assert!(refusal.cause.contains("no CONFIG_CGROUP_BPF"), "{refusal}");
}

#[test]
fn a_memory_limit_is_only_missed_by_who_has_one() {
    let without = |limit| {
        judged(|_, service, destination| {
            service.specification.memory_limit_bytes = limit;
            destination.limits.no_memory_limit = Some("no memory controller".to_owned());
        })
    };
    assert_eq!(without(None), []);
    let refusal = only(without(Some(64 << 20)), RefusalKind::Confinement);
    assert!(refusal.cause.contains("64 MiB"), "{refusal}");
}

#[test]
fn more_processes_than_descriptors_are_refused_unless_none_is_needed() {
    let with = |most, eager: Option<&str>| {
        judged(|_, service, destination| {
            service.processes = 101;
            destination.limits.processes_max = most;
            destination.eager_restore = eager.map(str::to_owned);
        })
    };
    let refusal = only(with(Some(100), None), RefusalKind::Processes);
    assert!(refusal.remedy.contains("LimitNOFILE"), "{refusal}");
    for fit in [
        with(Some(101), None),
        with(None, None),
        with(Some(100), Some("set")),
    ] {
        assert_eq!(fit, []);
    }
}
