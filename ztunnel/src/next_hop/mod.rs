//! Decides where an outbound connection goes next.
//!
//! In: the captured connection, one [`Snapshot`], what the node has learnt of endpoints, and a random number. Out: a
//! [`NextHop`], or why there is none. No sockets, clocks, locks or logs: the caller dials, waits and records.

mod address;
mod choosing;
#[cfg(test)]
mod choosing_tests;
mod dice;
mod endpoint;
#[cfg(test)]
pub(crate) mod fixture;
mod gateway;
mod no_route;
mod reference;
#[cfg(test)]
mod tests;
mod waypoint;

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use mesh::{
    hbone::Authority,
    identity::Spiffe,
    policy::{self, Permit},
    store::{
        Found, GatewayAddress, HBONE_PORT, LoadBalancingMode, Service, Snapshot, TunnelProtocol,
        Workload,
    },
};

use self::{address::Address, choosing::Choosing, dice::Dice, gateway::Elsewhere};
pub use self::{
    choosing::Experience,
    endpoint::Rejected,
    no_route::{NoRoute, source},
};

/// Outbound connections of a pod are captured to this port.
pub const OUTBOUND_PORT: u16 = 15001;
/// Inbound connections in the clear are captured to this port.
pub const PLAINTEXT_PORT: u16 = 15006;

/// Applications ask for connections at this port of the pod's loopback address, where that is switched on.
pub const SOCKS_PORT: u16 = 15080;

/// Whether a port is one that the daemon itself always listens on in the pod's network namespace.
pub fn is_own_port(port: u16) -> bool {
    [OUTBOUND_PORT, PLAINTEXT_PORT, HBONE_PORT].contains(&port)
}

/// A connection that a pod began.
#[derive(Clone, Copy, Debug)]
pub struct Outbound<'a> {
    /// The pod's workload, known from its network namespace.
    pub source: &'a Workload,
    /// What the application dialed.
    pub orig_dst: SocketAddr,
    /// The network that the node is in.
    pub network: &'a str,
}

/// What the far end of a tunnel must reach: the `:authority` of CONNECT (RFC 9113 §8.5). Not what we dial: a waypoint is
/// dialed at its own address.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct HboneAddr(SocketAddr);

impl HboneAddr {
    /// The address and port.
    pub fn get(self) -> SocketAddr {
        self.0
    }
}

impl From<HboneAddr> for Authority {
    fn from(addr: HboneAddr) -> Self {
        Self::Address(addr.0)
    }
}

impl fmt::Display for HboneAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where a connection goes next.
#[derive(Clone, Debug)]
pub enum NextHop {
    /// Not in the mesh: plain TCP to the original destination.
    Passthrough {
        /// The original destination.
        dial: SocketAddr,
        /// The service it belongs to, if it does.
        service: Option<Arc<Service>>,
    },
    /// A workload that accepts no tunnels: plain TCP to it.
    Plain {
        /// The workload's address and port.
        dial: SocketAddr,
        /// Who is dialed.
        workload: Arc<Workload>,
        /// The service that was dialed, if it was one.
        service: Option<Arc<Service>>,
    },
    /// In the mesh, no waypoint: one tunnel to the workload's own address.
    Direct {
        /// The workload's address and the port for tunnels.
        dial: SocketAddr,
        /// The workload's address and the application's port.
        authority: HboneAddr,
        /// Who must be found there.
        expect: Arc<[Spiffe]>,
        /// Who is dialed.
        workload: Arc<Workload>,
        /// The service that was dialed, if it was one.
        service: Option<Arc<Service>>,
    },
    /// Guarded by a waypoint: one tunnel to it, with the original destination as authority.
    Waypoint {
        /// The waypoint's address and the port for tunnels.
        dial: SocketAddr,
        /// The original destination.
        authority: HboneAddr,
        /// Who must be found there.
        expect: Arc<[Spiffe]>,
        /// Who is dialed.
        waypoint: Arc<Workload>,
        /// The service that was dialed, if it was one.
        service: Option<Arc<Service>>,
    },
    /// On another network: a tunnel to that network's gateway, and inside it a second one to whoever is behind it.
    Across {
        /// The gateway's address and the port for tunnels.
        dial: SocketAddr,
        /// The dialed service's name and port: what both tunnels ask for.
        authority: Authority,
        /// Who must be found at the gateway.
        expect: Arc<[Spiffe]>,
        /// Who must be found behind it.
        behind: Arc<[Spiffe]>,
        /// Who is dialed.
        gateway: Arc<Workload>,
        /// What was chosen on the other network: an endpoint, or a waypoint.
        target: Arc<Workload>,
        /// The service that was dialed.
        service: Option<Arc<Service>>,
    },
    /// A workload that has no address but a DNS name: the caller resolves it and goes on with [`Unresolved::at`].
    Unresolved(Unresolved),
}

