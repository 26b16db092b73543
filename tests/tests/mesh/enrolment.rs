//! Pods enter and leave the mesh; what has left, or has been uninstalled, leaves nothing behind.

use crate::shop::Answer::Served;
use crate::shop::Shop;

#[test]
fn a_pod_that_leaves_speaks_plain_tcp_and_can_come_back() {
    let Some(shop) = Shop::open() else { return };
    let (web, cart) = (shop.pod("shop/web").clone(), shop.pod("shop/cart"));
    let to = format!("{}:7000", cart.ip4());
    let filter = format!("host {} and host {}", web.ip4(), cart.ip4());
    let daemon = shop.cluster.daemon("a").unwrap();
    shop.attempt("shop/web", &to).unwrap();

    daemon.unregister(&web).unwrap();
    let tcpdump = shop.cluster.tcpdump("left", &filter).unwrap();
    shop.attempt("shop/web", &to).unwrap();
    assert_eq!(tcpdump.stop().unwrap().ports_dialed().unwrap(), [7000].into());

    daemon.register(&web).unwrap();
    let tcpdump = shop.cluster.tcpdump("back", &filter).unwrap();
    shop.attempt("shop/web", &to).unwrap();
    assert_eq!(tcpdump.stop().unwrap().tcp_ports().unwrap(), [15008].into());
}

#[test]
fn registering_twice_is_the_same_as_once() {
    let Some(shop) = Shop::open() else { return };
    let web = shop.pod("shop/web").clone();
    shop.cluster.daemon("a").unwrap().register(&web).unwrap();
    shop.expect(&format!("{}:7000", shop.pod("shop/cart").ip4()), &[("shop/web", Served)]);
}

#[test]
fn an_uninstalled_daemon_leaves_pods_as_they_were() {
    let Some(mut shop) = Shop::open() else { return };
    for node in ["a", "b"] {
        let daemon = shop.cluster.daemon_mut(node).unwrap();
        daemon.stop().unwrap();
        daemon.uninstall().unwrap();
        let folder = daemon.pin_dir().display().to_string();
        let listing =
            testbed::command::run("sh", ["-c", "test ! -d \"$0\" || find \"$0\" -type f", &folder])
                .unwrap();
        assert_eq!(listing, "", "on node {node}");
    }
    let (web, cart) = (shop.pod("shop/web"), shop.pod("shop/cart"));
    let filter = format!("host {} and host {}", web.ip4(), cart.ip4());
    let tcpdump = shop.cluster.tcpdump("uninstalled", &filter).unwrap();
    shop.attempt("shop/web", &format!("{}:7000", cart.ip4())).unwrap();
    assert_eq!(tcpdump.stop().unwrap().ports_dialed().unwrap(), [7000].into());
    // What the daemon set up for replies is gone as well.
    for pod in shop.cluster.pods() {
        for family in ["-4", "-6"] {
            let rules = pod.ask(&["ip", family, "rule", "list"]).unwrap();
            assert!(!rules.contains("fwmark"), "{}: {rules}", pod.spec().path());
        }
    }
}
