//! Decides whether a tunnel's request is for this pod, and where in the pod it goes.
//!
//! In: the pod's workload and address, what the peer's CONNECT asks for, and one [`Snapshot`]. Out: an [`Admission`], or the
//! [`Refusal`] with the status to answer. Who the peer is does not matter here: `policy` decides about that, with
//! [`Admission::authorize`] as the destination.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use http::StatusCode;
use mesh::{
    hbone::Authority,
    store::{AppTunnelProtocol, Found, GatewayAddress, Service, Snapshot, Workload},
    telemetry::Reason,
};

use crate::next_hop::is_own_port;

/// The pod that accepted the tunnel.
#[derive(Clone, Copy, Debug)]
pub struct Local<'a> {
    /// Its workload, known from its network namespace.
    pub workload: &'a Workload,
    /// The address the tunnel was dialed at.
    pub ip: IpAddr,
    /// Where its application is dialed if it wants to be told who comes.
    pub announced: AnnouncedAt,
    /// The one port that can be reached, if not all of them can.
    pub only_port: Option<u16>,
}

/// Where an application is dialed that is told by a PROXY protocol header who comes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AnnouncedAt {
    /// The loopback address, of the family of the pod's.
    Loopback,
    /// The pod's own address, as the client.
    Pod,
}

/// Where an admitted tunnel goes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Admission {
    /// What policy looks at as the destination: the pod's address and the application's port.
    pub authorize: SocketAddr,
    /// Where the application is dialed.
    pub dial: SocketAddr,
    /// What to put into a PROXY protocol header before the first byte, if the application wants one.
    pub announced: Option<Announced>,
    /// The service that was asked for by name, else the first with this target port, for telemetry.
    pub service: Option<Arc<Service>>,
}

/// What an application is told of what was asked for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Announced {
    /// The address that was asked for; of a name, one of its service's.
    pub destination: SocketAddr,
    /// The name, if it was one.
    pub host: Option<Box<str>>,
}

/// Why a tunnel's request is not for this pod. Its text is the sentence for the user.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// The address is neither the pod's nor one that the pod is the waypoint of.
    #[error("{requested} is not an address of this pod ({local}), nor is it the waypoint of it")]
    NotThisPod {
        /// What was asked for.
        requested: SocketAddr,
        /// The pod's own address.
        local: IpAddr,
    },
    /// No service that the pod may see has this host name.
    #[error("no service is known by the name {host}")]
    UnknownHost {
        /// What was asked for.
        host: Box<str>,
    },
    /// The service is known, and the pod is neither an endpoint of it nor its waypoint.
    #[error("this pod is no endpoint of service {service}, nor its waypoint")]
    NotAnEndpoint {
        /// `<namespace>/<hostname>`.
        service: Arc<str>,
    },
    /// Neither the endpoint nor the service says where this port of the service is.
    #[error("service {service} has no target for port {port} on this pod")]
    UnknownPort {
        /// `<namespace>/<hostname>`.
        service: Arc<str>,
        /// The port that was asked for.
        port: u16,
    },
    /// The application's port is one of the daemon's own.
    #[error("port {port} is the mesh's own")]
    OwnPort {
        /// The port.
        port: u16,
    },
    /// The daemon's namespace is the node's, of which others reach one port.
    #[error("port {port} is not the daemon's metrics port {only}")]
    DaemonPort {
        /// The port.
        port: u16,
        /// The one that can be reached.
        only: u16,
    },
    /// The application wants to be told the destination's address, and the service has none.
    #[error("service {service} has no address to put into the PROXY protocol header")]
    NoAddress {
        /// `<namespace>/<hostname>`.
        service: Arc<str>,
    },
}

