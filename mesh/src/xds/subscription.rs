//! Changes what an on-demand node is subscribed to.
//!
//! In: what is wanted and what is no longer used. Out: requests; what is given up leaves the store with them, because nobody
//! would tell when it is gone.

use std::{collections::HashSet, sync::Arc, time::Instant};

use proto::discovery::DeltaDiscoveryRequest;

use super::{Session, XdsConfig, session};
use crate::store::{Snapshot, Store, Update, Workload};

/// The requests that ask for what is wanted.
pub(super) fn change(
    config: &XdsConfig,
    session: &mut Session,
    store: &Store,
) -> Vec<DeltaDiscoveryRequest> {
    let Some(change) = config.on_demand.change(Instant::now()) else { return Vec::new() };
    let given_up = unused(&store.load(), config.node_name(), &change.unused);
    let mut requests = session::ask(change.subscribe);
    if let Some(first) = requests.first_mut() {
        first.resource_names_unsubscribe = change.unsubscribe;
        first.resource_names_unsubscribe.extend(given_up.iter().map(|name| (**name).to_owned()));
    }
    if !given_up.is_empty() {
        given_up.iter().for_each(|name| session.forget(name));
        store.apply(given_up.iter().map(|name| Update::RemoveAddress((**name).to_owned())));
    }
    requests
}

/// Of resources that nobody asks about any more, those that can go: none of this node's own; of a service its endpoints
/// too, unless they are also those of others.
fn unused(snapshot: &Snapshot, node: &str, candidates: &[Arc<str>]) -> Vec<Arc<str>> {
    let named: HashSet<&str> = candidates.iter().map(|name| &**name).collect();
    let is_own = |workload: &Workload| *workload.node == *node;
    let is_served_elsewhere = |workload: &Workload| {
        let mut services = workload.services.iter().map(|member| &*member.service);
        services.any(|service| !named.contains(service) && snapshot.service(service).is_some())
    };
    let mut unused = HashSet::new();
    for name in candidates {
        if let Some(workload) = snapshot.workload(name) {
            if !is_own(workload) && !is_served_elsewhere(workload) {
                unused.insert(workload.uid.clone());
            }
        } else if let Some(service) = snapshot.service(name) {
            unused.insert(service.key.clone());
            let endpoints = snapshot.endpoints(service).into_iter().flat_map(|all| all.iter());
            let gone = endpoints.filter(|one| !is_own(one) && !is_served_elsewhere(one));
            unused.extend(gone.map(|workload| workload.uid.clone()));
        }
    }
    let mut unused: Vec<_> = unused.into_iter().collect();
    unused.sort();
    unused
}

#[cfg(test)]
mod tests {
    use proto::workload::{Address, PortList, Service, Workload, address::Type};

    use super::*;

    fn workload(uid: &str, node: &str, services: &[&str]) -> Update {
        let services = services.iter().map(|name| ((*name).to_owned(), PortList::default()));
        let workload = Workload {
            uid: uid.into(),
            node: node.into(),
            services: services.collect(),
            ..Default::default()
        };
        Address { r#type: Some(Type::Workload(workload)) }.try_into().unwrap()
    }

    fn service(hostname: &str) -> Update {
        let service =
            Service { namespace: "ns".into(), hostname: hostname.into(), ..Default::default() };
        Address { r#type: Some(Type::Service(service)) }.try_into().unwrap()
    }

    fn check(candidates: &[&str], expected: &str) {
        let store = Store::new();
        store.apply([
            service("a"),
            service("b"),
            workload("own", "node-a", &["ns/a"]),
            workload("only-a", "node-b", &["ns/a"]),
            workload("both", "node-b", &["ns/a", "ns/b"]),
        ]);
        let candidates: Vec<Arc<str>> = candidates.iter().map(|name| (*name).into()).collect();
        assert_eq!(unused(&store.load(), "node-a", &candidates).join(" "), expected);
    }

    #[test]
    fn a_service_goes_with_the_endpoints_that_are_only_its_own() {
        check(&["ns/a"], "ns/a only-a");
        check(&["ns/a", "ns/b"], "both ns/a ns/b only-a");
    }

    #[test]
    fn what_runs_on_the_node_stays() {
        check(&["own", "only-a", "never-was"], "");
        check(&["ns/a", "own"], "ns/a only-a");
    }
}
