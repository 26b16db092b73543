//! VirtualServices that are not followed, or not as they read.
//!
//! In: VirtualServices for the mesh, and the hosts they are for. Out: findings.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    Code, Findings,
    hosts::is_of_requests,
    references::is_exported,
    routes,
    secrets::targeting,
    shadow::covers,
    view::{View, some_of},
};
use crate::{
    compile::{
        registry::{Host, Protocol},
        route_rules::{ParentKind, parent_kind},
    },
    manifests::{
        Object, claim,
        gateway_api::Gateway,
        networking::{HttpMatch, HttpRule, VirtualService},
    },
};

pub(super) fn find(view: &View<'_>, findings: &mut Findings) {
    for service in view.manifests.virtual_services.iter() {
        let spec = &service.spec;
        shadowed(service, findings);
        if !is_for_mesh(spec) || spec.hosts.is_empty() {
            continue;
        }
        let hosts: Vec<_> = hosts(view, service);
        if hosts.is_empty() {
            continue;
        }
        let guarded: Vec<_> = hosts
            .iter()
            .filter_map(|host| view.guard(host).map(|waypoint| (*host, waypoint)))
            .collect();
        if guarded.is_empty() {
            let reason = format!("{} has no waypoint to follow the rules", hosts[0].hostname);
            findings.add(Code::RouteWithoutWaypoint, &service.meta, "spec.hosts", reason);
            continue;
        }
        if is_followed(service, &guarded, findings) {
            protocols(service, &guarded, findings);
            matches(view, service, &guarded, findings);
            default_rule(spec, service, findings);
        }
    }
    several(view, findings);
}

fn is_for_mesh(of: &VirtualService) -> bool {
    of.gateways.is_empty() || of.gateways.iter().any(|gateway| gateway == "mesh")
}

fn hosts<'v>(view: &'v View<'_>, of: &Object<VirtualService>) -> Vec<&'v Arc<Host>> {
    let names = of.spec.hosts.iter();
    names.flat_map(|host| view.matching(&view.full_name(host, &of.meta.namespace))).collect()
}

/// Rules behind one of the same object that takes all their requests.
fn shadowed(service: &Object<VirtualService>, findings: &mut Findings) {
    let mut before: Vec<(usize, Option<&HttpMatch>)> = Vec::new();
    for (i, rule) in service.spec.http.iter().enumerate() {
        let own: Vec<Option<&HttpMatch>> = if rule.r#match.is_empty() {
            vec![None]
        } else {
            rule.r#match.iter().map(Some).collect()
        };
        for (j, one) in own.iter().enumerate() {
            if let Some((first, by)) = before.iter().find(|(_, wide)| covers(*wide, *one)) {
                let field = match one {
                    Some(_) => format!("spec.http[{i}].match[{j}]"),
                    None => format!("spec.http[{i}]"),
                };
                let mut reason = format!("spec.http[{first}] takes all of its requests");
                if let Some(prefix) = by.and_then(|by| by.uri.as_ref()?.prefix.as_deref())
                    && !prefix.ends_with('/')
                {
                    reason += &format!(" (prefix `{prefix}` is no path segment)");
                }
                findings.add(Code::Shadowed, &service.meta, &field, reason);
            }
        }
        before.extend(own.into_iter().map(|one| (i, one)));
    }
}

/// A waypoint follows rules of its own namespace and of the host's, if they are exported to it.
fn is_followed(
    service: &Object<VirtualService>,
    guarded: &[(&Arc<Host>, &Object<Gateway>)],
    findings: &mut Findings,
) -> bool {
    let own = &*service.meta.namespace;
    let near = guarded.iter().filter(|(host, waypoint)| {
        *host.meta.namespace == *own || *waypoint.meta.namespace == *own
    });
    let near: Vec<_> = near.collect();
    if near.is_empty() {
        let (host, waypoint) = guarded[0];
        let reason = format!(
            "{} is of namespace {}, its waypoint of {}",
            host.hostname, host.meta.namespace, waypoint.meta.namespace
        );
        findings.add(Code::ForeignRoute, &service.meta, "spec.hosts", reason);
        return false;
    }
    let exported = near
        .iter()
        .any(|(_, waypoint)| is_exported(&service.spec.export_to, own, &waypoint.meta.namespace));
    if !exported {
        let reason = format!("namespace {} is not among them", near[0].1.meta.namespace);
        findings.add(Code::NotExported, &service.meta, "spec.exportTo", reason);
    }
    exported
}

fn protocols(
    service: &Object<VirtualService>,
    guarded: &[(&Arc<Host>, &Object<Gateway>)],
    findings: &mut Findings,
) {
    let spec = &service.spec;
    let speaks = |wanted: fn(Protocol) -> bool| {
        guarded.iter().any(|(host, _)| host.ports.iter().any(|port| wanted(port.protocol)))
    };
    let of_connections = |protocol: Protocol| protocol.is_tcp() || protocol == Protocol::Unknown;
    let lists = [
        ("spec.http", spec.http.is_empty(), is_of_requests as fn(Protocol) -> bool, "HTTP"),
        ("spec.tls", spec.tls.is_empty(), of_connections, "TCP or TLS"),
        ("spec.tcp", spec.tcp.is_empty(), of_connections, "TCP or TLS"),
    ];
    for (field, empty, wanted, protocol) in lists {
        if !empty && !speaks(wanted) {
            let reason = format!("no port of {} speaks {protocol}", guarded[0].0.hostname);
            findings.add(Code::OtherProtocol, &service.meta, field, reason);
        }
    }
}