impl Refusal {
    /// The status that answers the CONNECT.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::NotThisPod { .. } | Self::NotAnEndpoint { .. } => StatusCode::BAD_REQUEST,
            Self::UnknownHost { .. }
            | Self::UnknownPort { .. }
            | Self::OwnPort { .. }
            | Self::DaemonPort { .. }
            | Self::NoAddress { .. } => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

impl From<&Refusal> for Reason {
    fn from(refusal: &Refusal) -> Self {
        match refusal {
            Refusal::NotThisPod { .. } | Refusal::NotAnEndpoint { .. } => Self::ConnectNotThisPod,
            Refusal::UnknownHost { .. }
            | Refusal::UnknownPort { .. }
            | Refusal::NoAddress { .. } => Self::ConnectUnknownHost,
            Refusal::OwnPort { .. } => Self::OwnPort,
            Refusal::DaemonPort { .. } => Self::DaemonPort,
        }
    }
}

/// Decides whether a tunnel's request is for this pod. The bytes always go to the pod itself, whatever was asked for.
///
/// # Errors
/// [`Refusal`] says what was asked for and what is here.
pub fn admit(
    snapshot: &Snapshot,
    local: Local<'_>,
    requested: &Authority,
) -> Result<Admission, Refusal> {
    let local = Local { ip: local.ip.to_canonical(), ..local };
    match requested {
        Authority::Address(address) => {
            let address = SocketAddr::new(address.ip().to_canonical(), address.port());
            if !is_for(snapshot, local, address.ip()) {
                return Err(Refusal::NotThisPod { requested: address, local: local.ip });
            }
            let service = service_of_port(snapshot, local.workload, address.port());
            admission(local, address.port(), service, || {
                Ok(Announced { destination: address, host: None })
            })
        }
        Authority::Host { name, port } => {
            let (name, port) = (name.as_str(), *port);
            let service = service_by_host(snapshot, local, name)
                .ok_or_else(|| Refusal::UnknownHost { host: name.into() })?;
            let target = port_of(snapshot, local, service, port)?;
            admission(local, target, Some(service.clone()), || {
                let destination = service_address(service, local, port)?;
                Ok(Announced { destination, host: Some(name.into()) })
            })
        }
    }
}

/// Whether an address is the pod's, or the pod takes whatever its node brings it, or is the waypoint of the address.
fn is_for(snapshot: &Snapshot, local: Local<'_>, ip: IpAddr) -> bool {
    if ip == local.ip || local.workload.application_tunnel.is_some() {
        return true;
    }
    let network = &local.workload.network;
    if let Some(workload) = snapshot.workload_by_address(network, ip) {
        return workload.waypoint.iter().any(|gateway| leads_to(snapshot, gateway, local));
    }
    snapshot
        .services_by_address(network, ip)
        .any(|service| waypoints(service).any(|gateway| leads_to(snapshot, gateway, local)))
}

fn waypoints(service: &Service) -> impl Iterator<Item = &GatewayAddress> {
    service.waypoint.iter().chain(service.weighted_waypoints.iter().map(|one| &one.gateway))
}

/// Whether a reference means this pod, or a service that this pod is an endpoint of.
fn leads_to(snapshot: &Snapshot, gateway: &GatewayAddress, local: Local<'_>) -> bool {
    match snapshot.gateway(&gateway.target, &local.workload.namespace) {
        Some(Found::Service(service)) => local.workload.membership(&service.key).is_some(),
        Some(Found::Workload(workload)) => {
            workload.uid == local.workload.uid || workload.addresses.contains(&local.ip)
        }
        None => false,
    }
}

/// The service of that name that the pod is an endpoint of; if there is none, the one that the pod itself would mean.
/// Several namespaces may have a service of one name.
fn service_by_host<'a>(
    snapshot: &'a Snapshot,
    local: Local<'_>,
    name: &str,
) -> Option<&'a Arc<Service>> {
    let meant = snapshot.service_by_host(name, &local.workload.namespace)?;
    if local.workload.membership(&meant.key).is_some() {
        return Some(meant);
    }
    let is_named = |key: &str| key.split_once('/').is_some_and(|(_, host)| host == name);
    let mut memberships = local.workload.services.iter().filter(|one| is_named(&one.service));
    memberships.find_map(|one| snapshot.service(&one.service)).or(Some(meant))
}

