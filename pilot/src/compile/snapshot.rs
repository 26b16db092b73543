//! One state of the user's resources, for all clients.
//!
//! In: [`Manifests`] and the mesh's settings. Out: what daemons are sent, and what each waypoint is sent, made from one
//! `World` that they share: it is the costly part. No I/O, no clock.

use std::fmt;

use proto::envoy::envoy::config::core::v3::Node;

use super::{
    Compiled, MeshConfig, compile_in, incremental,
    mesh_config::ProviderKind,
    waypoint::{self, Client, ClientError, Context, WaypointConfig},
    world::World,
};
use crate::manifests::{Manifests, Object, Pod, Secret};

/// One state of the user's resources.
pub(crate) struct Snapshot {
    manifests: Manifests,
    world: World,
    compiled: Compiled,
    /// Whether a waypoint's configuration says which pod it is for.
    names_pods: bool,
    /// Whether there are services that stay on a node.
    node_local: bool,
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot").finish_non_exhaustive()
    }
}

impl Snapshot {
    /// Indexes and compiles the user's resources.
    pub(crate) fn of(manifests: Manifests, config: &MeshConfig) -> Self {
        let world = World::of(&manifests, config);
        let compiled = compile_in(&manifests, &world);
        Self::with(manifests, world, compiled)
    }

    /// The same as [`Self::of`], made from the one before where little has changed.
    pub(crate) fn after(previous: &Self, manifests: Manifests, config: &MeshConfig) -> Self {
        let Self { manifests: older, world, compiled, .. } = previous;
        let followed = (world.config == *config)
            .then(|| incremental::follow(older, world, compiled, &manifests))
            .flatten();
        match followed {
            Some((world, compiled)) => Self::with(manifests, world, compiled),
            None => Self::of(manifests, config),
        }
    }

    fn with(manifests: Manifests, world: World, compiled: Compiled) -> Self {
        let config = &world.config;
        let names_pod = |kind: &ProviderKind| matches!(kind, ProviderKind::Skywalking(_));
        let names_pods = config.extension_providers.iter().any(|one| names_pod(&one.kind));
        let node_local = world
            .registry
            .all()
            .any(|host| host.service().is_some_and(|service| service.node_local));
        Self { manifests, world, compiled, names_pods, node_local }
    }

    /// What daemons are sent.
    pub(crate) fn compiled(&self) -> &Compiled {
        &self.compiled
    }

    /// Who a node is, as far as its configuration depends on it: two that are equal are sent the same.
    ///
    /// # Errors
    /// If it is no proxy.
    pub(crate) fn client(&self, node: &Node) -> Result<Client, ClientError> {
        let mut client = Client::of(node, &self.manifests, &self.world.registry)?;
        client.addresses = client.wildcards().collect();
        if !self.names_pods {
            client.name.clear();
        }
        if !self.node_local {
            client.node.clear();
        }
        Ok(client)
    }

    /// What a waypoint is sent; nothing if it belongs to no Gateway that is one.
    pub(crate) fn waypoint(&self, client: &Client) -> Option<WaypointConfig> {
        let context = Context::new(&self.manifests, &self.world, client)?;
        Some(waypoint::compile(&context))
    }

    /// A pod by its name.
    pub(crate) fn pod(&self, namespace: &str, name: &str) -> Option<&Object<Pod>> {
        let mut pods = self.manifests.pods.iter();
        pods.find(|pod| *pod.meta.name == *name && *pod.meta.namespace == *namespace)
            .map(AsRef::as_ref)
    }

    /// The Secrets of a namespace.
    pub(crate) fn secrets<'a>(
        &'a self,
        namespace: &'a str,
    ) -> impl Iterator<Item = &'a Object<Secret>> {
        let secrets = self.manifests.secrets.iter().map(AsRef::as_ref);
        secrets.filter(move |secret: &&Object<Secret>| *secret.meta.namespace == *namespace)
    }
}
