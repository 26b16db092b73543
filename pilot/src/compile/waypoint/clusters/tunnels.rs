//! Clusters that lead to listeners of the same Envoy, and from there into tunnels.
//!
//! In: the mesh's settings and the waypoint's own namespace. Out: the counterparts of the listeners around
//! `main_internal`.

use proto::envoy::envoy::{
    config::{
        cluster::v3::{
            Cluster,
            cluster::{
                ClusterDiscoveryType, DiscoveryType, LbConfig, LbPolicy, OriginalDstLbConfig,
            },
        },
        core::v3::{Http2ProtocolOptions, HttpProtocolOptions as CommonHttp, TransportSocket},
        endpoint::v3::{
            ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints,
            lb_endpoint::HostIdentifier,
        },
    },
    extensions::upstreams::http::v3::HttpProtocolOptions,
    r#type::metadata::v3::{
        MetadataKey,
        metadata_key::{PathSegment, path_segment::Segment},
    },
};

use super::{
    pool::{self, HTTP_OPTIONS},
    transport,
};
use crate::compile::waypoint::{
    Context, ENCAP, Role,
    listeners::{
        CONNECT_ORIGINATE, FORWARD_INNER_CONNECT, HBONE_PORT, INNER_CONNECT_ORIGINATE,
        MAIN_INTERNAL, OUTER_CONNECT_ORIGINATE,
    },
    message::{any, duration, internal_address, number, raw_buffer, seconds, transport_socket},
    tls,
};

/// The key of endpoint metadata under which tunnels find where they go.
pub(in crate::compile::waypoint) const ORIGINAL_DST: &str = "envoy.filters.listener.original_dst";

pub(super) fn clusters(context: &Context<'_>) -> Vec<Cluster> {
    let mut clusters = vec![within(MAIN_INTERNAL, MAIN_INTERNAL, Some(any(&either_http())))];
    match context.role {
        Role::Waypoint => clusters.extend([
            within(ENCAP, CONNECT_ORIGINATE, Some(any(&either_http()))),
            connect_originate(context),
            inner_connect_originate(context),
            outer_connect_originate(context),
        ]),
        Role::EastWest => clusters.extend([
            within(ENCAP, FORWARD_INNER_CONNECT, None),
            forward_inner_connect(context),
            black_hole(context),
        ]),
    }
    clusters
}

/// A cluster of one listener of the same Envoy.
fn within(name: &str, listener: &str, http: Option<proto::google::Any>) -> Cluster {
    let options = http.map(|http| (HTTP_OPTIONS.to_owned(), http));
    Cluster {
        transport_socket: Some(transport::internal("internal_upstream", Vec::new(), raw_buffer())),
        typed_extension_protocol_options: options.into_iter().collect(),
        ..to_listener(name, listener)
    }
}

fn to_listener(name: &str, listener: &str) -> Cluster {
    let endpoint = Endpoint {
        address: Some(internal_address(listener, String::new())),
        ..Endpoint::default()
    };
    let endpoint = LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(endpoint)),
        ..LbEndpoint::default()
    };
    Cluster {
        load_assignment: Some(ClusterLoadAssignment {
            cluster_name: name.into(),
            endpoints: vec![LocalityLbEndpoints {
                lb_endpoints: vec![endpoint],
                ..LocalityLbEndpoints::default()
            }],
            ..ClusterLoadAssignment::default()
        }),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static.into())),
        ..named(name)
    }
}

fn named(name: &str) -> Cluster {
    Cluster {
        name: name.into(),
        alt_stat_name: format!("{name};"),
        circuit_breakers: Some(pool::unlimited()),
        ..Cluster::default()
    }
}

