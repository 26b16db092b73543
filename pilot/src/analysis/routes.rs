//! Routes of the Gateway API, of any kind, in the form that their checks need.
//!
//! In: an HTTPRoute, GRPCRoute, TCPRoute or TLSRoute. Out: a [`Route`] with its backends and where each stands. Finds
//! nothing by itself.

use crate::{
    compile::route_rules::{is_supported_grpc_filter, is_supported_http_filter},
    manifests::{
        Manifests, Meta,
        gateway_api::{
            BackendObjectReference, GrpcRoute, GrpcRouteRule, HttpRoute, HttpRouteRule,
            ParentReference, TcpRouteRule,
        },
    },
};

/// A route.
pub(super) struct Route<'a> {
    pub(super) meta: &'a Meta,
    pub(super) parents: &'a [ParentReference],
    pub(super) rules: Vec<Rule>,
    /// Whether it is about requests, or about connections.
    pub(super) of: About,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum About {
    Requests,
    Connections,
}

/// One rule of a route.
pub(super) struct Rule {
    /// `spec.rules[0]`.
    pub(super) field: String,
    /// Each with its field; mirrors included.
    pub(super) backends: Vec<(String, BackendObjectReference)>,
    /// Whether a request can be forwarded or answered.
    pub(super) leads_somewhere: bool,
    /// A filter that is not applied: its field and type.
    pub(super) unsupported: Option<(String, String)>,
    /// A field that is not followed.
    pub(super) unfollowed: Option<&'static str>,
}

/// All of them.
pub(super) fn all(manifests: &Manifests) -> Vec<Route<'_>> {
    let http = manifests.http_routes.iter().map(|one| Route {
        meta: &one.meta,
        parents: &one.spec.parent_refs,
        rules: of_http(&one.spec),
        of: About::Requests,
    });
    let grpc = manifests.grpc_routes.iter().map(|one| Route {
        meta: &one.meta,
        parents: &one.spec.parent_refs,
        rules: of_grpc(&one.spec),
        of: About::Requests,
    });
    let tcp = manifests.tcp_routes.iter().map(|one| Route {
        meta: &one.meta,
        parents: &one.spec.parent_refs,
        rules: of_connections(&one.spec.rules),
        of: About::Connections,
    });
    let tls = manifests.tls_routes.iter().map(|one| Route {
        meta: &one.meta,
        parents: &one.spec.parent_refs,
        rules: of_connections(&one.spec.rules),
        of: About::Connections,
    });
    http.chain(grpc).chain(tcp).chain(tls).collect()
}

fn of_http(route: &HttpRoute) -> Vec<Rule> {
    let rule = |(i, rule): (usize, &HttpRouteRule)| {
        let field = format!("spec.rules[{i}]");
        let mut unsupported = None;
        let mut backends = Vec::new();
        let redirects = rule.filters.iter().any(|filter| filter.request_redirect.is_some());
        for (j, filter) in rule.filters.iter().enumerate() {
            let field = format!("{field}.filters[{j}]");
            if let Some(mirror) = &filter.request_mirror {
                let field = format!("{field}.requestMirror.backendRef");
                backends.push((field, mirror.backend_ref.clone()));
            }
            if !is_supported_http_filter(filter) {
                unsupported.get_or_insert((field, filter.r#type.clone()));
            }
        }
        for (j, backend) in rule.backend_refs.iter().enumerate() {
            let field = format!("{field}.backendRefs[{j}]");
            for (k, filter) in backend.filters.iter().enumerate() {
                let modifies = filter.request_header_modifier.is_some()
                    || filter.response_header_modifier.is_some();
                if !modifies {
                    let field = format!("{field}.filters[{k}]");
                    unsupported.get_or_insert((field, filter.r#type.clone()));
                }
            }
            backends.push((field, backend.backend().reference()));
        }
        let weighty = rule.backend_refs.iter().any(|backend| backend.weight != Some(0));
        let unfollowed = rule.session_persistence.as_ref().map(|_| "sessionPersistence");
        let leads_somewhere = redirects || weighty;
        Rule { field, backends, leads_somewhere, unsupported, unfollowed }
    };
    route.rules.iter().enumerate().map(rule).collect()
}

fn of_grpc(route: &GrpcRoute) -> Vec<Rule> {
    let rule = |(i, rule): (usize, &GrpcRouteRule)| {
        let field = format!("spec.rules[{i}]");
        let mut backends = Vec::new();
        let mut unsupported = None;
        for (j, filter) in rule.filters.iter().enumerate() {
            let field = format!("{field}.filters[{j}]");
            if let Some(mirror) = &filter.request_mirror {
                let field = format!("{field}.requestMirror.backendRef");
                backends.push((field, mirror.backend_ref.clone()));
            }
            if !is_supported_grpc_filter(filter) {
                unsupported.get_or_insert((field, filter.r#type.clone()));
            }
        }
        for (j, backend) in rule.backend_refs.iter().enumerate() {
            let field = format!("{field}.backendRefs[{j}]");
            backends.push((field, backend.backend().reference()));
        }
        let leads_somewhere = rule.backend_refs.iter().any(|backend| backend.weight != Some(0));
        let unfollowed = rule.session_persistence.as_ref().map(|_| "sessionPersistence");
        Rule { field, backends, leads_somewhere, unsupported, unfollowed }
    };
    route.rules.iter().enumerate().map(rule).collect()
}

fn of_connections(rules: &[TcpRouteRule]) -> Vec<Rule> {
    let rule = |(i, rule): (usize, &TcpRouteRule)| {
        let field = format!("spec.rules[{i}]");
        let backends = rule.backend_refs.iter().enumerate();
        let backends =
            backends.map(|(j, one)| (format!("{field}.backendRefs[{j}]"), one.reference()));
        Rule {
            backends: backends.collect(),
            field: field.clone(),
            leads_somewhere: rule.backend_refs.iter().any(|backend| backend.weight != Some(0)),
            unsupported: None,
            unfollowed: None,
        }
    };
    rules.iter().enumerate().map(rule).collect()
}
