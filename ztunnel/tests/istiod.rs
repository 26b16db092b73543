//! Where connections go in the two networks that a real istiod described (fixture `11-multinetwork`).
//!
//! In: `../shared/fixtures/istiod/11-multinetwork/ztunnel.address.pb`, delta responses with their lengths as varints before
//! them.
#![expect(clippy::unwrap_used, reason = "a step that fails is the test failing")]

use std::{collections::BTreeSet, fs, net::SocketAddr, path::Path, sync::Arc};

use mesh::{
    identity::Spiffe,
    store::{Snapshot, Store, Update},
};
use prost::Message;
use proto::{discovery::DeltaDiscoveryResponse, workload::Address};
use ztunnel::next_hop::{NextHop, Outbound, next_hop, source};

/// Enough random numbers that each of a few choices occurs.
const PICKS: u64 = 400;

fn snapshot() -> Arc<Snapshot> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let file = "../../shared/fixtures/istiod/11-multinetwork/ztunnel.address.pb";
    let bytes = fs::read(root.join(file)).unwrap();
    let (store, mut rest) = (Store::new(), &bytes[..]);
    while !rest.is_empty() {
        let response = DeltaDiscoveryResponse::decode_length_delimited(&mut rest).unwrap();
        store.apply(response.resources.into_iter().map(|resource| {
            let any = resource.resource.unwrap();
            Update::try_from(Address::decode(&*any.value).unwrap()).unwrap()
        }));
    }
    store.load()
}

/// All that becomes of connections from `namespace/near-0` to `to`.
fn hops(namespace: &str, to: &str) -> BTreeSet<String> {
    let snapshot = snapshot();
    let near = source(&snapshot, namespace, "near-0", "srv").unwrap();
    let orig_dst: SocketAddr = to.parse().unwrap();
    let outbound = Outbound { source: near, orig_dst, network: "net-1" };
    (0..PICKS).map(|pick| describe(next_hop(&snapshot, &outbound, pick).unwrap())).collect()
}

fn describe(hop: NextHop) -> String {
    let principals =
        |names: &[Spiffe]| names.iter().map(Spiffe::principal).collect::<Vec<_>>().join(" or ");
    match hop {
        NextHop::Unresolved(unresolved) => {
            let host = unresolved.host.clone();
            format!("{host}: {}", describe(unresolved.at("192.0.2.1".parse().unwrap())))
        }
        NextHop::Across { dial, authority, expect, behind, target, .. } => format!(
            "{} {dial} {authority} {} then {}",
            target.network,
            principals(&expect),
            principals(&behind)
        ),
        hop @ (NextHop::Passthrough { .. }
        | NextHop::Plain { .. }
        | NextHop::Direct { .. }
        | NextHop::Waypoint { .. }) => hop.to_string(),
    }
}

fn check(namespace: &str, to: &str, expected: &[&str]) {
    assert_eq!(hops(namespace, to), expected.iter().map(|&hop| hop.to_owned()).collect(), "{to}");
}

#[test]
fn a_global_service_is_reached_here_and_through_the_gateways_of_both_other_networks() {
    let asked = "srv-global.bare.svc.cluster.local:80 cluster.local/ns/istio-system/sa/ewgw \
                 then cluster.local/ns/bare/sa/srv or cluster.local/ns/bare/sa/srv-other";
    check(
        "bare",
        "10.96.1.20:80",
        &[
            "direct 10.244.1.20:15008 for 10.244.1.20:8080",
            "direct 10.244.2.20:15008 for 10.244.2.20:8080",
            "direct 10.244.2.21:15008 for 10.244.2.21:8080",
            &format!("net-2 203.0.113.50:15008 {asked}"),
            &format!("gw.net3.example.com: net-3 192.0.2.1:15008 {asked}"),
        ],
    );
}

#[test]
fn a_service_that_is_not_global_stays_on_its_network() {
    check(
        "bare",
        "10.96.1.21:80",
        &[
            "direct 10.244.1.20:15008 for 10.244.1.20:8080",
            "direct 10.244.2.20:15008 for 10.244.2.20:8080",
            "direct 10.244.2.21:15008 for 10.244.2.21:8080",
        ],
    );
}

#[test]
fn a_global_service_with_a_waypoint_here_goes_to_it() {
    check("app", "10.96.1.10:80", &["waypoint 10.244.1.200:15008 for 10.96.1.10:80"]);
}