/// A cluster that goes where the connection is going, to the port for tunnels.
fn to_destination(context: &Context<'_>, name: &str) -> Cluster {
    Cluster {
        connect_timeout: Some(duration(context.config.connect_timeout.0)),
        cleanup_interval: Some(seconds(60)),
        lb_policy: LbPolicy::ClusterProvided.into(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::OriginalDst.into())),
        lb_config: Some(LbConfig::OriginalDstLbConfig(OriginalDstLbConfig {
            upstream_port_override: Some(number(HBONE_PORT.into())),
            ..OriginalDstLbConfig::default()
        })),
        ..named(name)
    }
}

/// An endpoint that has a waypoint is reached through it.
fn through_waypoints(mut cluster: Cluster) -> Cluster {
    if let Some(LbConfig::OriginalDstLbConfig(config)) = &mut cluster.lb_config {
        let segment = PathSegment { segment: Some(Segment::Key("waypoint".into())) };
        config.metadata_key = Some(MetadataKey { key: ORIGINAL_DST.into(), path: vec![segment] });
    }
    cluster
}

fn connect_originate(context: &Context<'_>) -> Cluster {
    let mut expected = tls::trust_domains(context.config);
    expected.push(format!(
        "spiffe://{}/ns/{}/sa/",
        context.config.trust_domain, context.gateway.meta.namespace
    ));
    Cluster {
        transport_socket: Some(transport_socket("tls", any(&tls::opening(expected)))),
        typed_extension_protocol_options: http2_tunnels(context, None),
        ..through_waypoints(to_destination(context, CONNECT_ORIGINATE))
    }
}

/// Streams to different services must not share an inner tunnel, which ends at one of them.
const ONE_STREAM: Option<u32> = Some(1);

fn inner_connect_originate(context: &Context<'_>) -> Cluster {
    let tls = transport_socket("tls", any(&tls::opening(tls::trust_domains(context.config))));
    Cluster {
        transport_socket: Some(transport::internal("internal_upstream_with_tls", Vec::new(), tls)),
        typed_extension_protocol_options: http2_tunnels(context, ONE_STREAM),
        ..to_listener(INNER_CONNECT_ORIGINATE, OUTER_CONNECT_ORIGINATE)
    }
}

fn outer_connect_originate(context: &Context<'_>) -> Cluster {
    let tls: TransportSocket =
        transport_socket("tls", any(&tls::opening(tls::trust_domains(context.config))));
    Cluster {
        transport_socket: Some(tls),
        typed_extension_protocol_options: http2_tunnels(context, ONE_STREAM),
        ..to_destination(context, OUTER_CONNECT_ORIGINATE)
    }
}

/// What is inside is a tunnel already.
fn forward_inner_connect(context: &Context<'_>) -> Cluster {
    through_waypoints(to_destination(context, FORWARD_INNER_CONNECT))
}

/// Without endpoints.
fn black_hole(context: &Context<'_>) -> Cluster {
    Cluster {
        connect_timeout: Some(duration(context.config.connect_timeout.0)),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static.into())),
        circuit_breakers: None,
        ..named("BlackHoleCluster")
    }
}

fn either_http() -> HttpProtocolOptions {
    HttpProtocolOptions {
        common_http_protocol_options: Some(CommonHttp {
            idle_timeout: Some(seconds(5 * 60)),
            ..CommonHttp::default()
        }),
        upstream_protocol_options: Some(pool::as_downstream()),
        ..HttpProtocolOptions::default()
    }
}

fn http2_tunnels(
    context: &Context<'_>,
    streams: Option<u32>,
) -> std::collections::HashMap<String, proto::google::Any> {
    let options = HttpProtocolOptions {
        common_http_protocol_options: Some(CommonHttp {
            idle_timeout: Some(duration(context.config.hbone_idle_timeout.0)),
            max_requests_per_connection: streams.map(number),
            ..CommonHttp::default()
        }),
        upstream_protocol_options: Some(pool::http2(Http2ProtocolOptions {
            allow_connect: true,
            ..Http2ProtocolOptions::default()
        })),
        ..HttpProtocolOptions::default()
    };
    [(HTTP_OPTIONS.to_owned(), any(&options))].into()
}
