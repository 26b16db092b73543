//! What a daemon gets that asks for single workloads and services.

use std::{sync::Arc, time::Instant};

use prost::Message;
use proto::{
    discovery::DeltaDiscoveryRequest,
    workload::{Address, NetworkAddress, PortList, Service, Workload, address},
};

use super::{
    session::{Audience, Protocol, Session},
    session_tests::{handle, pushes, settle, shown, state},
    types::Type,
    view::View,
};
use crate::compile::{Compiled, Resource, Resources};

/// What is there: `pod NAME ADDRESS NODE [SERVICE]` or `service NAME ADDRESS`, a line each.
fn view(previous: Option<&Arc<View>>, mesh: &str) -> Arc<View> {
    let addresses = mesh.lines().filter_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        let (name, of) = match words.as_slice() {
            ["pod", name, ip, node, services @ ..] => (name, pod(name, ip, node, services)),
            ["service", name, ip] => (name, service(name, ip)),
            _ => return None,
        };
        let encoded = Address { r#type: Some(of) }.encode_to_vec();
        let hash = twox_hash::XxHash64::oneshot(0, &encoded);
        Some((Arc::from(*name), Resource { encoded, hash }))
    });
    let compiled = Compiled { addresses: addresses.collect::<Resources>(), ..Compiled::default() };
    Arc::new(View::of_daemon(state(previous.map(|view| &*view.state), compiled)))
}

