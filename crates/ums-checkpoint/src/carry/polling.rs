//! How an epoll instance waits for network devices (EPIOCSPARAMS, ioctl_eventpoll(2)), Linux 6.9.

use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};
use ums_core::facts::LossKind;

use super::descriptor::{Place, Reach};
use super::{Lost, raw};

/// An epoll instance that waits otherwise than a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Polling {
    place: Place,
    /// `struct epoll_params`.
    parameters: [u8; raw::EPOLL_PARAMS],
}

/// Looks at the epoll instance of a frozen process. An earlier kernel knows of no parameters.
pub(super) fn capture(epoll: &OwnedFd, place: Place) -> Option<Polling> {
    let parameters = raw::epoll_parameters(epoll).ok()?;
    let is_new = parameters == [0; raw::EPOLL_PARAMS];
    (!is_new).then_some(Polling { place, parameters })
}

/// Sets it for those of restored processes.
pub(super) fn apply(all: &[Polling], reach: &Reach) -> Vec<Lost> {
    let set = |Polling { place, parameters }: &Polling| {
        let epoll = reach.get(*place);
        let error = epoll
            .and_then(|epoll| raw::set_epoll_parameters(&epoll, parameters))
            .err()?;
        let detail = format!(
            "how the epoll instance behind descriptor {} waits for network devices (EPIOCSPARAMS): {error}",
            place.fd
        );
        Some(Lost::new(LossKind::ProcessAttribute, place.pid, detail))
    };
    all.iter().filter_map(set).collect()
}
