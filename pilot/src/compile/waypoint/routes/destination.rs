//! Which clusters a rule leads to.
//!
//! In: destinations as users write them. Out: the names of clusters. One that is nowhere has a name that nobody gives to
//! a cluster: requests for it are answered with an error.

use std::sync::Arc;

use proto::envoy::envoy::config::route::v3::route_action::HashPolicy;

use super::{
    super::{ChainKind, Context, inbound_cluster},
    hash,
    rule_set::full_name,
};
use crate::{
    compile::registry::{Host, Port},
    manifests::networking::{Destination, Retries},
};

/// What istiod calls the cluster of a backend that is no host at all.
pub(super) const UNKNOWN: &str = "UnknownService";

/// Finds the clusters of the destinations of rules.
pub(super) struct Destinations<'a> {
    pub(super) context: &'a Context<'a>,
    /// Of the rules.
    pub(super) namespace: &'a str,
    /// Of the chain the rules are for.
    pub(super) port: u16,
    pub(super) kind: ChainKind,
}

impl Destinations<'_> {
    /// The cluster's name.
    pub(super) fn cluster(&self, of: &Destination) -> String {
        if of.host.is_empty() {
            return UNKNOWN.to_owned();
        }
        let subset = &of.subset;
        let hostname = full_name(&of.host, self.namespace, &self.context.config.cluster_domain);
        let host = self.host(&hostname);
        let number = self.number(of, host);
        let Some(host) = host else {
            return self.of_nobody(number, subset, &hostname);
        };
        if !self.context.owns(host) {
            return format!("outbound|{number}|{subset}|{hostname}");
        }
        match port(host, number) {
            Some(port) => inbound_cluster(host, port, self.kind_of(port), subset),
            None => self.of_nobody(number, subset, &hostname),
        }
    }

    /// The service it means, if there is one.
    pub(super) fn found(&self, of: &Destination) -> Option<&Arc<Host>> {
        self.host(&full_name(&of.host, self.namespace, &self.context.config.cluster_domain))
    }

    /// What istiod calls the cluster of a host or port that is not there.
    fn of_nobody(&self, port: u32, subset: &str, hostname: &str) -> String {
        let kind = match self.kind {
            ChainKind::Http => "http",
            ChainKind::Tcp => "tcp",
        };
        let subset = if subset.is_empty() { String::new() } else { format!("/{subset}") };
        format!("inbound-vip|{port}|{kind}{subset}|{hostname}")
    }

    /// The service that a name means: ours, or that of the rules' namespace, or else the canonical one.
    fn host(&self, hostname: &str) -> Option<&Arc<Host>> {
        let registry = self.context.registry;
        let mut same = registry.by_hostname(hostname);
        same.find(|host| self.context.owns(host))
            .or_else(|| registry.find(self.namespace, hostname))
            .or_else(|| registry.by_hostname(hostname).next())
    }

    /// A service's only port is meant if none is named, or else the one the client asked for.
    fn number(&self, of: &Destination, host: Option<&Arc<Host>>) -> u32 {
        let only = host.filter(|host| host.ports.len() == 1).map(|host| host.ports[0].number);
        let named = of.port.as_ref().map(|port| port.number).filter(|number| *number > 0);
        named.unwrap_or_else(|| only.unwrap_or(self.port).into())
    }

    /// A port of unknown protocol has a cluster of either kind.
    fn kind_of(&self, port: &Port) -> ChainKind {
        if port.protocol.is_http() {
            ChainKind::Http
        } else if port.protocol.is_tcp() {
            ChainKind::Tcp
        } else {
            self.kind
        }
    }

    /// How requests for these find their endpoints.
    pub(super) fn hash_policies<'d>(
        &self,
        of: impl Iterator<Item = &'d Destination>,
    ) -> Vec<HashPolicy> {
        let mut all: Vec<HashPolicy> = Vec::new();
        for destination in of {
            let hostname =
                full_name(&destination.host, self.namespace, &self.context.config.cluster_domain);
            let Some(host) = self.host(&hostname) else { continue };
            let number = self.number(destination, Some(host));
            let port = port(host, number);
            let policy = port.and_then(|port| self.hash_policy(host, port, &destination.subset));
            if let Some(policy) = policy.filter(|policy| !all.contains(policy)) {
                all.push(policy);
            }
        }
        all
    }

    /// How requests for a port of a host find their endpoint, if that follows from something in them.
    pub(super) fn hash_policy(&self, host: &Host, port: &Port, subset: &str) -> Option<HashPolicy> {
        let balancer = self.context.traffic(host, port, subset).load_balancer?;
        balancer.consistent_hash.as_ref().and_then(hash::policy)
    }

    /// What rules that say nothing of retries get.
    pub(super) fn default_retries(&self) -> Option<&Retries> {
        self.context.config.default_http_retry_policy.as_ref()
    }
}

fn port(host: &Host, number: u32) -> Option<&Port> {
    u16::try_from(number).ok().and_then(|number| host.port(number))
}
