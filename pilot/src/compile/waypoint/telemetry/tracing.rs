//! Tracing.
//!
//! In: the Telemetry resources that count for a host, and the mesh's providers. Out: how requests are traced; nothing if
//! no span is to be reported.

use std::collections::BTreeMap;

use proto::{
    envoy::envoy::{
        config::{
            core::v3::{
                GrpcService, HeaderValue, HeaderValueOption, HttpService, HttpUri,
                TypedExtensionConfig, header_value_option::HeaderAppendAction, http_uri,
            },
            trace::v3::{
                ClientConfig, DatadogConfig, OpenTelemetryConfig, SkyWalkingConfig, ZipkinConfig,
                client_config::BackendTokenSpecifier,
                tracing::{Http, http},
                zipkin_config::{CollectorEndpointVersion, TraceContextOption},
            },
        },
        extensions::{
            filters::network::http_connection_manager::v3::http_connection_manager::Tracing,
            tracers::opentelemetry::resource_detectors::v3::{
                DynatraceResourceDetectorConfig, EnvironmentResourceDetectorConfig,
            },
        },
        r#type::v3::Percent,
    },
    google::Any,
};

use super::{by_grpc, is_of_servers, tags};
use crate::{
    compile::{
        MeshConfig,
        mesh_config::{
            HttpExport, Opentelemetry, ProviderHeader, ProviderKind, Skywalking, TraceContext,
            Zipkin,
        },
        waypoint::{
            Context,
            message::{any, duration, flag, number},
            policy::{ProviderCluster, provider_cluster},
        },
    },
    manifests::{Duration, telemetry},
};

/// How many requests in a hundred are traced if nobody says.
const SAMPLING: f64 = 1.0;
/// How long a collector may take if nothing is said.
const TIMEOUT: Duration = Duration(std::time::Duration::from_secs(3));

/// What is in force for a host.
pub(super) struct Traced<'a> {
    providers: Vec<&'a str>,
    disabled: bool,
    sampling: Option<f64>,
    tags: &'a BTreeMap<String, telemetry::CustomTag>,
    by_request_id: bool,
    istio_tags: bool,
}

