//! Kubernetes' own kinds, reduced to what the mesh needs of them.
//!
//! In: a decoded object. Out: a small struct whose addresses and ports are parsed, and problems for those that cannot
//! be. A Pod of Kubernetes takes kilobytes, and a folder may hold a hundred thousand.

use std::{collections::BTreeMap, fmt, net::IpAddr, num::NonZeroU16};

use k8s_openapi::{
    api::{core::v1, discovery::v1 as discovery},
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};

use mesh::store::Limits;

use super::{
    Labels,
    document::{DEFAULT_NAMESPACE, Report, is_dns_name},
    limits::{LimitsOf, limits},
    use_waypoint::check_use_waypoint,
};

/// What a Namespace says.
#[derive(Debug)]
pub struct Namespace {
    /// Limits for connections, of its pods that set none.
    pub limits: Limits,
}

/// What a Node says.
#[derive(Debug)]
pub struct Node {
    /// Its addresses, as its status has them.
    pub addresses: Vec<NodeAddress>,
}

/// An address of a Node.
#[derive(Debug, Eq, PartialEq)]
pub struct NodeAddress {
    /// `InternalIP`, `ExternalIP`, `Hostname` or the like.
    pub kind: Box<str>,
    /// The address.
    pub address: Box<str>,
}

/// What a ConfigMap holds.
#[derive(Debug, Default)]
pub struct ConfigMap {
    /// Texts by their names.
    pub data: Labels,
}

/// What a Secret holds. Never printed.
#[derive(Default)]
pub struct Secret {
    /// `type`, such as `kubernetes.io/tls`.
    pub kind: Box<str>,
    /// Bytes by their names.
    pub data: BTreeMap<String, Vec<u8>>,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.data.keys().collect();
        f.debug_struct("Secret").field("kind", &self.kind).field("data", &names).finish()
    }
}

/// What a Pod says.
#[derive(Debug)]
pub struct Pod {
    /// Its service account, `default` if none is named.
    pub service_account: Box<str>,
    /// The node it is scheduled on; empty before that.
    pub node: Box<str>,
    /// Its addresses; none before it started.
    pub addresses: Vec<IpAddr>,
    /// Whether it lives in its node's network namespace.
    pub host_network: bool,
    /// Whether it can take traffic.
    pub state: PodState,
    /// Its containers' ports that have a name.
    pub named_ports: Vec<(Box<str>, u16)>,
    /// Limits for connections to it and from it.
    pub limits: Limits,
}

/// Whether a Pod can take traffic.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PodState {
    /// Ready, and not about to end.
    Ready,
    /// Starting, or failing its probes.
    NotReady,
    /// About to end.
    Terminating,
    /// Succeeded or failed: its address may belong to another.
    Ended,
}

/// What a Service says.
#[derive(Debug)]
pub struct Service {
    /// What kind of Service it is.
    pub kind: ServiceKind,
    /// Its virtual addresses; none if it is headless.
    pub addresses: Vec<IpAddr>,
    /// `spec.ipFamilies`, as given.
    pub ip_families: Vec<String>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// Which pods are behind it; empty if its EndpointSlices are written by hand.
    pub selector: Labels,
    /// `spec.internalTrafficPolicy` is `Local`.
    pub node_local: bool,
    /// `spec.trafficDistribution`.
    pub traffic_distribution: Option<String>,
    /// `spec.publishNotReadyAddresses`.
    pub publish_not_ready: bool,
    /// Limits for connections to it.
    pub limits: Limits,
}

/// What kind of Service it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ServiceKind {
    /// It has a virtual address, or is headless.
    Cluster,
    /// Only a name for another host: `type: ExternalName`.
    ExternalName,
}

/// One port of a Service.
#[derive(Debug)]
pub struct ServicePort {
    /// Its name, empty if it has none.
    pub name: Box<str>,
    /// The port on the Service's address.
    pub port: NonZeroU16,
    /// The port on the pod.
    pub target: TargetPort,
    /// Whether it is UDP.
    pub udp: bool,
    /// `appProtocol`.
    pub app_protocol: Option<Box<str>>,
}

/// The port of a pod that a Service's port leads to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum TargetPort {
    /// The same on each pod.
    Number(NonZeroU16),
    /// Found by name in each pod.
    Name(Box<str>),
}

