//! Networks whose addresses mean nothing here, and how their services are reached.
//!
//! In: Gateways that stand for other networks, and what is behind global services there. Out: a workload for each such
//! Gateway, and one for each service behind it that stands for all of the service's endpoints over there. Nothing of
//! it if the mesh has one network.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use proto::workload::{
    GatewayAddress, NamespacedHostname, NetworkAddress, Port, PortList, TunnelProtocol, Workload,
    WorkloadType, gateway_address::Destination,
};

use super::{
    MeshConfig,
    attachment::HBONE_PORT,
    mesh_config::Scope,
    registry::{Host, Registry},
    workload::octets,
};
use crate::manifests::{Labels, Manifests, Object, TargetPort, gateway_api::Gateway};

/// What tells the network of a Gateway.
pub(super) const NETWORK_LABEL: &str = "topology.istio.io/network";

/// Other networks, and what is behind each global service in them.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Networks {
    gateways: Vec<Remote>,
    /// By the service's key.
    global: BTreeMap<String, Global>,
}

/// A Gateway into another network.
#[derive(Debug, PartialEq)]
struct Remote {
    namespace: String,
    name: String,
    network: String,
    address: RemoteAddress,
    port: u32,
    service_account: String,
}

#[derive(Debug, PartialEq)]
enum RemoteAddress {
    Ip(IpAddr),
    Hostname(String),
}

/// What is known of a global service's endpoints in other networks.
#[derive(Debug, Default, PartialEq)]
struct Global {
    namespace: String,
    ports: Vec<Port>,
    /// Weight of all endpoints, by network.
    capacity: BTreeMap<String, u32>,
    identities: BTreeSet<String>,
}

impl Networks {
    pub(crate) fn of(manifests: &Manifests, registry: &Registry, config: &MeshConfig) -> Self {
        if !config.multi_network {
            return Self::default();
        }
        let gateways = manifests.gateways.iter();
        let mut gateways: Vec<_> =
            gateways.flat_map(|gateway| remotes(gateway, registry.network())).collect();
        gateways.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        let hosts = registry.all().filter(|host| is_global(host, registry, config));
        let global = hosts.filter_map(|host| {
            let global = global(host, registry, config);
            (!global.capacity.is_empty()).then(|| (host.key(), global))
        });
        Self { gateways, global: global.collect() }
    }

    /// The identities that a service's endpoints in other networks show; a ServiceEntry may have its own besides.
    pub(crate) fn subject_alt_names(&self, host: &Host, config: &MeshConfig) -> Vec<String> {
        let mut names = host.subject_alt_names.clone();
        // Most meshes have one network: a key is made for those that have several.
        if config.multi_network
            && let Some(global) = self.global.get(&host.key())
        {
            names.extend(global.identities.iter().cloned());
        }
        names
    }

    /// The messages, in no order.
    pub(crate) fn compile(&self, config: &MeshConfig) -> Vec<Workload> {
        let gateways = self.gateways.iter().map(Remote::workload);
        let behind = self.gateways.iter().flat_map(|gateway| {
            self.global.iter().filter_map(move |(key, global)| {
                let capacity = *global.capacity.get(&gateway.network)?;
                Some(gateway.standing_for(key, global, capacity, config))
            })
        });
        gateways.chain(behind).collect()
    }
}

impl Remote {
    fn workload(&self) -> Workload {
        let uid = format!("NetworkGateway/{}/{}/{}", self.network, self.address, self.port);
        let (addresses, hostname) = match &self.address {
            RemoteAddress::Ip(ip) => (vec![octets(*ip)], String::new()),
            RemoteAddress::Hostname(name) => (Vec::new(), name.clone()),
        };
        Workload {
            name: uid.clone(),
            uid,
            namespace: self.namespace.clone(),
            addresses,
            hostname,
            network: self.network.clone(),
            service_account: self.service_account.clone(),
            ..Workload::default()
        }
    }

