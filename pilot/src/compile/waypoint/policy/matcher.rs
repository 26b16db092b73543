//! Values of a policy as Envoy's matchers.
//!
//! A `*` at the beginning or the end of a value stands for anything, `*` alone for anything but nothing.

use proto::envoy::envoy::{
    config::{
        core::v3::CidrRange,
        route::v3::{HeaderMatcher, header_matcher::HeaderMatchSpecifier},
    },
    r#type::matcher::v3::{
        FilterStateMatcher, ListMatcher, MetadataMatcher, OrMatcher, RegexMatcher, StringMatcher,
        ValueMatcher, filter_state_matcher, list_matcher,
        metadata_matcher::{PathSegment, path_segment},
        string_matcher::MatchPattern,
        value_matcher,
    },
};
use proto::google::UInt32Value;

use crate::manifests::attribute;

/// Where a waypoint keeps the name of the tunnel's peer.
const PEER_PRINCIPAL: &str = "io.istio.peer_principal";
/// Where the filter of tokens keeps what they say.
const JWT: &str = "envoy.filters.http.jwt_authn";

pub(super) fn pattern(pattern: MatchPattern) -> StringMatcher {
    StringMatcher { ignore_case: false, match_pattern: Some(pattern) }
}

pub(super) fn regex(regex: String) -> StringMatcher {
    pattern(MatchPattern::SafeRegex(RegexMatcher { regex, engine_type: None }))
}

/// As written, with its `*`.
pub(super) fn string(value: &str) -> StringMatcher {
    string_after("", value)
}

/// The same of a text that has `before` before what is written.
fn string_after(before: &str, value: &str) -> StringMatcher {
    if value == "*" {
        return regex(".+".to_owned());
    }
    pattern(if let Some(suffix) = value.strip_prefix('*') {
        if before.is_empty() {
            MatchPattern::Suffix(suffix.to_owned())
        } else {
            return regex(format!("{before}.*{}", quote(suffix)));
        }
    } else if let Some(prefix) = value.strip_suffix('*') {
        MatchPattern::Prefix(format!("{before}{prefix}"))
    } else {
        MatchPattern::Exact(format!("{before}{value}"))
    })
}

/// A header of the request.
pub(super) fn header(name: &str, value: &str) -> HeaderMatcher {
    let specifier = if value == "*" {
        HeaderMatchSpecifier::PresentMatch(true)
    } else {
        HeaderMatchSpecifier::StringMatch(string(value))
    };
    HeaderMatcher {
        name: name.to_owned(),
        header_match_specifier: Some(specifier),
        ..HeaderMatcher::default()
    }
}

/// Whom the request is for. Host names have no case.
pub(super) fn host(value: &str) -> HeaderMatcher {
    let mut matcher = header(":authority", value);
    if let Some(HeaderMatchSpecifier::StringMatch(text)) = &mut matcher.header_match_specifier {
        text.ignore_case = true;
    }
    matcher
}

fn peer(text: StringMatcher) -> FilterStateMatcher {
    FilterStateMatcher {
        key: PEER_PRINCIPAL.to_owned(),
        matcher: Some(filter_state_matcher::Matcher::StringMatch(text)),
    }
}

/// A peer by its name, written without the scheme.
pub(super) fn principal(value: &str) -> FilterStateMatcher {
    peer(string_after("spiffe://", value))
}

/// A peer by its namespace.
pub(super) fn namespace(value: &str) -> FilterStateMatcher {
    peer(regex(format!(".*/ns/{}/.*", wildcards(value, ".*"))))
}

/// A peer by its service account: `account`, or `namespace/account`.
pub(super) fn service_account(value: &str, own_namespace: &str) -> FilterStateMatcher {
    let (namespace, account) = value.split_once('/').unwrap_or((own_namespace, value));
    let (namespace, account) = (quote(namespace), quote(account));
    peer(regex(format!("spiffe://.+/ns/{namespace}/(.+/|)sa/{account}(/.+)?")))
}

