//! Which open connections a change of configuration can concern, without a look at the others.
//!
//! In: connections as policy decided on them, and two snapshots. Out: the connections to judge again. Decides nothing and
//! cuts nothing.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use foldhash::HashMap;
use mesh::{
    identity::Spiffe,
    policy::{Change, Grounds},
    store::{Snapshot, Workload},
};

use super::super::{Pod, awaited::Awaited};

/// A registered connection.
pub(super) type Id = u64;

/// Changed workloads that are looked up one by one, beside as many as there are pods. After more, each pod is looked up.
const LOOKED_UP: usize = 64;

/// A pod, by where it is in memory; the index holds it there.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
struct PodId(usize);

/// The pods of a thread and their connections.
#[derive(Default)]
pub(super) struct Index {
    pods: HashMap<PodId, PodIndex>,
    by_name: HashMap<String, BTreeSet<PodId>>,
    by_namespace: HashMap<String, BTreeSet<PodId>>,
    /// By the policies that their records name.
    by_policy: HashMap<Arc<str>, BTreeSet<PodId>>,
}

/// One pod's connections.
pub(super) struct PodIndex {
    pod: Arc<Pod>,
    /// Its record as it was last seen; one that was taken away stays.
    workload: Option<Arc<Workload>>,
    /// The policies that its record names in vain.
    pub(super) awaited: Awaited,
    /// Connections that wait for a policy.
    pub(super) held: usize,
    members: BTreeSet<Id>,
    by_peer: HashMap<Option<Spiffe>, BTreeSet<Id>>,
    by_grounds: HashMap<Standing, BTreeSet<Id>>,
}

/// Why a connection is open, as far as policy is concerned.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub(super) enum Standing {
    /// No ALLOW policy applies.
    Unrestricted,
    /// This policy allows it.
    AllowedBy(Arc<str>),
    /// It was open when its pod's record named a policy that has not arrived.
    Provisional,
}

impl From<&Grounds> for Standing {
    fn from(grounds: &Grounds) -> Self {
        match grounds {
            Grounds::Unrestricted | Grounds::Originated => Self::Unrestricted,
            Grounds::Allowed { policy, .. } => Self::AllowedBy(policy.clone()),
        }
    }
}

impl PodId {
    fn of(pod: &Arc<Pod>) -> Self {
        Self(Arc::as_ptr(pod) as usize)
    }
}

impl Index {
    /// The pod's part, made if it is new.
    pub(super) fn pod(&mut self, pod: &Arc<Pod>) -> &mut PodIndex {
        let id = PodId::of(pod);
        self.pods.entry(id).or_insert_with(|| {
            self.by_name.entry(pod.name.clone()).or_default().insert(id);
            self.by_namespace.entry(pod.namespace.clone()).or_default().insert(id);
            PodIndex {
                pod: pod.clone(),
                workload: None,
                awaited: Awaited::default(),
                held: 0,
                members: BTreeSet::new(),
                by_peer: HashMap::default(),
                by_grounds: HashMap::default(),
            }
        })
    }

    /// Forgets a removed pod once it has no connections.
    pub(super) fn forget_if_unused(&mut self, pod: &Arc<Pod>) {
        let id = PodId::of(pod);
        let unused = |index: &PodIndex| {
            index.members.is_empty() && index.held == 0 && index.pod.removed.is_cancelled()
        };
        if !self.pods.get(&id).is_some_and(unused) {
            return;
        }
        let former = self.pods.remove(&id).and_then(|index| index.workload);
        for policy in former.iter().flat_map(|workload| workload.policies.iter()) {
            take_out(&mut self.by_policy, policy, id);
        }
        take_out(&mut self.by_name, &pod.name, id);
        take_out(&mut self.by_namespace, &pod.namespace, id);
    }

    /// Notes the pod's record; says whether other policies are named than before.
    pub(super) fn observe(&mut self, pod: &Arc<Pod>, snapshot: &Snapshot, now: Instant) -> bool {
        let id = PodId::of(pod);
        let current = snapshot.workload_of(&pod.namespace, &pod.name, &pod.service_account);
        let index = self.pod(pod);
        let Some(current) = current else { return false };
        let former = index.workload.replace(current.clone());
        index.awaited.observe(snapshot.policies().missing(current.policy_destination()), now);
        let former = former.as_ref().map_or(&[][..], |former| &former.policies);
        if *former == *current.policies {
            return false;
        }
        for policy in former {
            take_out(&mut self.by_policy, policy, id);
        }
        for policy in current.policies.iter() {
            self.by_policy.entry(policy.clone()).or_default().insert(id);
        }
        true
    }

