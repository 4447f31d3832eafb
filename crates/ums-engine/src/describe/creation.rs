//! What an engine was told at a container's creation.

use bollard::models::ContainerInspectResponse;
use ums_core::specification::{Creation, Health, Restart};

use crate::making::LABELS;

pub(super) fn creation(inspected: &ContainerInspectResponse) -> Creation {
    let config = inspected.config.clone().unwrap_or_default();
    let host = inspected.host_config.clone().unwrap_or_default();
    let health = config.healthcheck.filter(|check| {
        let test = check.test.as_deref().unwrap_or_default();
        !matches!(test, []) && test[0] != "NONE"
    });
    let id = inspected.image.clone().unwrap_or_default();
    Creation {
        image: config.image.unwrap_or_default(),
        image_id: id.trim_start_matches("sha256:").to_owned(),
        labels: config
            .labels
            .unwrap_or_default()
            .into_iter()
            .filter(|(name, _)| !name.starts_with(LABELS))
            .collect(),
        restart: restart_of(inspected),
        groups: host.group_add.unwrap_or_default(),
        user: config.user.unwrap_or_default(),
        stop_signal: config
            .stop_signal
            .filter(|signal| signal != "SIGTERM" && signal != "15"),
        stop_seconds: config
            .stop_timeout
            .filter(|seconds| *seconds != DEFAULT_STOP_SECONDS),
        read_only: host.readonly_rootfs.unwrap_or_default(),
        nano_cpus: host.nano_cpus.filter(|cpus| *cpus > 0),
        pids_limit: host
            .pids_limit
            .filter(|limit| *limit > 0 && *limit != PODMANS_PIDS_LIMIT),
        health: health.map(|check| Health {
            test: check.test.unwrap_or_default(),
            interval_ns: check.interval.unwrap_or_default(),
            timeout_ns: check.timeout.unwrap_or_default(),
            retries: check.retries.unwrap_or_default(),
            start_period_ns: check.start_period.unwrap_or_default(),
        }),
        hosts: host.extra_hosts.unwrap_or_default(),
    }
}

/// What its engine does when it ends.
pub(crate) fn restart_of(inspected: &ContainerInspectResponse) -> Restart {
    let host = inspected.host_config.as_ref();
    let restart = host.and_then(|host| host.restart_policy.clone());
    let restart = restart.unwrap_or_default();
    Restart {
        policy: restart
            .name
            .map(|name| name.to_string())
            .unwrap_or_default(),
        times: restart.maximum_retry_count.unwrap_or_default(),
    }
}

/// How many processes Podman lets a container have unless it is told otherwise (containers.conf(5), `pids_limit`): nobody
/// has asked for that.
const PODMANS_PIDS_LIMIT: i64 = 2048;

/// What engines give a container to stop unless they are told otherwise, seconds.
const DEFAULT_STOP_SECONDS: i64 = 10;
