//! Everything that a daemon's resources are made of, but pods.
//!
//! In: [`Manifests`] and the mesh's settings. Out: a [`World`], of which each message is made by itself: a pod that
//! changes changes its own message and no other.

use std::{collections::HashMap, sync::Arc};

use mesh::store::Limits;
use proto::workload::IpFamilies;

use super::{
    MeshConfig, attachment::Waypoints, authorization::Policies, incremental::PodChange,
    networks::Networks, peer_authentication::Modes, registry::Registry,
};
use crate::manifests::Manifests;

/// The inputs of all messages.
pub(super) struct World {
    pub(super) config: MeshConfig,
    pub(super) policies: Arc<Policies>,
    pub(super) modes: Arc<Modes>,
    pub(super) registry: Registry,
    pub(super) waypoints: Arc<Waypoints>,
    pub(super) networks: Arc<Networks>,
    /// Namespaces' own `networking.istio.io/traffic-distribution`.
    pub(super) distribution: Arc<HashMap<Box<str>, Box<str>>>,
    /// Namespaces' limits.
    pub(super) limits: Arc<HashMap<Box<str>, Limits>>,
    /// What an API server gives to a headless Service that names no family.
    pub(super) first_family: IpFamilies,
}

impl World {
    pub(super) fn of(manifests: &Manifests, config: &MeshConfig) -> Self {
        let registry = Registry::of(manifests, config);
        let namespaces = manifests.namespaces.iter();
        let distribution = namespaces.clone().filter_map(|namespace| {
            let value =
                namespace.meta.annotations.get("networking.istio.io/traffic-distribution")?;
            Some(((&*namespace.meta.name).into(), value.as_str().into()))
        });
        let limits = namespaces.map(|ns| ((&*ns.meta.name).into(), ns.spec.limits));
        Self {
            policies: Arc::new(Policies::of(&manifests.authorization_policies, config)),
            modes: Arc::new(Modes::of(&manifests.peer_authentications, config)),
            waypoints: Arc::new(Waypoints::of(manifests, &registry, config)),
            networks: Arc::new(Networks::of(manifests, &registry, config)),
            distribution: Arc::new(distribution.collect()),
            limits: Arc::new(limits.collect()),
            first_family: first_family(manifests),
            config: config.clone(),
            registry,
        }
    }

    /// The world of other pods and else the same objects; nothing if more than pods' own messages would be another.
    pub(super) fn with_pods(&self, manifests: &Manifests, changes: &[PodChange]) -> Option<Self> {
        let registry = self.registry.with_pods(manifests, changes)?;
        let waypoints = Waypoints::of(manifests, &registry, &self.config);
        let networks = Networks::of(manifests, &registry, &self.config);
        (waypoints == *self.waypoints && networks == *self.networks).then(|| Self {
            registry,
            config: self.config.clone(),
            policies: Arc::clone(&self.policies),
            modes: Arc::clone(&self.modes),
            waypoints: Arc::clone(&self.waypoints),
            networks: Arc::clone(&self.networks),
            distribution: Arc::clone(&self.distribution),
            limits: Arc::clone(&self.limits),
            first_family: self.first_family,
        })
    }
}

/// The family of the API server's own Service, which is the cluster's first; else the one that all Services have.
fn first_family(manifests: &Manifests) -> IpFamilies {
    let first = |service: &crate::manifests::Service| service.addresses.first().copied();
    let mut services = manifests.services.iter();
    let own = services
        .find(|service| {
            &*service.meta.namespace == "default" && &*service.meta.name == "kubernetes"
        })
        .and_then(|service| first(&service.spec));
    let mut all = manifests.services.iter().filter_map(|service| first(&service.spec));
    let all = own.or_else(|| {
        let one = all.next()?;
        all.all(|other| other.is_ipv4() == one.is_ipv4()).then_some(one)
    });
    match all {
        Some(ip) if ip.is_ipv4() => IpFamilies::Ipv4Only,
        Some(_) => IpFamilies::Ipv6Only,
        None => IpFamilies::Automatic,
    }
}
