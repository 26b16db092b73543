//! Certificates, roots and revocation lists that change while connections are open.

use std::{
    collections::BTreeSet,
    fs,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use anyhow::{Result, ensure};
use serde_json::Value;
use testbed::wait::wait_until;
use testbed::{Process, wait_for};

use crate::shop::Answer::{Refused, Served};
use crate::shop::{IN_FORCE, Shop, description};

const NODES: [&str; 2] = ["a", "b"];
/// Every certificate is renewed within this, at the lifetime that the test sets, and what nobody holds any more is given up.
const RENEWED: Duration = Duration::from_secs(60);

/// The certificates of all nodes as their dumps show them.
fn certificates(shop: &Shop) -> Result<Vec<Value>> {
    let mut all = Vec::new();
    for node in NODES {
        let dump = shop.cluster.daemon(node)?.config_dump()?;
        let found = dump["certificates"].as_array().cloned().unwrap_or_default();
        ensure!(!found.is_empty(), "node {node} has no certificate");
        all.extend(found);
    }
    Ok(all)
}

fn serials(shop: &Shop) -> Result<BTreeSet<String>> {
    let of = |certificate: &Value| certificate["certChain"][0]["serialNumber"].to_string();
    Ok(certificates(shop)?.iter().map(of).collect())
}

/// Waits until every certificate was issued anew and came with `roots` roots.
fn all_renewed(shop: &Shop, roots: usize) {
    let before = serials(shop).unwrap();
    wait_for("the renewal of all certificates", RENEWED, || {
        for certificate in certificates(shop)? {
            let trusted = certificate["rootCerts"].as_array().map_or(0, Vec::len);
            ensure!(trusted == roots, "{} trusts {trusted} roots", certificate["identity"]);
        }
        let left = serials(shop)?.intersection(&before).count();
        ensure!(left == 0, "{left} certificates are still in use");
        Ok(())
    })
    .unwrap();
}

/// Makes connections, one after the other, until told to stop. Out: how many there were.
fn connections(shop: &Shop, from: &str, to: &str, stop: &AtomicBool) -> u64 {
    let pod = shop.pod(from);
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        let report = pod.load("crr", to, &["--seconds", "1", "--parallel", "2"]).unwrap();
        assert_eq!(report.errors, 0, "{from} to {to}: {:?}", report.first_error);
        count += report.count;
    }
    count
}

/// Takes a step of the root's rotation and gives the nodes the roots by which they know pilot, as a cluster would.
fn rotate(shop: &Shop, step: &str) {
    shop.cluster.control().unwrap().rotate_root(step).unwrap();
}

#[test]
fn certificates_and_the_root_change_under_load_without_a_failed_request() {
    let Some(shop) = Shop::of(description().variable("SECRET_TTL", "6s")) else { return };
    let cart = format!("{}:7000", shop.pod("shop/cart").ip4());
    let near = format!("{}:7000", shop.pod("shop/near").ip4());
    for to in [&cart, &near] {
        shop.expect(to, &[("shop/web", Served), ("data/batch", Served)]);
    }
    let root = |shop: &Shop| certificates(shop).unwrap()[0]["rootCerts"][0]["serialNumber"].clone();
    let old = root(&shop);
    let mut held = shop.hold("shop/web", &cart);
    let stop = AtomicBool::new(false);
    let counts = std::thread::scope(|scope| {
        let loads = [("shop/web", &cart), ("data/batch", &cart), ("shop/web", &near)]
            .map(|(from, to)| scope.spawn(|| connections(&shop, from, to, &stop)));
        // The load ends whatever happens below.
        let steps = scope.spawn(|| {
            all_renewed(&shop, 1);
            rotate(&shop, "begin");
            all_renewed(&shop, 2);
            rotate(&shop, "switch");
            all_renewed(&shop, 2);
            // What was verified under the old root goes on for as long as that is trusted.
            held.check_running().unwrap();
            rotate(&shop, "finish");
            all_renewed(&shop, 1);
            ended(&mut held);
        });
        let stepped = steps.join();
        stop.store(true, Ordering::Relaxed);
        let counts = loads.map(|load| load.join().unwrap());
        stepped.unwrap();
        counts
    });
    assert!(counts.iter().all(|count| *count > 100), "{counts:?}");
    eprintln!("connections without a failure: {counts:?}");
    assert_ne!(root(&shop), old, "the root is still the first one");
    let mut cut = 0.0;
    for node in NODES {
        let daemon = shop.cluster.daemon(node).unwrap();
        let failures = |labels: &[&str]| daemon.metric("aquifer_failures_total", labels).unwrap();
        let untrusted = failures(&["reason=\"certificate_untrusted\""]);
        // An end that was told by the other one sees its tunnel reset.
        let told = failures(&["reason=\"tunnel_reset\""]);
        assert!(untrusted + told <= 1.0, "{}", daemon.metrics().unwrap());
        let others = failures(&[]) - untrusted - told;
        assert!(others.abs() < f64::EPSILON, "{}", daemon.metrics().unwrap());
        cut += untrusted;
        assert!(daemon.metric("aquifer_certificates_issued_total", &[]).unwrap() >= 5.0);
    }
    assert!(cut >= 1.0, "the open connection did not end by the root that was dropped");
}

