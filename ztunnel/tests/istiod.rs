//! Where connections go in the two networks that a real istiod described (fixture `11-multinetwork`), and what the names
//! mean that it told (`01-basic`, `04-external`).
//!
//! In: `../shared/fixtures/istiod/*/ztunnel.address.pb`, delta responses with their lengths as varints before
//! them.
#![expect(clippy::unwrap_used, reason = "a step that fails is the test failing")]

use std::{collections::BTreeSet, fs, net::SocketAddr, path::Path, sync::Arc, time::Duration};

use mesh::{
    identity::Spiffe,
    store::{Snapshot, Store, Update},
};
use prost::Message;
use proto::{discovery::DeltaDiscoveryResponse, workload::Address};
use ztunnel::{
    dns::{Answer, Client, DnsSection, Family, Question, ResolvConf, answer},
    next_hop::{Experience, NextHop, Outbound, next_hop, source},
};

/// Enough random numbers that each of a few choices occurs.
const PICKS: u64 = 400;

fn snapshot(fixture: &str) -> Arc<Snapshot> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let file = format!("../../shared/fixtures/istiod/{fixture}/ztunnel.address.pb");
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
    let snapshot = snapshot("11-multinetwork");
    let near = source(&snapshot, namespace, "near-0", "srv").unwrap();
    let orig_dst: SocketAddr = to.parse().unwrap();
    let outbound = Outbound { source: near, orig_dst, network: "net-1" };
    (0..PICKS)
        .map(|pick| describe(next_hop(&snapshot, &outbound, &Experience::NONE, pick).unwrap()))
        .collect()
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

/// What a pod of a namespace is told of a name: its addresses, or `unknown`.
fn told(snapshot: &Snapshot, namespace: &str, family: Family, name: &str) -> String {
    let settings = DnsSection {
        capture: true,
        port: 15053,
        cluster_domain: "cluster.local".into(),
        preferred_namespace: None,
        ipv6: true,
        time_to_live: Duration::from_secs(30),
    };
    let resolv_conf = ResolvConf::of_kubernetes(namespace, "cluster.local");
    let client = Client { namespace, network: "", resolv_conf: &resolv_conf };
    match answer(snapshot, &settings, &client, &Question { name, family }) {
        Answer::Unknown => "unknown".into(),
        Answer::Known(known) => {
            known.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        }
    }
}

// A real istiod does not tell the host names of a StatefulSet's pods.
#[test]
fn services_headless_ones_and_their_pods_are_known_by_name() {
    let snapshot = snapshot("01-basic");
    for (namespace, family, name, expected) in [
        ("shop", Family::Ipv4, "cart", "10.96.1.20"),
        ("shop", Family::Ipv6, "cart", "fd00:10:96::120"),
        ("data", Family::Ipv4, "cart.shop", "10.96.1.20"),
        ("data", Family::Ipv4, "cart", "unknown"),
        ("shop", Family::Ipv4, "cart-v6", ""),
        ("shop", Family::Ipv6, "cart-v6", "fd00:10:96::121"),
        ("data", Family::Ipv4, "redis-headless", "10.244.1.60 10.244.2.60"),
        ("data", Family::Ipv4, "redis-1.redis-headless", "10.244.2.60"),
        ("data", Family::Ipv4, "redis-2.redis-headless", "unknown"),
        ("shop", Family::Ipv4, "empty.shop.svc.cluster.local", "10.96.1.40"),
    ] {
        assert_eq!(told(&snapshot, namespace, family, name), expected, "{name} in {namespace}");
    }
}

#[test]
fn hosts_of_service_entries_are_known_by_name_with_the_clients_own_first() {
    let snapshot = snapshot("04-external");
    for (namespace, name, expected) in [
        ("ext", "api.example.com", "240.240.0.1"),
        ("owned", "api.example.com", "240.240.0.6"),
        ("ext", "owned.example.com", "unknown"),
        ("vm", "dup.example.com", "240.240.0.18"),
        ("ext", "a.b.dyn.example.com", "240.240.0.11"),
        ("ext", "api.example.com.ext.svc.cluster.local", "240.240.0.1"),
        // Without an address, and with whole prefixes only.
        ("ext", "a.wild.example.com", "unknown"),
        ("ext", "none-auto.example.com", "unknown"),
        ("ext", "cidr.example.com", ""),
    ] {
        assert_eq!(
            told(&snapshot, namespace, Family::Ipv4, name),
            expected,
            "{name} in {namespace}"
        );
    }
}
