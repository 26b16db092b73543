//! What of a request says which endpoint it goes to.
//!
//! In: a DestinationRule's `consistentHash`. Out: Envoy's hash policies.

use proto::envoy::envoy::config::route::v3::route_action::{
    HashPolicy,
    hash_policy::{
        ConnectionProperties, Cookie, CookieAttribute, Header, PolicySpecifier, QueryParameter,
    },
};

use super::wire::duration;
use crate::manifests::networking::{ConsistentHash, HttpCookie};

/// Nothing, if it names no key: any endpoint will do then.
pub(super) fn policy(of: &ConsistentHash) -> Option<HashPolicy> {
    let specifier = if let Some(name) = &of.http_header_name {
        PolicySpecifier::Header(Header { header_name: name.clone(), regex_rewrite: None })
    } else if let Some(of) = &of.http_cookie {
        PolicySpecifier::Cookie(cookie(of))
    } else if of.use_source_ip == Some(true) {
        PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip: true })
    } else {
        let name = of.http_query_parameter_name.clone()?;
        PolicySpecifier::QueryParameter(QueryParameter { name })
    };
    Some(HashPolicy { terminal: false, policy_specifier: Some(specifier) })
}

fn cookie(of: &HttpCookie) -> Cookie {
    let attributes = of.attributes.iter();
    Cookie {
        name: of.name.clone(),
        ttl: of.ttl.map(duration),
        path: of.path.clone(),
        attributes: attributes
            .map(|one| CookieAttribute { name: one.name.clone(), value: one.value.clone() })
            .collect(),
    }
}
