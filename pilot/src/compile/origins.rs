//! What each compiled resource comes from.
//!
//! In: what is compiled. Out: [`Origin`]s: for each resource the objects that made it and what each has to do with it. The
//! names are those of the resources that [`super::compile`] makes, and the objects are found by the same lookups.

use std::sync::Arc;

use super::{
    MeshConfig,
    networks::NETWORK_LABEL,
    registry::{Host, Visibility},
    world::World,
};
use crate::manifests::{Manifests, Meta, MtlsMode, Place, UseWaypoint};

/// What one resource, or a part of it, comes from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Origin {
    /// The type of the resource, as on the command line.
    pub of: &'static str,
    /// The name of the resource.
    pub name: String,
    /// Which part of it; empty for the whole.
    pub part: String,
    /// The objects.
    pub sources: Vec<Source>,
}

/// An object that something comes from.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Source {
    /// Its kind.
    pub kind: &'static str,
    /// Its namespace; empty if its kind has none.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Where it stands.
    pub place: Place,
    /// What it has to do with it.
    pub role: &'static str,
}

impl Source {
    pub(super) fn of(meta: &Meta, role: &'static str) -> Self {
        Self {
            kind: meta.kind,
            namespace: Arc::clone(&meta.namespace),
            name: Arc::clone(&meta.name),
            place: meta.place.clone(),
            role,
        }
    }
}

/// What each resource of the daemons comes from.
pub fn of_daemons(manifests: &Manifests, config: &MeshConfig) -> Vec<Origin> {
    let world = World::of(manifests, config);
    let table = Table { manifests, world: &world };
    let mut origins = Vec::new();
    for host in world.registry.all().filter(|host| host.visibility != Visibility::Nobody) {
        origins.push(whole("address", host.key(), table.service(host)));
    }
    for pod in &manifests.pods {
        let Some(workload) = world.pod(pod) else { continue };
        let mut sources = vec![Source::of(&pod.meta, "is it")];
        sources.extend(table.namespace(&pod.meta.namespace, "says whether it is in the mesh"));
        sources.extend(table.policies(&workload.authorization_policies));
        let leading = world.registry.leading_to(pod).into_iter();
        sources.extend(leading.map(|(host, _)| Source::of(&host.meta, "leads to it")));
        origins.push(whole("address", workload.uid, sources));
    }
    for workload in world.foreign_workloads(manifests) {
        let mut sources = table.foreign(&workload.uid, &workload.namespace);
        sources.extend(table.policies(&workload.authorization_policies));
        origins.push(whole("address", workload.uid, sources));
    }
    let policies = world.policies.compile().into_iter().chain(world.modes.compile());
    for policy in policies {
        let name = format!("{}/{}", policy.namespace, policy.name);
        let sources = table.policies(std::slice::from_ref(&name));
        origins.push(whole("authorization", name, sources));
    }
    origins
}

fn whole(of: &'static str, name: String, sources: Vec<Source>) -> Origin {
    Origin { of, name, part: String::new(), sources }
}

struct Table<'a> {
    manifests: &'a Manifests,
    world: &'a World,
}

impl Table<'_> {
    fn service(&self, host: &Host) -> Vec<Source> {
        let mut sources = vec![Source::of(&host.meta, "is it")];
        if let Ok(Some(attachment)) = self.world.waypoints.of_host(host) {
            let mut gateways = self.manifests.gateways.iter().map(|one| &one.meta);
            let gateway = gateways
                .find(|meta| attachment.gateway == format!("{}/{}", meta.namespace, meta.name));
            sources.extend(gateway.map(|meta| Source::of(meta, "is its waypoint")));
            let own = UseWaypoint::of(&host.meta.labels, &host.meta.namespace);
            if own == UseWaypoint::Inherit {
                sources.extend(self.namespace(&host.meta.namespace, "asks for the waypoint"));
            }
        }
        sources
    }

    fn namespace(&self, name: &str, role: &'static str) -> Option<Source> {
        let mut namespaces = self.manifests.namespaces.iter();
        namespaces.find(|one| *one.meta.name == *name).map(|one| Source::of(&one.meta, role))
    }

    /// What a uid names: `CLUSTER/GROUP/KIND/NAMESPACE/NAME`, perhaps with an address; or a Gateway into another network,
    /// perhaps with a service behind it.
    fn foreign(&self, uid: &str, in_namespace: &str) -> Vec<Source> {
        let parts: Vec<_> = uid.split('/').collect();
        let gateways = || self.manifests.gateways.iter().map(|one| &one.meta);
        match parts.as_slice() {
            ["NetworkGateway", network, ..] => {
                let mut gateways = gateways();
                let found = gateways.find(|meta| {
                    *meta.namespace == *in_namespace
                        && meta.labels.get(NETWORK_LABEL).is_some_and(|of| of == network)
                });
                found.map(|meta| Source::of(meta, "is it")).into_iter().collect()
            }
            [_, "SplitHorizonWorkload", namespace, name, _, of_service, hostname] => {
                let mut gateways = gateways();
                let found =
                    gateways.find(|meta| *meta.namespace == **namespace && *meta.name == **name);
                let gateway = found.map(|meta| Source::of(meta, "leads to its network"));
                let host = self.world.registry.find(of_service, hostname);
                let host = host.map(|host| Source::of(&host.meta, "is there as well"));
                gateway.into_iter().chain(host).collect()
            }
            [_, _, kind, namespace, name, ..] => {
                let slices = self.manifests.endpoint_slices.iter().map(|one| &one.meta);
                let entries = self.manifests.workload_entries.iter().map(|one| &one.meta);
                let services = self.manifests.service_entries.iter().map(|one| &one.meta);
                let found = slices.chain(entries).chain(services).find(|meta| {
                    meta.kind == *kind && *meta.namespace == **namespace && *meta.name == **name
                });
                found.map(|meta| Source::of(meta, "is it")).into_iter().collect()
            }
            _ => Vec::new(),
        }
    }

    /// The objects behind the names of policies of layer 4: an AuthorizationPolicy's own, or one made of
    /// PeerAuthentications.
    fn policies(&self, names: &[String]) -> Vec<Source> {
        let mut sources = Vec::new();
        for name in names {
            let Some((namespace, name)) = name.split_once('/') else { continue };
            let mut policies = self.manifests.authorization_policies.iter().map(|one| &one.meta);
            let own = policies.find(|meta| *meta.namespace == *namespace && *meta.name == *name);
            if let Some(meta) = own {
                sources.push(Source::of(meta, "says who may connect"));
                continue;
            }
            let modes = self.manifests.peer_authentications.iter().filter(|one| {
                match name.strip_prefix("converted_peer_authentication_") {
                    Some(name) => *one.meta.namespace == *namespace && *one.meta.name == *name,
                    None => one.spec.mtls.is_some_and(|mtls| mtls.mode == MtlsMode::Strict),
                }
            });
            sources.extend(modes.map(|one| Source::of(&one.meta, "refuses plain text")));
        }
        sources
    }
}
