//! Which requests a route is for.
//!
//! In: one match of a rule, and whose rules of matching count. Out: Envoy's `RouteMatch`. What depends on the port or
//! on the source has been decided before.

use std::collections::BTreeMap;

use proto::envoy::envoy::{
    config::route::v3::{
        HeaderMatcher, QueryParameterMatcher, RouteMatch, header_matcher::HeaderMatchSpecifier,
        query_parameter_matcher::QueryParameterMatchSpecifier, route_match::PathSpecifier,
    },
    r#type::matcher::v3::{
        ListMatcher, MetadataMatcher, OrMatcher, StringMatcher, ValueMatcher, list_matcher,
        metadata_matcher::{PathSegment, path_segment::Segment},
        value_matcher,
    },
};

use super::{
    rule_set::Semantics,
    wire::{flag, regex, string_match},
};
use crate::manifests::{
    claim,
    networking::{HttpMatch, StringMatch},
};

const JWT_FILTER: &str = "envoy.filters.http.jwt_authn";

/// Without a match, every request is matched.
pub(super) fn route_match(of: Option<&HttpMatch>, semantics: Semantics) -> RouteMatch {
    let Some(of) = of else {
        let path_specifier = Some(PathSpecifier::Prefix("/".into()));
        return RouteMatch { path_specifier, ..RouteMatch::default() };
    };
    let mut headers = Vec::new();
    let mut dynamic_metadata = Vec::new();
    for (name, value, wanted) in by_name(&of.headers, &of.without_headers) {
        if let Some(path) = claim(name) {
            dynamic_metadata.push(claim_matcher(path, value, wanted));
        } else {
            headers.push(header(name, value, wanted));
        }
    }
    for (name, value) in
        [(":method", &of.method), (":authority", &of.authority), (":scheme", &of.scheme)]
    {
        headers.extend(value.as_ref().map(|value| header(name, value, Wanted::Yes)));
    }
    RouteMatch {
        case_sensitive: flag(!of.ignore_uri_case),
        headers,
        query_parameters: of.query_params.iter().map(query_parameter).collect(),
        dynamic_metadata,
        path_specifier: Some(path(of.uri.as_ref(), semantics)),
        ..RouteMatch::default()
    }
}

/// Whether no request can pass it by: what comes after is never reached.
pub(super) fn is_catch_all(of: &RouteMatch) -> bool {
    let any_path = match &of.path_specifier {
        Some(PathSpecifier::Prefix(prefix)) => prefix == "/",
        Some(PathSpecifier::SafeRegex(matcher)) => matcher.regex == ".*",
        Some(
            PathSpecifier::Path(_)
            | PathSpecifier::ConnectMatcher(_)
            | PathSpecifier::PathSeparatedPrefix(_)
            | PathSpecifier::PathMatchPolicy(_),
        )
        | None => false,
    };
    any_path
        && of.headers.is_empty()
        && of.query_parameters.is_empty()
        && of.dynamic_metadata.is_empty()
}

