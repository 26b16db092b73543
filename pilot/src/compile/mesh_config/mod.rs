//! Istio's meshConfig: what counts for the whole mesh.
//!
//! In: the ConfigMap `istio` of the root namespace, keys `mesh` and `meshNetworks`, and what pilot was started with.
//! Out: a [`MeshConfig`], and problems: a field that this version does not know is a warning, a value that cannot be
//! meant is an error.

mod provider;
mod proxy;
mod read;

pub use provider::{
    AccessLogService, DynatraceApi, DynatraceSampler, ENVOY_LOG, ExtAuthzGrpc, ExtAuthzHttp,
    ExtensionProvider, FileAccessLog, GrpcExport, HttpExport, LogFormat, NoFields, Opentelemetry,
    OtelAccessLog, ProviderHeader, ProviderKind, RequestBody, ResourceDetectors, ServiceProvider,
    Skywalking, Stackdriver, StackdriverLogging, TraceContext, Zipkin, status_on_error,
};
pub use proxy::{
    ClientCertDetails, Disabled, Enabled, ExchangeMode, GatewayTopology, ProxyDefaults,
    ProxyHeaders, ServerHeader, TracingDefaults, ZipkinAddress,
};

use std::{collections::BTreeMap, sync::Arc, time};

use serde::Deserialize;

use crate::{
    jwks::KeySets,
    manifests::{
        Duration, Labels,
        gateway_api::LabelSelector,
        networking::{
            ConnectionPool, H2UpgradePolicy, LocalityBalancing, OutboundTrafficMode,
            OutlierDetection, Retries, TcpKeepalive,
        },
    },
};

/// What counts for the whole mesh.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct MeshConfig {
    /// First part of a workload's uid. Default `Kubernetes`.
    #[serde(skip)]
    pub cluster_id: String,
    /// Suffix of service host names, after `svc.`. Default `cluster.local`.
    #[serde(skip)]
    pub cluster_domain: String,
    /// The network that all addresses belong to. Default empty.
    #[serde(skip)]
    pub network: String,
    /// Whether the mesh has several networks, and addresses mean something in their own only. Default no.
    #[serde(skip)]
    pub multi_network: bool,
    /// Trust domain of the mesh's identities. Default `cluster.local`.
    pub trust_domain: String,
    /// Other names of it: of peers, and in policies.
    pub trust_domain_aliases: Vec<String>,
    /// Namespace whose policies count for the whole mesh. Default `istio-system`.
    pub root_namespace: String,
    /// How long a connection to an endpoint may take to open. Default 10s.
    pub connect_timeout: Duration,
    /// How long an unused HBONE tunnel of a waypoint stays open. Default 1h.
    pub hbone_idle_timeout: Duration,
    /// How long a waypoint waits for a protocol's first bytes; 0 leaves it to the proxy. Default 0.
    pub protocol_detection_timeout: Duration,
    /// How often DNS names are resolved where answers have no lifetime. Default 60s.
    pub dns_refresh_rate: Duration,
    /// Keep-alive of connections to endpoints.
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// Whether requests are traced at all. Default false; a Telemetry decides where there is one.
    pub enable_tracing: bool,
    /// Where access logs go if no Telemetry says so; empty for nowhere.
    pub access_log_file: String,
    /// The format of that log: text, or an object in JSON; empty for the usual one.
    pub access_log_format: String,
    /// Whether that log is text or JSON.
    pub access_log_encoding: AccessLogEncoding,
    /// No access log of connections that no filter chain takes.
    pub disable_envoy_listener_log: bool,
    /// What every proxy is told of itself.
    pub default_config: ProxyDefaults,
    /// What becomes of traffic to hosts that the mesh does not know.
    pub outbound_traffic_policy: OutboundPolicy,
    /// Whether proxies find out by themselves where mutual TLS is spoken. Default true.
    pub enable_auto_mtls: bool,
    /// To whom Services are visible. Default `*`.
    pub default_service_export_to: Vec<String>,
    /// To whom VirtualServices are visible. Default `*`.
    pub default_virtual_service_export_to: Vec<String>,
    /// To whom DestinationRules are visible. Default `*`.
    pub default_destination_rule_export_to: Vec<String>,
    /// Which endpoints are preferred by where they are, if no DestinationRule says so. Default on.
    pub locality_lb_setting: LocalityBalancing,
    /// Whether HTTP/1.1 is turned into HTTP/2 on the way to an endpoint. Default no.
    pub h2_upgrade_policy: H2UpgradePolicy,
    /// What a policy or Telemetry may name.
    pub extension_providers: Vec<ExtensionProvider>,
    /// Which of them count where no Telemetry names any.
    pub default_providers: DefaultProviders,
    /// Which namespaces the mesh looks at: any of these; all if there is none.
    pub discovery_selectors: Vec<LabelSelector>,
    /// How a request's path is brought into one form before it is matched.
    pub path_normalization: PathNormalization,
    /// Retries where no route says so.
    pub default_http_retry_policy: Option<Retries>,
    /// Connection pools and outlier detection where no DestinationRule says so.
    pub default_traffic_policy: Option<DefaultTrafficPolicy>,
    /// Which Services other clusters see.
    pub service_scope_configs: Vec<ServiceScope>,
    /// Which namespaces see the ServiceEntries of which.
    pub service_entry_visibility: ServiceEntryVisibility,
    /// Deprecated: which hosts stay in their cluster.
    pub service_settings: Vec<ServiceSettings>,
    /// The form of inbound clusters' names in statistics.
    pub inbound_cluster_stat_name: String,
    /// The form of outbound clusters' names in statistics.
    pub outbound_cluster_stat_name: String,
    /// Keys of issuers whose keys had to be fetched.
    #[serde(skip)]
    pub keys: Arc<KeySets>,
    /// Networks by name: the key `meshNetworks`.
    #[serde(skip)]
    pub networks: BTreeMap<String, Network>,
}

