//! Envoy's messages whose maps would else be encoded in another order each time.
//!
//! The fields, their numbers and the names of the messages are Envoy's; equal content gives equal bytes.

use std::collections::BTreeMap;

use prost::{Message, Name};
use proto::envoy::envoy::{
    config::rbac::v3::Policy,
    extensions::filters::http::jwt_authn::v3::{JwtProvider, RequirementRule},
};

/// Policies by their names, and what a match means.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Rules {
    #[prost(enumeration = "proto::envoy::envoy::config::rbac::v3::rbac::Action", tag = "1")]
    pub action: i32,
    #[prost(btree_map = "string, message", tag = "2")]
    pub policies: BTreeMap<String, Policy>,
}

/// The filter of requests.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct HttpRbac {
    #[prost(message, optional, tag = "1")]
    pub rules: Option<Rules>,
    #[prost(message, optional, tag = "2")]
    pub shadow_rules: Option<Rules>,
    #[prost(string, tag = "3")]
    pub shadow_rules_stat_prefix: String,
}

impl Name for HttpRbac {
    const NAME: &'static str = "RBAC";
    const PACKAGE: &'static str = "envoy.extensions.filters.http.rbac.v3";
}

/// The filter of connections.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct NetworkRbac {
    #[prost(message, optional, tag = "1")]
    pub rules: Option<Rules>,
    #[prost(message, optional, tag = "2")]
    pub shadow_rules: Option<Rules>,
    #[prost(string, tag = "3")]
    pub stat_prefix: String,
    #[prost(string, tag = "5")]
    pub shadow_rules_stat_prefix: String,
}

impl Name for NetworkRbac {
    const NAME: &'static str = "RBAC";
    const PACKAGE: &'static str = "envoy.extensions.filters.network.rbac.v3";
}

/// The filter of tokens.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct JwtAuthentication {
    #[prost(btree_map = "string, message", tag = "1")]
    pub providers: BTreeMap<String, JwtProvider>,
    #[prost(message, repeated, tag = "2")]
    pub rules: Vec<RequirementRule>,
    #[prost(bool, tag = "4")]
    pub bypass_cors_preflight: bool,
}

impl Name for JwtAuthentication {
    const NAME: &'static str = "JwtAuthentication";
    const PACKAGE: &'static str = "envoy.extensions.filters.http.jwt_authn.v3";
}