/// Ports that the hosts have not, names that a waypoint does not look for, claims of tokens that nobody checks.
fn matches(
    view: &View<'_>,
    service: &Object<VirtualService>,
    guarded: &[(&Arc<Host>, &Object<Gateway>)],
    findings: &mut Findings,
) {
    let meta = &service.meta;
    let has_port = |number: u32| {
        let number = u16::try_from(number).ok();
        let mut hosts = guarded.iter();
        number.is_some_and(|number| hosts.any(|(host, _)| host.port(number).is_some()))
    };
    let mut port = |field: String, number: Option<u32>| {
        if let Some(number) = number.filter(|number| !has_port(*number)) {
            let reason = format!("{} has no port {number}", guarded[0].0.hostname);
            findings.add(Code::MatchNeverMet, meta, &field, reason);
        }
    };
    for (i, rule) in service.spec.http.iter().enumerate() {
        for (j, one) in rule.r#match.iter().enumerate() {
            port(format!("spec.http[{i}].match[{j}].port"), one.port);
        }
    }
    for (i, rule) in service.spec.tcp.iter().enumerate() {
        for (j, one) in rule.r#match.iter().enumerate() {
            port(format!("spec.tcp[{i}].match[{j}].port"), one.port);
        }
    }
    for (i, rule) in service.spec.tls.iter().enumerate() {
        for (j, one) in rule.r#match.iter().enumerate() {
            let own = guarded.iter().any(
                |(host, _)| matches!(one.sni_hosts.as_slice(), [only] if **only == *host.hostname),
            );
            if !own {
                let reason = "a waypoint looks for the host's own name and no other";
                let field = format!("spec.tls[{i}].match[{j}].sniHosts");
                findings.add(Code::MatchNeverMet, meta, &field, reason);
            }
        }
    }
    let checked = guarded.iter().any(|(host, _)| has_tokens(view, host));
    for (i, rule) in service.spec.http.iter().enumerate().filter(|_| !checked) {
        if let Some((j, name)) = claimed(rule) {
            let field = format!("spec.http[{i}].match[{j}].headers");
            let reason = format!("`{name}`: no RequestAuthentication checks tokens here");
            findings.add(Code::NoTokenChecked, meta, &field, reason);
        }
    }
}

fn claimed(rule: &HttpRule) -> Option<(usize, &str)> {
    rule.r#match.iter().enumerate().find_map(|(j, one)| {
        let mut names = one.headers.keys().chain(one.without_headers.keys());
        names.find(|name| claim(name).is_some()).map(|name| (j, name.as_str()))
    })
}

fn has_tokens(view: &View<'_>, host: &Host) -> bool {
    let tokens = targeting(view).into_iter();
    let mut tokens = tokens.filter(|(meta, _)| meta.kind == "RequestAuthentication");
    tokens.any(|(meta, targets)| {
        targets.into_iter().any(|target| {
            let targeted = view.targeted(target, &meta.namespace);
            targeted.is_some_and(|all| all.hosts().iter().any(|one| one.key() == host.key()))
        })
    })
}

fn default_rule(spec: &VirtualService, service: &Object<VirtualService>, findings: &mut Findings) {
    let ends = |rule: &HttpRule| {
        rule.r#match.is_empty() || rule.r#match.iter().any(|one| covers(Some(one), None))
    };
    if !spec.http.is_empty() && !spec.http.iter().any(ends) {
        let reason = "no rule takes every request";
        findings.add(Code::NoDefaultRule, &service.meta, "spec.http", reason);
    }
}

/// Rules of several objects for one host.
fn several(view: &View<'_>, findings: &mut Findings) {
    let mut by_host: BTreeMap<String, Vec<&Object<VirtualService>>> = BTreeMap::new();
    for service in view.manifests.virtual_services.iter().filter(|one| is_for_mesh(&one.spec)) {
        for host in &service.spec.hosts {
            let hostname = view.full_name(host, &service.meta.namespace);
            by_host.entry(hostname).or_default().push(service);
        }
    }
    let routed = routed_hosts(view);
    for (hostname, mut services) in by_host {
        services.sort_by_key(|service| service.meta.seniority());
        if let [first, rest @ ..] = services.as_slice() {
            for service in rest {
                let reason = format!("{hostname}: the rules of {} go first", first.meta.title());
                findings.add(Code::SeveralVirtualServices, &service.meta, "spec.hosts", reason);
            }
        }
        if let Some(routes) = routed.get(&hostname) {
            for service in &services {
                let reason =
                    format!("{hostname}: also {}, in no order to rely on", some_of(routes));
                findings.add(Code::MixedRoutes, &service.meta, "spec.hosts", reason);
            }
        }
    }
}

/// Hosts with the titles of the routes of the Gateway API for them.
fn routed_hosts(view: &View<'_>) -> BTreeMap<String, Vec<String>> {
    let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for route in routes::all(view.manifests) {
        for parent in route.parents {
            let namespace = parent.namespace.as_deref().unwrap_or(&route.meta.namespace);
            let hosts = match parent_kind(parent) {
                ParentKind::Service => view.of_service(namespace, &parent.name),
                ParentKind::ServiceEntry => view.of_entry(namespace, &parent.name),
                ParentKind::Gateway | ParentKind::Other => Vec::new(),
            };
            for host in hosts {
                let titles = all.entry(host.hostname.to_string()).or_default();
                let title = route.meta.title();
                if !titles.contains(&title) {
                    titles.push(title);
                }
            }
        }
    }
    all
}
