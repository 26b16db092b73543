//! Turns the user's resources into what the daemons take.
//!
//! In: [`Manifests`] and the mesh's settings. Out: [`Compiled`]: every `istio.workload.Address` and
//! `istio.security.Authorization` by its xDS name, and which identities live on which node. No I/O, no clock: equal
//! input gives equal bytes.

mod attachment;
mod authorization;
mod canonical;
pub mod mesh_config;
mod networks;
mod peer_authentication;
pub(crate) mod registry;
mod selector;
mod service;
mod snapshot;
pub mod status;
pub mod waypoint;
mod workload;
mod world;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use prost::Message;
use proto::{
    security::Authorization,
    workload::{Address, address},
};
use twox_hash::XxHash64;

pub(crate) use authorization::can_fire;
pub use mesh_config::MeshConfig;
pub(crate) use snapshot::Snapshot;
/// What routes of the Gateway API refer to, and what of them is followed.
pub(crate) use waypoint::routes::gateway_api as route_rules;

use self::{registry::Visibility, world::World};
use crate::manifests::{Manifests, PodState};

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

/// Resources of one type by name.
pub type Resources = BTreeMap<Arc<str>, Resource>;

/// Everything a folder compiles to.
#[derive(Debug, Default)]
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

/// Namespace and service account.
type Account = (Arc<str>, Box<str>);

/// The service accounts of the pods on each node.
#[derive(Debug, Default)]
pub struct NodeIdentities {
    nodes: HashMap<Box<str>, HashSet<Account>>,
}

impl NodeIdentities {
    /// Whether a pod of `service_account` that has not ended is scheduled on `node`.
    pub fn has(&self, node: &str, namespace: &str, service_account: &str) -> bool {
        let accounts = self.nodes.get(node);
        accounts
            .is_some_and(|accounts| accounts.contains(&(namespace.into(), service_account.into())))
    }

    /// Whether a pod of `service_account` that has not ended is scheduled on any node.
    pub fn anywhere(&self, namespace: &str, service_account: &str) -> bool {
        self.nodes.keys().any(|node| self.has(node, namespace, service_account))
    }

    /// Namespace and service account of all pods of `node`, if these are one: of a host that is a workload itself.
    pub fn only(&self, node: &str) -> Option<(&str, &str)> {
        let mut accounts = self.nodes.get(node)?.iter();
        let (namespace, service_account) = accounts.next()?;
        accounts.next().is_none().then_some((namespace, service_account))
    }

    fn of(manifests: &Manifests) -> Self {
        let mut nodes: HashMap<Box<str>, HashSet<Account>> = HashMap::new();
        for pod in &manifests.pods {
            if pod.spec.state != PodState::Ended && !pod.spec.node.is_empty() {
                let account = (Arc::clone(&pod.meta.namespace), pod.spec.service_account.clone());
                nodes.entry(pod.spec.node.clone()).or_default().insert(account);
            }
        }
        Self { nodes }
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
    for workload in pods.chain(world.foreign_workloads(manifests)) {
        let name = workload.uid.as_str().into();
        addresses.insert(name, address(address::Type::Workload(workload)));
    }
    let authorizations = world.policies.compile().into_iter().chain(world.modes.compile());
    let authorizations = authorizations.map(|policy: Authorization| {
        (format!("{}/{}", policy.namespace, policy.name).into(), Resource::new(&policy))
    });
    Compiled {
        addresses,
        authorizations: authorizations.collect(),
        identities: NodeIdentities::of(manifests),
    }
}

fn address(of: address::Type) -> Resource {
    Resource::new(&Address { r#type: Some(of) })
}

#[cfg(test)]
mod fixtures;
#[cfg(test)]
mod sequence_tests;
#[cfg(test)]
mod tests;
