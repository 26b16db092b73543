//! The statuses of the Gateway API's routes.
//!
//! In: routes, and what they refer to. Out: for each parent in the mesh, whether the route counts there, whether what it
//! refers to is there, and whether a waypoint stands where it would be followed.

use serde_json::{Value, json};

use super::{
    Statuses,
    condition::{Condition, list},
    put,
};
use crate::{
    compile::{
        MeshConfig,
        registry::Registry,
        route_rules::{
            BackendKind, ParentKind, backend_host, backend_kind, is_supported_grpc_filter,
            is_supported_http_filter, parent_kind,
        },
    },
    manifests::{
        Kind, Labels, Manifests, Meta,
        gateway_api::{
            BackendObjectReference, GrpcRoute, HttpRoute, ParentReference, TcpRouteRule,
        },
    },
};

/// The name under which the status of a route is ours.
const CONTROLLER: &str = "istio.io/gateway-controller";

const USE_WAYPOINT: &str = "istio.io/use-waypoint";

/// What the rules of a route of any kind refer to.
struct Rules {
    /// Of a type that we do not apply.
    unsupported_filter: Option<String>,
    /// In the order in which they are written.
    backends: Vec<BackendObjectReference>,
}

impl Rules {
    fn of_http(of: &HttpRoute) -> Self {
        let filters = || of.rules.iter().flat_map(|rule| &rule.filters);
        let in_backends = || {
            let backends = of.rules.iter().flat_map(|rule| &rule.backend_refs);
            backends.flat_map(|backend| &backend.filters)
        };
        let mut all = filters().chain(in_backends());
        let unsupported = all.find(|filter| !is_supported_http_filter(filter));
        let backends = of.rules.iter().flat_map(|rule| {
            let routed = rule.backend_refs.iter().map(|one| one.backend().reference());
            let mirrors = rule.filters.iter().filter_map(|filter| filter.request_mirror.as_ref());
            routed.chain(mirrors.map(|mirror| mirror.backend_ref.clone()))
        });
        Self {
            unsupported_filter: unsupported.map(|filter| filter.r#type.clone()),
            backends: backends.collect(),
        }
    }

    fn of_grpc(of: &GrpcRoute) -> Self {
        let mut filters = of.rules.iter().flat_map(|rule| {
            rule.filters.iter().chain(rule.backend_refs.iter().flat_map(|one| &one.filters))
        });
        let unsupported = filters.find(|filter| !is_supported_grpc_filter(filter));
        let backends = of.rules.iter().flat_map(|rule| {
            let routed = rule.backend_refs.iter().map(|one| one.backend().reference());
            let mirrors = rule.filters.iter().filter_map(|filter| filter.request_mirror.as_ref());
            routed.chain(mirrors.map(|mirror| mirror.backend_ref.clone()))
        });
        Self {
            unsupported_filter: unsupported.map(|filter| filter.r#type.clone()),
            backends: backends.collect(),
        }
    }

    fn of_connections(of: &[TcpRouteRule]) -> Self {
        let backends = of.iter().flat_map(|rule| &rule.backend_refs);
        Self {
            unsupported_filter: None,
            backends: backends.map(crate::manifests::gateway_api::BackendRef::reference).collect(),
        }
    }
}

pub(super) fn add(
    manifests: &Manifests,
    config: &MeshConfig,
    registry: &Registry,
    statuses: &mut Statuses,
) {
    let world = World { manifests, config, registry };
    for route in &manifests.http_routes {
        let rules = Rules::of_http(&route.spec);
        world.add(Kind::HttpRoute, &route.meta, &route.spec.parent_refs, &rules, statuses);
    }
    for route in &manifests.grpc_routes {
        let rules = Rules::of_grpc(&route.spec);
        world.add(Kind::GrpcRoute, &route.meta, &route.spec.parent_refs, &rules, statuses);
    }
    for route in &manifests.tcp_routes {
        let rules = Rules::of_connections(&route.spec.rules);
        world.add(Kind::TcpRoute, &route.meta, &route.spec.parent_refs, &rules, statuses);
    }
    for route in &manifests.tls_routes {
        let rules = Rules::of_connections(&route.spec.rules);
        world.add(Kind::TlsRoute, &route.meta, &route.spec.parent_refs, &rules, statuses);
    }
}

struct World<'a> {
    manifests: &'a Manifests,
    config: &'a MeshConfig,
    registry: &'a Registry,
}

/// A Service or ServiceEntry that a route is for.
struct Parent<'a> {
    title: &'static str,
    /// If it is there.
    found: Option<&'a Meta>,
}

