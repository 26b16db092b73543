//! Services as the dump shows them, with their endpoints.

use std::{collections::BTreeMap, num::NonZeroU16};

use mesh::store::{
    self, HealthPolicy, IpFamilies, LoadBalancingMode, Port, RoutingScope, Snapshot, Visibility,
};
use serde::Serialize;

use super::{
    is_false,
    workloads::{Gateway, status},
};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Service<'a> {
    name: &'a str,
    namespace: &'a str,
    hostname: &'a str,
    vips: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cidr_vips: Vec<CidrVip<'a>>,
    ports: BTreeMap<u16, u16>,
    endpoints: BTreeMap<&'a str, Endpoint<'a>>,
    subject_alt_names: &'a [Box<str>],
    #[serde(skip_serializing_if = "Option::is_none")]
    waypoint: Option<Gateway>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    weighted_waypoints: Vec<WeightedWaypoint>,
    #[serde(skip_serializing_if = "Option::is_none")]
    load_balancer: Option<LoadBalancer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip_families: Option<&'static str>,
    #[serde(skip_serializing_if = "is_false")]
    canonical: bool,
    visibility: &'static str,
}

#[derive(Serialize)]
struct CidrVip<'a> {
    network: &'a str,
    cidr: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Endpoint<'a> {
    workload_uid: &'a str,
    port: BTreeMap<u16, u16>,
    status: &'static str,
}

#[derive(Serialize)]
struct WeightedWaypoint {
    #[serde(flatten)]
    gateway: Gateway,
    weight: u32,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct LoadBalancer {
    routing_preferences: Vec<&'static str>,
    mode: &'static str,
    health_policy: &'static str,
}

impl<'a> Service<'a> {
    pub(super) fn of(service: &'a store::Service, snapshot: &'a Snapshot) -> Self {
        let (exact, cidrs): (Vec<_>, Vec<_>) = service
            .addresses
            .iter()
            .partition(|address| address.net.prefix_len() == address.net.max_prefix_len());
        let vip =
            |address: &store::NetworkAddress| format!("{}/{}", address.network, address.net.addr());
        let weighted = &service.weighted_waypoints;
        Self {
            name: &service.name,
            namespace: &service.namespace,
            hostname: &service.hostname,
            vips: exact.into_iter().map(vip).collect(),
            cidr_vips: cidrs.into_iter().map(CidrVip::of).collect(),
            ports: ports(&service.ports),
            endpoints: endpoints(service, snapshot),
            subject_alt_names: &service.subject_alt_names,
            waypoint: service.waypoint.as_ref().map(Gateway::of),
            weighted_waypoints: weighted.iter().map(WeightedWaypoint::of).collect(),
            load_balancer: LoadBalancer::of(&service.load_balancing),
            ip_families: match service.ip_families {
                IpFamilies::Any => None,
                IpFamilies::Ipv4 => Some("IPv4"),
                IpFamilies::Ipv6 => Some("IPv6"),
            },
            canonical: service.canonical,
            visibility: match service.visibility {
                Visibility::Public => "Public",
                Visibility::Namespace => "Namespace",
            },
        }
    }
}

impl<'a> CidrVip<'a> {
    fn of(address: &'a store::NetworkAddress) -> Self {
        Self { network: &address.network, cidr: address.net.to_string() }
    }
}

impl WeightedWaypoint {
    fn of(waypoint: &store::WeightedWaypoint) -> Self {
        Self { gateway: Gateway::of(&waypoint.gateway), weight: waypoint.weight }
    }
}

impl LoadBalancer {
    /// None if everything is as it is without one.
    fn of(balancing: &store::LoadBalancing) -> Option<Self> {
        let mode = match balancing.mode {
            LoadBalancingMode::Any => "Standard",
            LoadBalancingMode::Strict => "Strict",
            LoadBalancingMode::Failover => "Failover",
            LoadBalancingMode::Passthrough => "Passthrough",
        };
        let health_policy = match balancing.health_policy {
            HealthPolicy::OnlyHealthy => "OnlyHealthy",
            HealthPolicy::AllowAll => "AllowAll",
        };
        let preferences = &balancing.preferences;
        let plain = balancing.mode == LoadBalancingMode::Any
            && balancing.health_policy == HealthPolicy::OnlyHealthy
            && preferences.is_empty();
        let routing_preferences = preferences.iter().map(|scope| scope_name(*scope)).collect();
        (!plain).then_some(Self { routing_preferences, mode, health_policy })
    }
}

fn endpoints<'a>(
    service: &store::Service,
    snapshot: &'a Snapshot,
) -> BTreeMap<&'a str, Endpoint<'a>> {
    let mut shown = BTreeMap::new();
    for workload in snapshot.endpoints(service).into_iter().flat_map(|members| members.iter()) {
        let membership = workload.membership(&service.key);
        let endpoint = Endpoint {
            workload_uid: &workload.uid,
            port: membership.map(|member| ports(&member.ports)).unwrap_or_default(),
            status: status(workload.health),
        };
        shown.insert(&*workload.uid, endpoint);
    }
    shown
}

/// Service port to target port; 0 where each endpoint has its own.
fn ports(ports: &[Port]) -> BTreeMap<u16, u16> {
    ports.iter().map(|port| (port.service, port.target.map_or(0, NonZeroU16::get))).collect()
}

fn scope_name(scope: RoutingScope) -> &'static str {
    match scope {
        RoutingScope::Region => "Region",
        RoutingScope::Zone => "Zone",
        RoutingScope::Subzone => "Subzone",
        RoutingScope::Node => "Node",
        RoutingScope::Cluster => "Cluster",
        RoutingScope::Network => "Network",
    }
}