/// How often node `node` saw a revoked certificate, as `reporter`.
fn rejections(shop: &Shop, node: &str, reporter: &str) -> f64 {
    let label = format!("reporter=\"{reporter}\"");
    let daemon = shop.cluster.daemon(node).unwrap();
    let by_reason =
        daemon.metric("aquifer_failures_total", &[&label, "reason=\"certificate_revoked\""]);
    let rejections = daemon.metric("istio_crl_policy_rejections_total", &[&label]).unwrap();
    assert!((by_reason.unwrap() - rejections).abs() < f64::EPSILON);
    rejections
}

/// Gives node `node` the list, as a mounted file is exchanged.
fn give_list(shop: &Shop, node: &str) {
    let to = shop.cluster.daemon(node).unwrap().revocation_list();
    let fresh = to.with_extension("new");
    fs::copy(shop.cluster.control().unwrap().data().join("ca-crl.pem"), &fresh).unwrap();
    fs::rename(&fresh, &to).unwrap();
}

fn ended(process: &mut Process) {
    wait_until("the end of the connection", IN_FORCE, || process.check_running().is_err()).unwrap();
}

#[test]
fn a_revoked_certificate_ends_exactly_its_connections_and_opens_no_new_ones() {
    let Some(shop) = Shop::open() else { return };
    let cart = format!("{}:7000", shop.pod("shop/cart").ip4());
    let near = format!("{}:7000", shop.pod("shop/near").ip4());
    shop.expect(&near, &[("shop/web", Served), ("data/batch", Served)]);
    shop.expect(&cart, &[("shop/web", Served), ("data/batch", Served)]);
    let mut web_to_cart = shop.hold("shop/web", &cart);
    let mut batch_to_cart = shop.hold("data/batch", &cart);
    let mut web_to_near = shop.hold("shop/web", &near);
    let of_destination = |node| {
        let daemon = shop.cluster.daemon(node).unwrap();
        let connections = daemon.get("http://127.0.0.1:15000/connections").unwrap();
        connections.matches("\"inbound\"").count()
    };
    wait_until("the connections", IN_FORCE, || {
        of_destination("b") == 2 && of_destination("a") == 1
    })
    .unwrap();

    // Node b is told, node a is not yet: what web has open to b ends, with the reason, and nothing else does.
    let control = shop.cluster.control().unwrap();
    control.revoke("spiffe://cluster.local/ns/shop/sa/web").unwrap();
    give_list(&shop, "b");
    ended(&mut web_to_cart);
    wait_until("the reason", IN_FORCE, || rejections(&shop, "b", "destination") >= 1.0).unwrap();
    let counted = rejections(&shop, "b", "destination");
    shop.expect(&cart, &[("shop/web", Refused), ("data/batch", Served)]);
    wait_until("the reason", IN_FORCE, || rejections(&shop, "b", "destination") > counted).unwrap();
    batch_to_cart.check_running().unwrap();
    web_to_near.check_running().unwrap();
    assert!(rejections(&shop, "a", "destination").abs() < f64::EPSILON);

    // Node a is told: the connection within it ends too, and web gets another certificate, with which it is let in.
    give_list(&shop, "a");
    ended(&mut web_to_near);
    shop.expect(&cart, &[("shop/web", Served), ("data/batch", Served)]);
    shop.expect(&near, &[("shop/web", Served)]);
    batch_to_cart.check_running().unwrap();

    // A client that is told first ends its connections to a revoked server.
    control.revoke("spiffe://cluster.local/ns/shop/sa/cart").unwrap();
    give_list(&shop, "a");
    ended(&mut batch_to_cart);
    wait_until("the reason", IN_FORCE, || rejections(&shop, "a", "source") >= 1.0).unwrap();
    shop.expect(&cart, &[("data/batch", Refused)]);
    give_list(&shop, "b");
    shop.expect(&cart, &[("data/batch", Served), ("shop/web", Served)]);
}

