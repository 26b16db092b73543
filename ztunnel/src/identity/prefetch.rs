//! Asks for certificates before pods need them.
//!
//! In: the records of workloads as they change. Out: the identities of this node's pods wanted, and let go when the last
//! of their pods is gone. The control plane describes a pod when it is placed on the node, which is before it runs. Nothing
//! is dropped however many come at once: an identity is asked for once, and the requests wait for their turn.

use std::{collections::HashMap, sync::Arc};

use mesh::{
    identity::{Identities, Spiffe},
    store::{Snapshot, Store, TunnelProtocol, Workload},
};

/// How many pods of this node have each identity.
struct Counts {
    node: String,
    by_identity: HashMap<Spiffe, usize>,
}

/// What a change means for an identity.
#[derive(Debug, Eq, PartialEq)]
enum Change {
    Wanted(Spiffe),
    Unused(Spiffe),
}

/// Follows the records for as long as the daemon runs.
pub(crate) async fn keep_prefetching(node: String, store: Arc<Store>, identities: Identities) {
    let mut counts = Counts { node, by_identity: HashMap::new() };
    let mut changes = store.subscribe();
    let mut seen = Arc::new(Snapshot::default());
    loop {
        changes.borrow_and_update();
        let snapshot = store.load();
        for change in counts.handle_changes(&snapshot, &seen) {
            match change {
                Change::Wanted(who) => identities.prefetch(&who),
                Change::Unused(who) => identities.release(&who),
            }
        }
        seen = snapshot;
        if changes.changed().await.is_err() {
            return;
        }
    }
}

impl Counts {
    fn handle_changes(&mut self, snapshot: &Snapshot, seen: &Snapshot) -> Vec<Change> {
        let mut before: HashMap<Spiffe, usize> = HashMap::new();
        for (old, new) in snapshot.changed_workloads(seen) {
            let (old, new) = (self.identity(old), self.identity(new));
            for who in [&old, &new].into_iter().flatten() {
                let count = self.by_identity.get(who).copied().unwrap_or(0);
                before.entry(who.clone()).or_insert(count);
            }
            if let Some(count) = old.and_then(|who| self.by_identity.get_mut(&who)) {
                *count -= 1;
            }
            if let Some(who) = new {
                *self.by_identity.entry(who).or_insert(0) += 1;
            }
        }
        self.by_identity.retain(|_, count| *count > 0);
        let change = |(who, before): (Spiffe, usize)| match (before, self.by_identity.get(&who)) {
            // One that was there already is asked for again: it may have been let go with a pod that left.
            (_, Some(_)) => Some(Change::Wanted(who)),
            (0, None) => None,
            (_, None) => Some(Change::Unused(who)),
        };
        before.into_iter().filter_map(change).collect()
    }

    /// The identity of a workload of this node that takes part in tunnels.
    fn identity(&self, workload: Option<&Arc<Workload>>) -> Option<Spiffe> {
        let workload = workload.filter(|workload| *workload.node == *self.node)?;
        let in_tunnels =
            workload.tunnel_protocol == TunnelProtocol::Hbone || workload.native_tunnel;
        workload.identity().filter(|_| in_tunnels).cloned()
    }
}

#[cfg(test)]
mod tests {
    use mesh::store::Update;

    use super::*;

    fn uid(name: &str) -> String {
        format!("Kubernetes//Pod/shop/{name}")
    }

    /// `NAME NODE ACCOUNT`, in tunnels unless the name begins with `plain`.
    fn workload(row: &str) -> Update {
        let words: Vec<&str> = row.split(' ').collect();
        let wire = proto::workload::Workload {
            uid: uid(words[0]),
            name: words[0].into(),
            namespace: "shop".into(),
            node: words[1].into(),
            service_account: words[2].into(),
            tunnel_protocol: i32::from(!words[0].starts_with("plain")),
            ..Default::default()
        };
        Update::Workload(Workload::try_from(wire).unwrap())
    }

    /// Each step: records that come, names of those that go, and what follows.
    fn check(steps: &[(&[&str], &[&str], &[&str])]) {
        let store = Store::new();
        let mut counts = Counts { node: "a".into(), by_identity: HashMap::new() };
        let mut seen = store.load();
        for (added, removed, expected) in steps {
            let removals = removed.iter().map(|name| Update::RemoveAddress(uid(name)));
            store.apply(added.iter().map(|row| workload(row)).chain(removals));
            let snapshot = store.load();
            let mut changes: Vec<String> = counts
                .handle_changes(&snapshot, &seen)
                .into_iter()
                .map(|change| match change {
                    Change::Wanted(who) => format!("want {}", who.service_account()),
                    Change::Unused(who) => format!("drop {}", who.service_account()),
                })
                .collect();
            changes.sort();
            assert_eq!(changes, *expected, "{added:?} {removed:?}");
            seen = snapshot;
        }
    }

    #[test]
    fn certificates_of_this_nodes_pods_are_wanted_when_their_records_come() {
        check(&[
            (&["web-1 a web", "web-2 a web", "cart b cart", "plain a plain"], &[], &["want web"]),
            (&["pay a pay"], &[], &["want pay"]),
            (&["late b x"], &[], &[]),
            (&["late a x"], &[], &["want x"]),
        ]);
    }

    #[test]
    fn an_identity_is_let_go_with_the_last_pod_that_has_it() {
        check(&[
            (&["web-1 a web", "web-2 a web"], &[], &["want web"]),
            (&[], &["web-1"], &["want web"]),
            (&["web-2 b web"], &[], &["drop web"]),
            (&["web-3 a web"], &[], &["want web"]),
            (&["web-4 a web"], &["web-3"], &["want web"]),
            (&["web-4 a other"], &[], &["drop web", "want other"]),
        ]);
    }
}
