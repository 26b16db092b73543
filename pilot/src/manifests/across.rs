//! All resources of a folder together, and the checks that need more than one of them.
//!
//! In: resources, each valid in itself. Out: [`Manifests`], and problems where two contradict each other.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    net::IpAddr,
    sync::Arc,
};

use super::{
    Kind, Manifests, Meta, Object, PodState, Problem, Resource, Selector, Severity, UseWaypoint,
    document::is_dns_name,
};

impl Manifests {
    /// Sorts resources by kind; of two with one name the first counts.
    pub fn gather<'a>(resources: impl IntoIterator<Item = &'a Resource>) -> (Self, Vec<Problem>) {
        let mut all = Self::default();
        let mut problems = Vec::new();
        let mut seen: HashMap<(Kind, &str, &str), &Meta> = HashMap::new();
        for resource in resources {
            let meta = resource.meta();
            match seen.entry((resource.kind(), &meta.namespace, &meta.name)) {
                Entry::Vacant(entry) => {
                    entry.insert(meta);
                    all.push(resource);
                }
                Entry::Occupied(first) => {
                    let reason = format!("there already is one at {}", first.get().place);
                    problems.push(problem(meta, Severity::Error, "metadata.name", reason));
                }
            }
        }
        all.drop_shared_addresses(&mut problems);
        all.check_slices(&mut problems);
        all.check_waypoints(&mut problems);
        (all, problems)
    }

    /// The namespace whose policies count for the whole mesh has no pods of its own to select.
    pub fn check_root(&self, root_namespace: &str) -> Vec<Problem> {
        let mut problems = Vec::new();
        let in_root = self.peer_authentications.iter();
        for Object { meta, spec } in
            in_root.map(Arc::as_ref).filter(|policy| *policy.meta.namespace == *root_namespace)
        {
            if Selector::labels(spec.selector.as_ref()).is_none() {
                continue;
            }
            let reason = format!("has no effect in the root namespace {root_namespace}");
            if spec.port_level_mtls.as_ref().is_some_and(|ports| !ports.is_empty()) {
                problems.push(problem(meta, Severity::Error, "spec.portLevelMtls", reason));
            } else {
                problems.push(problem(meta, Severity::Warning, "spec.selector", reason));
            }
        }
        problems
    }

    /// An address that leads to two places would give the traffic of one to the other: the older one has it, and a
    /// Service before a pod.
    fn drop_shared_addresses(&mut self, problems: &mut Vec<Problem>) {
        let pods = self.pods.iter().filter(|pod| {
            // An ended pod's address may have been given away; a host's is shared on purpose.
            !pod.spec.host_network && pod.spec.state != PodState::Ended
        });
        let pods = pods.map(|pod| (&pod.meta, &pod.spec.addresses));
        let services = self.services.iter().map(|svc| (&svc.meta, &svc.spec.addresses));
        let mut owners: HashMap<IpAddr, &Meta> = HashMap::new();
        let mut losers: HashMap<(&'static str, Arc<str>, Arc<str>), Problem> = HashMap::new();
        for (meta, addresses) in services.chain(pods) {
            for ip in addresses {
                let Some(first) = owners.get(ip).copied() else {
                    owners.insert(*ip, meta);
                    continue;
                };
                let before = meta.kind == first.kind && meta.seniority() < first.seniority();
                let (winner, loser) = if before { (meta, first) } else { (first, meta) };
                owners.insert(*ip, winner);
                let field = if loser.kind == "Pod" { "status.podIPs" } else { "spec.clusterIPs" };
                let reason =
                    format!("{ip} is the address of {} at {}", winner.title(), winner.place);
                let key = (loser.kind, Arc::clone(&loser.namespace), Arc::clone(&loser.name));
                losers.entry(key).or_insert_with(|| problem(loser, Severity::Error, field, reason));
            }
        }
        if losers.is_empty() {
            return;
        }
        let lost = |meta: &Meta| {
            losers.contains_key(&(meta.kind, Arc::clone(&meta.namespace), Arc::clone(&meta.name)))
        };
        let pods: Vec<_> = self.pods.iter().filter(|pod| !lost(&pod.meta)).cloned().collect();
        let services: Vec<_> =
            self.services.iter().filter(|svc| !lost(&svc.meta)).cloned().collect();
        problems.extend(losers.into_values());
        self.pods = pods;
        self.services = services;
    }

    /// What asks for a waypoint that nobody has declared is reached without one, as with Istio.
    fn check_waypoints(&self, problems: &mut Vec<Problem>) {
        let gateways: HashSet<(&str, &str)> =
            self.gateways.iter().map(|one| (&*one.meta.namespace, &*one.meta.name)).collect();
        let namespaces = self.namespaces.iter().map(|one| (&one.meta, &*one.meta.name));
        let services = self.services.iter().map(|one| &one.meta);
        let others = services
            .chain(self.service_entries.iter().map(|one| &one.meta))
            .chain(self.pods.iter().map(|one| &one.meta))
            .chain(self.workload_entries.iter().map(|one| &one.meta));
        let others = others.map(|meta| (meta, &*meta.namespace));
        for (meta, own) in namespaces.chain(others) {
            let UseWaypoint::Named { namespace, name } = UseWaypoint::of(&meta.labels, own) else {
                continue;
            };
            let known = gateways.contains(&(&*namespace, &*name));
            if !known && is_dns_name(&name) && is_dns_name(&namespace) {
                let reason = format!(
                    "istio.io/use-waypoint: there is no Gateway {namespace}/{name}: reached without a waypoint"
                );
                problems.push(problem(meta, Severity::Warning, "metadata.labels", reason));
            }
        }
    }

    fn check_slices(&self, problems: &mut Vec<Problem>) {
        let services: HashSet<(&str, &str)> =
            self.services.iter().map(|svc| (&*svc.meta.namespace, &*svc.meta.name)).collect();
        let pods: HashSet<(&str, &str)> =
            self.pods.iter().map(|pod| (&*pod.meta.namespace, &*pod.meta.name)).collect();
        for slice in &self.endpoint_slices {
            let Some(service) = &slice.spec.service else { continue };
            if !services.contains(&(&*slice.meta.namespace, &**service)) {
                let reason =
                    format!("there is no Service {}/{service}: ignored", slice.meta.namespace);
                problems.push(problem(&slice.meta, Severity::Warning, "metadata.labels", reason));
            }
            for (i, endpoint) in slice.spec.endpoints.iter().enumerate() {
                let Some((namespace, name)) = &endpoint.pod else { continue };
                if !pods.contains(&(&**namespace, &**name)) {
                    let field = format!("endpoints[{i}].targetRef");
                    let reason = format!("there is no Pod {namespace}/{name}: ignored");
                    problems.push(problem(&slice.meta, Severity::Warning, &field, reason));
                }
            }
        }
    }
}

fn problem(meta: &Meta, severity: Severity, field: &str, reason: String) -> Problem {
    Problem {
        place: meta.place.clone(),
        severity,
        object: meta.title(),
        field: field.into(),
        reason,
    }
}
