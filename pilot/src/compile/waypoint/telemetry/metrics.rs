//! The filters that count.
//!
//! In: the metrics of the Telemetry resources that count for a host. Out: the configuration of Istio's own filter for
//! each provider that Prometheus reads; none if every metric is switched off.

use std::collections::{BTreeMap, BTreeSet};

use proto::{
    google::{self, Any},
    istio_proxy::{MetricConfig, PluginConfig, Reporter},
};

use super::is_of_servers;
use crate::{
    compile::{
        MeshConfig,
        mesh_config::ProviderKind,
        waypoint::message::{any, duration},
    },
    manifests::{
        Duration,
        telemetry::{MetricsOverride, StandardMetric, TagOperation, Telemetry},
    },
};

/// The filter's name.
pub(super) const STATS: &str = "istio.stats";

/// Every standard metric, by Istio's name, with the filter's.
const METRICS: [(StandardMetric, &str, &str); 10] = [
    (StandardMetric::GrpcRequestMessages, "GRPC_REQUEST_MESSAGES", "request_messages_total"),
    (StandardMetric::GrpcResponseMessages, "GRPC_RESPONSE_MESSAGES", "response_messages_total"),
    (StandardMetric::RequestCount, "REQUEST_COUNT", "requests_total"),
    (StandardMetric::RequestDuration, "REQUEST_DURATION", "request_duration_milliseconds"),
    (StandardMetric::RequestSize, "REQUEST_SIZE", "request_bytes"),
    (StandardMetric::ResponseSize, "RESPONSE_SIZE", "response_bytes"),
    (
        StandardMetric::TcpClosedConnections,
        "TCP_CLOSED_CONNECTIONS",
        "tcp_connections_closed_total",
    ),
    (
        StandardMetric::TcpOpenedConnections,
        "TCP_OPENED_CONNECTIONS",
        "tcp_connections_opened_total",
    ),
    (StandardMetric::TcpReceivedBytes, "TCP_RECEIVED_BYTES", "tcp_received_bytes_total"),
    (StandardMetric::TcpSentBytes, "TCP_SENT_BYTES", "tcp_sent_bytes_total"),
];

/// What is said of one metric.
#[derive(Clone, Default)]
struct Metric {
    disabled: bool,
    /// No value: the tag is left out.
    tags: BTreeMap<String, Option<String>>,
}

/// The configuration of each filter.
pub(super) fn configs(levels: &[&Telemetry], config: &MeshConfig) -> Vec<Any> {
    let mut providers: Vec<&str> =
        config.default_providers.metrics.iter().map(String::as_str).collect();
    let mut interval = None;
    for metrics in levels.iter().flat_map(|level| &level.metrics) {
        if !metrics.providers.is_empty() {
            providers = metrics.providers.iter().map(|provider| provider.name.as_str()).collect();
        }
        interval = metrics.reporting_interval.or(interval);
    }
    let prometheus = providers.iter().collect::<BTreeSet<_>>().into_iter().filter(|name| {
        config.provider(name).is_some_and(|one| one.kind == ProviderKind::Prometheus)
    });
    prometheus.filter_map(|name| plugin(levels, &providers, name, interval)).collect()
}

fn plugin(
    levels: &[&Telemetry],
    providers: &[&str],
    name: &str,
    interval: Option<Duration>,
) -> Option<Any> {
    let mut metrics: BTreeMap<String, Metric> = BTreeMap::new();
    for entry in levels.iter().flat_map(|level| &level.metrics) {
        let mut named = entry.providers.iter().map(|provider| provider.name.as_str());
        let concerns = if entry.providers.is_empty() {
            providers.contains(&name)
        } else {
            named.any(|one| one == name)
        };
        if concerns {
            for change in &entry.overrides {
                apply(change, &mut metrics);
            }
        }
    }
    let all_off = METRICS.iter().all(|(_, name, _)| metrics.get(*name).is_some_and(|m| m.disabled));
    if all_off {
        return None;
    }
    Some(any(&PluginConfig {
        disable_host_header_fallback: true,
        tcp_reporting_duration: interval
            .map(|interval| -> google::Duration { duration(interval.0) }),
        metrics: metrics.into_iter().map(metric_config).collect(),
        reporter: Reporter::ServerGateway.into(),
        ..PluginConfig::default()
    }))
}

fn apply(change: &MetricsOverride, metrics: &mut BTreeMap<String, Metric>) {
    let selector = change.r#match.as_ref();
    if !is_of_servers(selector.map(|selector| selector.mode)) {
        return;
    }
    let custom = selector.and_then(|selector| selector.custom_metric.clone());
    let standard = selector.and_then(|selector| selector.metric);
    let names: Vec<String> = match (custom, standard) {
        (Some(custom), _) => vec![custom],
        (None, None | Some(StandardMetric::AllMetrics)) => {
            METRICS.iter().map(|(_, name, _)| (*name).to_owned()).collect()
        }
        (None, Some(one)) => {
            let named = METRICS.iter().filter(|(metric, _, _)| *metric == one);
            named.map(|(_, name, _)| (*name).to_owned()).collect()
        }
    };
    for name in names {
        let metric = metrics.entry(name).or_default();
        metric.disabled = change.disabled.unwrap_or(metric.disabled);
        for (tag, change) in &change.tag_overrides {
            let value = match change.operation {
                TagOperation::Upsert => Some(change.value.clone()),
                TagOperation::Remove => None,
            };
            metric.tags.insert(tag.clone(), value);
        }
    }
}

fn metric_config((name, metric): (String, Metric)) -> MetricConfig {
    let known = METRICS.iter().find(|(_, istio, _)| *istio == name);
    let name = known.map_or(name.clone(), |(_, _, filters)| (*filters).to_owned());
    if metric.disabled {
        return MetricConfig { name, drop: true, ..MetricConfig::default() };
    }
    let removed = metric.tags.iter().filter(|(_, value)| value.is_none());
    MetricConfig {
        name,
        tags_to_remove: removed.map(|(tag, _)| tag.clone()).collect(),
        dimensions: metric
            .tags
            .into_iter()
            .filter_map(|(tag, value)| Some((tag, value?)))
            .collect(),
        ..MetricConfig::default()
    }
}
