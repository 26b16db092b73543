//! What a waypoint stands before.
//!
//! In: its Gateway, and which waypoint each service and pod has. Out: its services, sorted by name, and the
//! addresses of its pods. A gateway between networks stands before every service that all of the mesh may use.

use std::{net::IpAddr, sync::Arc};

use proto::workload::{GatewayAddress, gateway_address::Destination};

use super::Role;
use crate::{
    compile::{
        MeshConfig,
        attachment::Waypoints,
        networks::is_global,
        registry::{Host, Origin, Registry},
    },
    manifests::{Manifests, Meta},
};

/// What a waypoint stands before.
pub(super) struct Attached {
    pub(super) hosts: Vec<Arc<Host>>,
    pub(super) workloads: Vec<IpAddr>,
}

/// The waypoint that a host has, as a gateway between networks sees it.
pub(super) struct Through {
    /// Of the waypoint's Service.
    pub hostname: String,
    /// Whether gateways send through it, too.
    pub for_gateways: bool,
}

impl Attached {
    pub(super) fn of(
        manifests: &Manifests,
        config: &MeshConfig,
        registry: &Registry,
        gateway: &Meta,
        role: Role,
    ) -> Self {
        let waypoints = Waypoints::of(manifests, registry, config);
        let own = format!("{}.{}.svc.{}", gateway.name, gateway.namespace, config.cluster_domain);
        let is_own = |waypoint: Option<GatewayAddress>| hostname(waypoint) == Some(own.clone());
        let of_host = |host: &Host| waypoints.of_host(host).ok()?.map(|one| one.reference);
        let mut hosts: Vec<_> = match role {
            Role::Waypoint => {
                registry.all().filter(|host| is_own(of_host(host))).cloned().collect()
            }
            Role::EastWest => {
                registry.all().filter(|host| is_global(host, registry, config)).cloned().collect()
            }
        };
        hosts.sort_by(|a, b| {
            (name(a), &a.meta.namespace, &a.hostname).cmp(&(
                name(b),
                &b.meta.namespace,
                &b.hostname,
            ))
        });
        let pods = manifests.pods.iter();
        let pods = pods.filter(|pod| {
            let waypoint = waypoints.of_workload(&pod.meta.namespace, &pod.meta.labels);
            role == Role::Waypoint && is_own(waypoint)
        });
        let workloads = pods.flat_map(|pod| pod.spec.addresses.iter().copied()).collect();
        Self { hosts, workloads }
    }
}

/// What people call a service.
pub(super) fn name(host: &Host) -> &str {
    match host.origin {
        Origin::Kubernetes(_) => &host.meta.name,
        Origin::Entry(_) => &host.hostname,
    }
}

fn hostname(waypoint: Option<GatewayAddress>) -> Option<String> {
    match waypoint?.destination? {
        Destination::Hostname(name) => Some(name.hostname),
        Destination::Address(_) => None,
    }
}

/// The waypoint of a host, if it has one.
pub(super) fn through(
    manifests: &Manifests,
    config: &MeshConfig,
    registry: &Registry,
    host: &Host,
) -> Option<Through> {
    let attachment = Waypoints::of(manifests, registry, config).of_host(host).ok()??;
    let hostname = hostname(Some(attachment.reference))?;
    Some(Through { hostname, for_gateways: attachment.ingress })
}
