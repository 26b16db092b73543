//! Chains of bytes.
//!
//! In: a port of a host, or none for pods that are reached directly. Out: the chain's filters, the proxy last.

use proto::{
    envoy::envoy::{
        config::listener::v3::Filter,
        extensions::filters::network::{
            sni_dynamic_forward_proxy::v3 as sni,
            tcp_proxy::v3::{
                TcpProxy,
                tcp_proxy::{
                    ClusterSpecifier, TunnelingConfig, WeightedCluster,
                    weighted_cluster::ClusterWeight,
                },
            },
        },
        r#type::v3::{HashPolicy, hash_policy},
    },
    google::Any,
};

use super::{
    ChainKind, Context, ENCAP, Role, clusters,
    context::inbound_cluster,
    destination_rule::Traffic,
    listeners,
    message::{any, duration, filter, json_bool, json_object, json_text, typed_struct},
    policy, routes, telemetry,
};
use crate::compile::registry::{Host, Port};

/// The filters of a port's chain.
pub(super) fn filters(context: &Context<'_>, host: &Host, port: &Port) -> Vec<Filter> {
    let own = inbound_cluster(host, port, ChainKind::Tcp, "");
    let mut proxy = proxy(context, Some(host), own.clone());
    // A gateway between networks only passes on what others have decided.
    let clusters = match context.role {
        Role::Waypoint => routes::tcp(context, host, port),
        Role::EastWest => vec![(own, 1)],
    };
    let traffic = context.traffic(host, port, "");
    apply(&mut proxy, &traffic, clusters.len() == 1);
    proxy.cluster_specifier = Some(specifier(clusters));
    around(context, Some(host), Some(port), &proxy)
}

/// The filters of the chain for pods themselves.
pub(super) fn direct_filters(context: &Context<'_>) -> Vec<Filter> {
    let mut proxy = proxy(context, None, ENCAP.into());
    proxy.cluster_specifier = Some(ClusterSpecifier::Cluster(ENCAP.into()));
    around(context, None, None, &proxy)
}

fn around(
    context: &Context<'_>,
    host: Option<&Host>,
    port: Option<&Port>,
    proxy: &TcpProxy,
) -> Vec<Filter> {
    let mut filters = Vec::new();
    if context.client.has_istio_extensions() {
        filters.push(filter("istio.metadata_exchange", metadata_exchange()));
    }
    if context.role == Role::Waypoint {
        filters.extend(policy::network_filters(context, host, port));
    }
    filters.extend(telemetry::telemetry(context, host).tcp_stats);
    if let (Some(host), Some(port)) = (host.filter(|host| host.is_wildcard()), port) {
        let name = "envoy.extensions.filters.network.sni_dynamic_forward_proxy";
        filters.push(filter(name, any(&by_server_name(context, host, port))));
    }
    filters.push(listeners::proxy_filter(proxy));
    filters
}

/// Looks up the name that TLS is for, below a wildcard.
fn by_server_name(context: &Context<'_>, host: &Host, port: &Port) -> sni::FilterConfig {
    sni::FilterConfig {
        dns_cache_config: Some(clusters::dns_cache(context, host)),
        port_specifier: Some(sni::filter_config::PortSpecifier::PortValue(port.number.into())),
        ..sni::FilterConfig::default()
    }
}

fn proxy(context: &Context<'_>, host: Option<&Host>, stat_prefix: String) -> TcpProxy {
    TcpProxy {
        stat_prefix,
        idle_timeout: context.client.idle_timeout.map(duration),
        access_log: telemetry::telemetry(context, host).tcp_logs,
        ..TcpProxy::default()
    }
}

/// What DestinationRules say of connections themselves.
fn apply(proxy: &mut TcpProxy, traffic: &Traffic, is_single: bool) {
    let pool = traffic.connection_pool.as_ref().and_then(|pool| pool.tcp.as_ref());
    if let Some(idle) = pool.and_then(|tcp| tcp.idle_timeout) {
        proxy.idle_timeout = Some(duration(idle.0));
    }
    if let Some(longest) = pool.and_then(|tcp| tcp.max_connection_duration) {
        proxy.max_downstream_connection_duration = Some(duration(longest.0));
    }
    let hash =
        traffic.load_balancer.as_ref().and_then(|balancer| balancer.consistent_hash.as_ref());
    if hash.is_some_and(|hash| hash.use_source_ip == Some(true)) {
        let source = hash_policy::PolicySpecifier::SourceIp(hash_policy::SourceIp {});
        proxy.hash_policy = vec![HashPolicy { policy_specifier: Some(source) }];
    }
    if let (Some(tunnel), true) = (&traffic.tunnel, is_single) {
        proxy.tunneling_config = Some(TunnelingConfig {
            hostname: format!("{}:{}", tunnel.target_host, tunnel.target_port),
            use_post: tunnel.protocol == "POST",
            ..TunnelingConfig::default()
        });
    }
}

fn specifier(mut clusters: Vec<(String, u32)>) -> ClusterSpecifier {
    if clusters.len() == 1 {
        let (name, _) = clusters.remove(0);
        return ClusterSpecifier::Cluster(name);
    }
    let clusters = clusters.into_iter().map(|(name, weight)| ClusterWeight {
        name,
        weight,
        ..ClusterWeight::default()
    });
    ClusterSpecifier::WeightedClusters(WeightedCluster { clusters: clusters.collect() })
}

/// Has Istio's proxies tell each other who they are, for telemetry.
pub(super) fn metadata_exchange() -> Any {
    typed_struct(
        "envoy.tcp.metadataexchange.config.MetadataExchange",
        json_object([
            ("enable_discovery", json_bool(true)),
            ("protocol", json_text("istio-peer-exchange")),
        ]),
    )
}
