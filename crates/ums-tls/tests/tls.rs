//! Who is let in over mutual TLS, and who isn't.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use ums_core::id::SystemName;
use ums_tls::ca::{Authority, Issued, SYSTEM_VALIDITY};
use ums_tls::{ALPN_DATA, Identity, TlsError};

const LIMIT: Duration = Duration::from_secs(20);

fn system(name: &str) -> SystemName {
    name.parse().unwrap()
}

fn identity(ca: &Authority, issued: Issued) -> Identity {
    Identity {
        ca_pem: ca.cert_pem().to_owned(),
        cert_pem: issued.cert_pem,
        key_pem: issued.key_pem,
    }
}

fn member(ca: &Authority, name: &str) -> Identity {
    identity(ca, ca.issue(&system(name), &[], SYSTEM_VALIDITY).unwrap())
}

/// Runs one server for one connection; says who came, or why nobody was let in.
async fn serve(
    server: &Identity,
) -> (
    SocketAddr,
    tokio::task::JoinHandle<Result<SystemName, TlsError>>,
) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let config = ums_tls::server_config(server, &[ALPN_DATA]).unwrap();
    let task = tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        let (mut stream, peer) = ums_tls::accept(tcp, config, LIMIT).await?;
        stream.write_all(b"in").await.unwrap();
        stream.shutdown().await.unwrap();
        Ok(peer.system)
    });
    (address, task)
}

/// A TLS 1.3 client learns of the server's refusal only when it reads.
async fn outcome(
    address: SocketAddr,
    name: &str,
    config: Arc<ClientConfig>,
) -> Result<Vec<u8>, String> {
    let mut stream = ums_tls::connect(address, &system(name), config, LIMIT)
        .await
        .map_err(|error| chain(&error))?;
    let mut got = Vec::new();
    stream
        .read_to_end(&mut got)
        .await
        .map_err(|error| error.to_string())?;
    Ok(got)
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

fn client(identity: &Identity) -> Arc<ClientConfig> {
    ums_tls::client_config(identity, &[ALPN_DATA]).unwrap()
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn roots(identity: &Identity) -> rustls::RootCertStore {
    use rustls_pki_types::pem::PemObject;
    let mut roots = rustls::RootCertStore::empty();
    let ca = rustls_pki_types::CertificateDer::from_pem_slice(identity.ca_pem.as_bytes()).unwrap();
    roots.add(ca).unwrap();
    roots
}

#[tokio::test]
async fn members_of_one_ca_meet_and_know_each_other() {
    let (ca, kept) = Authority::new("test").unwrap();
    let again = Authority::from_pem(&kept).unwrap();
    let (alpha, beta) = (member(&ca, "alpha"), member(&again, "beta"));
    assert_eq!(alpha.name().unwrap(), system("alpha"));
    assert_ne!(alpha.fingerprint().unwrap(), beta.fingerprint().unwrap());
    let (address, server) = serve(&beta).await;
    assert_eq!(
        outcome(address, "beta", client(&alpha)).await.unwrap(),
        b"in"
    );
    assert_eq!(server.await.unwrap().unwrap(), system("alpha"));
}

#[tokio::test]
async fn another_ca_is_refused_on_both_sides() {
    let (ours, _) = Authority::new("ours").unwrap();
    let (theirs, _) = Authority::new("theirs").unwrap();
    let (beta, stranger) = (member(&ours, "beta"), member(&theirs, "alpha"));
    let (address, server) = serve(&beta).await;
    let refused = outcome(address, "beta", client(&stranger))
        .await
        .unwrap_err();
    assert!(refused.contains("invalid peer certificate"), "{refused}");
    assert!(server.await.unwrap().is_err());

    // The stranger trusts the server's CA, but shows a certificate of its own.
    let mixed = Identity {
        ca_pem: ours.cert_pem().to_owned(),
        ..stranger
    };
    let (address, server) = serve(&beta).await;
    outcome(address, "beta", client(&mixed)).await.unwrap_err();
    let refused = chain(&server.await.unwrap().unwrap_err());
    assert!(refused.contains("invalid peer certificate"), "{refused}");
}

#[tokio::test]
async fn a_client_without_certificate_is_refused() {
    let (ca, _) = Authority::new("test").unwrap();
    let beta = member(&ca, "beta");
    let (address, server) = serve(&beta).await;
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots(&beta))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_DATA.to_vec()];
    outcome(address, "beta", Arc::new(config))
        .await
        .unwrap_err();
    let refused = chain(&server.await.unwrap().unwrap_err());
    assert!(refused.contains("no certificates"), "{refused}");
}

