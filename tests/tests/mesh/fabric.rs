//! What the wire between nodes shows.

use crate::shop::Shop;

#[test]
fn between_nodes_only_tunnels_are_seen_and_never_the_text() {
    let Some(shop) = Shop::open() else { return };
    let (web, cart) = (shop.pod("shop/web"), shop.pod("shop/cart"));
    let _nginx = cart.nginx("the price of the cart").unwrap();
    for (name, from, to, host) in [
        ("ip4", web.ip4().to_string(), cart.ip4().to_string(), cart.ip4().to_string()),
        ("ip6", web.ip6().to_string(), cart.ip6().to_string(), format!("[{}]", cart.ip6())),
    ] {
        let tcpdump = shop.cluster.tcpdump(name, &format!("host {from} and host {to}")).unwrap();
        let url = format!("http://{host}/");
        let page = web.ask(&["curl", "-sS", "--globoff", "--max-time", "10", &url]).unwrap();
        assert_eq!(page, "the price of the cart");
        let packets = tcpdump.stop().unwrap();
        assert_eq!(packets.tcp_ports().unwrap(), [15008].into(), "{name}");
        assert!(!packets.contain("the price of the cart"), "{name}");
    }
}

#[test]
fn the_services_address_never_leaves_the_node() {
    let Some(shop) = Shop::open() else { return };
    let service = shop.cluster.service("shop/cart").unwrap().0;
    let tcpdump = shop.cluster.tcpdump("service", &format!("host {service}")).unwrap();
    shop.attempt("shop/web", &format!("{service}:7000")).unwrap();
    assert_eq!(tcpdump.stop().unwrap().count("tcp").unwrap(), 0);
}

#[test]
fn a_tunnel_is_shared_by_the_connections_of_one_pod_to_another() {
    let Some(shop) = Shop::open() else { return };
    let (web, cart) = (shop.pod("shop/web"), shop.pod("shop/cart"));
    let tcpdump = shop
        .cluster
        .tcpdump("pool", &format!("host {} and host {}", web.ip4(), cart.ip4()))
        .unwrap();
    let report = web
        .load("rr", &format!("{}:7000", cart.ip4()), &["--connections", "50", "--seconds", "0.5"])
        .unwrap();
    assert_eq!(report.errors, 0, "{report:?}");
    let packets = tcpdump.stop().unwrap();
    let opened = packets.count("tcp[tcpflags] & (tcp-syn|tcp-ack) == tcp-syn").unwrap();
    // One for each data thread at most; a thread has its own tunnels.
    let threads = std::thread::available_parallelism().unwrap().get();
    assert!((1..=threads).contains(&opened), "{opened} tunnels for 50 connections");
}
