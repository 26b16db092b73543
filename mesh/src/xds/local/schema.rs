//! The form of local configuration: that of the daemon's dump.
//!
//! In: a document. Out: the messages that a control plane would send for it, decoded as these are, so that what is wrong is
//! found in the same way.

use std::{collections::BTreeMap, net::IpAddr, str::FromStr};

use ipnet::IpNet;
use proto::{
    security::{self, string_match::MatchType},
    workload::{self as wire, gateway_address::Destination, load_balancing},
};
use serde::{Deserialize, Deserializer, de::Error};

use crate::{
    policy,
    store::{DecodeError, Update},
};

/// The whole document. Other keys of a dump are passed over.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Document {
    workloads: Vec<Workload>,
    services: Vec<Service>,
    policies: Vec<Policy>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Workload {
    workload_ips: Vec<IpAddr>,
    waypoint: Option<Gateway>,
    network_gateway: Option<Gateway>,
    protocol: Protocol,
    network_mode: NetworkMode,
    uid: String,
    name: String,
    namespace: String,
    trust_domain: String,
    service_account: String,
    network: String,
    workload_name: String,
    workload_type: WorkloadType,
    canonical_name: String,
    canonical_revision: String,
    hostname: String,
    node: String,
    native_tunnel: bool,
    application_tunnel: Option<ApplicationTunnel>,
    authorization_policies: Vec<String>,
    status: Status,
    cluster_id: String,
    locality: Locality,
    services: Memberships,
    capacity: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Service {
    name: String,
    namespace: String,
    hostname: String,
    vips: Vec<NetworkIp>,
    cidr_vips: Vec<CidrVip>,
    ports: BTreeMap<u32, u32>,
    endpoints: BTreeMap<String, Endpoint>,
    subject_alt_names: Vec<String>,
    waypoint: Option<Gateway>,
    weighted_waypoints: Vec<WeightedWaypoint>,
    load_balancer: LoadBalancer,
    ip_families: Families,
    canonical: bool,
    ingress_use_waypoint: bool,
    visibility: Visibility,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Policy {
    name: String,
    namespace: String,
    scope: Scope,
    action: Action,
    rules: Vec<Vec<Vec<Match>>>,
    dry_run: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct Match {
    namespaces: Vec<StringMatch>,
    not_namespaces: Vec<StringMatch>,
    service_accounts: Vec<ServiceAccount>,
    not_service_accounts: Vec<ServiceAccount>,
    principals: Vec<StringMatch>,
    not_principals: Vec<StringMatch>,
    source_ips: Vec<IpNet>,
    not_source_ips: Vec<IpNet>,
    destination_ips: Vec<IpNet>,
    not_destination_ips: Vec<IpNet>,
    destination_ports: Vec<u32>,
    not_destination_ports: Vec<u32>,
}

/// Names of a choice, and the number each has on the wire. The first is what is meant by nothing.
macro_rules! choices {
    ($( $name:ident { $( $variant:ident $word:literal = $number:expr, )+ } )+) => { $(
        #[derive(Clone, Copy, Debug, Default, Deserialize)]
        enum $name { #[default] $( #[serde(rename = $word)] $variant, )+ }

        impl $name {
            fn number(self) -> i32 {
                match self { $( Self::$variant => $number as i32, )+ }
            }
        }
    )+ };
}

choices! {
    Protocol {
        Tcp "TCP" = wire::TunnelProtocol::None,
        Hbone "HBONE" = wire::TunnelProtocol::Hbone,
    }
    NetworkMode {
        Standard "Standard" = wire::NetworkMode::Standard,
        HostNetwork "HostNetwork" = wire::NetworkMode::HostNetwork,
    }
    WorkloadType {
        Deployment "deployment" = wire::WorkloadType::Deployment,
        CronJob "cronjob" = wire::WorkloadType::Cronjob,
        Pod "pod" = wire::WorkloadType::Pod,
        Job "job" = wire::WorkloadType::Job,
    }
    Status {
        Healthy "Healthy" = wire::WorkloadStatus::Healthy,
        Unhealthy "Unhealthy" = wire::WorkloadStatus::Unhealthy,
    }
    TunnelKind {
        None "NONE" = wire::application_tunnel::Protocol::None,
        Proxy "PROXY" = wire::application_tunnel::Protocol::Proxy,
    }
    RoutingScope {
        Unspecified "" = load_balancing::Scope::UnspecifiedScope,
        Region "Region" = load_balancing::Scope::Region,
        Zone "Zone" = load_balancing::Scope::Zone,
        Subzone "Subzone" = load_balancing::Scope::Subzone,
        Node "Node" = load_balancing::Scope::Node,
        Cluster "Cluster" = load_balancing::Scope::Cluster,
        Network "Network" = load_balancing::Scope::Network,
    }
    Mode {
        Standard "Standard" = load_balancing::Mode::UnspecifiedMode,
        Strict "Strict" = load_balancing::Mode::Strict,
        Failover "Failover" = load_balancing::Mode::Failover,
        Passthrough "Passthrough" = load_balancing::Mode::Passthrough,
    }
    HealthPolicy {
        OnlyHealthy "OnlyHealthy" = load_balancing::HealthPolicy::OnlyHealthy,
        AllowAll "AllowAll" = load_balancing::HealthPolicy::AllowAll,
    }
    Families {
        Automatic "Automatic" = wire::IpFamilies::Automatic,
        Ipv4 "IPv4" = wire::IpFamilies::Ipv4Only,
        Ipv6 "IPv6" = wire::IpFamilies::Ipv6Only,
        Dual "Dual" = wire::IpFamilies::Dual,
    }
    Visibility {
        Public "Public" = wire::service::Visibility::Public,
        Namespace "Namespace" = wire::service::Visibility::Namespace,
    }
    Scope {
        Global "Global" = security::Scope::Global,
        Namespace "Namespace" = security::Scope::Namespace,
        WorkloadSelector "WorkloadSelector" = security::Scope::WorkloadSelector,
    }
    Action {
        Allow "Allow" = security::Action::Allow,
        Deny "Deny" = security::Action::Deny,
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Gateway {
    destination: Target,
    #[serde(default)]
    hbone_mtls_port: u32,
}

/// `network/ip`, or `namespace/hostname`.
#[derive(Debug)]
enum Target {
    Address(NetworkIp),
    Host { namespace: String, hostname: String },
}

#[derive(Debug)]
struct NetworkIp {
    network: String,
    ip: IpAddr,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CidrVip {
    network: String,
    cidr: IpNet,
}

#[derive(Debug, Deserialize)]
struct Endpoint {
    #[serde(default)]
    port: BTreeMap<u32, u32>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct WeightedWaypoint {
    destination: Target,
    #[serde(default)]
    hbone_mtls_port: u32,
    weight: u32,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
struct LoadBalancer {
    routing_preferences: Vec<RoutingScope>,
    mode: Mode,
    health_policy: HealthPolicy,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ApplicationTunnel {
    protocol: TunnelKind,
    #[serde(default)]
    port: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Locality {
    region: String,
    zone: String,
    subzone: String,
}

/// Services by name: with this endpoint's ports, or as the service itself says.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Memberships {
    Named(Vec<String>),
    Ports(BTreeMap<String, BTreeMap<u32, u32>>),
}

impl Default for Memberships {
    fn default() -> Self {
        Self::Named(Vec::new())
    }
}

/// One of these; a mapping, which YAML's own form of such a choice is not.
#[derive(Debug, Deserialize)]
#[serde(try_from = "AnyStringMatch")]
enum StringMatch {
    Exact(String),
    Prefix(String),
    Suffix(String),
    Presence(Nothing),
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
struct AnyStringMatch {
    exact: Option<String>,
    prefix: Option<String>,
    suffix: Option<String>,
    presence: Option<Nothing>,
}

impl TryFrom<AnyStringMatch> for StringMatch {
    type Error = &'static str;

    fn try_from(any: AnyStringMatch) -> Result<Self, Self::Error> {
        match any {
            AnyStringMatch { exact: Some(text), prefix: None, suffix: None, presence: None } => {
                Ok(Self::Exact(text))
            }
            AnyStringMatch { exact: None, prefix: Some(text), suffix: None, presence: None } => {
                Ok(Self::Prefix(text))
            }
            AnyStringMatch { exact: None, prefix: None, suffix: Some(text), presence: None } => {
                Ok(Self::Suffix(text))
            }
            AnyStringMatch { exact: None, prefix: None, suffix: None, presence: Some(nothing) } => {
                Ok(Self::Presence(nothing))
            }
            AnyStringMatch { .. } => Err("must be one of Exact, Prefix, Suffix and Presence"),
        }
    }
}

/// An empty list or mapping, or nothing at all.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Nothing {
    Unit(()),
    List([(); 0]),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ServiceAccount {
    namespace: String,
    service_account: String,
}

impl Document {
    /// The updates, or which resource is wrong and how.
    pub(super) fn updates(self) -> Result<Vec<Update>, (String, DecodeError)> {
        let mut updates = Vec::new();
        let ports: BTreeMap<String, BTreeMap<u32, u32>> =
            self.services.iter().map(|service| (service.key(), service.ports.clone())).collect();
        let endpoints: BTreeMap<(String, String), BTreeMap<u32, u32>> = self
            .services
            .iter()
            .flat_map(|service| {
                let of = |(uid, endpoint): (&String, &Endpoint)| {
                    ((service.key(), uid.clone()), endpoint.port.clone())
                };
                service.endpoints.iter().map(of)
            })
            .collect();
        for (number, workload) in self.workloads.into_iter().enumerate() {
            let name = format!("workloads[{number}] ({})", workload.uid);
            let uid = workload.uid.clone();
            let wire = workload.wire(|service| {
                let own = endpoints.get(&(service.to_owned(), uid.clone()));
                own.or_else(|| ports.get(service)).cloned().unwrap_or_default()
            });
            updates.push(Update::Workload(wire.try_into().map_err(|error| (name, error))?));
        }
        for (number, service) in self.services.into_iter().enumerate() {
            let name = format!("services[{number}] ({})", service.key());
            let service = service.wire().try_into().map_err(|error| (name, error))?;
            updates.push(Update::Service(service));
        }
        for (number, policy) in self.policies.into_iter().enumerate() {
            let name = format!("policies[{number}] ({}/{})", policy.namespace, policy.name);
            let policy = policy::Policy::try_from(policy.wire()).map_err(|error| (name, error))?;
            updates.push(Update::Policy(policy));
        }
        Ok(updates)
    }
}

impl Workload {
    fn wire(self, ports_of: impl Fn(&str) -> BTreeMap<u32, u32>) -> wire::Workload {
        let services: BTreeMap<String, BTreeMap<u32, u32>> = match self.services {
            Memberships::Ports(services) => services,
            Memberships::Named(names) => {
                names.into_iter().map(|name| (name.clone(), ports_of(&name))).collect()
            }
        };
        let services =
            services.into_iter().map(|(name, own)| (name, wire::PortList { ports: ports(own) }));
        wire::Workload {
            uid: self.uid,
            name: self.name,
            namespace: self.namespace,
            addresses: self.workload_ips.into_iter().map(bytes).collect(),
            network: self.network,
            tunnel_protocol: self.protocol.number(),
            trust_domain: self.trust_domain,
            service_account: self.service_account,
            waypoint: self.waypoint.map(Gateway::wire),
            network_gateway: self.network_gateway.map(Gateway::wire),
            node: self.node,
            canonical_name: self.canonical_name,
            canonical_revision: self.canonical_revision,
            workload_type: self.workload_type.number(),
            workload_name: self.workload_name,
            native_tunnel: self.native_tunnel,
            authorization_policies: self.authorization_policies,
            status: self.status.number(),
            cluster_id: self.cluster_id,
            hostname: self.hostname,
            services: services.collect(),
            application_tunnel: self.application_tunnel.map(|tunnel| wire::ApplicationTunnel {
                protocol: tunnel.protocol.number(),
                port: tunnel.port.unwrap_or_default(),
            }),
            locality: Some(wire::Locality {
                region: self.locality.region,
                zone: self.locality.zone,
                subzone: self.locality.subzone,
            }),
            network_mode: self.network_mode.number(),
            capacity: self.capacity,
            ..Default::default()
        }
    }
}

impl Service {
    fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.hostname)
    }

    fn wire(self) -> wire::Service {
        let single = self.vips.into_iter().map(NetworkIp::wire);
        let prefixes = self.cidr_vips.into_iter().map(|vip| wire::NetworkAddress {
            network: vip.network,
            address: bytes(vip.cidr.addr()),
            length: Some(vip.cidr.prefix_len().into()),
        });
        let balancer = self.load_balancer;
        let preferences = balancer.routing_preferences.into_iter().map(RoutingScope::number);
        wire::Service {
            name: self.name,
            namespace: self.namespace,
            hostname: self.hostname,
            addresses: single.chain(prefixes).collect(),
            ports: ports(self.ports),
            subject_alt_names: self.subject_alt_names,
            waypoint: self.waypoint.map(Gateway::wire),
            weighted_waypoints: self
                .weighted_waypoints
                .into_iter()
                .map(|one| {
                    let WeightedWaypoint { destination, hbone_mtls_port, weight } = one;
                    let gateway = Gateway { destination, hbone_mtls_port }.wire();
                    wire::WeightedWaypoint { destination: Some(gateway), weight }
                })
                .collect(),
            load_balancing: Some(wire::LoadBalancing {
                routing_preference: preferences.collect(),
                mode: balancer.mode.number(),
                health_policy: balancer.health_policy.number(),
            }),
            ip_families: self.ip_families.number(),
            canonical: self.canonical,
            ingress_use_waypoint: self.ingress_use_waypoint,
            visibility: self.visibility.number(),
            ..Default::default()
        }
    }
}

impl Policy {
    fn wire(self) -> security::Authorization {
        let clause = |matches: Vec<Match>| security::Clause {
            matches: matches.into_iter().map(Match::wire).collect(),
        };
        let rule = |clauses: Vec<Vec<Match>>| security::Rule {
            clauses: clauses.into_iter().map(clause).collect(),
        };
        security::Authorization {
            name: self.name,
            namespace: self.namespace,
            scope: self.scope.number(),
            action: self.action.number(),
            rules: self.rules.into_iter().map(rule).collect(),
            dry_run: self.dry_run,
            ..Default::default()
        }
    }
}

impl Match {
    fn wire(self) -> security::Match {
        let strings = |all: Vec<StringMatch>| all.into_iter().map(StringMatch::wire).collect();
        let nets = |all: Vec<IpNet>| {
            let wire = |net: IpNet| security::Address {
                address: bytes(net.addr()),
                length: net.prefix_len().into(),
            };
            all.into_iter().map(wire).collect()
        };
        let accounts = |all: Vec<ServiceAccount>| {
            let wire = |one: ServiceAccount| security::ServiceAccountMatch {
                namespace: one.namespace,
                service_account: one.service_account,
            };
            all.into_iter().map(wire).collect()
        };
        security::Match {
            namespaces: strings(self.namespaces),
            not_namespaces: strings(self.not_namespaces),
            principals: strings(self.principals),
            not_principals: strings(self.not_principals),
            source_ips: nets(self.source_ips),
            not_source_ips: nets(self.not_source_ips),
            destination_ips: nets(self.destination_ips),
            not_destination_ips: nets(self.not_destination_ips),
            destination_ports: self.destination_ports,
            not_destination_ports: self.not_destination_ports,
            service_accounts: accounts(self.service_accounts),
            not_service_accounts: accounts(self.not_service_accounts),
            ..Default::default()
        }
    }
}

impl StringMatch {
    fn wire(self) -> security::StringMatch {
        let match_type = match self {
            Self::Exact(text) => MatchType::Exact(text),
            Self::Prefix(text) => MatchType::Prefix(text),
            Self::Suffix(text) => MatchType::Suffix(text),
            Self::Presence(Nothing::Unit(()) | Nothing::List([])) => MatchType::Presence(()),
        };
        security::StringMatch { match_type: Some(match_type) }
    }
}

impl Gateway {
    fn wire(self) -> wire::GatewayAddress {
        let destination = match self.destination {
            Target::Address(address) => Destination::Address(address.wire()),
            Target::Host { namespace, hostname } => {
                Destination::Hostname(wire::NamespacedHostname { namespace, hostname })
            }
        };
        let hbone_mtls_port = self.hbone_mtls_port;
        wire::GatewayAddress { destination: Some(destination), hbone_mtls_port }
    }
}

impl NetworkIp {
    fn wire(self) -> wire::NetworkAddress {
        wire::NetworkAddress { network: self.network, address: bytes(self.ip), length: None }
    }
}

impl FromStr for NetworkIp {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str = "expected network/ip, such as /10.0.0.1 where the network has no name";
        let (network, ip) = text.split_once('/').ok_or(FORM)?;
        Ok(Self { network: network.to_owned(), ip: ip.parse().map_err(|_| FORM)? })
    }
}

impl FromStr for Target {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(address) = text.parse() {
            return Ok(Self::Address(address));
        }
        let (namespace, hostname) =
            text.split_once('/').ok_or("expected namespace/hostname or network/ip")?;
        Ok(Self::Host { namespace: namespace.to_owned(), hostname: hostname.to_owned() })
    }
}

impl<'de> Deserialize<'de> for NetworkIp {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Target {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

fn bytes(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// Service port to target port; 0 where each endpoint has its own.
fn ports(ports: BTreeMap<u32, u32>) -> Vec<wire::Port> {
    let wire = |(service_port, target_port)| wire::Port {
        service_port,
        target_port,
        ..Default::default()
    };
    ports.into_iter().map(wire).collect()
}
