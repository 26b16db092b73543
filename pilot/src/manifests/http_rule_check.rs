//! The limits on what a VirtualService's rule does with a request.
//!
//! In: a rule. Out: problems. Which requests it is for, and where it leads, is checked elsewhere.

use base64::{Engine, prelude::BASE64_STANDARD};

use super::{
    document::Report,
    http_check::{
        header_name_fault, header_value_fault, is_token, percent_fault, regex_fault, retry_on_fault,
    },
    http_names::{grpc_code, is_authority},
    networking::{
        CorsPolicy, DirectResponse, Fault, HeaderOperations, Headers, HttpMatch, HttpRule,
        Redirect, RedirectPort, Retries, Rewrite,
    },
    virtual_service_check::{fault, limit, string_match},
};

/// Of a body that the proxy answers with: more is not sent, and much is a warning.
const MAX_BODY_BYTES: usize = 1024 * 1024;
const LARGE_BODY_BYTES: usize = 100 * 1024;

/// Where a client may be sent.
const REDIRECT_CODES: [u32; 6] = [0, 301, 302, 303, 307, 308];

pub(super) fn http_rule(rule: &HttpRule, field: &str, report: &mut Report<'_>) {
    limit(rule.timeout, &format!("{field}.timeout"), report);
    headers(rule.headers.as_ref(), &format!("{field}.headers"), report);
    if let Some(of) = &rule.redirect {
        redirect(of, &rule.r#match, &format!("{field}.redirect"), report);
    }
    if let Some(of) = &rule.direct_response {
        direct_response(of, &format!("{field}.directResponse"), report);
    }
    if let Some(of) = &rule.delegate
        && of.name.is_empty()
    {
        report.error(&format!("{field}.delegate.name"), "missing");
    }
    if let Some(of) = &rule.rewrite {
        rewrite(of, rule, &format!("{field}.rewrite"), report);
    }
    if let Some(of) = &rule.retries {
        retries(of, &format!("{field}.retries"), report);
    }
    if let Some(of) = &rule.fault {
        injected(of, &format!("{field}.fault"), report);
    }
    if let Some(of) = &rule.cors_policy {
        cors(of, &format!("{field}.corsPolicy"), report);
    }
    let older = rule.mirror_percent.and_then(|percent| percent_fault(percent.into()));
    fault(older, &format!("{field}.mirrorPercent"), report);
    let share = rule.mirror_percentage.and_then(|percentage| percent_fault(percentage.value));
    fault(share, &format!("{field}.mirrorPercentage"), report);
}

pub(super) fn headers(of: Option<&Headers>, field: &str, report: &mut Report<'_>) {
    let Some(of) = of else { return };
    if let Some(request) = &of.request {
        operations(request, Of::Request, &format!("{field}.request"), report);
    }
    if let Some(response) = &of.response {
        operations(response, Of::Response, &format!("{field}.response"), report);
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Of {
    Request,
    Response,
}

fn operations(of: &HeaderOperations, side: Of, field: &str, report: &mut Report<'_>) {
    for (verb, values) in [("set", &of.set), ("add", &of.add)] {
        let field = format!("{field}.{verb}");
        for (name, value) in values {
            if side == Of::Response || !is_authority(name) {
                fault(header_name_fault(name), &field, report);
            }
            fault(header_value_fault(value), &field, report);
        }
    }
    for (i, name) in of.remove.iter().enumerate() {
        let field = format!("{field}.remove[{i}]");
        if side == Of::Request && is_authority(name) {
            report.error(&field, "a request needs its host");
        } else {
            fault(header_name_fault(name), &field, report);
        }
    }
}

fn redirect(of: &Redirect, matches: &[HttpMatch], field: &str, report: &mut Report<'_>) {
    let texts = [&of.uri, &of.prefix_rewrite, &of.authority, &of.scheme];
    if texts.iter().all(|text| text.is_empty()) && of.port.is_none() && of.derive_port.is_none() {
        report.error(field, "leads back: set uri, prefixRewrite, authority, scheme or port");
    }
    if !of.uri.is_empty() && !of.prefix_rewrite.is_empty() {
        report.error(field, "only one of uri and prefixRewrite can be set");
    }
    if of.port.is_some() && of.derive_port.is_some_and(|from| from != RedirectPort::default()) {
        report.error(field, "only one of port and derivePort can be set");
    }
    if let Some(port) = of.port.filter(|port| !(1..=65535).contains(port)) {
        report.error(&format!("{field}.port"), format!("{port} is no port (1 to 65535)"));
    }
    if !REDIRECT_CODES.contains(&of.redirect_code) {
        let reason = format!("{} is none of 301, 302, 303, 307 and 308", of.redirect_code);
        report.error(&format!("{field}.redirectCode"), reason);
    }
    let by_prefix = |one: &HttpMatch| one.uri.as_ref().is_none_or(|uri| uri.prefix.is_some());
    if !of.prefix_rewrite.is_empty() && !matches.iter().all(by_prefix) {
        report.error(&format!("{field}.prefixRewrite"), "a match of the rule has no prefix");
    }
}

fn direct_response(of: &DirectResponse, field: &str, report: &mut Report<'_>) {
    if !(200..600).contains(&of.status) {
        report.error(&format!("{field}.status"), format!("{} is not from 200 to 599", of.status));
    }
    let Some(body) = &of.body else { return };
    let field = format!("{field}.body");
    let bytes = match (&body.string, &body.bytes) {
        (Some(_), Some(_)) => {
            return report.error(&field, "only one of string and bytes can be set");
        }
        (None, None) => return report.error(&field, "empty: needs string or bytes"),
        (Some(text), None) => text.len(),
        (None, Some(bytes)) => match BASE64_STANDARD.decode(bytes) {
            Ok(bytes) => bytes.len(),
            Err(error) => {
                return report.error(&format!("{field}.bytes"), format!("no base64: {error}"));
            }
        },
    };
    if bytes > MAX_BODY_BYTES {
        report.error(&field, format!("{bytes} bytes, at most {MAX_BODY_BYTES} are sent"));
    } else if bytes > LARGE_BODY_BYTES {
        report.warning(&field, format!("{bytes} bytes are sent to every proxy"));
    }
}

fn rewrite(of: &Rewrite, rule: &HttpRule, field: &str, report: &mut Report<'_>) {
    if of.uri.is_empty() && of.authority.is_empty() && of.uri_regex_rewrite.is_none() {
        report.error(field, "empty: set uri, uriRegexRewrite or authority");
    }
    if rule.redirect.is_some() {
        report.error(field, "a redirect rewrites by itself: use its own fields");
    }
    if let Some(by_regex) = &of.uri_regex_rewrite {
        let field = format!("{field}.uriRegexRewrite");
        if !of.uri.is_empty() {
            report.error(&field, "only one of uri and uriRegexRewrite can be set");
        }
        if by_regex.r#match.is_empty() {
            report.error(&format!("{field}.match"), "missing");
        }
        fault(regex_fault(&by_regex.r#match), &format!("{field}.match"), report);
        fault(substitution_fault(by_regex), &format!("{field}.rewrite"), report);
    }
    let request = rule.headers.as_ref().and_then(|headers| headers.request.as_ref());
    let mut names =
        request.into_iter().flat_map(|request| request.set.keys().chain(request.add.keys()));
    if !of.authority.is_empty() && names.any(|name| is_authority(name)) {
        let reason = "beats the host that is set among the headers of the request";
        report.warning(&format!("{field}.authority"), reason);
    }
}

/// A reference to a group that the pattern does not have makes a proxy refuse the route.
fn substitution_fault(of: &super::networking::RegexRewrite) -> Option<String> {
    let groups = regex::Regex::new(&of.r#match).ok()?.captures_len();
    let mut characters = of.rewrite.chars();
    while let Some(c) = characters.next() {
        if c != '\\' {
            continue;
        }
        match characters.next() {
            Some('\\') => {}
            Some(digit) if digit.is_ascii_digit() => {
                let group = digit.to_digit(10).unwrap_or_default();
                if usize::try_from(group).unwrap_or(usize::MAX) >= groups {
                    return Some(format!("`\\{digit}`: the pattern has {} groups", groups - 1));
                }
            }
            _ => return Some(r"a `\` must be followed by a digit or another `\`".to_owned()),
        }
    }
    None
}

fn retries(of: &Retries, field: &str, report: &mut Report<'_>) {
    if of.attempts < 0 {
        report.error(&format!("{field}.attempts"), format!("{} is negative", of.attempts));
    }
    limit(of.per_try_timeout, &format!("{field}.perTryTimeout"), report);
    limit(of.backoff, &format!("{field}.backoff"), report);
    fault(retry_on_fault(&of.retry_on), &format!("{field}.retryOn"), report);
}

fn injected(of: &Fault, field: &str, report: &mut Report<'_>) {
    if of.delay.is_none() && of.abort.is_none() {
        report.error(field, "empty: needs delay or abort");
    }
    if let Some(delay) = &of.delay {
        let field = format!("{field}.delay");
        if delay.exponential_delay.is_some() {
            report.error(&format!("{field}.exponentialDelay"), "not supported: use fixedDelay");
        } else if delay.fixed_delay.is_none() {
            report.error(&format!("{field}.fixedDelay"), "missing");
        }
        limit(delay.fixed_delay, &format!("{field}.fixedDelay"), report);
        fault(percent_fault(delay.percent.into()), &format!("{field}.percent"), report);
        let share = delay.percentage.and_then(|percentage| percent_fault(percentage.value));
        fault(share, &format!("{field}.percentage"), report);
    }
    if let Some(abort) = &of.abort {
        let field = format!("{field}.abort");
        if abort.http2_error.is_some() {
            report.error(&format!("{field}.http2Error"), "not supported: use httpStatus");
        }
        match (abort.http_status, &abort.grpc_status) {
            (Some(_), Some(_)) => {
                report.error(&field, "only one of httpStatus and grpcStatus can be set");
            }
            (None, None) => report.error(&field, "empty: needs httpStatus or grpcStatus"),
            (Some(status), None) if !(200..600).contains(&status) => {
                let reason = format!("{status} is not from 200 to 599");
                report.error(&format!("{field}.httpStatus"), reason);
            }
            (None, Some(name)) if grpc_code(name).is_none() => {
                let reason = format!("`{name}` is no status of gRPC");
                report.error(&format!("{field}.grpcStatus"), reason);
            }
            (Some(_), None) | (None, Some(_)) => {}
        }
        let share = abort.percentage.and_then(|percentage| percent_fault(percentage.value));
        fault(share, &format!("{field}.percentage"), report);
    }
}

fn cors(of: &CorsPolicy, field: &str, report: &mut Report<'_>) {
    for (i, origin) in of.allow_origins.iter().enumerate() {
        let field = format!("{field}.allowOrigins[{i}]");
        string_match(origin, &field, report);
        if [&origin.exact, &origin.prefix, &origin.regex].iter().all(|value| value.is_none()) {
            report.error(&field, "empty: needs exact, prefix or regex");
        }
    }
    for (name, values) in [
        ("allowMethods", &of.allow_methods),
        ("allowHeaders", &of.allow_headers),
        ("exposeHeaders", &of.expose_headers),
    ] {
        for (i, value) in values.iter().enumerate().filter(|(_, value)| !is_token(value)) {
            report.error(&format!("{field}.{name}[{i}]"), format!("`{value}` is no such name"));
        }
    }
    if let Some(age) = of.max_age.filter(|age| age.0.subsec_nanos() != 0) {
        report.error(&format!("{field}.maxAge"), format!("{age} is not a number of seconds"));
    }
}
