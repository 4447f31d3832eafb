//! `ums peer`.

use std::net::SocketAddr;

use clap::ValueEnum;
use ums_api::client::{PeerStatus, PeerView, Permission, paths};
use ums_core::id::SystemName;

use super::{Outcome, print, print_either};
use crate::config::{Config, Peer, PeersError};
use crate::connection::Connection;
use crate::exit::{Exit, Failure};
use crate::show;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Make a peer known to this system; a running Coordinator learns it within seconds
    Add {
        /// Its name, as in its certificate
        name: SystemName,
        /// Where its Coordinator listens
        #[arg(long, value_name = "ADDRESS:PORT")]
        address: SocketAddr,
        /// What it may do: send services here, receive them from here
        #[arg(long, value_enum, value_name = "PERMISSION", value_delimiter = ',')]
        #[arg(default_values = ["send", "receive"])]
        allow: Vec<Word>,
    },
    /// Forget a peer
    Remove {
        /// Its name
        name: SystemName,
    },
    /// List peers, and whether each can be used
    List {
        /// Print a JSON list
        #[arg(long)]
        json: bool,
    },
}

/// Permissions as they are written on the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Word {
    /// It may send services here
    Send,
    /// It may be sent services from here
    Receive,
}

impl From<Word> for Permission {
    fn from(word: Word) -> Self {
        match word {
            Word::Send => Permission::Send,
            Word::Receive => Permission::Receive,
        }
    }
}

pub(crate) async fn execute(command: Command, config: Config, coordinator: Connection) -> Outcome {
    let peers = config.peers();
    match command {
        Command::Add {
            name,
            address,
            allow,
        } => {
            let mut allow: Vec<Permission> = allow.into_iter().map(Permission::from).collect();
            allow.sort_unstable();
            allow.dedup();
            let path = peers
                .add(&name, &Peer { address, allow })
                .map_err(failure)?;
            print(&format!(
                "peer {name} at {address} is known ({})\n",
                path.display()
            ))
        }
        Command::Remove { name } => {
            peers.remove(&name).map_err(failure)?;
            print(&format!("peer {name} is forgotten\n"))
        }
        Command::List { json } => {
            let views = list(&config, &coordinator).await?;
            print_either(json, &views, |views| show::peers(views))
        }
    }
}

fn failure(error: PeersError) -> Failure {
    let exit = match error {
        PeersError::Configured(_) | PeersError::Unknown(_) => Exit::Refused,
        PeersError::Write { .. } => Exit::Failed,
    };
    Failure::new(exit, error)
}

/// The Coordinator knows whether they can be used; without it, there is what is configured.
async fn list(config: &Config, coordinator: &Connection) -> Result<Vec<PeerView>, Failure> {
    match coordinator.get(paths::PEERS).await {
        Err(error) if error.is_connection() => {
            let known = config.peers().all().map_err(Failure::usage)?;
            let view = |(name, peer): (SystemName, Peer)| PeerView {
                name,
                address: peer.address,
                allow: peer.allow,
                status: PeerStatus::Unreachable,
                version: None,
                detail: Some("not tried: the Coordinator of this system does not run".to_owned()),
            };
            Ok(known.into_iter().map(view).collect())
        }
        answer => Ok(answer?),
    }
}
