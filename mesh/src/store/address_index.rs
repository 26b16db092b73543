//! Which workload or service an address belongs to.
//!
//! In: workloads and services that come and go. Out: for an address in a network, the workload or service that
//! Istio's ranking prefers.

use std::{cmp::Reverse, net::IpAddr, sync::Arc};

use imbl::OrdMap;
use ipnet::IpNet;

use super::{
    NetworkAddress, NetworkMode, Service, TunnelProtocol, Workload, few::Few,
    prefix_tree::PrefixTree,
};

/// Addresses of all networks. Each address is in one network, and the same one in another network is another address.
#[derive(Clone, Debug, Default)]
pub(super) struct AddressIndex {
    networks: OrdMap<Arc<str>, Network>,
}

/// Addresses of one network.
#[derive(Clone, Debug, Default)]
struct Network {
    workloads: OrdMap<IpAddr, Few<Workload>>,
    services: OrdMap<IpAddr, Few<Service>>,
    /// Services that have whole prefixes.
    prefixes: PrefixTree<Few<Service>>,
}

impl AddressIndex {
    /// Enters a workload under its addresses, and takes out those that only `former` had.
    pub(super) fn put_workload(&mut self, workload: &Arc<Workload>, former: Option<&Workload>) {
        if let Some(former) = former {
            for ip in indexed_addresses(former) {
                let kept =
                    former.network == workload.network && indexed_addresses(workload).contains(ip);
                if !kept {
                    self.remove_workload_address(former, *ip);
                }
            }
        }
        if indexed_addresses(workload).is_empty() {
            return;
        }
        let network = self.networks.entry(workload.network.clone()).or_default();
        for ip in indexed_addresses(workload) {
            let put = match network.workloads.get(ip) {
                Some(few) => few.put(workload.clone(), |held| held.uid == workload.uid),
                None => Few::One(workload.clone()),
            };
            network.workloads.insert(*ip, put);
        }
    }

    /// Takes a workload out.
    pub(super) fn remove_workload(&mut self, workload: &Workload) {
        for ip in indexed_addresses(workload) {
            self.remove_workload_address(workload, *ip);
        }
    }

    fn remove_workload_address(&mut self, workload: &Workload, ip: IpAddr) {
        let Some(network) = self.networks.get_mut(&workload.network) else { return };
        let Some(few) = network.workloads.get(&ip) else { return };
        match few.without(|held| held.uid == workload.uid) {
            Some(rest) => network.workloads.insert(ip, rest).map(drop),
            None => network.workloads.remove(&ip).map(drop),
        };
    }

    /// Enters a service under its addresses, and takes out those that only `former` had.
    pub(super) fn put_service(&mut self, service: &Arc<Service>, former: Option<&Service>) {
        if let Some(former) = former {
            for address in &former.addresses {
                if !service.addresses.contains(address) {
                    self.remove_service_address(former, address);
                }
            }
        }
        for address in &service.addresses {
            let network = self.networks.entry(address.network.clone()).or_default();
            let same = |held: &Service| held.key == service.key;
            if let Some(ip) = single_address(address.net) {
                let put = match network.services.get(&ip) {
                    Some(few) => few.put(service.clone(), same),
                    None => Few::One(service.clone()),
                };
                network.services.insert(ip, put);
            } else {
                let put = match network.prefixes.get(address.net) {
                    Some(few) => few.put(service.clone(), same),
                    None => Few::One(service.clone()),
                };
                network.prefixes.insert(address.net, put);
            }
        }
    }

    /// Takes a service out.
    pub(super) fn remove_service(&mut self, service: &Service) {
        for address in &service.addresses {
            self.remove_service_address(service, address);
        }
    }

    fn remove_service_address(&mut self, service: &Service, address: &NetworkAddress) {
        let Some(network) = self.networks.get_mut(&address.network) else { return };
        let same = |held: &Service| held.key == service.key;
        if let Some(ip) = single_address(address.net) {
            match network.services.get(&ip).and_then(|few| few.without(same)) {
                Some(rest) => network.services.insert(ip, rest).map(drop),
                None => network.services.remove(&ip).map(drop),
            };
            return;
        }
        match network.prefixes.get(address.net).and_then(|few| few.without(same)) {
            Some(rest) => network.prefixes.insert(address.net, rest),
            None => network.prefixes.remove(address.net),
        }
    }

    /// The workload at an address: a pod before anything else, then one that accepts tunnels, then the first to come.
    pub(super) fn workload(&self, network: &str, ip: IpAddr) -> Option<&Arc<Workload>> {
        let few = self.networks.get(network)?.workloads.get(&ip)?;
        few.iter().min_by_key(|workload| {
            let is_pod = workload.uid.contains("//Pod/");
            Reverse((is_pod, workload.tunnel_protocol == TunnelProtocol::Hbone))
        })
    }

    /// The service at an address, seen from a namespace: an exact address before a prefix; the client's namespace first,
    /// then, among prefixes, the longest, then the canonical one, then the first to come.
    pub(super) fn service(
        &self,
        network: &str,
        ip: IpAddr,
        client_namespace: &str,
    ) -> Option<&Arc<Service>> {
        let network = self.networks.get(network)?;
        if let Some(few) = network.services.get(&ip)
            && let Some(exact) = preferred(few.iter(), client_namespace)
        {
            return Some(exact);
        }
        network
            .prefixes
            .containing(ip)
            .flat_map(|(length, few)| few.iter().map(move |service| (length, service)))
            .filter(|(_, service)| service.visible_from(client_namespace))
            .min_by_key(|(length, service)| {
                Reverse((*service.namespace == *client_namespace, *length, service.canonical))
            })
            .map(|(_, service)| service)
    }

    /// Every service that has an address, whoever may see it.
    pub(super) fn services(
        &self,
        network: &str,
        ip: IpAddr,
    ) -> impl Iterator<Item = &Arc<Service>> {
        let network = self.networks.get(network).into_iter();
        network.flat_map(move |network| {
            let exact = network.services.get(&ip).into_iter().flat_map(Few::iter);
            exact.chain(network.prefixes.containing(ip).flat_map(|(_, few)| few.iter()))
        })
    }
}

/// The service meant by a name or address that several have: the client's namespace, then the canonical one, then the
/// first to come; none that the client may not see.
pub(super) fn preferred<'a>(
    services: impl Iterator<Item = &'a Arc<Service>>,
    client_namespace: &str,
) -> Option<&'a Arc<Service>> {
    services
        .filter(|service| service.visible_from(client_namespace))
        .min_by_key(|service| Reverse((*service.namespace == *client_namespace, service.canonical)))
}

/// The addresses that tell which workload it is.
fn indexed_addresses(workload: &Workload) -> &[IpAddr] {
    match workload.network_mode {
        NetworkMode::Standard => &workload.addresses,
        NetworkMode::HostNetwork => &[],
    }
}

fn single_address(net: IpNet) -> Option<IpAddr> {
    (net.prefix_len() == net.max_prefix_len()).then(|| net.addr())
}
