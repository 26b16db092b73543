//! Finds the way to another network: the gateway in front of it, and who must be found behind that.
//!
//! In: the workload there, the service that was dialed and the one whose identities count. Out: a hop with two tunnels, one
//! inside the other. A gateway that cannot be found is an error, never a way around it.

use std::sync::Arc;

use mesh::{
    hbone::{Authority, HostName},
    identity::Spiffe,
    store::{GatewayAddress, Service, Snapshot, Workload},
};

use super::{
    Hop, NextHop, NoRoute, Outbound, Via,
    address::Address,
    choosing::Choosing,
    endpoint::{PortRule, Reach},
    reference::{self, Referenced},
};

/// A destination on another network.
pub(super) struct Elsewhere {
    /// What was chosen there: an endpoint, or a waypoint.
    pub(super) target: Arc<Workload>,
    /// What was dialed: the gateway and whoever is behind it are asked for it by name.
    pub(super) dialed: Option<Arc<Service>>,
    /// Whose identities count behind the gateway: the dialed service, or its waypoint's.
    pub(super) behind: Option<Arc<Service>>,
}

/// The hop to another network.
pub(super) fn across(
    snapshot: &Snapshot,
    outbound: &Outbound<'_>,
    elsewhere: Elsewhere,
    choosing: &mut Choosing<'_>,
) -> Result<NextHop, NoRoute> {
    let Elsewhere { target, dialed, behind } = elsewhere;
    let network = || target.network.clone();
    let Some(service) = dialed else {
        let (target, network) = (target.uid.clone(), network());
        return Err(NoRoute::OtherNetworkWithoutService { target, network });
    };
    let Some(gateway) = &target.network_gateway else {
        return Err(NoRoute::OtherNetwork { target: target.uid.clone(), network: network() });
    };
    let behind = match behind {
        Some(behind) if !behind.identities.is_empty() => behind.identities.clone(),
        behind => {
            let service = behind.as_ref().unwrap_or(&service).key.clone();
            return Err(NoRoute::NoServiceIdentity { service, network: network() });
        }
    };
    let name = HostName::parse(&service.hostname).map_err(|_| NoRoute::NoServiceName {
        hostname: service.hostname.clone(),
        network: network(),
    })?;
    let authority = Authority::Host { name, port: outbound.orig_dst.port() };
    let Gateway { workload, hbone_port, address, expect } =
        resolve(snapshot, outbound, gateway, &target, choosing)?;
    let via = Via::Across { hbone_port, authority, expect, behind, target };
    Ok(Hop { workload, service: Some(service), via }.at_address(address))
}

struct Gateway {
    workload: Arc<Workload>,
    hbone_port: u16,
    address: Address,
    expect: Arc<[Spiffe]>,
}

fn resolve(
    snapshot: &Snapshot,
    outbound: &Outbound<'_>,
    gateway: &GatewayAddress,
    target: &Workload,
    choosing: &mut Choosing<'_>,
) -> Result<Gateway, NoRoute> {
    let found = reference::resolve(
        snapshot,
        outbound,
        gateway,
        (PortRule::Listed, Reach::Directly),
        choosing,
    )?;
    let Referenced { workload, port: hbone_port, address, expect, service: _ } =
        found.ok_or_else(|| NoRoute::UnknownGateway {
            gateway: gateway.target.clone(),
            network: target.network.clone(),
        })?;
    let unusable = |lacks| NoRoute::UnusableGateway { gateway: workload.uid.clone(), lacks };
    let address = address.ok_or_else(|| unusable("address"))?;
    if expect.is_empty() {
        return Err(unusable("identity"));
    }
    Ok(Gateway { workload, hbone_port, address, expect })
}
