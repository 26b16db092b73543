//! How an endpoint is chosen, and when one is left alone.
//!
//! In: the load balancer and the outlier detection that rules ask for. Out: what stands in a cluster for them.

use proto::envoy::envoy::{
    config::{
        cluster::v3::{
            Cluster, OutlierDetection,
            cluster::{
                ClusterDiscoveryType, CommonLbConfig, DiscoveryType, LbConfig, LbPolicy,
                LeastRequestLbConfig, MaglevLbConfig, RingHashLbConfig, RoundRobinLbConfig,
                SlowStartConfig,
                common_lb_config::{LocalityConfigSpecifier, LocalityWeightedLbConfig},
            },
        },
        core::v3::RuntimeDouble,
    },
    r#type::v3::Percent,
};
use proto::google::{UInt32Value, UInt64Value};

use crate::{
    compile::waypoint::{
        destination_rule::Traffic,
        locality::Preference,
        message::{duration, number},
    },
    manifests::{
        Duration,
        networking::{self, ConsistentHash, LoadBalancer, SimpleBalancer, Warmup},
    },
};

/// The key of settings that no runtime sets: Envoy wants one.
const UNSET: &str = "istio.io/unset";
/// What a ring has at least, if nobody says.
const RING_SIZE: u64 = 1024;

/// Puts into a cluster what is asked for, or the defaults.
pub(super) fn apply(cluster: &mut Cluster, traffic: &Traffic<'_>, preference: &Preference<'_>) {
    let mut common = CommonLbConfig {
        // Endpoints that are not healthy are sent, and must not be taken because there are many of them.
        healthy_panic_threshold: Some(Percent::default()),
        ..CommonLbConfig::default()
    };
    if preference.is_weighted() {
        let weighted = LocalityWeightedLbConfig::default();
        common.locality_config_specifier =
            Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(weighted));
    }
    if let Some(outlier) = traffic.outlier_detection {
        cluster.outlier_detection = Some(outlier_detection(outlier));
        let healthy = f64::from(outlier.min_health_percent.max(0));
        common.healthy_panic_threshold = Some(Percent { value: healthy });
    }
    cluster.common_lb_config = Some(common);
    cluster.lb_policy = LbPolicy::LeastRequest.into();
    if let Some(balancer) = traffic.load_balancer {
        balance(cluster, balancer);
    }
}

fn balance(cluster: &mut Cluster, balancer: &LoadBalancer) {
    if let Some(hash) = &balancer.consistent_hash {
        consistent(cluster, hash);
        return;
    }
    let slow_start = slow_start(balancer);
    match balancer.simple.unwrap_or_default() {
        SimpleBalancer::Unspecified | SimpleBalancer::LeastConn | SimpleBalancer::LeastRequest => {
            cluster.lb_config = slow_start.map(|slow_start| {
                LbConfig::LeastRequestLbConfig(LeastRequestLbConfig {
                    slow_start_config: Some(slow_start),
                    ..LeastRequestLbConfig::default()
                })
            });
        }
        SimpleBalancer::RoundRobin => {
            cluster.lb_policy = LbPolicy::RoundRobin.into();
            cluster.lb_config = slow_start.map(|slow_start| {
                let slow_start_config = Some(slow_start);
                LbConfig::RoundRobinLbConfig(RoundRobinLbConfig { slow_start_config })
            });
        }
        SimpleBalancer::Random => cluster.lb_policy = LbPolicy::Random.into(),
        SimpleBalancer::Passthrough => passthrough(cluster),
    }
}

/// Goes where the connection was going.
pub(super) fn passthrough(cluster: &mut Cluster) {
    cluster.lb_policy = LbPolicy::ClusterProvided.into();
    cluster.cluster_discovery_type =
        Some(ClusterDiscoveryType::Type(DiscoveryType::OriginalDst.into()));
    cluster.eds_cluster_config = None;
    cluster.load_assignment = None;
}

fn consistent(cluster: &mut Cluster, hash: &ConsistentHash) {
    if let Some(maglev) = &hash.maglev {
        cluster.lb_policy = LbPolicy::Maglev.into();
        let table_size =
            (maglev.table_size > 0).then_some(UInt64Value { value: maglev.table_size });
        cluster.lb_config = table_size
            .map(|size| LbConfig::MaglevLbConfig(MaglevLbConfig { table_size: Some(size) }));
        return;
    }
    let asked =
        hash.ring_hash.as_ref().map_or(hash.minimum_ring_size, |ring| ring.minimum_ring_size);
    let size = if asked > 0 { asked } else { RING_SIZE };
    cluster.lb_policy = LbPolicy::RingHash.into();
    cluster.lb_config = Some(LbConfig::RingHashLbConfig(RingHashLbConfig {
        minimum_ring_size: Some(UInt64Value { value: size }),
        ..RingHashLbConfig::default()
    }));
}

/// An endpoint that is new gets its share little by little.
fn slow_start(balancer: &LoadBalancer) -> Option<SlowStartConfig> {
    let seconds = balancer.warmup_duration_secs;
    let deprecated =
        seconds.map(|duration| Warmup { duration: Some(duration), ..Warmup::default() });
    let warmup = balancer.warmup.as_ref().or(deprecated.as_ref())?;
    Some(SlowStartConfig {
        slow_start_window: warmup.duration.map(|window: Duration| duration(window.0)),
        aggression: warmup
            .aggression
            .map(|default_value| RuntimeDouble { default_value, runtime_key: UNSET.into() }),
        min_weight_percent: warmup.minimum_percent.map(|value| Percent { value }),
    })
}

fn outlier_detection(of: &networking::OutlierDetection) -> OutlierDetection {
    let enforcing = |failures: UInt32Value| number(if failures.value > 0 { 100 } else { 0 });
    let errors = of.consecutive_5xx_errors.map(number);
    let deprecated = u32::try_from(of.consecutive_errors).ok().filter(|errors| *errors > 0);
    let gateway = of.consecutive_gateway_errors.or(deprecated).map(number);
    let split = of.split_external_local_origin_errors;
    let local = of.consecutive_local_origin_failures.filter(|failures| split && *failures > 0);
    let share = u32::try_from(of.max_ejection_percent).ok().filter(|percent| *percent > 0);
    OutlierDetection {
        // By the share of failures, all of a service's endpoints would be measured against each other.
        enforcing_success_rate: Some(number(0)),
        enforcing_local_origin_success_rate: split.then(|| number(0)),
        consecutive_5xx: errors,
        enforcing_consecutive_5xx: errors.map(enforcing),
        consecutive_gateway_failure: gateway,
        enforcing_consecutive_gateway_failure: gateway.map(enforcing),
        split_external_local_origin_errors: split,
        consecutive_local_origin_failure: local.map(number),
        enforcing_consecutive_local_origin_failure: local.map(number).map(enforcing),
        interval: of.interval.map(|interval| duration(interval.0)),
        base_ejection_time: of.base_ejection_time.map(|base| duration(base.0)),
        max_ejection_percent: share.map(number),
        ..OutlierDetection::default()
    }
}
