//! The rules of outbound routing, one test each.

mod networks;

use std::{collections::BTreeSet, net::SocketAddr};

use super::{
    Experience, NextHop, NoRoute, Outbound,
    fixture::{NAMESPACE, NETWORK, snapshot},
    next_hop, source,
};

/// How many random numbers a check tries: enough that each of a few equal choices occurs.
const PICKS: u64 = 200;

const SHOP: &str = "
    workload web    10.0.0.1           hbone node=a region=r zone=z1
    workload cart   10.0.0.2           hbone node=b
    workload old    10.0.0.3
    service  cart   10.1.0.2:80        -> cart:8080
    service  old    10.1.0.3:80        -> old:8080
    service  guard  10.1.0.4:80        -> cart:8080
    waypoint shop   10.0.0.9           guards service/guard
";

/// Decides `<workload> -> <address>` for many random numbers, and compares all answers, sorted, joined by " | ".
fn check(mesh: &str, connection: &str, expected: &str) {
    check_with(mesh, connection, describe, expected);
}

/// As `check`, with the identities that are expected at the next hop.
fn check_identities(mesh: &str, connection: &str, expected: &str) {
    check_with(mesh, connection, identities, expected);
}

fn check_with(mesh: &str, connection: &str, describe: fn(&NextHop) -> String, expected: &str) {
    let snapshot = snapshot(mesh);
    let (from, to) = connection.split_once(" -> ").unwrap();
    let (namespace, name) = from.split_once('/').unwrap_or((NAMESPACE, from));
    let orig_dst: SocketAddr = to.parse().unwrap();
    let one = |pick| {
        let source = source(&snapshot, namespace, name, name)?;
        let outbound = Outbound { source, orig_dst, network: NETWORK };
        next_hop(&snapshot, &outbound, &Experience::NONE, pick)
    };
    let answers: BTreeSet<String> = (0..PICKS)
        .map(|pick| match one(pick) {
            Ok(hop) => describe(&hop),
            Err(no_route) => format!("no route: {no_route}"),
        })
        .collect();
    let answers: Vec<String> = answers.into_iter().collect();
    assert_eq!(answers.join(" | "), expected, "{connection}");
}

fn describe(hop: &NextHop) -> String {
    match hop {
        NextHop::Unresolved(unresolved) => {
            let at = unresolved.clone().at("192.0.2.1".parse().unwrap());
            format!("{hop}, then {at}")
        }
        NextHop::Passthrough { .. }
        | NextHop::Plain { .. }
        | NextHop::Direct { .. }
        | NextHop::Waypoint { .. }
        | NextHop::Across { .. } => hop.to_string(),
    }
}

fn identities(hop: &NextHop) -> String {
    match hop {
        NextHop::Direct { expect, .. } | NextHop::Waypoint { expect, .. } => {
            let principals: Vec<&str> = expect.iter().map(|one| one.principal()).collect();
            principals.join(", ")
        }
        NextHop::Across { expect, behind, .. } => {
            let join = |names: &[mesh::identity::Spiffe]| {
                names.iter().map(|one| one.principal()).collect::<Vec<_>>().join(", ")
            };
            format!("{} and behind it {}", join(expect), join(behind))
        }
        NextHop::Passthrough { .. } | NextHop::Plain { .. } | NextHop::Unresolved(_) => {
            "none".to_owned()
        }
    }
}

#[test]
fn an_unknown_destination_is_passed_through() {
    check(SHOP, "web -> 192.0.2.7:443", "passthrough to 192.0.2.7:443");
    check(SHOP, "web -> [2001:db8::7]:443", "passthrough to [2001:db8::7]:443");
}

#[test]
fn an_unknown_source_is_refused() {
    let refusal = "no route: unknown source: pod shop/ghost with service account ghost";
    check(SHOP, "ghost -> 192.0.2.7:443", refusal);
}

