//! Workloads as the dump shows them.

use std::{net::IpAddr, sync::Arc};

use mesh::store::{self, AppTunnelProtocol, Health, NetworkMode, TunnelProtocol, WorkloadType};
use serde::Serialize;

use super::{is_empty, is_false};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Workload<'a> {
    workload_ips: &'a [IpAddr],
    #[serde(skip_serializing_if = "Option::is_none")]
    waypoint: Option<Gateway>,
    #[serde(skip_serializing_if = "Option::is_none")]
    network_gateway: Option<Gateway>,
    protocol: &'static str,
    network_mode: &'static str,
    uid: &'a str,
    name: &'a str,
    namespace: &'a str,
    trust_domain: &'a str,
    service_account: &'a str,
    #[serde(skip_serializing_if = "is_empty")]
    network: &'a str,
    #[serde(skip_serializing_if = "is_empty")]
    workload_name: &'a str,
    workload_type: &'static str,
    #[serde(skip_serializing_if = "is_empty")]
    canonical_name: &'a str,
    #[serde(skip_serializing_if = "is_empty")]
    canonical_revision: &'a str,
    #[serde(skip_serializing_if = "is_empty")]
    hostname: &'a str,
    #[serde(skip_serializing_if = "is_empty")]
    node: &'a str,
    #[serde(skip_serializing_if = "is_false")]
    native_tunnel: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    application_tunnel: Option<ApplicationTunnel>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    authorization_policies: &'a [Arc<str>],
    status: &'static str,
    cluster_id: &'a str,
    #[serde(skip_serializing_if = "Locality::is_unknown")]
    locality: Locality<'a>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    services: Vec<&'a str>,
    capacity: u32,
}

/// A waypoint or network gateway.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Gateway {
    destination: String,
    hbone_mtls_port: u16,
}

#[derive(Serialize)]
struct ApplicationTunnel {
    protocol: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
}

#[derive(Serialize)]
struct Locality<'a> {
    #[serde(skip_serializing_if = "is_empty")]
    region: &'a str,
    #[serde(skip_serializing_if = "is_empty")]
    zone: &'a str,
    #[serde(skip_serializing_if = "is_empty")]
    subzone: &'a str,
}

impl<'a> Workload<'a> {
    pub(super) fn of(workload: &'a store::Workload) -> Self {
        Self {
            workload_ips: &workload.addresses,
            waypoint: workload.waypoint.as_ref().map(Gateway::of),
            network_gateway: workload.network_gateway.as_ref().map(Gateway::of),
            protocol: match workload.tunnel_protocol {
                TunnelProtocol::None => "TCP",
                TunnelProtocol::Hbone => "HBONE",
            },
            network_mode: match workload.network_mode {
                NetworkMode::Standard => "Standard",
                NetworkMode::HostNetwork => "HostNetwork",
            },
            uid: &workload.uid,
            name: &workload.name,
            namespace: &workload.namespace,
            trust_domain: &workload.trust_domain,
            service_account: &workload.service_account,
            network: &workload.network,
            workload_name: &workload.workload_name,
            workload_type: match workload.workload_type {
                WorkloadType::Deployment => "deployment",
                WorkloadType::CronJob => "cronjob",
                WorkloadType::Pod => "pod",
                WorkloadType::Job => "job",
            },
            canonical_name: &workload.canonical_name,
            canonical_revision: &workload.canonical_revision,
            hostname: &workload.hostname,
            node: &workload.node,
            native_tunnel: workload.native_tunnel,
            application_tunnel: workload.application_tunnel.map(ApplicationTunnel::of),
            authorization_policies: &workload.policies,
            status: status(workload.health),
            cluster_id: &workload.cluster,
            locality: Locality {
                region: &workload.locality.region,
                zone: &workload.locality.zone,
                subzone: &workload.locality.subzone,
            },
            services: workload.services.iter().map(|member| &*member.service).collect(),
            capacity: workload.capacity,
        }
    }
}

impl Gateway {
    pub(super) fn of(gateway: &store::GatewayAddress) -> Self {
        Self { destination: gateway.target.to_string(), hbone_mtls_port: gateway.hbone_port }
    }
}

impl ApplicationTunnel {
    fn of(tunnel: store::ApplicationTunnel) -> Self {
        let protocol = match tunnel.protocol {
            AppTunnelProtocol::None => "NONE",
            AppTunnelProtocol::Proxy => "PROXY",
        };
        Self { protocol, port: tunnel.port.map(Into::into) }
    }
}

impl Locality<'_> {
    fn is_unknown(&self) -> bool {
        [self.region, self.zone, self.subzone].iter().all(|part| part.is_empty())
    }
}

pub(super) fn status(health: Health) -> &'static str {
    match health {
        Health::Healthy => "Healthy",
        Health::Unhealthy => "Unhealthy",
    }
}
