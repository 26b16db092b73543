//! How other networks are reached.
//!
//! In: Gateways that say which network they stand before. Out: the addresses and ports for tunnels of each. A gateway
//! that has a host name only is not there: nobody looks it up.

use std::{collections::BTreeMap, net::IpAddr};

use crate::manifests::{Manifests, Object, gateway_api::Gateway};

const NETWORK: &str = "topology.istio.io/network";

/// The gateways by network.
#[derive(Debug, Default)]
pub(super) struct Networks {
    gateways: BTreeMap<String, Vec<(IpAddr, u16)>>,
}

impl Networks {
    pub(super) fn of(manifests: &Manifests) -> Self {
        let mut gateways: BTreeMap<String, Vec<(IpAddr, u16)>> = BTreeMap::new();
        for gateway in manifests.gateways.iter().filter(|gateway| stands_between(gateway)) {
            let Some(network) = gateway.meta.labels.get(NETWORK) else { continue };
            let of_network = gateways.entry(network.clone()).or_default();
            of_network.extend(addresses(gateway));
            of_network.sort();
            of_network.dedup();
        }
        Self { gateways }
    }

    /// Where a network is entered; nowhere if it is not known.
    pub(super) fn gateways(&self, network: &str) -> &[(IpAddr, u16)] {
        self.gateways.get(network).map_or(&[], Vec::as_slice)
    }
}

fn stands_between(gateway: &Object<Gateway>) -> bool {
    matches!(gateway.spec.gateway_class_name.as_str(), "istio-east-west" | "istio-remote")
}

fn addresses(gateway: &Object<Gateway>) -> Vec<(IpAddr, u16)> {
    let tunnels = gateway.spec.listeners.iter().find(|listener| listener.protocol == "HBONE");
    let Some(tunnels) = tunnels else { return Vec::new() };
    let given = gateway.spec.addresses.iter().chain(&gateway.spec.status.addresses);
    given.filter_map(|address| Some((address.value.parse().ok()?, tunnels.port))).collect()
}
