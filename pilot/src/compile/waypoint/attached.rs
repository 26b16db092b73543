//! What a waypoint stands before.
//!
//! In: its Gateway, and which waypoint each service and pod has. Out: its services, sorted by name, and the
//! addresses of its pods. A gateway between networks stands before every service that all of the mesh may use.

use std::{net::IpAddr, sync::Arc};

use proto::workload::{GatewayAddress, gateway_address::Destination};

use super::Role;
use crate::{
    compile::{
        networks::is_global,
        registry::{Host, Origin},
        world::World,
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
    pub(super) fn of(manifests: &Manifests, world: &World, gateway: &Meta, role: Role) -> Self {
        let own = format!("{}/{}", gateway.namespace, gateway.name);
        let guards = |host: &Host| {
            let attachment = world.waypoints.of_host(host).ok().flatten();
            attachment.is_some_and(|attachment| attachment.gateway == own)
        };
        let wanted = |host: &&Arc<Host>| match role {
            Role::Waypoint => guards(host),
            Role::EastWest => is_global(host, &world.registry, &world.config),
        };
        let mut hosts: Vec<_> = world.registry.all().filter(wanted).cloned().collect();
        hosts.sort_by(|a, b| {
            (name(a), &a.meta.namespace, &a.hostname).cmp(&(
                name(b),
                &b.meta.namespace,
                &b.hostname,
            ))
        });
        let pods = manifests.pods.iter();
        let hostname =
            format!("{}.{}.svc.{}", gateway.name, gateway.namespace, world.config.cluster_domain);
        let pods = pods.filter(|pod| {
            let waypoint = || world.waypoints.of_workload(&pod.meta.namespace, &pod.meta.labels);
            let to = || hostname_of(waypoint()?);
            role == Role::Waypoint && to().is_some_and(|to| to == hostname)
        });
        let workloads = pods.flat_map(|pod| pod.spec.addresses.iter().copied()).collect();
        Self { hosts, workloads }
    }
}

/// The waypoint of a host, if it has one.
pub(super) fn through(world: &World, host: &Host) -> Option<Through> {
    let attachment = world.waypoints.of_host(host).ok()??;
    Some(Through { hostname: hostname_of(attachment.reference)?, for_gateways: attachment.ingress })
}

fn hostname_of(waypoint: GatewayAddress) -> Option<String> {
    match waypoint.destination? {
        Destination::Hostname(name) => Some(name.hostname),
        Destination::Address(_) => None,
    }
}

/// What people call a service.
pub(super) fn name(host: &Host) -> &str {
    match host.origin {
        Origin::Kubernetes(_) => &host.meta.name,
        Origin::Entry(_) => &host.hostname,
    }
}
