//! Chains of requests.
//!
//! In: a port of a host, or none for pods that are reached directly. Out: the filter that takes connections apart
//! into requests, with the filters of requests in their order.

use proto::{
    envoy::envoy::{
        config::{
            common::mutation_rules::v3::{HeaderMutation, header_mutation},
            core::v3::{
                HeaderValue, HeaderValueOption, Http1ProtocolOptions, Http2ProtocolOptions,
                HttpProtocolOptions, header_value_option::HeaderAppendAction,
            },
            listener::v3::Filter,
        },
        extensions::{
            filters::{
                http::{
                    cors::v3::Cors, dynamic_forward_proxy::v3 as dynamic_forward_proxy,
                    fault::v3::HttpFault, grpc_stats::v3 as grpc_stats, grpc_web::v3::GrpcWeb,
                    header_mutation::v3 as header_mutation_filter, router::v3::Router,
                },
                network::http_connection_manager::v3::{
                    HttpConnectionManager, HttpFilter, RequestIdExtension,
                    http_connection_manager::{
                        ForwardClientCertDetails, PathWithEscapedSlashesAction, RouteSpecifier,
                        UpgradeConfig,
                    },
                },
            },
            request_id::uuid::v3::UuidRequestIdConfig,
        },
    },
    google::Any,
};

use super::{
    Context, clusters,
    message::{
        any, duration, filter, flag, http_filter, json_list, json_object, json_struct, seconds,
        typed_struct,
    },
    policy, routes, telemetry,
};
use crate::compile::{
    mesh_config::Normalization,
    registry::{Host, Port, Protocol},
};

/// The filter of the chain.
pub(super) fn manager(context: &Context<'_>, host: Option<&Host>, port: Option<&Port>) -> Filter {
    let telemetry = telemetry::telemetry(context, host);
    let number = port.map_or(0, |port| port.number);
    let normalization = context.config.path_normalization.normalization;
    let mut manager = HttpConnectionManager {
        stat_prefix: format!("inbound_0.0.0.0_{number};"),
        server_name: "istio-envoy".into(),
        use_remote_address: Some(flag(false)),
        proxy_100_continue: true,
        stream_idle_timeout: Some(seconds(0)),
        upgrade_configs: vec![UpgradeConfig {
            upgrade_type: "websocket".into(),
            ..UpgradeConfig::default()
        }],
        request_id_extension: Some(request_id(telemetry.samples_by_request_id)),
        access_log: telemetry.http_logs.clone(),
        tracing: telemetry.tracing.clone(),
        http_filters: filters(context, host, port, telemetry.http_stats),
        http2_protocol_options: port
            .filter(|port| port.protocol.is_http2())
            .map(|_| Http2ProtocolOptions::default()),
        route_specifier: Some(RouteSpecifier::RouteConfig(routes::http(context, host, port))),
        ..HttpConnectionManager::default()
    };
    if names_client(context) {
        manager.forward_client_cert_details = ForwardClientCertDetails::AlwaysForwardOnly.into();
    }
    normalize(&mut manager, normalization);
    apply_client(&mut manager, context);
    filter("envoy.filters.network.http_connection_manager", any(&manager))
}

/// How a path is brought into one form before anything looks at it.
fn normalize(manager: &mut HttpConnectionManager, normalization: Normalization) {
    let (paths, slashes, escaped) = match normalization {
        Normalization::Default | Normalization::Base => {
            (true, false, PathWithEscapedSlashesAction::KeepUnchanged)
        }
        Normalization::None => (false, false, PathWithEscapedSlashesAction::KeepUnchanged),
        Normalization::MergeSlashes => (true, true, PathWithEscapedSlashesAction::KeepUnchanged),
        Normalization::DecodeAndMergeSlashes => {
            (true, true, PathWithEscapedSlashesAction::UnescapeAndForward)
        }
    };
    manager.normalize_path = Some(flag(paths));
    manager.merge_slashes = slashes;
    manager.path_with_escaped_slashes_action = escaped.into();
}

/// What the proxy itself was set up with.
fn apply_client(manager: &mut HttpConnectionManager, context: &Context<'_>) {
    if context.client.http_10 {
        manager.http_protocol_options =
            Some(Http1ProtocolOptions { accept_http_10: true, ..Http1ProtocolOptions::default() });
    }
    if let Some(idle) = context.client.idle_timeout {
        manager.common_http_protocol_options = Some(HttpProtocolOptions {
            idle_timeout: Some(duration(idle)),
            ..HttpProtocolOptions::default()
        });
    }
}

