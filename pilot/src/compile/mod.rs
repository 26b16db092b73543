//! Turns the user's resources into what the daemons take.
//!
//! In: [`Manifests`] and the mesh's settings. Out: [`Compiled`]: every `istio.workload.Address` and
//! `istio.security.Authorization` by its xDS name, and which identities live on which node. No I/O, no clock: equal
//! input gives equal bytes.

pub(crate) mod attachment;
pub(crate) mod authorization;
mod canonical;
mod identities;
mod incremental;
pub mod mesh_config;
mod networks;
mod origins;
pub(crate) mod peer_authentication;
pub(crate) mod registry;
mod selector;
mod service;
mod snapshot;
pub mod status;
pub mod waypoint;
mod workload;
mod world;

use std::sync::Arc;

use prost::Message;
use proto::{
    security::Authorization,
    workload::{Address, Workload, address},
};
use twox_hash::XxHash64;

pub(crate) use authorization::can_fire;
pub use identities::NodeIdentities;
pub use mesh_config::MeshConfig;
pub use origins::{Origin, Source, of_daemons};
pub(crate) use snapshot::Snapshot;
/// What routes of the Gateway API refer to, and what of them is followed.
pub(crate) use waypoint::routes::gateway_api as route_rules;

use self::{registry::Visibility, world::World};
use crate::manifests::Manifests;

/// What a daemon subscribes to.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum ResourceType {
    /// Workloads and services.
    Address,
    /// Policies.
    Authorization,
}

impl ResourceType {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Address, Self::Authorization];

    /// Its type URL in xDS.
    pub fn type_url(self) -> &'static str {
        match self {
            Self::Address => proto::ADDRESS_TYPE,
            Self::Authorization => proto::AUTHORIZATION_TYPE,
        }
    }

    /// Its short name, for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Address => "Address",
            Self::Authorization => "Authorization",
        }
    }
}

/// One resource as it is sent.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Resource {
    /// The encoded message.
    pub encoded: Vec<u8>,
    /// A hash of it: equal for equal content, also in another run.
    pub hash: u64,
}

impl Resource {
    fn new(message: &impl Message) -> Self {
        let encoded = message.encode_to_vec();
        let hash = XxHash64::oneshot(0, &encoded);
        Self { encoded, hash }
    }

    /// Of a message that may hold maps without order.
    fn canonical<M: Message + prost::Name>(message: &M) -> Self {
        let encoded = canonical::encode(message);
        let hash = XxHash64::oneshot(0, &encoded);
        Self { encoded, hash }
    }

    /// The version that stands in xDS: the hash in hexadecimal.
    pub fn version(&self) -> String {
        format!("{:016x}", self.hash)
    }
}

/// Resources of one type by name; a copy shares what it has not changed.
pub type Resources = imbl::OrdMap<Arc<str>, Resource>;

/// Everything a folder compiles to.
#[derive(Clone, Debug, Default)]
pub struct Compiled {
    /// Workloads and services.
    pub addresses: Resources,
    /// Policies.
    pub authorizations: Resources,
    /// Which identities may be issued to which node.
    pub identities: NodeIdentities,
}

impl Compiled {
    /// The resources of one type.
    pub fn resources(&self, of: ResourceType) -> &Resources {
        match of {
            ResourceType::Address => &self.addresses,
            ResourceType::Authorization => &self.authorizations,
        }
    }
}

/// Compiles everything.
pub fn compile(manifests: &Manifests, config: &MeshConfig) -> Compiled {
    compile_in(manifests, &World::of(manifests, config))
}

fn compile_in(manifests: &Manifests, world: &World) -> Compiled {
    let mut addresses = Resources::new();
    for host in world.registry.all().filter(|host| host.visibility != Visibility::Nobody) {
        addresses.insert(host.key().into(), address(address::Type::Service(world.service(host))));
    }
    let pods = manifests.pods.iter().filter_map(|pod| world.pod(pod));
    addresses.extend(pods.chain(world.foreign_workloads(manifests)).map(named));
    let authorizations = world.policies.compile().into_iter().chain(world.modes.compile());
    let authorizations = authorizations.map(|policy: Authorization| {
        (Arc::from(format!("{}/{}", policy.namespace, policy.name)), Resource::new(&policy))
    });
    Compiled {
        addresses,
        authorizations: authorizations.collect(),
        identities: NodeIdentities::of(&manifests.pods),
    }
}

/// A workload by its name in xDS.
fn named(workload: Workload) -> (Arc<str>, Resource) {
    (workload.uid.as_str().into(), address(address::Type::Workload(workload)))
}

fn address(of: address::Type) -> Resource {
    Resource::new(&Address { r#type: Some(of) })
}

#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod origins_tests;
#[cfg(test)]
mod sequence_tests;
#[cfg(test)]
mod tests;
