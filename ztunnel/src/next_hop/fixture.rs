//! A mesh written down in a few lines, for tests.
//!
//! In: one resource per line, words separated by spaces. Out: a [`Snapshot`], made of the same messages that a control plane
//! sends.
//!
//! ```text
//! workload NAME IP[,IP]|-  [hbone] [unhealthy] [hostnet] [ns= sa= node= cluster= network= region= zone= subzone=
//!          capacity= host= app-tunnel=PORT|proxy:PORT waypoint=IP[@NETWORK]|ns/host gateway= uid= td=]
//! service  NAME VIP[/LEN]:PORT[,..]  -> WORKLOAD:PORT ..  [canonical] [private] [allow-all] [ns= network= host= mode=
//!          families= san= waypoint= weighted=IP:WEIGHT,..]
//! waypoint NAME IP guards service/NAME|workload/NAME ..
//! ```
//! A service's endpoints serve its first port; `service/cart` is `shop/cart.shop`. Everything is in namespace `shop` and network
//! `net` unless it says otherwise. A target port of `-` is left to the other side.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use mesh::store::{Snapshot, Store, Update};
use proto::workload::{
    Address, ApplicationTunnel, GatewayAddress, LoadBalancing, Locality, NamespacedHostname,
    NetworkAddress, Port, PortList, Service, WeightedWaypoint, Workload, address,
    gateway_address::Destination, load_balancing,
};

pub(crate) const NETWORK: &str = "net";
pub(crate) const NAMESPACE: &str = "shop";

