//! What a route does with a request: forward it, redirect it, or answer it.
//!
//! In: a rule of one [`RuleSet`], and which clusters its destinations are. Out: Envoy's action, together with what it
//! does to headers. A rule that leads nowhere gets a cluster that does not exist, so that nothing passes.

use base64::{Engine, prelude::BASE64_STANDARD};
use proto::envoy::envoy::{
    config::{
        core::v3::{DataSource, data_source},
        route::v3::{
            DirectResponseAction, RedirectAction, RouteAction, WeightedCluster,
            redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier},
            route::Action,
            route_action::{
                ClusterNotFoundResponseCode, ClusterSpecifier, HostRewriteSpecifier,
                RequestMirrorPolicy,
            },
            weighted_cluster::{ClusterWeight, cluster_weight},
        },
    },
    r#type::matcher::v3::RegexMatchAndSubstitute,
};

use super::{
    destination::{Destinations, UNKNOWN},
    headers::{Operations, operations},
    retry,
    rule_set::Semantics,
    wire::{always, duration, flag, hundredths, number, percent, regex},
};
use crate::manifests::{
    Duration,
    networking::{
        Destination, DirectResponse, HttpMatch, HttpRule, Percent, Redirect, RedirectPort,
    },
};

/// An action, and what else the route does.
pub(super) struct Taken {
    pub(super) action: Action,
    pub(super) headers: Operations,
}

pub(super) fn action(
    rule: &HttpRule,
    matched: Option<&HttpMatch>,
    semantics: Semantics,
    destinations: &Destinations<'_>,
) -> Taken {
    let headers = operations(rule.headers.as_ref());
    if let Some(of) = &rule.redirect {
        let action = Action::Redirect(redirect(of, matched, semantics, destinations.port));
        Taken { action, headers }
    } else if let Some(of) = &rule.direct_response {
        Taken { action: Action::DirectResponse(direct_response(of)), headers }
    } else {
        forward(rule, matched, semantics, destinations, headers)
    }
}

#[expect(deprecated, reason = "max_grpc_timeout is what istiod sends and old proxies read")]
fn forward(
    rule: &HttpRule,
    matched: Option<&HttpMatch>,
    semantics: Semantics,
    destinations: &Destinations<'_>,
    mut headers: Operations,
) -> Taken {
    let timeout = Some(duration(rule.timeout.unwrap_or_default()));
    let hash_policy = destinations.hash_policies(rule.route.iter().map(|route| &route.destination));
    let balancing =
        if hash_policy.is_empty() { retry::Balancing::Free } else { retry::Balancing::Hashed };
    let retries = rule.retries.as_ref().or(destinations.default_retries());
    let mut action = RouteAction {
        timeout,
        max_grpc_timeout: timeout,
        retry_policy: retry::policy(retries, balancing),
        request_mirror_policies: mirrors(rule, destinations),
        hash_policy,
        ..RouteAction::default()
    };
    if semantics == Semantics::GatewayApi {
        action.cluster_not_found_response_code =
            ClusterNotFoundResponseCode::InternalServerError.into();
    }
    rewrite_path(&mut action, rule, matched, semantics);

    let mut authority = headers.authority.take();
    if let Some(rewrite) = rule.rewrite.as_ref().filter(|rewrite| !rewrite.authority.is_empty()) {
        authority = Some(rewrite.authority.clone());
    }
    let mut clusters = weighted(rule, destinations);
    action.cluster_specifier = Some(if clusters.len() == 1 {
        let only = clusters.remove(0);
        headers.request_add.extend(only.request_headers_to_add);
        headers.request_remove.extend(only.request_headers_to_remove);
        headers.response_add.extend(only.response_headers_to_add);
        headers.response_remove.extend(only.response_headers_to_remove);
        if let Some(cluster_weight::HostRewriteSpecifier::HostRewriteLiteral(host)) =
            only.host_rewrite_specifier
        {
            authority.get_or_insert(host);
        }
        ClusterSpecifier::Cluster(only.name)
    } else if clusters.is_empty() {
        ClusterSpecifier::Cluster(UNKNOWN.to_owned())
    } else {
        ClusterSpecifier::WeightedClusters(WeightedCluster { clusters, ..Default::default() })
    });
    action.host_rewrite_specifier = authority.map(HostRewriteSpecifier::HostRewriteLiteral);
    Taken { action: Action::Route(action), headers }
}

/// The only destination has all of the traffic, whatever its weight; of several, one without a weight has none.
fn weighted(rule: &HttpRule, destinations: &Destinations<'_>) -> Vec<ClusterWeight> {
    let only = rule.route.len() == 1;
    let routes = rule.route.iter().filter(|route| only || route.weight > 0);
    routes
        .map(|route| {
            let headers = operations(route.headers.as_ref());
            ClusterWeight {
                name: destinations.cluster(&route.destination),
                weight: number(route.weight.try_into().unwrap_or_default()),
                request_headers_to_add: headers.request_add,
                request_headers_to_remove: headers.request_remove,
                response_headers_to_add: headers.response_add,
                response_headers_to_remove: headers.response_remove,
                host_rewrite_specifier: headers
                    .authority
                    .map(cluster_weight::HostRewriteSpecifier::HostRewriteLiteral),
                ..ClusterWeight::default()
            }
        })
        .collect()
}

