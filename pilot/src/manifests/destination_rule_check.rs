//! The limits on DestinationRules that their schema does not state.
//!
//! In: a DestinationRule. Out: problems. In one that passes, every setting has a meaning, and no proxy refuses the
//! clusters made of it.

use std::collections::HashSet;

use super::{
    Duration,
    document::{Report, is_dns_name},
    http_check::{duration_fault, header_name_fault},
    networking::{
        ClientTls, ClientTlsMode, ConnectionPool, ConsistentHash, DestinationRule, LoadBalancer,
        LocalityBalancing, OutlierDetection, SimpleBalancer, TrafficPolicy,
    },
    virtual_service_check::{fault, limit},
};

/// Of a ring or a table of hosts.
const MAX_HASH_TABLE: u64 = 8_388_608;
const MAX_MAGLEV_TABLE: u64 = 5_000_011;

pub(super) fn destination_rule(of: &DestinationRule, report: &mut Report<'_>) {
    if of.host.is_empty() {
        report.error("spec.host", "missing");
    } else if of.host.rfind('*').is_some_and(|at| at > 0) {
        let reason = format!("`{}`: `*` can stand at the beginning only", of.host);
        report.error("spec.host", reason);
    }
    if let Some(policy) = &of.traffic_policy {
        traffic_policy(policy, "spec.trafficPolicy", report);
    }
    let mut seen = HashSet::new();
    for (i, subset) in of.subsets.iter().enumerate() {
        let field = format!("spec.subsets[{i}]");
        if !is_dns_name(&subset.name) || subset.name.contains('.') {
            report.error(&format!("{field}.name"), format!("`{}` is no DNS label", subset.name));
        } else if !seen.insert(&subset.name) {
            report.error(&format!("{field}.name"), format!("`{}` stands there twice", subset.name));
        }
        if let Some(policy) = &subset.traffic_policy {
            traffic_policy(policy, &format!("{field}.trafficPolicy"), report);
        }
    }
}

fn traffic_policy(of: &TrafficPolicy, field: &str, report: &mut Report<'_>) {
    let settings = (&of.load_balancer, &of.connection_pool, &of.outlier_detection, &of.tls);
    check_settings(settings, field, report);
    for (i, port) in of.port_level_settings.iter().enumerate() {
        let field = format!("{field}.portLevelSettings[{i}]");
        let number = port.port.as_ref().map_or(0, |port| port.number);
        if !(1..=65535).contains(&number) {
            report.error(
                &format!("{field}.port.number"),
                format!("{number} is no port (1 to 65535)"),
            );
        }
        let settings =
            (&port.load_balancer, &port.connection_pool, &port.outlier_detection, &port.tls);
        check_settings(settings, &field, report);
    }
    if let Some(tunnel) = &of.tunnel {
        let field = format!("{field}.tunnel");
        if of.proxy_protocol.is_some() {
            report.error(&field, "only one of tunnel and proxyProtocol can be set");
        }
        if !matches!(tunnel.protocol.as_str(), "" | "CONNECT" | "POST") {
            let reason = format!("`{}` is neither CONNECT nor POST", tunnel.protocol);
            report.error(&format!("{field}.protocol"), reason);
        }
        if tunnel.target_host.is_empty() {
            report.error(&format!("{field}.targetHost"), "missing");
        }
        if !(1..=65535).contains(&tunnel.target_port) {
            let reason = format!("{} is no port (1 to 65535)", tunnel.target_port);
            report.error(&format!("{field}.targetPort"), reason);
        }
    }
    if let Some(budget) = &of.retry_budget {
        let wrong = budget.percent.filter(|percent| !(0.0..=100.0).contains(percent));
        if let Some(percent) = wrong {
            let reason = format!("{percent} is not from 0 to 100");
            report.error(&format!("{field}.retryBudget.percent"), reason);
        }
    }
}

type Settings<'a> = (
    &'a Option<LoadBalancer>,
    &'a Option<ConnectionPool>,
    &'a Option<OutlierDetection>,
    &'a Option<ClientTls>,
);

