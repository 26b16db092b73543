//! The certificates of all identities on the node, kept fresh.
//!
//! In: who is wanted. Out: a live [`Credential`], without a lock where it is there already, and how the asking went.
//! What is asked and kept is the [`Keeper`]'s business.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{sync::watch, time::Instant};
use tokio_util::task::AbortOnDropHandle;

use super::{
    CertificateSource, Compliance, Credential, FilesError, IdentityFiles, IssueError, Revocations,
    Spiffe, TlsVersions, Verification,
    keeper::{Keeper, is_live, keep_fresh},
    schedule::Urgency,
};

/// How certificates are asked for.
#[derive(Clone, Debug)]
pub struct IdentityConfig {
    /// The lifetime to ask for; the authority may give less. Default 24 hours.
    pub lifetime: Duration,
    /// How long a connection waits for the first certificate of its identity. Default 10 seconds.
    pub wait: Duration,
    /// Trust domains that stand for the identity's own, in both directions: their workloads are let in, and are taken for
    /// the ones expected. Default none.
    pub trust_domain_aliases: Vec<String>,
    /// Which cryptography tunnels use. Default [`Compliance::None`].
    pub compliance: Compliance,
    /// Which versions of TLS tunnels speak. Default [`TlsVersions::Only13`].
    pub versions: TlsVersions,
    /// The revocation lists to begin with. Default none.
    pub revocations: Arc<Revocations>,
}

impl Default for IdentityConfig {
    fn default() -> Self {
        Self {
            lifetime: Duration::from_secs(24 * 3600),
            wait: Duration::from_secs(10),
            trust_domain_aliases: Vec::new(),
            compliance: Compliance::None,
            versions: TlsVersions::Only13,
            revocations: Arc::default(),
        }
    }
}

/// Where one identity's certificate stands.
#[derive(Clone, Debug)]
pub enum CertificateState {
    /// The first answer of the certificate authority is outstanding.
    Initializing,
    /// A certificate is in use.
    Available {
        /// It.
        credential: Arc<Credential>,
        /// Why the last attempt to renew it failed, if it did.
        renewal_failure: Option<Arc<IssueError>>,
    },
    /// There is none, or it has expired.
    Unavailable {
        /// Why the last attempt failed.
        error: Arc<IssueError>,
        /// When the next attempt is.
        retry_at: Instant,
    },
}

/// Why there is no certificate for a connection.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Unavailable {
    /// The last attempt failed, and the next is later than the connection may wait.
    #[error("no certificate for {who}, the next attempt is in {retry_in:?}")]
    Failed {
        /// For whom.
        who: Spiffe,
        /// Until the next attempt.
        retry_in: Duration,
        /// Why the last attempt failed.
        source: Arc<IssueError>,
    },
    /// The certificate authority was too slow.
    #[error("no certificate for {who} within {wait:?}")]
    TimedOut {
        /// For whom.
        who: Spiffe,
        /// How long the connection waited.
        wait: Duration,
        /// Why the last attempt failed, if there was one.
        source: Option<Arc<IssueError>>,
    },
    /// The identity is another than the host's own, which is in files.
    #[error("{}", not_in_files(.who, .held.as_ref()))]
    NotInFiles {
        /// Who was asked for.
        who: Spiffe,
        /// Whose identity is in the files, if it is another's.
        held: Option<Spiffe>,
    },
    /// Nobody on the node has the identity any more.
    #[error("{who} is no longer on this node")]
    Forgotten {
        /// Who.
        who: Spiffe,
    },
}

/// How the asking for certificates went since the start.
#[derive(Clone, Debug, Default)]
pub struct IssueReport {
    /// Certificates issued.
    pub issued: u64,
    /// Attempts that failed, by [`IssueError::kind`].
    pub failed: Vec<(&'static str, u64)>,
    /// When the last certificate was issued.
    pub last_issued: Option<SystemTime>,
}

fn not_in_files(who: &Spiffe, held: Option<&Spiffe>) -> String {
    match held {
        Some(held) => format!("the identity of this host is {held}, by its files, and not {who}"),
        None => format!("the files of this host hold no certificate for {who} that is valid"),
    }
}

/// The certificates of the node, shared by all threads. The last clone that goes ends the requests.
#[derive(Clone)]
pub struct Identities {
    pub(super) keeper: Arc<Keeper>,
    _worker: Option<Arc<AbortOnDropHandle<()>>>,
}

impl Identities {
    /// Begins to keep certificates from `source`, on the current tokio runtime.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(source: Arc<dyn CertificateSource>, config: IdentityConfig) -> Self {
        let keeper = Arc::new(Keeper::new(config));
        let worker = tokio::spawn(keep_fresh(keeper.clone(), source));
        Self { keeper, _worker: Some(Arc::new(AbortOnDropHandle::new(worker))) }
    }