#[test]
fn the_meshs_own_ports_on_loopback_are_refused() {
    for port in [15001, 15006, 15008] {
        let refusal = format!("no route: port {port} on the loopback address is the mesh's own");
        check(SHOP, &format!("web -> 127.0.0.1:{port}"), &refusal);
        check(SHOP, &format!("web -> [::1]:{port}"), &refusal);
        check(SHOP, &format!("web -> [::ffff:127.0.0.1]:{port}"), &refusal);
    }
    check(SHOP, "web -> 127.0.0.1:15009", "passthrough to 127.0.0.1:15009");
    check(SHOP, "web -> 192.0.2.7:15008", "passthrough to 192.0.2.7:15008");
}

#[test]
fn a_workload_that_accepts_tunnels_is_reached_by_one() {
    check(SHOP, "web -> 10.0.0.2:8080", "direct 10.0.0.2:15008 for 10.0.0.2:8080");
}

#[test]
fn a_mapped_address_is_an_ipv4_address() {
    check(SHOP, "web -> [::ffff:10.0.0.2]:8080", "direct 10.0.0.2:15008 for 10.0.0.2:8080");
}

#[test]
fn a_workload_that_accepts_no_tunnels_is_reached_in_the_clear() {
    check(SHOP, "web -> 10.0.0.3:8080", "plain to 10.0.0.3:8080");
    check(SHOP, "web -> 10.1.0.3:80", "plain to 10.0.0.3:8080");
}

#[test]
fn a_service_is_reached_at_an_endpoint_on_its_target_port() {
    check(SHOP, "web -> 10.1.0.2:80", "direct 10.0.0.2:15008 for 10.0.0.2:8080");
}

#[test]
fn a_pod_reaches_itself_through_a_tunnel_too() {
    check(SHOP, "cart -> 10.1.0.2:80", "direct 10.0.0.2:15008 for 10.0.0.2:8080");
}

#[test]
fn an_unknown_port_of_a_service_is_refused() {
    check(SHOP, "web -> 10.1.0.2:81", "no route: service shop/cart.shop has no port 81");
}

#[test]
fn the_identity_expected_is_the_workloads() {
    check_identities(SHOP, "web -> 10.0.0.2:8080", "cluster.local/ns/shop/sa/cart");
    check_identities(SHOP, "web -> 10.1.0.2:80", "cluster.local/ns/shop/sa/cart");
    check_identities(SHOP, "web -> 10.1.0.4:80", "cluster.local/ns/shop/sa/shop");
}

#[test]
fn a_services_subject_alt_names_are_expected_too_where_it_is_dialed() {
    let mesh = "
        workload web  10.0.0.1    hbone
        workload cart 10.0.0.2    hbone
        service  cart 10.1.0.2:80 -> cart:8080 san=spiffe://other/ns/a/sa/b
    ";
    let both = "cluster.local/ns/shop/sa/cart, other/ns/a/sa/b";
    check_identities(mesh, "web -> 10.1.0.2:80", both);
    check_identities(mesh, "web -> 10.0.0.2:80", "cluster.local/ns/shop/sa/cart");
}

#[test]
fn an_unhealthy_endpoint_is_used_only_if_the_service_allows_all() {
    let mesh = "
        workload web 10.0.0.1 hbone
        workload up  10.0.0.2
        workload bad 10.0.0.3 unhealthy
        service  one 10.1.0.1:80 -> up:1 bad:1
        service  all 10.1.0.2:80 -> up:1 bad:1 allow-all
        service  bad 10.1.0.3:80 -> bad:1
    ";
    check(mesh, "web -> 10.1.0.1:80", "plain to 10.0.0.2:1");
    check(mesh, "web -> 10.1.0.2:80", "plain to 10.0.0.2:1 | plain to 10.0.0.3:1");
    let refusal = "no route: service shop/bad.shop has no endpoint to use for port 80: 1 unhealthy";
    check(mesh, "web -> 10.1.0.3:80", refusal);
}