/// A peer by its trust domain.
pub(super) fn trust_domain(value: &str) -> FilterStateMatcher {
    peer(if value.contains('*') {
        regex(format!("spiffe://{}/.*", wildcards(value, "[^/]*")))
    } else {
        pattern(MatchPattern::Prefix(format!("spiffe://{value}/")))
    })
}

/// A value with `*` anywhere as a regular expression.
fn wildcards(value: &str, any: &str) -> String {
    value.split('*').map(quote).collect::<Vec<_>>().join(any)
}

/// Takes the meaning from characters that have one in a regular expression.
fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len());
    for c in text.chars() {
        if r"\.+*?()|[]{}^$".contains(c) {
            quoted.push('\\');
        }
        quoted.push(c);
    }
    quoted
}

/// An address or a block of them; nothing if it is neither.
pub(super) fn cidr(value: &str) -> Option<CidrRange> {
    let (ip, length) = attribute::block(value)?;
    let prefix_len = Some(UInt32Value { value: length.into() });
    Some(CidrRange { address_prefix: ip.to_string(), prefix_len })
}

fn metadata(filter: &str, path: &[&str], value: ValueMatcher) -> MetadataMatcher {
    let segments = path
        .iter()
        .map(|key| PathSegment { segment: Some(path_segment::Segment::Key((*key).to_owned())) });
    MetadataMatcher {
        filter: filter.to_owned(),
        path: segments.collect(),
        value: Some(value),
        invert: false,
    }
}

fn value(pattern: value_matcher::MatchPattern) -> ValueMatcher {
    ValueMatcher { match_pattern: Some(pattern) }
}

fn value_is(text: StringMatcher) -> ValueMatcher {
    value(value_matcher::MatchPattern::StringMatch(text))
}

fn list_has(one: ValueMatcher) -> ValueMatcher {
    value(value_matcher::MatchPattern::ListMatch(Box::new(ListMatcher {
        match_pattern: Some(list_matcher::MatchPattern::OneOf(Box::new(one))),
    })))
}

fn any_of(values: Vec<ValueMatcher>) -> ValueMatcher {
    value(value_matcher::MatchPattern::OrMatch(OrMatcher { value_matchers: values }))
}

/// A claim of a valid token: a text that is one of the values, or a list that has one of them.
pub(super) fn claim(path: &[&str], values: &[String]) -> MetadataMatcher {
    let mut matchers: Vec<_> = values.iter().map(|value| value_is(string(value))).collect();
    let one = match matchers.len() {
        1 => matchers.remove(0),
        _ => any_of(matchers),
    };
    let path: Vec<_> = std::iter::once("payload").chain(path.iter().copied()).collect();
    metadata(JWT, &path, any_of(vec![list_has(one.clone()), one]))
}

/// Issuer and subject of a valid token, written `issuer/subject`; a `*` frees the side on which it stands.
pub(super) fn request_principal(value: &str) -> [MetadataMatcher; 2] {
    let (issuer, subject) = match value.rsplit_once('/') {
        _ if value == "*" => ("*", "*"),
        Some(parts) => parts,
        None if value.starts_with('*') => ("*", value),
        None if value.ends_with('*') => (value, "*"),
        None => (value, ""),
    };
    [("iss", issuer), ("sub", subject)]
        .map(|(name, text)| metadata(JWT, &["payload", name], value_is(string(text))))
}

/// What another filter knows: `[value]` is a list that has it.
pub(super) fn filter_metadata(filter: &str, key: &str, text: &str) -> MetadataMatcher {
    let inner = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    let matcher = match inner {
        Some(one) => list_has(value_is(string(one))),
        None => value_is(string(text)),
    };
    metadata(filter, &[key], matcher)
}

/// A key of dynamic metadata that begins with a text.
pub(super) fn metadata_prefix(filter: &str, key: &str, prefix: String) -> MetadataMatcher {
    metadata(filter, &[key], value_is(pattern(MatchPattern::Prefix(prefix))))
}