/// What an EndpointSlice says.
#[derive(Debug)]
pub struct EndpointSlice {
    /// The Service it belongs to.
    pub service: Option<Box<str>>,
    /// Its endpoints; none if their addresses are host names.
    pub endpoints: Vec<Endpoint>,
    /// Its ports.
    pub ports: Vec<SlicePort>,
}

/// One endpoint of a slice.
#[derive(Debug)]
pub struct Endpoint {
    /// Its addresses; the first one names it.
    pub addresses: Vec<IpAddr>,
    /// Whether it can take traffic.
    pub ready: bool,
    /// Whether it is about to end.
    pub terminating: bool,
    /// The pod it is, as (namespace, name).
    pub pod: Option<(Box<str>, Box<str>)>,
}

/// One port of a slice.
#[derive(Debug)]
pub struct SlicePort {
    /// The name of the Service's port.
    pub name: Box<str>,
    /// The port on the endpoint.
    pub port: u16,
    /// Whether it is TCP.
    pub tcp: bool,
}

pub(crate) fn namespace(raw: v1::Namespace, report: &mut Report<'_>) -> Namespace {
    check_use_waypoint(&raw.metadata, report);
    let limits = limits(&raw.metadata, LimitsOf::Namespace, report);
    Namespace { limits }
}

pub(crate) fn node(raw: v1::Node) -> Node {
    let addresses = raw.status.and_then(|status| status.addresses).unwrap_or_default().into_iter();
    let addresses =
        addresses.map(|one| NodeAddress { kind: one.type_.into(), address: one.address.into() });
    Node { addresses: addresses.collect() }
}

pub(crate) fn config_map(raw: v1::ConfigMap) -> ConfigMap {
    ConfigMap { data: raw.data.unwrap_or_default() }
}

pub(crate) fn secret(raw: v1::Secret) -> Secret {
    let mut data: BTreeMap<_, _> =
        raw.data.unwrap_or_default().into_iter().map(|(name, bytes)| (name, bytes.0)).collect();
    let texts = raw.string_data.unwrap_or_default().into_iter();
    data.extend(texts.map(|(name, text)| (name, text.into_bytes())));
    Secret { kind: raw.type_.unwrap_or_default().into(), data }
}

pub(crate) fn pod(raw: v1::Pod, report: &mut Report<'_>) -> Option<Pod> {
    let Some(spec) = raw.spec else {
        report.error("spec", "missing");
        return None;
    };
    let status = raw.status.unwrap_or_default();
    let terminating = raw.metadata.deletion_timestamp.is_some();
    let state = pod_state(&status, terminating);
    check_use_waypoint(&raw.metadata, report);
    let limits = limits(&raw.metadata, LimitsOf::Pod, report);
    let mut named_ports = Vec::new();
    for (c, container) in spec.containers.iter().enumerate() {
        for (p, port) in container.ports.iter().flatten().enumerate() {
            let field = format!("spec.containers[{c}].ports[{p}].containerPort");
            let number = port_number(port.container_port, &field, report);
            if let (Some(name), Some(number)) = (&port.name, number) {
                named_ports.push((name.as_str().into(), number.get()));
            }
        }
    }
    // As the API server, which takes an empty name for none.
    let account = spec.service_account_name.as_deref().filter(|name| !name.is_empty());
    let service_account = account.unwrap_or("default");
    if !is_dns_name(service_account) {
        report.error("spec.serviceAccountName", format!("`{service_account}` is no DNS name"));
    }
    Some(Pod {
        service_account: service_account.into(),
        node: spec.node_name.unwrap_or_default().into(),
        addresses: pod_addresses(&status, report),
        host_network: spec.host_network.unwrap_or_default(),
        state,
        named_ports,
        limits,
    })
}

fn pod_state(status: &v1::PodStatus, terminating: bool) -> PodState {
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return PodState::Ended;
    }
    // A pod written by hand may have no conditions: nobody probes it, and it is taken as it is. The kubelet always
    // writes them.
    let ready = match &status.conditions {
        Some(conditions) => conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True"),
        None => status.phase.as_deref().is_none_or(|phase| phase == "Running"),
    };
    match (ready, terminating) {
        (_, true) => PodState::Terminating,
        (true, false) => PodState::Ready,
        (false, false) => PodState::NotReady,
    }
}

