//! The certificates of all identities on the node, kept fresh.
//!
//! In: who is wanted. Out: a live [`Credential`], without a lock where it is there already. [`Schedule`] decides when
//! to ask and for whom; this file asks, keeps what came and wakes who waits.

use std::{
    collections::HashMap,
    error::Error,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::Instant,
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    CertificateSource, Credential, IssueError, Spiffe,
    key::RequestedKey,
    renewal::Jitter,
    schedule::{Answer, Request, Schedule, Urgency},
};

/// How certificates are asked for.
#[derive(Clone, Debug)]
pub struct IdentityConfig {
    /// The lifetime to ask for; the authority may give less. Default 24 hours.
    pub lifetime: Duration,
    /// How long a connection waits for the first certificate of its identity. Default 10 seconds.
    pub wait: Duration,
    /// Trust domains whose workloads are let in besides those of the identity's own. Default none.
    pub trust_domain_aliases: Vec<String>,
}

impl Default for IdentityConfig {
    fn default() -> Self {
        Self {
            lifetime: Duration::from_secs(24 * 3600),
            wait: Duration::from_secs(10),
            trust_domain_aliases: Vec::new(),
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
    /// Nobody on the node has the identity any more.
    #[error("{who} is no longer on this node")]
    Forgotten {
        /// Who.
        who: Spiffe,
    },
}

/// The certificates of the node, shared by all threads. The last clone that goes ends the requests.
#[derive(Clone)]
pub struct Identities {
    shared: Arc<Shared>,
    _worker: Arc<AbortOnDropHandle<()>>,
}

struct Shared {
    /// What connections read.
    live: ArcSwap<imbl::HashMap<Spiffe, Arc<Credential>>>,
    /// Held for moments, never across an await, and not on the path of a connection that finds its certificate.
    book: Mutex<Book>,
    /// Wakes the worker: the schedule changed.
    changed: Notify,
    config: IdentityConfig,
}

#[derive(Default)]
struct Book {
    schedule: Schedule,
    states: HashMap<Spiffe, watch::Sender<CertificateState>>,
}

impl Identities {
    /// Begins to keep certificates from `source`, on the current tokio runtime.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(source: Arc<dyn CertificateSource>, config: IdentityConfig) -> Self {
        let shared = Arc::new(Shared {
            live: ArcSwap::default(),
            book: Mutex::default(),
            changed: Notify::new(),
            config,
        });
        let worker = tokio::spawn(keep_fresh(shared.clone(), source));
        Self { shared, _worker: Arc::new(AbortOnDropHandle::new(worker)) }
    }

    /// The certificate of `who`, if there is one that has not expired. Takes no lock.
    pub fn current(&self, who: &Spiffe) -> Option<Arc<Credential>> {
        self.shared.current(who)
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
        let mut states = self.shared.want(who, Urgency::Connection);
        let wait = self.shared.config.wait;
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
        self.shared.want(who, Urgency::Prefetch);
    }

    /// Drops the certificate of `who`: nobody on the node has the identity any more.
    pub fn forget(&self, who: &Spiffe) {
        let mut book = self.shared.book();
        book.schedule.handle_forgotten(who);
        book.states.remove(who);
        self.shared.live.rcu(|live| live.without(who));
    }

    /// All identities and where their certificates stand, by name.
    pub fn states(&self) -> Vec<(Spiffe, CertificateState)> {
        let book = self.shared.book();
        let mut states: Vec<_> =
            book.states.iter().map(|(who, state)| (who.clone(), state.borrow().clone())).collect();
        states.sort_by(|(a, _), (b, _)| a.cmp(b));
        states
    }
}

impl Shared {
    fn current(&self, who: &Spiffe) -> Option<Arc<Credential>> {
        self.live.load().get(who).filter(|credential| is_live(credential)).cloned()
    }

    /// The book is consistent after every single change, so that it can be used even if a holder panicked.
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn want(&self, who: &Spiffe, urgency: Urgency) -> watch::Receiver<CertificateState> {
        let mut book = self.book();
        book.schedule.handle_wanted(who, urgency);
        let state = book.states.entry(who.clone()).or_insert_with(|| {
            let (state, _) = watch::channel(CertificateState::Initializing);
            state
        });
        let states = state.subscribe();
        let expired = match &*states.borrow() {
            CertificateState::Available { credential, .. } => !is_live(credential),
            CertificateState::Initializing | CertificateState::Unavailable { .. } => false,
        };
        if expired {
            book.schedule.handle_expired(who);
        }
        drop(book);
        self.changed.notify_one();
        states
    }

