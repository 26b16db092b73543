//! Services, and which of a pod's ports they lead to.

use std::{collections::HashMap, sync::Arc};

use proto::workload::{
    self, AppProtocol, IpFamilies, LoadBalancing, NetworkAddress, Port, PortList,
    load_balancing::{HealthPolicy, Mode, Scope},
};

use super::{MeshConfig, attachment::Waypoints, registry::Protocol, selector::Selectors};
use crate::manifests::{
    EndpointSlice, Labels, Manifests, Object, Pod, Service, ServiceKind, SlicePort, TargetPort,
};

const TRAFFIC_DISTRIBUTION: &str = "networking.istio.io/traffic-distribution";

/// Namespace and name.
type Name<'a> = (&'a str, &'a str);
/// A slice with the Service it belongs to.
type Slice<'a> = (&'a Object<Service>, &'a EndpointSlice);

/// The Services of a folder, ready to be asked.
pub(crate) struct Services<'a> {
    config: &'a MeshConfig,
    waypoints: &'a Waypoints<'a>,
    all: Vec<&'a Object<Service>>,
    by_name: HashMap<Name<'a>, &'a Object<Service>>,
    selectors: Selectors<&'a Object<Service>>,
    /// Slices of services without a selector, by the pods they name.
    by_pod: HashMap<Name<'a>, Vec<Slice<'a>>>,
    /// Namespaces' own annotation.
    distribution: HashMap<&'a str, &'a str>,
}

impl<'a> Services<'a> {
    pub(crate) fn of(
        manifests: &'a Manifests,
        config: &'a MeshConfig,
        waypoints: &'a Waypoints<'a>,
    ) -> Self {
        let services = manifests.services.iter().map(Arc::as_ref);
        let all: Vec<_> =
            services.filter(|service| service.spec.kind == ServiceKind::Cluster).collect();
        let by_name: HashMap<_, _> =
            all.iter().map(|svc| ((&*svc.meta.namespace, &*svc.meta.name), *svc)).collect();
        let selectors = all.iter().map(|svc| (&*svc.meta.namespace, &svc.spec.selector, *svc));
        let selectors = Selectors::new(selectors);
        let mut by_pod: HashMap<_, Vec<_>> = HashMap::new();
        for slice in &manifests.endpoint_slices {
            let service = slice.spec.service.as_deref();
            let service = service.and_then(|name| by_name.get(&(&*slice.meta.namespace, name)));
            let Some(service) = service.filter(|svc| svc.spec.selector.is_empty()) else {
                continue;
            };
            for (namespace, name) in slice.spec.endpoints.iter().filter_map(|e| e.pod.as_ref()) {
                by_pod.entry((&**namespace, &**name)).or_default().push((*service, &slice.spec));
            }
        }
        let distribution = manifests.namespaces.iter().filter_map(|namespace| {
            let value = namespace.meta.annotations.get(TRAFFIC_DISTRIBUTION)?;
            Some((&*namespace.meta.name, value.as_str()))
        });
        let distribution = distribution.collect();
        Self { config, waypoints, all, by_name, selectors, by_pod, distribution }
    }

    /// The messages, in no order.
    pub(crate) fn compile(&self) -> impl Iterator<Item = workload::Service> {
        self.all.iter().map(|service| self.service(service))
    }