impl World<'_> {
    /// A route without a parent in the mesh has no status of ours.
    fn add(
        &self,
        kind: Kind,
        meta: &Meta,
        references: &[ParentReference],
        rules: &Rules,
        statuses: &mut Statuses,
    ) {
        let resolved = self.resolved(meta, rules);
        let parents: Vec<Value> = references
            .iter()
            .filter_map(|reference| {
                let parent = self.parent(meta, reference)?;
                let conditions =
                    [accepted(reference, &parent, rules), resolved.clone(), self.waypoint(&parent)];
                Some(json!({
                    "controllerName": CONTROLLER,
                    "parentRef": without_nulls(json!(reference)),
                    "conditions": list(&conditions, meta),
                }))
            })
            .collect();
        if !parents.is_empty() {
            put(statuses, kind, meta, json!({ "parents": parents }));
        }
    }

    fn parent(&self, route: &Meta, of: &ParentReference) -> Option<Parent<'_>> {
        let namespace = of.namespace.as_deref().unwrap_or(&route.namespace);
        let named = |meta: &Meta| *meta.namespace == *namespace && *meta.name == *of.name;
        match parent_kind(of) {
            ParentKind::Service => {
                let mut services = self.manifests.services.iter().map(|service| &service.meta);
                Some(Parent { title: "service", found: services.find(|meta| named(meta)) })
            }
            ParentKind::ServiceEntry => {
                let mut entries = self.manifests.service_entries.iter().map(|entry| &entry.meta);
                Some(Parent { title: "service entry", found: entries.find(|meta| named(meta)) })
            }
            ParentKind::Gateway | ParentKind::Other => None,
        }
    }

    /// The first reference that leads nowhere counts.
    fn resolved(&self, route: &Meta, rules: &Rules) -> Condition {
        let faults = rules.backends.iter().find_map(|backend| self.fault(route, backend));
        faults.unwrap_or_else(|| {
            Condition::yes("ResolvedRefs", "ResolvedRefs", "All references resolved")
        })
    }

    fn fault(&self, route: &Meta, backend: &BackendObjectReference) -> Option<Condition> {
        let no = |reason, message| Some(Condition::no("ResolvedRefs", reason, message));
        if backend_kind(backend) == BackendKind::Other {
            let message = format!(
                "referencing unsupported backendRef: group \"{}\" kind \"{}\"",
                backend.group(),
                backend.kind()
            );
            return no("InvalidKind", message);
        }
        let hostname = backend_host(backend, route, &self.config.cluster_domain)?;
        if self.registry.by_hostname(&hostname).next().is_none() {
            return no("BackendNotFound", format!("backend({hostname}) not found"));
        }
        if backend.port.is_none() {
            return no("UnsupportedValue", "port is required in backendRef".to_owned());
        }
        None
    }

    /// Only a waypoint follows routes.
    fn waypoint(&self, parent: &Parent<'_>) -> Condition {
        let Some(found) = parent.found else {
            return Condition::yes("ResolvedWaypoints", "ResolvedWaypoints", "parent not found");
        };
        let namespace = self.registry.namespace(&found.namespace);
        let asked = |labels: &Labels| labels.get(USE_WAYPOINT).cloned();
        let asked = asked(&found.labels).or_else(|| namespace.and_then(asked));
        if asked.is_some_and(|name| !name.is_empty() && name != "none") {
            return Condition::yes(
                "ResolvedWaypoints",
                "ResolvedWaypoints",
                "All waypoints resolved",
            );
        }
        let message = format!(
            "{} has no waypoint that could follow the route: set {USE_WAYPOINT}",
            found.title()
        );
        Condition::no("ResolvedWaypoints", "MissingUseWaypointLabel", message)
    }
}

