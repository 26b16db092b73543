//! Decides what the mesh says about a name.
//!
//! In: one [`Snapshot`], who asks, and the question. Out: addresses, or that the mesh does not know the name. No sockets,
//! clocks, locks or chance: the caller makes a message of it, and shuffles.

use std::{cmp::Reverse, net::IpAddr, sync::Arc};

use mesh::store::{Health, HealthPolicy, IpFamilies, Service, Snapshot, Workload};

use super::{
    DnsSection, ResolvConf,
    candidates::{Candidate, candidates},
};

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Client<'a> {
    /// The pod's namespace.
    pub namespace: &'a str,
    /// The network whose addresses it can reach.
    pub network: &'a str,
    /// What its resolver was told.
    pub resolv_conf: &'a ResolvConf,
}

/// A question for addresses.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The name, in lower case and without the dot at its end.
    pub name: &'a str,
    /// Which addresses.
    pub family: Family,
}

/// Which addresses are asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Family {
    /// A.
    Ipv4,
    /// AAAA.
    Ipv6,
}

/// What the mesh says about a name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Answer {
    /// It has the name.
    Known(Known),
    /// It does not know the name; somebody else may.
    Unknown,
}

/// A name of the mesh.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Known {
    /// The name that the queried one is an alias of, if it is.
    pub alias_of: Option<String>,
    /// The name's addresses of the family asked for; none if it has none of it.
    pub addresses: Vec<IpAddr>,
}

/// Answers a question. The first candidate that is a name of the mesh decides.
pub fn answer(
    snapshot: &Snapshot,
    settings: &DnsSection,
    client: &Client<'_>,
    question: &Question<'_>,
) -> Answer {
    let asked = Asked { snapshot, settings, client, family: question.family };
    let names =
        candidates(question.name, client.namespace, &settings.cluster_domain, client.resolv_conf);
    names
        .iter()
        .find_map(|candidate| asked.look_up(candidate))
        .map_or(Answer::Unknown, Answer::Known)
}

/// Whether a candidate is a name of the mesh, so that those behind it do not count.
pub(super) fn decides(
    snapshot: &Snapshot,
    settings: &DnsSection,
    client: &Client<'_>,
    candidate: &Candidate,
) -> bool {
    // A name without addresses of a family is known nevertheless.
    let asked = Asked { snapshot, settings, client, family: Family::Ipv4 };
    asked.look_up(candidate).is_some()
}

struct Asked<'a> {
    snapshot: &'a Snapshot,
    settings: &'a DnsSection,
    client: &'a Client<'a>,
    family: Family,
}

impl Asked<'_> {
    fn look_up(&self, candidate: &Candidate) -> Option<Known> {
        let host = candidate.host.as_str();
        let alias_of = || candidate.stripped.clone();
        if let Some(service) = self.service(host) {
            return Some(Known { alias_of: alias_of(), addresses: self.of_service(service) });
        }
        if let Some(workload) = self.pod_of_headless_service(host) {
            let addresses = self.of_workload(workload).into_iter().collect();
            return Some(Known { alias_of: alias_of(), addresses });
        }
        let service = shorter(host).find_map(|rest| self.service(&format!("*.{rest}")))?;
        Some(Known { alias_of: None, addresses: self.of_service(service) })
    }

    /// The service of this host name that the client means: its own namespace's, the canonical one, the preferred
    /// namespace's, the first to come.
    fn service(&self, host: &str) -> Option<&Arc<Service>> {
        let preferred = self.settings.preferred_namespace.as_deref();
        self.snapshot
            .services_by_host(host)
            .filter(|service| self.is_answered(service))
            .filter(|service| service.visible_from(self.client.namespace))
            .min_by_key(|service| {
                Reverse((
                    *service.namespace == *self.client.namespace,
                    service.canonical,
                    preferred == Some(&*service.namespace),
                ))
            })
    }

    /// Other services without addresses are left to the servers that know their endpoints' names.
    fn is_answered(&self, service: &Service) -> bool {
        !service.addresses.is_empty() || self.is_kubernetes(&service.hostname)
    }

    fn is_kubernetes(&self, host: &str) -> bool {
        let below = host.strip_suffix(&*self.settings.cluster_domain);
        below.is_some_and(|below| below.ends_with(".svc."))
    }

    /// A pod behind a service without addresses, by `<pod>.<service's host name>`. The control plane tells the pod's own
    /// host name, or only that the pod is an endpoint; a StatefulSet's pods have the same name in both.
    fn pod_of_headless_service(&self, host: &str) -> Option<&Arc<Workload>> {
        let (pod, service) = host.split_once('.')?;
        if !self.is_kubernetes(service) {
            return None;
        }
        let service = self.service(service).filter(|service| service.addresses.is_empty())?;
        self.snapshot.endpoints(service)?.iter().find(|workload| {
            *workload.hostname == *host || (workload.hostname.is_empty() && *workload.name == *pod)
        })
    }

    fn of_service(&self, service: &Service) -> Vec<IpAddr> {
        let wanted = match service.ip_families {
            IpFamilies::Any => true,
            IpFamilies::Ipv4 => self.family == Family::Ipv4,
            IpFamilies::Ipv6 => self.family == Family::Ipv6,
        };
        if !wanted {
            return Vec::new();
        }
        if service.addresses.is_empty() {
            return self.of_endpoints(service);
        }
        let on_network = service
            .addresses
            .iter()
            .filter(|address| *address.network == *self.client.network)
            .filter(|address| address.net.prefix_len() == address.net.max_prefix_len());
        on_network.map(|address| address.net.addr()).filter(|ip| self.is_wanted(ip)).collect()
    }

    fn of_endpoints(&self, service: &Service) -> Vec<IpAddr> {
        let is_usable = |workload: &&Arc<Workload>| match service.load_balancing.health_policy {
            HealthPolicy::OnlyHealthy => workload.health == Health::Healthy,
            HealthPolicy::AllowAll => true,
        };
        let endpoints = self.snapshot.endpoints(service).into_iter().flat_map(|all| all.iter());
        endpoints.filter(is_usable).filter_map(|workload| self.of_workload(workload)).collect()
    }

    /// One address of a workload on the client's network: those of others lead somewhere else.
    fn of_workload(&self, workload: &Workload) -> Option<IpAddr> {
        if *workload.network != *self.client.network {
            return None;
        }
        workload.addresses.iter().copied().find(|ip| self.is_wanted(ip))
    }

    fn is_wanted(&self, ip: &IpAddr) -> bool {
        match self.family {
            Family::Ipv4 => ip.is_ipv4(),
            Family::Ipv6 => ip.is_ipv6() && self.settings.ipv6,
        }
    }
}

/// What is left of a name without its first label, without its first two, and so on.
fn shorter(host: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(host.split_once('.').map(|(_, rest)| rest), |rest| {
        rest.split_once('.').map(|(_, rest)| rest)
    })
}

#[cfg(test)]
mod tests;
