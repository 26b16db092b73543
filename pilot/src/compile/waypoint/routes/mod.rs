//! Where requests and connections to a host go.
//!
//! In: the rules for a host, as [`Routes`] has them. Out: the RouteConfiguration of an HTTP chain, the clusters of a TCP
//! chain, and which further clusters these name. Makes no cluster and no chain.

mod action;
mod delegate;
mod destination;
mod filters;
pub(crate) mod gateway_api;
mod hash;
mod headers;
mod matches;
mod retry;
mod rule_set;
mod tcp;
#[cfg(test)]
mod tests;
mod wire;

use std::collections::{BTreeSet, HashMap};

use proto::{
    envoy::envoy::config::{
        core::v3::Metadata,
        route::v3::{
            Decorator, Route, RouteAction, RouteConfiguration, VirtualHost, route::Action,
            route_action::ClusterSpecifier, route_match::PathSpecifier,
        },
    },
    google::{Struct, Value, value},
};

use self::{
    destination::Destinations,
    rule_set::{RuleSet, Semantics},
};
pub(crate) use self::{
    rule_set::{Routes, full_name},
    tcp::tcp,
};
use super::{ChainKind, Context, ENCAP, inbound_cluster};
use crate::{
    compile::registry::{Host, Port},
    manifests::{
        Meta,
        networking::{HttpMatch, HttpRule},
    },
};

/// Of answers that routes give themselves.
const MAX_BODY_BYTES: u32 = 1024 * 1024;

/// The gateway that stands for the mesh in a VirtualService.
const MESH: &str = "mesh";

/// The routes of requests to one port of a host, or to pods directly.
pub(crate) fn http(
    context: &Context<'_>,
    host: Option<&Host>,
    port: Option<&Port>,
) -> RouteConfiguration {
    let (Some(host), Some(port)) = (host, port) else {
        return default_routes(context, ENCAP.to_owned(), None);
    };
    let cluster = inbound_cluster(host, port, ChainKind::Http, "");
    let sets = of_host(context, host);
    let routes = sets.into_iter().flat_map(|set| routes_of(context, set, port.number));
    let routes: Vec<Route> = routes.map(|(route, _)| route).collect();
    if routes.is_empty() {
        return default_routes(context, cluster, Some((host, port)));
    }
    configuration(cluster, port.number, domain(host), routes)
}

/// The routes of requests to one port of a host, each with the object that it comes from.
pub(super) fn origins<'m>(
    context: &Context<'m>,
    host: &Host,
    port: &Port,
) -> Vec<(Route, &'m Meta)> {
    let sets = of_host(context, host).into_iter();
    sets.flat_map(|set| routes_of(context, set, port.number)).collect()
}

/// The objects that say where connections to a host go, whether or not they are for the port.
pub(super) fn origins_of_connections<'m>(context: &Context<'m>, host: &Host) -> Vec<&'m Meta> {
    let sets = of_host(context, host).into_iter();
    let sets = sets.filter(|set| !set.tcp.is_empty() || !set.tls.is_empty());
    sets.filter_map(|set| set.of_connections).collect()
}

/// The services beyond this waypoint's own that its routes lead to: namespace and host name. Services outside the mesh
/// have such clusters besides those of their own chains.
pub(crate) fn referenced(context: &Context<'_>) -> BTreeSet<(String, String)> {
    let mut all = BTreeSet::new();
    for host in &context.hosts {
        for set in of_host(context, host) {
            let destinations =
                Destinations { context, namespace: set.namespace, port: 0, kind: ChainKind::Http };
            let found = set.destinations().filter_map(|one| destinations.found(one));
            let beyond = found.filter(|found| !context.owns(found) || found.external);
            all.extend(
                beyond.map(|host| (host.meta.namespace.to_string(), host.hostname.to_string())),
            );
        }
    }
    all
}

fn of_host<'c, 'm>(context: &'c Context<'m>, host: &Host) -> Vec<&'c RuleSet<'m>> {
    let gateway = &context.gateway.meta.namespace;
    context.routes.of_host(&host.hostname, &host.meta.namespace, gateway)
}

fn domain(host: &Host) -> &str {
    if host.is_wildcard() { &host.hostname } else { "*" }
}

fn configuration(name: String, port: u16, domain: &str, routes: Vec<Route>) -> RouteConfiguration {
    RouteConfiguration {
        name,
        virtual_hosts: vec![VirtualHost {
            name: format!("inbound|http|{port}"),
            domains: vec![domain.to_owned()],
            routes,
            ..VirtualHost::default()
        }],
        validate_clusters: wire::flag(false),
        ..RouteConfiguration::default()
    }
}

/// Without rules, everything goes where it was sent to.
fn default_routes(
    context: &Context<'_>,
    cluster: String,
    of: Option<(&Host, &Port)>,
) -> RouteConfiguration {
    let namespace = &context.gateway.meta.namespace;
    let number = of.map_or(0, |(_, port)| port.number);
    let destinations = Destinations { context, namespace, port: number, kind: ChainKind::Http };
    let hash = of.and_then(|(host, port)| destinations.hash_policy(host, port, ""));
    let action = RouteAction {
        hash_policy: hash.into_iter().collect(),
        ..action::default_action(cluster.clone(), &destinations)
    };
    let hostname = of.map_or("", |(host, _)| &*host.hostname);
    let route = Route {
        name: "default".to_owned(),
        r#match: Some(matches::route_match(None, Semantics::VirtualService)),
        decorator: decorator(format!("{hostname}:{number}/*")),
        action: Some(Action::Route(action)),
        ..Route::default()
    };
    let domain = of.map_or("*", |(host, _)| domain(host));
    RouteConfiguration {
        max_direct_response_body_size_bytes: wire::number(MAX_BODY_BYTES),
        ..configuration(cluster, number, domain, vec![route])
    }
}

