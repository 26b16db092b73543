//! What routes refer to and is not there.
//!
//! In: routes of the Gateway API and VirtualServices. Out: findings on parents, backends, their ports, subsets and
//! delegates. Says nothing of whether the route is followed anywhere.

use std::sync::Arc;

use super::{
    Code, Findings,
    routes::{self, Route},
    view::{View, is_among},
};
use crate::{
    compile::{
        registry::{Host, Visibility},
        route_rules::{BackendKind, ParentKind, backend_host, backend_kind, parent_kind},
    },
    manifests::{
        Meta, Object,
        gateway_api::{BackendObjectReference, GATEWAY_GROUP, ParentReference},
        networking::{Delegate, Destination, VirtualService},
    },
};

pub(super) fn find(view: &View<'_>, findings: &mut Findings) {
    for route in routes::all(view.manifests) {
        for (i, parent) in route.parents.iter().enumerate() {
            check_parent(view, route.meta, parent, &format!("spec.parentRefs[{i}]"), findings);
        }
        for (field, backend) in route.rules.iter().flat_map(|rule| &rule.backends) {
            check_backend(view, &route, backend, field, findings);
        }
    }
    for service in &view.manifests.virtual_services {
        for (field, destination) in destinations(&service.spec) {
            check_destination(view, service, destination, &field, findings);
        }
        for (i, rule) in service.spec.http.iter().enumerate() {
            if let Some(delegate) = &rule.delegate {
                let field = format!("spec.http[{i}].delegate");
                check_delegate(view, &service.meta, delegate, &field, findings);
            }
        }
    }
}

fn check_parent(
    view: &View<'_>,
    route: &Meta,
    parent: &ParentReference,
    field: &str,
    findings: &mut Findings,
) {
    let namespace = parent.namespace.as_deref().unwrap_or(&route.namespace);
    let (kind, name) = (parent.kind(), &parent.name);
    let hosts = match parent_kind(parent) {
        ParentKind::Service => view.of_service(namespace, name),
        ParentKind::ServiceEntry => view.of_entry(namespace, name),
        ParentKind::Gateway => {
            if view.gateway(namespace, name).is_none() {
                let reason = format!("there is no Gateway {namespace}/{name}");
                findings.add(Code::NoParent, route, field, reason);
            }
            return;
        }
        ParentKind::Other => {
            let reason = format!("nothing is routed at a {kind} of `{}`", parent.group());
            return findings.add(Code::NoParent, route, field, reason);
        }
    };
    // A ServiceEntry whose hosts another has first is there nonetheless.
    let entries = view.manifests.service_entries.iter().map(|one| &one.meta);
    let is_there = !hosts.is_empty()
        || (parent_kind(parent) == ParentKind::ServiceEntry && is_among(entries, namespace, name));
    if !is_there {
        let services = view.manifests.services.iter().map(|one| &one.meta);
        let reason = if kind == "Service" && is_among(services, namespace, name) {
            format!("Service {namespace}/{name} is only a name for another host")
        } else {
            format!("there is no {kind} {namespace}/{name}")
        };
        findings.add(Code::NoParent, route, field, reason);
    } else if let Some(port) = parent.port
        && hosts.iter().all(|host| host.port(port).is_none())
    {
        let reason = format!("{kind} {namespace}/{name} has no port {port}");
        findings.add(Code::NoParent, route, &format!("{field}.port"), reason);
    }
}

fn check_backend(
    view: &View<'_>,
    route: &Route<'_>,
    backend: &BackendObjectReference,
    field: &str,
    findings: &mut Findings,
) {
    let meta = route.meta;
    if backend_kind(backend) == BackendKind::Other {
        let reason = format!("a {} of `{}` is no backend", backend.kind(), backend.group());
        return findings.add(Code::AnswersError, meta, field, reason);
    }
    let Some(hostname) = backend_host(backend, meta, &view.config.cluster_domain) else { return };
    let Some(host) = view.named(&hostname, &meta.namespace) else {
        let reason = format!("there is no host {hostname}: requests are answered with 500");
        return findings.add(Code::NoBackend, meta, field, reason);
    };
    match backend.port {
        None => {
            let reason = "missing: requests are answered with 500";
            findings.add(Code::NoBackendPort, meta, &format!("{field}.port"), reason);
        }
        Some(port) if host.port(port).is_none() => {
            let reason = format!("{hostname} has no port {port}");
            findings.add(Code::NoBackendPort, meta, &format!("{field}.port"), reason);
        }
        Some(_) => {}
    }
    check_visible(host, meta, field, findings);
    check_grant(view, route, backend, field, findings);
}

fn check_visible(host: &Host, from: &Meta, field: &str, findings: &mut Findings) {
    let hidden = match host.visibility {
        Visibility::Public => false,
        Visibility::Namespace => host.meta.namespace != from.namespace,
        Visibility::Nobody => true,
    };
    if hidden {
        let reason = format!("{} keeps {} from this namespace", host.meta.title(), host.hostname);
        findings.add(Code::NotVisible, from, field, reason);
    }
}