    fn store(&self, request: &Request, credential: Credential) {
        let (age, lifetime) = age_and_lifetime(&credential, SystemTime::now());
        let now = Instant::now().into_std();
        let mut book = self.book();
        match book.schedule.handle_issued(request, now, age, lifetime, jitter()) {
            Answer::Stale => return,
            Answer::Wanted => {}
        }
        let who = &request.who;
        tracing::info!(identity = %who, lifetime_seconds = lifetime.as_secs(), "certificate issued");
        let credential = Arc::new(credential);
        self.live.rcu(|live| live.update(who.clone(), credential.clone()));
        if let Some(state) = book.states.get(who) {
            state.send_replace(CertificateState::Available { credential, renewal_failure: None });
        }
    }

    fn record_failure(&self, request: &Request, error: IssueError) {
        let who = &request.who;
        let now = Instant::now().into_std();
        let held = self.current(who);
        let left = held
            .as_ref()
            .map(|held| held.not_after().duration_since(SystemTime::now()).unwrap_or_default());
        let mut book = self.book();
        match book.schedule.handle_failed(request, now, left, jitter()) {
            Answer::Stale => return,
            Answer::Wanted => {}
        }
        let retry_at = book.schedule.retry_at(who).unwrap_or(now);
        let retry_in = retry_at - now;
        tracing::warn!(
            identity = %who,
            error = &error as &dyn Error,
            ?retry_in,
            still_valid_for = ?left,
            "no certificate issued"
        );
        let error = Arc::new(error);
        let failed = match held {
            Some(credential) => {
                CertificateState::Available { credential, renewal_failure: Some(error) }
            }
            None => CertificateState::Unavailable { error, retry_at: retry_at.into() },
        };
        if let Some(state) = book.states.get(who) {
            state.send_replace(failed);
        }
    }
}

/// Sends what is due, takes in what comes, sleeps until the next moment.
async fn keep_fresh(shared: Arc<Shared>, source: Arc<dyn CertificateSource>) {
    let aliases: Arc<[String]> = shared.config.trust_domain_aliases.clone().into();
    let mut requests = JoinSet::new();
    let mut sent = HashMap::new();
    loop {
        let (due, wake_at) = {
            let mut book = shared.book();
            book.schedule.handle_timeout(Instant::now().into_std());
            let due: Vec<Request> = std::iter::from_fn(|| book.schedule.poll_request()).collect();
            (due, book.schedule.poll_timeout())
        };
        for request in due {
            let (source, aliases) = (source.clone(), aliases.clone());
            let (who, lifetime) = (request.who.clone(), shared.config.lifetime);
            let task =
                requests.spawn(async move { issue(&*source, &who, lifetime, &aliases).await });
            sent.insert(task.id(), request);
        }
        tokio::select! {
            () = shared.changed.notified() => {}
            () = sleep_until(wake_at) => {}
            Some(ended) = requests.join_next_with_id() => {
                let (id, result) = match ended {
                    Ok((id, result)) => (id, result),
                    Err(error) => (error.id(), Err(IssueError::Aborted { reason: error.to_string() })),
                };
                let request = sent.remove(&id).expect("inserted when the task was spawned");
                match result {
                    Ok(credential) => shared.store(&request, credential),
                    Err(error) => shared.record_failure(&request, error),
                }
            }
        }
    }
}

async fn sleep_until(moment: Option<std::time::Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

async fn issue(
    source: &dyn CertificateSource,
    who: &Spiffe,
    lifetime: Duration,
    trust_domain_aliases: &Arc<[String]>,
) -> Result<Credential, IssueError> {
    // A fresh key for each certificate, so that a key is never older than one lifetime.
    let key = RequestedKey::generate(who)?;
    let chain = source.issue(key.csr_pem(), who, lifetime).await?;
    Credential::assemble(&key, &chain, who, trust_domain_aliases, SystemTime::now())
}

fn is_live(credential: &Credential) -> bool {
    SystemTime::now() <= credential.not_after()
}

fn age_and_lifetime(credential: &Credential, now: SystemTime) -> (Duration, Duration) {
    let since = |end: SystemTime| end.duration_since(credential.not_before()).unwrap_or_default();
    (since(now), since(credential.not_after()))
}

fn jitter() -> Jitter {
    Jitter::new(rand::random_range(-1.0..=1.0))
}

#[cfg(test)]
#[path = "identities_tests.rs"]
mod tests;
