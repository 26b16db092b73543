//! What follows from pods that came, went or changed, without all else being made again.
//!
//! In: what was compiled last, from what, and the new manifests. Out: the same as compiled from nothing, or nothing if
//! more has changed than can be told apart here.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use super::{Compiled, named, world::World};
use crate::manifests::{EndpointSlice, Kind, Manifests, Object, Pod};

/// A pod that is another than before.
#[derive(Debug)]
pub(crate) struct PodChange {
    /// Nothing if it came.
    pub old: Option<Arc<Object<Pod>>>,
    /// Nothing if it went.
    pub new: Option<Arc<Object<Pod>>>,
}

/// The world and the daemons' resources of `newer`, made from those of `older`.
pub(super) fn follow(
    older: &Manifests,
    world: &World,
    compiled: &Compiled,
    newer: &Manifests,
) -> Option<(World, Compiled)> {
    let changes = changed_pods(older, newer)?;
    let world = world.with_pods(newer, &changes)?;
    let mut compiled = compiled.clone();
    for PodChange { old, new } in &changes {
        if let Some(old) = old {
            compiled.identities.remove(old);
            compiled.addresses.remove(&*world.uid_of(&old.meta));
        }
        if let Some(new) = new {
            compiled.identities.add(new);
            compiled.addresses.extend(world.pod(new).map(named));
        }
    }
    Some((world, compiled))
}

/// The pods that differ; nothing if anything else does that daemons are told of.
fn changed_pods(older: &Manifests, newer: &Manifests) -> Option<Vec<PodChange>> {
    let mut pods = false;
    for kind in older.differing(newer) {
        match kind {
            Kind::Pod => pods = true,
            Kind::EndpointSlice if slices_tell_nothing(older, newer) => {}
            // Read by waypoints alone. Settings of a ConfigMap have been compared.
            Kind::ServiceAccount
            | Kind::ConfigMap
            | Kind::Secret
            | Kind::HttpRoute
            | Kind::GrpcRoute
            | Kind::TcpRoute
            | Kind::TlsRoute
            | Kind::ReferenceGrant
            | Kind::BackendTlsPolicy
            | Kind::VirtualService
            | Kind::DestinationRule
            | Kind::Telemetry
            | Kind::RequestAuthentication
            | Kind::WorkloadGroup
            | Kind::IstioGateway
            | Kind::Sidecar
            | Kind::ProxyConfig
            | Kind::EnvoyFilter
            | Kind::WasmPlugin
            | Kind::TrafficExtension => {}
            Kind::Namespace
            | Kind::Node
            | Kind::Service
            | Kind::EndpointSlice
            | Kind::GatewayClass
            | Kind::Gateway
            | Kind::ServiceEntry
            | Kind::WorkloadEntry
            | Kind::AuthorizationPolicy
            | Kind::PeerAuthentication => return None,
        }
    }
    if !pods {
        return Some(Vec::new());
    }
    let (gone, fresh) = others(&older.pods, &newer.pods);
    let mut fresh: HashMap<_, _> =
        fresh.map(|pod| ((&pod.meta.namespace, &pod.meta.name), Arc::clone(pod))).collect();
    let mut changes: Vec<_> = gone
        .map(|old| {
            let new = fresh.remove(&(&old.meta.namespace, &old.meta.name));
            PodChange { old: Some(Arc::clone(old)), new }
        })
        .collect();
    changes.extend(fresh.into_values().map(|new| PodChange { old: None, new: Some(new) }));
    Some(changes)
}

/// Whether what slices say differently stands in pods as well: of Services that select, whose endpoints are pods.
fn slices_tell_nothing(older: &Manifests, newer: &Manifests) -> bool {
    let selecting = newer.services.iter().filter(|service| !service.spec.selector.is_empty());
    let selecting: HashSet<(&str, &str)> =
        selecting.map(|service| (&*service.meta.namespace, &*service.meta.name)).collect();
    let tells_nothing = |slice: &Arc<Object<EndpointSlice>>| {
        let service = slice.spec.service.as_deref();
        service.is_some_and(|name| selecting.contains(&(&*slice.meta.namespace, name)))
            && slice.spec.endpoints.iter().all(|endpoint| endpoint.pod.is_some())
    };
    let (mut gone, mut fresh) = others(&older.endpoint_slices, &newer.endpoint_slices);
    gone.all(tells_nothing) && fresh.all(tells_nothing)
}

type Objects<T> = [Arc<Object<T>>];

/// The objects that only the one has, and those that only the other has.
fn others<'a, T>(
    older: &'a Objects<T>,
    newer: &'a Objects<T>,
) -> (impl Iterator<Item = &'a Arc<Object<T>>>, impl Iterator<Item = &'a Arc<Object<T>>>) {
    let not_in = |all: &'a Objects<T>| {
        let all: HashSet<_> = all.iter().map(Arc::as_ptr).collect();
        move |one: &&'a Arc<Object<T>>| !all.contains(&Arc::as_ptr(one))
    };
    (older.iter().filter(not_in(newer)), newer.iter().filter(not_in(older)))
}