fn pod_addresses(status: &v1::PodStatus, report: &mut Report<'_>) -> Vec<IpAddr> {
    let several: Vec<_> = status.pod_ips.iter().flatten().collect();
    if several.is_empty() {
        let single = status.pod_ip.as_deref().filter(|ip| !ip.is_empty());
        return single.and_then(|ip| address(ip, "status.podIP", report)).into_iter().collect();
    }
    if let Some(first) = &status.pod_ip
        && *first != several[0].ip
    {
        report.error(
            "status.podIP",
            format!("`{first}` is not the first of podIPs, `{}`", several[0].ip),
        );
    }
    let several = several.iter().enumerate();
    several
        .filter_map(|(i, ip)| address(&ip.ip, &format!("status.podIPs[{i}].ip"), report))
        .collect()
}

pub(crate) fn service(raw: v1::Service, report: &mut Report<'_>) -> Option<Service> {
    let Some(spec) = raw.spec else {
        report.error("spec", "missing");
        return None;
    };
    let kind = match spec.type_.as_deref() {
        None | Some("ClusterIP" | "NodePort" | "LoadBalancer") => ServiceKind::Cluster,
        Some("ExternalName") => ServiceKind::ExternalName,
        Some(other) => {
            report.error(
                "spec.type",
                format!("`{other}` is none of ClusterIP, NodePort, LoadBalancer, ExternalName"),
            );
            return None;
        }
    };
    let raw_ports = spec.ports.as_deref().unwrap_or_default();
    let headless = spec.cluster_ip.as_deref() == Some("None");
    if raw_ports.is_empty() && kind == ServiceKind::Cluster && !headless {
        report.error("spec.ports", "a service with an address needs at least one port");
    }
    check_use_waypoint(&raw.metadata, report);
    let limits = limits(&raw.metadata, LimitsOf::Service, report);
    Some(Service {
        kind,
        addresses: service_addresses(&spec, report),
        ip_families: spec.ip_families.clone().unwrap_or_default(),
        ports: service_ports(raw_ports, report),
        selector: spec.selector.unwrap_or_default(),
        node_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
        traffic_distribution: spec.traffic_distribution,
        publish_not_ready: spec.publish_not_ready_addresses.unwrap_or_default(),
        limits,
    })
}

fn service_addresses(spec: &v1::ServiceSpec, report: &mut Report<'_>) -> Vec<IpAddr> {
    let single = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty());
    let several = spec.cluster_ips.as_deref().unwrap_or_default();
    if let (Some(single), Some(first)) = (single, several.first())
        && single != first
    {
        report.error(
            "spec.clusterIP",
            format!("`{single}` is not the first of clusterIPs, `{first}`"),
        );
    }
    let named: Vec<(String, &str)> = if several.is_empty() {
        single.map(|ip| ("spec.clusterIP".to_owned(), ip)).into_iter().collect()
    } else {
        let several = several.iter().enumerate();
        several.map(|(i, ip)| (format!("spec.clusterIPs[{i}]"), ip.as_str())).collect()
    };
    let named = named.into_iter().filter(|(_, ip)| *ip != "None");
    named.filter_map(|(field, ip)| address(ip, &field, report)).collect()
}

fn service_ports(raw: &[v1::ServicePort], report: &mut Report<'_>) -> Vec<ServicePort> {
    let mut ports: Vec<ServicePort> = Vec::with_capacity(raw.len());
    for (i, raw_port) in raw.iter().enumerate() {
        let field = format!("spec.ports[{i}]");
        let udp = match raw_port.protocol.as_deref() {
            None | Some("TCP" | "SCTP") => false,
            Some("UDP") => true,
            Some(other) => {
                report.error(
                    &format!("{field}.protocol"),
                    format!("`{other}` is none of TCP, UDP, SCTP"),
                );
                continue;
            }
        };
        let Some(port) = port_number(raw_port.port, &format!("{field}.port"), report) else {
            continue;
        };
        let Some(target) = target_port(raw_port, port, &field, report) else { continue };
        let name = raw_port.name.as_deref().unwrap_or_default();
        if name.is_empty() && raw.len() > 1 {
            report.error(
                &format!("{field}.name"),
                "missing: every port of a service with several has a name",
            );
        }
        if ports.iter().any(|other| other.port == port && other.udp == udp) {
            report.error(&format!("{field}.port"), format!("{port} is there twice"));
        }
        if !name.is_empty() && ports.iter().any(|other| *other.name == *name) {
            report.error(&format!("{field}.name"), format!("`{name}` is there twice"));
        }
        let app_protocol = raw_port.app_protocol.as_deref().map(Into::into);
        ports.push(ServicePort { name: name.into(), port, target, udp, app_protocol });
    }
    ports
}

