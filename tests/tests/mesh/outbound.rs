//! Which endpoint of a service takes a connection: the less busy one, another where one fails, none past a limit.

use anyhow::ensure;
use testbed::wait::wait_until;
use testbed::{Cluster, PodSpec, Process, wait_for};

use crate::shop::{IN_FORCE, Shop, description};

/// A service of every pod of the shop with the label `tier: shared`.
const SHARED: &str = "\
---
apiVersion: v1
kind: Service
metadata:
  name: shared
  namespace: shop
  annotations: {}
spec:
  selector:
    tier: shared
  clusterIP: 198.51.100.7
  clusterIPs: [198.51.100.7]
  ipFamilies: [IPv4]
  ports:
  - {name: tcp, port: 7000, targetPort: 7000, protocol: TCP}
";
const SERVICE: &str = "198.51.100.7:7000";

fn shared(annotations: &str) -> String {
    SHARED.replace("annotations: {}", &format!("annotations: {{{annotations}}}"))
}

/// Connections that stay open, all of them established.
fn hold(shop: &Shop, from: &str, to: &str, connections: usize) -> Process {
    let load = testbed::binaries::ours("load").unwrap().display().to_string();
    let count = connections.to_string();
    let words = [&load, "rr", "--seconds", "3600", "--connections", &count, "--to", to];
    let before = open_to(shop, to, |_| true);
    let held = shop.pod(from).spawn("held", &words).unwrap();
    wait_until("the held connections", IN_FORCE, || {
        open_to(shop, to, |_| true) >= before + connections
    })
    .unwrap();
    held
}

/// Open outbound connections of node a that were made to an address, by where they went.
fn open_to(shop: &Shop, original: &str, to: impl Fn(&str) -> bool) -> usize {
    let listed = shop.cluster.daemon("a").unwrap().get("http://127.0.0.1:15000/connections");
    let listed: serde_json::Value = serde_json::from_str(&listed.unwrap()).unwrap();
    let listed = listed.as_array().unwrap().iter();
    let text =
        |one: &serde_json::Value, key: &str| one[key].as_str().unwrap_or_default().to_owned();
    let counted = listed.filter(|one| {
        one["direction"] == "outbound"
            && text(one, "originalDestination") == original
            && to(&text(one, "actualDestination"))
    });
    counted.count()
}

fn metric(cluster: &Cluster, name: &str, labels: &[&str]) -> f64 {
    cluster.daemon("a").unwrap().metric(name, labels).unwrap()
}

fn failures(cluster: &Cluster, reason: &str) -> f64 {
    metric(cluster, "aquifer_failures_total", &[&format!("reason=\"{reason}\"")])
}

/// The shop with two more pods behind one service: one serves from the beginning, one does not.
fn two_endpoints() -> Option<Shop> {
    let description = description()
        .pod(PodSpec::new("shop/one", "b").label("tier", "shared"))
        .pod(PodSpec::new("shop/two", "b").label("tier", "shared"))
        .manifest("shared.yaml", &shared(""));
    let mut shop = Shop::of(description)?;
    shop.serve("shop/one");
    Some(shop)
}

#[test]
fn new_connections_go_to_the_endpoint_that_has_fewer() {
    let Some(mut shop) = two_endpoints() else { return };
    shop.serve("shop/two");
    let (one, two) = (shop.pod("shop/one").ip4(), shop.pod("shop/two").ip4());
    // The load of one counts, whatever it was dialed by.
    let _busy = hold(&shop, "shop/web", &format!("{one}:7000"), 100);
    let _shared = hold(&shop, "shop/near", SERVICE, 80);
    let to = |ip: std::net::Ipv4Addr| open_to(&shop, SERVICE, |to| to == format!("{ip}:15008"));
    let found = (to(one), to(two));
    // Of 80, chance alone would send 40 to each.
    assert!(found.0 + found.1 == 80 && found.1 >= 60, "{found:?}");
}

