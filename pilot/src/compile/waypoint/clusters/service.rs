//! The cluster of one port of a host.
//!
//! In: a [`Destination`] and what rules say of it. Out: a cluster, or none if it could not reach anything.

use proto::{
    envoy::envoy::{
        config::{
            cluster::v3::{
                Cluster, Filter,
                cluster::{
                    ClusterDiscoveryType, CustomClusterType, DiscoveryType, EdsClusterConfig,
                    LbConfig, LbPolicy, OriginalDstLbConfig,
                },
            },
            core::v3::{
                AggregatedConfigSource, ApiVersion, ConfigSource, Metadata, TypedExtensionConfig,
                config_source::ConfigSourceSpecifier,
            },
        },
        extensions::{
            clusters::dynamic_forward_proxy::v3::{
                ClusterConfig, cluster_config::ClusterImplementationSpecifier,
            },
            network::dns_resolver::cares::v3::CaresDnsResolverConfig,
        },
    },
    google,
};

use super::{Destination, From, balancing, dns_cache, dns_families, pool, transport};
use crate::{
    compile::{
        registry::{Host, Origin, Resolution},
        waypoint::{
            Context, Role, attached,
            destination_rule::Traffic,
            endpoints,
            locality::Preference,
            message::{
                any, duration, json_bool, json_list, json_object, json_struct, json_text, number,
                seconds,
            },
            tcp,
        },
    },
    manifests::{TargetPort, networking::ClientTlsMode},
};

/// The cluster, unless its names would have to be looked up and there are none.
pub(super) fn cluster(context: &Context<'_>, to: &Destination<'_>) -> Option<Cluster> {
    let traffic = context.rules.traffic(to.host, to.port, to.subset, to.side());
    let traffic = match context.role {
        Role::Waypoint => traffic,
        // A gateway between networks does not take part in what is said to the service.
        Role::EastWest => Traffic { tls: None, proxy_protocol: None, ..traffic },
    };
    let name = to.name();
    let mut cluster = Cluster {
        alt_stat_name: format!("{name};"),
        metadata: Some(metadata(context, to, &traffic)),
        name,
        ..Cluster::default()
    };
    let preference = Preference::of(context, to.host, &traffic);
    balancing::apply(&mut cluster, &traffic, &preference);
    pool::apply(&mut cluster, context.config, &traffic, to.port, transport::names(&traffic));
    discover(context, to, &traffic, &mut cluster)?;
    let http2 = pool::is_http2(context.config, &traffic, to.port);
    match to.from {
        From::Chain(_) => {
            cluster.transport_socket = Some(transport::of_chain(context, &traffic, http2));
        }
        From::Route => {
            let identities = identities(context, to);
            cluster.transport_socket_matches = transport::of_route(to, &traffic, identities, http2);
            if context.client.has_istio_extensions() {
                cluster.filters = vec![Filter {
                    name: "istio.metadata_exchange".into(),
                    typed_config: Some(tcp::metadata_exchange()),
                    ..Filter::default()
                }];
            }
        }
    }
    Some(cluster)
}

/// Where the endpoints come from.
fn discover(
    context: &Context<'_>,
    to: &Destination<'_>,
    traffic: &Traffic<'_>,
    cluster: &mut Cluster,
) -> Option<()> {
    match to.host.resolution {
        Resolution::DynamicDns => below_wildcard(context, to.host, cluster),
        Resolution::Passthrough | Resolution::Headless => {
            balancing::passthrough(cluster);
            cluster.lb_config = overridden_port(to);
        }
        _ if traffic.is_passthrough() => {}
        Resolution::Endpoints => eds(cluster),
        Resolution::Dns => by_name(context, to, traffic, DiscoveryType::StrictDns, cluster)?,
        Resolution::DnsRoundRobin => {
            by_name(context, to, traffic, DiscoveryType::LogicalDns, cluster)?;
        }
    }
    Some(())
}

fn eds(cluster: &mut Cluster) {
    cluster.cluster_discovery_type = Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into()));
    cluster.eds_cluster_config = Some(EdsClusterConfig {
        service_name: cluster.name.clone(),
        eds_config: Some(ConfigSource {
            // Requests wait for endpoints rather than fail.
            initial_fetch_timeout: Some(seconds(0)),
            resource_api_version: ApiVersion::V3.into(),
            config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
            ..ConfigSource::default()
        }),
    });
}

