//! What a waypoint is sent: listeners, clusters, assignments and extensions of Envoy.
//!
//! In: a [`Context`]: the user's resources and the client. Out: a [`WaypointConfig`]. No I/O, no clock, no state:
//! equal input gives equal messages, in the same order.

mod attached;
mod chains;
mod client;
mod clusters;
mod context;
mod destination_rule;
mod endpoints;
mod http;
mod listeners;
mod locality;
mod matcher;
pub(crate) mod message;
mod networks;
pub(crate) mod policy;
pub(crate) mod routes;
mod tcp;
pub(crate) mod telemetry;
mod tls;

use proto::envoy::envoy::config::{
    cluster::v3::Cluster,
    core::v3::{Node, TypedExtensionConfig},
    endpoint::v3::ClusterLoadAssignment,
    listener::v3::Listener,
};

use super::{MeshConfig, registry::Registry};
use crate::manifests::Manifests;

pub use client::{Build, Client, ClientError};
pub(crate) use context::{ChainKind, Context, ENCAP, Role, inbound_cluster};

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

/// What the Envoy that says it is `node` is sent; nothing if it belongs to no Gateway that is a waypoint.
///
/// # Errors
/// If the node is none of a proxy.
pub fn of_node(
    manifests: &Manifests,
    config: &MeshConfig,
    node: &Node,
) -> Result<Option<WaypointConfig>, ClientError> {
    let registry = Registry::of(manifests, config);
    let client = Client::of(node, manifests, &registry)?;
    let context = Context::new(manifests, config, &registry, &client);
    Ok(context.map(|context| compile(&context)))
}

fn compile(context: &Context<'_>) -> WaypointConfig {
    let mut listeners = listeners::listeners(context);
    listeners.push(chains::main_internal(context));
    WaypointConfig {
        listeners,
        clusters: clusters::clusters(context),
        assignments: endpoints::assignments(context),
        extension_configs: Vec::new(),
    }
}

#[cfg(test)]
mod fixtures;
