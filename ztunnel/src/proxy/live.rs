//! The connections of one thread that may have to be cut: by a changed policy, with their pod, at shutdown.
//!
//! In: registrations, each with what policy looks at where policy decides, and each new snapshot. Out: permits, and one
//! [`Cut`] to a connection that may not go on. Connections are closed by their own tasks. Reads no clock.

mod index;
#[cfg(test)]
mod tests;

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::Instant,
};

use mesh::{
    hbone::Abort,
    identity::Spiffe,
    policy::{self, Connection, Denied, Permit},
    store::Snapshot,
};
use tokio::sync::{Notify, oneshot};

use self::index::{Id, Index, Standing};
use super::Pod;

/// Connections of one pod that may wait for a policy, on each thread. One more is refused at once.
const HELD_PER_POD: usize = 128;

/// All connections of a thread.
#[derive(Default)]
pub(super) struct Live {
    state: RefCell<State>,
    emptied: Notify,
}

#[derive(Default)]
struct State {
    next: Id,
    entries: BTreeMap<Id, Entry>,
    index: Index,
    /// What all connections were judged by, except for `early` ones.
    judged: Arc<Snapshot>,
    /// Connections that were decided on by a newer snapshot.
    early: BTreeSet<Id>,
}

struct Entry {
    pod: Arc<Pod>,
    what: What,
    cut: Option<oneshot::Sender<Cut>>,
}

enum What {
    /// Policy has no part in it.
    Outbound,
    Inbound {
        subject: Subject,
        /// How policy stands to it; none while it is not decided on.
        standing: Option<Standing>,
    },
}

/// What policy looks at in an inbound connection.
#[derive(Clone, Debug)]
pub(super) struct Subject {
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
    id: Id,
}

/// A connection that waits for a policy, counted until this is dropped.
pub(super) struct Held {
    live: Rc<Live>,
    pod: Arc<Pod>,
}

/// Why a connection is not let in.
#[derive(Debug)]
pub(super) enum NotPermitted {
    Denied(Denied),
    /// A policy that is named has not arrived, and may until then.
    Pending {
        denied: Denied,
        until: Instant,
    },
    /// The pod's record was taken away.
    NoRecord,
}

/// What came of judging open connections again.
#[derive(Debug, Default)]
pub(super) struct JudgedAgain {
    /// How many were judged.
    pub(super) count: usize,
    /// Those that are denied, and were cut.
    pub(super) cut: Vec<DeniedAgain>,
}

/// An open connection that policy denies.
#[derive(Debug)]
pub(super) struct DeniedAgain {
    pub(super) pod: Arc<Pod>,
    pub(super) subject: Subject,
    pub(super) denied: Denied,
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
    /// Enters a connection that a pod of this node opened.
    pub(super) fn outbound(
        self: &Rc<Self>,
        pod: &Arc<Pod>,
    ) -> (Registered, oneshot::Receiver<Cut>) {
        self.register(pod, What::Outbound)
    }

    /// Enters a connection to a pod, before it is decided on, so that no change of policy falls between.
    pub(super) fn inbound(
        self: &Rc<Self>,
        pod: &Arc<Pod>,
        subject: Subject,
    ) -> (Registered, oneshot::Receiver<Cut>) {
        self.register(pod, What::Inbound { subject, standing: None })
    }

    fn register(
        self: &Rc<Self>,
        pod: &Arc<Pod>,
        what: What,
    ) -> (Registered, oneshot::Receiver<Cut>) {
        let mut state = self.state.borrow_mut();
        let id = state.next;
        state.next += 1;
        let (cut, order) = oneshot::channel();
        let mut entry = Entry { pod: pod.clone(), what, cut: Some(cut) };
        // The pod's connections are cut when it is removed; one that was still being decided then comes too late.
        if pod.removed.is_cancelled() {
            entry.cut_with_pod();
        }
        state.entries.insert(id, entry);
        state.index.pod(pod).enter(id);
        (Registered { live: self.clone(), id }, order)
    }

    /// Decides on an inbound connection by the pod's record and the policies of this moment.
    pub(super) fn decide(
        &self,
        connection: &Registered,
        snapshot: &Snapshot,
        now: Instant,
    ) -> Result<Permit, NotPermitted> {
        self.state.borrow_mut().decide(connection.id, snapshot, now)
    }

    /// Lets a connection wait for a policy, unless as many do as may.
    pub(super) fn hold(self: &Rc<Self>, pod: &Arc<Pod>) -> Option<Held> {
        let mut state = self.state.borrow_mut();
        let index = state.index.pod(pod);
        if index.held >= HELD_PER_POD {
            return None;
        }
        index.held += 1;
        Some(Held { live: self.clone(), pod: pod.clone() })
    }

    /// Notes what a new pod's record names.
    pub(super) fn serve(&self, pod: &Arc<Pod>, snapshot: &Snapshot, now: Instant) {
        self.state.borrow_mut().index.observe(pod, snapshot, now);
    }

