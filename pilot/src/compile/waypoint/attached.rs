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
        mesh_config::Scope,
        registry::{Host, Origin, Registry},
    },
    manifests::{Labels, Manifests, Meta},
};

const USED_BY_INGRESS: &str = "istio.io/ingress-use-waypoint";

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
        let waypoints = Waypoints::of(manifests, config);
        let own = format!("{}.{}.svc.{}", gateway.name, gateway.namespace, config.cluster_domain);
        let is_own = |waypoint: Option<GatewayAddress>| hostname(waypoint) == Some(own.clone());
        let of_host = |host: &Host| {
            host.service().and_then(|service| waypoints.of_service(&host.meta, service))
        };
        let mut hosts: Vec<_> = match role {
            Role::Waypoint => {
                registry.all().filter(|host| is_own(of_host(host))).cloned().collect()
            }
            Role::EastWest => {
                registry.all().filter(|host| is_global(config, registry, host)).cloned().collect()
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
        let pods = pods
            .filter(|pod| role == Role::Waypoint && is_own(waypoints.of_pod(&pod.spec.waypoint)));
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
    let waypoints = Waypoints::of(manifests, config);
    let waypoint = host.service().and_then(|service| waypoints.of_service(&host.meta, service));
    let hostname = hostname(waypoint)?;
    let used = |labels: &Labels| labels.get(USED_BY_INGRESS).map(|value| value == "true");
    let of_namespace = || registry.namespace(&host.meta.namespace).and_then(used);
    let for_gateways = used(&host.meta.labels).or_else(of_namespace).unwrap_or(false);
    Some(Through { hostname, for_gateways })
}

/// Whether other clusters may use a service: the first scope that fits it says so.
fn is_global(config: &MeshConfig, registry: &Registry, host: &Host) -> bool {
    let none = Labels::new();
    let namespace = registry.namespace(&host.meta.namespace).unwrap_or(&none);
    let scope = config.service_scope_configs.iter().find(|scope| {
        scope.services_selector.as_ref().is_none_or(|wanted| wanted.matches(&host.meta.labels))
            && scope.namespace_selector.as_ref().is_none_or(|wanted| wanted.matches(namespace))
    });
    scope.is_some_and(|scope| scope.scope == Scope::Global)
}
