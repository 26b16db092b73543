//! Whom a reference to a waypoint or gateway means.
//!
//! In: the reference, and which endpoints of a service are acceptable. Out: the workload, where it takes tunnels and who must
//! be found there; or that nobody is known by it. What that means is for those to say who follow the reference.

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

/// What a reference means.
pub(super) struct Referenced {
    pub(super) workload: Arc<Workload>,
    /// Its port for tunnels.
    pub(super) port: u16,
    pub(super) address: Option<Address>,
    pub(super) expect: Arc<[Spiffe]>,
    /// The service it was chosen from, if it was one.
    pub(super) service: Option<Arc<Service>>,
}

/// Finds the workload behind a reference.
pub(super) fn resolve(
    snapshot: &Snapshot,
    outbound: &Outbound<'_>,
    gateway: &GatewayAddress,
    (rule, reach): (PortRule, Reach),
    choosing: &mut Choosing<'_>,
) -> Result<Option<Referenced>, NoRoute> {
    let source = outbound.source;
    // By address, the address keeps its family; by name, the family is that of what was dialed.
    let dialed = match &gateway.target {
        GatewayTarget::Address { ip, network: _ } => *ip,
        GatewayTarget::Host { .. } => outbound.orig_dst.ip(),
    };
    let (chosen, service) = match snapshot.gateway(&gateway.target, &source.namespace) {
        Some(Found::Service(service)) => {
            let port = gateway.hbone_port;
            let wanted = Wanted { source, service: &service, port, dialed, rule, reach };
            (endpoint::choose(snapshot, &wanted, choosing)?, Some(service))
        }
        Some(Found::Workload(workload)) => {
            let address = address::of(&workload, None, dialed);
            (Chosen { workload, port: gateway.hbone_port, address }, None)
        }
        None => return Ok(None),
    };
    let Chosen { workload, port, address } = chosen;
    let expect = expected(&workload, service.as_deref());
    Ok(Some(Referenced { workload, port, address, expect, service }))
}