/// The form of an access log.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "UPPERCASE")]
#[expect(missing_docs, reason = "each says what it is")]
pub enum AccessLogEncoding {
    #[default]
    Text,
    Json,
}

/// What becomes of traffic to hosts that the mesh does not know.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default)]
pub struct OutboundPolicy {
    /// Let through or not.
    pub mode: Option<OutboundTrafficMode>,
}

/// Providers by use; an empty list is none.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "each is the use it is named for")]
pub struct DefaultProviders {
    pub tracing: Vec<String>,
    pub metrics: Vec<String>,
    pub access_logging: Vec<String>,
}

/// How a request's path is brought into one form.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default)]
pub struct PathNormalization {
    /// How far.
    pub normalization: Normalization,
}

/// How far a path is normalized.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Normalization {
    /// As [`Self::Base`].
    #[default]
    Default,
    /// Not at all.
    None,
    /// RFC 3986, and backslashes are slashes.
    Base,
    /// Also several slashes are one.
    MergeSlashes,
    /// Also escaped slashes are slashes.
    DecodeAndMergeSlashes,
}

/// Connection pools and outlier detection where no DestinationRule says so.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the fields are those of Istio's reference, by the same names")]
pub struct DefaultTrafficPolicy {
    pub connection_pool: Option<ConnectionPool>,
    pub outlier_detection: Option<OutlierDetection>,
}

/// The scope of Services that both selectors take; an absent one takes all.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceScope {
    /// By the namespace's labels.
    pub namespace_selector: Option<LabelSelector>,
    /// By the Service's labels.
    pub services_selector: Option<LabelSelector>,
    /// Who sees it.
    pub scope: Scope,
}

/// Who sees a Service.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "UPPERCASE")]
pub enum Scope {
    /// Its own cluster.
    #[default]
    Local,
    /// All clusters of the mesh.
    Global,
}

/// Which namespaces see the ServiceEntries of which.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceEntryVisibility {
    /// The first that matches counts.
    pub policies: Vec<VisibilityPolicy>,
}

/// One rule of it.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct VisibilityPolicy {
    /// What is seen.
    pub visibility: Visibility,
    /// Any of these.
    pub matching_rules: Vec<VisibilityMatch>,
}

/// A ServiceEntry by its namespace.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct VisibilityMatch {
    /// The namespace's labels.
    pub namespace_selector: Option<LabelSelector>,
}

