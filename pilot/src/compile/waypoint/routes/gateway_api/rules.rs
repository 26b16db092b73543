//! Rules of HTTPRoutes and GRPCRoutes, one by one.
//!
//! In: a route. Out: an [`HttpRule`] for each match of each of its rules, so that all can be sorted by how closely they
//! match.

use std::collections::BTreeMap;

use super::{
    super::action::quoted,
    backend,
    filters::{self, Unsupported},
};
use crate::manifests::{
    Meta,
    gateway_api::{
        BackendRef, GrpcMethodMatch, GrpcRoute, GrpcRouteMatch, HttpRoute, HttpRouteFilter,
        HttpRouteMatch, HttpRouteRule, NamedMatch,
    },
    networking::{
        DirectResponse, Headers, HttpDestination, HttpMatch, HttpRule, Retries, StringMatch,
    },
};

/// What a retry is for, besides the status codes that a route names.
const RETRY_ON: &str = "connect-failure,refused-stream,unavailable,cancelled";
const DEFAULT_ATTEMPTS: i32 = 2;
/// What a rule answers that leads nowhere.
const NOWHERE: DirectResponse = DirectResponse { status: 500, body: None };

const REGULAR_EXPRESSION: &str = "RegularExpression";

/// A backend with what is done to the headers of requests for it.
struct Backend<'a> {
    reference: BackendRef,
    filters: Vec<HttpRouteFilter>,
    route: &'a Meta,
}

pub(super) fn of_http_route(meta: &Meta, spec: &HttpRoute, cluster_domain: &str) -> Vec<HttpRule> {
    let mut rules = Vec::new();
    for (i, from) in spec.rules.iter().enumerate() {
        let mut rule = HttpRule { name: name(meta, i, from.name.as_deref()), ..Default::default() };
        set_times(&mut rule, from);
        let backends = from.backend_refs.iter().map(|one| Backend {
            reference: one.backend(),
            filters: one.filters.clone(),
            route: meta,
        });
        follow(&mut rule, &from.filters, backends.collect(), meta, cluster_domain);
        // The API server writes this match into a rule that has none.
        let all = [HttpRouteMatch::default()];
        let matches = if from.matches.is_empty() { &all[..] } else { &from.matches };
        rules.extend(matches.iter().map(|one| matching(&rule, http_match(one))));
    }
    rules
}

pub(super) fn of_grpc_route(meta: &Meta, spec: &GrpcRoute, cluster_domain: &str) -> Vec<HttpRule> {
    let mut rules = Vec::new();
    for (i, from) in spec.rules.iter().enumerate() {
        let mut rule = HttpRule { name: name(meta, i, from.name.as_deref()), ..Default::default() };
        let backends = from.backend_refs.iter().map(|one| Backend {
            reference: one.backend(),
            filters: one.filters.iter().map(filters::of_grpc).collect(),
            route: meta,
        });
        let of_rule: Vec<_> = from.filters.iter().map(filters::of_grpc).collect();
        follow(&mut rule, &of_rule, backends.collect(), meta, cluster_domain);
        if from.matches.is_empty() {
            rules.push(rule);
        } else {
            rules.extend(from.matches.iter().map(|one| matching(&rule, grpc_match(one))));
        }
    }
    rules
}

fn name(meta: &Meta, i: usize, own: Option<&str>) -> String {
    match own.filter(|own| !own.is_empty()) {
        Some(own) => own.to_owned(),
        None => format!("{}.{}.{i}", meta.namespace, meta.name),
    }
}

