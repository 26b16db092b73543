//! Clients of pilot's listener that show a certificate in place of a token.
//!
//! In: what a client shows in the handshake. Out: whether our authority has issued it and has not taken it back. A client
//! that shows none is let through: it proves itself by a token, or not at all.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use mesh::identity::{Authority, crypto_provider, peer_identity};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    SignatureScheme,
    client::danger::HandshakeSignatureValid,
    pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime, pem::PemObject},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};

use super::{CertificateAuthority, reload::Stamp, revocation::LIST_FILE};

/// Verifies what clients show by the roots and the revocation list as they are at that moment.
pub(super) struct Clients {
    authority: CertificateAuthority,
    trust_domain: String,
    /// Of the certificates that we have taken back.
    list: PathBuf,
    current: Mutex<Option<Current>>,
}

struct Current {
    by: Arc<Authority>,
    list: Stamp,
    verifier: Arc<dyn ClientCertVerifier>,
}

impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clients").field("list", &self.list).finish_non_exhaustive()
    }
}

impl Clients {
    pub(super) fn new(authority: CertificateAuthority, data: &Path, trust_domain: &str) -> Self {
        let list = data.join(LIST_FILE);
        Self { authority, trust_domain: trust_domain.into(), list, current: Mutex::default() }
    }

    fn verifier(&self) -> Result<Arc<dyn ClientCertVerifier>, Error> {
        let (by, list) = (self.authority.authority(), Stamp::of(std::slice::from_ref(&self.list)));
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        match &*current {
            Some(same) if Arc::ptr_eq(&same.by, &by) && same.list == list => {
                Ok(Arc::clone(&same.verifier))
            }
            Some(_) | None => {
                let verifier = self.build(&by)?;
                *current = Some(Current { by, list, verifier: Arc::clone(&verifier) });
                Ok(verifier)
            }
        }
    }

    fn build(&self, by: &Authority) -> Result<Arc<dyn ClientCertVerifier>, Error> {
        // Whoever is taken back by a list that cannot be read is not let in for that.
        let unusable = |error: &dyn fmt::Display| {
            tracing::error!(list = %self.list.display(), %error, "no client certificate is accepted");
            Error::General("the revocation list cannot be used".into())
        };
        let mut roots = RootCertStore::empty();
        let all = CertificateDer::pem_slice_iter(by.roots_pem().as_bytes());
        roots.add_parsable_certificates(all.filter_map(Result::ok));
        let list = match fs::read(&self.list) {
            Ok(list) => list,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(unusable(&error)),
        };
        let lists =
            CertificateRevocationListDer::pem_slice_iter(&list).collect::<Result<Vec<_>, _>>();
        let lists = lists.map_err(|error| unusable(&error))?;
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), crypto_provider())
            .with_crls(lists)
            .allow_unknown_revocation_status()
            .build()
            .map_err(|error| unusable(&error))
    }
}

impl ClientCertVerifier for Clients {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.verifier()?.verify_client_cert(end_entity, intermediates, now)?;
        let who = peer_identity(std::slice::from_ref(end_entity));
        match who {
            Ok(who) if who.trust_domain() == self.trust_domain => Ok(verified),
            Ok(_) | Err(_) => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = crypto_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = crypto_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        crypto_provider().signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        path::Path,
        time::{Duration, SystemTime},
    };

    use mesh::identity::Spiffe;
    use rcgen::{CertificateParams, KeyPair};

    use super::*;
    use crate::ca::{RotationStep, plugged::tests::plug, revoke, rotate};

    fn issued(ca: &CertificateAuthority, trust_domain: &str) -> Vec<CertificateDer<'static>> {
        let key = KeyPair::generate().unwrap();
        let csr = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
        let who = Spiffe::new(trust_domain, "shop", "web").unwrap();
        let mut chain = ca.sign(&csr, &who, Duration::ZERO).unwrap();
        // The roots are not shown.
        chain.pop();
        let der = |pem: &String| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
        chain.iter().map(der).collect()
    }

    fn accepts(clients: &Clients, chain: &[CertificateDer<'static>]) -> bool {
        clients.verify_client_cert(&chain[0], &chain[1..], UnixTime::now()).is_ok()
    }

    fn open(dir: &Path) -> (CertificateAuthority, Clients) {
        let ca = CertificateAuthority::open(dir, "cluster.local").unwrap();
        let clients = Clients::new(ca.clone(), dir, "cluster.local");
        (ca, clients)
    }

    #[test]
    fn a_certificate_of_ours_is_accepted_until_it_is_taken_back_or_its_root_is_dropped() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let (ca, clients) = open(dirs[0].path());
        let (other, _) = open(dirs[1].path());
        let web = issued(&ca, "cluster.local");
        assert!(accepts(&clients, &web));
        assert!(!accepts(&clients, &issued(&other, "cluster.local")));
        assert!(!accepts(&clients, &issued(&ca, "example.com")));

        let who = Spiffe::new("cluster.local", "shop", "web").unwrap();
        let now = SystemTime::now();
        revoke(dirs[0].path(), None, &[], &[who], now).unwrap();
        assert!(!accepts(&clients, &web));
        let later = issued(&ca, "cluster.local");
        assert!(accepts(&clients, &later));
        for step in [RotationStep::Begin, RotationStep::Switch] {
            rotate(dirs[0].path(), step, "cluster.local", now).unwrap();
            assert!(accepts(&clients, &later));
        }
        rotate(dirs[0].path(), RotationStep::Finish, "cluster.local", now).unwrap();
        assert!(!accepts(&clients, &later));
    }

    #[test]
    fn a_list_that_cannot_be_read_lets_nobody_in() {
        let dir = tempfile::tempdir().unwrap();
        let (ca, clients) = open(dir.path());
        fs::write(dir.path().join(LIST_FILE), "-----BEGIN X509 CRL-----\nhello\n").unwrap();
        assert!(!accepts(&clients, &issued(&ca, "cluster.local")));
    }

    #[test]
    fn what_a_plugged_authority_issues_is_accepted_with_its_chain() {
        let dir = tempfile::tempdir().unwrap();
        plug(dir.path());
        let (ca, clients) = open(dir.path());
        let web = issued(&ca, "cluster.local");
        assert_eq!(web.len(), 2);
        assert!(accepts(&clients, &web));
        assert!(!accepts(&clients, &web[..1]));
    }
}