fn check_settings(of: Settings<'_>, field: &str, report: &mut Report<'_>) {
    let (balancer, pool, outliers, tls) = of;
    if let Some(of) = balancer {
        load_balancer(of, &format!("{field}.loadBalancer"), report);
    }
    if let Some(of) = pool {
        connection_pool(of, &format!("{field}.connectionPool"), report);
    }
    if let Some(of) = outliers {
        outlier_detection(of, &format!("{field}.outlierDetection"), report);
    }
    if let Some(of) = tls {
        client_tls(of, &format!("{field}.tls"), report);
    }
}

fn load_balancer(of: &LoadBalancer, field: &str, report: &mut Report<'_>) {
    if of.simple.is_some() && of.consistent_hash.is_some() {
        report.error(field, "only one of simple and consistentHash can be set");
    }
    if let Some(hash) = &of.consistent_hash {
        consistent_hash(hash, &format!("{field}.consistentHash"), report);
    }
    if let Some(locality) = &of.locality_lb_setting {
        locality_balancing(locality, &format!("{field}.localityLbSetting"), report);
    }
    let warms = of.warmup.is_some() || of.warmup_duration_secs.is_some();
    let can_warm = of.consistent_hash.is_none()
        && matches!(
            of.simple.unwrap_or_default(),
            SimpleBalancer::Unspecified
                | SimpleBalancer::RoundRobin
                | SimpleBalancer::LeastRequest
                | SimpleBalancer::LeastConn
        );
    if warms && !can_warm {
        report.error(&format!("{field}.warmup"), "only with ROUND_ROBIN or LEAST_REQUEST");
    }
    if let Some(warmup) = &of.warmup {
        let field = format!("{field}.warmup");
        match warmup.duration {
            Some(duration) => fault(duration_fault(duration), &format!("{field}.duration"), report),
            None => report.error(&format!("{field}.duration"), "missing"),
        }
        let percent = warmup.minimum_percent.filter(|percent| !(0.0..=100.0).contains(percent));
        if let Some(percent) = percent {
            let reason = format!("{percent} is not from 0 to 100");
            report.error(&format!("{field}.minimumPercent"), reason);
        }
        let aggression = warmup.aggression.filter(|aggression| *aggression < 1.0);
        if let Some(aggression) = aggression {
            report.error(&format!("{field}.aggression"), format!("{aggression} is less than 1"));
        }
    }
}

fn consistent_hash(of: &ConsistentHash, field: &str, report: &mut Report<'_>) {
    let keys = [
        of.http_header_name.is_some(),
        of.http_cookie.is_some(),
        of.use_source_ip == Some(true),
        of.http_query_parameter_name.is_some(),
    ];
    if keys.iter().filter(|set| **set).count() != 1 {
        let reason =
            "needs one of httpHeaderName, httpCookie, useSourceIp and httpQueryParameterName";
        report.error(field, reason);
    }
    if let Some(name) = &of.http_header_name {
        fault(header_name_fault(name), &format!("{field}.httpHeaderName"), report);
    }
    if of.http_cookie.as_ref().is_some_and(|cookie| cookie.name.is_empty()) {
        report.error(&format!("{field}.httpCookie.name"), "missing");
    }
    if of.ring_hash.is_some() && of.maglev.is_some() {
        report.error(field, "only one of ringHash and maglev can be set");
    }
    let ring = of.ring_hash.as_ref().map_or(of.minimum_ring_size, |ring| ring.minimum_ring_size);
    if ring > MAX_HASH_TABLE {
        let reason = format!("{ring} is more than {MAX_HASH_TABLE}");
        report.error(&format!("{field}.ringHash.minimumRingSize"), reason);
    }
    let table = of.maglev.as_ref().map(|maglev| maglev.table_size).filter(|size| *size > 0);
    if let Some(size) = table.filter(|size| *size > MAX_MAGLEV_TABLE || !is_prime(*size)) {
        let reason = format!("{size} is no prime number up to {MAX_MAGLEV_TABLE}");
        report.error(&format!("{field}.maglev.tableSize"), reason);
    }
}

/// Of a number within the bound of a table.
fn is_prime(of: u64) -> bool {
    of > 1 && (2..).take_while(|n| n * n <= of).all(|n| !of.is_multiple_of(n))
}

