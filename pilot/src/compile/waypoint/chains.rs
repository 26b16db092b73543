//! `main_internal`, the listener that decides: a chain for each port of each host.
//!
//! In: the hosts of a waypoint. Out: the listener with its chains, in the order of hosts and ports, and what it has to
//! find out of a connection before its chain can be chosen.

use std::collections::BTreeSet;

use proto::envoy::envoy::{
    config::core::v3::{SubstitutionFormatString, TypedExtensionConfig},
    config::{
        core::v3::TrafficDirection,
        listener::v3::{
            Filter, FilterChain, Listener, ListenerFilter, ListenerFilterChainMatchPredicate,
            listener_filter_chain_match_predicate::{MatchSet, Rule},
        },
    },
    extensions::filters::{
        common::set_filter_state::v3::filter_state_value::SharedWithUpstream,
        listener::{http_inspector::v3::HttpInspector, tls_inspector::v3::TlsInspector},
        network::{
            set_filter_state::v3::Config, tcp_proxy::v3::TcpProxy,
            tcp_proxy::v3::tcp_proxy::ClusterSpecifier,
        },
    },
    extensions::formatter::cel::v3::Cel,
    r#type::v3::Int32Range,
};

use super::{
    ChainKind, Context, Role,
    context::inbound_cluster,
    http,
    listeners::{self, DESTINATION, MAIN_INTERNAL},
    matcher,
    message::{any, filter, filter_state, format_string, host_port, listener_filter, number},
    tcp, telemetry,
};
use crate::compile::registry::{Host, Port, Protocol};

/// The chain of requests to pods themselves.
pub(super) const DIRECT_HTTP: &str = "direct-http";
/// The chain of connections to pods themselves.
pub(super) const DIRECT_TCP: &str = "direct-tcp";
/// Takes what nothing else takes, and lets it fall.
const BLACK_HOLE: &str = "blackhole";

/// The ports of a host that a waypoint serves.
pub(super) fn served(host: &Host) -> impl Iterator<Item = &Port> {
    host.ports.iter().filter(|port| port.protocol != Protocol::Udp)
}

