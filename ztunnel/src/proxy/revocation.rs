//! Open tunnels and connections of one thread whose peer may not be accepted any more: its certificate is revoked, or the
//! root that it was verified by is dropped.
//!
//! In: the certificates of each peer, and what is demanded of them when it changes. Out: the word that a peer is not
//! accepted, to all that its certificate carries. The index is by the peer's leaf: all tunnels and connections of one
//! certificate share one entry, which is what is judged again. They are closed by their own tasks.

use std::{
    cell::{Cell, RefCell},
    rc::{Rc, Weak},
    sync::Arc,
    time::Duration,
};

use foldhash::HashMap;
use mesh::{
    hbone::Abort,
    identity::{CertificateName, Objection, PeerChain, Verification},
    telemetry::{Failure, Reason},
};
use tokio::{sync::Notify, task::yield_now};

/// How long a tunnel whose peer is not accepted any more may take to say why its connections end.
pub(super) const PARTING: Duration = Duration::from_secs(1);
/// Peers that are judged before others get their turn: each may cost a few signatures.
const TURN: usize = 8;

/// Why a connection of such a peer ends, or does not begin.
fn failure(why: Abort) -> Failure {
    let reason = Reason::from(why);
    Failure { reason, error: reason.describe().to_owned() }
}

fn abort(objection: &Objection) -> Abort {
    match objection {
        Objection::Revoked { .. } => Abort::CertificateRevoked,
        Objection::Untrusted => Abort::CertificateUntrusted,
    }
}

/// The peers of one thread.
#[derive(Default)]
pub(super) struct Peers {
    by_leaf: RefCell<HashMap<CertificateName, Weak<Entry>>>,
}

struct Entry {
    chain: Arc<PeerChain>,
    /// Why it is not accepted any more.
    lost: Cell<Option<Abort>>,
    told: Notify,
    peers: Weak<Peers>,
}

/// One peer's standing.
#[derive(Clone)]
pub(super) struct Standing(Rc<Entry>);

impl Peers {
    /// The standing of the peer that was verified by `chain`, beginning with what `verification` says: it may have changed
    /// since the handshake.
    pub(super) fn watch(
        self: &Rc<Self>,
        chain: &Arc<PeerChain>,
        verification: &Verification,
    ) -> Standing {
        let known = self.by_leaf.borrow().get(chain.leaf()).and_then(Weak::upgrade);
        if let Some(entry) = known.filter(|entry| entry.lost.get().is_none()) {
            return Standing(entry);
        }
        let entry = Rc::new(Entry {
            chain: chain.clone(),
            lost: Cell::new(verification.objection(chain).as_ref().map(abort)),
            told: Notify::new(),
            peers: Rc::downgrade(self),
        });
        if entry.lost.get().is_none() {
            self.by_leaf.borrow_mut().insert(chain.leaf().clone(), Rc::downgrade(&entry));
        }
        Standing(entry)
    }

    /// Tells those who are not accepted any more.
    pub(super) async fn judge(&self, verification: &Verification) {
        let entries: Vec<_> = self.by_leaf.borrow().values().filter_map(Weak::upgrade).collect();
        for (index, entry) in entries.iter().enumerate() {
            if entry.lost.get().is_none()
                && let Some(objection) = verification.objection(&entry.chain)
            {
                let serial = entry.chain.leaf();
                tracing::info!(%serial, ?objection, "a peer is not accepted any more");
                entry.lost.set(Some(abort(&objection)));
                entry.told.notify_waiters();
            }
            if index % TURN == TURN - 1 {
                yield_now().await;
            }
        }
    }
}

impl Standing {
    /// Resolves when the peer is not accepted any more.
    pub(super) async fn lost(&self) -> Abort {
        loop {
            let told = self.0.told.notified();
            match self.0.lost.get() {
                Some(why) => return why,
                None => told.await,
            }
        }
    }

    /// What `work` gives, unless the peer is not accepted any more first.
    pub(super) async fn unless_lost<T>(&self, work: impl Future<Output = T>) -> Result<T, Failure> {
        tokio::select! {
            biased;
            why = self.lost() => Err(failure(why)),
            result = work => Ok(result),
        }
    }

    /// Resolves when the peer is not accepted any more, or `order` says to cut.
    pub(super) async fn or(&self, order: impl Future<Output = Abort>) -> Abort {
        tokio::select! {
            biased;
            why = self.lost() => why,
            why = order => why,
        }
    }
}