#[test]
fn a_service_without_endpoints_is_refused() {
    let mesh = "
        workload web  10.0.0.1 hbone
        service  none 10.1.0.1:80 ->
    ";
    let refusal =
        "no route: service shop/none.shop has no endpoint to use for port 80: it has none";
    check(mesh, "web -> 10.1.0.1:80", refusal);
}

#[test]
fn a_named_port_is_the_endpoints_to_say_and_the_endpoint_comes_before_the_service() {
    let mesh = "
        workload web   10.0.0.1 hbone
        workload a     10.0.0.2
        workload b     10.0.0.3
        service  named 10.1.0.1:80 -> a:1 b:2
        service  half  10.1.0.2:80 -> a:1 b:-
        service  fixed 10.1.0.3:80 -> a:1 b:- target=9
    ";
    check(mesh, "web -> 10.1.0.1:80", "plain to 10.0.0.2:1 | plain to 10.0.0.3:2");
    check(mesh, "web -> 10.1.0.2:80", "plain to 10.0.0.2:1");
    check(mesh, "web -> 10.1.0.3:80", "plain to 10.0.0.2:1 | plain to 10.0.0.3:9");
}

#[test]
fn the_same_port_is_used_where_the_application_takes_everything_on_one() {
    let mesh = "
        workload web  10.0.0.1 hbone
        workload wide 10.0.0.2 app-tunnel=15088
        service  wide 10.1.0.1:80 -> wide:-
    ";
    check(mesh, "web -> 10.1.0.1:80", "plain to 10.0.0.2:80");
}

#[test]
fn endpoints_are_chosen_by_capacity_and_never_with_none() {
    let mesh = "
        workload web   10.0.0.1 hbone
        workload never 10.0.0.2 capacity=0
        workload some  10.0.0.3 capacity=2
        workload more  10.0.0.4 capacity=5
        service  s     10.1.0.1:80 -> never:1 some:1 more:1
        service  never 10.1.0.2:80 -> never:1
    ";
    check(mesh, "web -> 10.1.0.1:80", "plain to 10.0.0.3:1 | plain to 10.0.0.4:1");
    let refusal =
        "no route: service shop/never.shop has no endpoint to use for port 80: 1 without capacity";
    check(mesh, "web -> 10.1.0.2:80", refusal);
}

#[test]
fn capacities_are_shares() {
    let snapshot = snapshot(
        "
        workload web 10.0.0.1 hbone
        workload one 10.0.0.2 capacity=1
        workload two 10.0.0.3 capacity=3
        service  s   10.1.0.1:80 -> one:1 two:1
    ",
    );
    let source = source(&snapshot, NAMESPACE, "web", "web").unwrap();
    let orig_dst = "10.1.0.1:80".parse().unwrap();
    let outbound = Outbound { source, orig_dst, network: NETWORK };
    let of_two = (0..4000)
        .filter(|pick| {
            next_hop(&snapshot, &outbound, &Experience::NONE, *pick)
                .unwrap()
                .to_string()
                .contains(".3:")
        })
        .count();
    assert!((2900..3100).contains(&of_two), "{of_two} of 4000");
}

/// One endpoint on the client's node, one in its zone, one in its region, one elsewhere.
const LOCAL: &str = "
    workload web    10.0.0.1 hbone region=r zone=z node=n
    workload node   10.0.0.2 region=r zone=z node=n
    workload zone   10.0.0.3 region=r zone=z node=m
    workload region 10.0.0.4 region=r zone=y node=o
    workload far    10.0.0.5 region=q zone=z node=p
";

fn check_local(service: &str, expected: &str) {
    check(&format!("{LOCAL}\n{service}"), "web -> 10.1.0.1:80", expected);
}

