//! Certificates as the dump shows them. Keys are not here: they do not leave `mesh::identity`.

use base64::{Engine, prelude::BASE64_STANDARD};
use mesh::identity::{CertificateState, Identities};
use rustls_pki_types::CertificateDer;
use serde::Serialize;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use x509_parser::prelude::{ASN1Time, FromDer, X509Certificate};

/// Characters in a line of PEM (RFC 7468 §2).
const PEM_LINE: usize = 64;

/// One identity's certificate.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Certificate {
    identity: String,
    state: String,
    cert_chain: Vec<Link>,
    root_certs: Vec<Link>,
}

/// One certificate of a chain.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Link {
    /// Base64 of the PEM text, which is what `istioctl` expects.
    pem: String,
    serial_number: String,
    valid_from: String,
    expiration_time: String,
}

/// The certificates of all identities, by identity.
pub(super) fn all(identities: &Identities) -> Vec<Certificate> {
    let mut all: Vec<Certificate> = identities
        .states()
        .into_iter()
        .map(|(who, state)| Certificate::of(who.to_string(), &state))
        .collect();
    all.sort_by(|one, other| one.identity.cmp(&other.identity));
    all
}

impl Certificate {
    fn of(identity: String, state: &CertificateState) -> Self {
        let (state, cert_chain, root_certs) = match state {
            CertificateState::Initializing => ("Initializing".to_owned(), Vec::new(), Vec::new()),
            CertificateState::Unavailable { error, .. } => {
                (format!("Unavailable: {error}"), Vec::new(), Vec::new())
            }
            CertificateState::Available { credential, .. } => (
                "Available".to_owned(),
                credential.chain().iter().map(Link::of).collect(),
                credential.roots().iter().map(Link::of).collect(),
            ),
        };
        Self { identity, state, cert_chain, root_certs }
    }
}

impl Link {
    /// A certificate that cannot be parsed, which a root may be, shows its PEM only.
    fn of(der: &CertificateDer<'_>) -> Self {
        let pem = BASE64_STANDARD.encode(pem(der));
        let Ok((_, parsed)) = X509Certificate::from_der(der) else {
            let unknown = String::new;
            return Self {
                pem,
                serial_number: unknown(),
                valid_from: unknown(),
                expiration_time: unknown(),
            };
        };
        Self {
            pem,
            serial_number: parsed.tbs_certificate.serial.to_string(),
            valid_from: rfc3339(parsed.validity().not_before),
            expiration_time: rfc3339(parsed.validity().not_after),
        }
    }
}

fn pem(der: &CertificateDer<'_>) -> String {
    let body = BASE64_STANDARD.encode(der);
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(PEM_LINE));
        text.push_str(line);
        text.push('\n');
        rest = tail;
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}

fn rfc3339(moment: ASN1Time) -> String {
    let moment = OffsetDateTime::from_unix_timestamp(moment.timestamp()).ok();
    moment.and_then(|moment| moment.format(&Rfc3339).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use mesh::identity::{LocalCa, Spiffe};

    use super::*;

    #[test]
    fn a_certificate_shows_its_chain_with_serial_and_validity() {
        let ca = LocalCa::new("cluster.local").unwrap();
        let who = Spiffe::new("cluster.local", "shop", "web").unwrap();
        let credential = Arc::new(ca.credential(&who).unwrap());
        let state = CertificateState::Available { credential, renewal_failure: None };
        let found = Certificate::of(who.to_string(), &state);
        assert_eq!(found.state, "Available");
        let root = found.root_certs.first().unwrap();
        let pem = String::from_utf8(BASE64_STANDARD.decode(&root.pem).unwrap()).unwrap();
        assert_eq!(pem, ca.roots_pem().replace("\r\n", "\n"));
        let leaf = found.cert_chain.first().unwrap();
        assert!(leaf.serial_number.bytes().all(|b| b.is_ascii_digit()), "{}", leaf.serial_number);
        assert!(OffsetDateTime::parse(&leaf.expiration_time, &Rfc3339).is_ok());
    }
}