/// The routes that rules have on a port, up to the first that no request can pass.
fn routes_of<'m>(context: &Context<'m>, set: &RuleSet<'m>, port: u16) -> Vec<(Route, &'m Meta)> {
    let destinations =
        Destinations { context, namespace: set.namespace, port, kind: ChainKind::Http };
    let mut routes = Vec::new();
    let rules = set.http.iter().zip(&set.of_http);
    for (rule, meta) in rules.filter(|(rule, _)| leads_somewhere(rule)) {
        let here = rule.r#match.iter().filter(|one| applies(one, port, context)).map(Some);
        let always = rule.r#match.is_empty().then_some(None);
        for matched in here.chain(always) {
            let route = route(set, rule, matched, &destinations);
            let ends =
                matched.is_none() || route.r#match.as_ref().is_some_and(matches::is_catch_all);
            routes.push((route, *meta));
            if ends {
                return routes;
            }
        }
    }
    routes
}

fn leads_somewhere(rule: &HttpRule) -> bool {
    !rule.route.is_empty() || rule.redirect.is_some() || rule.direct_response.is_some()
}

/// Whether a match can be met at all on this port of this waypoint. The labels of a request's source are not known
/// here, and a waypoint stands for its own namespace.
fn applies(of: &HttpMatch, port: u16, context: &Context<'_>) -> bool {
    if of.port.is_some_and(|wanted| wanted != u32::from(port)) {
        return false;
    }
    if !of.gateways.is_empty() {
        return of.gateways.iter().any(|gateway| gateway == MESH);
    }
    let namespace = &*context.gateway.meta.namespace;
    of.source_labels.is_empty()
        && (of.source_namespace.is_empty() || of.source_namespace == namespace)
}

fn route(
    set: &RuleSet<'_>,
    rule: &HttpRule,
    matched: Option<&HttpMatch>,
    destinations: &Destinations<'_>,
) -> Route {
    let taken = action::action(rule, matched, set.semantics, destinations);
    let names = [rule.name.as_str(), matched.map_or("", |matched| &matched.name)];
    let names: Vec<_> = names.into_iter().filter(|name| !name.is_empty()).collect();
    let r#match = matches::route_match(matched, set.semantics);
    let operation =
        operation(&taken.action, r#match.path_specifier.as_ref(), set, destinations.port);
    Route {
        name: names.join("."),
        r#match: Some(r#match),
        metadata: Some(metadata(set)),
        decorator: decorator(operation),
        typed_per_filter_config: filters::of_rule(rule),
        request_headers_to_add: taken.headers.request_add,
        request_headers_to_remove: taken.headers.request_remove,
        response_headers_to_add: taken.headers.response_add,
        response_headers_to_remove: taken.headers.response_remove,
        stat_prefix: matched.map(|matched| matched.stat_prefix.clone()).unwrap_or_default(),
        action: Some(taken.action),
        ..Route::default()
    }
}

fn decorator(operation: String) -> Option<Decorator> {
    Some(Decorator { operation, propagate: None })
}

/// What traces call the route: its only destination with the path it is for, or else whose rules these are.
fn operation(
    action: &Action,
    path: Option<&PathSpecifier>,
    set: &RuleSet<'_>,
    port: u16,
) -> String {
    let path = match path {
        Some(PathSpecifier::Prefix(prefix)) => format!("{prefix}*"),
        Some(PathSpecifier::Path(path)) => path.clone(),
        Some(PathSpecifier::SafeRegex(matcher)) => matcher.regex.clone(),
        Some(
            PathSpecifier::ConnectMatcher(_)
            | PathSpecifier::PathSeparatedPrefix(_)
            | PathSpecifier::PathMatchPolicy(_),
        )
        | None => "/*".to_owned(),
    };
    let only =
        if let Action::Route(action) = action { action.cluster_specifier.as_ref() } else { None };
    let cluster = if let Some(ClusterSpecifier::Cluster(name)) = only { name.as_str() } else { "" };
    match cluster.split('|').collect::<Vec<_>>().as_slice() {
        [_, port, _, host] => format!("{host}:{port}{path}"),
        _ => format!("{}:{port}{path}", set.name),
    }
}

/// Where the route comes from, as logs and `meshctl` show it.
fn metadata(set: &RuleSet<'_>) -> Metadata {
    let config = format!(
        "/apis/networking.istio.io/v1/namespaces/{}/virtual-service/{}",
        set.namespace, set.name
    );
    let config = Value { kind: Some(value::Kind::StringValue(config)) };
    let istio = Struct { fields: [("config".to_owned(), config)].into_iter().collect() };
    Metadata {
        filter_metadata: HashMap::from([("istio".to_owned(), istio)]),
        ..Metadata::default()
    }
}