/// Who sees a ServiceEntry.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "UPPERCASE")]
pub enum Visibility {
    /// Everybody.
    #[default]
    Public,
    /// Its own namespace.
    Namespace,
    /// Nobody.
    None,
}

/// Settings of some hosts.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub struct ServiceSettings {
    /// The settings.
    pub settings: HostSettings,
    /// The hosts: names, or `*.` and a suffix.
    pub hosts: Vec<String>,
}

/// Settings of a host.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct HostSettings {
    /// It is reached in its own cluster only.
    pub cluster_local: bool,
}

/// One network of the mesh.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
#[expect(missing_docs, reason = "the fields are those of Istio's reference, by the same names")]
pub struct Network {
    pub endpoints: Vec<NetworkEndpoints>,
    pub gateways: Vec<NetworkGateway>,
}

/// What belongs to a network.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the fields are those of Istio's reference, by the same names")]
pub struct NetworkEndpoints {
    pub from_cidr: String,
    pub from_registry: String,
}

/// How a network is reached from others.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
#[expect(missing_docs, reason = "the fields are those of Istio's reference, by the same names")]
pub struct NetworkGateway {
    pub registry_service_name: String,
    pub address: String,
    pub port: u32,
    pub locality: String,
}

impl Default for MeshConfig {
    fn default() -> Self {
        let seconds = |seconds| Duration(time::Duration::from_secs(seconds));
        let everybody = || vec!["*".to_owned()];
        Self {
            cluster_id: "Kubernetes".into(),
            trust_domain: "cluster.local".into(),
            cluster_domain: "cluster.local".into(),
            network: String::new(),
            multi_network: false,
            root_namespace: "istio-system".into(),
            trust_domain_aliases: Vec::new(),
            connect_timeout: seconds(10),
            hbone_idle_timeout: seconds(3600),
            protocol_detection_timeout: seconds(0),
            dns_refresh_rate: seconds(60),
            tcp_keepalive: None,
            enable_tracing: false,
            access_log_file: String::new(),
            access_log_format: String::new(),
            access_log_encoding: AccessLogEncoding::Text,
            disable_envoy_listener_log: false,
            default_config: ProxyDefaults::default(),
            outbound_traffic_policy: OutboundPolicy::default(),
            enable_auto_mtls: true,
            default_service_export_to: everybody(),
            default_virtual_service_export_to: everybody(),
            default_destination_rule_export_to: everybody(),
            locality_lb_setting: LocalityBalancing { enabled: Some(true), ..Default::default() },
            h2_upgrade_policy: H2UpgradePolicy::DoNotUpgrade,
            extension_providers: Vec::new(),
            default_providers: DefaultProviders::default(),
            discovery_selectors: Vec::new(),
            path_normalization: PathNormalization::default(),
            default_http_retry_policy: None,
            default_traffic_policy: None,
            service_scope_configs: Vec::new(),
            service_entry_visibility: ServiceEntryVisibility::default(),
            service_settings: Vec::new(),
            inbound_cluster_stat_name: String::new(),
            outbound_cluster_stat_name: String::new(),
            keys: Arc::default(),
            networks: BTreeMap::new(),
        }
    }
}

impl MeshConfig {
    /// A provider by its name. Two need not be listed: `prometheus`, and `envoy`, which logs to standard output.
    pub fn provider(&self, name: &str) -> Option<&ExtensionProvider> {
        let listed = self.extension_providers.iter().find(|provider| provider.name == name);
        listed.or_else(|| ExtensionProvider::built_in().iter().find(|one| one.name == name))
    }

    /// The trust domain and its aliases.
    pub fn trust_domains(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.trust_domain).chain(&self.trust_domain_aliases).map(String::as_str)
    }
}

impl ServiceScope {
    /// Whether it says anything about a Service with these labels in a namespace with those.
    pub fn matches(&self, namespace: &Labels, service: &Labels) -> bool {
        let takes = |selector: &Option<LabelSelector>, labels| {
            selector.as_ref().is_none_or(|selector| selector.matches(labels))
        };
        takes(&self.namespace_selector, namespace) && takes(&self.services_selector, service)
    }
}

#[cfg(test)]
mod tests;
