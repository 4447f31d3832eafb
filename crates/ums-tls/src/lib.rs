//! Who is at the other end: mutual TLS 1.3 between systems that share a certificate authority.
//!
//! A system's certificate carries its [`SystemName`] as the only DNS name. Whoever connects asks
//! for the peer by that name, whatever address it dialled, so an address can change hands without
//! trust doing so; whoever accepts reads the name with [`peer_name`] and decides what it may do.
//!
//! The cryptography is ring's, named explicitly: no process-wide default provider is needed or
//! touched. Sessions are never resumed, so every connection proves both identities again.

pub mod ca;
mod stream;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use ums_core::id::SystemName;
use x509_parser::extensions::GeneralName;

pub use stream::{Connection, Peer, accept, connect};

/// Application protocol of the data path, as negotiated in the handshake.
pub const ALPN_DATA: &[u8] = b"ums-data/1";
/// Application protocol of the connection over which pages come that have stayed at a source.
pub const ALPN_PAGES: &[u8] = b"ums-pages/1";

/// The largest certificate or key file that is read: a chain of a few certificates is some KiB.
const PEM_BYTES_MAX: u64 = 256 * 1024;

/// What can be wrong with certificates, keys and handshakes.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file of the identity could not be read.
    #[error("{what} {path} can't be read; `ums ca` makes one, the configuration says where it is")]
    Read {
        /// Which of the three.
        what: &'static str,
        /// Where it was looked for.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// PEM text that holds no certificate or key, or a damaged one.
    #[error("{what} is not usable PEM: {reason}")]
    Pem {
        /// Which of the three.
        what: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// Certificate, key and CA do not fit together.
    #[error("this system's certificate, key and CA can't be used together: {reason}")]
    Identity {
        /// What is wrong.
        reason: String,
    },
    /// The peer's certificate does not name one system.
    #[error("the peer's certificate does not name a system: {reason}; issue it with `ums ca`")]
    PeerName {
        /// What is wrong.
        reason: String,
    },
    /// A system name that no certificate can carry.
    #[error("`{0}` can't be the name in a certificate; give the system a name with a letter in it")]
    SystemName(SystemName),
    /// A certificate could not be made.
    #[error("the certificate could not be made")]
    Issue(#[source] rcgen::Error),
    /// TCP or TLS failed before the peer was known.
    #[error("{operation} with {address} failed")]
    Connect {
        /// What was being done.
        operation: &'static str,
        /// The address of the other end.
        address: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The other end did not answer in time.
    #[error(
        "{operation} with {address} took longer than {seconds} s; see whether the agent there \
         runs and whether a firewall lets the port through"
    )]
    Timeout {
        /// What was being done.
        operation: &'static str,
        /// The address of the other end.
        address: String,
        /// How long was waited.
        seconds: u64,
    },
    /// The peer speaks another protocol on this port.
    #[error("{address} did not agree on the protocol `{wanted}`; is this the right port?")]
    Protocol {
        /// The address of the other end.
        address: String,
        /// What was asked for.
        wanted: String,
    },
}

/// What one system shows to the others: its certificate and key, and the CA it trusts.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    /// Certificates of the CA that peers' certificates must come from.
    pub ca_pem: String,
    /// This system's certificate, followed by intermediate ones if there are any.
    pub cert_pem: String,
    /// The key that belongs to it.
    pub key_pem: String,
}

impl Identity {
    /// Reads the three from files.
    pub fn load(ca: &Path, cert: &Path, key: &Path) -> Result<Self, TlsError> {
        Ok(Self {
            ca_pem: read_pem("CA certificate", ca)?,
            cert_pem: read_pem("certificate", cert)?,
            key_pem: read_pem("key", key)?,
        })
    }

    /// The name in this system's own certificate.
    pub fn name(&self) -> Result<SystemName, TlsError> {
        peer_name(&self.certificates()?)
    }