/// Reads a mesh.
pub(crate) fn snapshot(text: &str) -> Arc<Snapshot> {
    let mut mesh = Mesh::default();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match &words[..] {
            [] => {}
            ["workload", name, addresses, options @ ..] => mesh.workload(name, addresses, options),
            ["service", name, addresses, "->", rest @ ..] => mesh.service(name, addresses, rest),
            ["waypoint", name, ip, "guards", guarded @ ..] => mesh.waypoint(name, ip, guarded),
            _ => panic!("not understood: {line}"),
        }
    }
    let store = Store::new();
    let workloads = mesh.workloads.into_values().map(address::Type::Workload);
    let services = mesh.services.into_values().map(address::Type::Service);
    store.apply(services.chain(workloads).map(|one| {
        Update::try_from(Address { r#type: Some(one) }).expect("fixtures are well formed")
    }));
    store.load()
}

#[derive(Default)]
struct Mesh {
    /// By name, so that the order of endpoints is known.
    workloads: BTreeMap<String, Workload>,
    services: BTreeMap<String, Service>,
}

impl Mesh {
    fn workload(&mut self, name: &str, addresses: &str, options: &[&str]) {
        let mut workload = Workload {
            uid: format!("cluster//Pod/{NAMESPACE}/{name}"),
            name: name.into(),
            namespace: NAMESPACE.into(),
            network: NETWORK.into(),
            service_account: name.into(),
            addresses: addresses.split(',').filter(|ip| *ip != "-").map(ip_bytes).collect(),
            ..Default::default()
        };
        let mut locality = Locality::default();
        for option in options {
            let (key, value) = option.split_once('=').unwrap_or((option, ""));
            match key {
                "hbone" => workload.tunnel_protocol = 1,
                "unhealthy" => workload.status = 1,
                "hostnet" => workload.network_mode = 1,
                "ns" => workload.namespace = value.into(),
                "sa" => workload.service_account = value.into(),
                "td" => workload.trust_domain = value.into(),
                "uid" => workload.uid = value.into(),
                "node" => workload.node = value.into(),
                "cluster" => workload.cluster_id = value.into(),
                "network" => workload.network = value.into(),
                "host" => workload.hostname = value.into(),
                "capacity" => workload.capacity = Some(value.parse().unwrap()),
                "region" => locality.region = value.into(),
                "zone" => locality.zone = value.into(),
                "subzone" => locality.subzone = value.into(),
                "waypoint" => workload.waypoint = Some(gateway(value)),
                "gateway" => workload.network_gateway = Some(gateway(value)),
                "app-tunnel" => {
                    let (protocol, port) = match value.strip_prefix("proxy:") {
                        Some(port) => (1, port),
                        None => (0, value),
                    };
                    let port = port.parse().unwrap();
                    workload.application_tunnel = Some(ApplicationTunnel { protocol, port });
                }
                other => panic!("workload {name}: {other}"),
            }
        }
        workload.locality = Some(locality);
        self.workloads.insert(name.into(), workload);
    }

    fn service(&mut self, name: &str, addresses: &str, rest: &[&str]) {
        let (endpoints, options): (Vec<&str>, Vec<&str>) =
            rest.iter().copied().partition(|word| word.contains(':') && !word.contains('='));
        let option = |wanted: &str| {
            let value = options.iter().find_map(|option| option.strip_prefix(wanted));
            value.and_then(|value| value.strip_prefix('='))
        };
        let namespace = option("ns").unwrap_or(NAMESPACE);
        let hostname = option("host").map_or_else(|| format!("{name}.{namespace}"), str::to_owned);
        let key = format!("{namespace}/{hostname}");
        let addresses: Vec<(&str, u32)> = addresses.split(',').map(address_and_port).collect();
        let first_port = addresses.first().map_or(0, |(_, port)| *port);
        for endpoint in &endpoints {
            let (workload, target) = endpoint.rsplit_once(':').unwrap();
            let workload = self.workloads.get_mut(workload).expect("workloads come first");
            let port = Port {
                service_port: first_port,
                target_port: target.parse().unwrap_or(0),
                app_protocol: 0,
            };
            workload.services.insert(key.clone(), PortList { ports: vec![port] });
        }
        let service = Service {
            name: name.into(),
            namespace: namespace.into(),
            hostname,
            addresses: addresses
                .iter()
                .filter(|(ip, _)| *ip != "-")
                .map(|(ip, _)| network_address(option("network").unwrap_or(NETWORK), ip))
                .collect(),
            ports: ports(&addresses, option("target")),
            subject_alt_names: option("san").map(str::to_owned).into_iter().collect(),
            waypoint: option("waypoint").map(gateway),
            weighted_waypoints: option("weighted").map(weighted).unwrap_or_default(),
            load_balancing: Some(load_balancing(option("mode"), options.contains(&"allow-all"))),
            ip_families: match option("families") {
                None => 0,
                Some("ipv4") => 1,
                Some("ipv6") => 2,
                Some(other) => panic!("service {name}: families={other}"),
            },
            canonical: options.contains(&"canonical"),
            visibility: i32::from(options.contains(&"private")),
            ..Default::default()
        };
        self.services.insert(format!("{namespace}/{name}"), service);
    }

    fn waypoint(&mut self, name: &str, ip: &str, guarded: &[&str]) {
        self.workload(name, ip, &["hbone"]);
        for guarded in guarded {
            match guarded.split_once('/') {
                Some(("service", name)) => {
                    let key = format!("{NAMESPACE}/{name}");
                    let service = self.services.get_mut(&key).expect("services come first");
                    service.waypoint = Some(gateway(ip));
                }
                Some(("workload", name)) => {
                    let workload = self.workloads.get_mut(name).expect("workloads come first");
                    workload.waypoint = Some(gateway(ip));
                }
                _ => panic!("waypoint {name}: {guarded}"),
            }
        }
    }
}

fn ports(addresses: &[(&str, u32)], target: Option<&str>) -> Vec<Port> {
    let target_port = target.map_or(0, |target| target.parse().unwrap());
    let mut ports: Vec<u32> = addresses.iter().map(|(_, port)| *port).collect();
    ports.sort_unstable();
    ports.dedup();
    ports
        .into_iter()
        .map(|service_port| Port { service_port, target_port, app_protocol: 0 })
        .collect()
}

fn load_balancing(mode: Option<&str>, allow_all: bool) -> LoadBalancing {
    let (mode, preferences) = match mode.map(|mode| mode.split_once(':').unwrap_or((mode, ""))) {
        None => (0, ""),
        Some(("strict", preferences)) => (1, preferences),
        Some(("failover", preferences)) => (2, preferences),
        Some(("passthrough", _)) => (3, ""),
        Some((other, _)) => panic!("mode={other}"),
    };
    let preferences = preferences.split(',').filter(|preference| !preference.is_empty());
    let scope = |name: &str| {
        let scope = load_balancing::Scope::from_str_name(&name.to_uppercase());
        i32::from(scope.expect("a scope"))
    };
    LoadBalancing {
        routing_preference: preferences.map(scope).collect(),
        mode,
        health_policy: i32::from(allow_all),
    }
}

fn gateway(target: &str) -> GatewayAddress {
    let destination = match target.split_once('/') {
        Some((namespace, hostname)) => Destination::Hostname(NamespacedHostname {
            namespace: namespace.into(),
            hostname: hostname.into(),
        }),
        None => {
            let (ip, network) = target.split_once('@').unwrap_or((target, NETWORK));
            Destination::Address(network_address(network, ip))
        }
    };
    GatewayAddress { hbone_mtls_port: 15008, destination: Some(destination) }
}

fn weighted(list: &str) -> Vec<WeightedWaypoint> {
    let one = |one: &str| {
        let (target, weight) = one.rsplit_once(':').unwrap();
        let weight = weight.parse().unwrap();
        WeightedWaypoint { destination: Some(gateway(target)), weight }
    };
    list.split(',').map(one).collect()
}

fn network_address(network: &str, ip: &str) -> NetworkAddress {
    let (ip, length) = match ip.split_once('/') {
        Some((ip, length)) => (ip, Some(length.parse().unwrap())),
        None => (ip, None),
    };
    NetworkAddress { network: network.into(), address: ip_bytes(ip), length }
}

/// `10.0.0.1:80`, `[fd00::1]:80`, `10.0.0.0/8:80`, or `-:80` for a service without an address.
fn address_and_port(text: &str) -> (&str, u32) {
    let (ip, port) = text.rsplit_once(':').expect("an address and a port");
    (ip.trim_matches(['[', ']']), port.parse().unwrap())
}

fn ip_bytes<B: From<Vec<u8>>>(ip: &str) -> B {
    match ip.parse().expect("an address") {
        IpAddr::V4(v4) => v4.octets().to_vec().into(),
        IpAddr::V6(v6) => v6.octets().to_vec().into(),
    }
}
