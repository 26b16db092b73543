//! Access logs.
//!
//! In: the Telemetry resources that count for a host. Out: a log for each provider that is in force, with its filter.
//! A resource that names providers replaces those of the more general ones; one that names none says something about
//! these.

use std::collections::BTreeMap;

use proto::envoy::{
    envoy::{
        config::{
            accesslog::v3::{
                AccessLog, AccessLogFilter, AndFilter, ComparisonFilter, ExtensionFilter,
                ResponseFlagFilter, StatusCodeFilter, access_log,
                access_log_filter::FilterSpecifier, comparison_filter::Op, extension_filter,
            },
            core::v3::{ApiVersion, RuntimeUInt32},
        },
        extensions::access_loggers::{
            file::v3::{FileAccessLog, file_access_log::AccessLogFormat},
            filters::cel::v3::ExpressionFilter,
            grpc::v3::{
                CommonGrpcAccessLogConfig, HttpGrpcAccessLogConfig, TcpGrpcAccessLogConfig,
            },
            open_telemetry::v3::OpenTelemetryAccessLogConfig,
        },
    },
    opentelemetry::proto::common::v1::{AnyValue, KeyValue, KeyValueList, any_value},
};
use proto::google::Any;

use super::{by_grpc, is_of_servers, log_format};
use crate::{
    compile::{
        MeshConfig,
        mesh_config::{
            AccessLogService, ENVOY_LOG, ExtensionProvider, OtelAccessLog, ProviderKind,
        },
        waypoint::{ChainKind, Context, message::any, policy::provider_cluster},
    },
    manifests::telemetry::Telemetry,
};

/// What a log in a service is told of the peers of a request.
const PEERS: [&str; 6] = [
    "upstream_peer",
    "downstream_peer",
    "wasm.upstream_peer",
    "wasm.upstream_peer_id",
    "wasm.downstream_peer",
    "wasm.downstream_peer_id",
];

/// What is in force for a host.
pub(super) struct Logged<'a> {
    /// By provider, with a filter.
    providers: BTreeMap<&'a str, Option<&'a str>>,
    /// Nobody says anything: the mesh's own log counts, if it has one.
    by_default: bool,
}