#[test]
fn strict_takes_endpoints_that_match_every_preference_or_none() {
    let all = "-> node:1 zone:1 region:1 far:1";
    check_local(&format!("service s 10.1.0.1:80 {all} mode=strict:node"), "plain to 10.0.0.2:1");
    check_local(
        &format!("service s 10.1.0.1:80 {all} mode=strict:region,zone"),
        "plain to 10.0.0.2:1 | plain to 10.0.0.3:1",
    );
    check_local(
        "service s 10.1.0.1:80 -> zone:1 far:1 mode=strict:node",
        "no route: service shop/s.shop has no endpoint to use for port 80: 2 not local",
    );
}

#[test]
fn failover_takes_those_that_match_most_preferences_from_the_first() {
    let mode = "mode=failover:network,region,zone,subzone,node";
    let service = |endpoints: &str| format!("service s 10.1.0.1:80 -> {endpoints} {mode}");
    check_local(&service("node:1 zone:1 region:1 far:1"), "plain to 10.0.0.2:1");
    check_local(&service("zone:1 region:1 far:1"), "plain to 10.0.0.3:1");
    check_local(&service("region:1 far:1"), "plain to 10.0.0.4:1");
    check_local(&service("far:1"), "plain to 10.0.0.5:1");
}

#[test]
fn a_zone_of_another_region_does_not_count_after_the_region_missed() {
    check_local(
        "service s 10.1.0.1:80 -> region:1 far:1 mode=failover:region,zone",
        "plain to 10.0.0.4:1",
    );
}

#[test]
fn failover_leaves_unhealthy_endpoints_for_healthy_ones_farther_away() {
    let mesh = format!(
        "{LOCAL}
        workload sick 10.0.0.6 region=r zone=z node=n unhealthy
        service  s    10.1.0.1:80 -> sick:1 region:1 mode=failover:region,zone,node"
    );
    check(&mesh, "web -> 10.1.0.1:80", "plain to 10.0.0.4:1");
}

#[test]
fn a_passthrough_service_is_reached_where_it_was_dialed() {
    let mesh = "
        workload web 10.0.0.1 hbone
        workload e   10.0.0.2
        service  s   10.1.0.1:80      -> e:1 mode=passthrough
        service  net 10.2.0.0/16:443  -> mode=passthrough
    ";
    check(mesh, "web -> 10.1.0.1:9999", "passthrough to 10.1.0.1:9999");
    check(mesh, "web -> 10.2.3.4:443", "passthrough to 10.2.3.4:443");
}

#[test]
fn a_passthrough_service_with_a_waypoint_still_goes_to_it() {
    let mesh = "
        workload web 10.0.0.1 hbone
        service  s   10.1.0.1:80 -> mode=passthrough
        waypoint w   10.0.0.9 guards service/s
    ";
    check(mesh, "web -> 10.1.0.1:80", "waypoint 10.0.0.9:15008 for 10.1.0.1:80");
}

#[test]
fn an_address_of_the_dialed_family_is_preferred() {
    let mesh = "
        workload web  10.0.0.1 hbone
        workload dual 10.0.0.2,fd00::2 hbone
        workload four 10.0.0.3
        service  dual 10.1.0.1:80,[fd01::1]:80 -> dual:1
        service  only 10.1.0.2:80,[fd01::2]:80 -> dual:1 families=ipv4
        service  six  10.1.0.3:80 -> four:1 families=ipv6
        service  mix  [fd01::4]:80 -> four:1
    ";
    check(mesh, "web -> 10.1.0.1:80", "direct 10.0.0.2:15008 for 10.0.0.2:1");
    check(mesh, "web -> [fd01::1]:80", "direct [fd00::2]:15008 for [fd00::2]:1");
    check(mesh, "web -> [fd01::2]:80", "direct 10.0.0.2:15008 for 10.0.0.2:1");
    check(mesh, "web -> [fd01::4]:80", "plain to 10.0.0.3:1");
    let refusal =
        "no route: service shop/six.shop has no endpoint to use for port 80: 1 without an address";
    check(mesh, "web -> 10.1.0.3:80", refusal);
}

