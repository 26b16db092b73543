//! What applications may rely on: every byte, every end, every family, from the same node and from another.

use crate::shop::Shop;

/// Every address at which `shop/{name}` serves port 7000.
fn addresses(shop: &Shop, path: &str) -> [String; 4] {
    let pod = shop.pod(path);
    let (service4, service6) = shop.cluster.service(path).unwrap();
    [
        pod.ip4().to_string(),
        format!("[{}]", pod.ip6()),
        service4.to_string(),
        format!("[{service6}]"),
    ]
}

#[test]
fn pods_and_services_are_reached_over_both_families_from_the_same_node_and_across() {
    let Some(shop) = Shop::open() else { return };
    for path in ["shop/near", "shop/cart"] {
        for address in addresses(&shop, path) {
            shop.attempt("shop/web", &format!("{address}:7000")).unwrap();
        }
    }
    // A service's port is not its pods': 80 leads to 7000.
    shop.attempt("shop/web", &format!("{}:80", shop.cluster.service("shop/cart").unwrap().0))
        .unwrap();
}

#[test]
fn the_application_sees_the_client_and_not_the_proxy() {
    let Some(shop) = Shop::open() else { return };
    let web = shop.pod("shop/web");
    for path in ["shop/near", "shop/cart"] {
        let server = shop.pod(path);
        let _nginx = server.nginx("a page").unwrap();
        for (host, client) in [
            (server.ip4().to_string(), web.ip4().to_string()),
            (format!("[{}]", server.ip6()), web.ip6().to_string()),
        ] {
            let url = format!("http://{host}/");
            let answer =
                web.ask(&["curl", "-sS", "--globoff", "-i", "--max-time", "10", &url]).unwrap();
            assert!(
                answer.contains(&format!("X-Client: {client}\r\n")),
                "{path} over {host}: {answer}"
            );
        }
    }
}

#[test]
fn halves_end_and_connections_are_cut_off_as_the_application_meant() {
    let Some(shop) = Shop::open() else { return };
    for path in ["shop/near", "shop/cart"] {
        let pod = shop.pod(path);
        for host in [pod.ip4().to_string(), format!("[{}]", pod.ip6())] {
            shop.pod("shop/web")
                .endings(&host)
                .unwrap_or_else(|error| panic!("{path} at {host}: {error:#}"));
        }
    }
}

#[test]
fn a_gigabyte_arrives_whole_in_both_directions() {
    let Some(shop) = Shop::open() else { return };
    let cart = shop.pod("shop/cart").ip4();
    for (direction, port) in [("up", 7003), ("down", 7002)] {
        let options = ["--direction", direction, "--bytes", "1000000000"];
        let report =
            shop.pod("shop/web").load("transfer", &format!("{cart}:{port}"), &options).unwrap();
        assert_eq!(report.count, 1_000_000_000, "{direction}");
    }
}

#[test]
fn two_thousand_connections_are_held_and_served_at_once() {
    let Some(shop) = Shop::open() else { return };
    for path in ["shop/near", "shop/cart"] {
        let to = format!("{}:7000", shop.pod(path).ip4());
        let options = ["--connections", "2000", "--seconds", "2"];
        let report = shop.pod("shop/web").load("rr", &to, &options).unwrap();
        assert_eq!((report.errors, &report.first_error), (0, &None), "{path}");
        assert!(report.count >= 2000, "{path}: {report:?}");
    }
}

#[test]
fn a_pod_reaches_itself_by_its_addresses_and_by_its_service() {
    let Some(shop) = Shop::open() else { return };
    for host in addresses(&shop, "shop/cart") {
        let tried = shop.attempt("shop/cart", &format!("{host}:7000"));
        tried.unwrap_or_else(|error| panic!("{host}: {error:#}"));
    }
}

#[test]
fn a_closed_port_is_refused_and_not_waited_for() {
    let Some(shop) = Shop::open() else { return };
    for path in ["shop/near", "shop/cart"] {
        let to = format!("{}:9", shop.pod(path).ip4());
        let start = std::time::Instant::now();
        let error = shop.attempt("shop/web", &to).unwrap_err();
        assert!(start.elapsed().as_secs() < 5, "{path}: {error:#}");
        assert!(format!("{error:#}").contains("reset"), "{path}: {error:#}");
    }
}

#[test]
fn destinations_outside_the_mesh_are_reached_in_the_clear() {
    let Some(mut shop) = Shop::open() else { return };
    shop.serve("street/stranger");
    let stranger = shop.pod("street/stranger");
    for host in [stranger.ip4().to_string(), format!("[{}]", stranger.ip6())] {
        shop.attempt("shop/web", &format!("{host}:7000")).unwrap();
    }
}
