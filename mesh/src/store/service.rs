//! A service: one name and set of addresses for several workloads.
//!
//! In: `istio.workload.Service`. Out: a [`Service`]. Which workloads are its endpoints is theirs to say
//! ([`Workload::services`](super::Workload::services)).

use std::{num::NonZeroU16, sync::Arc};

use ipnet::IpNet;
use proto::workload::{self as wire_workload, load_balancing};

use super::{DecodeError, GatewayAddress, Limits, Port, WeightedWaypoint, Workload, gateway, keys};
use crate::{
    identity::Spiffe,
    wire::{self, Fault},
};

/// One name and set of addresses for several workloads.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Service {
    /// `<namespace>/<hostname>`: its name in xDS.
    pub key: Arc<str>,
    /// Its name within the namespace.
    pub name: Arc<str>,
    /// Its Kubernetes namespace.
    pub namespace: Arc<str>,
    /// Its full DNS name.
    pub hostname: Arc<str>,
    /// The addresses that clients dial: virtual ones, or whole prefixes.
    pub addresses: Box<[NetworkAddress]>,
    /// Its ports.
    pub ports: Box<[Port]>,
    /// Whom a client may find behind it besides an endpoint's own identity, as written.
    pub subject_alt_names: Box<[Box<str>]>,
    /// Those of `subject_alt_names` that are SPIFFE names of workloads.
    pub identities: Arc<[Spiffe]>,
    /// The waypoint that guards it.
    pub waypoint: Option<GatewayAddress>,
    /// Waypoints that share its traffic; they come before `waypoint`.
    pub weighted_waypoints: Box<[WeightedWaypoint]>,
    /// How an endpoint is chosen.
    pub load_balancing: LoadBalancing,
    /// Which addresses of an endpoint are used.
    pub ip_families: IpFamilies,
    /// Whether it is the one meant by a host name or address that several namespaces have.
    pub canonical: bool,
    /// Whether ingress gateways send through its waypoint too.
    pub ingress_use_waypoint: bool,
    /// Who may use it.
    pub visibility: Visibility,
    /// Limits for connections to it.
    pub limits: Limits,
}

/// An address, or a prefix of addresses, in a network.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct NetworkAddress {
    /// The network.
    pub network: Arc<str>,
    /// The prefix; of full length for a single address.
    pub net: IpNet,
}

/// How an endpoint is chosen.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct LoadBalancing {
    /// What `mode` compares between client and endpoint, from the most to the least important.
    pub preferences: Box<[RoutingScope]>,
    /// How `preferences` are used.
    pub mode: LoadBalancingMode,
    /// Which endpoints may be chosen.
    pub health_policy: HealthPolicy,
}

/// Something that a client and an endpoint may have in common.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum RoutingScope {
    /// The region.
    Region,
    /// The zone's name.
    Zone,
    /// The subzone's name.
    Subzone,
    /// The node.
    Node,
    /// The cluster.
    Cluster,
    /// The network.
    Network,
}

/// How routing preferences are used.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum LoadBalancingMode {
    /// Not at all.
    Any,
    /// Only endpoints that match all of them.
    Strict,
    /// Endpoints that match most of them, counted from the first.
    Failover,
    /// No endpoint is chosen: the address that was dialed is used.
    Passthrough,
}

/// Which endpoints may be chosen.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum HealthPolicy {
    /// The healthy ones.
    OnlyHealthy,
    /// All.
    AllowAll,
}

/// Which addresses of an endpoint are used.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum IpFamilies {
    /// Any; those of the family that was dialed first.
    Any,
    /// IPv4 only.
    Ipv4,
    /// IPv6 only.
    Ipv6,
}

/// Who may use a service.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Visibility {
    /// Everyone.
    Public,
    /// Workloads of its own namespace.
    Namespace,
}

impl RoutingScope {
    /// What of a workload is compared.
    pub fn of(self, workload: &Workload) -> &Arc<str> {
        match self {
            Self::Region => &workload.locality.region,
            Self::Zone => &workload.locality.zone,
            Self::Subzone => &workload.locality.subzone,
            Self::Node => &workload.node,
            Self::Cluster => &workload.cluster,
            Self::Network => &workload.network,
        }
    }
}

impl Service {
    /// Its port with this number.
    pub fn port(&self, number: u16) -> Option<&Port> {
        self.ports.iter().find(|port| port.service == number)
    }

    /// The application's port behind a port of the service, unless it is named or there is no such port.
    pub fn target_port(&self, number: u16) -> Option<NonZeroU16> {
        self.port(number)?.target
    }

    /// Whether a workload of this namespace may use it.
    pub fn visible_from(&self, namespace: &str) -> bool {
        match self.visibility {
            Visibility::Public => true,
            Visibility::Namespace => *self.namespace == *namespace,
        }
    }
}

impl TryFrom<wire_workload::Service> for Service {
    type Error = DecodeError;

