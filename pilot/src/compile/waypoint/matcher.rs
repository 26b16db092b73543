//! Which chain takes a connection.
//!
//! In: the hosts of a waypoint with their ports, and the pods it guards. Out: a tree that is asked for the host name
//! in the tunnel's authority (between networks), then for the address and the port, then, where nobody has said it,
//! for the protocol.

use std::{collections::HashMap, net::IpAddr};

use ipnet::IpNet;
use prost::{Message, Name};
use proto::{
    envoy::{
        envoy::extensions::matching::common_inputs::network::v3::{
            ApplicationProtocolInput, DestinationIpInput, DestinationPortInput, FilterStateInput,
        },
        xds::{
            core::v3::{CidrRange, TypedExtensionConfig},
            r#type::matcher::v3::{
                Matcher,
                matcher::{
                    MatcherTree, MatcherType, OnMatch,
                    matcher_tree::{MatchMap, TreeType},
                    on_match,
                },
            },
        },
    },
    google::StringValue,
    istio_proxy::{IpMatcher, IpRangeMatcher},
};

use super::{
    ChainKind, Context, Role,
    chains::{self, DIRECT_HTTP, DIRECT_TCP},
    context::inbound_cluster,
    listeners::{AUTHORITY, SOURCE},
    message::any,
};
use crate::compile::registry::{Host, Port, Protocol};

/// The whole tree.
pub(super) fn matcher(context: &Context<'_>) -> Matcher {
    let mut ranges: Vec<_> = context.hosts.iter().map(|host| by_port(context, host)).collect();
    if !context.workloads.is_empty() {
        ranges.push(IpRangeMatcher {
            ranges: context.workloads.iter().map(|ip| range(IpNet::from(*ip))).collect(),
            on_match: Some(on(by_protocol(DIRECT_HTTP, DIRECT_TCP))),
            ..IpRangeMatcher::default()
        });
    }
    let by_address = Matcher {
        matcher_type: Some(MatcherType::MatcherTree(MatcherTree {
            input: Some(input("ip", &DestinationIpInput {})),
            tree_type: Some(TreeType::CustomMatch(TypedExtensionConfig {
                name: "ip".into(),
                typed_config: Some(any(&IpMatcher { range_matchers: ranges })),
            })),
        })),
        on_no_match: None,
    };
    let names = by_authority(context);
    if names.is_empty() {
        return by_address;
    }
    let key = FilterStateInput { key: AUTHORITY.into(), ..FilterStateInput::default() };
    let mut matcher = exact(input("authority-filter-state", &key), names);
    matcher.on_no_match = Some(Box::new(on(by_address)));
    matcher
}

/// What a host's addresses lead to.
fn by_port(context: &Context<'_>, host: &Host) -> IpRangeMatcher {
    let ports =
        chains::served(host).map(|port| (port.number.to_string(), chain(context, host, port)));
    let ports = exact(input("port", &DestinationPortInput {}), ports.collect());
    IpRangeMatcher {
        ranges: context.addresses(host).into_iter().map(range).collect(),
        on_match: Some(on(ports)),
        ..IpRangeMatcher::default()
    }
}

/// What a tunnel from another network asks for by name.
fn by_authority(context: &Context<'_>) -> HashMap<String, OnMatch> {
    if !context.is_multi_network() {
        return HashMap::new();
    }
    let hosts = context.hosts.iter().flat_map(|host| {
        chains::served(host).map(move |port| {
            (format!("{}:{}", host.hostname, port.number), chain(context, host, port))
        })
    });
    hosts.collect()
}

/// Where connections to one port go.
fn chain(context: &Context<'_>, host: &Host, port: &Port) -> OnMatch {
    let chain = |kind| inbound_cluster(host, port, kind, "");
    if context.role == Role::EastWest {
        return at_the_edge(context, host, chain(ChainKind::Tcp));
    }
    if port.protocol == Protocol::Unknown {
        on(by_protocol(&chain(ChainKind::Http), &chain(ChainKind::Tcp)))
    } else if port.protocol.is_http() {
        name(&chain(ChainKind::Http))
    } else {
        name(&chain(ChainKind::Tcp))
    }
}

/// What comes from another network goes to the service's waypoint first, unless it comes from there.
fn at_the_edge(context: &Context<'_>, host: &Host, chain: String) -> OnMatch {
    let Some(waypoint) = context.waypoint_of(host) else { return name(&chain) };
    let through = format!("inbound-vip|{}|tcp|{}", super::listeners::HBONE_PORT, waypoint.hostname);
    let from_gateway = if waypoint.for_gateways { &through } else { &chain };
    let sources = HashMap::from([
        ("waypoint".to_owned(), name(&chain)),
        ("gateway".to_owned(), name(from_gateway)),
    ]);
    let key = FilterStateInput { key: SOURCE.into(), ..FilterStateInput::default() };
    let mut matcher = exact(input("request-source-filter-state", &key), sources);
    matcher.on_no_match = Some(Box::new(name(&through)));
    on(matcher)
}

/// One chain for HTTP, another for whatever else it may be.
fn by_protocol(http: &str, tcp: &str) -> Matcher {
    let http = ["'h2c'", "'http/1.1'"].map(|protocol| (protocol.to_owned(), name(http)));
    let input = input("application-protocol", &ApplicationProtocolInput {});
    let mut matcher = exact(input, HashMap::from(http));
    matcher.on_no_match = Some(Box::new(name(tcp)));
    matcher
}

fn exact(input: TypedExtensionConfig, map: HashMap<String, OnMatch>) -> Matcher {
    Matcher {
        matcher_type: Some(MatcherType::MatcherTree(MatcherTree {
            input: Some(input),
            tree_type: Some(TreeType::ExactMatchMap(MatchMap { map })),
        })),
        on_no_match: None,
    }
}

fn input<M: Message + Name>(name: &str, config: &M) -> TypedExtensionConfig {
    TypedExtensionConfig { name: name.into(), typed_config: Some(any(config)) }
}

fn on(matcher: Matcher) -> OnMatch {
    OnMatch { on_match: Some(on_match::OnMatch::Matcher(Box::new(matcher))), ..OnMatch::default() }
}

/// The chain of that name.
fn name(chain: &str) -> OnMatch {
    let action = TypedExtensionConfig {
        name: chain.into(),
        typed_config: Some(any(&StringValue { value: chain.into() })),
    };
    OnMatch { on_match: Some(on_match::OnMatch::Action(action)), ..OnMatch::default() }
}

fn range(net: IpNet) -> CidrRange {
    let address: IpAddr = net.addr();
    let prefix_len = Some(super::message::number(net.prefix_len().into()));
    CidrRange { address_prefix: address.to_string(), prefix_len }
}
