//! The rules of lookup and of what an update changes.

use std::{net::IpAddr, sync::Arc};

use proto::workload::{
    Address, NetworkAddress as WireAddress, Port as WirePort, PortList, Service as WireService,
    Workload as WireWorkload, address,
};

use super::*;

fn bytes(ip: &str) -> Vec<u8> {
    match ip.parse().unwrap() {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// A pod of namespace `shop` in network `net`.
fn pod(name: &str, ip: &str) -> WireWorkload {
    WireWorkload {
        uid: format!("cluster//Pod/shop/{name}"),
        name: name.into(),
        namespace: "shop".into(),
        network: "net".into(),
        service_account: name.into(),
        addresses: vec![bytes(ip)],
        ..Default::default()
    }
}

fn endpoint_of(services: &[&str], mut workload: WireWorkload) -> WireWorkload {
    let port = WirePort { service_port: 80, target_port: 8080, app_protocol: 0 };
    let ports = PortList { ports: vec![port] };
    workload.services = services.iter().map(|key| ((*key).to_owned(), ports.clone())).collect();
    workload
}

fn service(namespace: &str, hostname: &str, addresses: &[&str]) -> WireService {
    let address = |text: &&str| {
        let (ip, length) = text.split_once('/').unwrap_or((text, ""));
        WireAddress { network: "net".into(), address: bytes(ip), length: length.parse().ok() }
    };
    WireService {
        name: hostname.into(),
        namespace: namespace.into(),
        hostname: hostname.into(),
        addresses: addresses.iter().map(address).collect(),
        ..Default::default()
    }
}

trait IntoUpdate {
    fn update(self) -> Update;
}

impl IntoUpdate for WireWorkload {
    fn update(self) -> Update {
        Address { r#type: Some(address::Type::Workload(self)) }.try_into().unwrap()
    }
}

impl IntoUpdate for WireService {
    fn update(self) -> Update {
        Address { r#type: Some(address::Type::Service(self)) }.try_into().unwrap()
    }
}

fn remove(name: &str) -> Update {
    Update::RemoveAddress(name.into())
}

fn loaded(updates: impl IntoIterator<Item = Update>) -> Arc<Snapshot> {
    let store = Store::new();
    store.apply(updates);
    store.load()
}

/// What is at an address of network `net`, for a client of namespace `shop`.
fn check_address(snapshot: &Snapshot, ip: &str, expected: &str) {
    check_address_from(snapshot, "shop", ip, expected);
}

fn check_address_from(snapshot: &Snapshot, namespace: &str, ip: &str, expected: &str) {
    let found = match snapshot.by_address("net", ip.parse().unwrap(), namespace) {
        Some(Found::Workload(workload)) => workload.uid.to_string(),
        Some(Found::Service(service)) => service.key.to_string(),
        None => "nothing".to_owned(),
    };
    assert_eq!(found, expected, "{ip} from {namespace}");
}

fn check_endpoints(snapshot: &Snapshot, key: &str, expected: &str) {
    let found = match snapshot.service(key).map(|service| snapshot.endpoints(service)) {
        Some(Some(endpoints)) => {
            endpoints.iter().map(|endpoint| &*endpoint.name).collect::<Vec<_>>().join(" ")
        }
        Some(None) => "no endpoints".to_owned(),
        None => "no service".to_owned(),
    };
    assert_eq!(found, expected, "{key}");
}

#[test]
fn a_workload_comes_before_a_service_at_one_address() {
    let snapshot =
        loaded([service("shop", "s", &["10.0.0.1"]).update(), pod("a", "10.0.0.1").update()]);
    check_address(&snapshot, "10.0.0.1", "cluster//Pod/shop/a");
    check_address(&snapshot, "::ffff:10.0.0.1", "cluster//Pod/shop/a");
    check_address(&snapshot, "10.0.0.2", "nothing");
}

#[test]
fn one_address_in_two_networks_is_two_addresses() {
    let away = WireWorkload { network: "away".into(), ..pod("away", "10.0.0.1") };
    let snapshot = loaded([away.update(), pod("here", "10.0.0.1").update()]);
    check_address(&snapshot, "10.0.0.1", "cluster//Pod/shop/here");
    let ip = "10.0.0.1".parse().unwrap();
    assert_eq!(&*snapshot.workload_by_address("away", ip).unwrap().name, "away");
    assert!(snapshot.workload_by_address("other", ip).is_none());
}

#[test]
fn of_several_workloads_at_one_address_a_pod_is_preferred_then_one_with_tunnels() {
    let entry = WireWorkload { uid: "cluster/WorkloadEntry/shop/e".into(), ..pod("e", "10.0.0.1") };
    let plain = pod("plain", "10.0.0.1");
    let tunnels = WireWorkload { tunnel_protocol: 1, ..pod("tunnels", "10.0.0.1") };
    let entry_with_tunnels = WireWorkload { tunnel_protocol: 1, ..entry.clone() };
    let check = |workloads: Vec<WireWorkload>, expected: &str| {
        let snapshot = loaded(workloads.into_iter().map(WireWorkload::update));
        check_address(&snapshot, "10.0.0.1", expected);
    };
    check(vec![entry_with_tunnels, plain.clone()], "cluster//Pod/shop/plain");
    check(vec![entry, plain.clone(), tunnels], "cluster//Pod/shop/tunnels");
    check(vec![plain, pod("later", "10.0.0.1")], "cluster//Pod/shop/plain");
}

#[test]
fn a_host_network_workload_is_not_found_by_address() {
    let host = WireWorkload { network_mode: 1, ..pod("host", "10.0.0.1") };
    let snapshot = loaded([host.clone().update()]);
    check_address(&snapshot, "10.0.0.1", "nothing");
    assert!(snapshot.workload(&host.uid).is_some());
}

#[test]
fn of_several_services_at_one_address_the_clients_own_is_preferred_then_the_canonical_one() {
    let canonical = |service| WireService { canonical: true, ..service };
    let hidden = |service| WireService { visibility: 1, ..service };
    let first = || service("a", "s", &["10.1.0.1"]);
    let second = || service("b", "s", &["10.1.0.1"]);
    let check = |services: [WireService; 2], client: &str, expected: &str| {
        let snapshot = loaded(services.map(WireService::update));
        check_address_from(&snapshot, client, "10.1.0.1", expected);
        let by_host = snapshot.service_by_host("s", client).map_or("nothing", |s| &s.key);
        assert_eq!(by_host, expected);
    };
    check([first(), second()], "b", "b/s");
    check([canonical(first()), second()], "b", "b/s");
    check([first(), canonical(second())], "c", "b/s");
    check([first(), second()], "c", "a/s");
    check([hidden(first()), second()], "c", "b/s");
    check([hidden(first()), hidden(second())], "c", "nothing");
    check([hidden(first()), second()], "a", "a/s");
}

#[test]
fn an_exact_address_comes_before_a_prefix_and_a_prefix_of_the_clients_own_before_a_longer_one() {
    let snapshot = loaded(
        [
            service("a", "exact", &["10.1.0.1/32"]),
            service("shop", "own", &["10.0.0.0/8"]),
            service("a", "long", &["10.1.0.0/16"]),
            WireService { canonical: true, ..service("b", "canonical", &["10.1.0.0/16"]) },
            WireService { visibility: 1, ..service("b", "hidden", &["10.1.0.0/24"]) },
            service("a", "six", &["2001:db8::/32"]),
        ]
        .map(WireService::update),
    );
    check_address(&snapshot, "10.1.0.1", "a/exact");
    check_address(&snapshot, "10.1.0.2", "shop/own");
    check_address_from(&snapshot, "c", "10.1.0.2", "b/canonical");
    check_address_from(&snapshot, "c", "10.2.0.2", "shop/own");
    check_address_from(&snapshot, "b", "10.1.0.2", "b/hidden");
    check_address(&snapshot, "2001:db8::1", "a/six");
    check_address(&snapshot, "2001:db9::1", "nothing");
    check_address(&snapshot, "11.0.0.0", "nothing");
}

#[test]
fn endpoints_and_their_service_may_arrive_in_any_order() {
    let s = || service("shop", "s", &["10.1.0.1"]).update();
    let e = || endpoint_of(&["shop/s"], pod("e", "10.0.0.1")).update();
    for updates in [[s(), e()], [e(), s()]] {
        let store = Store::new();
        for update in updates {
            store.apply([update]);
        }
        check_endpoints(&store.load(), "shop/s", "e");
    }
}

#[test]
fn a_replaced_service_keeps_its_endpoints_and_a_removed_one_finds_them_again() {
    let store = Store::new();
    let s = |ip| service("shop", "s", &[ip]).update();
    store.apply([s("10.1.0.1"), endpoint_of(&["shop/s"], pod("e", "10.0.0.1")).update()]);
    store.apply([s("10.1.0.2")]);
    check_address(&store.load(), "10.1.0.1", "nothing");
    check_address(&store.load(), "10.1.0.2", "shop/s");
    check_endpoints(&store.load(), "shop/s", "e");
    store.apply([remove("shop/s")]);
    check_endpoints(&store.load(), "shop/s", "no service");
    check_address(&store.load(), "10.1.0.2", "nothing");
    assert!(store.load().service_by_host("s", "shop").is_none());
    store.apply([s("10.1.0.1")]);
    check_endpoints(&store.load(), "shop/s", "e");
}

#[test]
fn unhealthy_endpoints_are_kept() {
    let sick = WireWorkload { status: 1, ..endpoint_of(&["shop/s"], pod("sick", "10.0.0.1")) };
    let snapshot = loaded([service("shop", "s", &[]).update(), sick.update()]);
    check_endpoints(&snapshot, "shop/s", "sick");
}

#[test]
fn a_changed_workload_leaves_the_places_it_no_longer_has() {
    let store = Store::new();
    store.apply(["s", "t"].map(|name| service("shop", name, &[]).update()));
    let before = WireWorkload { hostname: "old".into(), ..pod("e", "10.0.0.1") };
    store.apply([endpoint_of(&["shop/s"], before).update()]);
    let after = WireWorkload { hostname: "new".into(), name: "f".into(), ..pod("e", "10.0.0.2") };
    store.apply([endpoint_of(&["shop/t"], after).update()]);
    let snapshot = store.load();
    check_endpoints(&snapshot, "shop/s", "no endpoints");
    check_endpoints(&snapshot, "shop/t", "f");
    check_address(&snapshot, "10.0.0.1", "nothing");
    check_address(&snapshot, "10.0.0.2", "cluster//Pod/shop/e");
    assert!(snapshot.workload_by_host("shop/old").is_none());
    assert!(snapshot.workload_by_host("shop/new").is_some());
    assert!(snapshot.workload_of("shop", "e", "e").is_none());
    assert!(snapshot.workload_of("shop", "f", "e").is_some());
}

#[test]
fn a_removed_workload_leaves_nothing_behind() {
    let store = Store::new();
    let e = WireWorkload { hostname: "h".into(), ..pod("e", "10.0.0.1") };
    store.apply([service("shop", "s", &[]).update(), endpoint_of(&["shop/s"], e).update()]);
    store.apply([remove("cluster//Pod/shop/e"), remove("never-was")]);
    let snapshot = store.load();
    check_endpoints(&snapshot, "shop/s", "no endpoints");
    check_address(&snapshot, "10.0.0.1", "nothing");
    assert!(snapshot.workload_of("shop", "e", "e").is_none());
    assert!(snapshot.workload_by_host("shop/h").is_none());
    assert_eq!(snapshot.workloads().count(), 0);
}

#[test]
fn a_removed_name_is_a_uid_first_and_a_service_else() {
    let store = Store::new();
    let odd = WireWorkload { uid: "shop/s".into(), ..pod("odd", "10.0.0.1") };
    store.apply([service("shop", "s", &[]).update(), odd.update()]);
    store.apply([remove("shop/s")]);
    assert!(store.load().workload("shop/s").is_none());
    assert!(store.load().service("shop/s").is_some());
    store.apply([remove("shop/s")]);
    assert!(store.load().service("shop/s").is_none());
}

#[test]
fn an_address_taken_over_by_another_pod_is_the_other_pods() {
    let store = Store::new();
    store.apply([pod("old", "10.0.0.1").update()]);
    store.apply([pod("new", "10.0.0.1").update()]);
    store.apply([remove("cluster//Pod/shop/old")]);
    check_address(&store.load(), "10.0.0.1", "cluster//Pod/shop/new");
}

#[test]
fn a_pod_is_found_by_namespace_name_and_service_account_together() {
    let other =
        WireWorkload { uid: "other".into(), service_account: "b".into(), ..pod("p", "10.0.0.2") };
    let snapshot = loaded([pod("p", "10.0.0.1").update(), other.update()]);
    assert_eq!(&*snapshot.workload_of("shop", "p", "b").unwrap().uid, "other");
    assert_eq!(&*snapshot.workload_of("shop", "p", "p").unwrap().uid, "cluster//Pod/shop/p");
    assert!(snapshot.workload_of("shop", "p", "c").is_none());
    assert!(snapshot.workload_of("bank", "p", "p").is_none());
}

#[test]
fn a_batch_is_seen_as_a_whole_and_told_once() {
    let store = Store::new();
    let before = store.load();
    let mut told = store.subscribe();
    store.apply([pod("a", "10.0.0.1").update(), pod("b", "10.0.0.2").update()]);
    assert!(told.has_changed().unwrap());
    assert_eq!((*told.borrow_and_update(), store.load().generation()), (1, 1));
    assert_eq!((before.workloads().count(), store.load().workloads().count()), (0, 2));
}

/// A mesh of the size that the daemon must carry.
fn large(services: usize, per_service: usize) -> impl Iterator<Item = Update> {
    (0..services).flat_map(move |s| {
        let key = format!("s{s}.shop");
        let workloads = (0..per_service).map(move |w| {
            let n = u32::try_from(s * per_service + w).unwrap();
            let ip = IpAddr::from((0x0a00_0000 + n).to_be_bytes()).to_string();
            let pod = WireWorkload { tunnel_protocol: 1, ..pod(&format!("s{s}-{w}"), &ip) };
            let pod = WireWorkload { service_account: format!("s{s}"), ..pod };
            endpoint_of(&[&format!("shop/s{s}.shop")], pod).update()
        });
        let ip = IpAddr::from((0xac10_0000 + u32::try_from(s).unwrap()).to_be_bytes());
        std::iter::once(service("shop", &key, &[&ip.to_string()]).update()).chain(workloads)
    })
}

#[test]
fn one_change_among_100_000_workloads_leaves_all_others_shared() {
    let store = Store::new();
    store.apply(large(1000, 100));
    let before = store.load();
    assert_eq!((before.workloads().count(), before.services().count()), (100_000, 1000));

    let changed = WireWorkload { status: 1, ..pod("s7-3", "10.0.2.191") };
    store.apply([endpoint_of(&["shop/s7.shop"], changed).update()]);
    let after = store.load();
    let same = |w: &&Arc<Workload>| Arc::ptr_eq(before.workload(&w.uid).unwrap(), w);
    assert_eq!(after.workloads().filter(same).count(), 99_999);
    let endpoints = |snapshot: &Snapshot, n: usize| -> Vec<Arc<Workload>> {
        let service = snapshot.service(&format!("shop/s{n}.shop")).unwrap();
        snapshot.endpoints(service).unwrap().iter().cloned().collect()
    };
    for n in [0, 6, 8, 999] {
        let (old, new) = (endpoints(&before, n), endpoints(&after, n));
        assert!(old.iter().zip(&new).all(|(old, new)| Arc::ptr_eq(old, new)), "service {n}");
    }
    let shared = endpoints(&before, 7)
        .iter()
        .zip(&endpoints(&after, 7))
        .filter(|(old, new)| Arc::ptr_eq(old, new))
        .count();
    assert_eq!(shared, 99);
    check_address(&after, "10.0.2.191", "cluster//Pod/shop/s7-3");
}

#[test]
fn workloads_of_one_kind_share_their_texts() {
    let snapshot = loaded(large(2, 2));
    let get = |name: &str| snapshot.workload(&format!("cluster//Pod/shop/{name}")).unwrap();
    let (a, b, other) = (get("s0-0"), get("s0-1"), get("s1-0"));
    assert!(Arc::ptr_eq(&a.identities, &b.identities));
    assert!(Arc::ptr_eq(&a.services, &b.services));
    assert!(Arc::ptr_eq(&a.policies, &other.policies));
    assert!(Arc::ptr_eq(&a.namespace, &other.namespace));
    assert!(Arc::ptr_eq(&a.node, &a.locality.zone));
    assert!(!Arc::ptr_eq(&a.identities, &other.identities));
}
