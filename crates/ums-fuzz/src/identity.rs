//! Certificates, keys and permits.

use rustls_pki_types::CertificateDer;
use ums_tls::Identity;
use ums_tls::ca::{Authority, Issued};

/// A certificate as a peer shows it, as a file holds it; a key; a permit.
pub(crate) fn certificates(data: &[u8]) -> bool {
    let named = ums_tls::peer_name(&[CertificateDer::from(data)]).is_ok();
    let Ok(text) = std::str::from_utf8(data) else {
        return named;
    };
    let permit = ums_node::permit::from_text(text);
    let identity = Identity {
        ca_pem: text.to_owned(),
        cert_pem: text.to_owned(),
        key_pem: text.to_owned(),
    };
    let _ = (identity.name(), identity.fingerprint());
    let served = ums_tls::server_config(&identity, &[]).is_ok();
    let connected = ums_tls::client_config(&identity, &[]).is_ok();
    let issued = Issued {
        cert_pem: text.to_owned(),
        key_pem: text.to_owned(),
    };
    let authority = Authority::from_pem(&issued).is_ok();
    named || permit.is_ok() || served || connected || authority
}
