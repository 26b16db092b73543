//! Routes of the Gateway API as rules of a VirtualService.
//!
//! In: HTTPRoutes, GRPCRoutes, TCPRoutes and TLSRoutes whose parent is a Service or a ServiceEntry. Out: one
//! [`RuleSet`] for each namespace, host and port that routes are for, its rules in the order of the Gateway API's
//! precedence. A rule that cannot be followed answers 500: it is neither dropped nor half applied.

mod backend;
mod filters;
mod rules;

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use super::rule_set::{RuleSet, Semantics, full_name};
pub(crate) use backend::{BackendKind, backend_host, backend_kind};
pub(crate) use filters::{is_supported_grpc_filter, is_supported_http_filter};

use crate::manifests::{
    Manifests, Meta, Object,
    gateway_api::{GATEWAY_GROUP, GrpcRoute, HttpRoute, ParentReference, TcpRoute, TlsRoute},
    networking::{HttpMatch, HttpRule, ServiceEntry, TcpMatch, TcpRule, TlsMatch, TlsRule},
};

/// The group of Istio's networking kinds.
pub(crate) const NETWORKING_GROUP: &str = "networking.istio.io";

/// Where a route applies, if that is in the mesh.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum ParentKind {
    Service,
    ServiceEntry,
    Gateway,
    Other,
}

/// What a parent is.
pub(crate) fn parent_kind(of: &ParentReference) -> ParentKind {
    match (of.group(), of.kind()) {
        ("", "Service") => ParentKind::Service,
        (NETWORKING_GROUP, "ServiceEntry") => ParentKind::ServiceEntry,
        (GATEWAY_GROUP, "Gateway") => ParentKind::Gateway,
        _ => ParentKind::Other,
    }
}

/// Rules of one namespace, for one host, on one port or on all.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Key<'a> {
    namespace: &'a str,
    host: String,
    port: Option<u16>,
}

/// A rule, and the route that has it.
type Written<'a> = (HttpRule, &'a Meta);

struct Parents<'a> {
    entries: BTreeMap<(&'a str, &'a str), &'a ServiceEntry>,
    cluster_domain: &'a str,
}

impl<'a> Parents<'a> {
    /// The hosts in the mesh that a route is for.
    fn keys(&self, meta: &'a Meta, references: &[ParentReference]) -> Vec<Key<'a>> {
        let mut keys = Vec::new();
        for parent in references {
            let namespace = parent.namespace.as_deref().unwrap_or(&meta.namespace);
            let hosts = match parent_kind(parent) {
                ParentKind::Service => {
                    vec![format!("{}.{namespace}.svc.{}", parent.name, self.cluster_domain)]
                }
                ParentKind::ServiceEntry => {
                    let entry = self.entries.get(&(namespace, parent.name.as_str()));
                    entry.map(|entry| entry.hosts.clone()).unwrap_or_default()
                }
                ParentKind::Gateway | ParentKind::Other => Vec::new(),
            };
            let hosts = hosts.into_iter();
            keys.extend(hosts.map(|host| Key {
                namespace: &meta.namespace,
                host,
                port: parent.port,
            }));
        }
        keys.sort();
        keys.dedup();
        keys
    }
}

/// All of them.
pub(super) fn rule_sets<'a>(manifests: &'a Manifests, cluster_domain: &'a str) -> Vec<RuleSet<'a>> {
    let entries = manifests.service_entries.iter();
    let entries = entries.map(|entry| ((&*entry.meta.namespace, &*entry.meta.name), &entry.spec));
    let parents = Parents { entries: entries.collect(), cluster_domain };
    let mut sets = of_requests(manifests, &parents);
    let tcp = manifests.tcp_routes.iter().flat_map(|route| of_tcp_route(route, &parents));
    sets.extend(tcp);
    let tls = manifests.tls_routes.iter().flat_map(|route| of_tls_route(route, &parents));
    sets.extend(tls);
    sets
}

/// HTTPRoutes and GRPCRoutes: those of one key become one set.
fn of_requests<'a>(manifests: &'a Manifests, parents: &Parents<'a>) -> Vec<RuleSet<'a>> {
    enum Route<'a> {
        Http(&'a HttpRoute),
        Grpc(&'a GrpcRoute),
    }
    let http = manifests.http_routes.iter().map(|one| (&one.meta, Route::Http(&one.spec)));
    let grpc = manifests.grpc_routes.iter().map(|one| (&one.meta, Route::Grpc(&one.spec)));
    let mut all: Vec<_> = http.chain(grpc).collect();
    all.sort_by(|(a, _), (b, _)| a.seniority().cmp(&b.seniority()));

    let mut sets: BTreeMap<Key<'a>, (&'a str, Vec<Written<'a>>)> = BTreeMap::new();
    for (meta, route) in all {
        let (references, rules) = match route {
            Route::Http(route) => {
                (&route.parent_refs, rules::of_http_route(meta, route, parents.cluster_domain))
            }
            Route::Grpc(route) => {
                (&route.parent_refs, rules::of_grpc_route(meta, route, parents.cluster_domain))
            }
        };
        for key in parents.keys(meta, references) {
            let mut rules = rules.clone();
            rules.iter_mut().for_each(|rule| restrict(rule, key.port));
            let (_, all) = sets.entry(key).or_insert_with(|| (&meta.created, Vec::new()));
            all.extend(rules.into_iter().map(|rule| (rule, meta)));
        }
    }
    let sets = sets.into_iter();
    sets.map(|(key, (created, mut http))| {
        http.sort_by(|(a, _), (b, _)| rank(b).cmp(&rank(a)));
        let (http, of_http): (Vec<_>, _) = http.into_iter().unzip();
        RuleSet { http: Cow::Owned(http), of_http, created, ..empty(key) }
    })
    .collect()
}

/// How closely a rule's only match describes a request: the closer is tried first.
fn rank(rule: &HttpRule) -> impl Ord {
    let Some(HttpMatch { uri, method, headers, query_params, .. }) = rule.r#match.first() else {
        return (0, 0, false, 0, 0);
    };
    let uri = uri.as_ref();
    let exact = uri.and_then(|uri| uri.exact.as_ref()).map(|path| (3, path.len()));
    let prefix = uri.and_then(|uri| uri.prefix.as_ref()).map(|path| (2, path.len()));
    let regex = uri.and_then(|uri| uri.regex.as_ref()).map(|path| (1, path.len()));
    let (kind, length) = exact.or(prefix).or(regex).unwrap_or_default();
    (kind, length, method.is_some(), headers.len(), query_params.len())
}

fn restrict(rule: &mut HttpRule, port: Option<u16>) {
    let Some(port) = port else { return };
    if rule.r#match.is_empty() {
        rule.r#match.push(HttpMatch::default());
    }
    for one in &mut rule.r#match {
        one.port = Some(port.into());
    }
}