fn path(uri: Option<&StringMatch>, semantics: Semantics) -> PathSpecifier {
    match uri {
        Some(StringMatch { exact: Some(exact), .. }) => PathSpecifier::Path(exact.clone()),
        Some(StringMatch { prefix: Some(prefix), .. }) => match semantics {
            Semantics::GatewayApi if prefix != "/" => {
                PathSpecifier::PathSeparatedPrefix(prefix.trim_end_matches('/').to_owned())
            }
            Semantics::GatewayApi | Semantics::VirtualService => {
                PathSpecifier::Prefix(prefix.clone())
            }
        },
        Some(StringMatch { regex: Some(text), .. }) => PathSpecifier::SafeRegex(regex(text)),
        Some(StringMatch { .. }) | None => PathSpecifier::Prefix("/".into()),
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Wanted {
    Yes,
    No,
}

/// Wanted and unwanted headers together, by name.
fn by_name<'a>(
    wanted: &'a BTreeMap<String, StringMatch>,
    unwanted: &'a BTreeMap<String, StringMatch>,
) -> Vec<(&'a str, &'a StringMatch, Wanted)> {
    let wanted = wanted.iter().map(|(name, value)| (name.as_str(), value, Wanted::Yes));
    let unwanted = unwanted.iter().map(|(name, value)| (name.as_str(), value, Wanted::No));
    let mut all: Vec<_> = wanted.chain(unwanted).collect();
    all.sort_by_key(|(name, ..)| *name);
    all
}

fn header(name: &str, value: &StringMatch, wanted: Wanted) -> HeaderMatcher {
    let value = string_match(value);
    HeaderMatcher {
        name: name.to_owned(),
        invert_match: wanted == Wanted::No,
        // A header that is not there does not have the unwanted value either.
        treat_missing_header_as_empty: wanted == Wanted::No && value.is_some(),
        header_match_specifier: Some(match value {
            Some(value) => HeaderMatchSpecifier::StringMatch(value),
            None => HeaderMatchSpecifier::PresentMatch(true),
        }),
    }
}

fn query_parameter((name, value): (&String, &StringMatch)) -> QueryParameterMatcher {
    let value = match string_match(value) {
        Some(value) => QueryParameterMatchSpecifier::StringMatch(value),
        None => QueryParameterMatchSpecifier::PresentMatch(true),
    };
    QueryParameterMatcher { name: name.clone(), query_parameter_match_specifier: Some(value) }
}

/// A claim is a string, or a list with that string in it.
fn claim_matcher(path: Vec<&str>, value: &StringMatch, wanted: Wanted) -> MetadataMatcher {
    let segment = |key: &str| PathSegment { segment: Some(Segment::Key(key.to_owned())) };
    let value = match string_match(value) {
        Some(value) => either(value),
        None => value_matcher::MatchPattern::PresentMatch(true),
    };
    MetadataMatcher {
        filter: JWT_FILTER.to_owned(),
        path: ["payload"].into_iter().chain(path).map(segment).collect(),
        value: Some(ValueMatcher { match_pattern: Some(value) }),
        invert: wanted == Wanted::No,
    }
}

fn either(value: StringMatcher) -> value_matcher::MatchPattern {
    let itself = value_matcher::MatchPattern::StringMatch(value);
    let one_of = ValueMatcher { match_pattern: Some(itself.clone()) };
    let one_of = list_matcher::MatchPattern::OneOf(Box::new(one_of));
    let in_list = value_matcher::MatchPattern::ListMatch(Box::new(ListMatcher {
        match_pattern: Some(one_of),
    }));
    value_matcher::MatchPattern::OrMatch(OrMatcher {
        value_matchers: [itself, in_list]
            .map(|pattern| ValueMatcher { match_pattern: Some(pattern) })
            .into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_api_prefix_ends_at_a_slash() {
        let uri = |prefix: &str| StringMatch { prefix: Some(prefix.into()), ..Default::default() };
        for (prefix, semantics, expected) in [
            ("/a", Semantics::VirtualService, PathSpecifier::Prefix("/a".into())),
            ("/a", Semantics::GatewayApi, PathSpecifier::PathSeparatedPrefix("/a".into())),
            ("/a/", Semantics::GatewayApi, PathSpecifier::PathSeparatedPrefix("/a".into())),
            ("/", Semantics::GatewayApi, PathSpecifier::Prefix("/".into())),
        ] {
            assert_eq!(path(Some(&uri(prefix)), semantics), expected, "{prefix} {semantics:?}");
        }
    }

    #[test]
    fn a_claim_is_matched_as_a_string_or_in_a_list() {
        let headers = |name: &str, value: StringMatch| BTreeMap::from([(name.to_owned(), value)]);
        let exact = StringMatch { exact: Some("admin".into()), ..Default::default() };
        let of = HttpMatch {
            headers: headers("@request.auth.claims.groups", exact),
            without_headers: headers("@request.auth.claims[sub]", StringMatch::default()),
            ..Default::default()
        };
        let found = route_match(Some(&of), Semantics::VirtualService);
        assert_eq!(found.headers, []);
        let [groups, sub] = found.dynamic_metadata.as_slice() else { panic!("{found:?}") };
        assert!(!groups.invert && sub.invert);
        let value = groups.value.as_ref().and_then(|value| value.match_pattern.as_ref());
        let Some(value_matcher::MatchPattern::OrMatch(or)) = value else { panic!("{value:?}") };
        assert_eq!(or.value_matchers.len(), 2);
        assert!(!is_catch_all(&found));
    }
}