/// A hop whose address must be asked of DNS.
#[derive(Clone, Debug)]
pub struct Unresolved {
    /// The name to resolve.
    pub host: Arc<str>,
    hop: Hop,
}

/// A chosen workload, before its address is.
#[derive(Clone, Debug)]
struct Hop {
    workload: Arc<Workload>,
    service: Option<Arc<Service>>,
    via: Via,
}

/// How a chosen workload is reached.
#[derive(Clone, Debug)]
enum Via {
    Plain {
        port: u16,
    },
    Tunnel {
        port: u16,
        expect: Arc<[Spiffe]>,
    },
    Waypoint {
        hbone_port: u16,
        authority: HboneAddr,
        expect: Arc<[Spiffe]>,
    },
    Across {
        hbone_port: u16,
        authority: Authority,
        expect: Arc<[Spiffe]>,
        behind: Arc<[Spiffe]>,
        target: Arc<Workload>,
    },
}

impl NextHop {
    /// The workload that was chosen: an endpoint, or a waypoint. Behind a gateway it is not the one that is dialed.
    pub fn target(&self) -> Option<&Arc<Workload>> {
        match self {
            Self::Passthrough { .. } => None,
            Self::Plain { workload, .. } | Self::Direct { workload, .. } => Some(workload),
            Self::Waypoint { waypoint, .. } => Some(waypoint),
            Self::Across { target, .. } => Some(target),
            Self::Unresolved(Unresolved { hop, .. }) => Some(&hop.workload),
        }
    }

    /// Leave to forward it: the pod that began it is ours, and its policy is enforced where it arrives.
    pub fn permit(&self) -> Permit {
        policy::originated()
    }
}

impl Unresolved {
    /// The hop, at one of the addresses that its name stands for.
    pub fn at(self, ip: IpAddr) -> NextHop {
        self.hop.at(ip)
    }
}

impl Hop {
    fn at(self, ip: IpAddr) -> NextHop {
        let Self { workload, service, via } = self;
        match via {
            Via::Plain { port } => {
                NextHop::Plain { dial: SocketAddr::new(ip, port), workload, service }
            }
            Via::Tunnel { port, expect } => NextHop::Direct {
                dial: SocketAddr::new(ip, HBONE_PORT),
                authority: HboneAddr(SocketAddr::new(ip, port)),
                expect,
                workload,
                service,
            },
            Via::Waypoint { hbone_port, authority, expect } => NextHop::Waypoint {
                dial: SocketAddr::new(ip, hbone_port),
                authority,
                expect,
                waypoint: workload,
                service,
            },
            Via::Across { hbone_port, authority, expect, behind, target } => NextHop::Across {
                dial: SocketAddr::new(ip, hbone_port),
                authority,
                expect,
                behind,
                gateway: workload,
                target,
                service,
            },
        }
    }

    fn at_address(self, address: Address) -> NextHop {
        match address {
            Address::Ip(ip) => self.at(ip),
            Address::Host(host) => NextHop::Unresolved(Unresolved { host, hop: self }),
        }
    }
}

/// Decides where a connection goes next. `pick` is a random number: equal numbers choose alike.
///
/// # Errors
/// [`NoRoute`] says what is missing. Whatever guards a destination is never bypassed.
pub fn next_hop(
    snapshot: &Snapshot,
    outbound: &Outbound<'_>,
    experience: &Experience<'_>,
    pick: u64,
) -> Result<NextHop, NoRoute> {
    let orig_dst = canonical(outbound.orig_dst);
    let outbound = &Outbound { orig_dst, ..*outbound };
    if orig_dst.ip().is_loopback() && is_own_port(orig_dst.port()) {
        return Err(NoRoute::OwnPort { port: orig_dst.port() });
    }
    let mut choosing = Choosing { dice: Dice::new(pick), experience };
    match snapshot.by_address(outbound.network, orig_dst.ip(), &outbound.source.namespace) {
        None => Ok(NextHop::Passthrough { dial: orig_dst, service: None }),
        Some(Found::Service(service)) => to_service(snapshot, outbound, service, &mut choosing),
        Some(Found::Workload(workload)) => to_workload(snapshot, outbound, workload, &mut choosing),
    }
}

fn to_service(
    snapshot: &Snapshot,
    outbound: &Outbound<'_>,
    service: Arc<Service>,
    choosing: &mut Choosing<'_>,
) -> Result<NextHop, NoRoute> {
    if let Some(gateway) = waypoint::of_service(&service, choosing)? {
        let gateway = gateway.clone();
        return to_waypoint(snapshot, outbound, &gateway, Some(service), choosing);
    }
    if service.load_balancing.mode == LoadBalancingMode::Passthrough {
        return Ok(NextHop::Passthrough { dial: outbound.orig_dst, service: Some(service) });
    }
    to_endpoint(snapshot, outbound, service, choosing)
}