fn empty(key: Key<'_>) -> RuleSet<'_> {
    let port = key.port.map(|port| format!("{port}~")).unwrap_or_default();
    RuleSet {
        namespace: key.namespace,
        name: Cow::Owned(format!("{}~{port}{}", key.namespace, key.host)),
        semantics: Semantics::GatewayApi,
        hosts: vec![key.host],
        http: Cow::Borrowed(&[]),
        of_http: Vec::new(),
        of_connections: None,
        tls: Cow::Borrowed(&[]),
        tcp: Cow::Borrowed(&[]),
        export_to: &[],
        created: "",
    }
}

/// Rules of one route for one host.
fn of_connections<'a>(meta: &'a Meta, key: Key<'a>) -> RuleSet<'a> {
    RuleSet {
        created: &meta.created,
        name: Cow::Borrowed(&meta.name),
        of_connections: Some(meta),
        ..empty(key)
    }
}

fn of_tcp_route<'a>(route: &'a Arc<Object<TcpRoute>>, parents: &Parents<'a>) -> Vec<RuleSet<'a>> {
    let Object { meta, spec } = route.as_ref();
    let keys = parents.keys(meta, &spec.parent_refs).into_iter();
    keys.map(|key| {
        let port = key.port.map(u32::from);
        let matches: Vec<_> = port
            .map(|port| TcpMatch { port: Some(port), ..Default::default() })
            .into_iter()
            .collect();
        let tcp = spec.rules.iter().map(|rule| TcpRule {
            r#match: matches.clone(),
            route: backend::connections(&rule.backend_refs, meta, parents.cluster_domain),
        });
        let tcp = Cow::Owned(tcp.collect());
        RuleSet { tcp, ..of_connections(meta, key) }
    })
    .collect()
}

fn of_tls_route<'a>(route: &'a Arc<Object<TlsRoute>>, parents: &Parents<'a>) -> Vec<RuleSet<'a>> {
    let Object { meta, spec } = route.as_ref();
    let keys = parents.keys(meta, &spec.parent_refs).into_iter();
    keys.map(|key| {
        let names = if spec.hostnames.is_empty() {
            vec![key.host.clone()]
        } else {
            spec.hostnames
                .iter()
                .map(|name| full_name(name, &meta.namespace, parents.cluster_domain).into_owned())
                .collect()
        };
        let port = key.port.map(u32::from);
        let matched = TlsMatch { sni_hosts: names, port, ..Default::default() };
        let tls = spec.rules.iter().map(|rule| TlsRule {
            r#match: vec![matched.clone()],
            route: backend::connections(&rule.backend_refs, meta, parents.cluster_domain),
        });
        let tls = Cow::Owned(tls.collect());
        RuleSet { tls, ..of_connections(meta, key) }
    })
    .collect()
}