    fn try_from(wire: wire_workload::Service) -> Result<Self, DecodeError> {
        let hostname =
            wire::required(&wire.hostname).map_err(|fault| DecodeError::new("hostname", fault))?;
        Ok(Self {
            key: keys::namespaced(&wire.namespace, hostname),
            name: wire.name.as_str().into(),
            namespace: wire.namespace.as_str().into(),
            hostname: hostname.into(),
            addresses: wire::each("addresses", &wire.addresses, NetworkAddress::try_from)?,
            ports: wire::each("ports", &wire.ports, Port::try_from)?,
            // A name of another form can never be found in a certificate we accept: leaving it out admits nobody.
            identities: wire.subject_alt_names.iter().flat_map(|name| name.parse()).collect(),
            subject_alt_names: wire.subject_alt_names.iter().map(|n| n.as_str().into()).collect(),
            waypoint: gateway::optional("waypoint", wire.waypoint.as_ref())?,
            weighted_waypoints: weighted_waypoints(&wire.weighted_waypoints)?,
            load_balancing: load_balancing(&wire.load_balancing.unwrap_or_default())
                .map_err(|error| error.within("load_balancing"))?,
            ip_families: ip_families(wire.ip_families)?,
            canonical: wire.canonical,
            ingress_use_waypoint: wire.ingress_use_waypoint,
            visibility: match wire_workload::service::Visibility::try_from(wire.visibility) {
                Ok(wire_workload::service::Visibility::Namespace) => Visibility::Namespace,
                Ok(wire_workload::service::Visibility::Public) | Err(_) => Visibility::Public,
            },
            limits: Limits::of(&wire.extensions)?,
        })
    }
}

impl TryFrom<&wire_workload::NetworkAddress> for NetworkAddress {
    type Error = Fault;

    fn try_from(wire: &wire_workload::NetworkAddress) -> Result<Self, Fault> {
        let net = match wire.length {
            Some(length) => wire::cidr(&wire.address, length)?,
            None => wire::ip(&wire.address)?.into(),
        };
        Ok(Self { network: wire.network.as_str().into(), net })
    }
}

fn weighted_waypoints(
    wire: &[wire_workload::WeightedWaypoint],
) -> Result<Box<[WeightedWaypoint]>, DecodeError> {
    let decode = |(index, one): (usize, &wire_workload::WeightedWaypoint)| {
        let at = format!("weighted_waypoints[{index}]");
        let Some(gateway) = &one.destination else {
            return Err(DecodeError::new("destination", Fault::Unset).within(at));
        };
        let gateway = GatewayAddress::try_from(gateway)
            .map_err(|error| error.within("destination").within(at))?;
        Ok(WeightedWaypoint { gateway, weight: one.weight })
    };
    wire.iter().enumerate().map(decode).collect()
}

fn load_balancing(wire: &wire_workload::LoadBalancing) -> Result<LoadBalancing, DecodeError> {
    let mode = match load_balancing::Mode::try_from(wire.mode) {
        Ok(load_balancing::Mode::UnspecifiedMode) => LoadBalancingMode::Any,
        Ok(load_balancing::Mode::Strict) => LoadBalancingMode::Strict,
        Ok(load_balancing::Mode::Failover) => LoadBalancingMode::Failover,
        Ok(load_balancing::Mode::Passthrough) => LoadBalancingMode::Passthrough,
        Err(_) => return Err(DecodeError::new("mode", Fault::EnumValue { found: wire.mode })),
    };
    let health_policy = match load_balancing::HealthPolicy::try_from(wire.health_policy) {
        Ok(load_balancing::HealthPolicy::OnlyHealthy) => HealthPolicy::OnlyHealthy,
        Ok(load_balancing::HealthPolicy::AllowAll) => HealthPolicy::AllowAll,
        Err(_) => {
            let fault = Fault::EnumValue { found: wire.health_policy };
            return Err(DecodeError::new("health_policy", fault));
        }
    };
    let preferences = wire::each("routing_preference", &wire.routing_preference, routing_scope)?;
    Ok(LoadBalancing { preferences, mode, health_policy })
}

fn routing_scope(wire: &i32) -> Result<RoutingScope, Fault> {
    match load_balancing::Scope::try_from(*wire) {
        Ok(load_balancing::Scope::Region) => Ok(RoutingScope::Region),
        Ok(load_balancing::Scope::Zone) => Ok(RoutingScope::Zone),
        Ok(load_balancing::Scope::Subzone) => Ok(RoutingScope::Subzone),
        Ok(load_balancing::Scope::Node) => Ok(RoutingScope::Node),
        Ok(load_balancing::Scope::Cluster) => Ok(RoutingScope::Cluster),
        Ok(load_balancing::Scope::Network) => Ok(RoutingScope::Network),
        Ok(load_balancing::Scope::UnspecifiedScope) | Err(_) => {
            Err(Fault::EnumValue { found: *wire })
        }
    }
}

fn ip_families(wire: i32) -> Result<IpFamilies, DecodeError> {
    match wire_workload::IpFamilies::try_from(wire) {
        Ok(wire_workload::IpFamilies::Automatic | wire_workload::IpFamilies::Dual) => {
            Ok(IpFamilies::Any)
        }
        Ok(wire_workload::IpFamilies::Ipv4Only) => Ok(IpFamilies::Ipv4),
        Ok(wire_workload::IpFamilies::Ipv6Only) => Ok(IpFamilies::Ipv6),
        Err(_) => Err(DecodeError::new("ip_families", Fault::EnumValue { found: wire })),
    }
}
