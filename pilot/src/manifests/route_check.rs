//! The limits on the Gateway API's routes: those of its own schema, and what a proxy can use.
//!
//! In: a route. Out: problems. References to what is not there, or of a kind that is not served, are no problems but a
//! matter of its status: what they refer to may come later.

use std::collections::HashSet;

use super::{
    document::Report,
    gateway_api::{
        BackendRef, GrpcRoute, GrpcRouteFilter, HeaderModifier, HttpBackendRef, HttpRoute,
        HttpRouteFilter, HttpRouteMatch, HttpRouteRule, NamedMatch, PathModifier, RequestMirror,
        TcpRoute, TlsRoute,
    },
    http_check::{header_name_fault, header_value_fault, percent_fault, regex_fault},
    virtual_service_check::fault,
};

const MAX_WEIGHT: u32 = 1_000_000;
const REDIRECT_CODES: [u16; 5] = [301, 302, 303, 307, 308];
const REGULAR_EXPRESSION: &str = "RegularExpression";

pub(super) fn http_route(of: &HttpRoute, report: &mut Report<'_>) {
    names(of.rules.iter().map(|rule| rule.name.as_deref()), report);
    for (i, rule) in of.rules.iter().enumerate() {
        let field = format!("spec.rules[{i}]");
        for (j, one) in rule.matches.iter().enumerate() {
            http_match(one, &format!("{field}.matches[{j}]"), report);
        }
        for (j, filter) in rule.filters.iter().enumerate() {
            let field = format!("{field}.filters[{j}]");
            http_filter(filter, &field, report);
            replaced_prefix(filter, rule, &field, report);
        }
        let redirects = rule.filters.iter().any(|filter| filter.request_redirect.is_some());
        let rewrites = rule.filters.iter().any(|filter| filter.url_rewrite.is_some());
        if redirects && rewrites {
            let reason = "only one of RequestRedirect and URLRewrite can be set";
            report.error(&format!("{field}.filters"), reason);
        }
        if redirects && !rule.backend_refs.is_empty() {
            report.error(&format!("{field}.backendRefs"), "a rule that redirects has no backends");
        }
        http_backends(&rule.backend_refs, &format!("{field}.backendRefs"), report);
        times(rule, &field, report);
    }
}

