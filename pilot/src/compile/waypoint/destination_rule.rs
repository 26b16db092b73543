//! What DestinationRules and BackendTLSPolicies say of connections to a host.
//!
//! In: both kinds, and for whom they are read. Out: the one rule of a host with its subsets, and what it says of a
//! port and a subset once all levels are laid over each other ([`Traffic`]). Builds nothing.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use crate::{
    compile::{
        MeshConfig,
        registry::{Host, Port},
    },
    manifests::{
        ConfigMap, Labels, Manifests, Meta, Object,
        gateway_api::BackendTlsPolicy,
        networking::{
            ClientTls, ClientTlsMode, ConnectionPool, DestinationRule, LoadBalancer,
            OutlierDetection, RetryBudget, SimpleBalancer, Subset, TrafficPolicy, Tunnel,
            UpstreamProxyProtocol,
        },
    },
};

/// The rules that count for one client.
pub(crate) struct Rules<'a> {
    client_namespace: String,
    client_labels: Labels,
    root_namespace: &'a str,
    /// By namespace, the most specific host first.
    by_namespace: BTreeMap<&'a str, Vec<Rule<'a>>>,
    tls_policies: Vec<&'a Object<BackendTlsPolicy>>,
    config_maps: &'a [Arc<Object<ConfigMap>>],
}

/// Rules of one host and namespace that are seen by the same, as one.
struct Rule<'a> {
    host: String,
    export_to: &'a [String],
    /// Of which pods of its own namespace it is the rule; of all if there is none.
    selector: Option<&'a Labels>,
    meta: &'a Meta,
    policy: Option<&'a TrafficPolicy>,
    subsets: Vec<&'a Subset>,
}

/// From which side a host is connected to: a rule for certain clients is none of what a waypoint does for all.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Side {
    /// By the waypoint before it.
    Inbound,
    /// By a waypoint whose routes lead elsewhere.
    Outbound,
}

/// What is said of connections to one port of a host, or to one subset of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Traffic<'a> {
    /// How endpoints are chosen.
    pub load_balancer: Option<&'a LoadBalancer>,
    /// How many connections there are, and for how long.
    pub connection_pool: Option<&'a ConnectionPool>,
    /// When endpoints are left alone.
    pub outlier_detection: Option<&'a OutlierDetection>,
    /// What TLS the endpoints speak, within the mesh's own.
    pub tls: Option<Cow<'a, ClientTls>>,
    /// Whom their certificates must be from, where a BackendTLSPolicy says so.
    pub roots: Option<Roots<'a>>,
    /// A proxy that connections go through.
    pub tunnel: Option<&'a Tunnel>,
    /// The header that connections begin with.
    pub proxy_protocol: Option<&'a UpstreamProxyProtocol>,
    /// How many retries there may be.
    pub retry_budget: Option<&'a RetryBudget>,
    /// The rule that says so.
    pub origin: Option<&'a Meta>,
    /// The policy that says whom certificates must be from.
    pub tls_origin: Option<&'a Meta>,
}

/// Roots that a BackendTLSPolicy names.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Roots<'a> {
    /// PEM, of a ConfigMap.
    Given(&'a str),
    /// The ConfigMap is not there, or has none: nobody is to be believed.
    Missing,
}

impl<'a> Rules<'a> {
    /// Of all that a client with these labels in this namespace may see.
    pub(crate) fn of(
        manifests: &'a Manifests,
        config: &'a MeshConfig,
        client_namespace: &str,
        client_labels: &Labels,
    ) -> Self {
        let mut all: Vec<&Arc<Object<DestinationRule>>> =
            manifests.destination_rules.iter().collect();
        all.sort_by_key(|rule| rule.meta.seniority());
        let mut by_namespace: BTreeMap<&str, Vec<Rule<'_>>> = BTreeMap::new();
        for rule in all {
            let of_namespace = by_namespace.entry(&rule.meta.namespace).or_default();
            add(of_namespace, rule, config);
        }
        for rules in by_namespace.values_mut() {
            // Exact hosts before wildcards, longer ones before shorter ones: the most specific one is found first.
            rules.sort_by_key(|rule| {
                (rule.host.starts_with('*'), std::cmp::Reverse(rule.host.len()))
            });
        }
        let mut tls_policies: Vec<_> =
            manifests.backend_tls_policies.iter().map(|policy| &**policy).collect();
        tls_policies.sort_by_key(|policy| policy.meta.seniority());
        Self {
            client_namespace: client_namespace.to_owned(),
            client_labels: client_labels.clone(),
            root_namespace: &config.root_namespace,
            by_namespace,
            tls_policies,
            config_maps: &manifests.config_maps,
        }
    }

