//! What the node has learnt of endpoints, and which one is chosen then.

use std::{collections::BTreeMap, sync::Arc};

use mesh::store::Workload;

use super::{
    Experience, Outbound,
    fixture::{NAMESPACE, NETWORK, snapshot},
    next_hop, source,
};

/// Decides for many random numbers with what the node has learnt, and counts the answers.
fn counts(mesh: &str, experience: &Experience<'_>) -> BTreeMap<String, u32> {
    let snapshot = snapshot(mesh);
    let source = source(&snapshot, NAMESPACE, "web", "web").unwrap();
    let orig_dst = "10.1.0.1:80".parse().unwrap();
    let outbound = Outbound { source, orig_dst, network: NETWORK };
    let mut counts = BTreeMap::new();
    for pick in 0..1000 {
        let answer = match next_hop(&snapshot, &outbound, experience, pick) {
            Ok(hop) => hop.to_string(),
            Err(no_route) => no_route.to_string(),
        };
        *counts.entry(answer).or_default() += 1;
    }
    counts
}

const THREE: &str = "
    workload web 10.0.0.1 hbone zone=z
    workload a   10.0.0.2 zone=z
    workload b   10.0.0.3 zone=z
    workload c   10.0.0.4 zone=y
";

fn uid(name: &str) -> Arc<str> {
    format!("cluster//Pod/shop/{name}").into()
}

#[test]
fn of_two_endpoints_the_one_with_fewer_open_connections_is_taken() {
    let mesh = format!("{THREE} service s 10.1.0.1:80 -> a:1 b:1");
    let open = |workload: &Workload| u32::from(*workload.name == *"a");
    let found = counts(&mesh, &Experience { open: &open, ..Experience::NONE });
    // `a` only where no second one was drawn in three throws: an eighth of the half that began with it.
    assert!(found["plain to 10.0.0.2:1"] < 150, "{found:?}");
}

#[test]
fn open_connections_count_for_the_capacity() {
    let mesh = "
        workload web 10.0.0.1 hbone
        workload a   10.0.0.2 capacity=4
        workload b   10.0.0.3 capacity=1
        service  s   10.1.0.1:80 -> a:1 b:1";
    let open = |workload: &Workload| if *workload.name == *"a" { 3 } else { 1 };
    let found = counts(mesh, &Experience { open: &open, ..Experience::NONE });
    // Three of four is less than one of one, so `b` only where no second one was drawn.
    assert!(found["plain to 10.0.0.2:1"] > 850, "{found:?}");
}

#[test]
fn load_does_not_send_a_connection_farther_away() {
    let mesh = format!("{THREE} service s 10.1.0.1:80 -> a:1 c:1 mode=failover:zone");
    let open = |workload: &Workload| if *workload.name == *"a" { 1000 } else { 0 };
    let found = counts(&mesh, &Experience { open: &open, ..Experience::NONE });
    assert_eq!(found.keys().collect::<Vec<_>>(), ["plain to 10.0.0.2:1"]);
}

#[test]
fn an_ejected_endpoint_is_left_for_others_even_farther_away() {
    for service in
        ["-> a:1 b:1 c:1", "-> a:1 c:1 mode=failover:zone", "-> a:1 b:1 mode=strict:zone"]
    {
        let mesh = format!("{THREE} service s 10.1.0.1:80 {service}");
        let ejected = |workload: &Workload, ip: Option<_>| {
            ip.is_some_and(|ip| workload.addresses.contains(&ip)) && *workload.name == *"a"
        };
        let found = counts(&mesh, &Experience { ejected: &ejected, ..Experience::NONE });
        assert!(!found.is_empty() && !found.contains_key("plain to 10.0.0.2:1"), "{found:?}");
    }
}

#[test]
fn ejection_is_forgotten_where_nothing_else_is_left() {
    let mesh = format!("{THREE} service s 10.1.0.1:80 -> a:1 b:1 mode=failover:zone");
    let found = counts(&mesh, &Experience { ejected: &|_, _| true, ..Experience::NONE });
    assert_eq!(found.keys().collect::<Vec<_>>(), ["plain to 10.0.0.2:1", "plain to 10.0.0.3:1"]);
}

#[test]
fn an_endpoint_that_was_tried_is_not_tried_again() {
    let mesh = format!("{THREE} service s 10.1.0.1:80 -> a:1 b:1");
    let tried = [uid("a")];
    let found = counts(&mesh, &Experience { tried: &tried, ..Experience::NONE });
    assert_eq!(found.keys().collect::<Vec<_>>(), ["plain to 10.0.0.3:1"]);
    let tried = [uid("a"), uid("b")];
    let found = counts(&mesh, &Experience { tried: &tried, ..Experience::NONE });
    let refusal = "service shop/s.shop has no endpoint to use for port 80: 2 tried in vain";
    assert_eq!(found.keys().collect::<Vec<_>>(), [refusal]);
}

#[test]
fn the_quick_choice_and_the_one_that_looks_at_all_agree() {
    // A tried endpoint of no service changes nothing, and a port that only some serve needs the long way.
    let mesh = "
        workload web 10.0.0.1 hbone zone=z region=r
        workload a   10.0.0.2 zone=z region=r capacity=3
        workload b   10.0.0.3 zone=z region=r
        workload c   10.0.0.4 zone=z region=r unhealthy
        workload d   10.0.0.5 zone=y region=r
        service  s   10.1.0.1:80 -> a:1 b:1 c:1 d:1 mode=failover:region,zone";
    let quick = counts(mesh, &Experience::NONE);
    // Everything ejected: sixteen draws find none, and the survey decides.
    let slow = counts(mesh, &Experience { ejected: &|_, _| true, ..Experience::NONE });
    assert_eq!(quick.keys().collect::<Vec<_>>(), slow.keys().collect::<Vec<_>>());
    for (answer, count) in &quick {
        assert!(count.abs_diff(slow[answer]) < 60, "{quick:?} {slow:?}");
    }
}