fn target_port(
    raw: &v1::ServicePort,
    port: NonZeroU16,
    field: &str,
    report: &mut Report<'_>,
) -> Option<TargetPort> {
    let field = format!("{field}.targetPort");
    match &raw.target_port {
        None | Some(IntOrString::Int(0)) => Some(TargetPort::Number(port)),
        Some(IntOrString::Int(number)) => {
            port_number(*number, &field, report).map(TargetPort::Number)
        }
        Some(IntOrString::String(name)) if name.is_empty() => {
            report.error(&field, "empty");
            None
        }
        Some(IntOrString::String(name)) => Some(TargetPort::Name(name.as_str().into())),
    }
}

pub(crate) fn endpoint_slice(
    raw: discovery::EndpointSlice,
    report: &mut Report<'_>,
) -> Option<EndpointSlice> {
    let is_address = match raw.address_type.as_str() {
        "IPv4" | "IPv6" => true,
        "FQDN" => false,
        other => {
            report.error("addressType", format!("`{other}` is none of IPv4, IPv6, FQDN"));
            return None;
        }
    };
    let service =
        raw.metadata.labels.as_ref().and_then(|labels| labels.get("kubernetes.io/service-name"));
    if service.is_none() {
        report.warning(
            "metadata.labels",
            "no label kubernetes.io/service-name: the slice belongs to no service",
        );
    }
    let mut endpoints = Vec::new();
    for (i, endpoint) in raw.endpoints.iter().enumerate().filter(|_| is_address) {
        let mut addresses = Vec::with_capacity(endpoint.addresses.len());
        for (a, text) in endpoint.addresses.iter().enumerate() {
            let field = format!("endpoints[{i}].addresses[{a}]");
            let Some(ip) = address(text, &field, report) else { continue };
            if ip.is_ipv4() == (raw.address_type == "IPv4") {
                addresses.push(ip);
            } else {
                report.error(&field, format!("{ip} is not of type {}", raw.address_type));
            }
        }
        let namespace = namespace_of(&raw.metadata);
        let pod =
            endpoint.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod"));
        let pod = pod.and_then(|target| {
            Some((
                target.namespace.as_deref().unwrap_or(namespace).into(),
                target.name.as_deref()?.into(),
            ))
        });
        let conditions = endpoint.conditions.as_ref();
        let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
        let terminating = conditions.and_then(|c| c.terminating).unwrap_or_default();
        endpoints.push(Endpoint { addresses, ready, terminating, pod });
    }
    let ports = raw.ports.iter().flatten().enumerate();
    let ports = ports.filter_map(|(i, port)| {
        Some(SlicePort {
            name: port.name.as_deref().unwrap_or_default().into(),
            port: port_number(port.port?, &format!("ports[{i}].port"), report)?.get(),
            tcp: port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP"),
        })
    });
    Some(EndpointSlice {
        service: service.map(|name| name.as_str().into()),
        endpoints,
        ports: ports.collect(),
    })
}

fn port_number(number: i32, field: &str, report: &mut Report<'_>) -> Option<NonZeroU16> {
    let port = u16::try_from(number).ok().and_then(NonZeroU16::new);
    if port.is_none() {
        report.error(field, format!("{number} is no port (1 to 65535)"));
    }
    port
}

fn address(text: &str, field: &str, report: &mut Report<'_>) -> Option<IpAddr> {
    let ip = text.parse().ok();
    if ip.is_none() {
        report.error(field, format!("`{text}` is no IP address"));
    }
    ip
}

fn namespace_of(metadata: &ObjectMeta) -> &str {
    metadata.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE)
}