    /// The subsets of a host, the first of each name.
    pub(crate) fn subsets(&self, host: &Host, side: Side) -> Vec<&'a Subset> {
        self.rule(host, side).map(|rule| rule.subsets.clone()).unwrap_or_default()
    }

    /// What is said of connections to a port, or to a subset of it; an empty name is none.
    pub(super) fn traffic(
        &self,
        host: &Host,
        port: &Port,
        subset: &str,
        side: Side,
    ) -> Traffic<'a> {
        let mut traffic = Traffic::default();
        if let Some(rule) = self.rule(host, side) {
            traffic.origin = Some(rule.meta);
            traffic.lay_over(rule.policy, port);
            let subset = rule.subsets.iter().find(|candidate| candidate.name == subset);
            traffic.lay_over(subset.and_then(|subset| subset.traffic_policy.as_ref()), port);
        }
        if traffic.tls.is_none()
            && let Some(policy) = self.tls_policy(host, port)
        {
            traffic.tls = Some(Cow::Owned(client_tls(&policy.spec)));
            traffic.roots = self.roots(policy);
            traffic.tls_origin = Some(&policy.meta);
        }
        traffic
    }

    /// The first namespace that has a rule for the host decides: the client's, the host's, the mesh's.
    fn rule(&self, host: &Host, side: Side) -> Option<&Rule<'a>> {
        let namespaces = [&*self.client_namespace, &*host.meta.namespace, self.root_namespace];
        namespaces.into_iter().find_map(|namespace| {
            let rules = self.by_namespace.get(namespace)?;
            let own = namespace == self.client_namespace;
            let matching = rules.iter().filter(|rule| {
                is_host(&rule.host, &host.hostname)
                    && (own || is_exported(rule.export_to, namespace, &self.client_namespace))
            });
            let selected = matching.clone().find(|rule| {
                side == Side::Outbound
                    && own
                    && rule.selector.is_some_and(|wanted| is_subset(wanted, &self.client_labels))
            });
            selected.or_else(|| matching.clone().find(|rule| rule.selector.is_none()))
        })
    }

    /// The oldest policy of a host's port; one that names the port stands before one that names none.
    fn tls_policy(&self, host: &Host, port: &Port) -> Option<&'a Object<BackendTlsPolicy>> {
        let of_host = |section: Option<&str>| {
            let mut policies = self.tls_policies.iter().filter(|policy| {
                policy.meta.namespace == host.meta.namespace
                    && policy.spec.target_refs.iter().any(|target| {
                        target.kind == host.meta.kind
                            && *target.name == *host.meta.name
                            && target.section_name.as_deref() == section
                    })
            });
            policies.next()
        };
        of_host(Some(&port.name)).or_else(|| of_host(None)).copied()
    }

    /// None are the system's.
    fn roots(&self, policy: &'a Object<BackendTlsPolicy>) -> Option<Roots<'a>> {
        let reference = policy.spec.validation.ca_certificate_refs.first()?;
        let mut maps = self.config_maps.iter();
        let map = maps.find(|map| {
            map.meta.namespace == policy.meta.namespace
                && *map.meta.name == *reference.name
                && reference.kind == "ConfigMap"
        });
        let pem = map.and_then(|map| map.spec.data.get("ca.crt"));
        Some(pem.map_or(Roots::Missing, |pem| Roots::Given(pem)))
    }

    /// The labels that endpoints of a subset have.
    pub(super) fn subset_labels(&self, host: &Host, subset: &str, side: Side) -> &'a Labels {
        const NONE: &Labels = &Labels::new();
        let mut subsets = self.rule(host, side).into_iter().flat_map(|rule| &rule.subsets);
        let subset = subsets.find(|candidate| !subset.is_empty() && candidate.name == subset);
        subset.map_or(NONE, |subset| &subset.labels)
    }
}

