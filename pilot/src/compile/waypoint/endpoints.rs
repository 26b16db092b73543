//! What is behind a cluster.
//!
//! In: the endpoints of a host, and who asks. Out: assignments: the endpoints of one port and subset by locality,
//! those of the mesh as tunnels, those of other networks as tunnels through their gateways.

use std::{collections::BTreeMap, net::IpAddr};

use proto::{
    envoy::envoy::config::{
        core::v3::{Address, HealthStatus, Locality, Metadata},
        endpoint::v3::{
            ClusterLoadAssignment, Endpoint as EnvoyEndpoint, LbEndpoint, LocalityLbEndpoints,
            lb_endpoint::HostIdentifier,
        },
    },
    google::Struct,
};

use super::{
    Context, Role,
    clusters::{self, Destination, From, ORIGINAL_DST},
    destination_rule::Traffic,
    listeners::{CONNECT_ORIGINATE, FORWARD_INNER_CONNECT, INNER_CONNECT_ORIGINATE},
    locality::{Place, Preference},
    message::{
        host_port, internal_address, json_object, json_struct, json_text, number, socket_address,
    },
};
use crate::compile::registry::{Endpoint, Health, Member, Resolution};

/// The assignments of all clusters that ask for theirs.
pub(super) fn assignments(context: &Context<'_>) -> Vec<ClusterLoadAssignment> {
    let destinations = clusters::destinations(context);
    let asking = destinations.iter().filter(|to| to.host.resolution == Resolution::Endpoints);
    let assignments = asking.filter_map(|to| {
        let traffic = context.rules.traffic(to.host, to.port, to.subset, to.side());
        (!traffic.is_passthrough()).then(|| assignment(context, to, &traffic))
    });
    assignments.collect()
}

/// The endpoints of one cluster.
pub(super) fn assignment(
    context: &Context<'_>,
    to: &Destination<'_>,
    traffic: &Traffic<'_>,
) -> ClusterLoadAssignment {
    let mut localities: BTreeMap<[String; 3], Vec<Endpoint>> = BTreeMap::new();
    for endpoint in context.registry.endpoints(to.host) {
        if is_wanted(context, to, traffic, &endpoint) {
            let locality = &endpoint.locality;
            let key = [&locality.region, &locality.zone, &locality.subzone].map(String::clone);
            localities.entry(key).or_default().push(endpoint);
        }
    }
    let localities = localities
        .into_iter()
        .map(|(key, endpoints)| locality(context, to, key, &endpoints))
        .filter(|(locality, _)| !locality.lb_endpoints.is_empty());
    let preference = Preference::of(context, to.host, traffic);
    ClusterLoadAssignment {
        cluster_name: to.name(),
        endpoints: preference.apply(context.client, localities.collect()),
        ..ClusterLoadAssignment::default()
    }
}

fn is_wanted(
    context: &Context<'_>,
    to: &Destination<'_>,
    traffic: &Traffic<'_>,
    endpoint: &Endpoint,
) -> bool {
    let subset = context.rules.subset_labels(to.host, to.subset, to.side());
    let labels = endpoint.labels();
    let in_subset = subset.iter().all(|(key, value)| labels.get(key) == Some(value));
    let local = to.host.service().is_some_and(|service| service.node_local);
    let near = !local || *endpoint.node == *context.client.node;
    let threshold = traffic.outlier_detection.map_or(0, |outlier| outlier.min_health_percent);
    let usable = match health(to, endpoint) {
        Health::Healthy => true,
        // Envoy has to know of them where it counts them.
        Health::Unhealthy => threshold <= 0,
        Health::Terminating => false,
    };
    in_subset && near && usable
}

fn health(to: &Destination<'_>, endpoint: &Endpoint) -> Health {
    let all = to.host.service().is_some_and(|service| service.publish_not_ready);
    if all && endpoint.health == Health::Unhealthy { Health::Healthy } else { endpoint.health }
}

/// The endpoints of one locality: those that are reached directly, then those behind gateways.
fn locality(
    context: &Context<'_>,
    to: &Destination<'_>,
    [region, zone, sub_zone]: [String; 3],
    endpoints: &[Endpoint],
) -> (LocalityLbEndpoints, Vec<Place>) {
    let mut messages = Vec::new();
    let mut places = Vec::new();
    // A weight has to be divisible by the number of gateways it is spread over.
    let scale = endpoints.iter().map(|endpoint| context.gateways(&endpoint.network).len());
    let scale = scale.filter(|n| *n > 0).fold(1, lcm);
    let mut remote: BTreeMap<(IpAddr, u16), (u32, Place)> = BTreeMap::new();
    for endpoint in endpoints {
        let Some(port) = endpoint.target(to.port.number) else { continue };
        let weight = endpoint.weight.saturating_mul(scale);
        if context.is_near(endpoint) {
            for address in addresses(context, endpoint, port) {
                messages.push(near(context, to, endpoint, address, weight));
                places.push(Place::of(endpoint));
            }
            continue;
        }
        // What has come in from another network must not leave for a third, or back.
        if context.role == Role::EastWest {
            continue;
        }
        let gateways = context.gateways(&endpoint.network);
        let share = weight / u32::try_from(gateways.len()).unwrap_or(1).max(1);
        for gateway in gateways {
            let entry = remote.entry(*gateway).or_insert_with(|| (0, Place::of(endpoint)));
            entry.0 = entry.0.saturating_add(share);
        }
    }
    for ((ip, port), (weight, place)) in remote {
        messages.push(behind_gateway(context, to, host_port(ip, port), weight));
        places.push(place);
    }
    let total = messages.iter().filter_map(|message: &LbEndpoint| message.load_balancing_weight);
    let total = total.fold(0_u32, |total, weight| total.saturating_add(weight.value));
    let locality = LocalityLbEndpoints {
        locality: Some(Locality { region, zone, sub_zone }),
        lb_endpoints: messages,
        load_balancing_weight: Some(number(total)),
        ..LocalityLbEndpoints::default()
    };
    (locality, places)
}