    /// The fingerprint of this system's own certificate.
    pub fn fingerprint(&self) -> Result<String, TlsError> {
        Ok(fingerprint(&self.certificates()?[0]))
    }

    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        certificates("certificate", &self.cert_pem)
    }

    fn key(&self) -> Result<PrivateKeyDer<'static>, TlsError> {
        PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes()).map_err(|error| TlsError::Pem {
            what: "key",
            reason: error.to_string(),
        })
    }

    fn roots(&self) -> Result<RootCertStore, TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates("CA certificate", &self.ca_pem)? {
            roots.add(certificate).map_err(identity_error)?;
        }
        Ok(roots)
    }
}

impl fmt::Debug for Identity {
    /// Shows who it is and never the key.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self
            .name()
            .map(String::from)
            .unwrap_or_else(|error| error.to_string());
        out.debug_struct("Identity")
            .field("name", &name)
            .finish_non_exhaustive()
    }
}

/// Configuration of the accepting side: TLS 1.3 only, a client certificate of our CA required.
pub fn server_config(identity: &Identity, alpn: &[&[u8]]) -> Result<Arc<ServerConfig>, TlsError> {
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(identity.roots()?), provider())
            .build()
            .map_err(identity_error)?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(identity_error)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.certificates()?, identity.key()?)
        .map_err(identity_error)?;
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// Configuration of the connecting side: TLS 1.3 only, our CA only, our certificate shown.
///
/// Connect with [`server_name`] of the system that is meant to be there.
pub fn client_config(identity: &Identity, alpn: &[&[u8]]) -> Result<Arc<ClientConfig>, TlsError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(identity_error)?
        .with_root_certificates(identity.roots()?)
        .with_client_auth_cert(identity.certificates()?, identity.key()?)
        .map_err(identity_error)?;
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// The name to ask for when connecting to `system`.
pub fn server_name(system: &SystemName) -> Result<ServerName<'static>, TlsError> {
    match ServerName::try_from(system.to_string()) {
        Ok(name @ ServerName::DnsName(_)) => Ok(name),
        Ok(_) | Err(_) => Err(TlsError::SystemName(system.clone())),
    }
}

/// The system that a chain of certificates speaks for: the only DNS name of the first one.
///
/// The chain must have been verified; this only reads it.
pub fn peer_name(chain: &[CertificateDer<'_>]) -> Result<SystemName, TlsError> {
    let bad = |reason: String| TlsError::PeerName { reason };
    let first = chain
        .first()
        .ok_or_else(|| bad("it showed none".to_owned()))?;
    let (_, certificate) = x509_parser::parse_x509_certificate(first)
        .map_err(|error| bad(format!("it is malformed ({error})")))?;
    let names = certificate
        .subject_alternative_name()
        .map_err(|error| bad(format!("its alternative names are malformed ({error})")))?
        .ok_or_else(|| bad("it has no alternative name".to_owned()))?;
    let mut dns = names
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::DNSName(text) => Some(*text),
            _ => None,
        });
    match (dns.next(), dns.next()) {
        (Some(only), None) => only.parse().map_err(|error| bad(format!("{error}"))),
        (None, _) => Err(bad("it has no DNS name".to_owned())),
        (Some(_), Some(_)) => Err(bad("it has more than one DNS name".to_owned())),
    }
}

/// A certificate's fingerprint for people to compare: 64 hexadecimal digits of BLAKE3.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    blake3::hash(certificate).to_hex().to_string()
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn certificates(what: &'static str, pem: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bad = |reason: String| TlsError::Pem { what, reason };
    let found = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| bad(error.to_string()))?;
    if found.is_empty() {
        return Err(bad("it holds no certificate".to_owned()));
    }
    Ok(found)
}

fn read_pem(what: &'static str, path: &Path) -> Result<String, TlsError> {
    let failed = |source| TlsError::Read {
        what,
        path: path.to_owned(),
        source,
    };
    if std::fs::metadata(path).map_err(failed)?.len() > PEM_BYTES_MAX {
        let reason = format!("{} is larger than {PEM_BYTES_MAX} bytes", path.display());
        return Err(TlsError::Pem { what, reason });
    }
    std::fs::read_to_string(path).map_err(failed)
}

fn identity_error(error: impl fmt::Display) -> TlsError {
    TlsError::Identity {
        reason: error.to_string(),
    }
}
