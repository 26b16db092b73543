//! Certificates of a node against authorities that answer as a script says.

use std::{collections::VecDeque, sync::Mutex};

use super::*;
use crate::identity::{CaError, Identities, LocalCa, Unavailable, Validity};

const HOUR: Duration = Duration::from_secs(3600);

/// What the authority does with one request.
#[derive(Clone, Copy)]
enum Reply {
    Issue,
    Fail,
    Hang,
}

/// Answers as the script says, and then issues.
struct Scripted {
    ca: LocalCa,
    replies: Mutex<VecDeque<Reply>>,
    asked: watch::Sender<u32>,
}

impl Scripted {
    fn new(replies: &[Reply]) -> Arc<Self> {
        Arc::new(Self {
            ca: LocalCa::new("cluster.local").unwrap(),
            replies: Mutex::new(replies.iter().copied().collect()),
            asked: watch::channel(0).0,
        })
    }

    async fn asked(&self, times: u32) {
        self.asked.subscribe().wait_for(|asked| *asked >= times).await.unwrap();
    }
}

impl CertificateSource for Scripted {
    fn issue<'a>(
        &'a self,
        csr_pem: String,
        who: &'a Spiffe,
        lifetime: Duration,
    ) -> crate::identity::BoxFuture<'a, Result<Vec<String>, CaError>> {
        self.asked.send_modify(|asked| *asked += 1);
        let reply = self.replies.lock().unwrap().pop_front().unwrap_or(Reply::Issue);
        match reply {
            Reply::Issue => self.ca.issue(csr_pem, who, lifetime),
            Reply::Fail => Box::pin(async {
                Err(CaError::Connect { address: "https://ca".into(), reason: "refused".into() })
            }),
            Reply::Hang => Box::pin(std::future::pending()),
        }
    }
}

fn web() -> Spiffe {
    Spiffe::new("cluster.local", "shop", "web").unwrap()
}

fn start(source: &Arc<Scripted>) -> Identities {
    Identities::start(
        source.clone(),
        IdentityConfig { lifetime: HOUR, ..IdentityConfig::default() },
    )
}

fn state(identities: &Identities) -> String {
    let describe = |state| match state {
        CertificateState::Initializing => "initializing".to_owned(),
        CertificateState::Available { renewal_failure: None, .. } => "available".into(),
        CertificateState::Available { renewal_failure: Some(error), .. } => {
            format!("available, {error}")
        }
        CertificateState::Unavailable { error, .. } => format!("unavailable, {error}"),
    };
    let states: Vec<_> = identities.states().into_iter().map(|(_, s)| describe(s)).collect();
    states.join("; ")
}

#[tokio::test]
async fn many_connections_share_one_request() {
    let source = Scripted::new(&[]);
    let identities = start(&source);
    assert!(identities.current(&web()).is_none());
    let who = web();
    let (a, b) = tokio::join!(identities.credential(&who), identities.credential(&who));
    assert!(Arc::ptr_eq(&a.unwrap(), &b.unwrap()));
    assert!(identities.current(&web()).is_some());
    assert_eq!(*source.asked.borrow(), 1);
    assert_eq!(state(&identities), "available");
}

#[test]
fn a_connection_may_wait_on_another_runtime() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let (give, take) = std::sync::mpsc::channel();
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let control = std::thread::spawn(move || {
        runtime().block_on(async {
            give.send(start(&Scripted::new(&[]))).unwrap();
            ended.await
        })
    });
    let identities = take.recv().unwrap();
    let credential = runtime().block_on(identities.credential(&web())).unwrap();
    assert_eq!(*credential.spiffe(), web());
    drop(end);
    assert!(control.join().unwrap().is_err());
}

