//! The listeners around the one that decides: where tunnels end, and where they begin.
//!
//! In: the mesh's settings and who the client is. Out: `connect_terminate`, which takes tunnels and hands their
//! streams to `main_internal`, and those that carry what leaves: `connect_originate` into a tunnel,
//! `inner_connect_originate` and `outer_connect_originate` into a tunnel within a tunnel to another network's gateway,
//! `forward_inner_connect` on to who must end the inner one.

use proto::envoy::envoy::{
    config::{
        core::v3::{
            HeaderValue, HeaderValueOption, Http2ProtocolOptions, KeepaliveSettings,
            header_value_option::HeaderAppendAction,
        },
        listener::v3::{
            AdditionalAddress, Filter, FilterChain, Listener, ListenerFilter,
            listener::{
                ConnectionBalanceConfig, InternalListenerConfig, ListenerSpecifier,
                connection_balance_config::{BalanceType, ExactBalance},
            },
        },
        route::v3::{
            Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, route,
            route_action::{self, upgrade_config::ConnectConfig},
            route_match::{ConnectMatcher, PathSpecifier},
        },
    },
    extensions::filters::{
        common::set_filter_state::v3::{FilterStateValue, filter_state_value::SharedWithUpstream},
        http::{router::v3::Router, set_filter_state::v3 as http_filter_state},
        listener::original_dst::v3::OriginalDst,
        network::{
            http_connection_manager::v3::{
                HttpConnectionManager, HttpFilter,
                http_connection_manager::{
                    ForwardClientCertDetails, RouteSpecifier, SetCurrentClientCertDetails,
                    UpgradeConfig,
                },
            },
            set_filter_state::v3 as network_filter_state,
            tcp_proxy::v3::{
                TcpProxy,
                tcp_proxy::{ClusterSpecifier, TunnelingConfig},
            },
        },
    },
};

use super::{
    Context, Role,
    message::{
        any, filter, filter_state, flag, format_string, http_filter, json_bool, json_list,
        json_object, json_struct, listener_filter, number, seconds, socket_address,
        transport_socket, typed_struct,
    },
    telemetry, tls,
};

/// Where tunnels are taken.
pub(super) const HBONE_PORT: u16 = 15008;
/// What is in a tunnel arrives here.
pub(super) const MAIN_INTERNAL: &str = "main_internal";
/// From here it goes into a tunnel to a workload.
pub(super) const CONNECT_ORIGINATE: &str = "connect_originate";
/// From here it goes into the inner one of two tunnels.
pub(super) const INNER_CONNECT_ORIGINATE: &str = "inner_connect_originate";
/// From here the inner one goes into the outer one.
pub(super) const OUTER_CONNECT_ORIGINATE: &str = "outer_connect_originate";
/// From here the inner one goes on to who must end it.
pub(super) const FORWARD_INNER_CONNECT: &str = "forward_inner_connect";

/// Where a connection was going, as tunnels carry it on.
pub(super) const DESTINATION: &str = "envoy.filters.listener.original_dst.local_ip";
/// What the tunnel was asked for: an address or a host name.
pub(super) const AUTHORITY: &str = "io.istio.connect_authority";
/// Who opened the tunnel: another waypoint or an ingress gateway, if it says so.
pub(super) const SOURCE: &str = "io.istio.source";
/// What a remote network's gateway is asked for.
const DOUBLE_HBONE_TARGET: &str = "istio.double_hbone.hbone_target_address";

/// All of them, without `main_internal`.
pub(super) fn listeners(context: &Context<'_>) -> Vec<Listener> {
    let mut listeners = vec![connect_terminate(context)];
    match context.role {
        Role::Waypoint => listeners.extend([
            connect_originate(context),
            inner_connect_originate(context),
            outer_connect_originate(context),
        ]),
        Role::EastWest => listeners.push(forward_inner_connect(context)),
    }
    listeners
}

fn connect_terminate(context: &Context<'_>) -> Listener {
    let manager =
        filter("envoy.filters.network.http_connection_manager", any(&terminator(context)));
    let chain = FilterChain {
        name: "default".into(),
        filters: vec![manager],
        transport_socket: Some(transport_socket("tls", any(&tls::accepting(context.config)))),
        ..FilterChain::default()
    };
    let mut addresses = context.client.wildcards().map(|ip| socket_address(ip, HBONE_PORT));
    Listener {
        name: "connect_terminate".into(),
        address: addresses.next(),
        additional_addresses: addresses
            .map(|address| AdditionalAddress {
                address: Some(address),
                ..AdditionalAddress::default()
            })
            .collect(),
        filter_chains: vec![chain],
        connection_balance_config: Some(ConnectionBalanceConfig {
            balance_type: Some(BalanceType::ExactBalance(ExactBalance {})),
        }),
        access_log: telemetry::around(context).unmatched,
        ..Listener::default()
    }
}