#[tokio::test]
async fn a_member_under_another_name_is_refused() {
    let (ca, _) = Authority::new("test").unwrap();
    let (alpha, gamma) = (member(&ca, "alpha"), member(&ca, "gamma"));
    let (address, server) = serve(&gamma).await;
    let refused = outcome(address, "beta", client(&alpha)).await.unwrap_err();
    assert!(refused.contains("not valid for name"), "{refused}");
    assert!(server.await.unwrap().is_err());
}

#[tokio::test]
async fn tls_1_2_is_refused() {
    let (ca, _) = Authority::new("test").unwrap();
    let beta = member(&ca, "beta");
    let (address, server) = serve(&beta).await;
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(roots(&beta))
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN_DATA.to_vec()];
    let refused = outcome(address, "beta", Arc::new(config))
        .await
        .unwrap_err();
    assert!(refused.contains("ProtocolVersion"), "{refused}");
    assert!(server.await.unwrap().is_err());
}

#[tokio::test]
async fn another_protocol_is_refused() {
    let (ca, _) = Authority::new("test").unwrap();
    let (alpha, beta) = (member(&ca, "alpha"), member(&ca, "beta"));
    for offered in [&[b"http/1.1".as_slice()][..], &[]] {
        let (address, server) = serve(&beta).await;
        let config = ums_tls::client_config(&alpha, offered).unwrap();
        let seen = outcome(address, "beta", config).await;
        assert!(server.await.unwrap().is_err());
        assert!(seen.map_or(true, |got| got.is_empty()));
    }
}

#[tokio::test]
async fn an_expired_certificate_is_refused() {
    let (ca, _) = Authority::new("test").unwrap();
    let beta = member(&ca, "beta");
    // A validity of nothing ends at the moment it is issued.
    let issued = ca.issue(&system("alpha"), &[], Duration::ZERO).unwrap();
    let expired = identity(&ca, issued);
    let (address, server) = serve(&beta).await;
    // Certificates count whole seconds, so the end is over once the clock shows the next one.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    outcome(address, "beta", client(&expired))
        .await
        .unwrap_err();
    let refused = chain(&server.await.unwrap().unwrap_err());
    assert!(refused.contains("expired"), "{refused}");
}

#[test]
fn certificates_name_exactly_one_system() {
    let (ca, _) = Authority::new("test").unwrap();
    let ip = "192.0.2.7".parse().unwrap();
    let with_ip = identity(
        &ca,
        ca.issue(&system("alpha"), &[ip], SYSTEM_VALIDITY).unwrap(),
    );
    assert_eq!(with_ip.name().unwrap(), system("alpha"));
    assert!(ums_tls::peer_name(&[]).is_err());
    let no_name = Identity {
        cert_pem: ca.cert_pem().to_owned(),
        ..with_ip.clone()
    };
    assert!(
        no_name
            .name()
            .unwrap_err()
            .to_string()
            .contains("no alternative name")
    );
    assert!(matches!(
        ca.issue(&system("42"), &[], SYSTEM_VALIDITY),
        Err(TlsError::SystemName(_))
    ));
    assert!(!format!("{with_ip:?}").contains("PRIVATE"));
}

#[test]
fn identities_come_from_files_and_say_what_is_missing() {
    let (ca, _) = Authority::new("test").unwrap();
    let alpha = member(&ca, "alpha");
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("ca"), &alpha.ca_pem).unwrap();
    std::fs::write(path("cert"), &alpha.cert_pem).unwrap();
    let missing = Identity::load(&path("ca"), &path("cert"), &path("key")).unwrap_err();
    assert!(missing.to_string().starts_with("key "), "{missing}");
    std::fs::write(path("key"), &alpha.key_pem).unwrap();
    assert_eq!(
        Identity::load(&path("ca"), &path("cert"), &path("key")).unwrap(),
        alpha
    );
    let garbage = Identity {
        cert_pem: "nothing".to_owned(),
        ..alpha.clone()
    };
    assert!(ums_tls::server_config(&garbage, &[]).is_err());
    let other_key = Identity {
        key_pem: member(&ca, "beta").key_pem,
        ..alpha
    };
    assert!(ums_tls::client_config(&other_key, &[]).is_err());
}
