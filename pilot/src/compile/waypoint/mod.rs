//! What a waypoint is sent: listeners, clusters, assignments and extensions of Envoy.
//!
//! In: a `Context`: the user's resources and the client. Out: a [`WaypointConfig`]. No I/O, no clock, no state:
//! equal input gives equal messages, in the same order.

mod attached;
mod chains;
mod client;
mod clusters;
mod context;
pub(crate) mod destination_rule;
mod endpoints;
mod extensions;
mod http;
mod listeners;
mod locality;
mod matcher;
pub(crate) mod message;
mod networks;
mod origins;
pub(crate) mod policy;
pub(crate) mod routes;
mod tcp;
pub(crate) mod telemetry;
mod tls;

use std::sync::Arc;

use proto::envoy::envoy::config::{
    cluster::v3::Cluster,
    core::v3::{Node, TypedExtensionConfig},
    endpoint::v3::ClusterLoadAssignment,
    listener::v3::Listener,
};

use super::{MeshConfig, Origin, Resource, Resources, world::World};
use crate::manifests::Manifests;

pub use client::{Build, Client, ClientError};
pub(crate) use context::{ChainKind, Context, ENCAP, Role, inbound_cluster};

/// Type URL of clusters.
pub const CLUSTER_TYPE: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
/// Type URL of assignments.
pub const ASSIGNMENT_TYPE: &str =
    "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
/// Type URL of listeners.
pub const LISTENER_TYPE: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
/// Type URL of extensions.
pub const EXTENSION_TYPE: &str = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig";
/// Type URL of routes by themselves.
pub const ROUTE_TYPE: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
/// Type URL of certificates and roots.
pub const SECRET_TYPE: &str =
    "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";

/// All that a waypoint is sent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WaypointConfig {
    /// Where it takes connections, and what it does with them.
    pub listeners: Vec<Listener>,
    /// Where it sends them.
    pub clusters: Vec<Cluster>,
    /// What is behind the clusters.
    pub assignments: Vec<ClusterLoadAssignment>,
    /// Filters that its listeners ask for by name.
    pub extension_configs: Vec<TypedExtensionConfig>,
}

impl WaypointConfig {
    /// The encoded resources of each type, in the order in which they are sent: what is referred to comes first.
    pub fn resources(&self) -> [(&'static str, Resources); 4] {
        let clusters = self.clusters.iter().map(|one| (&one.name, Resource::canonical(one)));
        let assignments =
            self.assignments.iter().map(|one| (&one.cluster_name, Resource::canonical(one)));
        let listeners = self.listeners.iter().map(|one| (&one.name, Resource::canonical(one)));
        let extensions =
            self.extension_configs.iter().map(|one| (&one.name, Resource::canonical(one)));
        [
            (CLUSTER_TYPE, named(clusters)),
            (ASSIGNMENT_TYPE, named(assignments)),
            (LISTENER_TYPE, named(listeners)),
            (EXTENSION_TYPE, named(extensions)),
        ]
    }
}

fn named<'a>(resources: impl Iterator<Item = (&'a String, Resource)>) -> Resources {
    resources.map(|(name, resource)| (Arc::from(name.as_str()), resource)).collect()
}

/// What the Envoy that says it is `node` is sent; nothing if it belongs to no Gateway that is a waypoint.
///
/// # Errors
/// If the node is none of a proxy.
pub fn of_node(
    manifests: &Manifests,
    config: &MeshConfig,
    node: &Node,
) -> Result<Option<WaypointConfig>, ClientError> {
    let world = World::of(manifests, config);
    let client = Client::of(node, manifests, &world.registry)?;
    let context = Context::new(manifests, &world, &client);
    Ok(context.map(|context| compile(&context)))
}

/// What the pods of a Gateway are sent; nothing if it is no waypoint, or has no pod.
pub fn of_gateway(
    manifests: &Manifests,
    config: &MeshConfig,
    namespace: &str,
    name: &str,
) -> Option<WaypointConfig> {
    let world = World::of(manifests, config);
    let client = Client::of_gateway(manifests, config, &world.registry, namespace, name)?;
    let context = Context::new(manifests, &world, &client)?;
    Some(compile(&context))
}

/// What each part of what the pods of a Gateway are sent comes from; nothing if it is no waypoint, or has no pod.
pub fn origins_of_gateway(
    manifests: &Manifests,
    config: &MeshConfig,
    namespace: &str,
    name: &str,
) -> Option<Vec<Origin>> {
    let world = World::of(manifests, config);
    let client = Client::of_gateway(manifests, config, &world.registry, namespace, name)?;
    let context = Context::new(manifests, &world, &client)?;
    Some(origins::origins(&context))
}

pub(in crate::compile) fn compile(context: &Context<'_>) -> WaypointConfig {
    let mut listeners = listeners::listeners(context);
    listeners.push(chains::main_internal(context));
    let mut config = WaypointConfig {
        listeners,
        clusters: clusters::clusters(context),
        assignments: endpoints::assignments(context),
        extension_configs: extensions::configs(context),
    };
    extensions::apply_patches(context, &mut config);
    config
}

#[cfg(test)]
mod fixtures;
#[cfg(test)]
pub(crate) mod tests;
