//! Extension providers: services outside the proxies that policies and telemetry name.
//!
//! In: an entry of `extensionProviders`. Out: an [`ExtensionProvider`] of exactly one kind.
#![expect(missing_docs, reason = "the fields are those of Istio's reference, by the same names")]

use std::{collections::BTreeMap, sync::LazyLock};

use serde::Deserialize;

use crate::manifests::Duration;

/// A provider by its name.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(try_from = "Written")]
pub struct ExtensionProvider {
    pub name: String,
    pub kind: ProviderKind,
}

/// What it is.
#[derive(Clone, Debug, PartialEq)]
pub enum ProviderKind {
    ExtAuthzHttp(ExtAuthzHttp),
    ExtAuthzGrpc(ExtAuthzGrpc),
    Zipkin(Zipkin),
    Datadog(ServiceProvider),
    Stackdriver(Stackdriver),
    Skywalking(Skywalking),
    Opentelemetry(Opentelemetry),
    Prometheus,
    FileAccessLog(FileAccessLog),
    HttpAls(AccessLogService),
    TcpAls(AccessLogService),
    OtelAls(OtelAccessLog),
    Sds,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct ExtAuthzHttp {
    pub service: String,
    pub port: u32,
    /// Default 600s.
    pub timeout: Option<Duration>,
    pub path_prefix: String,
    pub fail_open: bool,
    pub clear_route_cache: bool,
    pub status_on_error: String,
    /// Deprecated: `includeRequestHeadersInCheck`.
    pub include_headers_in_check: Vec<String>,
    pub include_request_headers_in_check: Vec<String>,
    pub include_additional_headers_in_check: BTreeMap<String, String>,
    pub include_request_body_in_check: Option<RequestBody>,
    pub headers_to_upstream_on_allow: Vec<String>,
    pub headers_to_downstream_on_deny: Vec<String>,
    pub headers_to_downstream_on_allow: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct ExtAuthzGrpc {
    pub service: String,
    pub port: u32,
    /// Default 600s.
    pub timeout: Option<Duration>,
    pub fail_open: bool,
    pub clear_route_cache: bool,
    pub status_on_error: String,
    pub include_request_body_in_check: Option<RequestBody>,
}

#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct RequestBody {
    pub max_request_bytes: u32,
    pub allow_partial_message: bool,
    pub pack_as_bytes: bool,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct Zipkin {
    pub service: String,
    pub port: u32,
    pub max_tag_length: u32,
    pub enable64bit_trace_id: bool,
    pub path: String,
    pub timeout: Option<Duration>,
    pub headers: Vec<ProviderHeader>,
    pub trace_context_option: TraceContext,
}

/// Which headers carry the trace.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TraceContext {
    #[default]
    UseB3,
    UseB3WithW3cPropagation,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceProvider {
    pub service: String,
    pub port: u32,
    pub max_tag_length: u32,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct Stackdriver {
    pub debug: bool,
    pub max_tag_length: u32,
    pub max_number_of_attributes: Option<i64>,
    pub max_number_of_annotations: Option<i64>,
    pub max_number_of_message_events: Option<i64>,
    pub logging: Option<StackdriverLogging>,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub struct StackdriverLogging {
    pub labels: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct Skywalking {
    pub service: String,
    pub port: u32,
    pub access_token: String,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct Opentelemetry {
    pub service: String,
    pub port: u32,
    pub max_tag_length: u32,
    pub http: Option<HttpExport>,
    pub grpc: Option<GrpcExport>,
    pub resource_detectors: Option<ResourceDetectors>,
    pub dynatrace_sampler: Option<DynatraceSampler>,
    pub service_attribute_enrichment: String,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpExport {
    pub path: String,
    pub timeout: Option<Duration>,
    pub headers: Vec<ProviderHeader>,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct GrpcExport {
    pub timeout: Option<Duration>,
    pub initial_metadata: Vec<ProviderHeader>,
}

#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct ProviderHeader {
    pub name: String,
    pub value: Option<String>,
    pub env_name: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(default)]
pub struct ResourceDetectors {
    pub environment: Option<NoFields>,
    pub dynatrace: Option<NoFields>,
}

/// Present or not.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
pub struct NoFields {}

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct DynatraceSampler {
    pub tenant: String,
    pub cluster_id: i32,
    pub root_spans_per_minute: u32,
    pub http_service: Option<DynatraceApi>,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct DynatraceApi {
    pub service: String,
    pub port: u32,
    pub http: Option<HttpExport>,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct FileAccessLog {
    pub path: String,
    pub log_format: Option<LogFormat>,
    pub omit_empty_values: bool,
}

/// `text`, or keys and values as JSON.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default)]
pub struct LogFormat {
    pub text: Option<String>,
    pub labels: Option<serde_json::Map<String, serde_json::Value>>,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct AccessLogService {
    pub service: String,
    pub port: u32,
    pub log_name: String,
    pub filter_state_objects_to_log: Vec<String>,
    pub additional_request_headers_to_log: Vec<String>,
    pub additional_response_headers_to_log: Vec<String>,
    pub additional_response_trailers_to_log: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct OtelAccessLog {
    pub service: String,
    pub port: u32,
    pub log_name: String,
    pub log_format: Option<LogFormat>,
    pub filter_state_objects_to_log: Vec<String>,
}

/// As the file has it: each kind is a field, and one of them is set.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct Written {
    name: String,
    envoy_ext_authz_http: Option<ExtAuthzHttp>,
    envoy_ext_authz_grpc: Option<ExtAuthzGrpc>,
    zipkin: Option<Zipkin>,
    datadog: Option<ServiceProvider>,
    stackdriver: Option<Stackdriver>,
    skywalking: Option<Skywalking>,
    opentelemetry: Option<Opentelemetry>,
    prometheus: Option<NoFields>,
    envoy_file_access_log: Option<FileAccessLog>,
    envoy_http_als: Option<AccessLogService>,
    envoy_tcp_als: Option<AccessLogService>,
    envoy_otel_als: Option<OtelAccessLog>,
    sds: Option<NoFields>,
}

impl TryFrom<Written> for ExtensionProvider {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let name = written.name;
        let kinds = [
            written.envoy_ext_authz_http.map(ProviderKind::ExtAuthzHttp),
            written.envoy_ext_authz_grpc.map(ProviderKind::ExtAuthzGrpc),
            written.zipkin.map(ProviderKind::Zipkin),
            written.datadog.map(ProviderKind::Datadog),
            written.stackdriver.map(ProviderKind::Stackdriver),
            written.skywalking.map(ProviderKind::Skywalking),
            written.opentelemetry.map(ProviderKind::Opentelemetry),
            written.prometheus.map(|NoFields {}| ProviderKind::Prometheus),
            written.envoy_file_access_log.map(ProviderKind::FileAccessLog),
            written.envoy_http_als.map(ProviderKind::HttpAls),
            written.envoy_tcp_als.map(ProviderKind::TcpAls),
            written.envoy_otel_als.map(ProviderKind::OtelAls),
            written.sds.map(|NoFields {}| ProviderKind::Sds),
        ];
        let mut kinds = kinds.into_iter().flatten();
        match (kinds.next(), kinds.next()) {
            (Some(kind), None) if !name.is_empty() => Ok(Self { name, kind }),
            (Some(_), None) => Err("name: missing".to_owned()),
            (None, _) => Err(format!("provider `{name}` has no kind that this version knows")),
            (Some(_), Some(_)) => Err(format!("provider `{name}` is of two kinds")),
        }
    }
}

/// The provider that logs to standard output, and in the mesh's own format.
pub const ENVOY_LOG: &str = "envoy";

impl ExtensionProvider {
    /// Those that are there without being listed.
    pub(super) fn built_in() -> &'static [Self] {
        static BUILT_IN: LazyLock<[ExtensionProvider; 2]> = LazyLock::new(|| {
            let log = FileAccessLog { path: "/dev/stdout".into(), ..FileAccessLog::default() };
            [
                ExtensionProvider { name: "prometheus".into(), kind: ProviderKind::Prometheus },
                ExtensionProvider {
                    name: ENVOY_LOG.into(),
                    kind: ProviderKind::FileAccessLog(log),
                },
            ]
        });
        &*BUILT_IN
    }
}

impl ProviderKind {
    /// The service it reaches and the port of it, if it reaches one.
    pub fn service(&self) -> Option<(&str, u32)> {
        Some(match self {
            Self::ExtAuthzHttp(one) => (&one.service, one.port),
            Self::ExtAuthzGrpc(one) => (&one.service, one.port),
            Self::Zipkin(one) => (&one.service, one.port),
            Self::Datadog(one) => (&one.service, one.port),
            Self::Skywalking(one) => (&one.service, one.port),
            Self::Opentelemetry(one) => (&one.service, one.port),
            Self::HttpAls(one) | Self::TcpAls(one) => (&one.service, one.port),
            Self::OtelAls(one) => (&one.service, one.port),
            Self::Stackdriver(_) | Self::Prometheus | Self::FileAccessLog(_) | Self::Sds => {
                return None;
            }
        })
    }

    /// What is wrong with an authorizer, beyond where it is.
    pub(super) fn authorizer_fault(&self) -> Option<String> {
        let (status, body, prefix) = if let Self::ExtAuthzHttp(one) = self {
            (&one.status_on_error, &one.include_request_body_in_check, one.path_prefix.as_str())
        } else if let Self::ExtAuthzGrpc(one) = self {
            (&one.status_on_error, &one.include_request_body_in_check, "")
        } else {
            return None;
        };
        if let Err(reason) = status_on_error(status) {
            return Some(format!("statusOnError: {reason}"));
        }
        if body.as_ref().is_some_and(|body| body.max_request_bytes == 0) {
            return Some("includeRequestBodyInCheck.maxRequestBytes: missing".to_owned());
        }
        (!prefix.is_empty() && !prefix.starts_with('/'))
            .then(|| format!("pathPrefix: `{prefix}` does not begin with `/`"))
    }
}

/// The status by which a request is answered that an authorizer could not judge, if one is set.
///
/// # Errors
/// What is wrong with it.
pub fn status_on_error(text: &str) -> Result<Option<u16>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let status = text.parse().ok().filter(|status| (100..=599).contains(status));
    status.map(Some).ok_or_else(|| format!("`{text}` is no HTTP status"))
}
