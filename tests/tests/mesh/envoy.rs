//! A stock Envoy and our daemon understand each other, whichever of them dials.

use std::path::Path;

use anyhow::ensure;
use testbed::envoy::Certificate;
use testbed::manifests::{authorization_policy, from_principal};
use testbed::wait::wait_until;
use testbed::{Envoy, PodSpec, wait_for};

use crate::certificates::{Signer, Validity, issue};
use crate::privilege;
use crate::shop::Answer::{Refused, Served};
use crate::shop::{IN_FORCE, Shop, description};

/// The ports of the load tool's servers.
const PORTS: [u16; 6] = [7000, 7001, 7002, 7003, 7004, 7005];

fn spiffe(namespace: &str, name: &str) -> String {
    format!("spiffe://cluster.local/ns/{namespace}/sa/{name}")
}

/// A certificate of the mesh for `identity`, and the mesh's root.
fn certificate(shop: &Shop, folder: &Path, identity: &str) -> Certificate {
    let control = shop.cluster.control().unwrap();
    let signer = Signer::Mesh(&control.data());
    let files = issue(folder, "envoy", signer, Some(identity), Validity::Current);
    Certificate { chain: files.certificate, key: files.key, roots: control.root_certificate() }
}

/// The stranger's Envoy, which is `identity` in the mesh and takes connections to the load servers of `shop/cart`.
fn client(shop: &Shop, identity: &str) -> Envoy {
    let stranger = shop.pod("street/stranger");
    let certificate = certificate(shop, &shop.cluster.plan().dir(), identity);
    let cart = shop.pod("shop/cart");
    Envoy::client(stranger, &certificate, cart, &spiffe("shop", "cart"), &PORTS).unwrap()
}