fn bytes(ip: &str) -> Vec<u8> {
    match ip.parse().unwrap() {
        std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
        std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn pod(uid: &str, ip: &str, node: &str, services: &[&str]) -> address::Type {
    let services = services.iter().map(|name| ((*name).to_owned(), PortList::default()));
    address::Type::Workload(Workload {
        uid: uid.to_owned(),
        addresses: vec![bytes(ip)],
        node: node.to_owned(),
        services: services.collect(),
        ..Workload::default()
    })
}

fn service(name: &str, ip: &str) -> address::Type {
    let (namespace, hostname) = name.split_once('/').unwrap();
    let address = NetworkAddress { address: bytes(ip), ..NetworkAddress::default() };
    address::Type::Service(Service {
        namespace: namespace.to_owned(),
        hostname: hostname.to_owned(),
        addresses: vec![address],
        ..Service::default()
    })
}

const MESH: &str = "
    pod web-1 10.0.0.1 a
    pod cart-1 10.0.0.2 b shop/cart
    pod cart-2 fd00::2 b shop/cart
    pod other 10.0.0.9 c
    service shop/cart 10.96.0.1
";

fn request(of: Type, wanted: &[&str], unwanted: &[&str]) -> DeltaDiscoveryRequest {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    DeltaDiscoveryRequest {
        type_url: of.type_url().to_owned(),
        resource_names_subscribe: names(wanted),
        resource_names_unsubscribe: names(unwanted),
        ..DeltaDiscoveryRequest::default()
    }
}

fn ask(session: &mut Session, wanted: &[&str], unwanted: &[&str]) {
    handle(session, request(Type::Address, wanted, unwanted), Instant::now()).unwrap();
}

/// The daemon of node `a`, which has begun with nothing, as it does.
fn began(of: Type) -> Session {
    let mut session = Session::new(Audience::Daemon, Protocol::Delta, "a");
    let policies = request(Type::Authorization, &[], &[]);
    handle(&mut session, policies, Instant::now()).unwrap();
    handle(&mut session, request(of, &["*"], &["*"]), Instant::now()).unwrap();
    session
}

#[test]
fn a_daemon_that_asks_for_nothing_gets_the_workloads_of_its_node() {
    let mut session = began(Type::Address);
    let begun = settle(&mut session, &view(None, MESH));
    assert_eq!(begun, ["Authorization + -", "Address +web-1 -"]);
    let mut elsewhere = Session::new(Audience::Daemon, Protocol::Delta, "z");
    handle(&mut elsewhere, request(Type::Address, &["*"], &["*"]), Instant::now()).unwrap();
    handle(&mut elsewhere, request(Type::Authorization, &[], &[]), Instant::now()).unwrap();
    // Also an answer that says nothing: the daemon waits for one.
    assert_eq!(settle(&mut elsewhere, &view(None, MESH)), ["Authorization + -", "Address + -"]);
}

#[test]
fn whatever_is_asked_for_is_found_or_said_to_be_absent() {
    let current = view(None, MESH);
    for (asked, expected) in [
        ("/10.0.0.2", "Address +cart-1 -"),
        ("/fd00::2", "Address +cart-2 -"),
        ("/10.96.0.1", "Address +cart-1,cart-2,shop/cart -"),
        ("shop/cart", "Address +cart-1,cart-2,shop/cart -"),
        ("other", "Address +other -"),
        ("/10.0.0.1", "Address +web-1 -"),
        ("/10.0.0.77", "Address + -/10.0.0.77"),
        ("net/10.0.0.2", "Address + -net/10.0.0.2"),
        ("10.0.0.2", "Address + -10.0.0.2"),
        ("nonsense", "Address + -nonsense"),
    ] {
        let mut session = began(Type::Address);
        settle(&mut session, &current);
        ask(&mut session, &[asked], &[]);
        assert_eq!(settle(&mut session, &current), [expected], "{asked}");
        // It waits for an answer whenever it asks.
        ask(&mut session, &[asked], &[]);
        assert_eq!(settle(&mut session, &current), [expected], "{asked} again");
    }
}

#[test]
fn an_answer_names_what_it_was_found_by() {
    let current = view(None, MESH);
    let mut session = began(Type::Address);
    settle(&mut session, &current);
    ask(&mut session, &["/10.96.0.1"], &[]);
    let push = pushes(&mut session, &current).remove(0);
    let aliases: Vec<_> = push.resources.iter().flat_map(|one| &one.aliases).collect();
    assert_eq!(aliases, ["/10.0.0.2", "/fd00::2", "/10.96.0.1"]);
    // Who has everything looks nothing up.
    let mut everything = Session::new(Audience::Daemon, Protocol::Delta, "a");
    for of in [Type::Authorization, Type::Address] {
        handle(&mut everything, request(of, &[], &[]), Instant::now()).unwrap();
    }
    let push = pushes(&mut everything, &current).pop().unwrap();
    assert_eq!(shown(&push), "Address +cart-1,cart-2,other,shop/cart,web-1 -");
    assert!(push.resources.iter().all(|one| one.aliases.is_empty()));
}

#[test]
fn what_is_held_is_kept_up_to_date_and_nothing_else() {
    let first = view(None, MESH);
    let mut session = began(Type::Address);
    settle(&mut session, &first);
    ask(&mut session, &["shop/cart", "/10.0.0.77"], &[]);
    settle(&mut session, &first);
    for (change, expected) in [
        (MESH.replace("10.0.0.9 c", "10.0.0.10 c"), vec![]),
        (MESH.replace("fd00::2", "fd00::3"), vec!["Address +cart-2 -"]),
        (format!("{MESH} pod cart-3 10.0.0.4 a shop/cart"), vec!["Address +cart-3 -"]),
        (MESH.replace("pod cart-1 10.0.0.2 b shop/cart", ""), vec!["Address + -cart-1"]),
        (format!("{MESH} pod late 10.0.0.77 z"), vec!["Address +late -"]),
        (format!("{MESH} pod near 10.0.0.5 a"), vec!["Address +near -"]),
        (
            MESH.replace("service shop/cart 10.96.0.1", ""),
            vec!["Address + -cart-1,cart-2,shop/cart"],
        ),
    ] {
        let changed = view(Some(&first), &change);
        assert_eq!(settle(&mut session, &changed), expected, "{change}");
        settle(&mut session, &view(Some(&changed), MESH));
    }
}

#[test]
fn an_address_that_moves_takes_the_workload_that_had_it_away() {
    let first = view(None, MESH);
    let mut session = began(Type::Address);
    settle(&mut session, &first);
    ask(&mut session, &["/10.0.0.9"], &[]);
    settle(&mut session, &first);
    let moved = MESH.replace("other 10.0.0.9", "other 10.0.0.8") + "pod new 10.0.0.9 b";
    assert_eq!(settle(&mut session, &view(Some(&first), &moved)), ["Address +new -other"]);
}

#[test]
fn what_is_given_up_is_forgotten_without_a_word() {
    let first = view(None, MESH);
    let mut session = began(Type::Address);
    settle(&mut session, &first);
    ask(&mut session, &["/10.0.0.9", "shop/cart"], &[]);
    settle(&mut session, &first);
    ask(&mut session, &[], &["/10.0.0.9"]);
    assert_eq!(settle(&mut session, &first), [""; 0]);
    let changed = view(Some(&first), &MESH.replace("10.0.0.9", "10.0.0.10"));
    assert_eq!(settle(&mut session, &changed), [""; 0]);
    // What it is still asked for by another name is kept up to date.
    ask(&mut session, &["/10.0.0.2"], &["shop/cart"]);
    assert_eq!(settle(&mut session, &changed), ["Address +cart-1 -"]);
    let gone = view(Some(&changed), &MESH.replace("pod cart-1 10.0.0.2 b shop/cart", ""));
    assert_eq!(settle(&mut session, &gone), ["Address + -cart-1"]);
}

#[test]
fn a_daemon_that_returns_gets_what_changed_and_what_it_waits_for() {
    let current = view(None, MESH);
    let version = |name: &str| current.find(Type::Address, name).unwrap().version();
    let mut session = Session::new(Audience::Daemon, Protocol::Delta, "a");
    let held = [
        ("web-1", version("web-1")),
        ("cart-1", "00000000000000ff".to_owned()),
        ("gone", "0000000000000001".to_owned()),
        ("/10.0.0.9", String::new()),
    ];
    let held = held.into_iter().map(|(name, version)| (name.to_owned(), version)).collect();
    let returns = DeltaDiscoveryRequest {
        initial_resource_versions: held,
        ..request(Type::Address, &["*"], &["*"])
    };
    handle(&mut session, request(Type::Authorization, &[], &[]), Instant::now()).unwrap();
    handle(&mut session, returns, Instant::now()).unwrap();
    assert_eq!(
        settle(&mut session, &current),
        ["Authorization + -", "Address +cart-1,other -gone"]
    );
}

#[test]
fn workloads_alone_are_what_is_in_their_addresses() {
    let current = view(None, MESH);
    let mut session = Session::new(Audience::Waypoint, Protocol::Delta, "");
    handle(&mut session, request(Type::Workload, &[], &[]), Instant::now()).unwrap();
    let push = pushes(&mut session, &current).remove(0);
    assert_eq!(shown(&push), "Workload +cart-1,cart-2,other,web-1 -");
    let first = &push.resources[0];
    assert_eq!(Workload::decode(&*first.resource.value).unwrap().uid, "cart-1");
    assert_eq!(first.version, current.find(Type::Address, "cart-1").unwrap().version());
    let mut session = began(Type::Workload);
    assert_eq!(settle(&mut session, &current), ["Authorization + -", "Workload +web-1 -"]);
    let by_service = request(Type::Workload, &["shop/cart"], &[]);
    handle(&mut session, by_service, Instant::now()).unwrap();
    assert_eq!(settle(&mut session, &current), ["Workload +cart-1,cart-2 -"]);
}
