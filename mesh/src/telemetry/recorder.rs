//! Where metrics go: one Prometheus registry for the process.
//!
//! In: what the `metrics` facade is told. Out: the text Prometheus scrapes.

use std::{fs, time::Duration};

use metrics::{describe_counter, describe_gauge, describe_histogram, gauge};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use super::openmetrics::openmetrics;

/// How often histograms are folded when nobody scrapes: their samples wait in memory until then.
const UPKEEP: Duration = Duration::from_secs(5);
/// Buckets of Istio's durations: those of forwarded DNS queries.
const ISTIO_BUCKETS: &[f64] = &[0.0005, 0.001, 0.01, 0.1, 1.0, 5.0];
/// Buckets of our own durations: from a dial on the same node to a limit that was reached.
const SECONDS_BUCKETS: &[f64] = &[
    0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
    2.5, 5.0, 10.0,
];

/// Why metrics cannot be collected.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// The process collects metrics elsewhere.
    #[error("the process has a metrics recorder already")]
    Started,
    /// A histogram's buckets were refused.
    #[error("setting histogram buckets")]
    Buckets {
        /// What the exporter said.
        source: metrics_exporter_prometheus::BuildError,
    },
}

/// How metrics are written.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Exposition {
    /// Prometheus' text format 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Exposition {
    /// The form that an `Accept` header prefers: OpenMetrics for whoever names it, as Prometheus does.
    pub fn accepted(accept: &str) -> Self {
        let mut types = accept.split(',').filter_map(|range| range.split(';').next());
        match types.any(|name| name.trim().eq_ignore_ascii_case("application/openmetrics-text")) {
            true => Self::OpenMetrics,
            false => Self::Prometheus,
        }
    }

    /// Its media type.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// Renders the process's metrics.
#[derive(Clone)]
pub struct Metrics {
    prometheus: PrometheusHandle,
}

impl Metrics {
    /// Collects the process's metrics from here on.
    ///
    /// # Errors
    /// [`MetricsError::Started`] if something else does.
    pub fn install() -> Result<Self, MetricsError> {
        let recorder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Prefix("aquifer_".into()), SECONDS_BUCKETS)
            .and_then(|builder| {
                builder.set_buckets_for_metric(Matcher::Prefix("istio_".into()), ISTIO_BUCKETS)
            })
            .and_then(|builder| {
                let convergence = Matcher::Full("pilot_proxy_convergence_time".into());
                builder.set_buckets_for_metric(convergence, SECONDS_BUCKETS)
            })
            .map_err(|source| MetricsError::Buckets { source })?
            .build_recorder();
        let prometheus = recorder.handle();
        metrics::set_global_recorder(recorder).map_err(|_| MetricsError::Started)?;
        describe();
        Ok(Self { prometheus })
    }

    /// All metrics.
    pub fn render(&self, form: Exposition) -> String {
        record_descriptors();
        let text = self.prometheus.render();
        match form {
            Exposition::Prometheus => text,
            Exposition::OpenMetrics => openmetrics(&text),
        }
    }

    /// Folds histograms from time to time, forever.
    pub async fn keep_up(self) {
        loop {
            tokio::time::sleep(UPKEEP).await;
            let prometheus = self.prometheus.clone();
            // As long as a page takes, where series are many: not on a thread that serves.
            let folded = tokio::task::spawn_blocking(move || prometheus.run_upkeep()).await;
            if let Err(error) = folded {
                tracing::error!(%error, "histograms are not folded");
            }
        }
    }
}

/// Sets Istio's `istio_build`.
pub fn record_build(component: &'static str, tag: &str) {
    gauge!("istio_build", "component" => component, "tag" => tag.to_owned()).set(1.0);
}

fn describe() {
    describe_counter!("istio_tcp_connections_opened_total", "TCP connections opened");
    describe_counter!("istio_tcp_connections_closed_total", "TCP connections closed");
    describe_counter!("istio_tcp_connections_failed_total", "TCP connections that failed");
    describe_counter!(
        "istio_tcp_received_bytes_total",
        "Bytes received from the connections' initiators"
    );
    describe_counter!("istio_tcp_sent_bytes_total", "Bytes sent to the connections' initiators");
    describe_counter!(
        "istio_on_demand_dns_total",
        "Names of workloads that were resolved for a connection"
    );
    describe_counter!(
        "aquifer_retried_connections_total",
        "Attempts that failed before the first byte and were made at another endpoint"
    );
    describe_counter!(
        "aquifer_endpoint_ejections_total",
        "Endpoints left alone after repeated failures"
    );
    describe_gauge!("aquifer_endpoints_ejected", "Endpoints that are left alone now");
    describe_gauge!("istio_tcp_sockets_open", "Accepted sockets that are open");
    describe_counter!("istio_xds_connection_terminations_total", "xDS streams that ended");
    describe_counter!("istio_xds_message_total", "xDS responses received");
    describe_counter!("istio_xds_message_bytes_total", "Bytes of xDS responses received");
    describe_gauge!(
        "aquifer_policies_rejected",
        "Policies whose newest version cannot be understood, and whether they deny for want of an older one"
    );
    describe_counter!("istio_dns_requests_total", "DNS queries of pods");
    describe_counter!("istio_dns_upstream_requests_total", "DNS queries passed on");
    describe_counter!(
        "istio_dns_upstream_failures_total",
        "DNS queries passed on that no server answered"
    );
    describe_histogram!(
        "istio_dns_upstream_request_duration_seconds",
        "How long DNS queries passed on took"
    );
    describe_gauge!("istio_build", "The component and its version");
    describe_counter!("aquifer_denials_total", "Connections that policy refused or cut, by reason");
    describe_counter!(
        "aquifer_failures_total",
        "Connections that failed for other reasons, by reason"
    );
    describe_histogram!("aquifer_dial_seconds", "TCP connections made, by what they were for");
    describe_histogram!("aquifer_tls_handshake_seconds", "TLS handshakes of tunnels");
    describe_counter!(
        "aquifer_accept_pauses_total",
        "Pauses of accepting for lack of means, by reason"
    );
    describe_counter!(
        "aquifer_admin_stalled_total",
        "Operators' connections ended because the answer was not taken"
    );
    describe_counter!("aquifer_tls_handshakes_total", "TLS handshakes of tunnels, by group");
    describe_histogram!(
        "aquifer_first_byte_seconds",
        "From a connection's acceptance to the first byte back to its initiator"
    );
    describe_histogram!("aquifer_tunnel_rtt_seconds", "Smoothed round-trip times of tunnels");
    describe_counter!("aquifer_tunnel_retransmits_total", "Segments that tunnels sent again");
    describe_gauge!("process_open_fds", "Open file descriptors");
    describe_gauge!("process_max_fds", "File descriptors allowed");
}

fn record_descriptors() {
    if let Ok(descriptors) = fs::read_dir("/proc/self/fd") {
        // Reading the folder holds one descriptor itself.
        gauge!("process_open_fds").set(descriptors.count().saturating_sub(1) as f64);
    }
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let soft = line.and_then(|values| values.split_whitespace().next()?.parse::<f64>().ok());
    if let Some(soft) = soft {
        gauge!("process_max_fds").set(soft);
    }
}
