//! `defaultConfig`: what every proxy is told of itself.
//!
//! Only what the compiler or a template reads; the rest of Istio's `ProxyConfig` is named as ignored when it is set.
#![expect(missing_docs, reason = "the fields are those of Istio's reference, by the same names")]

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::manifests::{Duration, networking::ProxyImage, telemetry::CustomTag};

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxyDefaults {
    pub discovery_address: String,
    pub proxy_metadata: BTreeMap<String, String>,
    pub image: Option<ProxyImage>,
    pub concurrency: Option<i32>,
    pub drain_duration: Option<Duration>,
    pub termination_drain_duration: Option<Duration>,
    pub hold_application_until_proxy_starts: Option<bool>,
    pub proxy_admin_port: Option<u16>,
    pub status_port: Option<u16>,
    pub tracing: Option<TracingDefaults>,
    pub gateway_topology: Option<GatewayTopology>,
    pub proxy_headers: ProxyHeaders,
    pub runtime_values: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct TracingDefaults {
    pub sampling: Option<f64>,
    pub max_path_tag_length: u32,
    pub custom_tags: BTreeMap<String, CustomTag>,
    pub enable_istio_tags: Option<bool>,
    pub zipkin: Option<ZipkinAddress>,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub struct ZipkinAddress {
    pub address: String,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewayTopology {
    pub num_trusted_proxies: u32,
    pub forward_client_cert_details: String,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxyHeaders {
    pub forwarded_client_cert: String,
    pub set_current_client_cert_details: Option<ClientCertDetails>,
    pub request_id: Option<Disabled>,
    pub server: Option<ServerHeader>,
    pub attempt_count: Option<Disabled>,
    pub envoy_debug_headers: Option<Disabled>,
    pub metadata_exchange_headers: Option<ExchangeMode>,
    #[serde(rename = "preserveHttp1HeaderCase")]
    pub preserve_http1_header_case: Option<bool>,
    pub x_forwarded_host: Option<Enabled>,
    pub x_forwarded_port: Option<Enabled>,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub struct ClientCertDetails {
    pub subject: Option<bool>,
    pub cert: Option<bool>,
    pub chain: Option<bool>,
    pub dns: Option<bool>,
    pub uri: Option<bool>,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub struct Disabled {
    pub disabled: bool,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub struct Enabled {
    pub enabled: Option<bool>,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub struct ServerHeader {
    pub disabled: bool,
    pub value: String,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub struct ExchangeMode {
    pub mode: String,
}