fn matching(rule: &HttpRule, one: HttpMatch) -> HttpRule {
    HttpRule { r#match: vec![one], ..rule.clone() }
}

/// Sets what the rule's filters and backends say; if that is not possible, the rule answers 500.
fn follow(
    rule: &mut HttpRule,
    of_rule: &[HttpRouteFilter],
    backends: Vec<Backend<'_>>,
    route: &Meta,
    cluster_domain: &str,
) {
    let followed = filters::apply(of_rule, rule, route, cluster_domain)
        .and_then(|()| destinations(backends, cluster_domain));
    match followed {
        Ok(destinations) if destinations.is_empty() && rule.redirect.is_none() => {
            rule.direct_response = Some(NOWHERE);
        }
        Ok(destinations) => rule.route = destinations,
        Err(Unsupported) => {
            let name = std::mem::take(&mut rule.name);
            *rule = HttpRule { name, direct_response: Some(NOWHERE), ..HttpRule::default() };
        }
    }
}

/// Backends that may have traffic.
fn destinations(
    backends: Vec<Backend<'_>>,
    cluster_domain: &str,
) -> Result<Vec<HttpDestination>, Unsupported> {
    let with_weight = backends.into_iter().filter(|backend| backend.reference.weight != Some(0));
    with_weight
        .map(|Backend { reference, filters, route }| {
            let headers: Option<Headers> = filters::backend_headers(&filters)?;
            Ok(HttpDestination {
                destination: backend::destination(&reference.reference(), route, cluster_domain),
                weight: backend::weight(reference.weight),
                headers,
            })
        })
        .collect()
}

/// Without retries, an attempt is all there is: the limit of one is the limit of the whole.
fn set_times(rule: &mut HttpRule, from: &HttpRouteRule) {
    let request = from.timeouts.as_ref().and_then(|timeouts| timeouts.request);
    let attempt = from.timeouts.as_ref().and_then(|timeouts| timeouts.backend_request);
    let Some(retry) = &from.retry else {
        rule.timeout = attempt.or(request);
        return;
    };
    rule.timeout = request;
    let codes = retry.codes.iter().map(ToString::to_string);
    let conditions: Vec<String> = [RETRY_ON.to_owned()].into_iter().chain(codes).collect();
    rule.retries = Some(Retries {
        attempts: retry.attempts.unwrap_or(DEFAULT_ATTEMPTS),
        per_try_timeout: attempt,
        retry_on: conditions.join(","),
        backoff: retry.backoff,
        ..Retries::default()
    });
}

fn exact(text: String) -> StringMatch {
    StringMatch { exact: Some(text), ..StringMatch::default() }
}

fn prefix(text: String) -> StringMatch {
    StringMatch { prefix: Some(text), ..StringMatch::default() }
}

fn regex(text: String) -> StringMatch {
    StringMatch { regex: Some(text), ..StringMatch::default() }
}

fn http_match(of: &HttpRouteMatch) -> HttpMatch {
    let path = of.path.clone().unwrap_or_default();
    let value = path.value.unwrap_or_else(|| "/".into());
    let uri = match path.r#type.as_deref() {
        Some("Exact") => exact(value),
        Some(REGULAR_EXPRESSION) => regex(value),
        _ => prefix(match value.trim_end_matches('/') {
            "" => "/".to_owned(),
            trimmed => trimmed.to_owned(),
        }),
    };
    HttpMatch {
        uri: Some(uri),
        headers: named(&of.headers),
        query_params: named(&of.query_params),
        method: of.method.clone().map(exact),
        ..HttpMatch::default()
    }
}

/// Of two matches of one name, the first counts.
fn named(of: &[NamedMatch]) -> BTreeMap<String, StringMatch> {
    let mut all = BTreeMap::new();
    for NamedMatch { r#type, name, value } in of {
        let is_regex = r#type.as_deref() == Some(REGULAR_EXPRESSION);
        let value = || if is_regex { regex(value.clone()) } else { exact(value.clone()) };
        all.entry(name.clone()).or_insert_with(value);
    }
    all
}

fn grpc_match(of: &GrpcRouteMatch) -> HttpMatch {
    HttpMatch {
        uri: of.method.as_ref().and_then(grpc_path),
        headers: named(&of.headers),
        ..HttpMatch::default()
    }
}

/// A method is called at `/SERVICE/METHOD`.
fn grpc_path(of: &GrpcMethodMatch) -> Option<StringMatch> {
    let is_regex = of.r#type.as_deref() == Some(REGULAR_EXPRESSION);
    let service = of.service.as_deref().filter(|service| !service.is_empty());
    let method = of.method.as_deref().filter(|method| !method.is_empty());
    Some(match (service, method, is_regex) {
        (Some(service), Some(method), false) => exact(format!("/{service}/{method}")),
        (Some(service), None, false) => prefix(format!("/{service}/")),
        (None, Some(method), false) => regex(format!("/[^/]+/{}", quoted(method))),
        (Some(service), Some(method), true) => regex(format!("/{service}/{method}")),
        (Some(service), None, true) => regex(format!("/{service}/.+")),
        (None, Some(method), true) => regex(format!("/[^/]+/{method}")),
        (None, None, _) => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grpc_method_is_a_path() {
        for (kind, service, method, expected) in [
            ("Exact", Some("a.B"), Some("C"), Some(exact("/a.B/C".into()))),
            ("Exact", Some("a.B"), None, Some(prefix("/a.B/".into()))),
            ("Exact", None, Some("C"), Some(regex("/[^/]+/C".into()))),
            (REGULAR_EXPRESSION, Some("a.*"), Some("C|D"), Some(regex("/a.*/C|D".into()))),
            (REGULAR_EXPRESSION, Some("a.*"), None, Some(regex("/a.*/.+".into()))),
            (REGULAR_EXPRESSION, None, Some("C.*"), Some(regex("/[^/]+/C.*".into()))),
            ("Exact", None, None, None),
        ] {
            let of = GrpcMethodMatch {
                r#type: Some(kind.into()),
                service: service.map(Into::into),
                method: method.map(Into::into),
            };
            assert_eq!(grpc_path(&of), expected, "{kind} {service:?} {method:?}");
        }
    }
}
