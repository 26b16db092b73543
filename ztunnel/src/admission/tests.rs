//! The rules of destination validation, one test each.

use super::*;
use crate::next_hop::{
    fixture::{NAMESPACE, snapshot},
    source,
};

const SHOP: &str = "
    workload cart  10.0.0.2,fd00::2      hbone
    workload bank  10.0.0.3              hbone
    workload way   10.0.0.9              hbone
    workload wide  10.0.0.8              hbone app-tunnel=15088
    workload proxy 10.0.0.7,fd00::7      hbone app-tunnel=proxy:15088
    service  cart  10.1.0.2:80           -> cart:8080
    service  named 10.1.0.3:80           -> cart:-
    service  fixed 10.1.0.4:80           -> cart:- target=9090
    service  way   10.1.0.9:15008        -> way:15009
    service  guard 10.1.0.5:80,10.2.0.0/16:80  -> cart:8080 target=8080 waypoint=shop/way.shop
    service  split 10.1.0.6:80           -> cart:8080 weighted=10.0.0.9:1,10.0.0.8:1
    service  bare  -:80                  -> cart:8080 target=8080
    service  six   [fd01::1]:80,10.1.0.7:80 -> cart:8080 target=8080
    service  twin  10.1.1.1:80           -> host=twin.example target=1
    service  twin2 10.1.1.2:80           -> cart:8081 ns=other host=twin.example
    service  own   10.1.0.8:80           -> cart:15006
    workload pod   10.0.0.4              hbone waypoint=10.0.0.9
    workload loop  10.0.0.5              hbone app-tunnel=15006
    service  podded 10.1.0.10:80         -> pod:8080
    service  two   [fd01::2]:80,[fd01::3]:80 -> proxy:8080
    service  far   10.9.0.1:80           -> proxy:8080 network=other
    service  block 10.3.0.0/16:80        -> proxy:8080
";

/// Decides `<workload>[@<address>] <- <authority>`.
fn check(request: &str, expected: &str) {
    check_announced(AnnouncedAt::Loopback, request, expected);
}

fn check_announced(announced: AnnouncedAt, request: &str, expected: &str) {
    check_at(announced, None, request, expected);
}

fn check_at(announced: AnnouncedAt, only_port: Option<u16>, request: &str, expected: &str) {
    let snapshot = snapshot(SHOP);
    let (local, authority) = request.split_once(" <- ").unwrap();
    let (name, ip) = local.split_once('@').unwrap_or((local, ""));
    let workload = source(&snapshot, NAMESPACE, name, name).unwrap();
    let ip = if ip.is_empty() { workload.addresses[0] } else { ip.parse().unwrap() };
    let requested = authority.parse().unwrap();
    let found = match admit(&snapshot, Local { workload, ip, announced, only_port }, &requested) {
        Ok(Admission { authorize, dial, announced, service }) => {
            let mut text = format!("{authorize}");
            if dial != authorize {
                text += &format!(" at {dial}");
            }
            if let Some(Announced { destination, host }) = announced {
                text += &format!(" announced as {destination}");
                text += &host.map(|host| format!(" ({host})")).unwrap_or_default();
            }
            if let Some(service) = service {
                text += &format!(" of {}", service.key);
            }
            text
        }
        Err(refusal) => format!("{} {refusal}", refusal.status().as_u16()),
    };
    assert_eq!(found, expected, "{request}");
}

#[test]
fn the_pods_own_address_is_admitted_on_any_port() {
    check("cart <- 10.0.0.2:8080", "10.0.0.2:8080 of shop/bare.shop");
    check("cart <- 10.0.0.2:22", "10.0.0.2:22");
    check("cart@fd00::2 <- [fd00::2]:22", "[fd00::2]:22");
    check("cart <- [::ffff:10.0.0.2]:22", "10.0.0.2:22");
    check("cart@::ffff:10.0.0.2 <- 10.0.0.2:22", "10.0.0.2:22");
}

#[test]
fn the_service_of_an_address_is_the_first_with_that_target_port() {
    check("cart <- 10.0.0.2:9090", "10.0.0.2:9090 of shop/fixed.shop");
}

#[test]
fn another_address_is_refused() {
    let refusal = |requested: &str, local: &str| {
        format!(
            "400 {requested} is not an address of this pod ({local}), nor is it the waypoint of it"
        )
    };
    for requested in ["10.0.0.3:80", "10.1.0.2:80", "192.0.2.1:80", "127.0.0.1:80", "[fd00::2]:80"]
    {
        check(&format!("cart <- {requested}"), &refusal(requested, "10.0.0.2"));
    }
}

#[test]
fn a_waypoint_takes_what_it_guards_and_nothing_else() {
    check("way <- 10.1.0.5:80", "10.0.0.9:80");
    check("way <- 10.2.3.4:80", "10.0.0.9:80");
    check("way <- 10.1.0.6:80", "10.0.0.9:80");
    check("way <- 10.0.0.4:8080", "10.0.0.9:8080");
    for unguarded in ["10.1.0.2:80", "10.0.0.2:8080", "10.1.0.3:80"] {
        let refusal = "is not an address of this pod (10.0.0.9), nor is it the waypoint of it";
        check(&format!("way <- {unguarded}"), &format!("400 {unguarded} {refusal}"));
    }
}