    /// Judges again what the changes up to `snapshot` can concern, and cuts what is denied.
    pub(super) fn judge(&self, snapshot: &Arc<Snapshot>, now: Instant) -> JudgedAgain {
        let state = &mut *self.state.borrow_mut();
        let older = std::mem::replace(&mut state.judged, snapshot.clone());
        let mut concerned = state.index.concerned(&older, snapshot, now);
        concerned.append(&mut state.early);
        concerned.extend(state.index.provisional());
        let cut = concerned.iter().filter_map(|id| state.judge_again(*id, snapshot, now)).collect();
        JudgedAgain { count: concerned.len(), cut }
    }

    /// When to judge again although nothing changed.
    pub(super) fn deadline(&self, now: Instant) -> Option<Instant> {
        self.state.borrow().index.deadline(now)
    }

    /// Cuts what belongs to a removed pod.
    pub(super) fn cut_pod(&self, pod: &Arc<Pod>) {
        let state = &mut *self.state.borrow_mut();
        for id in state.index.pod(pod).members() {
            if let Some(entry) = state.entries.get_mut(&id) {
                entry.cut_with_pod();
            }
        }
        state.index.forget_if_unused(pod);
    }

    /// Cuts everything.
    pub(super) fn cut_all(&self) {
        for entry in self.state.borrow_mut().entries.values_mut() {
            entry.cut(Abort::Shutdown, "the daemon is shutting down".into());
        }
    }

    /// Resolves when no connection is left.
    pub(super) async fn empty(&self) {
        while !self.state.borrow().entries.is_empty() {
            self.emptied.notified().await;
        }
    }
}

impl State {
    fn decide(
        &mut self,
        id: Id,
        snapshot: &Snapshot,
        now: Instant,
    ) -> Result<Permit, NotPermitted> {
        let Some(Entry { pod, what: What::Inbound { subject, standing }, .. }) =
            self.entries.get_mut(&id)
        else {
            return Err(NotPermitted::NoRecord);
        };
        let index = self.index.pod(pod);
        let record = snapshot.workload_of(&pod.namespace, &pod.name, &pod.service_account);
        // A pod whose record was taken away keeps its connections by the last one, and gets no new ones.
        let former = standing.as_ref().and(index.workload());
        let Some(workload) = record.or(former).cloned() else { return Err(NotPermitted::NoRecord) };
        let to = workload.policy_destination();
        match policy::authorize(snapshot.policies(), to, &subject.connection()) {
            Ok(permit) => {
                let is = Standing::from(permit.grounds());
                index.settle(id, &subject.peer, standing.as_ref(), is.clone());
                *standing = Some(is);
                if snapshot.generation() != self.judged.generation() {
                    self.early.insert(id);
                }
                Ok(permit)
            }
            Err(denied @ Denied::Missing { .. }) => {
                index.awaited.observe(snapshot.policies().missing(to), now);
                Err(match index.awaited.until(now) {
                    Some(until) => NotPermitted::Pending { denied, until },
                    None => NotPermitted::Denied(denied),
                })
            }
            Err(denied) => Err(NotPermitted::Denied(denied)),
        }
    }

    /// Judges an open connection again. One that is not decided on yet asks by itself.
    fn judge_again(&mut self, id: Id, snapshot: &Snapshot, now: Instant) -> Option<DeniedAgain> {
        let open = |entry: &&Entry| matches!(entry.what, What::Inbound { standing: Some(_), .. });
        self.entries.get(&id).filter(open)?;
        let judged = self.decide(id, snapshot, now);
        let entry = self.entries.get_mut(&id)?;
        let What::Inbound { subject, standing } = &mut entry.what else { return None };
        let index = self.index.pod(&entry.pod);
        match judged {
            Ok(_) | Err(NotPermitted::NoRecord) => None,
            Err(NotPermitted::Denied(denied)) => {
                if let Some(was) = standing.take() {
                    index.unsettle(id, &subject.peer, &was);
                }
                let subject = subject.clone();
                entry.cut(Abort::PolicyChanged, denied.to_string());
                Some(DeniedAgain { pod: entry.pod.clone(), subject, denied })
            }
            Err(NotPermitted::Pending { .. }) => {
                let is = Standing::Provisional;
                index.settle(id, &subject.peer, standing.as_ref(), is.clone());
                *standing = Some(is);
                None
            }
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
        let state = &mut *self.live.state.borrow_mut();
        let Some(entry) = state.entries.remove(&self.id) else { return };
        state.early.remove(&self.id);
        let index = state.index.pod(&entry.pod);
        index.leave(self.id);
        if let What::Inbound { subject, standing: Some(was) } = &entry.what {
            index.unsettle(self.id, &subject.peer, was);
        }
        state.index.forget_if_unused(&entry.pod);
        if state.entries.is_empty() {
            self.live.emptied.notify_one();
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let state = &mut *self.live.state.borrow_mut();
        state.index.pod(&self.pod).held -= 1;
        state.index.forget_if_unused(&self.pod);
    }
}
