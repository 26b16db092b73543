//! A workload's private key: made here, used here, never written anywhere.

use std::sync::Arc;

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, SanType};
use rustls::sign::SigningKey;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::{Spiffe, tls};

/// The key could not be made or used. Not the peer's fault nor the certificate authority's.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The random source or the library failed.
    #[error("making a key and its signing request for {who}")]
    Make {
        /// For whom.
        who: Spiffe,
        /// What the library says.
        source: rcgen::Error,
    },
    /// TLS does not take the key.
    #[error("loading the key into TLS")]
    Load {
        /// What the library says.
        source: rustls::Error,
    },
}

/// An ECDSA P-256 key, and the signing request that goes with it.
pub(super) struct RequestedKey {
    pair: KeyPair,
    csr_pem: String,
}

impl RequestedKey {
    /// A fresh key for `who`. The request has an empty subject and one URI: the name.
    pub(super) fn generate(who: &Spiffe) -> Result<Self, KeyError> {
        let make = |source| KeyError::Make { who: who.clone(), source };
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(make)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(who.as_str().try_into().map_err(make)?)];
        let csr_pem = params.serialize_request(&pair).and_then(|csr| csr.pem()).map_err(make)?;
        Ok(Self { pair, csr_pem })
    }

    pub(super) fn csr_pem(&self) -> String {
        self.csr_pem.clone()
    }

    /// The form in which TLS signs with it.
    pub(super) fn signing_key(&self) -> Result<Arc<dyn SigningKey>, KeyError> {
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.pair.serialize_der()));
        tls::provider()
            .key_provider
            .load_private_key(der)
            .map_err(|source| KeyError::Load { source })
    }
}

#[cfg(test)]
mod tests {
    use x509_parser::{
        certification_request::X509CertificationRequest,
        extensions::GeneralName,
        oid_registry::{OID_EC_P256, OID_SIG_ECDSA_WITH_SHA256},
        prelude::FromDer,
    };

    use super::*;

    #[test]
    fn a_request_has_an_empty_subject_one_name_and_a_key_of_its_own() {
        let who = Spiffe::new("cluster.local", "shop", "web").unwrap();
        let keys = [(); 2].map(|()| {
            let pem = RequestedKey::generate(&who).unwrap().csr_pem();
            let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap();
            assert_eq!(pem.label, "CERTIFICATE REQUEST");
            let (_, request) = X509CertificationRequest::from_der(&pem.contents).unwrap();
            request.verify_signature().unwrap();
            assert_eq!(request.signature_algorithm.algorithm, OID_SIG_ECDSA_WITH_SHA256);
            let info = &request.certification_request_info;
            assert_eq!(info.subject.iter_rdn().count(), 0);
            let key = &info.subject_pki;
            let curve = key.algorithm.parameters.as_ref().unwrap().as_oid().unwrap();
            assert_eq!(curve, OID_EC_P256);
            let mut names = Vec::new();
            for extension in request.requested_extensions().unwrap() {
                if let x509_parser::extensions::ParsedExtension::SubjectAlternativeName(found) =
                    extension
                {
                    names.extend(found.general_names.iter().cloned());
                }
            }
            assert_eq!(names, [GeneralName::URI("spiffe://cluster.local/ns/shop/sa/web")]);
            key.subject_public_key.data.to_vec()
        });
        assert_ne!(keys[0], keys[1]);
    }
}
