//! Which endpoints come first by where they are.
//!
//! In: what a DestinationRule, the Service or the mesh prefers, and where the client is. Out: weights and priorities
//! of an assignment's localities. Knows nothing of health: Envoy takes the next priority when one has too few left.

use std::collections::BTreeMap;

use proto::envoy::envoy::config::endpoint::v3::LocalityLbEndpoints;

use super::{Client, Context, destination_rule::Traffic, message::number};
use crate::{
    compile::registry::{Endpoint, Host},
    manifests::networking::{Distribute, Failover, LocalityBalancing},
};

const REGION: &str = "topology.kubernetes.io/region";
const ZONE: &str = "topology.kubernetes.io/zone";
const SUBZONE: &str = "topology.istio.io/subzone";
const NETWORK: &str = "topology.istio.io/network";
const NODE: &str = "kubernetes.io/hostname";

/// Same network, region and zone: what `PreferClose` means.
const SAME_ZONE: [&str; 3] = [NETWORK, REGION, ZONE];
/// And the same node.
const SAME_NODE: [&str; 5] = [NETWORK, REGION, ZONE, SUBZONE, NODE];

/// What is preferred.
#[derive(Debug)]
pub(super) enum Preference<'a> {
    /// Nothing.
    None,
    /// Shares of localities by where the client is.
    Shares(&'a [Distribute]),
    /// The nearest, then the next.
    Nearest {
        /// What is compared, the most important first; the locality if it is empty.
        labels: Vec<&'a str>,
        /// Which region stands in for which.
        failover: &'a [Failover],
    },
}

/// An endpoint's place, beside its message in an assignment.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub region: String,
    pub zone: String,
    pub subzone: String,
    pub network: String,
    pub node: String,
    pub labels: crate::manifests::Labels,
}

impl<'a> Preference<'a> {
    /// A rule's setting counts before the Service's, and that before the mesh's.
    pub(super) fn of(context: &Context<'a>, host: &Host, traffic: &Traffic<'a>) -> Self {
        let own = traffic.load_balancer.and_then(|balancer| balancer.locality_lb_setting.as_ref());
        if own.is_none()
            && let Some(labels) = distribution(context, host)
        {
            return Self::Nearest { labels: labels.to_vec(), failover: &[] };
        }
        let setting: &LocalityBalancing = own.unwrap_or(&context.config.locality_lb_setting);
        if setting.enabled == Some(false) {
            return Self::None;
        }
        if !setting.distribute.is_empty() {
            return Self::Shares(&setting.distribute);
        }
        // Without outlier detection nobody would notice that the nearest fail.
        if traffic.outlier_detection.is_none() {
            return Self::None;
        }
        let labels = setting.failover_priority.iter().map(String::as_str).collect();
        Self::Nearest { labels, failover: &setting.failover }
    }

    /// Whether the weights of localities count.
    pub(super) fn is_weighted(&self) -> bool {
        match self {
            Self::None => false,
            Self::Shares(_) => true,
            Self::Nearest { labels, failover } => !labels.is_empty() || !failover.is_empty(),
        }
    }

    /// Puts weights and priorities into an assignment.
    pub(super) fn apply(
        &self,
        client: &Client,
        localities: Vec<(LocalityLbEndpoints, Vec<Place>)>,
    ) -> Vec<LocalityLbEndpoints> {
        match self {
            Self::None => localities.into_iter().map(|(locality, _)| locality).collect(),
            Self::Shares(rules) => shares(rules, client, localities),
            Self::Nearest { labels, failover } => {
                let split = localities.into_iter().flat_map(|(locality, places)| {
                    by_priority(labels, failover, client, &locality, &places)
                });
                compact(split.collect())
            }
        }
    }
}