fn locality_balancing(of: &LocalityBalancing, field: &str, report: &mut Report<'_>) {
    let ways = [!of.distribute.is_empty(), !of.failover.is_empty()];
    if ways.iter().all(|set| *set) {
        report.error(field, "only one of distribute and failover can be set");
    }
    if !of.distribute.is_empty() && !of.failover_priority.is_empty() {
        report.error(field, "only one of distribute and failoverPriority can be set");
    }
    let mut seen = HashSet::new();
    for (i, one) in of.distribute.iter().enumerate() {
        let field = format!("{field}.distribute[{i}]");
        if !seen.insert(&one.from) {
            report.error(&format!("{field}.from"), format!("`{}` stands there twice", one.from));
        }
        let sum: u64 = one.to.values().copied().map(u64::from).sum();
        if sum != 100 {
            report
                .error(&format!("{field}.to"), format!("the weights add up to {sum}, not to 100"));
        }
    }
    for (i, one) in of.failover.iter().enumerate() {
        if one.from == one.to {
            let reason = format!("`{}` is the region that fails", one.to);
            report.error(&format!("{field}.failover[{i}].to"), reason);
        }
    }
}

fn connection_pool(of: &ConnectionPool, field: &str, report: &mut Report<'_>) {
    if let Some(tcp) = &of.tcp {
        let field = format!("{field}.tcp");
        negative(tcp.max_connections, &format!("{field}.maxConnections"), report);
        limit(tcp.connect_timeout, &format!("{field}.connectTimeout"), report);
        limit(tcp.max_connection_duration, &format!("{field}.maxConnectionDuration"), report);
        milliseconds(tcp.idle_timeout, &format!("{field}.idleTimeout"), report);
    }
    if let Some(http) = &of.http {
        let field = format!("{field}.http");
        for (name, value) in [
            ("http1MaxPendingRequests", http.http1_max_pending_requests),
            ("http2MaxRequests", http.http2_max_requests),
            ("maxRequestsPerConnection", http.max_requests_per_connection),
            ("maxRetries", http.max_retries),
            ("maxConcurrentStreams", http.max_concurrent_streams),
        ] {
            negative(value, &format!("{field}.{name}"), report);
        }
        milliseconds(http.idle_timeout, &format!("{field}.idleTimeout"), report);
    }
}

fn negative(value: i32, field: &str, report: &mut Report<'_>) {
    if value < 0 {
        report.error(field, format!("{value} is negative"));
    }
}

/// A span that may be none at all, which stands for no limit.
fn milliseconds(of: Option<Duration>, field: &str, report: &mut Report<'_>) {
    limit(of.filter(|of| !of.0.is_zero()), field, report);
}

fn outlier_detection(of: &OutlierDetection, field: &str, report: &mut Report<'_>) {
    limit(of.interval, &format!("{field}.interval"), report);
    limit(of.base_ejection_time, &format!("{field}.baseEjectionTime"), report);
    for (name, value) in [
        ("maxEjectionPercent", of.max_ejection_percent),
        ("minHealthPercent", of.min_health_percent),
    ] {
        if !(0..=100).contains(&value) {
            report.error(&format!("{field}.{name}"), format!("{value} is not from 0 to 100"));
        }
    }
    negative(of.consecutive_errors, &format!("{field}.consecutiveErrors"), report);
    if of.consecutive_local_origin_failures.is_some() && !of.split_external_local_origin_errors {
        let reason = "has no effect without splitExternalLocalOriginErrors";
        report.warning(&format!("{field}.consecutiveLocalOriginFailures"), reason);
    }
}

fn client_tls(of: &ClientTls, field: &str, report: &mut Report<'_>) {
    let files = [&of.client_certificate, &of.private_key];
    let has_files = files.iter().any(|file| !file.is_empty());
    match of.mode {
        ClientTlsMode::Mutual if of.credential_name.is_empty() => {
            for (name, file) in ["clientCertificate", "privateKey"].into_iter().zip(files) {
                if file.is_empty() {
                    let reason = "missing: mode MUTUAL needs it, or a credentialName";
                    report.error(&format!("{field}.{name}"), reason);
                }
            }
        }
        ClientTlsMode::Mutual if has_files => {
            report.error(field, "only one of credentialName and files can be set");
        }
        ClientTlsMode::IstioMutual => {
            let given = [has_files, !of.ca_certificates.is_empty(), !of.credential_name.is_empty()];
            if given.contains(&true) {
                report.error(field, "mode ISTIO_MUTUAL brings its own certificates");
            }
        }
        ClientTlsMode::Mutual | ClientTlsMode::Simple | ClientTlsMode::Disable => {}
    }
}