fn accepted(reference: &ParentReference, parent: &Parent<'_>, rules: &Rules) -> Condition {
    if parent.found.is_none() {
        let message = format!("parent {}: \"{}\" not found", parent.title, reference.name);
        return Condition::no("Accepted", "NoMatchingParent", message);
    }
    if let Some(filter) = &rules.unsupported_filter {
        let message = format!("unsupported filter type \"{filter}\": its rule answers 500");
        return Condition::no("Accepted", "InvalidFilter", message);
    }
    Condition::yes("Accepted", "Accepted", "Route was valid")
}

/// What was not written is not repeated.
fn without_nulls(mut of: Value) -> Value {
    if let Some(members) = of.as_object_mut() {
        members.retain(|_, value| !value.is_null());
    }
    of
}

#[cfg(test)]
mod tests {
    use std::{path::Path, sync::Arc};

    use super::*;
    use crate::manifests::{Severity, read_text};

    /// Reasons of the conditions of a route with these filters and backends, for a Service of a namespace.
    fn check(rule: &str, namespace: &str, expected: [&str; 3]) {
        let text = format!(
            "\
apiVersion: v1
kind: Namespace
metadata: {{name: guarded, labels: {{istio.io/use-waypoint: waypoint}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: guarded}}
spec: {{clusterIP: 10.0.0.1, ports: [{{name: http, port: 80}}]}}
---
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: open}}
spec: {{clusterIP: 10.0.0.2, ports: [{{name: http, port: 80}}]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: r, namespace: {namespace}}}
spec:
  parentRefs: [{{group: '', kind: Service, name: web}}, {{name: a-gateway}}]
  rules: [{rule}]
"
        );
        let mut problems = Vec::new();
        let resources = read_text(&Arc::from(Path::new("f.yaml")), &text, &mut problems);
        problems.retain(|problem| problem.severity == Severity::Error);
        assert!(problems.is_empty(), "{problems:?}");
        let statuses = super::super::all(&Manifests::gather(&resources).0, &MeshConfig::default());
        let (_, status) = statuses.iter().find(|((kind, ..), _)| *kind == Kind::HttpRoute).unwrap();
        let parents = status["parents"].as_array().unwrap();
        assert_eq!(parents.len(), 1, "{status}");
        let reasons: Vec<_> = parents[0]["conditions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|condition| condition["reason"].as_str().unwrap())
            .collect();
        assert_eq!(reasons, expected, "{rule}");
    }

    #[test]
    fn a_routes_conditions_say_what_it_lacks() {
        for (rule, namespace, expected) in [
            (
                "{backendRefs: [{name: web, port: 80}]}",
                "guarded",
                ["Accepted", "ResolvedRefs", "ResolvedWaypoints"],
            ),
            (
                "{backendRefs: [{name: web, port: 80}]}",
                "open",
                ["Accepted", "ResolvedRefs", "MissingUseWaypointLabel"],
            ),
            (
                "{filters: [{type: ExtensionRef, extensionRef: {group: g, kind: k, name: n}}]}",
                "guarded",
                ["InvalidFilter", "ResolvedRefs", "ResolvedWaypoints"],
            ),
            (
                "{filters: [{type: RequestMirror, requestMirror: {backendRef: {name: x, port: 1}}}]}",
                "guarded",
                ["Accepted", "BackendNotFound", "ResolvedWaypoints"],
            ),
            (
                "{backendRefs: [{kind: Bucket, name: x}]}",
                "guarded",
                ["Accepted", "InvalidKind", "ResolvedWaypoints"],
            ),
        ] {
            check(rule, namespace, expected);
        }
    }
}