/// What a Service prefers by `trafficDistribution`, an annotation, or its namespace's annotation.
fn distribution(context: &Context<'_>, host: &Host) -> Option<&'static [&'static str]> {
    match context.traffic_distribution(host)? {
        "PreferClose" | "PreferSameZone" => Some(&SAME_ZONE),
        "PreferSameNode" => Some(&SAME_NODE),
        _ => None,
    }
}

/// The first rule for where the client is gives each locality its share; those without one get no endpoints.
fn shares(
    rules: &[Distribute],
    client: &Client,
    localities: Vec<(LocalityLbEndpoints, Vec<Place>)>,
) -> Vec<LocalityLbEndpoints> {
    let mut localities: Vec<_> = localities.into_iter().map(|(locality, _)| locality).collect();
    let own = [&*client.locality.region, &*client.locality.zone, &*client.locality.subzone];
    let Some(rule) = rules.iter().find(|rule| is_within(own, &rule.from)) else {
        return localities;
    };
    let mut left: Vec<usize> = (0..localities.len()).collect();
    // The more specific a pattern, the later it sorts: `*` before a name.
    for (pattern, share) in rule.to.iter().rev() {
        let (taken, rest): (Vec<usize>, Vec<usize>) =
            left.iter().partition(|i| is_within(parts(&localities[**i]), pattern));
        left = rest;
        let weight = |i: &usize| weight(&localities[*i]);
        let total: u64 = taken.iter().map(weight).sum();
        let weights: Vec<(usize, u64)> = taken
            .iter()
            .map(|i| (*i, (weight(i) * u64::from(*share)).div_ceil(total.max(1))))
            .collect();
        for (i, weight) in weights {
            let weight = u32::try_from(weight).unwrap_or(u32::MAX);
            localities[i].load_balancing_weight = Some(number(weight));
        }
    }
    for i in left {
        localities[i].lb_endpoints.clear();
    }
    localities
}

fn weight(locality: &LocalityLbEndpoints) -> u64 {
    locality.load_balancing_weight.map_or(1, |weight| weight.value.into())
}

fn parts(locality: &LocalityLbEndpoints) -> [&str; 3] {
    match &locality.locality {
        Some(locality) => [&locality.region, &locality.zone, &locality.sub_zone],
        None => [""; 3],
    }
}

/// Whether a locality is one of `region/zone/subzone`, where `*` and what is left out are any.
fn is_within(locality: [&str; 3], pattern: &str) -> bool {
    let pattern = pattern.splitn(3, '/').chain(std::iter::repeat("*"));
    locality.iter().zip(pattern).all(|(part, pattern)| pattern == "*" || *part == pattern)
}

/// Splits a locality by how near its endpoints are: those of one node may come before those of another.
fn by_priority(
    labels: &[&str],
    failover: &[Failover],
    client: &Client,
    locality: &LocalityLbEndpoints,
    places: &[Place],
) -> Vec<LocalityLbEndpoints> {
    let mut split: BTreeMap<u32, LocalityLbEndpoints> = BTreeMap::new();
    for (endpoint, place) in locality.lb_endpoints.iter().zip(places) {
        let by_labels = by_labels(labels, client, place);
        let priority = if labels.is_empty() {
            by_locality(failover, client, place)
        } else if failover.is_empty() {
            by_labels
        } else {
            by_labels * 5 + by_locality(failover, client, place)
        };
        let part = split.entry(priority).or_insert_with(|| LocalityLbEndpoints {
            locality: locality.locality.clone(),
            priority,
            load_balancing_weight: Some(number(0)),
            ..LocalityLbEndpoints::default()
        });
        let added = endpoint.load_balancing_weight.map_or(1, |weight| weight.value);
        if let Some(weight) = &mut part.load_balancing_weight {
            weight.value = weight.value.saturating_add(added);
        }
        part.lb_endpoints.push(endpoint.clone());
    }
    split.into_values().collect()
}

/// How many of the labels are left from the first that differs; another network counts beyond all of the others.
fn by_labels(labels: &[&str], client: &Client, place: &Place) -> u32 {
    let differs = |label: &&str| match label.split_once('=') {
        Some((key, wanted)) => place.label(key) != wanted,
        None => place.label(label) != client.label(label),
    };
    let (first, rest) = match labels.split_first() {
        Some((first, rest)) if *first == NETWORK => (Some(first), rest),
        _ => (None, labels),
    };
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let offset = if first.is_some_and(differs) { count(labels.len()) } else { 0 };
    let equal = rest.iter().take_while(|label| !differs(label)).count();
    offset + count(rest.len() - equal)
}

fn by_locality(failover: &[Failover], client: &Client, place: &Place) -> u32 {
    let own = &client.locality;
    match () {
        () if own.region != place.region => {
            let next = failover.iter().find(|next| next.from == own.region);
            if next.is_some_and(|next| next.to != place.region) { 4 } else { 3 }
        }
        () if own.zone != place.zone => 2,
        () if own.subzone != place.subzone => 1,
        () => 0,
    }
}

/// Envoy takes priorities without gaps only.
fn compact(mut localities: Vec<LocalityLbEndpoints>) -> Vec<LocalityLbEndpoints> {
    let mut found: Vec<u32> = localities.iter().map(|locality| locality.priority).collect();
    found.sort_unstable();
    found.dedup();
    for locality in &mut localities {
        let place = found.partition_point(|priority| *priority < locality.priority);
        locality.priority = u32::try_from(place).unwrap_or(u32::MAX);
    }
    localities
}

impl Place {
    /// Where an endpoint is.
    pub(super) fn of(endpoint: &Endpoint) -> Self {
        Self {
            region: endpoint.locality.region.clone(),
            zone: endpoint.locality.zone.clone(),
            subzone: endpoint.locality.subzone.clone(),
            network: endpoint.network.to_string(),
            node: endpoint.node.to_string(),
            labels: endpoint.labels().clone(),
        }
    }

    fn label(&self, key: &str) -> &str {
        match key {
            REGION => &self.region,
            ZONE => &self.zone,
            SUBZONE => &self.subzone,
            NETWORK => &self.network,
            NODE => &self.node,
            other => self.labels.get(other).map_or("", String::as_str),
        }
    }
}

impl Client {
    fn label(&self, key: &str) -> &str {
        match key {
            REGION => &self.locality.region,
            ZONE => &self.locality.zone,
            SUBZONE => &self.locality.subzone,
            NETWORK => &self.network,
            NODE => &self.node,
            other => self.labels.get(other).map_or("", String::as_str),
        }
    }
}
