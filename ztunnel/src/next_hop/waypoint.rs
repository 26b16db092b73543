//! Finds the waypoint that guards a destination.
//!
//! In: the reference that the destination carries. Out: the waypoint, its port and who must be found there. A waypoint
//! that cannot be found is an error, never a way around it.

use mesh::store::{Found, GatewayAddress, Service, Snapshot, Workload};

use super::{
    NoRoute, Outbound,
    choosing::Choosing,
    endpoint::{PortRule, Reach},
    reference::{self, Referenced},
};

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

/// Finds the waypoint behind a reference. It has no address if it is on another network, behind the gateway that it names.
pub(super) fn resolve(
    snapshot: &Snapshot,
    outbound: &Outbound<'_>,
    gateway: &GatewayAddress,
    choosing: &mut Choosing<'_>,
) -> Result<Referenced, NoRoute> {
    let found = reference::resolve(
        snapshot,
        outbound,
        gateway,
        (PortRule::ListedOrApplicationTunnel, Reach::ThroughGateways),
        choosing,
    )?;
    let mut found =
        found.ok_or_else(|| NoRoute::UnknownWaypoint { waypoint: gateway.target.clone() })?;
    let unusable = |found: &Referenced, lacks| {
        Err(NoRoute::UnusableWaypoint { waypoint: found.workload.uid.clone(), lacks })
    };
    // Of a service's endpoints, only those were considered that can be reached.
    if found.service.is_none() {
        if found.workload.network != outbound.source.network {
            found.address = None;
        } else if found.address.is_none() {
            return unusable(&found, "address");
        }
    }
    if found.expect.is_empty() && found.address.is_some() {
        return unusable(&found, "identity");
    }
    Ok(found)
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
