//! Messages that Envoy's configuration carries and `envoy-types` has no Rust types of.
//!
//! In step with `ip_matcher.proto`, `stats.proto` and `typed_struct.proto`, which describe them for JSON.

use std::collections::BTreeMap;

use prost::{Enumeration, Message, Name};

use crate::{
    envoy::xds::{core::v3::CidrRange, r#type::matcher::v3::matcher::OnMatch},
    google::{Duration, Struct},
};

/// What to do by the prefix an address is in.
#[derive(Clone, PartialEq, Message)]
pub struct IpMatcher {
    /// The longest prefix counts.
    #[prost(message, repeated, tag = "1")]
    pub range_matchers: Vec<IpRangeMatcher>,
}

/// What to do with addresses in these prefixes.
#[derive(Clone, PartialEq, Message)]
pub struct IpRangeMatcher {
    /// The prefixes.
    #[prost(message, repeated, tag = "1")]
    pub ranges: Vec<CidrRange>,
    /// What to do.
    #[prost(message, optional, tag = "2")]
    pub on_match: Option<OnMatch>,
    /// Whether a nested matcher that matches nothing ends the search.
    #[prost(bool, tag = "3")]
    pub exclusive: bool,
}

impl Name for IpMatcher {
    const NAME: &'static str = "IPMatcher";
    const PACKAGE: &'static str = "xds.type.matcher.v3";
}

/// A message of a type that its carrier does not know, as JSON.
#[derive(Clone, PartialEq, Message)]
pub struct TypedStruct {
    /// What the value is.
    #[prost(string, tag = "1")]
    pub type_url: String,
    /// The message.
    #[prost(message, optional, tag = "2")]
    pub value: Option<Struct>,
}

impl Name for TypedStruct {
    const NAME: &'static str = "TypedStruct";
    const PACKAGE: &'static str = "udpa.type.v1";
}

/// How Istio's proxy counts requests.
#[derive(Clone, PartialEq, Message)]
#[expect(missing_docs, reason = "the fields are those of Istio's proxy, by the same names")]
pub struct PluginConfig {
    #[prost(int32, tag = "2")]
    pub max_peer_cache_size: i32,
    #[prost(string, tag = "3")]
    pub stat_prefix: String,
    #[prost(string, tag = "4")]
    pub field_separator: String,
    #[prost(string, tag = "5")]
    pub value_separator: String,
    #[prost(bool, tag = "6")]
    pub disable_host_header_fallback: bool,
    #[prost(message, optional, tag = "7")]
    pub tcp_reporting_duration: Option<Duration>,
    #[prost(message, repeated, tag = "8")]
    pub metrics: Vec<MetricConfig>,
    #[prost(message, repeated, tag = "9")]
    pub definitions: Vec<MetricDefinition>,
    #[prost(enumeration = "Reporter", tag = "10")]
    pub reporter: i32,
    #[prost(message, optional, tag = "11")]
    pub rotation_interval: Option<Duration>,
    #[prost(message, optional, tag = "12")]
    pub graceful_deletion_interval: Option<Duration>,
}

impl Name for PluginConfig {
    const NAME: &'static str = "PluginConfig";
    const PACKAGE: &'static str = "stats";
}

/// How one metric differs from its default.
#[derive(Clone, PartialEq, Message)]
#[expect(missing_docs, reason = "the fields are those of Istio's proxy, by the same names")]
pub struct MetricConfig {
    #[prost(btree_map = "string, string", tag = "1")]
    pub dimensions: BTreeMap<String, String>,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(string, repeated, tag = "3")]
    pub tags_to_remove: Vec<String>,
    #[prost(string, tag = "4")]
    pub r#match: String,
    #[prost(bool, tag = "5")]
    pub drop: bool,
}

/// A further metric.
#[derive(Clone, PartialEq, Message)]
#[expect(missing_docs, reason = "the fields are those of Istio's proxy, by the same names")]
pub struct MetricDefinition {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub value: String,
    #[prost(enumeration = "MetricType", tag = "3")]
    pub r#type: i32,
}

/// What kind of metric it is.
#[derive(Clone, Copy, Debug, Enumeration, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(i32)]
#[expect(missing_docs, reason = "the values are those of Istio's proxy, by the same names")]
pub enum MetricType {
    Counter = 0,
    Gauge = 1,
    Histogram = 2,
}

/// On whose side requests are counted.
#[derive(Clone, Copy, Debug, Enumeration, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(i32)]
#[expect(missing_docs, reason = "the values are those of Istio's proxy, by the same names")]
pub enum Reporter {
    Unspecified = 0,
    ServerGateway = 1,
}
