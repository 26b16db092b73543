//! Finds the waypoint that guards a destination.
//!
//! In: the reference that the destination carries. Out: the waypoint's workload, its port and who must be found there. A waypoint
//! that cannot be found is an error, never a way around it.

use std::sync::Arc;

use mesh::{
    identity::Spiffe,
    store::{Found, GatewayAddress, GatewayTarget, Service, Snapshot, Workload},
};

use super::{
    NoRoute, Outbound,
    address::{self, Address},
    choosing::Choosing,
    endpoint::{self, Chosen, PortRule, Reach, Wanted},
    expected,
};

/// A waypoint, and how to reach it.
pub(super) struct Waypoint {
    pub(super) workload: Arc<Workload>,
    /// Its port for tunnels.
    pub(super) port: u16,
    /// None if it is on another network, behind the gateway that it names.
    pub(super) address: Option<Address>,
    pub(super) expect: Arc<[Spiffe]>,
    /// The service it was chosen from, if it was one.
    pub(super) service: Option<Arc<Service>>,
}

/// The waypoint of a service: one of several by their weights, else the only one.
pub(super) fn of_service<'a>(
    service: &'a Service,
    choosing: &mut Choosing<'_>,
) -> Result<Option<&'a GatewayAddress>, NoRoute> {
    let total = service.weighted_waypoints.iter().map(|one| u64::from(one.weight)).sum();
    let mut left = choosing.dice.below(total);
    for one in &service.weighted_waypoints {
        let weight = u64::from(one.weight);
        if left < weight {
            return Ok(Some(&one.gateway));
        }
        left -= weight;
    }
    match &service.waypoint {
        Some(gateway) => Ok(Some(gateway)),
        None if service.weighted_waypoints.is_empty() => Ok(None),
        None => Err(NoRoute::NoWaypointWeight { service: service.key.clone() }),
    }
}

/// Finds the workload behind a reference.
pub(super) fn resolve(
    snapshot: &Snapshot,
    outbound: &Outbound<'_>,
    gateway: &GatewayAddress,
    choosing: &mut Choosing<'_>,
) -> Result<Waypoint, NoRoute> {
    let source = outbound.source;
    // By address, the address keeps its family; by name, the family is that of what was dialed.
    let dialed = match &gateway.target {
        GatewayTarget::Address { ip, network: _ } => *ip,
        GatewayTarget::Host { .. } => outbound.orig_dst.ip(),
    };
    let (chosen, service) = match snapshot.gateway(&gateway.target, &source.namespace) {
        Some(Found::Service(service)) => {
            let wanted = Wanted {
                source,
                service: &service,
                port: gateway.hbone_port,
                dialed,
                rule: PortRule::ListedOrApplicationTunnel,
                reach: Reach::ThroughGateways,
            };
            (endpoint::choose(snapshot, &wanted, choosing)?, Some(service))
        }
        Some(Found::Workload(workload)) => {
            let address = address::of(&workload, None, dialed);
            if workload.network != source.network {
                (Chosen { workload, port: gateway.hbone_port, address: None }, None)
            } else if address.is_some() {
                (Chosen { workload, port: gateway.hbone_port, address }, None)
            } else {
                let waypoint = workload.uid.clone();
                return Err(NoRoute::UnusableWaypoint { waypoint, lacks: "address" });
            }
        }
        None => return Err(NoRoute::UnknownWaypoint { waypoint: gateway.target.clone() }),
    };
    let expect = expected(&chosen.workload, service.as_deref());
    if expect.is_empty() && chosen.address.is_some() {
        let waypoint = chosen.workload.uid.clone();
        return Err(NoRoute::UnusableWaypoint { waypoint, lacks: "identity" });
    }
    let Chosen { workload, port, address } = chosen;
    Ok(Waypoint { workload, port, address, expect, service })
}

/// Whether a workload is the waypoint that a reference means: then what it sends on must not come back to it.
pub(super) fn is_itself(
    snapshot: &Snapshot,
    workload: &Workload,
    gateway: &GatewayAddress,
) -> bool {
    match snapshot.gateway(&gateway.target, &workload.namespace) {
        Some(Found::Service(service)) => workload.membership(&service.key).is_some(),
        Some(Found::Workload(found)) => found.uid == workload.uid,
        None => false,
    }
}
