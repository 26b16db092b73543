//! The connections of one thread that may have to be cut: by a changed policy, with their pod, at shutdown.
//!
//! In: registrations, each with what policy looks at where policy decides. Out: one [`Cut`] to a connection that may
//! not go on. Connections are closed by their own tasks.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
};

use mesh::{
    hbone::Abort,
    identity::Spiffe,
    policy::{Connection, Denied},
    store::Workload,
};
use tokio::sync::{Notify, oneshot};

use super::Pod;

/// All connections of a thread.
#[derive(Default)]
pub(super) struct Live {
    entries: RefCell<BTreeMap<u64, Entry>>,
    next: Cell<u64>,
    emptied: Notify,
}

struct Entry {
    pod: Arc<Pod>,
    subject: Option<Subject>,
    cut: Option<oneshot::Sender<Cut>>,
}

/// What policy looks at in an inbound connection.
#[derive(Clone, Debug)]
pub(super) struct Subject {
    /// The destination's record as it was last seen.
    pub(super) workload: Arc<Workload>,
    pub(super) peer: Option<Spiffe>,
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
}

/// The order to end a connection.
#[derive(Debug)]
pub(super) struct Cut {
    pub(super) why: Abort,
    /// The sentence for the log.
    pub(super) error: String,
}

/// A registration; dropping it takes the connection out.
pub(super) struct Registered {
    live: Rc<Live>,
    id: u64,
}

/// Waits for the order to cut a connection, and keeps its sentence for the record.
#[derive(Default)]
pub(super) struct CutNote(RefCell<Option<String>>);

impl CutNote {
    /// Resolves when the connection is to be cut.
    pub(super) async fn wait(&self, order: oneshot::Receiver<Cut>) -> Abort {
        match order.await {
            Ok(Cut { why, error }) => {
                self.0.replace(Some(error));
                why
            }
            // No order can come any more.
            Err(_) => std::future::pending().await,
        }
    }

    /// The sentence, if the connection was cut.
    pub(super) fn error(self) -> Option<String> {
        self.0.into_inner()
    }
}

impl Subject {
    pub(super) fn connection(&self) -> Connection<'_> {
        Connection { peer: self.peer.as_ref(), source: self.source, destination: self.destination }
    }
}

impl Live {
    /// Enters a connection of `pod`. With a `subject`, policy may cut it.
    pub(super) fn register(
        self: &Rc<Self>,
        pod: &Arc<Pod>,
        subject: Option<Subject>,
    ) -> (Registered, oneshot::Receiver<Cut>) {
        let id = self.next.replace(self.next.get() + 1);
        let (cut, order) = oneshot::channel();
        let mut entry = Entry { pod: pod.clone(), subject, cut: Some(cut) };
        // The pod's connections are cut when it is removed; one that was still being decided then comes too late.
        if pod.removed.is_cancelled() {
            entry.cut_with_pod();
        }
        self.entries.borrow_mut().insert(id, entry);
        (Registered { live: self.clone(), id }, order)
    }

    /// Asks `judge` about each connection that policy decides on, and cuts what it denies.
    pub(super) fn judge(&self, judge: impl Fn(&Pod, &mut Subject) -> Result<(), Denied>) {
        for entry in self.entries.borrow_mut().values_mut() {
            let Some(subject) = &mut entry.subject else { continue };
            if let Err(denied) = judge(&entry.pod, subject) {
                entry.cut(Abort::PolicyChanged, denied.to_string());
            }
        }
    }

    /// Cuts what belongs to a removed pod.
    pub(super) fn cut_pod(&self, pod: &Arc<Pod>) {
        for entry in
            self.entries.borrow_mut().values_mut().filter(|entry| Arc::ptr_eq(&entry.pod, pod))
        {
            entry.cut_with_pod();
        }
    }

    /// Cuts everything.
    pub(super) fn cut_all(&self) {
        for entry in self.entries.borrow_mut().values_mut() {
            entry.cut(Abort::Shutdown, "the daemon is shutting down".into());
        }
    }

