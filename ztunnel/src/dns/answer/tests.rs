//! The rules of answering (node-proxy.md §8), one table each.

use std::time::Duration;

use super::*;
use crate::next_hop::fixture::{NAMESPACE, NETWORK, snapshot};

const SHOP: &str = "
    workload web    10.0.0.1,fd00::1
    workload db-0   10.0.0.2,fd00::2
    workload db-1   10.0.0.3           unhealthy
    workload far    10.0.0.4           network=elsewhere
    workload named  10.0.0.5           host=alias.peers.shop.svc.cluster.local
    service  cart   10.1.0.1:80,[fd01::1]:80   -> web:80   host=cart.shop.svc.cluster.local
    service  old    10.1.0.2:80                -> web:80   host=old.shop.svc.cluster.local
    service  v4     10.1.0.3:80,[fd01::3]:80   -> web:80   host=v4.shop.svc.cluster.local families=ipv4
    service  hidden 10.1.0.4:80                -> web:80   host=hidden.data.svc.cluster.local ns=data private
    service  net    10.2.0.0/16:80             -> web:80   host=net.shop.svc.cluster.local
    service  away   10.1.0.6:80                -> web:80   host=away.shop.svc.cluster.local network=elsewhere
    service  db     -:80   -> db-0:80 db-1:80 far:80       host=db.shop.svc.cluster.local
    service  all    -:80   -> db-0:80 db-1:80              host=all.shop.svc.cluster.local allow-all
    service  none   -:80   ->                              host=none.shop.svc.cluster.local
    service  peers  -:80   -> named:80 db-0:80             host=peers.shop.svc.cluster.local
    service  api    10.3.0.1:443  ->                       host=api.example.com
    service  wild   10.3.0.2:443  ->                       host=*.example.com
    service  bare   -:443         ->                       host=bare.example.com
    service  twice  10.4.0.1:80   ->   host=twice.example.org ns=first
    service  twice  10.4.0.2:80   ->   host=twice.example.org ns=data
    service  canon  10.5.0.1:80   ->   host=canon.example.org ns=first
    service  canon  10.5.0.2:80   ->   host=canon.example.org ns=data canonical
    service  mine   10.6.0.1:80   ->   host=mine.example.org ns=data canonical
    service  mine   10.6.0.2:80   ->   host=mine.example.org ns=shop
";

fn settings() -> DnsSection {
    DnsSection {
        capture: true,
        port: 15053,
        cluster_domain: "cluster.local".into(),
        preferred_namespace: None,
        ipv6: true,
        time_to_live: Duration::from_secs(30),
    }
}

/// Asks for `A name` or `AAAA name`.
fn ask(settings: &DnsSection, question: &str) -> String {
    let snapshot = snapshot(SHOP);
    let resolv_conf = ResolvConf::of_kubernetes(NAMESPACE, "cluster.local");
    let client = Client { namespace: NAMESPACE, network: NETWORK, resolv_conf: &resolv_conf };
    let (family, name) = match question.split_once(' ').unwrap() {
        ("A", name) => (Family::Ipv4, name),
        ("AAAA", name) => (Family::Ipv6, name),
        (other, _) => panic!("{other}"),
    };
    match answer(&snapshot, settings, &client, &Question { name, family }) {
        Answer::Unknown => "unknown".into(),
        Answer::Known(Known { alias_of, addresses }) => {
            let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            let alias = alias_of.map(|alias| format!("-> {alias} ")).unwrap_or_default();
            format!("{alias}{}", addresses.join(" ")).trim().to_owned()
        }
    }
}

fn check(rows: &[(&str, &str)]) {
    for (question, expected) in rows {
        assert_eq!(ask(&settings(), question), *expected, "{question}");
    }
}

#[test]
fn a_service_is_known_by_every_form_of_its_name() {
    check(&[
        ("A cart", "10.1.0.1"),
        ("A cart.shop", "10.1.0.1"),
        ("A cart.shop.svc", "10.1.0.1"),
        ("A cart.shop.svc.cluster.local", "10.1.0.1"),
        ("AAAA cart", "fd01::1"),
    ]);
}

