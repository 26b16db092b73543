//! What is known of each identity's certificate, and the task that asks for it.
//!
//! In: who is wanted, what the authority answers, which peers are not trusted any more. Out: live credentials, read
//! without a lock, and states to wait for. [`Schedule`] decides when to ask and for whom, [`Bundles`] which roots are
//! trusted.

use std::{
    collections::{BTreeMap, HashMap},
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

use super::{
    CertificateSource, CertificateState, Credential, FilesError, IdentityConfig, IdentityFiles,
    IssueError, IssueReport, PeerChain, Revocations, Spiffe, Verification,
    bundles::{AskAgain, Bundles, GRACE},
    chain::IssuedChain,
    key::RequestedKey,
    renewal::Jitter,
    schedule::{Answer, Request, Schedule, Urgency},
};

/// Over how long the requests are spread that a change of roots causes: every node of the mesh may see it at once.
const SPREAD: Duration = Duration::from_secs(60);
/// Over how long a request is put off that makes sure of a root's end. The answer has to come within the root's grace.
const CONFIRMING: Duration = Duration::from_secs(GRACE.as_secs() / 2);

/// All that is known of the node's certificates.
pub(super) struct Keeper {
    /// What connections read.
    live: ArcSwap<imbl::HashMap<Spiffe, Arc<Credential>>>,
    /// Held for moments, never across an await, and not on the path of a connection that finds its certificate.
    book: Mutex<Book>,
    /// Changed under the book's lock, after the credentials that it is part of.
    verification: watch::Sender<Arc<Verification>>,
    /// Wakes the worker: the schedule changed.
    changed: Notify,
    config: IdentityConfig,
    /// Whether the one identity is in files.
    is_of_files: bool,
}

#[derive(Default)]
struct Book {
    schedule: Schedule,
    states: HashMap<Spiffe, watch::Sender<CertificateState>>,
    bundles: Bundles,
    issued: u64,
    last_issued: Option<SystemTime>,
    failed: BTreeMap<&'static str, u64>,
}

impl Keeper {
    pub(super) fn new(config: IdentityConfig) -> Self {
        let verification = Verification {
            trust_domain_aliases: config.trust_domain_aliases.clone().into(),
            roots: Arc::default(),
            compliance: config.compliance,
            versions: config.versions,
            revocations: config.revocations.clone(),
        };
        Self {
            live: ArcSwap::default(),
            book: Mutex::default(),
            verification: watch::channel(Arc::new(verification)).0,
            changed: Notify::new(),
            config,
            is_of_files: false,
        }
    }

    pub(super) fn of_files(config: IdentityConfig) -> Self {
        Self { is_of_files: true, ..Self::new(config) }
    }

    pub(super) fn is_of_files(&self) -> bool {
        self.is_of_files
    }

    /// Puts the identity of the files in the place of the one that is held.
    pub(super) fn load(&self, files: &IdentityFiles) -> Result<Spiffe, FilesError> {
        let (who, issued) = files.read(SystemTime::now())?;
        let mut book = self.book();
        let roots = issued.roots.clone();
        let credential = Credential::of_chain(issued, &self.verification.borrow().clone())
            .map_err(|source| FilesError::Tls { who: who.clone(), source: Box::new(source) })?;
        let former: Vec<Spiffe> =
            book.states.keys().filter(|former| **former != who).cloned().collect();
        let credential = Arc::new(credential);
        self.live.rcu(|live| live.update(who.clone(), credential.clone()));
        let available = CertificateState::Available { credential, renewal_failure: None };
        book.states.insert(who.clone(), watch::channel(available).0);
        // There is nobody to ask again: the roots are those of the files, and no others.
        book.bundles = Bundles::default();
        book.bundles.handle_delivered(&who, &roots, Instant::now().into_std());
        self.drop_certificates(&mut book, &former);
        Ok(who)
    }

    pub(super) fn config(&self) -> &IdentityConfig {
        &self.config
    }

    pub(super) fn current(&self, who: &Spiffe) -> Option<Arc<Credential>> {
        self.live.load().get(who).filter(|credential| is_live(credential)).cloned()
    }

    pub(super) fn verification(&self) -> watch::Receiver<Arc<Verification>> {
        self.verification.subscribe()
    }

    pub(super) fn want(&self, who: &Spiffe, urgency: Urgency) -> watch::Receiver<CertificateState> {
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

    pub(super) fn release(&self, who: &Spiffe) {
        if self.is_of_files {
            return;
        }
        let mut book = self.book();
        let is_held = self.current(who).is_some();
        let dropped = book.schedule.handle_released(who, is_held, Instant::now().into_std());
        self.drop_certificates(&mut book, dropped.as_slice());
        drop(book);
        self.changed.notify_one();
    }

    pub(super) fn revoke(&self, revocations: Arc<Revocations>) {
        let mut book = self.book();
        self.demand(&book, |verification| verification.revocations = revocations);
        let (verification, now) = (self.verification.borrow().clone(), Instant::now().into_std());
        for (who, credential) in self.live.load().iter() {
            let Ok(chain) = PeerChain::of(credential.chain()) else { continue };
            if let Some(revoked) = verification.revoked(&chain) {
                tracing::warn!(identity = %who, serial = %revoked, "our certificate is revoked: asking for another");
                book.schedule.handle_outdated(who, now);
            }
        }
        drop(book);
        self.changed.notify_one();
    }

    pub(super) fn renew_all(&self) {
        let all: Vec<Spiffe> = self.live.load().keys().cloned().collect();
        self.renew_soon(&mut self.book(), &all, SPREAD);
        self.changed.notify_one();
    }

    pub(super) fn states(&self) -> Vec<(Spiffe, CertificateState)> {
        let book = self.book();
        let is_wanted = |who| self.is_of_files || book.schedule.is_wanted(who);
        let wanted = book.states.iter().filter(|(who, _)| is_wanted(who));
        let mut states: Vec<_> =
            wanted.map(|(who, state)| (who.clone(), state.borrow().clone())).collect();
        states.sort_by(|(a, _), (b, _)| a.cmp(b));
        states
    }

    pub(super) fn report(&self) -> IssueReport {
        let book = self.book();
        IssueReport {
            issued: book.issued,
            failed: book.failed.iter().map(|(kind, count)| (*kind, *count)).collect(),
            last_issued: book.last_issued,
        }
    }

    /// The book is consistent after every single change, so that it can be used even if a holder panicked.
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn drop_certificates(&self, book: &mut Book, dropped: &[Spiffe]) {
        for who in dropped {
            book.states.remove(who);
            book.bundles.handle_dropped(who, Instant::now().into_std());
            self.live.rcu(|live| live.without(who));
        }
        self.trust_union(book);
    }

    /// Puts in force the roots that the node's certificates came with.
    fn trust_union(&self, book: &Book) {
        let roots = book.bundles.union();
        if *self.verification.borrow().roots != *roots {
            self.demand(book, |verification| verification.roots = roots.into());
        }
    }

    /// Puts other demands in force: in every credential, then for those who look after open tunnels. The book is the
    /// lock under which this happens.
    fn demand(&self, book: &Book, change: impl FnOnce(&mut Verification)) {
        let mut verification = Verification::clone(&self.verification.borrow());
        change(&mut verification);
        let mut live = imbl::HashMap::clone(&self.live.load());
        for (who, credential) in live.iter_mut() {
            match credential.under(&verification) {
                Ok(changed) => {
                    *credential = Arc::new(changed);
                    book.show(who, credential);
                }
                // It stays with what it demanded, which was right a moment ago, until it is renewed.
                Err(error) => {
                    tracing::error!(identity = %who, error = &error as &dyn Error, "a certificate does not take what is demanded of its peers");
                }
            }
        }
        self.live.store(Arc::new(live));
        self.verification.send_replace(Arc::new(verification));
    }

    fn renew_soon(&self, book: &mut Book, outdated: &[Spiffe], spread: Duration) {
        let now = Instant::now().into_std();
        for who in outdated {
            let wait = spread.mul_f64(rand::random_range(0.0..1.0));
            book.schedule.handle_outdated(who, now + wait);
        }
    }

    fn store(&self, request: &Request, issued: IssuedChain) {
        let (age, lifetime) = age_and_lifetime(&issued, SystemTime::now());
        let now = Instant::now().into_std();
        let who = &request.who;
        let mut book = self.book();
        match book.schedule.handle_issued(request, now, age, lifetime, jitter()) {
            Answer::Stale => return,
            Answer::Wanted => {}
        }
        let AskAgain { others, confirm } = book.bundles.handle_delivered(who, &issued.roots, now);
        if confirm || !others.is_empty() {
            tracing::info!(identity = %who, others = others.len(), "the roots of the mesh have changed");
            self.renew_soon(&mut book, &others, SPREAD);
        }
        if confirm {
            self.renew_soon(&mut book, std::slice::from_ref(who), CONFIRMING);
        }
        self.trust_union(&book);
        let credential = match Credential::of_chain(issued, &self.verification.borrow().clone()) {
            Ok(credential) => Arc::new(credential),
            Err(error) => return self.fail(&mut book, who, error),
        };
        tracing::info!(identity = %who, lifetime_seconds = lifetime.as_secs(), "certificate issued");
        book.issued += 1;
        book.last_issued = Some(SystemTime::now());
        self.live.rcu(|live| live.update(who.clone(), credential.clone()));
        if let Some(state) = book.states.get(who) {
            state.send_replace(CertificateState::Available { credential, renewal_failure: None });
        }
    }

    fn record_failure(&self, request: &Request, error: IssueError) {
        let now = Instant::now().into_std();
        let left = self
            .current(&request.who)
            .map(|held| held.not_after().duration_since(SystemTime::now()).unwrap_or_default());
        let mut book = self.book();
        match book.schedule.handle_failed(request, now, left, jitter()) {
            Answer::Stale => {}
            Answer::Wanted => self.fail(&mut book, &request.who, error),
        }
    }

    fn fail(&self, book: &mut Book, who: &Spiffe, error: IssueError) {
        let held = self.current(who);
        let now = Instant::now().into_std();
        let retry_at = book.schedule.retry_at(who).unwrap_or(now);
        let retry_in = retry_at - now;
        tracing::warn!(
            identity = %who,
            error = &error as &dyn Error,
            ?retry_in,
            still_valid_until = ?held.as_ref().map(|held| held.not_after()),
            "no certificate issued"
        );
        *book.failed.entry(error.kind()).or_default() += 1;
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

impl Book {
    /// Shows a credential in place of the one for the same certificate.
    fn show(&self, who: &Spiffe, changed: &Arc<Credential>) {
        let Some(state) = self.states.get(who) else { return };
        state.send_modify(|state| {
            if let CertificateState::Available { credential, .. } = state {
                *credential = changed.clone();
            }
        });
    }
}

/// Sends what is due, takes in what comes, sleeps until the next moment.
pub(super) async fn keep_fresh(keeper: Arc<Keeper>, source: Arc<dyn CertificateSource>) {
    let mut requests = JoinSet::new();
    let mut sent = HashMap::new();
    loop {
        let (due, wake_at) = {
            let mut book = keeper.book();
            let now = Instant::now().into_std();
            let dropped = book.schedule.handle_timeout(now);
            book.bundles.handle_timeout(now);
            keeper.drop_certificates(&mut book, &dropped);
            let due: Vec<Request> = std::iter::from_fn(|| book.schedule.poll_request()).collect();
            let timeouts = [book.schedule.poll_timeout(), book.bundles.poll_timeout()];
            (due, timeouts.into_iter().flatten().min())
        };
        for request in due {
            let source = source.clone();
            let (who, lifetime) = (request.who.clone(), keeper.config.lifetime);
            let task = requests.spawn(async move { issue(&*source, &who, lifetime).await });
            sent.insert(task.id(), request);
        }
        tokio::select! {
            () = keeper.changed.notified() => {}
            () = sleep_until(wake_at) => {}
            Some(ended) = requests.join_next_with_id() => {
                let (id, result) = match ended {
                    Ok((id, result)) => (id, result),
                    Err(error) => (error.id(), Err(IssueError::Aborted { reason: error.to_string() })),
                };
                let request = sent.remove(&id).expect("inserted when the task was spawned");
                match result {
                    Ok(issued) => keeper.store(&request, issued),
                    Err(error) => keeper.record_failure(&request, error),
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
) -> Result<IssuedChain, IssueError> {
    // A fresh key for each certificate, so that a key is never older than one lifetime.
    let key = RequestedKey::generate(who)?;
    let chain = source.issue(key.csr_pem(), who, lifetime).await?;
    Ok(IssuedChain::check(&chain, key.signing_key()?, who, SystemTime::now())?)
}

pub(super) fn is_live(credential: &Credential) -> bool {
    SystemTime::now() <= credential.not_after()
}

fn age_and_lifetime(issued: &IssuedChain, now: SystemTime) -> (Duration, Duration) {
    let leaf = &issued.leaf;
    let since = |end: SystemTime| end.duration_since(leaf.not_before).unwrap_or_default();
    (since(now), since(leaf.not_after))
}

fn jitter() -> Jitter {
    Jitter::new(rand::random_range(-1.0..=1.0))
}

#[cfg(test)]
#[path = "identities_tests.rs"]
mod tests;