pub(super) fn grpc_route(of: &GrpcRoute, report: &mut Report<'_>) {
    names(of.rules.iter().map(|rule| rule.name.as_deref()), report);
    for (i, rule) in of.rules.iter().enumerate() {
        let field = format!("spec.rules[{i}]");
        for (j, one) in rule.matches.iter().enumerate() {
            let field = format!("{field}.matches[{j}]");
            named(&one.headers, &format!("{field}.headers"), Named::Header, report);
            let Some(method) = &one.method else { continue };
            let texts = [("service", &method.service), ("method", &method.method)];
            if texts.iter().all(|(_, text)| text.is_none()) {
                report.error(&format!("{field}.method"), "empty: needs service or method");
            }
            for (name, text) in texts {
                let text = text.as_deref().filter(|_| is_regex(method.r#type.as_deref()));
                fault(text.and_then(regex_fault), &format!("{field}.method.{name}"), report);
            }
        }
        for (j, filter) in rule.filters.iter().enumerate() {
            grpc_filter(filter, &format!("{field}.filters[{j}]"), report);
        }
        for (j, backend) in rule.backend_refs.iter().enumerate() {
            let field = format!("{field}.backendRefs[{j}]");
            check_backend(&backend.backend(), &field, report);
            for (k, filter) in backend.filters.iter().enumerate() {
                grpc_filter(filter, &format!("{field}.filters[{k}]"), report);
            }
        }
    }
}

pub(super) fn tcp_route(of: &TcpRoute, report: &mut Report<'_>) {
    for (i, rule) in of.rules.iter().enumerate() {
        backends(&rule.backend_refs, &format!("spec.rules[{i}].backendRefs"), report);
    }
}

pub(super) fn tls_route(of: &TlsRoute, report: &mut Report<'_>) {
    for (i, rule) in of.rules.iter().enumerate() {
        backends(&rule.backend_refs, &format!("spec.rules[{i}].backendRefs"), report);
    }
}

fn names<'a>(of: impl Iterator<Item = Option<&'a str>>, report: &mut Report<'_>) {
    let mut seen = HashSet::new();
    for (i, name) in of.enumerate() {
        if let Some(name) = name.filter(|name| !seen.insert(*name)) {
            report.error(&format!("spec.rules[{i}].name"), format!("`{name}` stands there twice"));
        }
    }
}

fn is_regex(kind: Option<&str>) -> bool {
    kind == Some(REGULAR_EXPRESSION)
}

fn http_match(of: &HttpRouteMatch, field: &str, report: &mut Report<'_>) {
    if let Some(path) = &of.path {
        let field = format!("{field}.path");
        let value = path.value.as_deref().unwrap_or("/");
        match path.r#type.as_deref() {
            None | Some("Exact" | "PathPrefix") if !value.starts_with('/') => {
                report.error(&format!("{field}.value"), format!("`{value}` has no `/` before it"));
            }
            Some(REGULAR_EXPRESSION) => {
                fault(regex_fault(value), &format!("{field}.value"), report);
            }
            None | Some("Exact" | "PathPrefix") => {}
            Some(other) => {
                let reason = format!("`{other}` is no Exact, PathPrefix or RegularExpression");
                report.error(&format!("{field}.type"), reason);
            }
        }
    }
    named(&of.headers, &format!("{field}.headers"), Named::Header, report);
    named(&of.query_params, &format!("{field}.queryParams"), Named::Parameter, report);
    if let Some(method) = &of.method {
        let known = !method.is_empty() && method.bytes().all(|b| b.is_ascii_uppercase());
        if !known {
            report.error(&format!("{field}.method"), format!("`{method}` is no method"));
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Named {
    Header,
    Parameter,
}

fn named(of: &[NamedMatch], field: &str, kind: Named, report: &mut Report<'_>) {
    for (i, one) in of.iter().enumerate() {
        let field = format!("{field}[{i}]");
        if kind == Named::Header {
            fault(header_name_fault(&one.name), &format!("{field}.name"), report);
        } else if one.name.is_empty() {
            report.error(&format!("{field}.name"), "empty");
        }
        if is_regex(one.r#type.as_deref()) {
            fault(regex_fault(&one.value), &format!("{field}.value"), report);
        }
    }
}

fn http_filter(of: &HttpRouteFilter, field: &str, report: &mut Report<'_>) {
    let parts = [
        ("RequestHeaderModifier", of.request_header_modifier.is_some()),
        ("ResponseHeaderModifier", of.response_header_modifier.is_some()),
        ("RequestMirror", of.request_mirror.is_some()),
        ("RequestRedirect", of.request_redirect.is_some()),
        ("URLRewrite", of.url_rewrite.is_some()),
        ("CORS", of.cors.is_some()),
        ("ExternalAuth", of.external_auth.is_some()),
        ("ExtensionRef", of.extension_ref.is_some()),
    ];
    only_its_own(&of.r#type, &parts, field, report);
    modifiers(
        of.request_header_modifier.as_ref(),
        of.response_header_modifier.as_ref(),
        field,
        report,
    );
    mirror(of.request_mirror.as_ref(), field, report);
    if let Some(redirect) = &of.request_redirect {
        let field = format!("{field}.requestRedirect");
        if let Some(code) = redirect.status_code.filter(|code| !REDIRECT_CODES.contains(code)) {
            let reason = format!("{code} is none of 301, 302, 303, 307 and 308");
            report.error(&format!("{field}.statusCode"), reason);
        }
        path(redirect.path.as_ref(), &format!("{field}.path"), report);
    }
    if let Some(rewrite) = &of.url_rewrite {
        path(rewrite.path.as_ref(), &format!("{field}.urlRewrite.path"), report);
    }
}

fn grpc_filter(of: &GrpcRouteFilter, field: &str, report: &mut Report<'_>) {
    let parts = [
        ("RequestHeaderModifier", of.request_header_modifier.is_some()),
        ("ResponseHeaderModifier", of.response_header_modifier.is_some()),
        ("RequestMirror", of.request_mirror.is_some()),
        ("ExtensionRef", of.extension_ref.is_some()),
    ];
    only_its_own(&of.r#type, &parts, field, report);
    modifiers(
        of.request_header_modifier.as_ref(),
        of.response_header_modifier.as_ref(),
        field,
        report,
    );
    mirror(of.request_mirror.as_ref(), field, report);
}

/// A filter has the part that its type names, and no other.
fn only_its_own(kind: &str, parts: &[(&str, bool)], field: &str, report: &mut Report<'_>) {
    for (name, set) in parts {
        match (*name == kind, set) {
            (true, false) => report.error(field, format!("is of type {kind} and does not say how")),
            (false, true) => {
                report.error(field, format!("is of type {kind} and has a {name}, too"));
            }
            (true, true) | (false, false) => {}
        }
    }
    if parts.iter().all(|(name, _)| *name != kind) {
        report.error(&format!("{field}.type"), format!("there is no filter of type `{kind}`"));
    }
}

fn modifiers(
    request: Option<&HeaderModifier>,
    response: Option<&HeaderModifier>,
    field: &str,
    report: &mut Report<'_>,
) {
    for (name, modifier) in
        [("requestHeaderModifier", request), ("responseHeaderModifier", response)]
    {
        let Some(modifier) = modifier else { continue };
        let field = format!("{field}.{name}");
        for (verb, headers) in [("set", &modifier.set), ("add", &modifier.add)] {
            for (i, header) in headers.iter().enumerate() {
                let field = format!("{field}.{verb}[{i}]");
                fault(header_name_fault(&header.name), &format!("{field}.name"), report);
                fault(header_value_fault(&header.value), &format!("{field}.value"), report);
            }
        }
        for (i, name) in modifier.remove.iter().enumerate() {
            fault(header_name_fault(name), &format!("{field}.remove[{i}]"), report);
        }
    }
}

fn mirror(of: Option<&RequestMirror>, field: &str, report: &mut Report<'_>) {
    let Some(of) = of else { return };
    let field = format!("{field}.requestMirror");
    if of.percent.is_some() && of.fraction.is_some() {
        report.error(&field, "only one of percent and fraction can be set");
    }
    let percent = of.percent.and_then(|percent| percent_fault(percent.into()));
    fault(percent, &format!("{field}.percent"), report);
    if let Some(fraction) = &of.fraction {
        let whole = fraction.denominator.unwrap_or(100);
        if whole == 0 || fraction.numerator > whole {
            let reason = format!("{}/{whole} is not from 0 to 1", fraction.numerator);
            report.error(&format!("{field}.fraction"), reason);
        }
    }
}

fn path(of: Option<&PathModifier>, field: &str, report: &mut Report<'_>) {
    let Some(of) = of else { return };
    let set = match of.r#type.as_str() {
        "ReplaceFullPath" => of.replace_full_path.is_some() && of.replace_prefix_match.is_none(),
        "ReplacePrefixMatch" => of.replace_prefix_match.is_some() && of.replace_full_path.is_none(),
        other => {
            let reason = format!("`{other}` is no ReplaceFullPath or ReplacePrefixMatch");
            return report.error(&format!("{field}.type"), reason);
        }
    };
    if !set {
        let reason = format!("of type {}: that, and only that, must be set", of.r#type);
        report.error(field, reason);
    }
}

/// There must be one prefix that is replaced.
fn replaced_prefix(
    of: &HttpRouteFilter,
    rule: &HttpRouteRule,
    field: &str,
    report: &mut Report<'_>,
) {
    let redirect = of.request_redirect.as_ref().and_then(|redirect| redirect.path.as_ref());
    let rewrite = of.url_rewrite.as_ref().and_then(|rewrite| rewrite.path.as_ref());
    let replaces = |path: &PathModifier| path.r#type == "ReplacePrefixMatch";
    let by_prefix = |one: &HttpRouteMatch| {
        let kind = one.path.as_ref().and_then(|path| path.r#type.as_deref());
        kind.is_none_or(|kind| kind == "PathPrefix")
    };
    let one_prefix = match rule.matches.as_slice() {
        [] => true,
        [only] => by_prefix(only),
        _ => false,
    };
    if !one_prefix && redirect.into_iter().chain(rewrite).any(replaces) {
        report.error(field, "ReplacePrefixMatch needs exactly one match, of type PathPrefix");
    }
}

fn http_backends(of: &[HttpBackendRef], field: &str, report: &mut Report<'_>) {
    for (i, backend) in of.iter().enumerate() {
        let field = format!("{field}[{i}]");
        check_backend(&backend.backend(), &field, report);
        for (j, filter) in backend.filters.iter().enumerate() {
            http_filter(filter, &format!("{field}.filters[{j}]"), report);
        }
    }
}

fn backends(of: &[BackendRef], field: &str, report: &mut Report<'_>) {
    if of.is_empty() {
        report.error(field, "missing");
    }
    for (i, backend) in of.iter().enumerate() {
        check_backend(backend, &format!("{field}[{i}]"), report);
    }
}

fn check_backend(of: &BackendRef, field: &str, report: &mut Report<'_>) {
    let reference = of.reference();
    let is_service = reference.group().is_empty() && reference.kind() == "Service";
    if is_service && of.port.is_none() {
        report.error(&format!("{field}.port"), "missing: a Service is reached at a port");
    }
    if let Some(weight) = of.weight.filter(|weight| *weight > MAX_WEIGHT) {
        report.error(&format!("{field}.weight"), format!("{weight} is more than {MAX_WEIGHT}"));
    }
}

fn times(rule: &HttpRouteRule, field: &str, report: &mut Report<'_>) {
    if let Some(timeouts) = &rule.timeouts
        && let (Some(request), Some(attempt)) = (timeouts.request, timeouts.backend_request)
        && !request.0.is_zero()
        && attempt > request
    {
        let reason = format!("{attempt} is longer than the whole request may take ({request})");
        report.error(&format!("{field}.timeouts.backendRequest"), reason);
    }
    if let Some(retry) = &rule.retry {
        let field = format!("{field}.retry");
        if let Some(attempts) = retry.attempts.filter(|attempts| *attempts < 1) {
            report.error(&format!("{field}.attempts"), format!("{attempts} is less than 1"));
        }
        for (i, code) in retry.codes.iter().enumerate() {
            if !(400..600).contains(code) {
                let reason = format!("{code} is not from 400 to 599");
                report.error(&format!("{field}.codes[{i}]"), reason);
            }
        }
    }
}