#[test]
fn a_bad_list_leaves_the_former_one_in_force() {
    let Some(mut shop) = Shop::open() else { return };
    let cart = format!("{}:7000", shop.pod("shop/cart").ip4());
    shop.expect(&cart, &[("shop/web", Served)]);
    shop.cluster.control().unwrap().revoke("spiffe://cluster.local/ns/shop/sa/web").unwrap();
    give_list(&shop, "b");
    shop.expect(&cart, &[("shop/web", Refused)]);
    let list = shop.cluster.daemon("b").unwrap().revocation_list();
    fs::write(&list, "hello").unwrap();
    wait_for("the daemon's complaint", IN_FORCE, || {
        let log = shop.cluster.daemon("b")?.log()?;
        ensure!(log.contains("the former revocation lists stay in force"), "{log}");
        Ok(())
    })
    .unwrap();
    shop.expect(&cart, &[("shop/web", Refused)]);
    let error = shop.cluster.daemon_mut("b").unwrap().restart().unwrap_err();
    let error = format!("{error:#}");
    assert!(
        error.contains("reading the revocation lists in")
            && error.contains("it holds no revocation list"),
        "{error}"
    );
    fs::remove_file(&list).unwrap();
    shop.cluster.daemon_mut("b").unwrap().restart().unwrap();
    shop.expect(&cart, &[("shop/web", Served)]);
}

#[test]
fn nodes_that_issue_to_themselves_are_meshes_of_their_own() {
    let nobody = description().variable("FAKE_CA", "true").variable("CA_ADDRESS", "10.1.0.200:1");
    let Some(shop) = Shop::of(nobody) else { return };
    let near = format!("{}:7000", shop.pod("shop/near").ip4());
    let cart = format!("{}:7000", shop.pod("shop/cart").ip4());
    shop.expect(&near, &[("shop/web", Served), ("data/batch", Served)]);
    shop.expect(&cart, &[("shop/web", Refused), ("data/batch", Refused)]);
    let labels = [
        "reporter=\"destination\"",
        "source_principal=\"spiffe://cluster.local/ns/shop/sa/web\"",
        "connection_security_policy=\"mutual_tls\"",
    ];
    let daemon = shop.cluster.daemon("a").unwrap();
    wait_for("the tunnel's record", IN_FORCE, || {
        let count = daemon.metric("istio_tcp_connections_closed_total", &labels)?;
        ensure!(count >= 1.0, "{count}");
        Ok(())
    })
    .unwrap();
    let roots = NODES.map(|node| {
        let dump = shop.cluster.daemon(node).unwrap().config_dump().unwrap();
        dump["certificates"][0]["rootCerts"][0]["serialNumber"].to_string()
    });
    assert_ne!(roots[0], roots[1]);
}
