//! Where connections of a waypoint go: one cluster for each port of a host it stands before and for each subset of
//! it, those that lead into tunnels, and those of other services that its routes lead to.
//!
//! In: a [`Context`]. Out: all clusters, in the order of hosts and ports.

mod balancing;
mod pool;
mod service;
mod transport;
mod tunnels;

pub(super) use tunnels::ORIGINAL_DST;

use std::collections::BTreeMap;

use proto::envoy::envoy::{
    config::cluster::v3::{Cluster, cluster::DnsLookupFamily},
    extensions::common::dynamic_forward_proxy::v3::DnsCacheConfig,
};

use super::{
    Context, Role, chains,
    context::{ChainKind, inbound_cluster, outbound_cluster},
    destination_rule::Side,
    policy, routes,
};
use crate::compile::registry::{Host, Port, Protocol, Resolution};

/// One destination: what a cluster is of.
#[derive(Clone, Copy)]
pub(super) struct Destination<'a> {
    pub host: &'a Host,
    pub port: &'a Port,
    /// Empty for all endpoints.
    pub subset: &'a str,
    pub from: From,
}

/// Who connects there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum From {
    /// A chain of the waypoint before it.
    Chain(ChainKind),
    /// A route that leads elsewhere.
    Route,
}

impl Destination<'_> {
    /// The cluster's name.
    pub(super) fn name(&self) -> String {
        match self.from {
            From::Chain(kind) => inbound_cluster(self.host, self.port, kind, self.subset),
            From::Route => outbound_cluster(self.host, self.port, self.subset),
        }
    }

    /// Whose rules count.
    pub(super) fn side(&self) -> Side {
        match self.from {
            From::Chain(_) => Side::Inbound,
            From::Route => Side::Outbound,
        }
    }
}

/// All clusters.
pub(super) fn clusters(context: &Context<'_>) -> Vec<Cluster> {
    let mut clusters = tunnels::clusters(context);
    clusters.extend(destinations(context).iter().filter_map(|to| service::cluster(context, to)));
    clusters
}

/// What there are clusters of.
pub(super) fn destinations<'a>(context: &'a Context<'_>) -> Vec<Destination<'a>> {
    let mut destinations = Vec::new();
    for host in &context.hosts {
        for port in chains::served(host).filter(|port| is_served(host, port)) {
            for kind in chains::kinds(context, port) {
                add(context, &mut destinations, host, port, From::Chain(*kind));
            }
        }
    }
    if context.role == Role::Waypoint {
        for host in elsewhere(context).into_values() {
            for port in chains::served(host).filter(|port| is_served(host, port)) {
                add(context, &mut destinations, host, port, From::Route);
            }
        }
    }
    destinations
}

fn add<'a>(
    context: &'a Context<'_>,
    destinations: &mut Vec<Destination<'a>>,
    host: &'a Host,
    port: &'a Port,
    from: From,
) {
    let whole = Destination { host, port, subset: "", from };
    destinations.push(whole);
    // A gateway between networks routes nothing, so that nothing names a subset.
    if context.role == Role::Waypoint {
        let subsets = context.rules.subsets(host, whole.side());
        destinations.extend(
            subsets.into_iter().map(|subset| Destination { subset: &subset.name, ..whole }),
        );
    }
}

/// Below a wildcard only requests and TLS say what name they are for.
fn is_served(host: &Host, port: &Port) -> bool {
    host.resolution != Resolution::DynamicDns
        || port.protocol.is_http()
        || port.protocol.is_tls()
        || port.protocol == Protocol::Unknown && !host.is_wildcard()
}

/// The services that it does not stand before, but sends to.
fn elsewhere<'a>(context: &'a Context<'_>) -> BTreeMap<(&'a str, &'a str), &'a Host> {
    let mut named = routes::referenced(context);
    named.extend(policy::referenced(context));
    let hosts = named.iter().filter_map(|(namespace, name)| context.registry.find(namespace, name));
    hosts.map(|host| ((&*host.hostname, &*host.meta.namespace), &**host)).collect()
}

/// Of which families names are looked up.
pub(super) fn dns_families(context: &Context<'_>) -> DnsLookupFamily {
    match (context.client.has_ipv4(), context.client.has_ipv6()) {
        (true, true) => DnsLookupFamily::All,
        (false, true) => DnsLookupFamily::V6Only,
        (_, false) => DnsLookupFamily::V4Only,
    }
}

/// What remembers the addresses of the names below a wildcard: one for all chains and clusters of it.
pub(super) fn dns_cache(context: &Context<'_>, host: &Host) -> DnsCacheConfig {
    DnsCacheConfig {
        name: format!("{}_dfp_dns_cache", host.hostname),
        dns_lookup_family: dns_families(context).into(),
        ..DnsCacheConfig::default()
    }
}