/// Ends tunnels: only CONNECT is taken, whatever it asks for.
fn terminator(context: &Context<'_>) -> HttpConnectionManager {
    HttpConnectionManager {
        stat_prefix: "connect_terminate".into(),
        server_name: "istio-envoy".into(),
        use_remote_address: Some(flag(false)),
        stream_idle_timeout: Some(seconds(0)),
        forward_client_cert_details: ForwardClientCertDetails::AppendForward.into(),
        set_current_client_cert_details: Some(SetCurrentClientCertDetails {
            subject: Some(flag(true)),
            dns: true,
            uri: true,
            ..SetCurrentClientCertDetails::default()
        }),
        upgrade_configs: vec![UpgradeConfig {
            upgrade_type: "CONNECT".into(),
            ..UpgradeConfig::default()
        }],
        http2_protocol_options: Some(Http2ProtocolOptions {
            allow_connect: true,
            max_concurrent_streams: Some(number(100)),
            connection_keepalive: Some(KeepaliveSettings {
                interval: Some(seconds(10)),
                timeout: Some(seconds(20)),
                ..KeepaliveSettings::default()
            }),
            ..Http2ProtocolOptions::default()
        }),
        access_log: telemetry::around(context).refused,
        http_filters: terminator_filters(context),
        route_specifier: Some(RouteSpecifier::RouteConfig(connect_route())),
        ..HttpConnectionManager::default()
    }
}

fn connect_route() -> RouteConfiguration {
    let route = Route {
        r#match: Some(RouteMatch {
            path_specifier: Some(PathSpecifier::ConnectMatcher(ConnectMatcher {})),
            ..RouteMatch::default()
        }),
        action: Some(route::Action::Route(RouteAction {
            cluster_specifier: Some(route_action::ClusterSpecifier::Cluster(MAIN_INTERNAL.into())),
            upgrade_configs: vec![route_action::UpgradeConfig {
                upgrade_type: "CONNECT".into(),
                connect_config: Some(ConnectConfig::default()),
                ..route_action::UpgradeConfig::default()
            }],
            ..RouteAction::default()
        })),
        ..Route::default()
    };
    RouteConfiguration {
        name: "default".into(),
        virtual_hosts: vec![VirtualHost {
            name: "default".into(),
            domains: vec!["*".into()],
            routes: vec![route],
            ..VirtualHost::default()
        }],
        ..RouteConfiguration::default()
    }
}

fn terminator_filters(context: &Context<'_>) -> Vec<HttpFilter> {
    let text = context.client.text_factory();
    let keep = |key: &str, factory: &str, text: &str| {
        filter_state(key, factory, format_string(text), SharedWithUpstream::Once)
    };
    let on_request_headers = vec![
        keep(DESTINATION, "", "%REQ(:AUTHORITY)%"),
        keep(AUTHORITY, text, "%REQ(:AUTHORITY)%"),
        keep("envoy.filters.listener.original_dst.remote_ip", "", "%DOWNSTREAM_REMOTE_ADDRESS%"),
        keep("io.istio.peer_principal", text, "%DOWNSTREAM_PEER_URI_SAN%"),
        keep("io.istio.local_principal", text, "%DOWNSTREAM_LOCAL_URI_SAN%"),
    ];
    let keeping = |values| http_filter_state::Config {
        on_request_headers: values,
        ..http_filter_state::Config::default()
    };
    let mut filters = Vec::new();
    if context.client.has_istio_extensions() {
        filters.push(http_filter("waypoint_downstream_peer_metadata", downstream_peer()));
    }
    filters.push(http_filter("connect_authority", any(&keeping(on_request_headers))));
    if context.role == Role::EastWest {
        let source = keep(SOURCE, text, "%REQ(x-istio-source)%");
        filters.push(http_filter("request_source", any(&keeping(vec![source]))));
    }
    filters.push(http_filter("envoy.filters.http.router", any(&Router::default())));
    filters
}

/// Has Istio's proxy find out who the client is, for telemetry.
fn downstream_peer() -> proto::google::Any {
    let discovery =
        json_struct(json_object([("workload_discovery", json_struct(json_object([])))]));
    typed_struct(
        "io.istio.http.peer_metadata.Config",
        json_object([
            ("downstream_discovery", json_list(vec![discovery])),
            ("shared_with_upstream", json_bool(true)),
        ]),
    )
}

