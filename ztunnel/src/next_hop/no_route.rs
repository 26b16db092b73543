//! Why a connection goes nowhere.
//!
//! Each variant is one thing an operator would do something about; its text is the sentence for the user.

use std::sync::Arc;

use mesh::{
    store::{GatewayTarget, Snapshot, Workload},
    telemetry::Reason,
};

use super::Rejected;

/// Why a connection goes nowhere.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NoRoute {
    /// The control plane has not described the pod that connects.
    #[error("unknown source: pod {namespace}/{name} with service account {service_account}")]
    UnknownSource {
        /// The pod's namespace.
        namespace: Box<str>,
        /// The pod's name.
        name: Box<str>,
        /// The pod's service account.
        service_account: Box<str>,
    },
    /// The destination is the daemon itself.
    #[error("port {port} on the loopback address is the mesh's own")]
    OwnPort {
        /// The port.
        port: u16,
    },
    /// The service has no such port.
    #[error("service {service} has no port {port}")]
    UnknownServicePort {
        /// `<namespace>/<hostname>`.
        service: Arc<str>,
        /// The port that was dialed.
        port: u16,
    },
    /// No endpoint of the service can be used.
    #[error("service {service} has no endpoint to use for port {port}: {rejected}")]
    NoEndpoint {
        /// `<namespace>/<hostname>`.
        service: Arc<str>,
        /// The port that was dialed.
        port: u16,
        /// Why not.
        rejected: Rejected,
    },
    /// The destination is guarded by a waypoint that does not exist.
    #[error("waypoint {waypoint} is not known")]
    UnknownWaypoint {
        /// How the destination names it.
        waypoint: GatewayTarget,
    },
    /// The destination is guarded by a waypoint that has no endpoint to use.
    #[error("waypoint {waypoint} has no endpoint to use for port {port}: {rejected}")]
    NoWaypointEndpoint {
        /// `<namespace>/<hostname>`.
        waypoint: Arc<str>,
        /// Its port for tunnels.
        port: u16,
        /// Why not.
        rejected: Rejected,
    },
    /// The waypoint cannot be dialed, or nobody would be known to be it.
    #[error("waypoint {waypoint} has no {lacks}")]
    UnusableWaypoint {
        /// Its uid.
        waypoint: Arc<str>,
        /// What it lacks.
        lacks: &'static str,
    },
    /// Several waypoints share the service's traffic, and the share of each is nothing.
    #[error("all weights of the waypoints of service {service} are 0")]
    NoWaypointWeight {
        /// `<namespace>/<hostname>`.
        service: Arc<str>,
    },
    /// The destination is on another network, and says of no gateway.
    #[error("{target} is on network `{network}` and names no gateway of it")]
    OtherNetwork {
        /// The uid of a workload there.
        target: Arc<str>,
        /// The network.
        network: Arc<str>,
    },
    /// A workload on another network was dialed by its address, which means nothing to its gateway.
    #[error("{target} is on network `{network}`, where only services can be reached")]
    OtherNetworkWithoutService {
        /// The uid of the workload.
        target: Arc<str>,
        /// The network.
        network: Arc<str>,
    },
    /// The service does not say who may be found behind the gateway of another network.
    #[error(
        "service {service} names no identity to expect on network `{network}` (subject_alt_names)"
    )]
    NoServiceIdentity {
        /// `<namespace>/<hostname>`.
        service: Arc<str>,
        /// The network.
        network: Arc<str>,
    },
    /// The gateway of another network is asked for services by their names, and this one has none to ask for.
    #[error(
        "`{hostname}` is no name by which the gateway of network `{network}` can be asked for it"
    )]
    NoServiceName {
        /// The service's host name.
        hostname: Arc<str>,
        /// The network.
        network: Arc<str>,
    },
    /// The gateway of the destination's network does not exist.
    #[error("gateway {gateway} of network `{network}` is not known")]
    UnknownGateway {
        /// How the destination names it.
        gateway: GatewayTarget,
        /// The destination's network.
        network: Arc<str>,
    },
    /// The gateway of the destination's network has no endpoint to use.
    #[error("gateway {gateway} has no endpoint to use for port {port}: {rejected}")]
    NoGatewayEndpoint {
        /// `<namespace>/<hostname>`.
        gateway: Arc<str>,
        /// Its port for tunnels.
        port: u16,
        /// Why not.
        rejected: Rejected,
    },
    /// The gateway cannot be dialed, or nobody would be known to be it.
    #[error("gateway {gateway} has no {lacks}")]
    UnusableGateway {
        /// Its uid.
        gateway: Arc<str>,
        /// What it lacks.
        lacks: &'static str,
    },
}

impl From<&NoRoute> for Reason {
    fn from(no_route: &NoRoute) -> Self {
        match no_route {
            NoRoute::UnknownSource { .. } => Self::UnknownSource,
            NoRoute::OwnPort { .. } => Self::OwnPort,
            NoRoute::UnknownServicePort { .. } => Self::UnknownServicePort,
            NoRoute::NoEndpoint { .. } => Self::NoHealthyEndpoint,
            NoRoute::UnknownWaypoint { .. }
            | NoRoute::NoWaypointEndpoint { .. }
            | NoRoute::UnusableWaypoint { .. }
            | NoRoute::NoWaypointWeight { .. } => Self::WaypointUnresolved,
            NoRoute::OtherNetwork { .. }
            | NoRoute::OtherNetworkWithoutService { .. }
            | NoRoute::NoServiceIdentity { .. }
            | NoRoute::NoServiceName { .. } => Self::OtherNetwork,
            NoRoute::UnknownGateway { .. }
            | NoRoute::NoGatewayEndpoint { .. }
            | NoRoute::UnusableGateway { .. } => Self::GatewayUnresolved,
        }
    }
}

/// The workload of the pod that connects, by what its node knows of it.
///
/// # Errors
/// [`NoRoute::UnknownSource`]: the caller may wait for the control plane and ask again.
pub fn source<'a>(
    snapshot: &'a Snapshot,
    namespace: &str,
    name: &str,
    service_account: &str,
) -> Result<&'a Arc<Workload>, NoRoute> {
    snapshot.workload_of(namespace, name, service_account).ok_or_else(|| NoRoute::UnknownSource {
        namespace: namespace.into(),
        name: name.into(),
        service_account: service_account.into(),
    })
}