/// The kinds of chains that a port has: both where its protocol is found out.
pub(super) fn kinds(context: &Context<'_>, port: &Port) -> &'static [ChainKind] {
    if context.role == Role::EastWest {
        &[ChainKind::Tcp]
    } else if port.protocol == Protocol::Unknown {
        &[ChainKind::Tcp, ChainKind::Http]
    } else if port.protocol.is_http() {
        &[ChainKind::Http]
    } else {
        &[ChainKind::Tcp]
    }
}

/// The listener.
pub(super) fn main_internal(context: &Context<'_>) -> Listener {
    let hosts = context.hosts.iter();
    let mut chains: Vec<_> = hosts
        .flat_map(|host| served(host).map(move |port| (host, port)))
        .flat_map(|(host, port)| kinds(context, port).iter().map(move |kind| (host, port, *kind)))
        .map(|(host, port, kind)| chain(context, host, port, kind))
        .collect();
    match context.role {
        Role::Waypoint => chains.extend(direct(context)),
        Role::EastWest if chains.is_empty() => chains.push(black_hole()),
        Role::EastWest => {}
    }
    Listener {
        name: MAIN_INTERNAL.into(),
        listener_specifier: Some(listeners::internal_listener()),
        traffic_direction: TrafficDirection::Inbound.into(),
        filter_chain_matcher: Some(matcher::matcher(context)),
        filter_chains: chains,
        listener_filters: listener_filters(context),
        listener_filters_timeout: context.protocol_detection_timeout(),
        continue_on_listener_filters_timeout: context.protocol_detection_timeout().is_some(),
        access_log: telemetry::around(context).unmatched,
        ..Listener::default()
    }
}

fn chain(context: &Context<'_>, host: &Host, port: &Port, kind: ChainKind) -> FilterChain {
    let mut filters = Vec::new();
    if context.role == Role::Waypoint && context.is_multi_network() {
        filters.extend(destination_address(context, host, port));
    }
    match kind {
        ChainKind::Http => filters.push(http::manager(context, Some(host), Some(port))),
        ChainKind::Tcp => filters.extend(tcp::filters(context, host, port)),
    }
    FilterChain { name: inbound_cluster(host, port, kind, ""), filters, ..FilterChain::default() }
}

/// The chains of pods that are reached by their own addresses. There even without any: a pod may be attached while
/// connections are open.
fn direct(context: &Context<'_>) -> [FilterChain; 2] {
    let format = format_string(&format!("%FILTER_STATE({DESTINATION}:PLAIN)%"));
    let again = Config {
        on_new_connection: vec![filter_state(DESTINATION, "", format, SharedWithUpstream::Once)],
        ..Config::default()
    };
    let again = filter("connect_authority", any(&again));
    let mut tcp = vec![again.clone()];
    tcp.extend(tcp::direct_filters(context));
    [
        FilterChain { name: DIRECT_TCP.into(), filters: tcp, ..FilterChain::default() },
        FilterChain {
            name: DIRECT_HTTP.into(),
            filters: vec![again, http::manager(context, None, None)],
            ..FilterChain::default()
        },
    ]
}

/// Without any chain, Envoy refuses the listener.
fn black_hole() -> FilterChain {
    let proxy = TcpProxy {
        stat_prefix: "BlackHoleCluster".into(),
        cluster_specifier: Some(ClusterSpecifier::Cluster("BlackHoleCluster".into())),
        ..TcpProxy::default()
    };
    FilterChain {
        name: BLACK_HOLE.into(),
        filters: vec![listeners::proxy_filter(&proxy)],
        ..FilterChain::default()
    }
}

/// A tunnel that was asked for by name has no destination address. Clusters that go where the connection was going
/// need one.
fn destination_address(context: &Context<'_>, host: &Host, port: &Port) -> Option<Filter> {
    let address = context.addresses(host).first()?.addr();
    let text = format!(
        "%CEL('{DESTINATION}' in filter_state ? filter_state['{DESTINATION}']: r'{}')%",
        host_port(address, port.number)
    );
    let cel = TypedExtensionConfig {
        name: "envoy.formatter.cel".into(),
        typed_config: Some(any(&Cel::default())),
    };
    let format = SubstitutionFormatString { formatters: vec![cel], ..format_string(&text) };
    let key = "envoy.network.transport_socket.original_dst_address";
    let config = Config {
        on_new_connection: vec![filter_state(key, "", format, SharedWithUpstream::None)],
        ..Config::default()
    };
    Some(filter("set_dst_address", any(&config)))
}

fn listener_filters(context: &Context<'_>) -> Vec<ListenerFilter> {
    let ports = Ports::of(context);
    let http =
        listener_filter("envoy.filters.listener.http_inspector", any(&HttpInspector::default()));
    let mut filters = vec![
        listeners::original_dst(),
        ListenerFilter { filter_disabled: disabled(&ports.no_http_inspection), ..http },
    ];
    if ports.any_tls {
        let inspector =
            TlsInspector { initial_read_buffer_size: Some(number(512)), ..TlsInspector::default() };
        let tls = listener_filter("envoy.filters.listener.tls_inspector", any(&inspector));
        let filter_disabled = disabled(&ports.no_tls_inspection);
        filters.push(ListenerFilter { filter_disabled, ..tls });
    }
    filters
}

/// Which ports need no look at a connection's first bytes.
struct Ports {
    no_http_inspection: BTreeSet<u16>,
    no_tls_inspection: BTreeSet<u16>,
    any_tls: bool,
}

impl Ports {
    fn of(context: &Context<'_>) -> Self {
        let of_all = |is: &dyn Fn(&Port) -> bool| -> BTreeSet<u16> {
            let ports = context.hosts.iter().flat_map(|host| &host.ports);
            ports.filter(|port| is(port)).map(|port| port.number).collect()
        };
        let chains = |port: &Port| -> &[ChainKind] {
            if port.protocol == Protocol::Udp { &[] } else { kinds(context, port) }
        };
        let only_http = of_all(&|port| *chains(port) == [ChainKind::Http]);
        let only_tcp = of_all(&|port| *chains(port) == [ChainKind::Tcp]);
        let either = of_all(&|port| chains(port).len() == 2);
        // As istiod has it, a port of HTTP here and TCP there is looked at, though its address decides.
        let decided = only_http.symmetric_difference(&only_tcp).copied();
        let decided: BTreeSet<u16> = decided.filter(|port| !either.contains(port)).collect();
        let tls = of_all(&|port| port.protocol.is_tls());
        let plain = of_all(&|port| !port.protocol.is_tls());
        let pods = !context.workloads.is_empty();
        Self {
            no_http_inspection: if pods { BTreeSet::new() } else { decided },
            no_tls_inspection: plain.difference(&tls).copied().collect(),
            any_tls: context.role == Role::Waypoint && !tls.is_empty(),
        }
    }
}

fn disabled(ports: &BTreeSet<u16>) -> Option<ListenerFilterChainMatchPredicate> {
    let mut rules = ports.iter().map(|port| ListenerFilterChainMatchPredicate {
        rule: Some(Rule::DestinationPortRange(Int32Range {
            start: (*port).into(),
            end: i32::from(*port) + 1,
        })),
    });
    match ports.len() {
        0 | 1 => rules.next(),
        _ => Some(ListenerFilterChainMatchPredicate {
            rule: Some(Rule::OrMatch(MatchSet { rules: rules.collect() })),
        }),
    }
}
