//! The rules of routing to other networks, one test each.

use super::{check, check_identities};

const SANS: &str = "san=spiffe://cluster.local/ns/shop/sa/srv";

/// What an istiod sends: a workload for the gateway, and one without an address for what is behind it.
fn mesh(lines: &str) -> String {
    format!(
        "
        workload web  10.0.0.1     hbone region=r
        workload near 10.0.0.2     hbone region=r
        workload ew   203.0.113.5  network=far
        workload away -            hbone network=far region=q gateway=203.0.113.5@far
        workload off  10.0.0.3     hbone network=far
        {lines}"
    )
}

const ACROSS: &str = "gateway 203.0.113.5:15008 to network far for s.shop:80";

#[test]
fn an_endpoint_on_another_network_is_reached_through_its_gateway_by_the_services_name() {
    let service = format!("service s 10.1.0.1:80 -> away:8080 {SANS}");
    check(&mesh(&service), "web -> 10.1.0.1:80", ACROSS);
    let both = "cluster.local/ns/shop/sa/ew and behind it cluster.local/ns/shop/sa/srv";
    check_identities(&mesh(&service), "web -> 10.1.0.1:80", both);
}

#[test]
fn endpoints_of_all_networks_share_a_services_traffic() {
    let service = format!("service s 10.1.0.1:80 -> near:8080 away:8080 {SANS}");
    let expected = format!("direct 10.0.0.2:15008 for 10.0.0.2:8080 | {ACROSS}");
    check(&mesh(&service), "web -> 10.1.0.1:80", &expected);
}

#[test]
fn a_network_that_is_preferred_first_leaves_others_for_when_nobody_is_near() {
    let mode = "mode=failover:network,region,zone";
    let service = |ends: &str| mesh(&format!("service s 10.1.0.1:80 -> {ends} {mode} {SANS}"));
    check(
        &service("near:8080 away:8080"),
        "web -> 10.1.0.1:80",
        "direct 10.0.0.2:15008 for 10.0.0.2:8080",
    );
    check(&service("away:8080"), "web -> 10.1.0.1:80", ACROSS);
}

#[test]
fn an_address_on_another_network_is_never_dialed() {
    let both = format!("service s 10.1.0.1:80 -> near:8080 off:8080 {SANS}");
    check(&mesh(&both), "web -> 10.1.0.1:80", "direct 10.0.0.2:15008 for 10.0.0.2:8080");
    let alone = format!("service s 10.1.0.1:80 -> off:8080 {SANS}");
    let refusal = "no route: cluster//Pod/shop/off is on network `far` and names no gateway of it";
    check(&mesh(&alone), "web -> 10.1.0.1:80", refusal);
}

#[test]
fn a_service_that_names_nobody_to_expect_is_not_asked_for_across_networks() {
    let refusal = "no route: service shop/s.shop names no identity to expect on network `far` (subject_alt_names)";
    check(&mesh("service s 10.1.0.1:80 -> away:8080"), "web -> 10.1.0.1:80", refusal);
}

#[test]
fn a_host_name_that_is_no_authority_is_not_asked_for_across_networks() {
    let wild = format!("service s 10.1.0.1:80 -> away:8080 host=*.shop {SANS}");
    let refusal =
        "no route: `*.shop` is no name by which the gateway of network `far` can be asked for it";
    check(&mesh(&wild), "web -> 10.1.0.1:80", refusal);
}

#[test]
fn a_gateway_may_be_a_service_of_its_network_with_its_own_port_and_identities() {
    let mesh = format!(
        "
        workload web  10.0.0.1    hbone
        workload ew1  203.0.113.5 network=far
        workload ew2  203.0.113.6 network=far unhealthy
        workload away -           hbone network=far gateway=shop/ew.shop
        service  ew   203.0.113.9:15008 -> ew1:15443 ew2:15443 network=far san=spiffe://td/ns/a/sa/b
        service  s    10.1.0.1:80 -> away:8080 {SANS}"
    );
    check(&mesh, "web -> 10.1.0.1:80", "gateway 203.0.113.5:15443 to network far for s.shop:80");
    let names =
        "cluster.local/ns/shop/sa/ew1, td/ns/a/sa/b and behind it cluster.local/ns/shop/sa/srv";
    check_identities(&mesh, "web -> 10.1.0.1:80", names);
}