#[test]
fn a_workload_that_has_only_a_name_is_resolved_by_the_caller() {
    let mesh = "
        workload web 10.0.0.1 hbone
        workload db  - host=db.example.net
        workload in  - host=in.example.net hbone
        service  db  10.1.0.1:5432 -> db:5433
        service  in  10.1.0.2:80   -> in:8080
    ";
    let plain = "resolve db.example.net, then plain to 192.0.2.1:5433";
    check(mesh, "web -> 10.1.0.1:5432", plain);
    let direct = "resolve in.example.net, then direct 192.0.2.1:15008 for 192.0.2.1:8080";
    check(mesh, "web -> 10.1.0.2:80", direct);
}

#[test]
fn traffic_to_a_guarded_service_goes_to_its_waypoint() {
    check(SHOP, "web -> 10.1.0.4:80", "waypoint 10.0.0.9:15008 for 10.1.0.4:80");
}

#[test]
fn a_guarded_service_is_entered_at_its_waypoint_whatever_the_port() {
    check(SHOP, "web -> 10.1.0.4:81", "waypoint 10.0.0.9:15008 for 10.1.0.4:81");
}

#[test]
fn a_guarded_workload_is_entered_at_its_waypoint_where_it_is_dialed_itself() {
    let mesh = "
        workload web  10.0.0.1 hbone
        workload cart 10.0.0.2 hbone
        service  cart 10.1.0.2:80 -> cart:8080
        waypoint w    10.0.0.9 guards workload/cart
    ";
    check(mesh, "web -> 10.0.0.2:8080", "waypoint 10.0.0.9:15008 for 10.0.0.2:8080");
    check(mesh, "web -> 10.1.0.2:80", "direct 10.0.0.2:15008 for 10.0.0.2:8080");
    check(mesh, "w -> 10.0.0.2:8080", "direct 10.0.0.2:15008 for 10.0.0.2:8080");
}

#[test]
fn a_waypoint_named_by_its_service_is_one_of_its_endpoints() {
    let mesh = "
        workload web  10.0.0.1 hbone
        workload w1   10.0.0.8,fd00::8 hbone sa=way
        workload w2   10.0.0.9,fd00::9 hbone sa=way unhealthy
        workload cart 10.0.0.2 hbone waypoint=shop/way.shop
        service  way  10.1.0.9:15008 -> w1:15008 w2:15008 san=spiffe://td/ns/x/sa/y
        service  a    10.1.0.1:80,[fd01::1]:80 -> cart:8080 waypoint=shop/way.shop
        service  b    10.1.0.2:80 -> cart:8080 waypoint=10.1.0.9
    ";
    check(mesh, "web -> 10.1.0.1:80", "waypoint 10.0.0.8:15008 for 10.1.0.1:80");
    check(mesh, "web -> [fd01::1]:80", "waypoint [fd00::8]:15008 for [fd01::1]:80");
    check(mesh, "web -> 10.1.0.2:80", "waypoint 10.0.0.8:15008 for 10.1.0.2:80");
    let both = "cluster.local/ns/shop/sa/way, td/ns/x/sa/y";
    check_identities(mesh, "web -> 10.1.0.1:80", both);
}

#[test]
fn an_endpoint_of_a_waypoint_service_does_not_send_to_the_waypoint_again() {
    let mesh = "
        workload w1   10.0.0.8 hbone
        workload cart 10.0.0.2 hbone waypoint=shop/way.shop
        service  way  10.1.0.9:15008 -> w1:15008
    ";
    check(mesh, "w1 -> 10.0.0.2:80", "direct 10.0.0.2:15008 for 10.0.0.2:80");
    check(mesh, "cart -> 10.0.0.2:80", "waypoint 10.0.0.8:15008 for 10.0.0.2:80");
}

