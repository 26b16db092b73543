//! DestinationRules that are not followed, or not as they read.
//!
//! In: DestinationRules, and the hosts they are for. Out: findings.

use std::sync::Arc;

use super::{Code, Findings, references::is_exported, view::View};
use crate::{
    compile::{peer_authentication::Modes, registry::Member},
    manifests::{
        Object,
        networking::{ClientTlsMode, DestinationRule, TrafficPolicy},
    },
};

pub(super) fn find(view: &View<'_>, findings: &mut Findings) {
    let modes = Modes::of(&view.manifests.peer_authentications, view.config);
    let mut rules: Vec<_> = view.manifests.destination_rules.iter().collect();
    rules.sort_by_key(|rule| rule.meta.seniority());
    for (i, rule) in rules.iter().enumerate() {
        guarded(view, rule, findings);
        subsets(view, rule, findings);
        plain(view, rule, &modes, findings);
        if let Some(policy) = &rule.spec.traffic_policy {
            port_replaces(rule, policy, "spec.trafficPolicy", findings);
        }
        for (j, subset) in rule.spec.subsets.iter().enumerate() {
            if let Some(policy) = &subset.traffic_policy {
                let field = format!("spec.subsets[{j}].trafficPolicy");
                port_replaces(rule, policy, &field, findings);
            }
        }
        second(view, rule, &rules[..i], findings);
    }
}

/// Only waypoints connect as a DestinationRule says: the host's own, or one whose routes lead to the host.
fn guarded(view: &View<'_>, rule: &Object<DestinationRule>, findings: &mut Findings) {
    let hosts = view.matching(&view.full_name(&rule.spec.host, &rule.meta.namespace));
    if hosts.is_empty() {
        return;
    }
    let guards: Vec<_> = hosts.iter().filter_map(|host| view.guard(host)).collect();
    let led_to = |hostname: &str| {
        let of_routes = super::routes::all(view.manifests);
        let by_routes = of_routes.iter().any(|route| {
            let mut backends = route.rules.iter().flat_map(|rule| &rule.backends);
            backends.any(|(_, backend)| {
                crate::compile::route_rules::backend_host(
                    backend,
                    route.meta,
                    &view.config.cluster_domain,
                )
                .is_some_and(|host| host == hostname)
            })
        });
        by_routes
            || view.manifests.virtual_services.iter().any(|service| {
                let all = super::references::destinations(&service.spec);
                all.iter()
                    .any(|(_, to)| view.full_name(&to.host, &service.meta.namespace) == hostname)
            })
            || view.config.extension_providers.iter().any(|provider| {
                provider.kind.service().is_some_and(|(service, _)| service.ends_with(hostname))
            })
    };
    if guards.is_empty() {
        if !hosts.iter().any(|host| led_to(&host.hostname)) {
            let reason = format!("no waypoint connects to {}", hosts[0].hostname);
            findings.add(Code::RuleWithoutWaypoint, &rule.meta, "spec.host", reason);
        }
        return;
    }
    let own = &*rule.meta.namespace;
    let exported =
        guards.iter().any(|guard| is_exported(&rule.spec.export_to, own, &guard.meta.namespace));
    if !exported {
        let reason = format!("namespace {} is not among them", guards[0].meta.namespace);
        findings.add(Code::NotExported, &rule.meta, "spec.exportTo", reason);
        return;
    }
    let counts = guards.iter().any(|guard| {
        let of_hosts = hosts.iter().any(|host| *host.meta.namespace == *own);
        of_hosts || *guard.meta.namespace == *own || own == view.config.root_namespace.as_str()
    });
    if !counts {
        let reason = format!("{} and its waypoint are of other namespaces", hosts[0].hostname);
        findings.add(Code::ForeignRoute, &rule.meta, "spec.host", reason);
    }
}

