//! The root of the mesh, made once and kept in pilot's data folder, or an authority that others have made; and what it
//! signs.
//!
//! Who may have which name is the certificate service's decision, not this module's.

mod clients;
mod files;
mod ledger;
mod listener;
mod plugged;
mod reload;
mod revocation;
mod rotation;

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use mesh::identity::{Authority, SignError, Spiffe, Validity};

use self::{ledger::Ledger, plugged::Place, reload::Reloaded};

pub use files::OpenError;
pub use listener::ListenerError;
pub use revocation::{RevokeError, Revoked, revoke};
pub use rotation::{RotationError, RotationStep, rotate};

/// The longest lifetime of a workload's certificate, and what a request that names none gets. Unless somebody revokes
/// it, this is how long a stolen key is of use.
const MAX_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// How far validity reaches back, for nodes whose clocks lag behind ours. Istio's grace too.
const BACK_DATED: Duration = Duration::from_secs(120);

/// The mesh's certificate authority. A clone shares the root.
#[derive(Clone)]
pub struct CertificateAuthority {
    root: Arc<Reloaded>,
    ledger: Arc<Ledger>,
    data: Arc<Path>,
    trust_domain: Arc<str>,
}

impl CertificateAuthority {
    /// Loads the root from `dir`, or makes one there if there is none. `trust_domain` becomes the subject of a new one.
    /// What changes of it in `dir` is in force from the next certificate on.
    ///
    /// `root-key.pem` must not be readable by others; `root-cert.pem` may have further certificates, which the mesh then
    /// trusts besides.
    ///
    /// # Errors
    /// [`OpenError`] names the file and what to do.
    pub fn open(dir: &Path, trust_domain: &str) -> Result<Self, OpenError> {
        Self::open_at(dir, None, trust_domain)
    }

    /// As [`Self::open`], or with an authority that others have made, as Istio's `cacerts`: `ca-cert.pem`, `ca-key.pem`,
    /// `cert-chain.pem` and `root-cert.pem` in the folder `cacerts`, or, where none is named, in `data`.
    ///
    /// # Errors
    /// [`OpenError`] names the file and what to do.
    pub fn open_at(
        data: &Path,
        cacerts: Option<&Path>,
        trust_domain: &str,
    ) -> Result<Self, OpenError> {
        files::make_folder(data)?;
        let root = Reloaded::open(Place::of(data, cacerts), trust_domain, SystemTime::now())?;
        Ok(Self {
            root: Arc::new(root),
            ledger: Arc::new(Ledger::new(data)),
            data: data.into(),
            trust_domain: trust_domain.into(),
        })
    }

    /// The root certificate in PEM, and those that are trusted besides: what clients need to know us.
    pub fn root_pem(&self) -> String {
        self.root.authority().roots_pem().to_owned()
    }

    /// Signs a workload's certificate: leaf, then roots, as the certificate service answers.
    ///
    /// The names in the request are ignored. A `lifetime` of zero, or one of more than 24 hours, gives 24 hours.
    ///
    /// # Errors
    /// [`SignError`] says what is wrong with the request.
    pub fn sign(
        &self,
        csr_pem: &str,
        who: &Spiffe,
        lifetime: Duration,
    ) -> Result<Vec<String>, SignError> {
        let lifetime = if lifetime.is_zero() { MAX_LIFETIME } else { lifetime.min(MAX_LIFETIME) };
        let validity = Validity::starting(SystemTime::now(), BACK_DATED, lifetime);
        let chain = self.authority().sign(csr_pem, who, validity)?;
        self.ledger.enter(&chain, who);
        Ok(chain)
    }

    /// Forgets the certificates it issued that have ended. For the one process that issues.
    pub fn forget_ended(&self) {
        self.ledger.forget_ended(SystemTime::now());
    }

    fn authority(&self) -> Arc<Authority> {
        self.root.authority()
    }
}

#[cfg(test)]
mod tests {
    use mesh::identity::{CertificateSource, Identities, IdentityConfig};

    use super::*;

    /// The certificate service without its network.
    pub(super) struct Direct(pub(super) CertificateAuthority);

    impl CertificateSource for Direct {
        fn issue<'a>(
            &'a self,
            csr_pem: String,
            who: &'a Spiffe,
            lifetime: Duration,
        ) -> mesh::identity::BoxFuture<'a, Result<Vec<String>, mesh::identity::CaError>> {
            Box::pin(async move { Ok(self.0.sign(&csr_pem, who, lifetime)?) })
        }
    }

    async fn lifetime_for(asked: Duration) -> Duration {
        let dir = tempfile::tempdir().unwrap();
        let ca = CertificateAuthority::open(dir.path(), "cluster.local").unwrap();
        let config = IdentityConfig { lifetime: asked, ..IdentityConfig::default() };
        let identities = Identities::start(Arc::new(Direct(ca)), config);
        let who = Spiffe::new("cluster.local", "shop", "web").unwrap();
        let credential = identities.credential(&who).await.unwrap();
        credential.not_after().duration_since(credential.not_before()).unwrap()
    }

    #[tokio::test]
    async fn a_certificate_lasts_as_asked_and_reaches_two_minutes_back() {
        assert_eq!(lifetime_for(Duration::from_secs(3600)).await, Duration::from_secs(3720));
    }

    #[tokio::test]
    async fn a_certificate_lasts_a_day_at_most_and_by_default() {
        let day = MAX_LIFETIME + BACK_DATED;
        assert_eq!(lifetime_for(Duration::from_secs(30 * 24 * 3600)).await, day);
        assert_eq!(lifetime_for(Duration::ZERO).await, day);
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let ca = CertificateAuthority::open(dir.path(), "cluster.local").unwrap();
        let who = Spiffe::new("cluster.local", "shop", "web").unwrap();
        let error = ca.sign("hello", &who, MAX_LIFETIME).unwrap_err();
        assert!(matches!(error, SignError::Malformed { .. }), "{error}");
    }
}