fn rewrite_path(
    action: &mut RouteAction,
    rule: &HttpRule,
    matched: Option<&HttpMatch>,
    semantics: Semantics,
) {
    let Some(rewrite) = &rule.rewrite else { return };
    if let Some(by_regex) = &rewrite.uri_regex_rewrite {
        action.regex_rewrite = Some(RegexMatchAndSubstitute {
            pattern: Some(regex(&by_regex.r#match)),
            substitution: by_regex.rewrite.clone(),
        });
    } else if !rewrite.uri.is_empty() {
        match replaced_prefix(&rewrite.uri, matched, semantics) {
            Prefix::Replaced(prefix) => action.prefix_rewrite = prefix,
            Prefix::Removed(substitution) => action.regex_rewrite = Some(substitution),
        }
    }
}

enum Prefix {
    Replaced(String),
    Removed(RegexMatchAndSubstitute),
}

/// In the Gateway API a prefix is made of whole segments: what remains of the path keeps exactly one slash before it.
fn replaced_prefix(by: &str, matched: Option<&HttpMatch>, semantics: Semantics) -> Prefix {
    let uri = matched.and_then(|matched| matched.uri.as_ref());
    let prefix = uri.and_then(|uri| uri.prefix.as_deref()).unwrap_or("/");
    match semantics {
        Semantics::GatewayApi if by == "/" => {
            let prefix = quoted(prefix.trim_end_matches('/'));
            Prefix::Removed(RegexMatchAndSubstitute {
                pattern: Some(regex(&format!("^{prefix}(/?)(.*)"))),
                substitution: r"/\2".to_owned(),
            })
        }
        // Envoy takes the matched `/` away, too.
        Semantics::GatewayApi if prefix == "/" => Prefix::Replaced(format!("{by}/")),
        Semantics::GatewayApi | Semantics::VirtualService => Prefix::Replaced(by.to_owned()),
    }
}

/// A text that as a regular expression matches itself.
pub(super) fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len());
    for c in text.chars() {
        if r"\.+*?()|[]{}^$".contains(c) {
            quoted.push('\\');
        }
        quoted.push(c);
    }
    quoted
}

fn mirrors(rule: &HttpRule, destinations: &Destinations<'_>) -> Vec<RequestMirrorPolicy> {
    let mirror =
        |to: &Destination, percentage: Option<Percent>, percent_deprecated: Option<u32>| {
            let share = match (percentage, percent_deprecated) {
                (Some(percentage), _) => percent(percentage.value),
                (None, Some(deprecated)) => hundredths(deprecated),
                (None, None) => hundredths(100),
            };
            (share.numerator > 0).then(|| RequestMirrorPolicy {
                cluster: destinations.cluster(to),
                runtime_fraction: always(share),
                trace_sampled: flag(false),
                disable_shadow_host_suffix_append: true,
                ..RequestMirrorPolicy::default()
            })
        };
    let one = rule.mirror.iter();
    let one = one.filter_map(|to| mirror(to, rule.mirror_percentage, rule.mirror_percent));
    let many = rule.mirrors.iter();
    let many = many.filter_map(|many| mirror(&many.destination, many.percentage, None));
    one.chain(many).collect()
}

fn redirect(
    of: &Redirect,
    matched: Option<&HttpMatch>,
    semantics: Semantics,
    port: u16,
) -> RedirectAction {
    let code = match of.redirect_code {
        302 => RedirectResponseCode::Found,
        303 => RedirectResponseCode::SeeOther,
        307 => RedirectResponseCode::TemporaryRedirect,
        308 => RedirectResponseCode::PermanentRedirect,
        _ => RedirectResponseCode::MovedPermanently,
    };
    let path = if of.prefix_rewrite.is_empty() {
        let path = Some(of.uri.clone()).filter(|path| !path.is_empty());
        path.map(PathRewriteSpecifier::PathRedirect)
    } else {
        Some(match replaced_prefix(&of.prefix_rewrite, matched, semantics) {
            Prefix::Replaced(prefix) => PathRewriteSpecifier::PrefixRewrite(prefix),
            Prefix::Removed(substitution) => PathRewriteSpecifier::RegexRewrite(substitution),
        })
    };
    let scheme = Some(of.scheme.clone()).filter(|scheme| !scheme.is_empty());
    RedirectAction {
        host_redirect: of.authority.clone(),
        port_redirect: redirect_port(of, port),
        response_code: code.into(),
        strip_query: false,
        scheme_rewrite_specifier: scheme.map(SchemeRewriteSpecifier::SchemeRedirect),
        path_rewrite_specifier: path,
    }
}

/// A port that the scheme implies is not written.
fn redirect_port(of: &Redirect, request_port: u16) -> u32 {
    let from_request = of.derive_port == Some(RedirectPort::FromRequestPort);
    let port = of.port.or(from_request.then_some(request_port.into())).unwrap_or_default();
    match (of.scheme.as_str(), port) {
        ("" | "http", 80) | ("https", 443) => 0,
        (_, port) => port,
    }
}

fn direct_response(of: &DirectResponse) -> DirectResponseAction {
    let body = of.body.as_ref().and_then(|body| {
        let text = body.string.clone().map(data_source::Specifier::InlineString);
        let bytes = body.bytes.as_deref().and_then(|bytes| BASE64_STANDARD.decode(bytes).ok());
        text.or(bytes.map(data_source::Specifier::InlineBytes))
    });
    DirectResponseAction {
        status: of.status,
        body: body.map(|body| DataSource { watched_directory: None, specifier: Some(body) }),
        body_format: None,
    }
}

/// What a route without rules of its own does.
#[expect(deprecated, reason = "max_grpc_timeout is what istiod sends and old proxies read")]
pub(super) fn default_action(cluster: String, destinations: &Destinations<'_>) -> RouteAction {
    let none = Some(duration(Duration::default()));
    RouteAction {
        timeout: none,
        max_grpc_timeout: none,
        // As istiod has it, even where the host is hashed.
        retry_policy: retry::policy(destinations.default_retries(), retry::Balancing::Free),
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster)),
        ..RouteAction::default()
    }
}