    /// Resolves when no connection is left.
    pub(super) async fn empty(&self) {
        while !self.entries.borrow().is_empty() {
            self.emptied.notified().await;
        }
    }
}

impl Entry {
    fn cut_with_pod(&mut self) {
        let error = format!("pod {} was removed", self.pod.uid);
        self.cut(Abort::PodRemoved, error);
    }

    fn cut(&mut self, why: Abort, error: String) {
        if let Some(cut) = self.cut.take() {
            // A connection that is ending by itself no longer listens.
            let _ = cut.send(Cut { why, error });
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut entries = self.live.entries.borrow_mut();
        entries.remove(&self.id);
        if entries.is_empty() {
            self.live.emptied.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        capture::Netns,
        pods::{CaptureOptions, PodUid},
    };

    fn pod(uid: &str) -> Arc<Pod> {
        Arc::new(Pod {
            uid: PodUid::parse(uid).unwrap(),
            namespace: "shop".into(),
            name: uid.into(),
            service_account: "default".into(),
            netns: Arc::new(Netns::open("/proc/self/ns/net".as_ref()).unwrap()),
            ips: vec![],
            capture: CaptureOptions::default(),
            removed: CancellationToken::new(),
        })
    }

    fn subject(port: u16) -> Option<Subject> {
        let at = |port| SocketAddr::from(([10, 0, 0, 1], port));
        let uid = "Kubernetes//Pod/shop/a".into();
        let wire = proto::workload::Workload { uid, ..Default::default() };
        let workload = Arc::new(Workload::try_from(wire).unwrap());
        Some(Subject { workload, peer: None, source: at(4000), destination: at(port) })
    }

    #[test]
    fn a_denied_connection_is_cut_once_with_the_sentence() {
        let (live, a) = (Rc::new(Live::default()), pod("a"));
        let (_kept, mut kept) = live.register(&a, subject(80));
        let (_denied, mut denied) = live.register(&a, subject(81));
        let (_outbound, mut outbound) = live.register(&a, None);
        for _ in 0..2 {
            live.judge(|_, subject| match subject.destination.port() {
                81 => Err(Denied::Missing { policy: "shop/late".into() }),
                _ => Ok(()),
            });
        }
        assert_eq!(denied.try_recv().unwrap().why, Abort::PolicyChanged);
        assert!(kept.try_recv().is_err());
        assert!(outbound.try_recv().is_err());
    }

    #[test]
    fn a_removed_pod_takes_only_its_own_connections() {
        let (live, a, b) = (Rc::new(Live::default()), pod("a"), pod("b"));
        let (_a, mut of_a) = live.register(&a, subject(80));
        let (_b, mut of_b) = live.register(&b, None);
        live.cut_pod(&a);
        assert_eq!(of_a.try_recv().unwrap().why, Abort::PodRemoved);
        assert!(of_b.try_recv().is_err());
    }

    #[test]
    fn a_connection_that_comes_after_its_pods_removal_is_cut_at_once() {
        let (live, a) = (Rc::new(Live::default()), pod("a"));
        a.removed.cancel();
        let (_late, mut order) = live.register(&a, None);
        assert_eq!(order.try_recv().unwrap().why, Abort::PodRemoved);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn empty_waits_for_the_last_connection() {
        let (live, a) = (Rc::new(Live::default()), pod("a"));
        let (first, _order) = live.register(&a, None);
        let (second, _order) = live.register(&a, None);
        drop(first);
        assert!(poll_once(live.empty()).is_none());
        drop(second);
        live.empty().await;
    }

    /// Polls once.
    fn poll_once<T>(future: impl Future<Output = T>) -> Option<T> {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        match std::pin::pin!(future).poll(&mut context) {
            std::task::Poll::Ready(value) => Some(value),
            std::task::Poll::Pending => None,
        }
    }
}