#[test]
fn an_endpoint_that_refuses_costs_no_request_is_left_alone_and_comes_back() {
    let Some(mut shop) = two_endpoints() else { return };
    for _ in 0..40 {
        shop.attempt("shop/web", SERVICE).unwrap();
    }
    let daemon = shop.cluster.daemon("a").unwrap();
    let retried = ["reason=\"tunnel_unavailable\""];
    let retries = metric(&shop.cluster, "aquifer_retried_connections_total", &retried);
    // Three failures eject it; while it is out nobody tries it.
    assert!((3.0..20.0).contains(&retries), "{retries}");
    assert!(metric(&shop.cluster, "aquifer_endpoint_ejections_total", &retried) >= 1.0);
    assert!(daemon.log().unwrap().contains("endpoint ejected"));
    assert_eq!(failures(&shop.cluster, "tunnel_unavailable"), 0.0, "each told its end once");

    let shown = daemon.get("http://127.0.0.1:15000/aquifer/endpoints").unwrap();
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert!(shown[0]["uid"].as_str().unwrap().ends_with("/shop/two"), "{shown}");
    assert!(shown[0]["failures"].as_u64().unwrap() >= 3, "{shown}");

    shop.serve("shop/two");
    let two = format!("{}:15008", shop.pod("shop/two").ip4());
    wait_for("the endpoint to be used again", testbed::wait::PATIENCE, || {
        let _held = hold(&shop, "shop/web", SERVICE, 8);
        ensure!(open_to(&shop, SERVICE, |to| to == two) > 0, "nobody is sent there");
        Ok(())
    })
    .unwrap();
    wait_until("nothing to be ejected", IN_FORCE, || {
        metric(&shop.cluster, "aquifer_endpoints_ejected", &[]) == 0.0
    })
    .unwrap();
    assert!(shop.cluster.daemon("a").unwrap().log().unwrap().contains("endpoint returned"));
}

#[test]
fn a_refusal_by_policy_is_not_asked_for_elsewhere() {
    let Some(mut shop) = two_endpoints() else { return };
    shop.serve("shop/two");
    let deny = testbed::manifests::authorization_policy("shop/closed", "DENY", "one", "  - {}\n");
    shop.cluster.apply("one.yaml", &deny).unwrap();
    let deny = testbed::manifests::authorization_policy("shop/shut", "DENY", "two", "  - {}\n");
    shop.cluster.apply("two.yaml", &deny).unwrap();
    shop.expect(SERVICE, &[("shop/web", crate::shop::Answer::Refused)]);
    let retries = || metric(&shop.cluster, "aquifer_retried_connections_total", &[]);
    let before = (retries(), failures(&shop.cluster, "tunnel_denied"));
    for _ in 0..10 {
        shop.attempt("shop/web", SERVICE).unwrap_err();
    }
    wait_until("ten denials", IN_FORCE, || {
        failures(&shop.cluster, "tunnel_denied") >= before.1 + 10.0
    })
    .unwrap();
    assert_eq!(retries(), before.0);
}

#[test]
fn a_service_takes_as_many_connections_as_its_annotation_says() {
    let Some(shop) = two_endpoints() else { return };
    shop.cluster.apply("shared.yaml", &shared("\"aquifer.io/max-connections\": \"5\"")).unwrap();
    let limited = || failures(&shop.cluster, "connection_limit");
    wait_for("the limit", IN_FORCE, || {
        let _held = hold(&shop, "shop/web", SERVICE, 5);
        let refused = shop.attempt("shop/near", SERVICE).is_err();
        ensure!(refused && limited() >= 1.0, "one more is served");
        Ok(())
    })
    .unwrap();
    // The held ones are gone, and there is room.
    wait_for("room", IN_FORCE, || shop.attempt("shop/near", SERVICE)).unwrap();
}

#[test]
fn an_identity_makes_new_connections_as_fast_as_the_setting_says() {
    let description = description().variable("AQUIFER_CONNECTION_RATE_PER_IDENTITY", "1:5");
    let Some(shop) = Shop::of(description) else { return };
    let cart = format!("{}:7000", shop.pod("shop/cart").ip4());
    let served = (0..20).filter(|_| shop.attempt("shop/web", &cart).is_ok()).count();
    assert!((5..20).contains(&served), "{served}");
    assert!(failures(&shop.cluster, "rate_limit") >= 1.0);
    // Another identity has its own.
    shop.attempt("shop/near", &cart).unwrap();
}