#[expect(deprecated, reason = "the fields that proxies of all versions read")]
fn by_name(
    context: &Context<'_>,
    to: &Destination<'_>,
    traffic: &Traffic<'_>,
    how: DiscoveryType,
    cluster: &mut Cluster,
) -> Option<()> {
    let assignment = endpoints::assignment(context, to, traffic);
    if assignment.endpoints.iter().all(|locality| locality.lb_endpoints.is_empty()) {
        return None;
    }
    let resolver = CaresDnsResolverConfig {
        udp_max_queries: Some(number(100)),
        ..CaresDnsResolverConfig::default()
    };
    cluster.load_assignment = Some(assignment);
    cluster.cluster_discovery_type = Some(ClusterDiscoveryType::Type(how.into()));
    cluster.dns_lookup_family = dns_families(context).into();
    cluster.dns_refresh_rate = Some(duration(context.config.dns_refresh_rate.0));
    cluster.dns_jitter = Some(google::Duration { seconds: 0, nanos: 100_000_000 });
    cluster.respect_dns_ttl = true;
    cluster.typed_dns_resolver_config = Some(TypedExtensionConfig {
        name: "envoy.network.dns_resolver.cares".into(),
        typed_config: Some(any(&resolver)),
    });
    Some(())
}

/// Envoy looks up what each request or connection is for.
fn below_wildcard(context: &Context<'_>, host: &Host, cluster: &mut Cluster) {
    let config = ClusterConfig {
        cluster_implementation_specifier: Some(ClusterImplementationSpecifier::DnsCacheConfig(
            dns_cache(context, host),
        )),
        ..ClusterConfig::default()
    };
    cluster.lb_policy = LbPolicy::ClusterProvided.into();
    cluster.lb_config = None;
    cluster.common_lb_config = None;
    cluster.cluster_discovery_type = Some(ClusterDiscoveryType::ClusterType(CustomClusterType {
        name: "envoy.clusters.dynamic_forward_proxy".into(),
        typed_config: Some(any(&config)),
    }));
}

/// The port of the server, where it is not that of the service.
fn overridden_port(to: &Destination<'_>) -> Option<LbConfig> {
    let Origin::Entry(_) = to.host.origin else { return None };
    let TargetPort::Number(target) = &to.port.target else { return None };
    (target.get() != to.port.number).then(|| {
        LbConfig::OriginalDstLbConfig(OriginalDstLbConfig {
            upstream_port_override: Some(number(target.get().into())),
            ..OriginalDstLbConfig::default()
        })
    })
}

/// Whom a sidecar among the endpoints may be.
fn identities(context: &Context<'_>, to: &Destination<'_>) -> Vec<String> {
    let mut identities = to.host.subject_alt_names.clone();
    if identities.is_empty() {
        let endpoints = context.registry.endpoints(to.host);
        let accounts = endpoints.iter().filter(|endpoint| !endpoint.service_account.is_empty());
        identities.extend(accounts.map(|endpoint| {
            let domain = &context.config.trust_domain;
            format!("spiffe://{domain}/ns/{}/sa/{}", endpoint.namespace, endpoint.service_account)
        }));
    }
    identities.sort();
    identities.dedup();
    identities
}

/// What telemetry calls it, and where it was asked for.
fn metadata(context: &Context<'_>, to: &Destination<'_>, traffic: &Traffic<'_>) -> Metadata {
    let host = to.host;
    let service = json_struct(json_object([
        ("host", json_text(&*host.hostname)),
        ("name", json_text(attached::name(host))),
        ("namespace", json_text(&*host.meta.namespace)),
    ]));
    let mut istio = json_object([("services", json_list(vec![service]))]);
    let mut put = |key: &str, value| istio.fields.insert(key.to_owned(), value);
    if let Some(rule) = traffic.origin {
        put(
            "config",
            json_text(format!(
                "/apis/networking.istio.io/v1/namespaces/{}/destination-rule/{}",
                rule.namespace, rule.name
            )),
        );
    }
    match to.from {
        From::Chain(kind) => {
            let slash = if to.subset.is_empty() { "" } else { "/" };
            put("subset", json_text(format!("{}{slash}{}", kind.name(), to.subset)));
        }
        From::Route => {
            if !to.subset.is_empty() {
                put("subset", json_text(to.subset));
            } else if !host.external && context.client.has_istio_extensions() {
                // Workloads that are told apart by their addresses need no exchange of metadata.
                put("disable_mx", json_bool(true));
            }
            if host.external {
                put("external", json_bool(true));
            }
            let tls = traffic.tls.as_ref().map(|tls| tls.mode);
            if matches!(tls, Some(ClientTlsMode::Simple | ClientTlsMode::Mutual)) {
                put("alpn_override", json_text("false"));
            }
        }
    }
    let filter_metadata = [("istio".to_owned(), istio)];
    Metadata { filter_metadata: filter_metadata.into(), ..Metadata::default() }
}
