//! Decides an outbound connection, and asks the control plane for what the decision lacks where the node does not have
//! everything.
//!
//! In: the connection. Out: its next hop. What the control plane does not say in time is not taken for "not in the mesh":
//! the connection is refused rather than sent in the clear.

use mesh::{
    store::{GatewayTarget, Snapshot, Store},
    telemetry::{Failure, Reason},
    xds::{Key, Lookup, OnDemand},
};

use super::Node;
use crate::next_hop::{NextHop, NoRoute, Outbound};

/// Decides, with what the control plane knows of the destination and of the gateways before it.
pub(super) async fn decide(
    node: &Node,
    outbound: &Outbound<'_>,
    next_hop: impl Fn(&Snapshot) -> Result<NextHop, NoRoute>,
) -> Result<NextHop, Failure> {
    let on_demand = &node.on_demand;
    if on_demand.is_asking() {
        destination(on_demand, &node.store, outbound).await?;
    }
    let mut asked = Vec::new();
    loop {
        let decided = next_hop(&node.store.load());
        let error = match decided {
            Ok(hop) => return Ok(hop),
            Err(error) => error,
        };
        let missing = gateway(&error).filter(|key| on_demand.is_asking() && !asked.contains(key));
        let Some(key) = missing else { return Err(Failure::new(Reason::from(&error), &error)) };
        want(on_demand, outbound, &key).await?;
        asked.push(key);
    }
}

/// Has the store know whatever has the address that was dialed.
async fn destination(
    on_demand: &OnDemand,
    store: &Store,
    outbound: &Outbound<'_>,
) -> Result<(), Failure> {
    let ip = outbound.orig_dst.ip();
    if ip.is_loopback() || ip.is_multicast() || ip.is_unspecified() {
        return Ok(());
    }
    let key = Key::Address { network: outbound.network.into(), ip };
    let is_held =
        || store.load().by_address(outbound.network, ip, &outbound.source.namespace).is_some();
    // What came unasked, as this node's own pods do, is held without having been asked for.
    if on_demand.touch(&key) || is_held() {
        return Ok(());
    }
    want(on_demand, outbound, &key).await
}

/// The waypoint or gateway that a decision lacks.
fn gateway(error: &NoRoute) -> Option<Key> {
    let (NoRoute::UnknownWaypoint { waypoint: target }
    | NoRoute::UnknownGateway { gateway: target, .. }) = error
    else {
        return None;
    };
    match target {
        GatewayTarget::Address { network, ip } => {
            Some(Key::Address { network: network.clone(), ip: *ip })
        }
        GatewayTarget::Host { key } => {
            let (namespace, hostname) = key.split_once('/')?;
            Some(Key::Host { namespace: namespace.into(), hostname: hostname.into() })
        }
    }
}

async fn want(on_demand: &OnDemand, outbound: &Outbound<'_>, key: &Key) -> Result<(), Failure> {
    match on_demand.want(&outbound.source.uid, key).await {
        Lookup::Answered | Lookup::Absent => Ok(()),
        Lookup::Unanswered => {
            let error = format!("the control plane has not said in time what {key} is");
            Err(Failure { reason: Reason::LookupTimeout, error })
        }
    }
}
