//! What of a container that an engine has made stands in the way, in words.

use crate::facts::ObstacleKind;

/// What a container does or has, and what would mend it; `None` where it is no matter of its container.
pub(super) fn words(kind: ObstacleKind) -> Option<(&'static str, &'static str)> {
    Some(match kind {
        ObstacleKind::Paused => (
            "is held still by its engine, or is not running",
            "let it run (`docker unpause`, `docker start`), then ask again",
        ),
        ObstacleKind::Runtime => (
            "runs under another runtime than runc",
            "run it with the engine's runtime `runc` (`--runtime runc`): others keep no state that \
             a container could be taken over by",
        ),
        ObstacleKind::SharedNamespace => (
            "shares a namespace with its host or with another container",
            "run it without that option of its engine (`--pid`, `--net`, `--ipc`, `--uts`, `--userns`)",
        ),
        ObstacleKind::Privileged => (
            "may do more with its host than a container may",
            "run it without `--privileged` and `--device`",
        ),
        ObstacleKind::ExecSession => (
            "was started in the container by its engine (`docker exec`), and whoever waits for it is here",
            "end it, then ask again",
        ),
        ObstacleKind::Layers => (
            "has a root filesystem that can't be told from its image",
            "use the engine's storage driver overlay2 (Podman: overlay, without `metacopy`)",
        ),
        ObstacleKind::ContainerMount => (
            "has a mount that can't be made at another place",
            "run it without that mount, or with a volume of the engine's",
        ),
        ObstacleKind::SecurityLabel => (
            "is confined by a label that the destination may not have",
            "run it with `--security-opt apparmor=unconfined` (or `label=disable`)",
        ),
        _ => return None,
    })
}