impl<'a> Traffic<'a> {
    /// Whether connections go where they were going.
    pub(super) fn is_passthrough(&self) -> bool {
        let simple = self.load_balancer.and_then(|balancer| balancer.simple);
        simple == Some(SimpleBalancer::Passthrough)
    }

    /// What a more specific level says counts; what it says of a port counts whole.
    fn lay_over(&mut self, policy: Option<&'a TrafficPolicy>, port: &Port) {
        let Some(policy) = policy else { return };
        self.load_balancer = policy.load_balancer.as_ref().or(self.load_balancer);
        self.connection_pool = policy.connection_pool.as_ref().or(self.connection_pool);
        self.outlier_detection = policy.outlier_detection.as_ref().or(self.outlier_detection);
        self.tls = policy.tls.as_ref().map(Cow::Borrowed).or(self.tls.take());
        self.tunnel = policy.tunnel.as_ref().or(self.tunnel);
        self.proxy_protocol = policy.proxy_protocol.as_ref().or(self.proxy_protocol);
        self.retry_budget = policy.retry_budget.as_ref().or(self.retry_budget);
        let mut of_ports = policy.port_level_settings.iter();
        let of_port = of_ports.find(|settings| {
            settings.port.as_ref().is_some_and(|of| of.number == u32::from(port.number))
        });
        if let Some(settings) = of_port {
            self.load_balancer = settings.load_balancer.as_ref();
            self.connection_pool = settings.connection_pool.as_ref();
            self.outlier_detection = settings.outlier_detection.as_ref();
            self.tls = settings.tls.as_ref().map(Cow::Borrowed);
        }
    }
}

/// Rules of the same host that the same may see are one: the subsets of all, and the first policy.
fn add<'a>(rules: &mut Vec<Rule<'a>>, rule: &'a Object<DestinationRule>, config: &'a MeshConfig) {
    let Object { meta, spec } = rule;
    let host = full_host(&spec.host, &meta.namespace, &config.cluster_domain);
    let export_to = match &*spec.export_to {
        [] => &*config.default_destination_rule_export_to,
        own => own,
    };
    let selector = spec.workload_selector.as_ref();
    let selector = selector.and_then(|selector| selector.match_labels.as_ref());
    let same = |other: &&mut Rule<'_>| {
        other.host == host && other.export_to == export_to && other.selector == selector
    };
    let Some(first) = rules.iter_mut().find(same) else {
        let mut subsets = Vec::new();
        add_subsets(&mut subsets, &spec.subsets);
        let policy = spec.traffic_policy.as_ref();
        rules.push(Rule { host, export_to, selector, meta, policy, subsets });
        return;
    };
    first.policy = first.policy.or(spec.traffic_policy.as_ref());
    add_subsets(&mut first.subsets, &spec.subsets);
}

fn add_subsets<'a>(to: &mut Vec<&'a Subset>, subsets: &'a [Subset]) {
    for subset in subsets {
        if to.iter().all(|present| present.name != subset.name) {
            to.push(subset);
        }
    }
}

/// A name without a dot is one of a Service beside the rule.
fn full_host(host: &str, namespace: &str, domain: &str) -> String {
    if host.contains(['.', '*']) {
        host.to_owned()
    } else {
        format!("{host}.{namespace}.svc.{domain}")
    }
}

fn is_host(pattern: &str, hostname: &str) -> bool {
    match pattern.strip_prefix('*') {
        Some(suffix) => {
            pattern == hostname || hostname.len() > suffix.len() && hostname.ends_with(suffix)
        }
        None => pattern == hostname,
    }
}

fn is_exported(to: &[String], namespace: &str, client_namespace: &str) -> bool {
    to.is_empty()
        || to.iter().any(|to| match to.as_str() {
            "*" => true,
            "." => namespace == client_namespace,
            other => other == client_namespace,
        })
}

fn is_subset(wanted: &Labels, labels: &Labels) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

fn client_tls(policy: &BackendTlsPolicy) -> ClientTls {
    let validation = &policy.validation;
    let names = validation.subject_alt_names.iter();
    let names = names.filter_map(|name| name.hostname.clone().or_else(|| name.uri.clone()));
    ClientTls {
        mode: ClientTlsMode::Simple,
        sni: validation.hostname.clone(),
        subject_alt_names: names.collect(),
        ..ClientTls::default()
    }
}
