//! Open tunnels and connections of one thread whose peer's certificate may be revoked.
//!
//! In: the certificates of each peer, and revocation lists when they change. Out: the word that a peer is revoked, to
//! all that its certificate carries. The index is by the peer's leaf: all tunnels and connections of one certificate
//! share one entry, which is what is looked up in new lists. They are closed by their own tasks.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::{Rc, Weak},
    sync::Arc,
    time::Duration,
};

use mesh::{
    hbone::Abort,
    identity::{CertificateName, PeerChain, Verification},
    telemetry::{Failure, Reason},
};
use tokio::sync::Notify;

/// How long a tunnel whose peer is revoked may take to say why its connections end.
pub(super) const PARTING: Duration = Duration::from_secs(1);

/// Why a connection of a revoked peer ends, or does not begin.
pub(super) fn failure() -> Failure {
    let reason = Reason::CertificateRevoked;
    Failure { reason, error: reason.describe().to_owned() }
}

/// The peers of one thread.
#[derive(Default)]
pub(super) struct Peers {
    by_leaf: RefCell<HashMap<CertificateName, Weak<Entry>>>,
}

struct Entry {
    chain: Arc<PeerChain>,
    revoked: Cell<bool>,
    told: Notify,
    peers: Weak<Peers>,
}

/// One peer's standing.
#[derive(Clone)]
pub(super) struct Standing(Rc<Entry>);

impl Peers {
    /// The standing of the peer that was verified by `chain`, beginning with what `verification` says: lists may have
    /// changed since the handshake.
    pub(super) fn watch(
        self: &Rc<Self>,
        chain: &Arc<PeerChain>,
        verification: &Verification,
    ) -> Standing {
        let known = self.by_leaf.borrow().get(chain.leaf()).and_then(Weak::upgrade);
        if let Some(entry) = known.filter(|entry| !entry.revoked.get()) {
            return Standing(entry);
        }
        let entry = Rc::new(Entry {
            chain: chain.clone(),
            revoked: Cell::new(verification.revoked(chain).is_some()),
            told: Notify::new(),
            peers: Rc::downgrade(self),
        });
        if !entry.revoked.get() {
            self.by_leaf.borrow_mut().insert(chain.leaf().clone(), Rc::downgrade(&entry));
        }
        Standing(entry)
    }

    /// Tells those whose certificate is revoked.
    pub(super) fn judge(&self, verification: &Verification) {
        let entries: Vec<_> = self.by_leaf.borrow().values().filter_map(Weak::upgrade).collect();
        for entry in entries {
            if !entry.revoked.get()
                && let Some(revoked) = verification.revoked(&entry.chain)
            {
                tracing::info!(serial = %revoked, "a peer's certificate is revoked");
                entry.revoked.set(true);
                entry.told.notify_waiters();
            }
        }
    }
}

impl Standing {
    /// Whether the peer's certificate is revoked.
    pub(super) fn is_revoked(&self) -> bool {
        self.0.revoked.get()
    }

    /// Resolves when the peer's certificate is revoked.
    pub(super) async fn revoked(&self) {
        let told = self.0.told.notified();
        if !self.is_revoked() {
            told.await;
        }
    }

    /// What `work` gives, unless the peer's certificate is revoked first.
    pub(super) async fn unless_revoked<T>(
        &self,
        work: impl Future<Output = T>,
    ) -> Result<T, Failure> {
        tokio::select! {
            biased;
            () = self.revoked() => Err(failure()),
            result = work => Ok(result),
        }
    }

    /// Resolves when the peer's certificate is revoked, or `order` says to cut.
    pub(super) async fn or(&self, order: impl Future<Output = Abort>) -> Abort {
        tokio::select! {
            biased;
            () = self.revoked() => Abort::CertificateRevoked,
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
        // Another may have taken the place of one that was revoked.
        if by_leaf.get(self.chain.leaf()).is_some_and(|entry| entry.strong_count() == 0) {
            by_leaf.remove(self.chain.leaf());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use mesh::identity::{LocalCa, Spiffe};
    use tokio::task::yield_now;

    use super::*;

    fn standing() -> Standing {
        let ca = LocalCa::new("cluster.local").unwrap();
        let credential = ca.credential(&Spiffe::new("cluster.local", "shop", "web").unwrap());
        let chain = PeerChain::of(credential.unwrap().chain()).unwrap();
        Peers::watch(&Rc::default(), &Arc::new(chain), &Verification::default())
    }

    fn revoke(standing: &Standing) {
        standing.0.revoked.set(true);
        standing.0.told.notify_waiters();
    }

    #[tokio::test]
    async fn work_for_a_peer_in_good_standing_is_done() {
        assert_eq!(standing().unless_revoked(ready(7)).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn nothing_is_done_for_a_revoked_peer() {
        let standing = standing();
        revoke(&standing);
        let failure = standing.unless_revoked(async { panic!("it is done") }).await.unwrap_err();
        assert_eq!(failure.reason, Reason::CertificateRevoked);
    }

    #[tokio::test]
    async fn a_wait_ends_when_the_peer_is_revoked() {
        let standing = standing();
        let revoking = async {
            yield_now().await;
            revoke(&standing);
        };
        let (waited, ()) = tokio::join!(standing.unless_revoked(pending::<()>()), revoking);
        assert_eq!(waited.unwrap_err().reason, Reason::CertificateRevoked);
    }
}
