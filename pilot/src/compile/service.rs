//! Services, as daemons are told of them.
//!
//! In: a [`Host`] of the registry. Out: its message. Which endpoints it has stands in the workloads.

use ipnet::IpNet;
use proto::workload::{
    self, IpFamilies, LoadBalancing, NetworkAddress, Port,
    load_balancing::{HealthPolicy, Mode, Scope},
    service,
};

use super::{
    registry::{Host, Origin, Resolution, Visibility},
    workload::octets,
    world::World,
};
use crate::manifests::{Service, TargetPort};

const TRAFFIC_DISTRIBUTION: &str = "networking.istio.io/traffic-distribution";

impl World {
    /// The message of a service.
    pub(super) fn service(&self, host: &Host) -> workload::Service {
        let attachment = self.waypoints.of_host(host).ok().flatten();
        let ports = host.ports.iter().map(|port| Port {
            service_port: port.number.into(),
            target_port: match &port.target {
                TargetPort::Number(number) => number.get().into(),
                // Differs from pod to pod: stands in each workload.
                TargetPort::Name(_) => 0,
            },
            app_protocol: port.protocol.for_daemons().into(),
        });
        let visibility = match host.visibility {
            Visibility::Public | Visibility::Nobody => service::Visibility::Public,
            Visibility::Namespace => service::Visibility::Namespace,
        };
        let limits = host.service().and_then(|service| service.limits.extension());
        let (waypoint, ingress, weighted) = match attachment {
            Some(attached) => (Some(attached.reference), attached.ingress, attached.weighted),
            None => (None, false, Vec::new()),
        };
        workload::Service {
            name: host.meta.name.to_string(),
            namespace: host.meta.namespace.to_string(),
            hostname: host.hostname.to_string(),
            addresses: host.addresses.iter().map(|net| self.network_address(*net)).collect(),
            ports: ports.collect(),
            subject_alt_names: self.networks.subject_alt_names(host, &self.config),
            waypoint,
            load_balancing: self.load_balancing(host),
            ip_families: self.ip_families(host).into(),
            extensions: limits.into_iter().collect(),
            canonical: host.canonical,
            ingress_use_waypoint: ingress,
            weighted_waypoints: weighted,
            visibility: visibility.into(),
        }
    }

    fn network_address(&self, net: IpNet) -> NetworkAddress {
        let single = net.prefix_len() == net.max_prefix_len();
        NetworkAddress {
            network: self.registry.network().to_owned(),
            address: octets(net.addr()),
            length: (!single).then(|| net.prefix_len().into()),
        }
    }

    fn load_balancing(&self, host: &Host) -> Option<LoadBalancing> {
        if host.resolution == Resolution::Passthrough {
            return Some(LoadBalancing {
                routing_preference: Vec::new(),
                mode: Mode::Passthrough.into(),
                health_policy: HealthPolicy::AllowAll.into(),
            });
        }
        let service = host.service();
        let (scopes, mode): (&[Scope], _) = if service.is_some_and(|service| service.node_local) {
            (&[Scope::Node], Mode::Strict)
        } else {
            let stated = service.and_then(|service| service.traffic_distribution.as_deref());
            let annotated = host.meta.annotations.get(TRAFFIC_DISTRIBUTION).map(String::as_str);
            let inherited = || self.distribution.get(&*host.meta.namespace).map(|value| &**value);
            match stated.or(annotated).or_else(inherited) {
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
        let unready = service.is_some_and(|service| service.publish_not_ready);
        let health = if unready { HealthPolicy::AllowAll } else { HealthPolicy::OnlyHealthy };
        let balancing = LoadBalancing {
            routing_preference: scopes.iter().map(|scope| i32::from(*scope)).collect(),
            mode: mode.into(),
            health_policy: health.into(),
        };
        (balancing != LoadBalancing::default()).then_some(balancing)
    }

    fn ip_families(&self, host: &Host) -> IpFamilies {
        let Origin::Kubernetes(service) = &host.origin else { return IpFamilies::Automatic };
        match stated_families(&service.spec) {
            // The API server writes the first family of its cluster. A folder may not have been through one, and
            // any of the pods' addresses is fine if nothing tells which it would be.
            IpFamilies::Automatic => self.first_family,
            stated @ (IpFamilies::Ipv4Only | IpFamilies::Ipv6Only | IpFamilies::Dual) => stated,
        }
    }
}

fn stated_families(spec: &Service) -> IpFamilies {
    let has = |name: &str, of_address: fn(&std::net::IpAddr) -> bool| {
        spec.ip_families.iter().any(|family| family == name)
            || spec.ip_families.is_empty() && spec.addresses.iter().any(of_address)
    };
    match (has("IPv4", std::net::IpAddr::is_ipv4), has("IPv6", std::net::IpAddr::is_ipv6)) {
        (true, true) => IpFamilies::Dual,
        (true, false) => IpFamilies::Ipv4Only,
        (false, true) => IpFamilies::Ipv6Only,
        (false, false) => IpFamilies::Automatic,
    }
}