impl<'a> Traced<'a> {
    pub(super) fn of(levels: &[&'a telemetry::Telemetry], config: &'a MeshConfig) -> Self {
        static NO_TAGS: BTreeMap<String, telemetry::CustomTag> = BTreeMap::new();
        let defaults = config.default_config.tracing.as_ref();
        let mut traced = Self {
            providers: config.default_providers.tracing.iter().map(String::as_str).collect(),
            disabled: false,
            sampling: defaults.and_then(|defaults| defaults.sampling),
            tags: defaults.map_or(&NO_TAGS, |defaults| &defaults.custom_tags),
            by_request_id: true,
            istio_tags: defaults.and_then(|defaults| defaults.enable_istio_tags).unwrap_or(true),
        };
        let entries = levels.iter().flat_map(|level| &level.tracing);
        for entry in
            entries.filter(|entry| is_of_servers(entry.r#match.as_ref().map(|one| one.mode)))
        {
            if !entry.providers.is_empty() {
                traced.providers =
                    entry.providers.iter().map(|provider| provider.name.as_str()).collect();
            }
            if !entry.custom_tags.is_empty() {
                traced.tags = &entry.custom_tags;
            }
            traced.disabled = entry.disable_span_reporting.unwrap_or(traced.disabled);
            traced.sampling = entry.random_sampling_percentage.or(traced.sampling);
            traced.by_request_id =
                entry.use_request_id_for_trace_sampling.unwrap_or(traced.by_request_id);
            traced.istio_tags = entry.enable_istio_tags.unwrap_or(traced.istio_tags);
        }
        traced
    }

    pub(super) fn samples_by_request_id(&self) -> bool {
        self.by_request_id
    }

    pub(super) fn tracing(&self, context: &Context<'_>) -> Option<Tracing> {
        if self.disabled {
            return None;
        }
        let mut custom_tags = Vec::new();
        if self.istio_tags && context.client.has_istio_extensions() {
            custom_tags = tags::standard(context);
        }
        custom_tags.extend(self.tags.iter().filter_map(|(name, tag)| tags::custom(name, tag)));
        custom_tags.sort_by(|a, b| a.tag.cmp(&b.tag));
        // One is all that Envoy takes.
        let provider = self.providers.first().and_then(|name| context.config.provider(name));
        let provider = provider.map(|provider| &provider.kind);
        let percent = |value| Some(Percent { value });
        let longest = provider.map_or(0, max_tag_length);
        Some(Tracing {
            client_sampling: percent(100.0),
            random_sampling: percent(self.sampling.unwrap_or(SAMPLING)),
            overall_sampling: percent(100.0),
            max_path_tag_length: (longest > 0).then(|| number(longest)),
            custom_tags,
            provider: provider.and_then(|provider| reported_to(context, provider)),
            ..Tracing::default()
        })
    }
}

fn max_tag_length(provider: &ProviderKind) -> u32 {
    match provider {
        ProviderKind::Opentelemetry(one) => one.max_tag_length,
        ProviderKind::Zipkin(one) => one.max_tag_length,
        ProviderKind::Datadog(one) => one.max_tag_length,
        ProviderKind::Stackdriver(one) => one.max_tag_length,
        ProviderKind::ExtAuthzHttp(_)
        | ProviderKind::ExtAuthzGrpc(_)
        | ProviderKind::Skywalking(_)
        | ProviderKind::Prometheus
        | ProviderKind::FileAccessLog(_)
        | ProviderKind::HttpAls(_)
        | ProviderKind::TcpAls(_)
        | ProviderKind::OtelAls(_)
        | ProviderKind::Sds => 0,
    }
}

/// To whom spans are reported; nothing if that is nobody who can be reached.
fn reported_to(context: &Context<'_>, provider: &ProviderKind) -> Option<Http> {
    let (service, port) = provider.service()?;
    let to = provider_cluster(context, service, port)?;
    let (name, config) = match provider {
        ProviderKind::Opentelemetry(one) => {
            ("envoy.tracers.opentelemetry", opentelemetry(context, one, to))
        }
        ProviderKind::Zipkin(one) => ("envoy.tracers.zipkin", zipkin(one, to)),
        ProviderKind::Datadog(_) => {
            let config = DatadogConfig {
                collector_cluster: to.cluster,
                collector_hostname: to.host,
                service_name: service_name(context),
                ..DatadogConfig::default()
            };
            ("envoy.tracers.datadog", any(&config))
        }
        ProviderKind::Skywalking(one) => ("envoy.tracers.skywalking", skywalking(context, one, to)),
        ProviderKind::ExtAuthzHttp(_)
        | ProviderKind::ExtAuthzGrpc(_)
        | ProviderKind::Stackdriver(_)
        | ProviderKind::Prometheus
        | ProviderKind::FileAccessLog(_)
        | ProviderKind::HttpAls(_)
        | ProviderKind::TcpAls(_)
        | ProviderKind::OtelAls(_)
        | ProviderKind::Sds => return None,
    };
    Some(Http { name: name.to_owned(), config_type: Some(http::ConfigType::TypedConfig(config)) })
}

/// The waypoint's own name in traces.
fn service_name(context: &Context<'_>) -> String {
    let client = context.client;
    let named = ["service.istio.io/canonical-name", "app"];
    let name = named.iter().find_map(|label| client.labels.get(*label));
    let name = name.map_or(&*context.gateway.meta.name, String::as_str);
    format!("{name}.{}", client.namespace)
}

fn opentelemetry(context: &Context<'_>, provider: &Opentelemetry, to: ProviderCluster) -> Any {
    let mut config = OpenTelemetryConfig {
        service_name: service_name(context),
        ..OpenTelemetryConfig::default()
    };
    if let Some(http) = &provider.http {
        config.http_service = Some(by_http(http, to));
    } else {
        let grpc = provider.grpc.clone().unwrap_or_default();
        config.grpc_service = Some(GrpcService {
            timeout: grpc.timeout.map(|timeout| duration(timeout.0)),
            initial_metadata: grpc.initial_metadata.iter().map(header).collect(),
            ..by_grpc(to)
        });
    }
    let detectors = provider.resource_detectors.clone().unwrap_or_default();
    let environment =
        detectors.environment.map(|_| ("environment", any(&EnvironmentResourceDetectorConfig {})));
    let dynatrace =
        detectors.dynatrace.map(|_| ("dynatrace", any(&DynatraceResourceDetectorConfig {})));
    let detectors = environment.into_iter().chain(dynatrace);
    config.resource_detectors = detectors
        .map(|(name, typed)| TypedExtensionConfig {
            name: format!("envoy.tracers.opentelemetry.resource_detectors.{name}"),
            typed_config: Some(typed),
        })
        .collect();
    any(&config)
}

fn by_http(http: &HttpExport, to: ProviderCluster) -> HttpService {
    let headers = http.headers.iter().map(|one| HeaderValueOption {
        header: Some(header(one)),
        append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
        ..HeaderValueOption::default()
    });
    HttpService {
        http_uri: Some(HttpUri {
            uri: format!("{}{}", to.host, http.path),
            timeout: Some(duration(http.timeout.unwrap_or(TIMEOUT).0)),
            http_upstream_type: Some(http_uri::HttpUpstreamType::Cluster(to.cluster)),
        }),
        request_headers_to_add: headers.collect(),
        ..HttpService::default()
    }
}

/// A header of the report. One whose value is in the proxy's environment is filled in there.
fn header(written: &ProviderHeader) -> HeaderValue {
    let from_environment = written.env_name.as_ref().map(|name| format!("%ENVIRONMENT({name})%"));
    HeaderValue {
        key: written.name.clone(),
        value: written.value.clone().or(from_environment).unwrap_or_default(),
        ..HeaderValue::default()
    }
}

fn zipkin(provider: &Zipkin, to: ProviderCluster) -> Any {
    let path = if provider.path.is_empty() { "/api/v2/spans" } else { &provider.path };
    let context = match provider.trace_context_option {
        TraceContext::UseB3 => TraceContextOption::UseB3,
        TraceContext::UseB3WithW3cPropagation => TraceContextOption::UseB3WithW3cPropagation,
    };
    any(&ZipkinConfig {
        collector_cluster: to.cluster,
        collector_hostname: to.host,
        collector_endpoint: path.to_owned(),
        collector_endpoint_version: CollectorEndpointVersion::HttpJson.into(),
        trace_id_128bit: !provider.enable64bit_trace_id,
        shared_span_context: Some(flag(false)),
        trace_context_option: context.into(),
        ..ZipkinConfig::default()
    })
}

fn skywalking(context: &Context<'_>, provider: &Skywalking, to: ProviderCluster) -> Any {
    let token = Some(&provider.access_token).filter(|token| !token.is_empty());
    any(&SkyWalkingConfig {
        grpc_service: Some(by_grpc(to)),
        client_config: Some(ClientConfig {
            service_name: service_name(context),
            instance_name: context.client.name.clone(),
            backend_token_specifier: token.cloned().map(BackendTokenSpecifier::BackendToken),
            ..ClientConfig::default()
        }),
    })
}
