//! What the wire between nodes shows.

use std::collections::BTreeSet;

use crate::shop::Shop;

const PAGE: &str = "the price of the cart";

#[test]
fn between_nodes_the_mesh_is_seen_as_tunnels_and_only_an_outsider_is_read() {
    let Some(shop) = Shop::open() else { return };
    let cart = shop.pod("shop/cart");
    let _nginx = cart.nginx(PAGE).unwrap();
    // The outsider's rows are the control: where the text crosses in the clear, such a capture shows it.
    for (from, ports, is_read) in
        [("shop/web", [15008].into(), false), ("street/stranger", [80].into(), true)]
    {
        let client = shop.pod(from);
        for (family, source, target, host) in [
            ("ip4", client.ip4().to_string(), cart.ip4().to_string(), cart.ip4().to_string()),
            ("ip6", client.ip6().to_string(), cart.ip6().to_string(), format!("[{}]", cart.ip6())),
        ] {
            let filter = format!("host {source} and host {target}");
            let tcpdump =
                shop.cluster.tcpdump(&format!("{}-{family}", client.netns()), &filter).unwrap();
            let url = format!("http://{host}/");
            let words = ["curl", "-sS", "--globoff", "--max-time", "10", &url];
            assert_eq!(client.ask(&words).unwrap(), PAGE);
            let packets = tcpdump.stop().unwrap();
            let found = (packets.tcp_ports().unwrap(), packets.contain(PAGE));
            assert_eq!(found, (BTreeSet::clone(&ports), is_read), "{from} over {family}");
        }
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
