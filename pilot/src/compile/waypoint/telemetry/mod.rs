//! What a waypoint counts, logs and traces.
//!
//! In: the Telemetry resources and the mesh's defaults. Out: access logs, tracing and the filters that count.

use std::collections::BTreeSet;

use proto::{
    envoy::envoy::{
        config::{accesslog::v3::AccessLog, listener::v3::Filter},
        extensions::filters::network::http_connection_manager::v3::{
            HttpFilter, http_connection_manager::Tracing,
        },
    },
    istio_proxy::{PluginConfig, Reporter},
};

use super::{
    Context,
    message::{any, filter, http_filter},
};
use crate::compile::registry::Host;

/// What is seen of requests and connections to one host.
#[derive(Debug, Default)]
pub(crate) struct Telemetry {
    /// Of requests.
    pub http_logs: Vec<AccessLog>,
    /// Of connections.
    pub tcp_logs: Vec<AccessLog>,
    /// Of requests.
    pub tracing: Option<Tracing>,
    /// Count requests.
    pub http_stats: Vec<HttpFilter>,
    /// Count connections.
    pub tcp_stats: Vec<Filter>,
}

/// Access logs of what no chain of a service sees.
#[derive(Debug, Default)]
pub(crate) struct AroundLogs {
    /// Connections that no chain takes.
    pub unmatched: Vec<AccessLog>,
    /// Tunnels that could not be opened.
    pub failed: Vec<AccessLog>,
    /// Tunnels that were refused.
    pub refused: Vec<AccessLog>,
}

/// For one host, or for pods that are reached directly.
pub(crate) fn telemetry(context: &Context<'_>, _host: Option<&Host>) -> Telemetry {
    let metrics = context.config.default_providers.metrics.iter();
    let prometheus = metrics.filter(|name| *name == "prometheus").count() > 0;
    if !prometheus || !context.client.has_istio_extensions() {
        return Telemetry::default();
    }
    let stats = any(&PluginConfig {
        disable_host_header_fallback: true,
        reporter: Reporter::ServerGateway.into(),
        ..PluginConfig::default()
    });
    Telemetry {
        http_stats: vec![http_filter("istio.stats", stats.clone())],
        tcp_stats: vec![filter("istio.stats", stats)],
        ..Telemetry::default()
    }
}

/// For the listeners around those of services.
pub(crate) fn around(_context: &Context<'_>) -> AroundLogs {
    AroundLogs::default()
}

/// The services that logs and traces are sent to: namespace and host name.
pub(crate) fn referenced(_context: &Context<'_>) -> BTreeSet<(String, String)> {
    BTreeSet::new()
}