    /// Stands for all endpoints of a service behind this gateway.
    fn standing_for(
        &self,
        key: &str,
        global: &Global,
        capacity: u32,
        config: &MeshConfig,
    ) -> Workload {
        let uid = format!(
            "{}/SplitHorizonWorkload/{}/{}/{}/{key}",
            self.network, self.namespace, self.name, self.address
        );
        let destination = match &self.address {
            RemoteAddress::Ip(ip) => Destination::Address(NetworkAddress {
                network: self.network.clone(),
                address: octets(*ip),
                length: None,
            }),
            RemoteAddress::Hostname(hostname) => Destination::Hostname(NamespacedHostname {
                namespace: self.namespace.clone(),
                hostname: hostname.clone(),
            }),
        };
        Workload {
            name: uid.clone(),
            uid,
            namespace: global.namespace.clone(),
            network: self.network.clone(),
            tunnel_protocol: TunnelProtocol::Hbone.into(),
            network_gateway: Some(GatewayAddress {
                destination: Some(destination),
                hbone_mtls_port: self.port,
            }),
            workload_type: WorkloadType::Pod.into(),
            services: [(key.to_owned(), PortList { ports: global.ports.clone() })].into(),
            cluster_id: config.cluster_id.clone(),
            capacity: Some(capacity),
            ..Workload::default()
        }
    }
}

impl std::fmt::Display for RemoteAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Hostname(name) => name.fmt(f),
        }
    }
}

/// A Gateway that is labelled with another network stands for it.
fn remotes(gateway: &Object<Gateway>, local: &str) -> Vec<Remote> {
    let Object { meta, spec } = gateway;
    let Some(network) = meta.labels.get(NETWORK_LABEL).filter(|network| *network != local) else {
        return Vec::new();
    };
    if spec.gateway_class_name != "istio-remote" {
        return Vec::new();
    }
    let listener = spec.listeners.iter().find(|listener| listener.protocol == "HBONE");
    let addresses =
        if spec.status.addresses.is_empty() { &spec.addresses } else { &spec.status.addresses };
    let account = meta.annotations.get("gateway.istio.io/service-account");
    let remotes = addresses.iter().map(|address| Remote {
        namespace: meta.namespace.to_string(),
        name: meta.name.to_string(),
        network: network.clone(),
        address: match address.value.parse() {
            Ok(ip) => RemoteAddress::Ip(ip),
            Err(_) => RemoteAddress::Hostname(address.value.clone()),
        },
        port: listener.map_or(HBONE_PORT, |listener| listener.port.into()),
        service_account: account.cloned().unwrap_or_default(),
    });
    remotes.collect()
}

/// Whether other clusters and networks see a service.
pub(crate) fn is_global(host: &Host, registry: &Registry, config: &MeshConfig) -> bool {
    const NONE: &Labels = &Labels::new();
    let namespace = registry.namespace(&host.meta.namespace).unwrap_or(NONE);
    let mut scopes = config.service_scope_configs.iter();
    let scope = scopes.find(|scope| {
        scope.namespace_selector.as_ref().is_none_or(|selector| selector.matches(namespace))
            && scope.services_selector.as_ref().is_none_or(|it| it.matches(&host.meta.labels))
    });
    scope.is_some_and(|scope| scope.scope == Scope::Global)
}

fn global(host: &Host, registry: &Registry, config: &MeshConfig) -> Global {
    let ports = host.ports.iter().map(|port| Port {
        service_port: port.number.into(),
        target_port: match &port.target {
            TargetPort::Number(number) => number.get().into(),
            TargetPort::Name(_) => 0,
        },
        app_protocol: port.protocol.for_daemons().into(),
    });
    let mut global = Global {
        namespace: host.meta.namespace.to_string(),
        ports: ports.collect(),
        ..Global::default()
    };
    for endpoint in registry.foreign(host) {
        *global.capacity.entry(endpoint.network.into()).or_default() += endpoint.weight;
        if !endpoint.service_account.is_empty() {
            global.identities.insert(format!(
                "spiffe://{}/ns/{}/sa/{}",
                config.trust_domain, endpoint.namespace, endpoint.service_account
            ));
        }
    }
    global
}