/// Waits until Envoy's log has `text`.
fn said(envoy: &Envoy, text: &str) {
    wait_for(&format!("Envoy to say {text:?}"), IN_FORCE, || {
        let log = envoy.log()?;
        ensure!(log.contains(text), "{log}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn envoy_as_client_moves_bytes_and_ends_through_our_daemon() {
    if !privilege::with_envoy() {
        return;
    }
    let Some(shop) = Shop::open() else { return };
    let envoy = client(&shop, &spiffe("shop", "web"));
    let stranger = shop.pod("street/stranger");
    shop.attempt("street/stranger", "127.0.0.1:7000").unwrap();
    for (direction, port) in [("up", 7003), ("down", 7002)] {
        let options = ["--direction", direction, "--bytes", "100000000"];
        let report = stranger.load("transfer", &format!("127.0.0.1:{port}"), &options).unwrap();
        assert_eq!(report.count, 100_000_000, "{direction}");
    }
    stranger.endings_of_clients("127.0.0.1").unwrap();
    // Envoy sees the reset of our application; to its own client it says FIN, whatever it saw.
    let resets = || envoy.counter("http2.rx_reset").unwrap();
    let before = resets();
    shop.attempt("street/stranger", "127.0.0.1:7005").unwrap_err();
    wait_until("Envoy to see the reset", IN_FORCE, || resets() > before).unwrap();
    let report =
        stranger.load("rr", "127.0.0.1:7000", &["--connections", "300", "--seconds", "1"]).unwrap();
    assert_eq!((report.errors, &report.first_error), (0, &None));
    let daemon = shop.cluster.daemon("b").unwrap();
    let ours = [
        "reporter=\"destination\"",
        "source_principal=\"spiffe://cluster.local/ns/shop/sa/web\"",
        "connection_security_policy=\"mutual_tls\"",
    ];
    assert!(daemon.metric("istio_tcp_connections_opened_total", &ours).unwrap() >= 300.0);
    // What our answer says of the destination reaches the peer.
    said(&envoy, "k8s.namespace.name=shop,k8s.pod.name=cart");
}

#[test]
fn a_refusal_by_policy_is_401_to_envoy_and_an_end_to_its_client() {
    if !privilege::with_envoy() {
        return;
    }
    let Some(shop) = Shop::open() else { return };
    let envoy = client(&shop, &spiffe("shop", "batch"));
    let to = "127.0.0.1:7000";
    shop.attempt("street/stranger", to).unwrap();
    let yaml =
        authorization_policy("shop/callers", "ALLOW", "cart", &from_principal("shop", "web"));
    shop.cluster.apply("policy.yaml", &yaml).unwrap();
    let cart = format!("{}:7000", shop.pod("shop/cart").ip4());
    shop.expect(&cart, &[("shop/web", Served), ("shop/near", Refused)]);
    shop.attempt("street/stranger", to).unwrap_err();
    said(&envoy, r#"{"key":":status","value":"401"}"#);
    shop.cluster.delete("policy.yaml").unwrap();
    shop.expect(to, &[("street/stranger", Served)]);
}

/// The shop with `street/native`, which ends tunnels itself: nothing of it is captured, and its workload says HBONE.
fn with_native() -> Option<Shop> {
    let native = PodSpec::new("street/native", "b").label("networking.istio.io/tunnel", "http");
    let mut shop = Shop::of(description().pod(native))?;
    shop.serve("street/native");
    Some(shop)
}

/// The Envoy of `street/native`, which takes `streams` on each tunnel.
fn server(shop: &Shop, streams: u32) -> Envoy {
    let native = shop.pod("street/native");
    let folder = shop.cluster.plan().dir();
    let certificate = certificate(shop, &folder, &spiffe("street", "native"));
    Envoy::server(native, &certificate, &PORTS, streams).unwrap()
}

#[test]
fn our_daemon_moves_bytes_and_ends_through_envoy_as_server() {
    if !privilege::with_envoy() {
        return;
    }
    let Some(shop) = with_native() else { return };
    let envoy = server(&shop, 100);
    let (web, native) = (shop.pod("shop/web"), shop.pod("street/native").ip4());
    shop.attempt("shop/web", &format!("{native}:7000")).unwrap();
    said(&envoy, &format!("CONNECT {native}:7000 200 from {}", spiffe("shop", "web")));
    said(&envoy, "baggage: k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.pod.name=web");
    said(&envoy, &format!("forwarded: for=\"{}:", web.ip4()));
    // More than every window, both ways. Envoy resets what it has not sent yet when the application ends first, so the
    // client does.
    let options = ["--direction", "up", "--bytes", "100000000"];
    let report = web.load("transfer", &format!("{native}:7003"), &options).unwrap();
    assert_eq!(report.count, 100_000_000);
    let report =
        web.load("bulk", &format!("{native}:7002"), &["--direction", "down", "--seconds", "3"]);
    let report = report.unwrap();
    assert_eq!((report.errors, &report.first_error), (0, &None));
    assert!(report.count > 32 << 20, "{report:?}");
    // A reset of Envoy's application reaches ours.
    let error = shop.attempt("shop/web", &format!("{native}:7005")).unwrap_err();
    assert!(format!("{error:#}").contains("reset"), "{error:#}");
}

#[test]
fn a_reset_of_our_application_is_one_to_envoy_as_server() {
    if !privilege::with_envoy() {
        return;
    }
    let Some(shop) = with_native() else { return };
    let envoy = server(&shop, 100);
    let to = format!("{}:7000", shop.pod("street/native").ip4());
    shop.attempt("shop/web", &to).unwrap();
    let resets = || envoy.counter("http2.rx_reset").unwrap();
    assert_eq!(resets(), 0, "an orderly end is none");
    let load = testbed::binaries::ours("load").unwrap().display().to_string();
    for count in 1..=3 {
        shop.pod("shop/web").ask(&[&load, "cut-off", "--to", &to]).unwrap();
        wait_until("Envoy to see the reset", IN_FORCE, || resets() == count).unwrap();
    }
}

/// How an echo server of `to` sees that the client of a connection from `from` resets it after one exchange.
fn end_of_reset_connection(shop: &Shop, from: &str, to: &str) -> &'static str {
    let words = ["socat", "-d", "-d", "TCP6-LISTEN:7100,reuseaddr", "PIPE"];
    let mut echo = shop.pod(to).spawn("echo-once", &words).unwrap();
    echo.wait_listening(7100).unwrap();
    let load = testbed::binaries::ours("load").unwrap().display().to_string();
    let to = format!("{}:7100", shop.pod(to).ip4());
    shop.pod(from).ask(&[&load, "cut-off", "--to", &to]).unwrap();
    wait_for("the end of the connection", IN_FORCE, || {
        let log = echo.log()?;
        match (log.contains("Connection reset by peer"), log.contains("is at EOF")) {
            (true, _) => Ok("reset"),
            (false, true) => Ok("end"),
            (false, false) => anyhow::bail!("{log}"),
        }
    })
    .unwrap()
}

#[test]
fn the_client_behind_envoy_sees_an_end_where_ours_sees_the_reset_of_the_application() {
    if !privilege::with_envoy() {
        return;
    }
    let Some(shop) = Shop::open() else { return };
    let envoy = client(&shop, &spiffe("shop", "web"));
    shop.attempt("street/stranger", "127.0.0.1:7000").unwrap();
    let ours = format!("{}:7005", shop.pod("shop/cart").ip4());
    let ours = format!("{:#}", shop.attempt("shop/web", &ours).unwrap_err());
    assert!(ours.contains("reset"), "{ours}");
    // Envoy was told of the reset, and closes the connection of its own client without an answer.
    let resets = || envoy.counter("http2.rx_reset").unwrap();
    let before = resets();
    let envoys = format!("{:#}", shop.attempt("street/stranger", "127.0.0.1:7005").unwrap_err());
    assert!(!envoys.contains("reset"), "{envoys}");
    wait_until("Envoy to see the reset", IN_FORCE, || resets() > before).unwrap();
}

#[test]
fn the_application_behind_envoy_sees_an_end_where_ours_sees_the_reset_of_the_client() {
    if !privilege::with_envoy() {
        return;
    }
    let Some(shop) = with_native() else { return };
    let native = shop.pod("street/native");
    let certificate = certificate(&shop, &shop.cluster.plan().dir(), &spiffe("street", "native"));
    let envoy = Envoy::server(native, &certificate, &[7000, 7100], 100).unwrap();
    shop.attempt("shop/web", &format!("{}:7000", native.ip4())).unwrap();
    assert_eq!(end_of_reset_connection(&shop, "shop/web", "shop/cart"), "reset");
    assert_eq!(end_of_reset_connection(&shop, "shop/web", "street/native"), "end");
    assert_eq!(envoy.counter("http2.rx_reset").unwrap(), 1, "Envoy was told of the reset");
}

#[test]
fn an_answer_that_ends_before_the_request_arrives_whole_though_envoy_resets_the_stream() {
    if !privilege::with_envoy() {
        return;
    }
    let Some(shop) = with_native() else { return };
    let _envoy = server(&shop, 100);
    let to = format!("{}:7002", shop.pod("street/native").ip4());
    for bytes in ["1", "1000", "1000000"] {
        for _ in 0..20 {
            let options = ["--direction", "down", "--bytes", bytes];
            let report = shop.pod("shop/web").load("transfer", &to, &options).unwrap();
            assert_eq!(report.count.to_string(), bytes);
        }
    }
    let daemon = shop.cluster.daemon("a").unwrap();
    assert!(!daemon.log().unwrap().contains("tunnel_reset"));
}

#[test]
fn envoys_limit_of_streams_is_kept() {
    if !privilege::with_envoy() {
        return;
    }
    let Some(shop) = with_native() else { return };
    let envoy = server(&shop, 2);
    let to = format!("{}:7000", shop.pod("street/native").ip4());
    let options = ["--connections", "20", "--seconds", "1"];
    let report = shop.pod("shop/web").load("rr", &to, &options).unwrap();
    assert_eq!((report.errors, &report.first_error), (0, &None));
    assert!(envoy.counter("http.tunnels.downstream_cx_total").unwrap() >= 10);
    assert_eq!(envoy.counter("http2.tx_reset").unwrap(), 0, "no stream was refused");
}

#[test]
fn after_envoys_goaway_connections_go_on_and_new_ones_use_a_new_tunnel() {
    if !privilege::with_envoy() {
        return;
    }
    let Some(shop) = with_native() else { return };
    let envoy = server(&shop, 100);
    let to = format!("{}:7000", shop.pod("street/native").ip4());
    let tunnels = || envoy.counter("http.tunnels.downstream_cx_total").unwrap();
    let mut held = shop.hold("shop/web", &to);
    wait_until("the held connection", IN_FORCE, || tunnels() >= 1).unwrap();
    shop.attempt("shop/web", &to).unwrap();
    let before = tunnels();
    envoy.drain().unwrap();
    for _ in 0..20 {
        shop.attempt("shop/web", &to).unwrap();
    }
    assert!(tunnels() > before, "the drained tunnels take no more streams");
    envoy.stop_draining().unwrap();
    let after = tunnels();
    for _ in 0..5 {
        shop.attempt("shop/web", &to).unwrap();
    }
    // Each data thread has tunnels of its own.
    assert!(tunnels() <= after + 2, "the new tunnels are used again");
    held.check_running().unwrap();
}

#[test]
fn an_envoy_that_is_killed_resets_the_connections_in_its_tunnels() {
    if !privilege::with_envoy() {
        return;
    }
    let Some(shop) = with_native() else { return };
    let mut envoy = server(&shop, 100);
    let to = format!("{}:7000", shop.pod("street/native").ip4());
    let mut held = shop.hold("shop/web", &to);
    let daemon = shop.cluster.daemon("a").unwrap();
    let open = ["reporter=\"source\"", "destination_workload=\"native\""];
    wait_until("the held connection", IN_FORCE, || {
        daemon.metric("istio_tcp_connections_opened_total", &open).unwrap() > 0.0
    })
    .unwrap();
    held.check_running().unwrap();
    envoy.kill().unwrap();
    wait_until("the application to see the end", IN_FORCE, || held.check_running().is_err())
        .unwrap();
    let report = held.log().unwrap();
    assert!(report.contains("reset"), "{report}");
    wait_for("the daemon's word for it", IN_FORCE, || {
        let log = daemon.log()?;
        ensure!(log.contains("reason=\"tunnel_lost\""), "{log}");
        Ok(())
    })
    .unwrap();
    // Nobody serves there, and that is said at once.
    shop.attempt("shop/web", &to).unwrap_err();
    let _again = server(&shop, 100);
    shop.attempt("shop/web", &to).unwrap();
}