fn subsets(view: &View<'_>, rule: &Object<DestinationRule>, findings: &mut Findings) {
    let hosts = view.matching(&view.full_name(&rule.spec.host, &rule.meta.namespace));
    let members: Vec<_> = hosts.iter().flat_map(|host| view.registry.members(host)).collect();
    if members.is_empty() || !view.has_pods() {
        return;
    }
    for (i, subset) in rule.spec.subsets.iter().enumerate() {
        let has = |member: &Member| {
            let labels = member.labels();
            subset.labels.iter().all(|(key, value)| labels.get(key) == Some(value))
        };
        if !members.iter().copied().any(has) {
            let field = format!("spec.subsets[{i}].labels");
            let reason = format!("`{}`: nothing behind {} has them", subset.name, rule.spec.host);
            findings.add(Code::NothingInSubset, &rule.meta, &field, reason);
        }
    }
}

/// What a port says stands in the place of what is said for all.
fn port_replaces(
    rule: &Object<DestinationRule>,
    policy: &TrafficPolicy,
    field: &str,
    findings: &mut Findings,
) {
    for (i, port) in policy.port_level_settings.iter().enumerate() {
        let lost = [
            ("loadBalancer", policy.load_balancer.is_some() && port.load_balancer.is_none()),
            ("connectionPool", policy.connection_pool.is_some() && port.connection_pool.is_none()),
            (
                "outlierDetection",
                policy.outlier_detection.is_some() && port.outlier_detection.is_none(),
            ),
            ("tls", policy.tls.is_some() && port.tls.is_none()),
        ];
        let lost: Vec<_> = lost.iter().filter(|(_, lost)| *lost).map(|(name, _)| *name).collect();
        if !lost.is_empty() {
            let field = format!("{field}.portLevelSettings[{i}]");
            let reason = format!("the port has no {} then", lost.join(", "));
            findings.add(Code::PortReplaces, &rule.meta, &field, reason);
        }
    }
}

/// In an ambient mesh nobody connects in plain text who can do otherwise.
fn plain(view: &View<'_>, rule: &Object<DestinationRule>, modes: &Modes, findings: &mut Findings) {
    let hosts = view.matching(&view.full_name(&rule.spec.host, &rule.meta.namespace));
    let members = hosts.iter().flat_map(|host| view.registry.members(host));
    let strict = members.into_iter().any(|member| match member {
        Member::Pod(pod) | Member::Listed(pod, ..) => {
            modes.policy_for(&pod.meta.namespace, &pod.meta.labels).is_some()
        }
        Member::Foreign(..) | Member::Entry(_) | Member::Inline(..) | Member::Name(_) => false,
    });
    if !strict {
        return;
    }
    for (field, tls) in super::secrets::client_tls(&rule.spec) {
        if tls.mode == ClientTlsMode::Disable {
            let reason = "a PeerAuthentication of its pods says STRICT";
            findings.add(Code::PlainButStrict, &rule.meta, &format!("{field}.mode"), reason);
        }
    }
}

/// Of two rules of a namespace for one host, the older one's policy and its subsets count.
fn second(
    view: &View<'_>,
    rule: &Object<DestinationRule>,
    before: &[&Arc<Object<DestinationRule>>],
    findings: &mut Findings,
) {
    let name =
        |rule: &Object<DestinationRule>| view.full_name(&rule.spec.host, &rule.meta.namespace);
    let same = before.iter().filter(|other| {
        other.meta.namespace == rule.meta.namespace
            && name(other) == name(rule)
            && other.spec.workload_selector == rule.spec.workload_selector
    });
    for first in same {
        let title = first.meta.title();
        if first.spec.export_to != rule.spec.export_to {
            let reason = format!("{title} is for the same host: it alone counts");
            findings.add(Code::SecondPolicy, &rule.meta, "spec.host", reason);
            return;
        }
        if first.spec.traffic_policy.is_some() && rule.spec.traffic_policy.is_some() {
            let reason = format!("that of {title} counts whole");
            findings.add(Code::SecondPolicy, &rule.meta, "spec.trafficPolicy", reason);
        }
        for (i, subset) in rule.spec.subsets.iter().enumerate() {
            if first.spec.subsets.iter().any(|one| one.name == subset.name) {
                let field = format!("spec.subsets[{i}].name");
                let reason = format!("`{}` is that of {title}", subset.name);
                findings.add(Code::SecondPolicy, &rule.meta, &field, reason);
            }
        }
    }
}