fn lcm(a: u32, b: usize) -> u32 {
    let b = u32::try_from(b).unwrap_or(1);
    let (mut x, mut y) = (a, b);
    while y != 0 {
        (x, y) = (y, x % y);
    }
    (a / x).saturating_mul(b)
}

/// Where an endpoint is dialed: an address that the client can reach, or a name.
enum Dialed<'a> {
    Ip(IpAddr, u16),
    Name(&'a str, u16),
}

fn addresses<'a>(context: &Context<'_>, endpoint: &'a Endpoint, port: u16) -> Vec<Dialed<'a>> {
    let reached = endpoint.addresses.iter().filter(|ip| context.client.reaches(**ip));
    let ips = reached.map(|ip| Dialed::Ip(*ip, port));
    ips.chain(endpoint.hostname.iter().map(|name| Dialed::Name(name, port))).collect()
}

fn near(
    context: &Context<'_>,
    to: &Destination<'_>,
    endpoint: &Endpoint,
    address: Dialed<'_>,
    weight: u32,
) -> LbEndpoint {
    let workload = json_object([("workload", json_text(workload(context, endpoint)))]);
    let mut metadata = vec![("istio", workload)];
    let address = match address {
        Dialed::Ip(ip, port) if takes_tunnels(endpoint) => {
            let listener = match context.role {
                Role::Waypoint => CONNECT_ORIGINATE,
                Role::EastWest => FORWARD_INNER_CONNECT,
            };
            let local = host_port(ip, port);
            metadata.push((ORIGINAL_DST, json_object([("local", json_text(local.clone()))])));
            if to.from == From::Route {
                let tunnel = json_object([("tunnel", json_text("http"))]);
                metadata.push(("envoy.transport_socket_match", tunnel));
            }
            internal_address(listener, local)
        }
        Dialed::Ip(ip, port) => socket_address(ip, port),
        Dialed::Name(name, port) => socket_address(name, port),
    };
    let health_status = match endpoint.member {
        Member::Pod(_) | Member::Listed(..) | Member::Foreign(..) => match health(to, endpoint) {
            Health::Healthy => HealthStatus::Healthy,
            Health::Unhealthy => HealthStatus::Unhealthy,
            Health::Terminating => HealthStatus::Draining,
        },
        // Nobody looks after them.
        Member::Entry(_) | Member::Inline(..) | Member::Name(_) => HealthStatus::Unknown,
    };
    LbEndpoint { health_status: health_status.into(), ..lb_endpoint(address, weight, metadata) }
}

/// A waypoint takes tunnels itself, though no daemon does it for its pod.
fn takes_tunnels(endpoint: &Endpoint) -> bool {
    let managed = endpoint.labels().get("gateway.istio.io/managed");
    endpoint.tunnel || managed.is_some_and(|by| by == "istio.io-mesh-controller")
}

/// All endpoints behind one gateway, asked for by the service's name.
fn behind_gateway(
    context: &Context<'_>,
    to: &Destination<'_>,
    gateway: String,
    weight: u32,
) -> LbEndpoint {
    let target = format!("{}:{}", to.host.hostname, to.port.number);
    let target = json_object([("hbone_target_address", json_text(target))]);
    let nobody = format!(";;;;{}", context.config.cluster_id);
    let istio = [("double_hbone", json_struct(target)), ("workload", json_text(nobody))];
    let local = json_object([("local", json_text(gateway.clone()))]);
    let metadata = vec![(ORIGINAL_DST, local), ("istio", json_object(istio))];
    lb_endpoint(internal_address(INNER_CONNECT_ORIGINATE, gateway), weight, metadata)
}

fn lb_endpoint(address: Address, weight: u32, metadata: Vec<(&str, Struct)>) -> LbEndpoint {
    let metadata = metadata.into_iter().map(|(key, value)| (key.to_owned(), value));
    let endpoint = EnvoyEndpoint { address: Some(address), ..EnvoyEndpoint::default() };
    LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(endpoint)),
        load_balancing_weight: Some(number(weight)),
        metadata: Some(Metadata { filter_metadata: metadata.collect(), ..Metadata::default() }),
        ..LbEndpoint::default()
    }
}

/// What telemetry calls a workload: name, namespace, canonical name, revision (`latest` is left out) and cluster.
fn workload(context: &Context<'_>, endpoint: &Endpoint) -> String {
    let revision = match &*endpoint.canonical_revision {
        "latest" => "",
        revision => revision,
    };
    let cluster = &context.config.cluster_id;
    let namespace = &endpoint.namespace;
    // The endpoints that stand in an entry itself are told apart by their places.
    if let Member::Inline(entry, i) = &endpoint.member {
        let name = format!("{}-{i}", entry.meta.name);
        let canonical = match &*endpoint.canonical_name {
            of_entry if *of_entry == *entry.meta.name => &*name,
            own => own,
        };
        return format!("{name};{namespace};{canonical};{revision};{cluster}");
    }
    let (name, canonical) = (&endpoint.workload, &endpoint.canonical_name);
    format!("{name};{namespace};{canonical};{revision};{cluster}")
}
