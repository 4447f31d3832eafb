//! A certificate authority of one's own: makes the CA, and issues the certificates of systems.

use std::net::IpAddr;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use time::OffsetDateTime;
use ums_core::id::SystemName;

use crate::{TlsError, server_name};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// How long a CA is valid: renewing one means visiting every system.
pub const CA_VALIDITY: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// How long a system's certificate is valid unless said otherwise.
pub const SYSTEM_VALIDITY: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Certificates are valid from a little before they are made: clocks of systems differ.
const CLOCK_SKEW: Duration = Duration::from_secs(60 * 60);

/// A certificate and its key, PEM both.
#[derive(Clone)]
pub struct Issued {
    /// The certificate.
    pub cert_pem: String,
    /// Its key: to be kept in a file that only its owner can read.
    pub key_pem: String,
}

/// A certificate authority that can issue.
pub struct Authority {
    cert_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes a new CA; `label` is what people see as its name.
    ///
    /// The second value holds what has to be kept to use it again with [`Authority::from_pem`].
    pub fn new(label: &str) -> Result<(Self, Issued), TlsError> {
        let key = KeyPair::generate().map_err(TlsError::Issue)?;
        let params = authority_params(label);
        let certificate = params.self_signed(&key).map_err(TlsError::Issue)?;
        let kept = Issued {
            cert_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        };
        let authority = Self {
            cert_pem: kept.cert_pem.clone(),
            issuer: Issuer::new(params, key),
        };
        Ok((authority, kept))
    }

    /// A CA that was made before.
    pub fn from_pem(kept: &Issued) -> Result<Self, TlsError> {
        let bad = |what| {
            move |error: rcgen::Error| TlsError::Pem {
                what,
                reason: error.to_string(),
            }
        };
        let key = KeyPair::from_pem(&kept.key_pem).map_err(bad("CA key"))?;
        let issuer =
            Issuer::from_ca_cert_pem(&kept.cert_pem, key).map_err(bad("CA certificate"))?;
        Ok(Self {
            cert_pem: kept.cert_pem.clone(),
            issuer,
        })
    }

    /// The CA's own certificate, PEM: what every system has to trust.
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// Issues the certificate of `system`, good for connecting and for accepting.
    ///
    /// `addresses` are added for clients that ask by address, such as browsers; peers ask by name.
    pub fn issue(
        &self,
        system: &SystemName,
        addresses: &[IpAddr],
        validity: Duration,
    ) -> Result<Issued, TlsError> {
        server_name(system)?;
        let key = KeyPair::generate().map_err(TlsError::Issue)?;
        let mut params =
            CertificateParams::new(vec![system.to_string()]).map_err(TlsError::Issue)?;
        params
            .subject_alt_names
            .extend(addresses.iter().map(|ip| SanType::IpAddress(*ip)));
        params.distinguished_name = common_name(system.as_str());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        (params.not_before, params.not_after) = valid_for(validity);
        let certificate = params
            .signed_by(&key, &self.issuer)
            .map_err(TlsError::Issue)?;
        Ok(Issued {
            cert_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        })
    }
}

fn authority_params(label: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.distinguished_name = common_name(label);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = valid_for(CA_VALIDITY);
    params
}

fn common_name(label: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, label);
    name
}

fn valid_for(validity: Duration) -> (OffsetDateTime, OffsetDateTime) {
    let now = OffsetDateTime::now_utc();
    // A century is more than any certificate needs and far from the end of the calendar.
    (now - CLOCK_SKEW, now + validity.min(36_500 * DAY))
}