    /// What the changes from `older` to `snapshot` can concern.
    pub(super) fn concerned(
        &mut self,
        older: &Snapshot,
        snapshot: &Snapshot,
        now: Instant,
    ) -> BTreeSet<Id> {
        let mut concerned = BTreeSet::new();
        for pod in self.pods_changed(older, snapshot) {
            if self.observe(&pod, snapshot, now) {
                concerned.extend(self.pod(&pod).decided());
            }
        }
        if snapshot.policies().same(older.policies()) {
            return concerned;
        }
        for change in snapshot.policies().changes_since(older.policies()) {
            for id in self.reached(&change) {
                let Some(index) = self.pods.get_mut(&id) else { continue };
                index.concerned(&change, &mut concerned);
                if let Some(workload) = &index.workload {
                    let missing = snapshot.policies().missing(workload.policy_destination());
                    index.awaited.observe(missing, now);
                }
            }
        }
        concerned
    }

    /// Connections that are open only until a policy arrives or has had its time.
    pub(super) fn provisional(&self) -> impl Iterator<Item = Id> {
        let of_pod = |index: &PodIndex| index.by_grounds.get(&Standing::Provisional).cloned();
        self.pods.values().filter_map(of_pod).flatten()
    }

    /// When the first of the policies for which open connections wait has had its time.
    pub(super) fn deadline(&self, now: Instant) -> Option<Instant> {
        let waits = |index: &&PodIndex| index.by_grounds.contains_key(&Standing::Provisional);
        self.pods.values().filter(waits).map(|index| index.awaited.until(now).unwrap_or(now)).min()
    }

    /// The pods whose records may have changed.
    fn pods_changed(&self, older: &Snapshot, snapshot: &Snapshot) -> Vec<Arc<Pod>> {
        if snapshot.same_workloads(older) {
            return Vec::new();
        }
        let most = self.pods.len() + LOOKED_UP;
        let mut found = BTreeSet::new();
        for (count, workload) in snapshot.workloads_changed_since(older).enumerate() {
            if count == most {
                return self.pods.values().map(|index| index.pod.clone()).collect();
            }
            found.extend(self.by_name.get(&*workload.name).into_iter().flatten());
        }
        found.iter().filter_map(|id| Some(self.pods.get(id)?.pod.clone())).collect()
    }

    /// The pods to which a changed policy applies or applied.
    fn reached(&self, change: &Change<'_>) -> BTreeSet<PodId> {
        let reach = change.reach();
        if reach.everyone {
            return self.pods.keys().copied().collect();
        }
        let named = self.by_policy.get(change.key()).into_iter().flatten();
        let namespaces = reach.namespaces.into_iter().flatten();
        let there = namespaces.filter_map(|namespace| self.by_namespace.get(namespace)).flatten();
        named.chain(there).copied().collect()
    }
}

impl PodIndex {
    /// The pod's record as it was last seen.
    pub(super) fn workload(&self) -> Option<&Arc<Workload>> {
        self.workload.as_ref()
    }

    pub(super) fn enter(&mut self, id: Id) {
        self.members.insert(id);
    }

    pub(super) fn leave(&mut self, id: Id) {
        self.members.remove(&id);
    }

    /// Forgets how policy stood to a connection: it is not judged again.
    pub(super) fn unsettle(&mut self, id: Id, peer: &Option<Spiffe>, was: &Standing) {
        take_out(&mut self.by_peer, peer, id);
        take_out(&mut self.by_grounds, was, id);
    }

    /// Notes how policy stands to a connection.
    pub(super) fn settle(
        &mut self,
        id: Id,
        peer: &Option<Spiffe>,
        was: Option<&Standing>,
        is: Standing,
    ) {
        match was {
            Some(was) if *was == is => return,
            Some(was) => take_out(&mut self.by_grounds, was, id),
            None => {
                self.by_peer.entry(peer.clone()).or_default().insert(id);
            }
        }
        self.by_grounds.entry(is).or_default().insert(id);
    }

    /// All of the pod's connections.
    pub(super) fn members(&self) -> impl Iterator<Item = Id> {
        self.members.iter().copied()
    }

    /// The connections that policy has decided on.
    fn decided(&self) -> impl Iterator<Item = Id> {
        self.by_grounds.values().flatten().copied()
    }

    fn concerned(&self, change: &Change<'_>, into: &mut BTreeSet<Id>) {
        let Some(workload) = &self.workload else { return into.extend(self.decided()) };
        let concern = change.concern(workload.policy_destination());
        if concern.everyone {
            return into.extend(self.decided());
        }
        if concern.matching {
            let could = self.by_peer.iter().filter(|(peer, _)| change.could_match(peer.as_ref()));
            into.extend(could.flat_map(|(_, ids)| ids));
        }
        let mut standing = |standing: Standing| {
            into.extend(self.by_grounds.get(&standing).into_iter().flatten());
        };
        if concern.allowed_by_it {
            standing(Standing::AllowedBy(change.key().clone()));
        }
        if concern.unrestricted {
            standing(Standing::Unrestricted);
        }
    }
}

fn take_out<K, Q, V>(index: &mut HashMap<K, BTreeSet<V>>, key: &Q, value: V)
where
    K: std::borrow::Borrow<Q> + Eq + std::hash::Hash,
    Q: Eq + std::hash::Hash + ?Sized,
    V: Ord,
{
    let Some(set) = index.get_mut(key) else { return };
    set.remove(&value);
    if set.is_empty() {
        index.remove(key);
    }
}
