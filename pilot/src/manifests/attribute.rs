//! The attributes of an AuthorizationPolicy, and at which layer each can be checked.
//!
//! A daemon sees addresses, ports and the peer's identity; whatever needs the request itself is a waypoint's.

use std::net::IpAddr;

use super::security::{AuthorizationPolicy, Operation, Rule, Source, Values};

/// What is needed to check an attribute.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Layer {
    /// An address of the connection.
    Address,
    /// A port of the connection.
    Port,
    /// The peer's identity.
    Identity,
    /// The request, or what only a waypoint knows of the connection.
    Http,
    /// There is no such attribute.
    Unknown,
}

/// Classifies the key of a `when` condition.
pub(crate) fn layer_of(key: &str) -> Layer {
    match key {
        "source.ip" | "destination.ip" => Layer::Address,
        "destination.port" => Layer::Port,
        "source.namespace" | "source.principal" => Layer::Identity,
        "remote.ip"
        | "source.serviceAccount"
        | "source.trustDomain"
        | "connection.sni"
        | "request.auth.principal"
        | "request.auth.audiences"
        | "request.auth.presenter" => Layer::Http,
        _ => {
            let families =
                ["request.headers[", "request.auth.claims[", "experimental.envoy.filters."];
            let known = families.iter().any(|family| key.starts_with(family)) && key.ends_with(']');
            if known { Layer::Http } else { Layer::Unknown }
        }
    }
}

/// An address or a CIDR block, as (address, prefix length).
pub(crate) fn block(text: &str) -> Option<(IpAddr, u8)> {
    match text.split_once('/') {
        Some(_) => text.parse::<ipnet::IpNet>().ok().map(|net| (net.addr(), net.prefix_len())),
        None => text.parse::<IpAddr>().ok().map(|ip| (ip, if ip.is_ipv4() { 32 } else { 128 })),
    }
}

/// A trust domain as a pattern on principals, which begin with it; `None` if it cannot be one.
pub(crate) fn trust_domain_pattern(value: &str) -> Option<String> {
    match value.strip_suffix('*') {
        Some(prefix) => (!prefix.contains('*')).then(|| value.to_owned()),
        None => (!value.contains('*')).then(|| format!("{value}/*")),
    }
}

/// The attributes of a rule that layer 4 cannot check.
pub(crate) fn beyond_layer_4(rule: &Rule) -> Vec<&str> {
    let mut names: Vec<&str> = Vec::new();
    for source in rule.from.iter().flatten().filter_map(|from| from.source.as_ref()) {
        names.extend(source.beyond_layer_4().iter());
    }
    for operation in rule.to.iter().flatten().filter_map(|to| to.operation.as_ref()) {
        names.extend(operation.beyond_layer_4().iter());
    }
    let conditions = rule.when.iter().flatten().map(|condition| condition.key.as_str());
    names.extend(conditions.filter(|key| layer_of(key) == Layer::Http));
    names.sort_unstable();
    names.dedup();
    names
}

impl AuthorizationPolicy {
    /// Whether it is attached to a waypoint and not to pods.
    pub fn is_targeted(&self) -> bool {
        self.target_ref.is_some() || self.target_refs.as_ref().is_some_and(|refs| !refs.is_empty())
    }
}

impl Source {
    pub(crate) fn attributes(&self) -> [(&'static str, &Values); 14] {
        [
            ("principals", &self.principals),
            ("notPrincipals", &self.not_principals),
            ("requestPrincipals", &self.request_principals),
            ("notRequestPrincipals", &self.not_request_principals),
            ("namespaces", &self.namespaces),
            ("notNamespaces", &self.not_namespaces),
            ("serviceAccounts", &self.service_accounts),
            ("notServiceAccounts", &self.not_service_accounts),
            ("ipBlocks", &self.ip_blocks),
            ("notIpBlocks", &self.not_ip_blocks),
            ("remoteIpBlocks", &self.remote_ip_blocks),
            ("notRemoteIpBlocks", &self.not_remote_ip_blocks),
            ("trustDomains", &self.trust_domains),
            ("notTrustDomains", &self.not_trust_domains),
        ]
    }

    /// The attributes that layer 4 cannot check. A trust domain is the beginning of a principal; beside `principals`
    /// it would have to be ANDed with them, and a match can only OR its values.
    pub(crate) fn beyond_layer_4(&self) -> Vec<&'static str> {
        let no_pattern = |values: &Values| {
            values.iter().flatten().any(|value| trust_domain_pattern(value).is_none())
        };
        let mut names = Vec::new();
        for (name, values) in self.attributes() {
            let beyond = match name {
                "requestPrincipals"
                | "notRequestPrincipals"
                | "remoteIpBlocks"
                | "notRemoteIpBlocks" => values.is_some(),
                "trustDomains" => {
                    values.is_some() && (self.principals.is_some() || no_pattern(values))
                }
                "notTrustDomains" => no_pattern(values),
                _ => false,
            };
            if beyond {
                names.push(name);
            }
        }
        names
    }
}

impl Operation {
    pub(crate) fn attributes(&self) -> [(&'static str, &Values); 8] {
        [
            ("hosts", &self.hosts),
            ("notHosts", &self.not_hosts),
            ("ports", &self.ports),
            ("notPorts", &self.not_ports),
            ("methods", &self.methods),
            ("notMethods", &self.not_methods),
            ("paths", &self.paths),
            ("notPaths", &self.not_paths),
        ]
    }

    /// The attributes that layer 4 cannot check: all but the ports.
    pub(crate) fn beyond_layer_4(&self) -> Vec<&'static str> {
        let set = self.attributes().into_iter().filter(|(_, values)| values.is_some());
        set.map(|(name, _)| name).filter(|name| !matches!(*name, "ports" | "notPorts")).collect()
    }
}