/// Only routes of Gateways need a grant.
fn check_grant(
    view: &View<'_>,
    route: &Route<'_>,
    backend: &BackendObjectReference,
    field: &str,
    findings: &mut Findings,
) {
    let own = &*route.meta.namespace;
    let Some(namespace) = backend.namespace.as_deref().filter(|namespace| *namespace != own) else {
        return;
    };
    if route.parents.iter().all(|parent| parent_kind(parent) != ParentKind::Gateway) {
        return;
    }
    let mut grants = view.manifests.reference_grants.iter();
    let granted = grants.any(|grant| {
        let from = grant.spec.from.iter().any(|from| {
            from.group == GATEWAY_GROUP && from.kind == route.meta.kind && from.namespace == own
        });
        let to = grant.spec.to.iter().any(|to| {
            to.group == backend.group()
                && to.kind == backend.kind()
                && to.name.as_ref().is_none_or(|name| *name == backend.name)
        });
        *grant.meta.namespace == *namespace && from && to
    });
    if !granted {
        let reason = format!("no ReferenceGrant of {namespace} lets a {} in", route.meta.kind);
        findings.add(Code::NoGrant, route.meta, field, reason);
    }
}

/// Everything that the rules of a VirtualService lead to, with its field.
pub(super) fn destinations(of: &VirtualService) -> Vec<(String, &Destination)> {
    let mut all = Vec::new();
    for (i, rule) in of.http.iter().enumerate() {
        for (j, route) in rule.route.iter().enumerate() {
            all.push((format!("spec.http[{i}].route[{j}].destination"), &route.destination));
        }
        all.extend(rule.mirror.iter().map(|to| (format!("spec.http[{i}].mirror"), to)));
        for (j, mirror) in rule.mirrors.iter().enumerate() {
            all.push((format!("spec.http[{i}].mirrors[{j}].destination"), &mirror.destination));
        }
    }
    let tls = of.tls.iter().map(|rule| &rule.route).enumerate();
    let tls = tls.map(|(i, routes)| (format!("spec.tls[{i}]"), routes));
    let tcp = of.tcp.iter().map(|rule| &rule.route).enumerate();
    let tcp = tcp.map(|(i, routes)| (format!("spec.tcp[{i}]"), routes));
    for (field, routes) in tls.chain(tcp) {
        for (j, route) in routes.iter().enumerate() {
            all.push((format!("{field}.route[{j}].destination"), &route.destination));
        }
    }
    all
}

fn check_destination(
    view: &View<'_>,
    service: &Arc<Object<VirtualService>>,
    to: &Destination,
    field: &str,
    findings: &mut Findings,
) {
    let meta = &service.meta;
    let Some(host) = view.named(&to.host, &meta.namespace) else {
        let reason = format!(
            "there is no host {}: requests are answered with 503",
            view.full_name(&to.host, &meta.namespace)
        );
        return findings.add(Code::NoBackend, meta, &format!("{field}.host"), reason);
    };
    let number = to.port.as_ref().map_or(0, |port| port.number);
    let port = u16::try_from(number).ok();
    if number > 0 && port.and_then(|number| host.port(number)).is_none() {
        let reason = format!("{} has no port {number}", host.hostname);
        findings.add(Code::NoBackendPort, meta, &format!("{field}.port.number"), reason);
    }
    check_visible(host, meta, field, findings);
    if to.subset.is_empty() {
        return;
    }
    // Subsets are those that the waypoints see which follow the rules.
    let hosts = service.spec.hosts.iter();
    let hosts = hosts.flat_map(|one| view.matching(&view.full_name(one, &meta.namespace)));
    let waypoints = hosts.filter_map(|host| view.guard(host));
    let mut clients: Vec<_> = waypoints.map(|waypoint| &*waypoint.meta.namespace).collect();
    if clients.is_empty() {
        clients.push(&meta.namespace);
    }
    if !clients.iter().any(|client| view.has_subset(host, &to.subset, client)) {
        let reason = format!("no DestinationRule gives {} a subset `{}`", host.hostname, to.subset);
        findings.add(Code::NoSubset, meta, &format!("{field}.subset"), reason);
    }
}

fn check_delegate(
    view: &View<'_>,
    root: &Meta,
    delegate: &Delegate,
    field: &str,
    findings: &mut Findings,
) {
    let namespace = match delegate.namespace.as_str() {
        "" => &*root.namespace,
        namespace => namespace,
    };
    let mut all = view.manifests.virtual_services.iter();
    let found =
        all.find(|one| *one.meta.namespace == *namespace && *one.meta.name == *delegate.name);
    let reason = match found {
        None => format!("there is no VirtualService {namespace}/{}", delegate.name),
        Some(found) if !found.spec.hosts.is_empty() => {
            format!("{} has hosts of its own", found.meta.title())
        }
        Some(found) if !is_exported(&found.spec.export_to, namespace, &root.namespace) => {
            format!("{} is not exported to {}", found.meta.title(), root.namespace)
        }
        Some(_) => return,
    };
    findings.add(Code::NoDelegate, root, field, reason);
}

/// Whether what is of `namespace` is seen from `client`.
pub(super) fn is_exported(to: &[String], namespace: &str, client: &str) -> bool {
    to.is_empty()
        || to.iter().any(|to| to == "*" || to == client || (to == "." && namespace == client))
}