#[test]
fn a_waypoint_named_by_host_may_be_a_workload() {
    let mesh = "
        workload web 10.0.0.1 hbone
        workload w   10.0.0.9 hbone host=way.example
        service  s   10.1.0.1:80 -> waypoint=shop/way.example
    ";
    check(mesh, "web -> 10.1.0.1:80", "waypoint 10.0.0.9:15008 for 10.1.0.1:80");
}

#[test]
fn a_waypoint_that_takes_everything_on_one_port_need_not_list_the_tunnel_port() {
    let mesh = "
        workload web 10.0.0.1 hbone
        workload w   10.0.0.9 hbone app-tunnel=proxy:15088
        service  way 10.1.0.9:80 -> w:80
        service  s   10.1.0.1:80 -> waypoint=10.1.0.9
    ";
    check(mesh, "web -> 10.1.0.1:80", "waypoint 10.0.0.9:15008 for 10.1.0.1:80");
}

#[test]
fn several_waypoints_share_traffic_by_their_weights() {
    let waypoints = "
        workload web 10.0.0.1 hbone
        workload w7  10.0.0.7 hbone
        workload w8  10.0.0.8 hbone
        workload w9  10.0.0.9 hbone
    ";
    let check = |options: &str, expected: &str| {
        let mesh = format!("{waypoints}\nservice s 10.1.0.1:80 -> {options}");
        check(&mesh, "web -> 10.1.0.1:80", expected);
    };
    let to =
        |ips: [&str; 2]| ips.map(|ip| format!("waypoint {ip}:15008 for 10.1.0.1:80")).join(" | ");
    let weighted = "weighted=10.0.0.7:1,10.0.0.8:2";
    check(&format!("{weighted} waypoint=10.0.0.9"), &to(["10.0.0.7", "10.0.0.8"]));
    check("weighted=10.0.0.7:0,10.0.0.8:1", "waypoint 10.0.0.8:15008 for 10.1.0.1:80");
    check("weighted=10.0.0.7:0 waypoint=10.0.0.9", "waypoint 10.0.0.9:15008 for 10.1.0.1:80");
    let refusal = "no route: all weights of the waypoints of service shop/s.shop are 0";
    check("weighted=10.0.0.7:0", refusal);
}

#[test]
fn a_waypoint_that_cannot_be_used_is_never_bypassed() {
    let check = |waypoint: &str, expected: &str| {
        let mesh = format!(
            "
            workload web  10.0.0.1 hbone
            workload sick 10.0.0.9 hbone unhealthy
            workload nobody 10.0.0.8 td=not/a/domain
            workload away 10.0.0.7 hbone network=other host=away.example
            service  sick 10.1.0.9:15008 -> sick:15008
            service  way  10.1.0.8:80 -> web:80
            service  s    10.1.0.1:80 -> waypoint={waypoint}"
        );
        check(&mesh, "web -> 10.1.0.1:80", &format!("no route: {expected}"));
    };
    check("10.9.9.9", "waypoint net/10.9.9.9 is not known");
    check("shop/none.shop", "waypoint shop/none.shop is not known");
    let sick = "waypoint shop/sick.shop has no endpoint to use for port 15008: 1 unhealthy";
    check("shop/sick.shop", sick);
    let portless =
        "waypoint shop/way.shop has no endpoint to use for port 15008: 1 without the port";
    check("shop/way.shop", portless);
    check("10.0.0.8", "waypoint cluster//Pod/shop/nobody has no identity");
    let away = "cluster//Pod/shop/away is on network `other` and names no gateway of it";
    check("shop/away.example", away);
}

#[test]
fn a_service_hidden_from_the_client_is_not_there() {
    let mesh = "
        workload web 10.0.0.1 hbone
        workload out 10.0.0.2 hbone ns=other
        workload e   10.0.0.3
        service  s   10.1.0.1:80 -> e:1 private
    ";
    check(mesh, "web -> 10.1.0.1:80", "plain to 10.0.0.3:1");
    check(mesh, "other/out -> 10.1.0.1:80", "passthrough to 10.1.0.1:80");
}

