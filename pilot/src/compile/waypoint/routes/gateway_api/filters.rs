//! Filters of the Gateway API's routes.
//!
//! In: the filters of a rule or of a backend. Out: what of an [`HttpRule`] they are. A filter we do not know is never
//! passed over: its rule is [`Unsupported`].

use std::collections::BTreeMap;

use super::{super::action::quoted, backend};
use crate::manifests::{
    Duration, Meta,
    gateway_api::{
        GrpcRouteFilter, HeaderModifier, HttpRouteFilter, PathModifier, RequestMirror,
        RequestRedirect, RouteCors, RouteHeader, UrlRewrite,
    },
    networking::{
        CorsPolicy, HeaderOperations, Headers, HttpRule, Mirror, Percent, Redirect, RedirectPort,
        RegexRewrite, Rewrite, StringMatch, UnmatchedPreflights,
    },
};

/// A rule has a filter that we do not apply.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Unsupported;

/// Any origin; a request's own is then told back.
const ANY_ORIGIN: &str = r"^[a-zA-Z][a-zA-Z0-9+.-]*://[^/\s?#]+$";

/// Whether a filter of an HTTPRoute's rule is one of those we apply.
pub(crate) fn is_supported_http_filter(of: &HttpRouteFilter) -> bool {
    let known = [
        of.request_header_modifier.is_some(),
        of.response_header_modifier.is_some(),
        of.request_mirror.is_some(),
        of.request_redirect.is_some(),
        of.url_rewrite.is_some(),
        of.cors.is_some(),
    ];
    of.extension_ref.is_none() && of.external_auth.is_none() && known.contains(&true)
}

/// Whether a filter of a GRPCRoute's rule is one of those we apply.
pub(crate) fn is_supported_grpc_filter(of: &GrpcRouteFilter) -> bool {
    let known = [
        of.request_header_modifier.is_some(),
        of.response_header_modifier.is_some(),
        of.request_mirror.is_some(),
    ];
    of.extension_ref.is_none() && known.contains(&true)
}

/// A filter of a GRPCRoute as the HTTPRoute's filter that does the same.
pub(super) fn of_grpc(of: &GrpcRouteFilter) -> HttpRouteFilter {
    HttpRouteFilter {
        r#type: of.r#type.clone(),
        request_header_modifier: of.request_header_modifier.clone(),
        response_header_modifier: of.response_header_modifier.clone(),
        request_mirror: of.request_mirror.clone(),
        request_redirect: None,
        url_rewrite: None,
        cors: None,
        external_auth: None,
        extension_ref: of.extension_ref.clone(),
    }
}

/// Applies the filters of a rule to what becomes of it.
pub(super) fn apply(
    filters: &[HttpRouteFilter],
    rule: &mut HttpRule,
    route: &Meta,
    cluster_domain: &str,
) -> Result<(), Unsupported> {
    for filter in filters {
        if !is_supported_http_filter(filter) {
            return Err(Unsupported);
        }
        if let Some(redirect) = &filter.request_redirect {
            rule.redirect = Some(request_redirect(redirect));
        }
        if let Some(rewrite) = &filter.url_rewrite {
            rule.rewrite = Some(url_rewrite(rewrite));
        }
        if let Some(of) = &filter.request_mirror {
            rule.mirrors.extend(mirror(of, route, cluster_domain));
        }
        if let Some(of) = &filter.cors {
            rule.cors_policy = Some(cors(of));
        }
    }
    rule.headers = headers(filters);
    Ok(())
}

/// What filters do to headers; of a backend, nothing else is allowed.
pub(super) fn backend_headers(filters: &[HttpRouteFilter]) -> Result<Option<Headers>, Unsupported> {
    let modifiers = filters.iter().all(|filter| {
        let other = filter.request_mirror.is_some()
            || filter.request_redirect.is_some()
            || filter.url_rewrite.is_some()
            || filter.cors.is_some();
        is_supported_http_filter(filter) && !other
    });
    if modifiers { Ok(headers(filters)) } else { Err(Unsupported) }
}

fn headers(filters: &[HttpRouteFilter]) -> Option<Headers> {
    let mut request = filters.iter().filter_map(|filter| filter.request_header_modifier.as_ref());
    let mut response = filters.iter().filter_map(|filter| filter.response_header_modifier.as_ref());
    let headers = Headers {
        request: request.next().map(header_operations),
        response: response.next().map(header_operations),
    };
    (headers.request.is_some() || headers.response.is_some()).then_some(headers)
}

fn header_operations(of: &HeaderModifier) -> HeaderOperations {
    HeaderOperations {
        set: by_name(&of.set),
        add: by_name(&of.add),
        remove: of.remove.iter().map(|name| name.to_ascii_lowercase()).collect(),
    }
}

/// Of two values for one name, the first counts.
fn by_name(of: &[RouteHeader]) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for RouteHeader { name, value } in of {
        all.entry(name.to_ascii_lowercase()).or_insert_with(|| value.clone());
    }
    all
}