fn connect_originate(context: &Context<'_>) -> Listener {
    let proxy = TcpProxy {
        tunneling_config: Some(TunnelingConfig {
            hostname: "%DOWNSTREAM_LOCAL_ADDRESS%".into(),
            ..TunnelingConfig::default()
        }),
        ..tcp_proxy(context, CONNECT_ORIGINATE)
    };
    Listener {
        listener_filters: vec![original_dst()],
        ..internal(context, CONNECT_ORIGINATE, vec![proxy_filter(&proxy)])
    }
}

fn inner_connect_originate(context: &Context<'_>) -> Listener {
    let keep = |key: &str, factory: &str, metadata: &str| -> FilterStateValue {
        let format = format_string(&format!("%DYNAMIC_METADATA({metadata})%"));
        filter_state(key, factory, format, SharedWithUpstream::Transitive)
    };
    let target = "istio:double_hbone:hbone_target_address";
    let metadata = network_filter_state::Config {
        on_new_connection: vec![
            keep(DESTINATION, "", "envoy.filters.listener.original_dst:local"),
            keep(DOUBLE_HBONE_TARGET, context.client.text_factory(), target),
        ],
        ..network_filter_state::Config::default()
    };
    let proxy = TcpProxy {
        tunneling_config: Some(double_hbone("x-forwarded-network", &context.client.network)),
        ..tcp_proxy(context, INNER_CONNECT_ORIGINATE)
    };
    let filters = vec![filter("propagate_endpoint_metadata", any(&metadata)), proxy_filter(&proxy)];
    internal(context, INNER_CONNECT_ORIGINATE, filters)
}

fn outer_connect_originate(context: &Context<'_>) -> Listener {
    let proxy = TcpProxy {
        tunneling_config: Some(double_hbone("x-istio-source", "waypoint")),
        ..tcp_proxy(context, OUTER_CONNECT_ORIGINATE)
    };
    Listener {
        listener_filters: vec![original_dst()],
        ..internal(context, OUTER_CONNECT_ORIGINATE, vec![proxy_filter(&proxy)])
    }
}

fn forward_inner_connect(context: &Context<'_>) -> Listener {
    let proxy = tcp_proxy(context, FORWARD_INNER_CONNECT);
    Listener {
        listener_filters: vec![original_dst()],
        ..internal(context, FORWARD_INNER_CONNECT, vec![proxy_filter(&proxy)])
    }
}

/// One of two tunnels, both for the same destination.
fn double_hbone(header: &str, value: &str) -> TunnelingConfig {
    let header = HeaderValue { key: header.into(), value: value.into(), ..HeaderValue::default() };
    TunnelingConfig {
        hostname: format!("%FILTER_STATE({DOUBLE_HBONE_TARGET}:PLAIN)%"),
        headers_to_add: vec![HeaderValueOption {
            header: Some(header),
            append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
            ..HeaderValueOption::default()
        }],
        ..TunnelingConfig::default()
    }
}

/// A proxy to the cluster that is called like its listener.
fn tcp_proxy(context: &Context<'_>, name: &str) -> TcpProxy {
    TcpProxy {
        stat_prefix: name.into(),
        cluster_specifier: Some(ClusterSpecifier::Cluster(name.into())),
        access_log: telemetry::around(context).failed,
        ..TcpProxy::default()
    }
}

/// The last filter of a chain that knows of bytes only.
pub(super) fn proxy_filter(proxy: &TcpProxy) -> Filter {
    filter("envoy.filters.network.tcp_proxy", any(proxy))
}

/// Takes the addresses that were kept when the tunnel ended.
pub(super) fn original_dst() -> ListenerFilter {
    listener_filter("envoy.filters.listener.original_dst", any(&OriginalDst {}))
}

/// A listener that only clusters of the same Envoy reach.
fn internal(context: &Context<'_>, name: &str, filters: Vec<Filter>) -> Listener {
    Listener {
        name: name.into(),
        use_original_dst: Some(flag(false)),
        listener_specifier: Some(internal_listener()),
        filter_chains: vec![FilterChain { filters, ..FilterChain::default() }],
        access_log: telemetry::around(context).unmatched,
        ..Listener::default()
    }
}

/// Says that a listener is inside Envoy.
pub(super) fn internal_listener() -> ListenerSpecifier {
    ListenerSpecifier::InternalListener(InternalListenerConfig {})
}
