//! How many connections a cluster may have, for how long, and which HTTP they speak.
//!
//! In: the connection pool that rules ask for, and the protocol of a port. Out: circuit breakers, timeouts and the
//! options of HTTP.

use proto::{
    envoy::envoy::{
        config::{
            cluster::v3::{
                CircuitBreakers, Cluster, UpstreamConnectionOptions,
                circuit_breakers::{Thresholds, thresholds::RetryBudget as EnvoyRetryBudget},
            },
            core::v3::{
                Http1ProtocolOptions, Http2ProtocolOptions, HttpProtocolOptions as CommonHttp,
                KeepaliveSettings, TcpKeepalive, UpstreamHttpProtocolOptions,
            },
        },
        extensions::upstreams::http::v3::{
            HttpProtocolOptions,
            http_protocol_options::{
                ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig,
                explicit_http_config::ProtocolConfig,
            },
        },
        r#type::v3::Percent,
    },
    google::UInt32Value,
};

use crate::{
    compile::{
        MeshConfig,
        registry::{Port, Protocol},
        waypoint::{
            destination_rule::Traffic,
            message::{any, duration, number},
        },
    },
    manifests::networking::{self, H2UpgradePolicy, HttpSettings},
};

/// The key of a cluster's options of HTTP.
pub(super) const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// Puts into a cluster what is asked for, or the defaults.
pub(super) fn apply(
    cluster: &mut Cluster,
    config: &MeshConfig,
    traffic: &Traffic<'_>,
    port: &Port,
    names: Option<UpstreamHttpProtocolOptions>,
) {
    let pool = traffic.connection_pool;
    let tcp = pool.and_then(|pool| pool.tcp.as_ref());
    let http = pool.and_then(|pool| pool.http.as_ref());
    let timeout = tcp.and_then(|tcp| tcp.connect_timeout).unwrap_or(config.connect_timeout);
    cluster.connect_timeout = Some(duration(timeout.0));
    cluster.circuit_breakers = Some(circuit_breakers(traffic));
    let keepalive =
        tcp.and_then(|tcp| tcp.tcp_keepalive.as_ref()).or(config.tcp_keepalive.as_ref());
    cluster.upstream_connection_options = keepalive.map(connection_options);
    let idle = http.and_then(|http| http.idle_timeout).or(tcp.and_then(|tcp| tcp.idle_timeout));
    let longest = tcp.and_then(|tcp| tcp.max_connection_duration);
    let requests = http.and_then(|http| positive(http.max_requests_per_connection));
    let common = (idle.is_some() || longest.is_some() || requests.is_some()).then(|| CommonHttp {
        idle_timeout: idle.map(|idle| duration(idle.0)),
        max_connection_duration: longest.map(|longest| duration(longest.0)),
        max_requests_per_connection: requests,
        ..CommonHttp::default()
    });
    let protocol = protocol(config, port, http);
    if common.is_some() || protocol.is_some() || names.is_some() {
        let options = HttpProtocolOptions {
            common_http_protocol_options: common,
            upstream_http_protocol_options: names,
            // Envoy wants to be told when it is told anything.
            upstream_protocol_options: Some(protocol.unwrap_or_else(http1)),
            ..HttpProtocolOptions::default()
        };
        cluster.typed_extension_protocol_options.insert(HTTP_OPTIONS.to_owned(), any(&options));
    }
}

/// Whether a cluster speaks HTTP/2 and nothing else.
pub(super) fn is_http2(config: &MeshConfig, traffic: &Traffic<'_>, port: &Port) -> bool {
    let http = traffic.connection_pool.and_then(|pool| pool.http.as_ref());
    let protocol = protocol(config, port, http);
    let explicit = protocol.and_then(|protocol| match protocol {
        UpstreamProtocolOptions::ExplicitHttpConfig(explicit) => explicit.protocol_config,
        UpstreamProtocolOptions::UseDownstreamProtocolConfig(_)
        | UpstreamProtocolOptions::AutoConfig(_) => None,
    });
    matches!(explicit, Some(ProtocolConfig::Http2ProtocolOptions(_)))
}