#[test]
fn a_gateway_that_has_only_a_name_is_resolved_by_the_caller() {
    let mesh = format!(
        "
        workload web  10.0.0.1 hbone
        workload ew   -        network=far host=gw.example.com
        workload away -        hbone network=far gateway=shop/gw.example.com
        service  s    10.1.0.1:80 -> away:8080 {SANS}"
    );
    let expected =
        "resolve gw.example.com, then gateway 192.0.2.1:15008 to network far for s.shop:80";
    check(&mesh, "web -> 10.1.0.1:80", expected);
}

#[test]
fn a_gateway_that_cannot_be_used_is_never_bypassed() {
    let check = |gateway: &str, expected: &str| {
        let mesh = format!(
            "
            workload web    10.0.0.1    hbone
            workload nobody 203.0.113.8 network=far td=not/a/domain
            workload sick   203.0.113.7 network=far unhealthy
            workload away   -           hbone network=far gateway={gateway}
            service  sick   203.0.113.9:15008 -> sick:15008 network=far
            service  s      10.1.0.1:80 -> away:8080 {SANS}"
        );
        check(&mesh, "web -> 10.1.0.1:80", &format!("no route: {expected}"));
    };
    check("203.0.113.1@far", "gateway far/203.0.113.1 of network `far` is not known");
    check("203.0.113.8@far", "gateway cluster//Pod/shop/nobody has no identity");
    let sick = "gateway shop/sick.shop has no endpoint to use for port 15008: 1 unhealthy";
    check("shop/sick.shop", sick);
}

#[test]
fn a_workload_on_another_network_is_not_reached_by_its_address() {
    // The one network that the client asks about holds a record of another.
    let lines = "workload odd 10.0.0.9 hbone network=far gateway=203.0.113.5@far";
    check(&mesh(lines), "web -> 10.0.0.9:80", "passthrough to 10.0.0.9:80");
}

#[test]
fn a_waypoint_on_another_network_is_asked_for_the_service_and_known_by_its_own_services_names() {
    let lines = "
        workload there - hbone network=far gateway=203.0.113.5@far
        service  way   10.1.0.9:15008 -> there:15008 san=spiffe://cluster.local/ns/shop/sa/way
        service  s     10.1.0.1:80 -> near:8080 waypoint=shop/way.shop";
    check(&mesh(lines), "web -> 10.1.0.1:80", ACROSS);
    let both = "cluster.local/ns/shop/sa/ew and behind it cluster.local/ns/shop/sa/way";
    check_identities(&mesh(lines), "web -> 10.1.0.1:80", both);
}

#[test]
fn a_waypoint_on_another_network_that_names_nobody_is_never_bypassed() {
    let lines = format!(
        "
        workload there - hbone network=far gateway=203.0.113.5@far
        service  way   10.1.0.9:15008 -> there:15008
        service  s     10.1.0.1:80 -> near:8080 waypoint=shop/way.shop {SANS}"
    );
    let refusal = "no route: service shop/way.shop names no identity to expect on network `far` (subject_alt_names)";
    check(&mesh(&lines), "web -> 10.1.0.1:80", refusal);
}

#[test]
fn a_workloads_waypoint_on_another_network_cannot_be_asked_for_an_address() {
    let lines = "
        workload there - hbone network=far gateway=203.0.113.5@far
        service  way   10.1.0.9:15008 -> there:15008 san=spiffe://cluster.local/ns/shop/sa/way
        workload guard 10.0.0.7 hbone waypoint=shop/way.shop";
    let refusal =
        "no route: cluster//Pod/shop/there is on network `far`, where only services can be reached";
    check(&mesh(lines), "web -> 10.0.0.7:80", refusal);
}