#[test]
fn an_address_that_is_both_means_the_service_where_it_serves_the_port() {
    let mesh = "
        workload web 10.0.0.1 hbone
        workload e   10.0.0.2
        service  s   10.0.0.2:80 -> e:8080
    ";
    check(mesh, "web -> 10.0.0.2:80", "plain to 10.0.0.2:8080");
    check(mesh, "web -> 10.0.0.2:22", "plain to 10.0.0.2:22");
}

#[test]
fn a_service_at_a_guarded_workloads_address_is_no_way_around_its_waypoint() {
    let mesh = "
        workload web 10.0.0.1 hbone
        workload e   10.0.0.2 hbone waypoint=10.0.0.9
        workload w   10.0.0.9 hbone
        service  s   10.0.0.2:80 -> e:8080
    ";
    check(mesh, "web -> 10.0.0.2:80", "waypoint 10.0.0.9:15008 for 10.0.0.2:80");
    check(mesh, "w -> 10.0.0.2:80", "direct 10.0.0.2:15008 for 10.0.0.2:8080");
}

#[test]
fn a_services_waypoint_is_used_even_by_itself() {
    let mesh = "
        workload w    10.0.0.9 hbone
        workload cart 10.0.0.2 hbone
        service  s    10.1.0.1:80 -> cart:8080 waypoint=10.0.0.9
    ";
    check(mesh, "w -> 10.1.0.1:80", "waypoint 10.0.0.9:15008 for 10.1.0.1:80");
}

#[test]
fn host_network_workloads_are_endpoints_but_their_address_is_the_nodes() {
    let mesh = "
        workload web 10.0.0.1 hbone
        workload e   192.168.0.1 hostnet
        service  s   10.1.0.1:80 -> e:8080
    ";
    check(mesh, "web -> 10.1.0.1:80", "plain to 192.168.0.1:8080");
    check(mesh, "web -> 192.168.0.1:8080", "passthrough to 192.168.0.1:8080");
}

#[test]
fn a_reason_stands_for_every_refusal() {
    use mesh::telemetry::Reason;
    let no_route = NoRoute::OwnPort { port: 15001 };
    assert_eq!(Reason::from(&no_route), Reason::OwnPort);
}

#[test]
fn a_name_stands_in_where_no_address_is_of_an_allowed_family() {
    let mesh = "
        workload web 10.0.0.1 hbone
        workload db  10.0.0.2 host=db.example.net
        service  s   10.1.0.1:80 -> db:1 families=ipv6";
    check(mesh, "web -> 10.1.0.1:80", "resolve db.example.net, then plain to 192.0.2.1:1");
}

#[test]
fn a_shorter_prefix_in_the_clients_namespace_beats_a_longer_one_elsewhere() {
    let mesh = "
        workload web 10.0.0.1 hbone
        workload a   10.0.0.2
        workload b   10.0.0.3
        service  own 10.2.0.0/16:80 -> a:1
        service  far 10.2.3.0/24:80 -> b:1 ns=other canonical
        service  one 10.2.3.9:80    -> b:2 ns=other";
    check(mesh, "web -> 10.2.3.4:80", "plain to 10.0.0.2:1");
    check(mesh, "web -> 10.2.3.9:80", "plain to 10.0.0.3:2");
}

#[test]
fn local_networks_always_win_and_remote_ones_are_ordered_by_the_other_scopes() {
    let mesh = "
        workload web  10.0.0.1 hbone region=r
        workload near 10.0.0.2 hbone region=q
        workload away - hbone network=other region=r gateway=10.0.0.9
        workload gw   10.0.0.9 hbone
        service  s    10.1.0.1:80 -> near:1 away:1 mode=failover:network,region san=spiffe://td/ns/a/sa/b";
    check(mesh, "web -> 10.1.0.1:80", "direct 10.0.0.2:15008 for 10.0.0.2:1");
}