    /// Serves one identity, which is in files, and no other. There is none before [`Identities::load`].
    pub fn of_files(config: IdentityConfig) -> Self {
        Self { keeper: Arc::new(Keeper::of_files(config)), _worker: None }
    }

    /// Takes over what is in the files, and says whose identity it is.
    ///
    /// # Errors
    /// [`FilesError`]; the last good one stays.
    pub fn load(&self, files: &IdentityFiles) -> Result<Spiffe, FilesError> {
        self.keeper.load(files)
    }

    /// The certificate of `who`, if there is one that has not expired. Takes no lock.
    pub fn current(&self, who: &Spiffe) -> Option<Arc<Credential>> {
        self.keeper.current(who)
    }

    /// The certificate of `who`; asks for it if need be, and waits at most [`IdentityConfig::wait`].
    ///
    /// May be called from any runtime that has timers.
    ///
    /// # Errors
    /// [`Unavailable`], at once when the next attempt lies beyond the wait.
    pub async fn credential(&self, who: &Spiffe) -> Result<Arc<Credential>, Unavailable> {
        if let Some(credential) = self.current(who) {
            return Ok(credential);
        }
        if self.keeper.is_of_files() {
            let held = self.keeper.states().pop().map(|(held, _)| held).filter(|held| held != who);
            return Err(Unavailable::NotInFiles { who: who.clone(), held });
        }
        let mut states = self.keeper.want(who, Urgency::Connection);
        let wait = self.keeper.config().wait;
        let deadline = Instant::now() + wait;
        loop {
            let failure = match &*states.borrow_and_update() {
                CertificateState::Initializing => None,
                CertificateState::Available { credential, renewal_failure } => {
                    if is_live(credential) {
                        return Ok(credential.clone());
                    }
                    renewal_failure.clone()
                }
                CertificateState::Unavailable { error, retry_at } if *retry_at > deadline => {
                    let retry_in = retry_at.saturating_duration_since(Instant::now());
                    let source = error.clone();
                    return Err(Unavailable::Failed { who: who.clone(), retry_in, source });
                }
                CertificateState::Unavailable { error, .. } => Some(error.clone()),
            };
            match tokio::time::timeout_at(deadline, states.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_forgotten)) => return Err(Unavailable::Forgotten { who: who.clone() }),
                Err(_elapsed) => {
                    return Err(Unavailable::TimedOut { who: who.clone(), wait, source: failure });
                }
            }
        }
    }

    /// Asks for the certificate of `who` before anybody waits for it.
    pub fn prefetch(&self, who: &Spiffe) {
        if !self.keeper.is_of_files() {
            self.keeper.want(who, Urgency::Prefetch);
        }
    }

    /// Nobody on the node has the identity any more. Its certificate is kept for a while, and not renewed, in case
    /// somebody has it again soon.
    pub fn release(&self, who: &Spiffe) {
        self.keeper.release(who);
    }

    /// Takes other revocation lists. No session that was verified under the former goes on being resumed, and a
    /// certificate of this node that is revoked is replaced.
    pub fn revoke(&self, revocations: Arc<Revocations>) {
        self.keeper.revoke(revocations);
    }

    /// Asks for all certificates again within a minute: the authority has other roots to give.
    pub fn renew_all(&self) {
        self.keeper.renew_all();
    }

    /// What is demanded of peers at present, and each time that it changes. What was verified earlier may not stand
    /// any more.
    pub fn verification(&self) -> watch::Receiver<Arc<Verification>> {
        self.keeper.verification()
    }

    /// The identities that somebody on the node has, and where their certificates stand, by name.
    pub fn states(&self) -> Vec<(Spiffe, CertificateState)> {
        self.keeper.states()
    }

    /// How the asking for certificates went.
    pub fn report(&self) -> IssueReport {
        self.keeper.report()
    }
}