    /// The Service of that name, if it is one with addresses or endpoints.
    pub(crate) fn find(&self, namespace: &str, name: &str) -> Option<&'a Object<Service>> {
        self.by_name.get(&(namespace, name)).copied()
    }

    /// `namespace/hostname`, as workloads and xDS name a Service.
    pub(crate) fn key(&self, service: &Object<Service>) -> String {
        format!("{}/{}", service.meta.namespace, self.hostname(service))
    }

    fn hostname(&self, service: &Object<Service>) -> String {
        let meta = &service.meta;
        format!("{}.{}.svc.{}", meta.name, meta.namespace, self.config.cluster_domain)
    }

    /// The Services that lead to a pod, with the ports they lead to.
    pub(crate) fn leading_to<'b>(
        &'b self,
        namespace: &'b str,
        name: &'b str,
        labels: &'b Labels,
        pod: &'b Pod,
    ) -> impl Iterator<Item = (String, PortList)> + 'b {
        let selecting = self.selectors.matching(namespace, labels);
        let selecting = selecting.map(|service| (self.key(service), pod_ports(&service.spec, pod)));
        let naming = self.by_pod.get(&(namespace, name)).into_iter().flatten();
        let naming = naming
            .map(|(service, slice)| (self.key(service), slice_ports(&service.spec, &slice.ports)));
        selecting.chain(naming)
    }

    fn service(&self, service: &Object<Service>) -> workload::Service {
        let spec = &service.spec;
        let addresses = spec.addresses.iter().map(|ip| NetworkAddress {
            network: self.config.network.clone(),
            address: super::workload::octets(*ip),
            length: None,
        });
        let ports = spec.ports.iter().map(|port| Port {
            service_port: port.port.get().into(),
            target_port: match &port.target {
                TargetPort::Number(number) => number.get().into(),
                // Differs from pod to pod: stands in each workload.
                TargetPort::Name(_) => 0,
            },
            app_protocol: Protocol::of_port(port).for_daemons().into(),
        });
        workload::Service {
            name: service.meta.name.to_string(),
            namespace: service.meta.namespace.to_string(),
            hostname: self.hostname(service),
            addresses: addresses.collect(),
            ports: ports.collect(),
            waypoint: self.waypoints.of_service(&service.meta, spec),
            load_balancing: self.load_balancing(service),
            ip_families: ip_families(spec).into(),
            canonical: true,
            extensions: spec.limits.extension().into_iter().collect(),
            ..workload::Service::default()
        }
    }

    fn load_balancing(&self, service: &Object<Service>) -> Option<LoadBalancing> {
        let spec = &service.spec;
        let (scopes, mode): (&[Scope], _) = if spec.node_local {
            (&[Scope::Node], Mode::Strict)
        } else {
            let annotated = service.meta.annotations.get(TRAFFIC_DISTRIBUTION).map(String::as_str);
            let inherited = || self.distribution.get(&*service.meta.namespace).copied();
            let wanted = spec.traffic_distribution.as_deref().or(annotated).or_else(inherited);
            match wanted {
                Some("PreferClose" | "PreferSameZone") => {
                    (&[Scope::Network, Scope::Region, Scope::Zone], Mode::Failover)
                }
                Some("PreferSameNode") => (
                    &[Scope::Network, Scope::Region, Scope::Zone, Scope::Subzone, Scope::Node],
                    Mode::Failover,
                ),
                // `Any` cancels what is inherited; what is not known prefers nothing.
                Some(_) | None => (&[], Mode::UnspecifiedMode),
            }
        };
        let health =
            if spec.publish_not_ready { HealthPolicy::AllowAll } else { HealthPolicy::OnlyHealthy };
        let balancing = LoadBalancing {
            routing_preference: scopes.iter().map(|scope| i32::from(*scope)).collect(),
            mode: mode.into(),
            health_policy: health.into(),
        };
        (balancing != LoadBalancing::default()).then_some(balancing)
    }
}

fn ip_families(spec: &Service) -> IpFamilies {
    let has = |name: &str, of_address: fn(&std::net::IpAddr) -> bool| {
        spec.ip_families.iter().any(|family| family == name)
            || spec.ip_families.is_empty() && spec.addresses.iter().any(of_address)
    };
    match (has("IPv4", std::net::IpAddr::is_ipv4), has("IPv6", std::net::IpAddr::is_ipv6)) {
        (true, true) => IpFamilies::Dual,
        (true, false) => IpFamilies::Ipv4Only,
        (false, true) => IpFamilies::Ipv6Only,
        // An API server would have written its cluster's first family; here any of the pods' is fine.
        (false, false) => IpFamilies::Automatic,
    }
}

/// Where a Service's ports lead in one pod; a port whose name the pod does not have leads nowhere.
fn pod_ports(service: &Service, pod: &Pod) -> PortList {
    let ports = service.ports.iter().filter_map(|port| {
        let target = match &port.target {
            TargetPort::Number(number) => number.get(),
            TargetPort::Name(name) => pod
                .named_ports
                .iter()
                .find(|(named, _)| named == name)
                .map(|(_, number)| *number)?,
        };
        Some(port_pair(port.port.get(), target))
    });
    PortList { ports: ports.collect() }
}

/// Where a Service's ports lead according to a slice, which names them.
pub(crate) fn slice_ports(service: &Service, slice: &[SlicePort]) -> PortList {
    let ports = slice.iter().filter(|port| port.tcp).filter_map(|port| {
        let of_service = service.ports.iter().find(|candidate| candidate.name == port.name)?;
        Some(port_pair(of_service.port.get(), port.port))
    });
    PortList { ports: ports.collect() }
}

fn port_pair(service_port: u16, target_port: u16) -> Port {
    let app_protocol = AppProtocol::Unknown.into();
    Port { service_port: service_port.into(), target_port: target_port.into(), app_protocol }
}
