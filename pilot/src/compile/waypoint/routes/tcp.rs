//! Where connections to a host go that are not looked into.
//!
//! In: the rules for a host. Out: clusters with their weights. What a connection asks for by name does not count: which
//! service it is for has been decided by its address.

use super::{
    super::{ChainKind, Context, Role, inbound_cluster},
    MESH,
    destination::{Destinations, UNKNOWN},
    of_host,
    rule_set::RuleSet,
};
use crate::{
    compile::registry::{Host, Port},
    manifests::networking::{RouteDestination, TcpMatch, TlsMatch},
};

/// The clusters of connections to one port of a host with their weights.
pub(crate) fn tcp(context: &Context<'_>, host: &Host, port: &Port) -> Vec<(String, u32)> {
    let default = || vec![(inbound_cluster(host, port, ChainKind::Tcp, ""), 1)];
    // What comes from another network has been routed there.
    if context.role == Role::EastWest {
        return default();
    }
    let sets = of_host(context, host);
    let tls = sets.iter().find_map(|set| {
        let rule = set
            .tls
            .iter()
            .find(|rule| rule.r#match.iter().any(|one| tls_applies(one, host, port.number)));
        rule.map(|rule| clusters(context, set, &rule.route, port.number))
    });
    let tcp = || {
        sets.iter().find_map(|set| {
            let rule = set.tcp.iter().find(|rule| {
                rule.r#match.is_empty() || rule.r#match.iter().any(|one| applies(one, port.number))
            });
            rule.map(|rule| clusters(context, set, &rule.route, port.number))
        })
    };
    tls.or_else(tcp).unwrap_or_else(default)
}

/// Only rules for the host's very name count.
fn tls_applies(of: &TlsMatch, host: &Host, port: u16) -> bool {
    matches!(of.sni_hosts.as_slice(), [only] if **only == *host.hostname)
        && is_for(of.port, &of.gateways, port)
}

fn applies(of: &TcpMatch, port: u16) -> bool {
    is_for(of.port, &of.gateways, port)
}

fn is_for(wanted: Option<u32>, gateways: &[String], port: u16) -> bool {
    wanted.is_none_or(|wanted| wanted == u32::from(port))
        && (gateways.is_empty() || gateways.iter().any(|gateway| gateway == MESH))
}

fn clusters(
    context: &Context<'_>,
    set: &RuleSet<'_>,
    routes: &[RouteDestination],
    port: u16,
) -> Vec<(String, u32)> {
    let destinations =
        Destinations { context, namespace: set.namespace, port, kind: ChainKind::Tcp };
    if let [only] = routes {
        return vec![(destinations.cluster(&only.destination), 1)];
    }
    let weighted = routes.iter().filter_map(|route| {
        let weight = u32::try_from(route.weight).ok().filter(|weight| *weight > 0)?;
        Some((destinations.cluster(&route.destination), weight))
    });
    let weighted: Vec<_> = weighted.collect();
    if weighted.is_empty() { vec![(UNKNOWN.to_owned(), 1)] } else { weighted }
}