#[test]
fn a_known_name_without_such_an_address_has_no_records_and_is_not_unknown() {
    check(&[
        ("AAAA old.shop.svc.cluster.local", ""),
        ("A v4.shop.svc.cluster.local", "10.1.0.3"),
        ("AAAA v4.shop.svc.cluster.local", ""),
        ("A none.shop.svc.cluster.local", ""),
    ]);
}

#[test]
fn prefixes_and_addresses_of_other_networks_are_never_told() {
    check(&[("A net.shop.svc.cluster.local", ""), ("A away.shop.svc.cluster.local", "")]);
}

#[test]
fn a_headless_service_has_its_healthy_endpoints_addresses() {
    check(&[
        ("A db", "10.0.0.2"),
        ("AAAA db", "fd00::2"),
        ("A all.shop.svc.cluster.local", "10.0.0.2 10.0.0.3"),
    ]);
}

// §11.11.
#[test]
fn pods_of_a_headless_service_have_names() {
    check(&[
        ("A db-0.db", "10.0.0.2"),
        ("A db-0.db.shop.svc.cluster.local", "10.0.0.2"),
        // A pod that is not ready has its name all the same: its peers look for it while it starts.
        ("A db-1.db.shop.svc.cluster.local", "10.0.0.3"),
        ("AAAA db-1.db.shop.svc.cluster.local", ""),
        ("A alias.peers.shop.svc.cluster.local", "10.0.0.5"),
        ("A named.peers.shop.svc.cluster.local", "unknown"),
        ("A db-7.db.shop.svc.cluster.local", "unknown"),
        // A service with an address has no names below its own.
        ("A web.cart.shop.svc.cluster.local", "unknown"),
    ]);
}

#[test]
fn wildcards_hold_for_every_name_below_them_and_after_exact_names() {
    check(&[
        ("A api.example.com", "10.3.0.1"),
        ("A www.example.com", "10.3.0.2"),
        ("A a.b.example.com", "10.3.0.2"),
        ("A example.com", "unknown"),
        // Without an address it is not answered, so that the wildcard is.
        ("A bare.example.com", "10.3.0.2"),
    ]);
}

#[test]
fn a_name_completed_by_the_pods_resolver_is_an_alias_of_what_it_stands_for() {
    check(&[
        ("A api.example.com.shop.svc.cluster.local", "-> api.example.com 10.3.0.1"),
        (
            "A cart.shop.svc.cluster.local.svc.cluster.local",
            "-> cart.shop.svc.cluster.local 10.1.0.1",
        ),
        ("A cart.shop.cluster.local", "-> cart.shop 10.1.0.1"),
        ("A www.example.com.svc.cluster.local", "10.3.0.2"),
    ]);
}

#[test]
fn what_the_client_may_not_see_is_unknown() {
    check(&[("A hidden.data", "unknown")]);
}

#[test]
fn of_several_services_the_clients_own_comes_first_then_the_canonical_one() {
    check(&[("A mine.example.org", "10.6.0.2"), ("A canon.example.org", "10.5.0.2")]);
    let first = ask(&settings(), "A twice.example.org");
    let other = if first == "10.4.0.1" { "data" } else { "first" };
    let preferring = DnsSection { preferred_namespace: Some(other.into()), ..settings() };
    assert_ne!(ask(&preferring, "A twice.example.org"), first);
    let against = DnsSection { preferred_namespace: Some("first".into()), ..settings() };
    assert_eq!(ask(&against, "A canon.example.org"), "10.5.0.2");
}

#[test]
fn without_ipv6_no_such_address_is_told() {
    let settings = DnsSection { ipv6: false, ..settings() };
    assert_eq!(ask(&settings, "AAAA cart"), "");
    assert_eq!(ask(&settings, "AAAA db-0.db"), "");
    assert_eq!(ask(&settings, "A cart"), "10.1.0.1");
}

#[test]
fn other_names_are_left_to_others() {
    check(&[
        ("A www.example.net", "unknown"),
        ("A basket", "unknown"),
        ("AAAA cluster.local", "unknown"),
    ]);
}