/// None is HTTP/1.1, or no HTTP at all.
fn protocol(
    config: &MeshConfig,
    port: &Port,
    http: Option<&HttpSettings>,
) -> Option<UpstreamProtocolOptions> {
    if port.protocol == Protocol::Unknown || http.is_some_and(|http| http.use_client_protocol) {
        return Some(as_downstream());
    }
    if port.protocol.is_http2() {
        return Some(http2(http.map(http2_settings).unwrap_or_default()));
    }
    let policy = match http.map(|http| http.h2_upgrade_policy).unwrap_or_default() {
        H2UpgradePolicy::Default => config.h2_upgrade_policy,
        own @ (H2UpgradePolicy::DoNotUpgrade | H2UpgradePolicy::Upgrade) => own,
    };
    let upgraded = port.protocol.is_http() && policy == H2UpgradePolicy::Upgrade;
    upgraded.then(|| http2(Http2ProtocolOptions::default()))
}

fn http2_settings(http: &HttpSettings) -> Http2ProtocolOptions {
    let keepalive = http.http2_keep_alive.as_ref().map(|keepalive| KeepaliveSettings {
        interval: keepalive.interval.map(|interval| duration(interval.0)),
        timeout: keepalive.timeout.map(|timeout| duration(timeout.0)),
        ..KeepaliveSettings::default()
    });
    Http2ProtocolOptions {
        max_concurrent_streams: positive(http.max_concurrent_streams),
        connection_keepalive: keepalive,
        ..Http2ProtocolOptions::default()
    }
}

/// What the client speaks, the server is spoken to in.
pub(super) fn as_downstream() -> UpstreamProtocolOptions {
    UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
        http_protocol_options: Some(Http1ProtocolOptions::default()),
        http2_protocol_options: Some(Http2ProtocolOptions::default()),
        ..UseDownstreamHttpConfig::default()
    })
}

/// HTTP/2.
pub(super) fn http2(options: Http2ProtocolOptions) -> UpstreamProtocolOptions {
    explicit(ProtocolConfig::Http2ProtocolOptions(options))
}

fn http1() -> UpstreamProtocolOptions {
    explicit(ProtocolConfig::HttpProtocolOptions(Http1ProtocolOptions::default()))
}

fn explicit(protocol: ProtocolConfig) -> UpstreamProtocolOptions {
    let protocol_config = Some(protocol);
    UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig { protocol_config })
}

/// Envoy's own limits are meant for less than what a mesh carries.
pub(super) fn unlimited() -> CircuitBreakers {
    CircuitBreakers { thresholds: vec![no_limits()], ..CircuitBreakers::default() }
}

fn no_limits() -> Thresholds {
    Thresholds {
        max_connections: Some(number(u32::MAX)),
        max_pending_requests: Some(number(u32::MAX)),
        max_requests: Some(number(u32::MAX)),
        max_retries: Some(number(u32::MAX)),
        ..Thresholds::default()
    }
}

fn circuit_breakers(traffic: &Traffic<'_>) -> CircuitBreakers {
    let mut limits = no_limits();
    let pool = traffic.connection_pool;
    if let Some(tcp) = pool.and_then(|pool| pool.tcp.as_ref()) {
        limit(&mut limits.max_connections, tcp.max_connections);
    }
    if let Some(http) = pool.and_then(|pool| pool.http.as_ref()) {
        limit(&mut limits.max_pending_requests, http.http1_max_pending_requests);
        limit(&mut limits.max_requests, http.http2_max_requests);
        limit(&mut limits.max_retries, http.max_retries);
    }
    limits.retry_budget = traffic.retry_budget.map(|budget| EnvoyRetryBudget {
        budget_percent: Some(Percent { value: budget.percent.unwrap_or(20.0) }),
        min_retry_concurrency: Some(number(budget.min_retry_concurrency.unwrap_or(3))),
        ..EnvoyRetryBudget::default()
    });
    CircuitBreakers { thresholds: vec![limits], ..CircuitBreakers::default() }
}

fn limit(to: &mut Option<UInt32Value>, wanted: i32) {
    if let Some(wanted) = positive(wanted) {
        *to = Some(wanted);
    }
}

fn positive(value: i32) -> Option<UInt32Value> {
    u32::try_from(value).ok().filter(|value| *value > 0).map(number)
}

fn connection_options(keepalive: &networking::TcpKeepalive) -> UpstreamConnectionOptions {
    let seconds = |of: Option<crate::manifests::Duration>| {
        of.map(|of| number(u32::try_from(of.0.as_secs()).unwrap_or(u32::MAX)))
    };
    let probes = (keepalive.probes > 0).then(|| number(keepalive.probes));
    UpstreamConnectionOptions {
        tcp_keepalive: Some(TcpKeepalive {
            keepalive_probes: probes,
            keepalive_time: seconds(keepalive.time),
            keepalive_interval: seconds(keepalive.interval),
        }),
        ..UpstreamConnectionOptions::default()
    }
}