fn to_endpoint(
    snapshot: &Snapshot,
    outbound: &Outbound<'_>,
    service: Arc<Service>,
    choosing: &mut Choosing<'_>,
) -> Result<NextHop, NoRoute> {
    let wanted = endpoint::Wanted {
        source: outbound.source,
        service: &service,
        port: outbound.orig_dst.port(),
        dialed: outbound.orig_dst.ip(),
        rule: endpoint::PortRule::Listed,
        reach: endpoint::Reach::ThroughGateways,
    };
    let endpoint::Chosen { workload, port, address } =
        endpoint::choose(snapshot, &wanted, choosing)?;
    let Some(address) = address else {
        let (target, service) = (workload, Some(service));
        let elsewhere = Elsewhere { target, dialed: service.clone(), behind: service };
        return gateway::across(snapshot, outbound, elsewhere, choosing);
    };
    let via = via(&workload, port, Some(&service));
    Ok(Hop { workload, service: Some(service), via }.at_address(address))
}

fn to_workload(
    snapshot: &Snapshot,
    outbound: &Outbound<'_>,
    workload: Arc<Workload>,
    choosing: &mut Choosing<'_>,
) -> Result<NextHop, NoRoute> {
    let Outbound { source, orig_dst, network } = *outbound;
    // Whatever else is at the address, a service included, the workload's own waypoint guards it.
    if workload.network == source.network
        && let Some(gateway) = &workload.waypoint
        && !waypoint::is_itself(snapshot, source, gateway)
    {
        return to_waypoint(snapshot, outbound, gateway, None, choosing);
    }
    // An address that is also a service's means the service, if it serves the port: its port may be mapped.
    if let Some(service) = snapshot.service_by_address(network, orig_dst.ip(), &source.namespace)
        && service.load_balancing.mode != LoadBalancingMode::Passthrough
        && service.port(orig_dst.port()).is_some()
    {
        return to_endpoint(snapshot, outbound, service.clone(), choosing);
    }
    if workload.network != source.network {
        let elsewhere = Elsewhere { target: workload, dialed: None, behind: None };
        return gateway::across(snapshot, outbound, elsewhere, choosing);
    }
    let via = via(&workload, orig_dst.port(), None);
    Ok(Hop { workload, service: None, via }.at(orig_dst.ip()))
}

fn to_waypoint(
    snapshot: &Snapshot,
    outbound: &Outbound<'_>,
    gateway: &GatewayAddress,
    service: Option<Arc<Service>>,
    choosing: &mut Choosing<'_>,
) -> Result<NextHop, NoRoute> {
    let chosen = waypoint::resolve(snapshot, outbound, gateway, choosing)?;
    let Some(address) = chosen.address else {
        let (target, behind) = (chosen.workload, chosen.service);
        let elsewhere = Elsewhere { target, dialed: service, behind };
        return gateway::across(snapshot, outbound, elsewhere, choosing);
    };
    let via = Via::Waypoint {
        hbone_port: chosen.port,
        authority: HboneAddr(outbound.orig_dst),
        expect: chosen.expect,
    };
    Ok(Hop { workload: chosen.workload, service, via }.at_address(address))
}

fn via(workload: &Workload, port: u16, service: Option<&Service>) -> Via {
    match workload.tunnel_protocol {
        TunnelProtocol::None => Via::Plain { port },
        TunnelProtocol::Hbone => Via::Tunnel { port, expect: expected(workload, service) },
    }
}

/// Whom a client must find at a workload: itself, or whom the service it was chosen for names besides.
fn expected(workload: &Workload, service: Option<&Service>) -> Arc<[Spiffe]> {
    match service {
        Some(service) if !service.identities.is_empty() => {
            workload.identities.iter().chain(service.identities.iter()).cloned().collect()
        }
        Some(_) | None => workload.identities.clone(),
    }
}

fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

impl fmt::Display for NextHop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passthrough { dial, .. } => write!(f, "passthrough to {dial}"),
            Self::Plain { dial, .. } => write!(f, "plain to {dial}"),
            Self::Direct { dial, authority, .. } => write!(f, "direct {dial} for {authority}"),
            Self::Waypoint { dial, authority, .. } => write!(f, "waypoint {dial} for {authority}"),
            Self::Across { dial, authority, target, .. } => {
                write!(f, "gateway {dial} to network {} for {authority}", target.network)
            }
            Self::Unresolved(unresolved) => write!(f, "resolve {}", unresolved.host),
        }
    }
}
