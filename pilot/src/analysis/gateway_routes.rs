//! Routes of the Gateway API that are not followed, or not as they read.
//!
//! In: HTTPRoutes, GRPCRoutes, TCPRoutes and TLSRoutes with parents in the mesh. Out: findings. Routes of Gateways are
//! those of ingress gateways, and none of ours.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    Code, Findings,
    hosts::is_of_requests,
    routes::{self, About, Route},
    view::View,
};
use crate::{
    compile::{
        registry::{Host, Protocol},
        route_rules::{ParentKind, parent_kind},
    },
    manifests::{
        Meta,
        gateway_api::{HttpPathMatch, HttpRouteMatch, NamedMatch, ParentReference},
    },
};

pub(super) fn find(view: &View<'_>, findings: &mut Findings) {
    for route in routes::all(view.manifests) {
        for rule in &route.rules {
            check_rule(&route, rule, findings);
        }
        for (i, parent) in route.parents.iter().enumerate() {
            check_parent(view, &route, parent, &format!("spec.parentRefs[{i}]"), findings);
        }
    }
    same_matches(view, findings);
}

fn check_rule(route: &Route<'_>, rule: &routes::Rule, findings: &mut Findings) {
    if let Some((field, kind)) = &rule.unsupported {
        let reason = format!("{kind} is not applied: the rule is answered with 500");
        findings.add(Code::AnswersError, route.meta, field, reason);
    } else if !rule.leads_somewhere {
        let reason = match route.of {
            About::Requests => "none with a weight: requests are answered with 500",
            About::Connections => "none with a weight: connections are closed",
        };
        findings.add(Code::NoBackends, route.meta, &format!("{}.backendRefs", rule.field), reason);
    }
    if let Some(name) = rule.unfollowed {
        let field = format!("{}.{name}", rule.field);
        findings.add(Code::FieldNotFollowed, route.meta, &field, "not followed");
    }
}

/// The hosts in the mesh that a parent is.
fn hosts<'v>(view: &'v View<'_>, route: &Meta, parent: &ParentReference) -> Vec<&'v Arc<Host>> {
    let namespace = parent.namespace.as_deref().unwrap_or(&route.namespace);
    match parent_kind(parent) {
        ParentKind::Service => view.of_service(namespace, &parent.name),
        ParentKind::ServiceEntry => view.of_entry(namespace, &parent.name),
        ParentKind::Gateway | ParentKind::Other => Vec::new(),
    }
}

fn check_parent(
    view: &View<'_>,
    route: &Route<'_>,
    parent: &ParentReference,
    field: &str,
    findings: &mut Findings,
) {
    let hosts = hosts(view, route.meta, parent);
    let Some(first) = hosts.first() else { return };
    if parent.section_name.is_some() && parent_kind(parent) == ParentKind::Service {
        let field = format!("{field}.sectionName");
        let reason = "of a Service it means nothing: the route is for all ports; say port";
        findings.add(Code::FieldNotFollowed, route.meta, &field, reason);
    }
    let guarded: Vec<_> =
        hosts.iter().filter_map(|host| view.guard(host).map(|guard| (host, guard))).collect();
    let Some((_, waypoint)) = guarded.first() else {
        let reason = format!("{} has no waypoint to follow the route", first.hostname);
        return findings.add(Code::RouteWithoutWaypoint, route.meta, field, reason);
    };
    let own = &*route.meta.namespace;
    if *first.meta.namespace != *own && *waypoint.meta.namespace != *own {
        let reason = format!(
            "{} is of namespace {}, its waypoint of {}",
            first.hostname, first.meta.namespace, waypoint.meta.namespace
        );
        return findings.add(Code::ForeignRoute, route.meta, field, reason);
    }
    let fits = |protocol: Protocol| match route.of {
        About::Requests => is_of_requests(protocol),
        About::Connections => protocol.is_tcp() || protocol == Protocol::Unknown,
    };
    let mut ports = hosts.iter().flat_map(|host| &host.ports);
    let concerned = |number: u16| parent.port.is_none_or(|wanted| wanted == number);
    if !ports.any(|port| concerned(port.number) && fits(port.protocol)) {
        let spoken = match route.of {
            About::Requests => "HTTP",
            About::Connections => "TCP or TLS",
        };
        let reason = format!("no such port of {} speaks {spoken}", first.hostname);
        findings.add(Code::OtherProtocol, route.meta, field, reason);
    }
}

/// A match as it is tried: the defaults written out.
type Tried = (
    Option<(String, String)>,
    Vec<(String, String, String)>,
    Vec<(String, String, String)>,
    Option<String>,
);

/// Of two equal matches for one parent, the older route's counts, or the first in the list.
fn same_matches(view: &View<'_>, findings: &mut Findings) {
    let mut routes: Vec<_> = view.manifests.http_routes.iter().collect();
    routes.sort_by_key(|route| route.meta.seniority());
    let mut known: BTreeMap<(String, Option<u16>, Tried), (String, String)> = BTreeMap::new();
    for route in routes {
        let parents = route.spec.parent_refs.iter();
        let parents = parents.flat_map(|parent| {
            let hosts = hosts(view, &route.meta, parent);
            // Routes of one namespace are merged with each other.
            let key = |host: &&Arc<Host>| format!("{} {}", route.meta.namespace, host.key());
            hosts.iter().map(key).map(|key| (key, parent.port)).collect::<Vec<_>>()
        });
        let parents: Vec<_> = parents.collect();
        for (i, rule) in route.spec.rules.iter().enumerate() {
            let all = [HttpRouteMatch::default()];
            let matches = if rule.matches.is_empty() { &all[..] } else { &rule.matches };
            for (j, one) in matches.iter().enumerate() {
                let field = if rule.matches.is_empty() {
                    format!("spec.rules[{i}]")
                } else {
                    format!("spec.rules[{i}].matches[{j}]")
                };
                for (host, port) in &parents {
                    let key = (host.clone(), *port, tried(one));
                    let place = (route.meta.title(), field.clone());
                    let first = known.entry(key).or_insert_with(|| place.clone());
                    if *first != place {
                        let reason = format!("{} {} takes the same requests", first.0, first.1);
                        findings.add(Code::Shadowed, &route.meta, &field, reason);
                    }
                }
            }
        }
    }
}

fn tried(of: &HttpRouteMatch) -> Tried {
    let path = of.path.as_ref().map(|HttpPathMatch { r#type, value }| {
        let kind = r#type.clone().unwrap_or_else(|| "PathPrefix".to_owned());
        (kind, value.clone().unwrap_or_else(|| "/".to_owned()))
    });
    let named = |all: &[NamedMatch]| {
        let all = all.iter().map(|one| {
            let kind = one.r#type.clone().unwrap_or_else(|| "Exact".to_owned());
            (one.name.to_lowercase(), kind, one.value.clone())
        });
        let mut all: Vec<_> = all.collect();
        all.sort();
        all
    };
    let everything = ("PathPrefix".to_owned(), "/".to_owned());
    let path = path.filter(|path| *path != everything);
    (path, named(&of.headers), named(&of.query_params), of.method.clone())
}