fn request_redirect(of: &RequestRedirect) -> Redirect {
    let scheme = of.scheme.clone().unwrap_or_default();
    // The scheme brings its port; without either, the request's port stays.
    let keep_port = of.port.is_none() && scheme.is_empty();
    let mut redirect = Redirect {
        authority: of.hostname.clone().unwrap_or_default(),
        port: of.port.map(u32::from),
        derive_port: keep_port.then_some(RedirectPort::FromRequestPort),
        scheme,
        redirect_code: of.status_code.map_or(302, u32::from),
        ..Redirect::default()
    };
    match of.path.as_ref().map(path) {
        Some(Path::Full(path)) => redirect.uri = path,
        Some(Path::Prefix(prefix)) => redirect.prefix_rewrite = prefix,
        None => {}
    }
    redirect
}

enum Path {
    Full(String),
    Prefix(String),
}

fn path(of: &PathModifier) -> Path {
    if of.r#type == "ReplaceFullPath" {
        return Path::Full(of.replace_full_path.clone().unwrap_or_else(|| "/".into()));
    }
    let prefix = of.replace_prefix_match.as_deref().unwrap_or_default().trim_end_matches('/');
    Path::Prefix(if prefix.is_empty() { "/" } else { prefix }.to_owned())
}

fn url_rewrite(of: &UrlRewrite) -> Rewrite {
    let mut rewrite =
        Rewrite { authority: of.hostname.clone().unwrap_or_default(), ..Rewrite::default() };
    match of.path.as_ref().map(path) {
        Some(Path::Full(path)) => {
            // A `\` in a substitution would begin a reference to a group.
            let rewritten = path.replace('\\', r"\\");
            rewrite.uri_regex_rewrite =
                Some(RegexRewrite { r#match: "/.*".into(), rewrite: rewritten });
        }
        Some(Path::Prefix(prefix)) => rewrite.uri = prefix,
        None => {}
    }
    rewrite
}

/// A mirror to something that is no backend is left out: no request of a client is lost by that.
fn mirror(of: &RequestMirror, route: &Meta, cluster_domain: &str) -> Option<Mirror> {
    let destination = backend::destination(&of.backend_ref, route, cluster_domain);
    let share = match &of.fraction {
        Some(fraction) => {
            let whole = f64::from(fraction.denominator.unwrap_or(100).max(1));
            Some(f64::from(fraction.numerator) * 100.0 / whole)
        }
        None => of.percent.map(f64::from),
    };
    let percentage = share.map(|value| Percent { value });
    (!destination.host.is_empty()).then_some(Mirror { destination, percentage })
}

fn cors(of: &RouteCors) -> CorsPolicy {
    let seconds = of.max_age.and_then(|age| u64::try_from(age).ok()).filter(|age| *age > 0);
    CorsPolicy {
        allow_origins: of.allow_origins.iter().map(|origin| allowed_origin(origin)).collect(),
        allow_methods: of.allow_methods.clone(),
        allow_headers: of.allow_headers.clone(),
        expose_headers: of.expose_headers.clone(),
        max_age: seconds.map(|seconds| Duration(std::time::Duration::from_secs(seconds))),
        allow_credentials: of.allow_credentials,
        unmatched_preflights: UnmatchedPreflights::Ignore,
        ..CorsPolicy::default()
    }
}

fn allowed_origin(origin: &str) -> StringMatch {
    let regex = |text: String| StringMatch { regex: Some(text), ..Default::default() };
    if origin == "*" {
        return regex(ANY_ORIGIN.to_owned());
    }
    match origin.split_once('*') {
        None => StringMatch { exact: Some(origin.to_owned()), ..Default::default() },
        Some((prefix, "")) => StringMatch { prefix: Some(prefix.to_owned()), ..Default::default() },
        Some(_) => {
            let parts: Vec<_> = origin.split('*').map(quoted).collect();
            regex(format!("^{}$", parts.join(".*")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_may_have_wildcards() {
        let text = |text: &str| Some(text.to_owned());
        for (origin, expected) in [
            ("https://a.com", StringMatch { exact: text("https://a.com"), ..Default::default() }),
            ("*", StringMatch { regex: text(ANY_ORIGIN), ..Default::default() }),
            ("http://a:*", StringMatch { prefix: text("http://a:"), ..Default::default() }),
            (
                "https://*.a.com",
                StringMatch { regex: text(r"^https://.*\.a\.com$"), ..Default::default() },
            ),
        ] {
            assert_eq!(allowed_origin(origin), expected, "{origin}");
        }
    }

    #[test]
    fn a_redirect_keeps_the_port_unless_a_scheme_or_a_port_is_given() {
        let of = |scheme: Option<&str>, port| RequestRedirect {
            scheme: scheme.map(Into::into),
            port,
            ..Default::default()
        };
        for (scheme, port, expected) in [
            (None, None, (None, Some(RedirectPort::FromRequestPort))),
            (Some("https"), None, (None, None)),
            (None, Some(8080), (Some(8080), None)),
        ] {
            let redirect = request_redirect(&of(scheme, port));
            assert_eq!((redirect.port, redirect.derive_port), expected, "{scheme:?} {port:?}");
            assert_eq!(redirect.redirect_code, 302);
        }
    }

    #[test]
    fn a_replaced_prefix_has_no_slash_at_its_end() {
        for (prefix, expected) in [("/x/", "/x"), ("/x", "/x"), ("/", "/"), ("", "/")] {
            let of = PathModifier {
                r#type: "ReplacePrefixMatch".into(),
                replace_full_path: None,
                replace_prefix_match: Some(prefix.into()),
            };
            let Path::Prefix(found) = path(&of) else { panic!("{prefix}") };
            assert_eq!(found, expected, "{prefix}");
        }
    }
}
