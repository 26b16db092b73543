//! RequestAuthentication: whose tokens a request may carry.
//!
//! In: the rules that count for a chain, and the keys of the issuers whose keys are fetched. Out: the filter. A request
//! without a token passes; one with a token that is not valid, or of nobody who is trusted, does not. An issuer whose
//! keys are not known has no valid tokens.

use std::collections::{BTreeMap, BTreeSet};

use proto::{
    envoy::envoy::{
        config::{
            core::v3::{DataSource, data_source::Specifier},
            route::v3::{RouteMatch, route_match::PathSpecifier},
        },
        extensions::filters::http::jwt_authn::v3::{
            JwtClaimToHeader, JwtHeader as Header, JwtProvider, JwtRequirement,
            JwtRequirementAndList, JwtRequirementOrList, RequirementRule,
            jwt_provider::{JwksSourceSpecifier, NormalizePayload},
            jwt_requirement::RequiresType,
            requirement_rule::RequirementType,
        },
    },
    google::{self, Any},
};

use super::wire::JwtAuthentication;
use crate::{
    compile::waypoint::message::any,
    jwks::{KeySets, Source},
    manifests::{JwtRule, Object, RequestAuthentication},
};

/// The filter's name.
pub(super) const JWT_AUTHN: &str = "envoy.filters.http.jwt_authn";

/// A key that no token is signed with: a point of P-256 made from the hash of a sentence, whose private key nobody can
/// know.
const NOBODYS_KEY: &str = r#"{"keys":[{"kty":"EC","crv":"P-256","alg":"ES256","use":"sig","kid":"the keys of this issuer are not known","x":"JtphEq7woJis1BEkZ6-WkXkZGEIy4XTw2lSEonQdldU","y":"RvQ12820zu84f_OlLLV6XeBxLaUsjJVs-TmdacV2l90"}]}"#;

/// The configuration of the filter; nothing if no issuer is named.
pub(super) fn filter(policies: &[&Object<RequestAuthentication>], keys: &KeySets) -> Option<Any> {
    let mut rules: Vec<_> = policies.iter().flat_map(|policy| &policy.spec.jwt_rules).collect();
    if rules.is_empty() {
        return None;
    }
    rules.sort_by_key(|rule| &rule.issuer);
    let providers = rules.iter().enumerate();
    let providers: BTreeMap<_, _> =
        providers.map(|(i, rule)| (format!("origins-{i}"), provider(rule, keys))).collect();
    let requires = requirement((0..rules.len()).map(|i| format!("origins-{i}")).collect());
    let rule = RequirementRule {
        r#match: Some(RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix("/".to_owned())),
            ..RouteMatch::default()
        }),
        requirement_type: Some(RequirementType::Requires(requires)),
    };
    Some(any(&JwtAuthentication { providers, rules: vec![rule], bypass_cors_preflight: true }))
}

fn provider(rule: &JwtRule, keys: &KeySets) -> JwtProvider {
    let claims: BTreeSet<&str> = ["permission", "scope"]
        .into_iter()
        .chain(rule.space_delimited_claims.iter().map(String::as_str))
        .collect();
    let headers = rule
        .from_headers
        .iter()
        .map(|header| Header { name: header.name.clone(), value_prefix: header.prefix.clone() });
    let claim_headers = rule.output_claim_to_headers.iter().map(|claim| JwtClaimToHeader {
        header_name: claim.header.clone(),
        claim_name: claim.claim.clone(),
        ..JwtClaimToHeader::default()
    });
    let jwks = match Source::of(rule) {
        Source::Inline(jwks) => jwks.to_owned(),
        Source::Fetched(from) => {
            keys.of(&from).map_or_else(|| NOBODYS_KEY.to_owned(), str::to_owned)
        }
    };
    let jwks = DataSource { specifier: Some(Specifier::InlineString(jwks)), ..Default::default() };
    JwtProvider {
        issuer: rule.issuer.clone(),
        audiences: rule.audiences.clone(),
        jwks_source_specifier: Some(JwksSourceSpecifier::LocalJwks(jwks)),
        forward: rule.forward_original_token,
        from_headers: headers.collect(),
        from_params: rule.from_params.clone(),
        from_cookies: rule.from_cookies.clone(),
        forward_payload_header: rule.output_payload_to_header.clone(),
        claim_to_headers: claim_headers.collect(),
        payload_in_metadata: "payload".to_owned(),
        normalize_payload_in_metadata: Some(NormalizePayload {
            space_delimited_claims: claims.into_iter().map(str::to_owned).collect(),
        }),
        // A route may ask for a claim.
        clear_route_cache: true,
        ..JwtProvider::default()
    }
}

/// A valid token of one of them, or none at all: not one of them that is invalid.
fn requirement(providers: Vec<String>) -> JwtRequirement {
    let by = |name: &String| requires(RequiresType::ProviderName(name.clone()));
    let or_missing = |name: &String| {
        any_of(vec![by(name), requires(RequiresType::AllowMissing(google::Empty {}))])
    };
    if let [only] = providers.as_slice() {
        return or_missing(only);
    }
    let mut requirements: Vec<_> = providers.iter().map(by).collect();
    let all = providers.iter().map(or_missing).collect();
    requirements
        .push(requires(RequiresType::RequiresAll(JwtRequirementAndList { requirements: all })));
    any_of(requirements)
}

fn any_of(requirements: Vec<JwtRequirement>) -> JwtRequirement {
    requires(RequiresType::RequiresAny(JwtRequirementOrList { requirements }))
}

fn requires(what: RequiresType) -> JwtRequirement {
    JwtRequirement { requires_type: Some(what) }
}