#[tokio::test]
async fn a_prefetched_certificate_is_there_without_a_wait() {
    let source = Scripted::new(&[]);
    let identities = start(&source);
    identities.prefetch(&web());
    assert_eq!(state(&identities), "initializing");
    let mut states = identities.keeper.book().states[&web()].subscribe();
    states.wait_for(|s| matches!(s, CertificateState::Available { .. })).await.unwrap();
    assert!(identities.current(&web()).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_connection_waits_through_a_short_back_off() {
    let source = Scripted::new(&[Reply::Fail, Reply::Fail]);
    let identities = start(&source);
    assert!(identities.credential(&web()).await.is_ok());
    assert_eq!(*source.asked.borrow(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_connection_fails_at_once_when_the_next_attempt_is_too_late() {
    let source = Scripted::new(&[Reply::Fail; 100]);
    let identities = start(&source);
    let began = Instant::now();
    let error = identities.credential(&web()).await.unwrap_err();
    assert!(matches!(error, Unavailable::Failed { .. }), "{error:?}");
    assert_eq!(
        error.source().unwrap().to_string(),
        "cannot connect to the certificate authority at https://ca: refused"
    );
    assert!(began.elapsed() < Duration::from_secs(10));
    assert!(state(&identities).starts_with("unavailable, cannot connect"));
}

#[tokio::test(start_paused = true)]
async fn a_connection_does_not_wait_for_ever() {
    let source = Scripted::new(&[Reply::Hang]);
    let identities = start(&source);
    let began = Instant::now();
    let error = identities.credential(&web()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "no certificate for spiffe://cluster.local/ns/shop/sa/web within 10s"
    );
    assert_eq!(began.elapsed().as_secs(), 10);
}

#[tokio::test(start_paused = true)]
async fn the_old_certificate_serves_while_its_renewal_fails() {
    let source = Scripted::new(&[Reply::Issue, Reply::Fail, Reply::Issue]);
    let identities = start(&source);
    let first = identities.credential(&web()).await.unwrap();
    let began = Instant::now();
    let mut states = identities.keeper.book().states[&web()].subscribe();
    states.changed().await.unwrap();
    let half = began.elapsed().as_secs();
    assert!((27 * 60 - 1..=33 * 60).contains(&half), "renewed after {half} s");
    assert!(Arc::ptr_eq(&first, &identities.current(&web()).unwrap()));
    assert!(state(&identities).starts_with("available, cannot connect"));
    states.changed().await.unwrap();
    assert!(!Arc::ptr_eq(&first, &identities.current(&web()).unwrap()));
    assert_eq!(state(&identities), "available");
}

#[tokio::test]
async fn an_expired_certificate_is_not_served_but_replaced() {
    let source = Scripted::new(&[]);
    let identities = start(&source);
    let now = SystemTime::now();
    let past = Validity { not_before: now - 2 * HOUR, not_after: now - HOUR };
    let expired = Arc::new(source.ca.credential_valid(&web(), past, &[]).unwrap());
    identities.credential(&web()).await.unwrap();
    identities.keeper.live.rcu(|live| live.update(web(), expired.clone()));
    let credential = expired.clone();
    identities.keeper.book().states[&web()]
        .send_replace(CertificateState::Available { credential, renewal_failure: None });
    assert!(identities.current(&web()).is_none());
    let fresh = identities.credential(&web()).await.unwrap();
    assert!(fresh.not_after() > now);
    assert_eq!(*source.asked.borrow(), 2);
}

#[tokio::test]
async fn who_waits_for_an_identity_that_nobody_has_any_more_is_told() {
    let source = Scripted::new(&[Reply::Hang]);
    let identities = start(&source);
    let who = web();
    let release = async {
        source.asked(1).await;
        identities.release(&who);
    };
    let (result, ()) = tokio::join!(identities.credential(&who), release);
    let error = result.unwrap_err();
    assert_eq!(
        error.to_string(),
        "spiffe://cluster.local/ns/shop/sa/web is no longer on this node"
    );
    assert_eq!(identities.states().len(), 0);
    assert!(identities.credential(&who).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn pods_made_anew_find_the_certificate_of_their_identity() {
    let source = Scripted::new(&[]);
    let identities = start(&source);
    let first = identities.credential(&web()).await.unwrap();
    identities.release(&web());
    assert_eq!(state(&identities), "");
    tokio::time::advance(Duration::from_secs(299)).await;
    let again = identities.credential(&web()).await.unwrap();
    assert!(Arc::ptr_eq(&first, &again));
    identities.prefetch(&web());
    assert_eq!(state(&identities), "available");
    assert_eq!(*source.asked.borrow(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_certificate_that_nobody_needs_is_dropped_in_the_end() {
    let source = Scripted::new(&[]);
    let identities = start(&source);
    identities.credential(&web()).await.unwrap();
    let released = tokio::time::Instant::now();
    identities.release(&web());
    // Its root is given up a little later than itself.
    let mut verification = identities.verification();
    verification.wait_for(|now| now.roots.is_empty()).await.unwrap();
    assert!(identities.current(&web()).is_none());
    let kept = released.elapsed().as_secs();
    assert!((330..=332).contains(&kept), "{kept} s");
}

/// Serves from one authority, then from another.
struct Rotating {
    before: LocalCa,
    after: LocalCa,
    switched: std::sync::atomic::AtomicBool,
}

impl CertificateSource for Rotating {
    fn issue<'a>(
        &'a self,
        csr_pem: String,
        who: &'a Spiffe,
        lifetime: Duration,
    ) -> crate::identity::BoxFuture<'a, Result<Vec<String>, CaError>> {
        let switched = self.switched.load(std::sync::atomic::Ordering::Relaxed);
        (if switched { &self.after } else { &self.before }).issue(csr_pem, who, lifetime)
    }
}

#[tokio::test(start_paused = true)]
async fn a_root_that_came_with_one_certificate_is_trusted_by_all_and_the_others_ask_again() {
    let new = LocalCa::new("cluster.local").unwrap();
    let before = LocalCa::new("cluster.local").unwrap();
    let after = new.trusting(&before);
    let source = Arc::new(Rotating { before, after, switched: false.into() });
    let config = IdentityConfig { lifetime: 1000 * HOUR, ..IdentityConfig::default() };
    let identities = Identities::start(source.clone(), config);
    let cart = Spiffe::new("cluster.local", "shop", "cart").unwrap();
    let first = identities.credential(&web()).await.unwrap();
    assert_eq!(first.roots().len(), 1);
    source.switched.store(true, std::sync::atomic::Ordering::Relaxed);

    identities.credential(&cart).await.unwrap();
    let held = identities.current(&web()).unwrap();
    assert_eq!(held.roots().len(), 2);
    assert_eq!(held.chain(), first.chain());
    let mut states = identities.keeper.want(&web(), Urgency::Prefetch);
    let replaced = |state: &CertificateState| matches!(state, CertificateState::Available { credential, .. } if credential.chain() != first.chain());
    tokio::time::timeout(Duration::from_secs(61), states.wait_for(replaced))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(identities.report().issued, 3);
}

#[tokio::test(start_paused = true)]
async fn our_own_revoked_certificate_is_replaced_at_once() {
    let source = Scripted::new(&[]);
    let identities = start(&source);
    let first = identities.credential(&web()).await.unwrap();
    let mut states = identities.keeper.want(&web(), Urgency::Prefetch);
    let list = source.ca.revocation_list(&[&first]).unwrap();
    states.borrow_and_update();
    identities.revoke(Arc::new(Revocations::parse(list.as_bytes()).unwrap()));
    let replaced = |state: &CertificateState| matches!(state, CertificateState::Available { credential, .. } if credential.chain() != first.chain());
    tokio::time::timeout(Duration::from_secs(1), states.wait_for(replaced)).await.unwrap().unwrap();
}

#[tokio::test]
async fn what_failed_is_counted_by_its_kind() {
    let source = Scripted::new(&[Reply::Fail]);
    let identities = start(&source);
    assert!(identities.credential(&web()).await.is_ok());
    let report = identities.report();
    assert_eq!((report.issued, report.failed), (1, vec![("connect", 1)]));
    assert!(report.last_issued.is_some());
}

#[tokio::test]
async fn a_bug_in_the_source_is_a_failure_of_that_request() {
    struct Panics;
    impl CertificateSource for Panics {
        fn issue<'a>(
            &'a self,
            _csr_pem: String,
            _who: &'a Spiffe,
            _lifetime: Duration,
        ) -> crate::identity::BoxFuture<'a, Result<Vec<String>, CaError>> {
            Box::pin(async { panic!("a bug") })
        }
    }
    let identities = Identities::start(Arc::new(Panics), IdentityConfig::default());
    identities.prefetch(&web());
    let mut states = identities.keeper.book().states[&web()].subscribe();
    states.wait_for(|s| matches!(s, CertificateState::Unavailable { .. })).await.unwrap();
    assert!(state(&identities).contains("ended abnormally"), "{}", state(&identities));
}