/// Whether the Gateway wants servers to be told who the client is.
fn names_client(context: &Context<'_>) -> bool {
    let annotation = "ambient.istio.io/xfcc-include-client-identity";
    context.gateway.meta.annotations.get(annotation).is_some_and(|value| value == "true")
}

/// Writes who the client is over whatever the request says of it.
fn client_identity() -> Any {
    let value = HeaderValue {
        key: "x-forwarded-client-cert".into(),
        value: "By=%FILTER_STATE(io.istio.local_principal:PLAIN)%;\
                URI=%FILTER_STATE(io.istio.peer_principal:PLAIN)%"
            .into(),
        ..HeaderValue::default()
    };
    let mutation = HeaderMutation {
        action: Some(header_mutation::Action::Append(HeaderValueOption {
            header: Some(value),
            append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
            ..HeaderValueOption::default()
        })),
    };
    any(&header_mutation_filter::HeaderMutation {
        mutations: Some(header_mutation_filter::Mutations {
            request_mutations: vec![mutation],
            ..header_mutation_filter::Mutations::default()
        }),
        ..header_mutation_filter::HeaderMutation::default()
    })
}

fn request_id(samples: bool) -> RequestIdExtension {
    let config = UuidRequestIdConfig {
        use_request_id_for_trace_sampling: Some(flag(samples)),
        ..UuidRequestIdConfig::default()
    };
    RequestIdExtension { typed_config: Some(any(&config)) }
}

/// In the order in which they see a request: who it is from decides before what a route asks for.
fn filters(
    context: &Context<'_>,
    host: Option<&Host>,
    port: Option<&Port>,
    stats: Vec<HttpFilter>,
) -> Vec<HttpFilter> {
    let policy = policy::http_filters(context, host, port);
    let mut filters = Vec::new();
    if names_client(context) {
        filters.push(http_filter("istio.waypoint.xfcc_client_identity", client_identity()));
    }
    filters.extend(policy.before);
    if port.is_some_and(|port| port.protocol == Protocol::GrpcWeb) {
        filters.push(http_filter("envoy.filters.http.grpc_web", any(&GrpcWeb {})));
    }
    filters.push(http_filter("envoy.filters.http.grpc_stats", grpc_stats()));
    filters.push(http_filter("envoy.filters.http.fault", any(&HttpFault::default())));
    filters.push(http_filter("envoy.filters.http.cors", any(&Cors {})));
    if let Some(host) = host.filter(|host| host.is_wildcard()) {
        let name = "envoy.filters.http.dynamic_forward_proxy";
        filters.push(http_filter(name, forward_proxy(context, host)));
    }
    filters.extend(policy.after);
    if context.client.has_istio_extensions() {
        filters.push(http_filter("waypoint_upstream_peer_metadata", upstream_peer()));
    }
    filters.extend(stats);
    filters.push(http_filter("envoy.filters.http.router", any(&Router::default())));
    filters
}

fn grpc_stats() -> Any {
    any(&grpc_stats::FilterConfig {
        emit_filter_state: true,
        per_method_stat_specifier: Some(
            grpc_stats::filter_config::PerMethodStatSpecifier::StatsForAllMethods(flag(false)),
        ),
        ..grpc_stats::FilterConfig::default()
    })
}

/// Looks up the name that a request is for, below a wildcard.
fn forward_proxy(context: &Context<'_>, host: &Host) -> Any {
    any(&dynamic_forward_proxy::FilterConfig {
        implementation_specifier: Some(
            dynamic_forward_proxy::filter_config::ImplementationSpecifier::DnsCacheConfig(
                clusters::dns_cache(context, host),
            ),
        ),
        ..dynamic_forward_proxy::FilterConfig::default()
    })
}

/// Has Istio's proxy find out who the server is, for telemetry.
fn upstream_peer() -> Any {
    let discovery =
        json_struct(json_object([("workload_discovery", json_struct(json_object([])))]));
    typed_struct(
        "io.istio.http.peer_metadata.Config",
        json_object([("upstream_discovery", json_list(vec![discovery]))]),
    )
}
