//! TLS of pilot's own listener, for which clients need nothing but the root.
//!
//! In: the names pilot is reached by. Out: a `rustls` configuration whose certificate renews itself at half of its
//! lifetime, or when the root has changed, in the handshake that finds it so: signing costs less than the handshake
//! does.

use std::{
    error::Error,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use mesh::identity::{Authority, SignError, Validity, crypto_provider};
use rustls::{
    ServerConfig,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
    version::TLS13,
};

use super::{BACK_DATED, CertificateAuthority, clients::Clients};

/// The names by which pilot is known in a cluster, under its own name and under Istio's, and on its own machine.
const OWN_NAMES: [&str; 7] = [
    "pilot.aquifer-system.svc",
    "pilot.aquifer-system.svc.cluster.local",
    "istiod.istio-system.svc",
    "istiod.istio-system.svc.cluster.local",
    "localhost",
    "127.0.0.1",
    "::1",
];
const LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);

/// Why the listener has no certificate.
#[derive(Debug, thiserror::Error)]
pub enum ListenerError {
    /// A name is none, or the root does not sign.
    #[error("signing the certificate of pilot's listener")]
    Sign(#[from] SignError),
    /// TLS did not take it.
    #[error("building the TLS configuration of pilot's listener")]
    Tls(#[from] rustls::Error),
}

impl CertificateAuthority {
    /// TLS for pilot's own listener: HTTP/2, a certificate for pilot's usual names and the `additional` DNS names and
    /// addresses, and of clients that have one a certificate of ours; others prove themselves by a token.
    ///
    /// # Errors
    /// [`ListenerError`] names what is wrong.
    pub fn server_config(&self, additional: &[String]) -> Result<Arc<ServerConfig>, ListenerError> {
        let own = self.own_certificate(additional)?;
        let clients = Clients::new(self.clone(), &self.data, &self.trust_domain);
        let mut config = ServerConfig::builder_with_provider(crypto_provider())
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(Arc::new(clients))
            .with_cert_resolver(Arc::new(own));
        config.alpn_protocols = vec![b"h2".into()];
        Ok(Arc::new(config))
    }

    /// TLS for what an API server asks: HTTP/1.1, a certificate for the same names, and none of the client.
    ///
    /// # Errors
    /// [`ListenerError`] names what is wrong.
    pub fn webhook_config(
        &self,
        additional: &[String],
    ) -> Result<Arc<ServerConfig>, ListenerError> {
        let own = self.own_certificate(additional)?;
        let mut config = ServerConfig::builder_with_provider(crypto_provider())
            .with_protocol_versions(&[&TLS13])?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(own));
        config.alpn_protocols = vec![b"http/1.1".into()];
        Ok(Arc::new(config))
    }

    fn own_certificate(&self, additional: &[String]) -> Result<OwnCertificate, ListenerError> {
        let names = OWN_NAMES.iter().map(|name| (*name).to_owned());
        let names = names.chain(additional.iter().cloned()).collect();
        OwnCertificate::new(self.clone(), names, SystemTime::now())
    }
}

struct OwnCertificate {
    authority: CertificateAuthority,
    names: Vec<String>,
    current: Mutex<Issued>,
}

#[derive(Clone)]
struct Issued {
    certified: Arc<CertifiedKey>,
    renew_at: SystemTime,
    by: Arc<Authority>,
}

impl OwnCertificate {
    fn new(
        authority: CertificateAuthority,
        names: Vec<String>,
        now: SystemTime,
    ) -> Result<Self, ListenerError> {
        let current = Mutex::new(issue(authority.authority(), &names, now)?);
        Ok(Self { authority, names, current })
    }

    fn at(&self, now: SystemTime) -> Arc<CertifiedKey> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let authority = self.authority.authority();
        if now >= current.renew_at || !Arc::ptr_eq(&authority, &current.by) {
            match issue(authority, &self.names, now) {
                Ok(renewed) => *current = renewed,
                Err(error) => {
                    tracing::error!(
                        error = &error as &dyn Error,
                        "pilot's certificate is not renewed"
                    );
                }
            }
        }
        current.certified.clone()
    }
}

impl ResolvesServerCert for OwnCertificate {
    fn resolve(&self, _client_hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.at(SystemTime::now()))
    }
}

impl std::fmt::Debug for OwnCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OwnCertificate").field("names", &self.names).finish_non_exhaustive()
    }
}

fn issue(
    authority: Arc<Authority>,
    names: &[String],
    now: SystemTime,
) -> Result<Issued, ListenerError> {
    let made =
        authority.server_certificate(names, Validity::starting(now, BACK_DATED, LIFETIME))?;
    let certified = CertifiedKey::from_der(made.chain, made.key, &crypto_provider())?;
    Ok(Issued { certified: Arc::new(certified), renew_at: now + LIFETIME / 2, by: authority })
}

#[cfg(test)]
mod tests {
    use rustls::{
        ClientConfig, RootCertStore,
        pki_types::{CertificateDer, ServerName, pem::PemObject},
    };
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    use super::*;

    async fn connect(ca: &CertificateAuthority, additional: &[String], name: &str) -> bool {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca.root_pem().as_bytes()).unwrap()).unwrap();
        let client = ClientConfig::builder_with_provider(crypto_provider())
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let (near, far) = tokio::io::duplex(64 * 1024);
        let acceptor = TlsAcceptor::from(ca.server_config(additional).unwrap());
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let connector = TlsConnector::from(Arc::new(client));
        let (client, _server) = tokio::join!(connector.connect(name, near), acceptor.accept(far));
        client.is_ok()
    }

    #[tokio::test]
    async fn pilot_is_known_by_its_names_and_addresses_only() {
        let dir = tempfile::tempdir().unwrap();
        let ca = CertificateAuthority::open(dir.path(), "cluster.local").unwrap();
        let additional = ["pilot.example.com".to_owned(), "10.0.0.1".to_owned()];
        for name in OWN_NAMES.iter().copied().chain(["pilot.example.com", "10.0.0.1"]) {
            assert!(connect(&ca, &additional, name).await, "{name}");
        }
        for name in ["example.com", "10.0.0.2"] {
            assert!(!connect(&ca, &additional, name).await, "{name}");
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let ca = CertificateAuthority::open(dir.path(), "cluster.local").unwrap();
        let error = ca.server_config(&["not a name".into()]).unwrap_err();
        let reason = error.source().unwrap().to_string();
        assert_eq!(reason, "`not a name` cannot stand in a certificate");
    }

    #[test]
    fn the_certificate_renews_itself_at_half_of_its_lifetime() {
        let dir = tempfile::tempdir().unwrap();
        let ca = CertificateAuthority::open(dir.path(), "cluster.local").unwrap();
        let now = SystemTime::now();
        let own = OwnCertificate::new(ca, vec!["localhost".into()], now).unwrap();
        let first = own.at(now);
        assert!(Arc::ptr_eq(&first, &own.at(now + LIFETIME / 2 - Duration::from_secs(1))));
        let second = own.at(now + LIFETIME / 2);
        assert!(!Arc::ptr_eq(&first, &second));
        assert!(Arc::ptr_eq(&second, &own.at(now + LIFETIME / 2)));
    }
}
