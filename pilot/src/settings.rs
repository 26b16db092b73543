//! What counts for the whole mesh and stands in none of its resources, as options of a command line.

use clap::Args;

use crate::compile::MeshConfig;

/// What counts for the whole mesh and stands in none of its resources.
#[derive(Args, Clone, Debug)]
pub struct Mesh {
    /// First part of every workload's uid.
    #[arg(long, default_value = "Kubernetes")]
    cluster_id: String,
    /// Trust domain of the mesh's identities.
    #[arg(long, default_value = "cluster.local")]
    trust_domain: String,
    /// What stands after `svc.` in services' host names.
    #[arg(long, default_value = "cluster.local")]
    cluster_domain: String,
    /// The network of all addresses.
    #[arg(long, default_value = "")]
    network: String,
    /// The namespace whose policies count for the whole mesh.
    #[arg(long, default_value = "istio-system")]
    pub root_namespace: String,
    /// The mesh has several networks, and addresses mean something in their own only.
    #[arg(long, env = "AMBIENT_ENABLE_MULTI_NETWORK", action = clap::ArgAction::Set, default_value_t = false)]
    multi_network: bool,
}

impl From<Mesh> for MeshConfig {
    fn from(mesh: Mesh) -> Self {
        Self {
            cluster_id: mesh.cluster_id,
            trust_domain: mesh.trust_domain,
            cluster_domain: mesh.cluster_domain,
            network: mesh.network,
            multi_network: mesh.multi_network,
            root_namespace: mesh.root_namespace,
            ..Self::default()
        }
    }
}