#[test]
fn the_waypoint_of_a_workload_does_not_guard_its_services_nor_that_of_a_service_its_workloads() {
    let refusal = "is not an address of this pod (10.0.0.9), nor is it the waypoint of it";
    check("way <- 10.0.0.4:8080", "10.0.0.9:8080");
    check("way <- 10.1.0.10:80", &format!("400 10.1.0.10:80 {refusal}"));
    check("way <- 10.1.0.5:80", "10.0.0.9:80");
    check("way <- 10.0.0.2:8080", &format!("400 10.0.0.2:8080 {refusal}"));
}

#[test]
fn the_address_of_a_name_is_of_the_pods_network_and_there_of_ipv4_and_no_prefix() {
    let announced = |host: &str, expected: &str| {
        let request = format!("proxy <- {host}:80");
        let prefix = "10.0.0.7:15088 at 127.0.0.1:15088 announced as";
        check(&request, &format!("{prefix} {expected} ({host}) of shop/{host}"));
    };
    announced("six.shop", "10.1.0.7:80");
    announced("two.shop", "[fd01::2]:80");
    announced("far.shop", "10.9.0.1:80");
    let none = "503 service shop/block.shop has no address to put into the PROXY protocol header";
    check("proxy <- block.shop:80", none);
}

#[test]
fn an_application_that_takes_everything_on_one_port_gets_it_there() {
    check("wide <- 192.0.2.1:80", "10.0.0.8:15088");
    check("wide <- cart.shop:80", "10.0.0.8:15088 of shop/cart.shop");
}

#[test]
fn an_application_that_wants_a_proxy_header_is_dialed_on_loopback_and_told_the_destination() {
    check("proxy <- 192.0.2.1:80", "10.0.0.7:15088 at 127.0.0.1:15088 announced as 192.0.2.1:80");
    check(
        "proxy@fd00::7 <- six.shop:80",
        "[fd00::7]:15088 at [::1]:15088 announced as 10.1.0.7:80 (six.shop) of shop/six.shop",
    );
    check(
        "proxy <- bare.shop:80",
        "503 service shop/bare.shop has no address to put into the PROXY protocol header",
    );
}

#[test]
fn an_application_that_wants_a_proxy_header_may_be_dialed_at_the_pods_address() {
    let check = |request, expected| check_announced(AnnouncedAt::Pod, request, expected);
    check("proxy <- 192.0.2.1:80", "10.0.0.7:15088 announced as 192.0.2.1:80");
    check("proxy@fd00::7 <- 192.0.2.1:80", "[fd00::7]:15088 announced as 192.0.2.1:80");
}

#[test]
fn of_several_services_of_one_name_the_pods_own_is_meant() {
    check("cart <- twin.example:80", "10.0.0.2:8081 of other/twin.example");
}

#[test]
fn a_host_name_is_the_services_and_its_port_the_endpoints_then_the_services() {
    check("cart <- cart.shop:80", "10.0.0.2:8080 of shop/cart.shop");
    check("cart <- fixed.shop:80", "10.0.0.2:9090 of shop/fixed.shop");
    check("way <- guard.shop:80", "10.0.0.9:8080 of shop/guard.shop");
    let named = "503 service shop/named.shop has no target for port 80 on this pod";
    check("cart <- named.shop:80", named);
    let unknown = "503 service shop/cart.shop has no target for port 81 on this pod";
    check("cart <- cart.shop:81", unknown);
}

#[test]
fn an_unknown_host_name_is_refused() {
    check("cart <- none.shop:80", "503 no service is known by the name none.shop");
}

#[test]
fn a_service_that_the_pod_does_not_serve_is_refused() {
    let refusal = "400 this pod is no endpoint of service shop/cart.shop, nor its waypoint";
    check("bank <- cart.shop:80", refusal);
    check("way <- cart.shop:80", refusal);
}

#[test]
fn the_meshs_own_ports_are_refused() {
    for port in [15001, 15006, 15008] {
        check(&format!("cart <- 10.0.0.2:{port}"), &format!("503 port {port} is the mesh's own"));
    }
    check("cart <- own.shop:80", "503 port 15006 is the mesh's own");
    // Whether it was asked for or is where the application takes everything.
    check("loop <- 10.0.0.5:80", "503 port 15006 is the mesh's own");
    check("wide <- 10.0.0.8:15001", "503 port 15001 is the mesh's own");
}

#[test]
fn of_the_daemon_itself_the_metrics_port_alone_is_reached() {
    let check = |request: &str, expected: &str| {
        check_at(AnnouncedAt::Loopback, Some(15020), request, expected);
    };
    check("cart <- 10.0.0.2:15020", "10.0.0.2:15020");
    for port in [22, 15000, 15021, 8080] {
        let refusal = format!("503 port {port} is not the daemon's metrics port 15020");
        check(&format!("cart <- 10.0.0.2:{port}"), &refusal);
    }
    check("cart <- 10.0.0.2:15008", "503 port 15008 is the mesh's own");
    check("cart <- cart.shop:80", "503 port 8080 is not the daemon's metrics port 15020");
}
