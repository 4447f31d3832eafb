//! The Coordinator and the agent of this system, and its peers.

use std::time::Duration;

use ums_api::client::{Hello, paths};
use ums_api::http::ClientError;
use ums_core::facts::NodeFacts;
use ums_core::id::SystemName;
use ums_tls::{Identity, TlsError};

use super::Check;
use crate::config::{Config, Peer};
use crate::connection::Connection;

/// How long a peer is waited for.
const PEER_TIME_MAX: Duration = Duration::from_secs(3);

/// How long the processes of this system are waited for.
const LOCAL_TIME_MAX: Duration = Duration::from_secs(5);

pub(super) async fn checks(config: &Config) -> Vec<Check> {
    let mut checks = vec![coordinator(config).await];
    checks.extend(agent(config).await);
    checks.extend(peers(config).await);
    checks
}

async fn answer<T>(asked: impl Future<Output = Result<T, ClientError>>) -> Result<T, String> {
    match tokio::time::timeout(LOCAL_TIME_MAX, asked).await {
        Ok(answer) => answer.map_err(|error| error.chain()),
        Err(_) => Err(format!("no answer within {} s", LOCAL_TIME_MAX.as_secs())),
    }
}

/// Neither is needed for the rest to be judged, so their absence is a warning.
async fn coordinator(config: &Config) -> Check {
    const NAME: &str = "coordinator";
    let connection = Connection::new(config.socket());
    match answer(connection.get::<Hello>(paths::HELLO)).await {
        Ok(hello) => Check::ok(
            NAME,
            format!("{} answers, ums {}", hello.system, hello.version),
        ),
        Err(error) => Check::warn(NAME, error, "start it with `ums serve`"),
    }
}

async fn agent(config: &Config) -> Vec<Check> {
    const NAME: &str = "agent";
    let connection = Connection::named("the agent", config.agent_socket());
    let facts = answer(connection.get::<NodeFacts>("/v1/facts")).await;
    let warnings = facts.iter().flat_map(|facts| facts.warnings.clone());
    let warn = |warning| Check::warn("clients", warning, "change that, or ask whose it is");
    let warnings: Vec<Check> = warnings.map(warn).collect();
    let agent = match facts {
        // It has tried what the other checks only look for.
        Ok(facts) if facts.criu.is_none() => Check::fail(
            NAME,
            "it answers, and could not use CRIU",
            format!("see {}", config.state_dir.join("agent.log").display()),
        ),
        Ok(facts) => {
            let eager = match facts.eager_restore {
                Some(reason) => format!("; puts memory in place before services run: {reason}"),
                None => String::new(),
            };
            let services = facts.system.services.len();
            Check::ok(NAME, format!("answers, {services} services{eager}"))
        }
        Err(error) => Check::warn(NAME, error, "`ums serve` starts it"),
    };
    std::iter::once(agent).chain(warnings).collect()
}

async fn peers(config: &Config) -> Vec<Check> {
    const NAME: &str = "peers";
    let known = match config.peers().all() {
        Ok(known) => known,
        Err(error) => return vec![Check::fail(NAME, error.to_string(), "mend that file")],
    };
    if known.is_empty() {
        let remedy = "make one known with `ums peer add`";
        return vec![Check::warn(NAME, "none, so nothing can be moved", remedy)];
    }
    // The certificate has lines of its own.
    let Ok(identity) = Identity::load(&config.ca, &config.cert, &config.key) else {
        return vec![Check::warn(
            NAME,
            "not tried without a certificate",
            "see above",
        )];
    };
    let tries = known.into_iter().map(|(name, peer)| {
        let identity = identity.clone();
        tokio::spawn(async move { greet(&name, &peer, &identity).await })
    });
    let mut checks = Vec::new();
    for attempt in tries.collect::<Vec<_>>() {
        let check = attempt.await;
        checks.push(check.unwrap_or_else(|error| {
            Check::warn(
                NAME,
                format!("one could not be tried: {error}"),
                "try again",
            )
        }));
    }
    checks
}

/// Connects, and lets both show who they are; asks nothing.
async fn greet(name: &SystemName, peer: &Peer, identity: &Identity) -> Check {
    const NAME: &str = "peer";
    let connected = match ums_tls::client_config(identity, &[]) {
        Ok(config) => ums_tls::connect(peer.address, name, config, PEER_TIME_MAX)
            .await
            .map(drop),
        Err(error) => Err(error),
    };
    match connected {
        Ok(()) => Check::ok(NAME, format!("{name} answers at {}", peer.address)),
        Err(error) => Check::warn(
            NAME,
            format!("{name} at {}: {}", peer.address, chain(&error)),
            "check its address, that `ums serve` runs there, and that one CA issued both \
             certificates",
        ),
    }
}

/// An error and what caused it.
fn chain(error: &TlsError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        text.push_str(&format!(": {next}"));
        cause = next.source();
    }
    text
}

#[cfg(test)]
mod test {
    use tokio::net::TcpListener;
    use ums_tls::ca::{Authority, SYSTEM_VALIDITY};

    use super::super::Verdict;
    use super::*;

    fn identity(authority: &Authority, name: &str) -> Identity {
        let name: SystemName = name.parse().expect("a name");
        let issued = authority
            .issue(&name, &[], SYSTEM_VALIDITY)
            .expect("a certificate");
        Identity {
            ca_pem: authority.cert_pem().to_owned(),
            cert_pem: issued.cert_pem,
            key_pem: issued.key_pem,
        }
    }

    /// What `a` finds at the address of someone who has this identity, asking for `b`.
    async fn greeted(ours: &Identity, theirs: Identity) -> Check {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let config = ums_tls::server_config(&theirs, &[]).expect("usable");
        let serve = tokio::spawn(async move {
            let (tcp, _) = listener.accept().await.expect("a connection");
            // Who is not trusted is turned away here too; the other side tells.
            let _ = ums_tls::accept(tcp, config, PEER_TIME_MAX).await;
        });
        let peer = Peer {
            address,
            allow: Vec::new(),
        };
        let check = greet(&"b".parse().expect("a name"), &peer, ours).await;
        serve.await.expect("ended");
        check
    }

    #[tokio::test]
    async fn a_peer_is_known_by_its_certificate() {
        let (authority, _) = Authority::new("test").expect("a CA");
        let (other, _) = Authority::new("other").expect("a CA");
        let ours = identity(&authority, "a");
        assert_eq!(
            greeted(&ours, identity(&authority, "b")).await.verdict,
            Verdict::Ok
        );
        let impostor = greeted(&ours, identity(&authority, "c")).await;
        assert_eq!(impostor.verdict, Verdict::Warn);
        assert_eq!(
            greeted(&ours, identity(&other, "b")).await.verdict,
            Verdict::Warn
        );
    }

    #[tokio::test]
    async fn a_peer_that_is_not_there_is_told() {
        let (authority, _) = Authority::new("test").expect("a CA");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        drop(listener);
        let peer = Peer {
            address,
            allow: Vec::new(),
        };
        let check = greet(
            &"b".parse().expect("a name"),
            &peer,
            &identity(&authority, "a"),
        )
        .await;
        assert!(check.detail.contains("refused"), "{}", check.detail);
    }
}
