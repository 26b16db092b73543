//! Where requests and connections to a host go.
//!
//! In: the routes attached to a host. Out: the RouteConfiguration of an HTTP chain, the clusters of a TCP chain, and
//! which further clusters these name.

use std::collections::BTreeSet;

use proto::envoy::envoy::{
    config::route::v3::{
        Decorator, RetryPolicy, Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost,
        retry_policy::{RetryHostPredicate, retry_host_predicate},
        route,
        route_action::ClusterSpecifier,
        route_match::PathSpecifier,
    },
    extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate,
};

use super::{
    ChainKind, Context, ENCAP, inbound_cluster,
    message::{any, flag, number, seconds},
};
use crate::compile::registry::{Host, Port};

/// The routes of requests to one port of a host, or to pods directly.
pub(crate) fn http(
    _context: &Context<'_>,
    host: Option<&Host>,
    port: Option<&Port>,
) -> RouteConfiguration {
    let (cluster, hostname, number) = match (host, port) {
        (Some(host), Some(port)) => {
            (inbound_cluster(host, port, ChainKind::Http, ""), &*host.hostname, port.number)
        }
        _ => (ENCAP.to_owned(), "", 0),
    };
    let route = default_route(&cluster, format!("{hostname}:{number}/*"));
    let domain = match host {
        Some(host) if host.is_wildcard() => hostname,
        _ => "*",
    };
    RouteConfiguration {
        name: cluster,
        validate_clusters: Some(flag(false)),
        max_direct_response_body_size_bytes: Some(super::message::number(1024 * 1024)),
        virtual_hosts: vec![VirtualHost {
            name: format!("inbound|http|{number}"),
            domains: vec![domain.into()],
            routes: vec![route],
            ..VirtualHost::default()
        }],
        ..RouteConfiguration::default()
    }
}

#[expect(deprecated, reason = "max_grpc_timeout is what istiod sends and old proxies read")]
fn default_route(cluster: &str, operation: String) -> Route {
    Route {
        name: "default".into(),
        r#match: Some(RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix("/".into())),
            ..RouteMatch::default()
        }),
        decorator: Some(Decorator { operation, ..Decorator::default() }),
        action: Some(route::Action::Route(RouteAction {
            cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.into())),
            timeout: Some(seconds(0)),
            max_grpc_timeout: Some(seconds(0)),
            retry_policy: Some(default_retries()),
            ..RouteAction::default()
        })),
        ..Route::default()
    }
}

fn default_retries() -> RetryPolicy {
    let previous_hosts = RetryHostPredicate {
        name: "envoy.retry_host_predicates.previous_hosts".into(),
        config_type: Some(retry_host_predicate::ConfigType::TypedConfig(any(
            &PreviousHostsPredicate {},
        ))),
    };
    RetryPolicy {
        num_retries: Some(number(2)),
        retry_on: "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes"
            .into(),
        retry_host_predicate: vec![previous_hosts],
        host_selection_retry_max_attempts: 5,
        ..RetryPolicy::default()
    }
}

/// The clusters of connections to one port of a host with their weights.
pub(crate) fn tcp(_context: &Context<'_>, host: &Host, port: &Port) -> Vec<(String, u32)> {
    vec![(inbound_cluster(host, port, ChainKind::Tcp, ""), 1)]
}

/// The services of others that these routes lead to: namespace and host name.
pub(crate) fn referenced(_context: &Context<'_>) -> BTreeSet<(String, String)> {
    BTreeSet::new()
}
