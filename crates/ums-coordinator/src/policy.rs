//! Who may do what: the peers table, and nobody else.

use ums_api::client::Permission;
use ums_core::id::SystemName;
use ums_core::preflight::Refusal;

use crate::config::PeerConfig;
use crate::shared::Shared;

/// What is forbidden, and by whom.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Denied {
    /// Not in the table.
    #[error(
        "`{peer}` is no peer of `{system}`; add it there with `ums peer add {peer} --address …`"
    )]
    UnknownPeer {
        /// Who is unknown.
        peer: SystemName,
        /// To whom.
        system: SystemName,
    },
    /// In the table, without this permission.
    #[error("`{system}` does not allow `{peer}` to {what}; see its peers table")]
    NotAllowed {
        /// Who is not allowed.
        peer: SystemName,
        /// By whom.
        system: SystemName,
        /// What.
        what: &'static str,
    },
}

/// The peer, if it is known.
pub(crate) fn peer(shared: &Shared, peer: &SystemName) -> Result<PeerConfig, Denied> {
    shared
        .settings
        .peer(peer)
        .ok_or_else(|| Denied::UnknownPeer {
            peer: peer.clone(),
            system: shared.config.system.clone(),
        })
}

/// Whether the peer may do this with us.
pub(crate) fn allowed(
    shared: &Shared,
    name: &SystemName,
    permission: Permission,
) -> Result<(), Denied> {
    if peer(shared, name)?.allow.contains(&permission) {
        return Ok(());
    }
    let what = match permission {
        Permission::Send => "send services to it",
        Permission::Receive => "receive services from it",
    };
    let (peer, system) = (name.clone(), shared.config.system.clone());
    Err(Denied::NotAllowed { peer, system, what })
}

impl Denied {
    /// As a refusal of the preflight, for a migration to `destination`.
    pub(crate) fn refusal(&self, destination: &SystemName) -> Refusal {
        Refusal::peer_denied(destination.as_str(), self)
    }
}