/// As [`Standing::or`], where there is a peer.
pub(super) async fn or(standing: Option<Standing>, order: impl Future<Output = Abort>) -> Abort {
    match standing {
        Some(standing) => standing.or(order).await,
        None => order.await,
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let Some(peers) = self.peers.upgrade() else { return };
        let mut by_leaf = peers.by_leaf.borrow_mut();
        // Another may have taken the place of one that was lost.
        if by_leaf.get(self.chain.leaf()).is_some_and(|entry| entry.strong_count() == 0) {
            by_leaf.remove(self.chain.leaf());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::{pending, ready},
        sync::Mutex,
    };

    use mesh::identity::{
        BoxFuture, CaError, CertificateSource, Identities, IdentityConfig, LocalCa, Revocations,
        Spiffe,
    };

    use super::*;

    fn web() -> Spiffe {
        Spiffe::new("cluster.local", "shop", "web").unwrap()
    }

    /// Authorities that take one another's place.
    struct Rotating(Mutex<Arc<LocalCa>>);

    impl CertificateSource for Rotating {
        fn issue<'a>(
            &'a self,
            csr_pem: String,
            who: &'a Spiffe,
            lifetime: Duration,
        ) -> BoxFuture<'a, Result<Vec<String>, CaError>> {
            let current = self.0.lock().unwrap().clone();
            Box::pin(async move { current.issue(csr_pem, who, lifetime).await })
        }
    }

    /// A node that trusts an old and a new root, with a peer under each.
    struct Node {
        identities: Identities,
        authority: Arc<Rotating>,
        old: Arc<LocalCa>,
        new: Arc<LocalCa>,
        peers: Rc<Peers>,
    }

    impl Node {
        async fn new() -> Self {
            let new = LocalCa::new("cluster.local").unwrap();
            let old = Arc::new(LocalCa::new("cluster.local").unwrap().trusting(&new));
            let authority = Arc::new(Rotating(Mutex::new(old.clone())));
            let identities = Identities::start(authority.clone(), IdentityConfig::default());
            identities.credential(&web()).await.unwrap();
            Self { identities, authority, old, new: Arc::new(new), peers: Rc::default() }
        }

        /// A peer with a certificate of `ca`, as a handshake leaves it.
        async fn peer(&self, ca: &LocalCa) -> Arc<PeerChain> {
            let own = self.identities.credential(&web()).await.unwrap();
            let peer = ca.credential(&web()).unwrap();
            Arc::new(own.peer_chain(peer.chain()).unwrap())
        }

        fn standing(&self, chain: &Arc<PeerChain>) -> Standing {
            self.peers.watch(chain, &self.identities.verification().borrow())
        }

        async fn judge(&self) {
            let verification = self.identities.verification().borrow().clone();
            self.peers.judge(&verification).await;
        }

        /// The authority gives certificates by the new root alone, until nothing rests on the old one.
        async fn drop_old_root(&self) {
            let mut changes = self.identities.verification();
            changes.mark_unchanged();
            *self.authority.0.lock().unwrap() = self.new.clone();
            self.identities.renew_all();
            changes.changed().await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_root_ends_what_rests_on_it_and_nothing_else() {
        let node = Node::new().await;
        let (under_old, under_new) = (node.peer(&node.old).await, node.peer(&node.new).await);
        let (old, new) = (node.standing(&under_old), node.standing(&under_new));
        node.judge().await;
        assert_eq!(old.unless_lost(ready(7)).await.unwrap(), 7);
        node.drop_old_root().await;
        let (lost, ()) = tokio::join!(old.unless_lost(pending::<()>()), node.judge());
        assert_eq!(lost.unwrap_err().reason, Reason::CertificateUntrusted);
        assert_eq!(new.unless_lost(ready(7)).await.unwrap(), 7);
        // A stream that comes later on the same tunnel is refused for the same reason.
        assert_eq!(node.standing(&under_old).lost().await, Abort::CertificateUntrusted);
    }

    #[tokio::test(start_paused = true)]
    async fn a_root_that_went_between_the_handshake_and_the_first_stream_is_noticed() {
        let node = Node::new().await;
        let chain = node.peer(&node.old).await;
        node.drop_old_root().await;
        let standing = node.standing(&chain);
        let failure = standing.unless_lost(async { panic!("it is done") }).await.unwrap_err();
        assert_eq!(failure.reason, Reason::CertificateUntrusted);
    }

    #[tokio::test(start_paused = true)]
    async fn a_revoked_peer_is_told_and_nothing_is_done_for_it() {
        let node = Node::new().await;
        let own = node.identities.credential(&web()).await.unwrap();
        let peer = node.old.credential(&web()).unwrap();
        let chain = Arc::new(own.peer_chain(peer.chain()).unwrap());
        let standing = node.standing(&chain);
        let list = node.old.revocation_list(&[&peer]).unwrap();
        node.identities.revoke(Arc::new(Revocations::parse(list.as_bytes()).unwrap()));
        let (lost, ()) = tokio::join!(standing.unless_lost(pending::<()>()), node.judge());
        assert_eq!(lost.unwrap_err().reason, Reason::CertificateRevoked);
        let again = node.standing(&chain).unless_lost(async { panic!("it is done") }).await;
        assert_eq!(again.unwrap_err().reason, Reason::CertificateRevoked);
    }
}
