//! All that a waypoint's configuration follows from.
//!
//! In: the user's resources, the registry, and who the client is. Out: a [`Context`], which every part of the
//! configuration is made from, with the names that the parts know each other by.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;
use proto::google;

use super::{
    Client,
    attached::{self, Attached, Through},
    destination_rule::{Rules, Side, Traffic},
    message::duration,
    networks::Networks,
    routes::Routes,
};
use crate::{
    compile::{
        MeshConfig,
        registry::{Endpoint, Host, Port, Registry},
        world::World,
    },
    manifests::{Manifests, Object, gateway_api::Gateway},
};

/// The cluster that leads into a tunnel to wherever the connection was going.
pub(crate) const ENCAP: &str = "encap";

const TRAFFIC_DISTRIBUTION: &str = "networking.istio.io/traffic-distribution";

/// Whether a chain and its cluster know of requests, or of bytes only.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum ChainKind {
    /// Of requests.
    Http,
    /// Of bytes.
    Tcp,
}

/// What a proxy with a Gateway of its own stands between.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Role {
    /// Clients and the services it guards.
    Waypoint,
    /// Other networks and this one.
    EastWest,
}

/// All that one waypoint's configuration follows from.
pub(crate) struct Context<'a> {
    pub manifests: &'a Manifests,
    pub config: &'a MeshConfig,
    pub registry: &'a Registry,
    pub(super) world: &'a World,
    pub gateway: &'a Object<Gateway>,
    pub client: &'a Client,
    pub role: Role,
    /// The services it stands before, sorted by name and namespace.
    pub hosts: Vec<Arc<Host>>,
    /// Addresses of the pods it stands before.
    pub workloads: Vec<IpAddr>,
    /// What VirtualServices and routes of the Gateway API say.
    pub(super) routes: Routes<'a>,
    /// What DestinationRules and BackendTLSPolicies say.
    pub(super) rules: Rules<'a>,
    /// How other networks are reached.
    pub(super) networks: Networks,
}

impl<'a> Context<'a> {
    /// What a client receives that belongs to a Gateway, as its pod's labels say.
    pub(in crate::compile) fn new(
        manifests: &'a Manifests,
        world: &'a World,
        client: &'a Client,
    ) -> Option<Self> {
        let config = &world.config;
        let name = client.labels.get("gateway.networking.k8s.io/gateway-name")?;
        let mut gateways = manifests.gateways.iter();
        let gateway = gateways.find(|gateway| {
            *gateway.meta.namespace == *client.namespace && *gateway.meta.name == **name
        })?;
        let role = match gateway.spec.gateway_class_name.as_str() {
            "istio-waypoint" => Role::Waypoint,
            "istio-east-west" => Role::EastWest,
            _ => return None,
        };
        let attached = Attached::of(manifests, world, &gateway.meta, role);
        Some(Self {
            manifests,
            config,
            registry: &world.registry,
            world,
            gateway,
            client,
            role,
            hosts: attached.hosts,
            workloads: attached.workloads,
            routes: Routes::of(manifests, &config.cluster_domain),
            rules: Rules::of(manifests, config, &client.namespace, &client.labels),
            networks: Networks::of(manifests),
        })
    }

    /// Whether this is one of the services it stands before.
    pub(crate) fn owns(&self, host: &Host) -> bool {
        self.hosts
            .iter()
            .any(|own| own.hostname == host.hostname && own.meta.namespace == host.meta.namespace)
    }

    #[expect(dead_code, reason = "for routes")]
    /// The cluster of a destination: of a service it stands before, or of another's.
    pub(crate) fn cluster_name(&self, host: &Host, port: &Port, subset: &str) -> String {
        if self.owns(host) {
            let kind = if port.protocol.is_http() { ChainKind::Http } else { ChainKind::Tcp };
            inbound_cluster(host, port, kind, subset)
        } else {
            outbound_cluster(host, port, subset)
        }
    }

    /// Whether there are networks whose addresses mean nothing here.
    pub(super) fn is_multi_network(&self) -> bool {
        self.config.multi_network
    }

    /// The gateways of a network that is not the client's.
    pub(super) fn gateways(&self, network: &str) -> &[(IpAddr, u16)] {
        if network == self.client.network { &[] } else { self.networks.gateways(network) }
    }

    /// Whether an endpoint's addresses mean something to the client.
    pub(super) fn is_near(&self, endpoint: &Endpoint) -> bool {
        let known = !endpoint.network.is_empty() && !self.client.network.is_empty();
        !self.is_multi_network() || !known || *endpoint.network == *self.client.network
    }

    /// The waypoint of a host, as a gateway between networks sees it.
    pub(super) fn waypoint_of(&self, host: &Host) -> Option<Through> {
        attached::through(self.world, host)
    }

    /// What a Service says of where its traffic goes; an annotation of its own or of its namespace stands in.
    pub(super) fn traffic_distribution<'b>(&'b self, host: &'b Host) -> Option<&'b str> {
        let of_service = host.service().and_then(|service| service.traffic_distribution.as_deref());
        let annotated = || host.meta.annotations.get(TRAFFIC_DISTRIBUTION).map(String::as_str);
        let inherited = || self.world.distribution.get(&*host.meta.namespace).map(|value| &**value);
        of_service.or_else(annotated).or_else(inherited)
    }

    /// Where a service is reached. One that is reached at its pods only has the address that means all.
    pub(super) fn addresses(&self, host: &Host) -> Vec<IpNet> {
        if host.addresses.is_empty() {
            return self.client.wildcards().take(1).map(IpNet::from).collect();
        }
        let reached = host.addresses.iter().filter(|net| self.client.reaches(net.addr()));
        reached.copied().collect()
    }

    /// How long a connection may keep its protocol to itself, if that is limited.
    pub(super) fn protocol_detection_timeout(&self) -> Option<google::Duration> {
        let timeout = self.config.protocol_detection_timeout.0;
        (!timeout.is_zero()).then(|| duration(timeout))
    }

    /// What is said of connections to one port of a host.
    pub(super) fn traffic(&self, host: &Host, port: &Port, subset: &str) -> Traffic<'a> {
        let side = if self.owns(host) { Side::Inbound } else { Side::Outbound };
        self.rules.traffic(host, port, subset, side)
    }
}

/// The name of a chain and its cluster.
pub(crate) fn inbound_cluster(host: &Host, port: &Port, kind: ChainKind, subset: &str) -> String {
    let kind = kind.name();
    let slash = if subset.is_empty() { "" } else { "/" };
    format!("inbound-vip|{}|{kind}{slash}{subset}|{}", port.number, host.hostname)
}

/// The name of a cluster of a service that another waypoint stands before, or none.
pub(super) fn outbound_cluster(host: &Host, port: &Port, subset: &str) -> String {
    format!("outbound|{}|{subset}|{}", port.number, host.hostname)
}

impl ChainKind {
    /// As names have it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Tcp => "tcp",
        }
    }
}