/// The application's port for a port of a service: the endpoint's own word comes before the service's.
fn port_of(
    snapshot: &Snapshot,
    local: Local<'_>,
    service: &Service,
    port: u16,
) -> Result<u16, Refusal> {
    let membership = local.workload.membership(&service.key);
    let application_tunnel = local.workload.application_tunnel;
    let is_waypoint = || waypoints(service).any(|gateway| leads_to(snapshot, gateway, local));
    if membership.is_none() && application_tunnel.is_none() && !is_waypoint() {
        return Err(Refusal::NotAnEndpoint { service: service.key.clone() });
    }
    // Where the application takes everything on one port, the service's own is never dialed.
    let taken = || application_tunnel.and_then(|tunnel| tunnel.port);
    membership
        .and_then(|membership| membership.target_port(port))
        .or_else(|| service.target_port(port))
        .or_else(taken)
        .map(Into::into)
        .ok_or_else(|| Refusal::UnknownPort { service: service.key.clone(), port })
}

fn admission(
    local: Local<'_>,
    port: u16,
    service: Option<Arc<Service>>,
    asked_for: impl FnOnce() -> Result<Announced, Refusal>,
) -> Result<Admission, Refusal> {
    if is_own_port(port) {
        return Err(Refusal::OwnPort { port });
    }
    let tunnel = local.workload.application_tunnel;
    let port = tunnel.and_then(|tunnel| tunnel.port).map_or(port, Into::into);
    if is_own_port(port) {
        return Err(Refusal::OwnPort { port });
    }
    if let Some(only) = local.only_port.filter(|only| *only != port) {
        return Err(Refusal::DaemonPort { port, only });
    }
    let authorize = SocketAddr::new(local.ip, port);
    match tunnel.map(|tunnel| tunnel.protocol) {
        Some(AppTunnelProtocol::Proxy) => {
            // The header tells who the source is, so the application need not be dialed at the pod's address.
            let ip = match (local.announced, local.ip) {
                (AnnouncedAt::Loopback, IpAddr::V4(_)) => Ipv4Addr::LOCALHOST.into(),
                (AnnouncedAt::Loopback, IpAddr::V6(_)) => Ipv6Addr::LOCALHOST.into(),
                (AnnouncedAt::Pod, ip) => ip,
            };
            let dial = SocketAddr::new(ip, port);
            Ok(Admission { authorize, dial, announced: Some(asked_for()?), service })
        }
        Some(AppTunnelProtocol::None) | None => {
            Ok(Admission { authorize, dial: authorize, announced: None, service })
        }
    }
}

/// An address of a service: in the pod's network before others, there IPv4 before IPv6.
fn service_address(service: &Service, local: Local<'_>, port: u16) -> Result<SocketAddr, Refusal> {
    let single =
        service.addresses.iter().filter(|one| one.net.prefix_len() == one.net.max_prefix_len());
    let best = single.min_by_key(|one| {
        let elsewhere = one.network != local.workload.network;
        (elsewhere, !elsewhere && one.net.addr().is_ipv6())
    });
    match best {
        Some(address) => Ok(SocketAddr::new(address.net.addr(), port)),
        None => Err(Refusal::NoAddress { service: service.key.clone() }),
    }
}

/// The first of the pod's services that has the port as a target.
fn service_of_port(snapshot: &Snapshot, workload: &Workload, port: u16) -> Option<Arc<Service>> {
    let serves = |service: &&Arc<Service>| {
        let membership = workload.membership(&service.key);
        let own = membership.iter().flat_map(|membership| membership.ports.iter());
        own.chain(service.ports.iter()).any(|one| one.target.is_some_and(|t| t.get() == port))
    };
    let services = workload.services.iter().filter_map(|one| snapshot.service(&one.service));
    services.into_iter().find(serves).cloned()
}

#[cfg(test)]
mod tests;