impl<'a> Logged<'a> {
    pub(super) fn of(levels: &[&'a Telemetry], config: &'a MeshConfig) -> Self {
        let mut named: Vec<&str> =
            config.default_providers.access_logging.iter().map(String::as_str).collect();
        let mut providers: BTreeMap<_, _> = named.iter().map(|name| (*name, None)).collect();
        let mut by_default = named.is_empty();
        for level in levels.iter().filter(|level| !level.access_logging.is_empty()) {
            by_default = false;
            let own = level.access_logging.iter().flat_map(|entry| &entry.providers);
            let own: Vec<_> = own.map(|provider| provider.name.as_str()).collect();
            if !own.is_empty() {
                named = own;
                providers.clear();
            }
            for entry in &level.access_logging {
                if !is_of_servers(entry.r#match.as_ref().map(|one| one.mode)) {
                    continue;
                }
                let concerned: Vec<_> = if entry.providers.is_empty() {
                    named.clone()
                } else {
                    entry.providers.iter().map(|provider| provider.name.as_str()).collect()
                };
                for name in concerned {
                    if entry.disabled == Some(true) {
                        providers.remove(name);
                    } else {
                        let filter = entry.filter.as_ref();
                        providers.insert(name, filter.map(|filter| filter.expression.as_str()));
                    }
                }
            }
        }
        Self { providers, by_default }
    }

    /// The logs of one kind of chain, of what passes `only`.
    pub(super) fn logs(
        &self,
        context: &Context<'_>,
        kind: ChainKind,
        only: Option<AccessLogFilter>,
    ) -> Vec<AccessLog> {
        let config = context.config;
        if self.by_default {
            let path = &config.access_log_file;
            if path.is_empty() {
                return Vec::new();
            }
            let log = file(path, log_format::of_mesh(config));
            return vec![access_log("envoy.access_loggers.file", only, None, log)];
        }
        let logs = self.providers.iter().filter_map(|(name, filter)| {
            let (logger, log) = log(context, config.provider(name)?, kind)?;
            Some(access_log(logger, only.clone(), *filter, log))
        });
        logs.collect()
    }
}

/// Of what ended in a certain way, as Envoy's flags have it.
pub(super) fn with_flag(flag: &str) -> AccessLogFilter {
    filter(FilterSpecifier::ResponseFlagFilter(ResponseFlagFilter { flags: vec![flag.to_owned()] }))
}

/// Of what was answered with an error.
pub(super) fn with_error_status() -> AccessLogFilter {
    let value = RuntimeUInt32 { default_value: 400, runtime_key: "istio.io/unset".to_owned() };
    let comparison = ComparisonFilter { op: Op::Ge.into(), value: Some(value) };
    filter(FilterSpecifier::StatusCodeFilter(StatusCodeFilter { comparison: Some(comparison) }))
}

fn filter(specifier: FilterSpecifier) -> AccessLogFilter {
    AccessLogFilter { filter_specifier: Some(specifier) }
}

fn expression(text: &str) -> AccessLogFilter {
    let config = any(&ExpressionFilter { expression: text.to_owned(), cel_config: None });
    filter(FilterSpecifier::ExtensionFilter(ExtensionFilter {
        name: "envoy.access_loggers.extension_filters.cel".to_owned(),
        config_type: Some(extension_filter::ConfigType::TypedConfig(config)),
    }))
}

fn access_log(
    name: &str,
    only: Option<AccessLogFilter>,
    written: Option<&str>,
    config: Any,
) -> AccessLog {
    let written = written.filter(|text| !text.is_empty()).map(expression);
    let mut filters: Vec<_> = only.into_iter().chain(written).collect();
    let filter = if filters.len() > 1 {
        Some(filter(FilterSpecifier::AndFilter(AndFilter { filters })))
    } else {
        filters.pop()
    };
    AccessLog {
        name: name.to_owned(),
        filter,
        config_type: Some(access_log::ConfigType::TypedConfig(config)),
    }
}

fn file(
    path: &str,
    format: proto::envoy::envoy::config::core::v3::SubstitutionFormatString,
) -> Any {
    any(&FileAccessLog {
        path: path.to_owned(),
        access_log_format: Some(AccessLogFormat::LogFormat(format)),
    })
}

/// The log of a provider; nothing if it keeps none, not of such a chain, or cannot be reached.
fn log(
    context: &Context<'_>,
    provider: &ExtensionProvider,
    kind: ChainKind,
) -> Option<(&'static str, Any)> {
    Some(match (&provider.kind, kind) {
        (ProviderKind::FileAccessLog(log), _) => {
            let format = if provider.name == ENVOY_LOG && log.log_format.is_none() {
                log_format::of_mesh(context.config)
            } else {
                log_format::of_provider(log.log_format.as_ref(), log.omit_empty_values)
            };
            ("envoy.access_loggers.file", file(&log.path, format))
        }
        (ProviderKind::HttpAls(log), ChainKind::Http) => {
            let common_config = Some(service_log(context, log, "http_envoy_accesslog")?);
            let config = HttpGrpcAccessLogConfig {
                common_config,
                additional_request_headers_to_log: log.additional_request_headers_to_log.clone(),
                additional_response_headers_to_log: log.additional_response_headers_to_log.clone(),
                additional_response_trailers_to_log: log
                    .additional_response_trailers_to_log
                    .clone(),
            };
            ("envoy.access_loggers.http_grpc", any(&config))
        }
        (ProviderKind::TcpAls(log), _) => {
            let common_config = Some(service_log(context, log, "tcp_envoy_accesslog")?);
            ("envoy.access_loggers.tcp_grpc", any(&TcpGrpcAccessLogConfig { common_config }))
        }
        (ProviderKind::OtelAls(log), _) => {
            ("envoy.access_loggers.open_telemetry", otel(context, log)?)
        }
        _ => return None,
    })
}

fn service_log(
    context: &Context<'_>,
    log: &AccessLogService,
    default_name: &str,
) -> Option<CommonGrpcAccessLogConfig> {
    let objects = &log.filter_state_objects_to_log;
    common(context, (&log.service, log.port), (&log.log_name, default_name), objects)
}

fn common(
    context: &Context<'_>,
    (service, port): (&str, u32),
    (name, default_name): (&str, &str),
    objects: &[String],
) -> Option<CommonGrpcAccessLogConfig> {
    let to = provider_cluster(context, service, port)?;
    let objects = if objects.is_empty() {
        PEERS.iter().map(|name| (*name).to_owned()).collect()
    } else {
        objects.to_vec()
    };
    Some(CommonGrpcAccessLogConfig {
        log_name: if name.is_empty() { default_name } else { name }.to_owned(),
        grpc_service: Some(by_grpc(to)),
        transport_api_version: ApiVersion::V3.into(),
        filter_state_objects_to_log: objects,
        ..CommonGrpcAccessLogConfig::default()
    })
}

fn otel(context: &Context<'_>, log: &OtelAccessLog) -> Option<Any> {
    let to = (log.service.as_str(), log.port);
    let name = (log.log_name.as_str(), "otel_envoy_accesslog");
    let common = common(context, to, name, &log.filter_state_objects_to_log)?;
    let format = log.log_format.clone().unwrap_or_default();
    let labels = format.labels.unwrap_or_default();
    let attributes = labels.iter().map(|(key, value)| KeyValue {
        key: key.clone(),
        value: Some(text(value.as_str().map_or_else(|| value.to_string(), str::to_owned))),
        ..KeyValue::default()
    });
    let body = format.text.filter(|text| !text.is_empty());
    #[expect(deprecated, reason = "older proxies know no other")]
    let config = OpenTelemetryAccessLogConfig {
        common_config: Some(common),
        disable_builtin_labels: true,
        body: Some(text(body.unwrap_or_else(log_format::default_text))),
        attributes: (!labels.is_empty()).then(|| KeyValueList { values: attributes.collect() }),
        ..OpenTelemetryAccessLogConfig::default()
    };
    Some(any(&config))
}

fn text(text: String) -> AnyValue {
    AnyValue { value: Some(any_value::Value::StringValue(text)) }
}
