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
