//! All that exists at one moment, and the questions that a connection asks about it.
//!
//! In: names and addresses. Out: shared workloads and services. A clone is a few pointers. The maps are B-trees: with 100,000
//! entries a persistent hash map fills a fifth of its slots, and takes five times the memory.

use std::{net::IpAddr, sync::Arc};

use imbl::{OrdMap, ordmap::DiffItem};

use super::{
    Endpoints, GatewayTarget, Service, Workload,
    address_index::{AddressIndex, preferred},
    few::Few,
};
use crate::policy::Policies;

/// All that exists at one moment. It never changes.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    generation: u64,
    /// By uid.
    pub(super) workloads: OrdMap<Arc<str>, Arc<Workload>>,
    /// By name, of whatever namespace: few share one.
    pub(super) workloads_by_name: OrdMap<Arc<str>, Few<Workload>>,
    /// By `<namespace>/<hostname>`, those that have a host name.
    pub(super) workloads_by_host: OrdMap<Arc<str>, Few<Workload>>,
    /// By `<namespace>/<hostname>`.
    pub(super) services: OrdMap<Arc<str>, Arc<Service>>,
    /// By host name.
    pub(super) services_by_host: OrdMap<Arc<str>, Few<Service>>,
    pub(super) addresses: AddressIndex,
    /// By service, whether it is known or not: a workload may arrive before the service it names.
    pub(super) endpoints: OrdMap<Arc<str>, Endpoints>,
    pub(super) policies: Policies,
}

/// What an address belongs to.
#[derive(Clone, Debug)]
pub enum Found {
    /// A workload.
    Workload(Arc<Workload>),
    /// A service.
    Service(Arc<Service>),
}

impl Snapshot {
    /// Counts the batches that made this snapshot.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The workload with this uid.
    pub fn workload(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.workloads.get(uid)
    }

    /// The workload of a pod, by what its node knows about it. Never by address: an address proves nothing.
    pub fn workload_of(
        &self,
        namespace: &str,
        name: &str,
        service_account: &str,
    ) -> Option<&Arc<Workload>> {
        self.workloads_by_name.get(name)?.iter().find(|workload| {
            *workload.namespace == *namespace && *workload.service_account == *service_account
        })
    }

    /// What an address belongs to, seen from a namespace: a workload before a service.
    pub fn by_address(&self, network: &str, ip: IpAddr, client_namespace: &str) -> Option<Found> {
        if let Some(workload) = self.workload_by_address(network, ip) {
            return Some(Found::Workload(workload.clone()));
        }
        self.service_by_address(network, ip, client_namespace).cloned().map(Found::Service)
    }

    /// The workload at an address: a pod before anything else, then one that accepts tunnels, then the first to come.
    pub fn workload_by_address(&self, network: &str, ip: IpAddr) -> Option<&Arc<Workload>> {
        self.addresses.workload(network, ip.to_canonical())
    }

    /// The service at an address, seen from a namespace: an exact address before a prefix; the client's namespace first,
    /// then, among prefixes, the longest, then the canonical one, then the first to come.
    pub fn service_by_address(
        &self,
        network: &str,
        ip: IpAddr,
        client_namespace: &str,
    ) -> Option<&Arc<Service>> {
        self.addresses.service(network, ip.to_canonical(), client_namespace)
    }

    /// Every service that has an address, whoever may see it.
    pub fn services_by_address(
        &self,
        network: &str,
        ip: IpAddr,
    ) -> impl Iterator<Item = &Arc<Service>> {
        self.addresses.services(network, ip.to_canonical())
    }

    /// The service `<namespace>/<hostname>`.
    pub fn service(&self, key: &str) -> Option<&Arc<Service>> {
        self.services.get(key)
    }

    /// The service with this host name, seen from a namespace: the one there first, then the canonical one, then the
    /// first to come.
    pub fn service_by_host(&self, hostname: &str, client_namespace: &str) -> Option<&Arc<Service>> {
        preferred(self.services_by_host.get(hostname)?.iter(), client_namespace)
    }

    /// Every service with this host name, whoever may see it, the first to come first.
    pub fn services_by_host(&self, hostname: &str) -> impl Iterator<Item = &Arc<Service>> {
        self.services_by_host.get(hostname).into_iter().flat_map(Few::iter)
    }

    /// The first workload `<namespace>/<hostname>`.
    pub fn workload_by_host(&self, key: &str) -> Option<&Arc<Workload>> {
        self.workloads_by_host.get(key)?.iter().next()
    }

    /// What a reference to a waypoint or network gateway means to a client in `client_namespace`: a service before a
    /// workload.
    pub fn gateway(&self, target: &GatewayTarget, client_namespace: &str) -> Option<Found> {
        let (service, workload) = match target {
            GatewayTarget::Address { network, ip } => (
                self.service_by_address(network, *ip, client_namespace),
                self.workload_by_address(network, *ip),
            ),
            GatewayTarget::Host { key } => (self.service(key), self.workload_by_host(key)),
        };
        service.cloned().map(Found::Service).or_else(|| workload.cloned().map(Found::Workload))
    }

    /// The endpoints of a service, healthy or not; none if no workload names it.
    pub fn endpoints(&self, service: &Service) -> Option<&Endpoints> {
        self.endpoints.get(&service.key)
    }

    /// Every policy.
    pub fn policies(&self) -> &Policies {
        &self.policies
    }

    /// Whether both have the same workloads, without a look at them.
    pub fn same_workloads(&self, other: &Self) -> bool {
        self.workloads.ptr_eq(&other.workloads)
    }

    /// The workloads that are not as they were in `older`, as they were or are, found without a look at what both share.
    pub fn workloads_changed_since<'a>(
        &'a self,
        older: &'a Self,
    ) -> impl Iterator<Item = &'a Arc<Workload>> {
        older
            .workloads
            .diff(&self.workloads)
            .flat_map(|item| match item {
                DiffItem::Add(_, new) => [Some(new), None],
                DiffItem::Update { old: (_, old), new: (_, new) } => [Some(old), Some(new)],
                DiffItem::Remove(_, old) => [Some(old), None],
            })
            .flatten()
    }

    /// Every workload, in the order of their uids.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.values()
    }

    /// The workloads that are otherwise than in `earlier`: as they were, if they were there, and as they are, if they are.
    /// Looks only at what the two do not share.
    pub fn changed_workloads<'a>(
        &'a self,
        earlier: &'a Self,
    ) -> impl Iterator<Item = (Option<&'a Arc<Workload>>, Option<&'a Arc<Workload>>)> {
        earlier.workloads.diff(&self.workloads).map(|item| match item {
            DiffItem::Add(_, new) => (None, Some(new)),
            DiffItem::Update { old: (_, old), new: (_, new) } => (Some(old), Some(new)),
            DiffItem::Remove(_, old) => (Some(old), None),
        })
    }

    /// Every service, in the order of their keys.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// Counts one more batch.
    pub(super) fn next_generation(&mut self) {
        self.generation += 1;
    }
}
