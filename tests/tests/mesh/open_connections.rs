//! What a change of policy does to connections that are open: it ends those that it denies, and no other.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Result, ensure};
use testbed::manifests::{authorization_policy, from_principal, peer_authentication};
use testbed::wait::wait_until;
use testbed::{Process, wait_for};

use crate::shop::Answer::{Refused, Served};
use crate::shop::{IN_FORCE, Shop};

const FILE: &str = "policy.yaml";

/// The lines in which a daemon records connections that a change of policy cut.
fn cut_lines(shop: &Shop, node: &str) -> Result<Vec<String>> {
    let log = shop.cluster.daemon(node)?.log()?;
    let records = log.lines().filter(|line| line.contains("\taccess\t"));
    let cut = records.filter(|line| line.contains("reason=\"policy_changed\""));
    Ok(cut.map(str::to_owned).collect())
}

/// Opens a connection that makes requests until it is cut, and waits until it is there.
fn held(shop: &Shop, caller: &str, to: &str, node: &str) -> Process {
    let daemon = shop.cluster.daemon(node).unwrap();
    let opened =
        || daemon.metric("istio_tcp_connections_opened_total", &["reporter=\"destination\""]);
    let before = opened().unwrap_or_default();
    let held = shop.hold(caller, to);
    wait_for("the connection", IN_FORCE, || {
        ensure!(opened()? > before, "it is not there");
        Ok(())
    })
    .unwrap();
    held
}

/// Bytes that came from the callers of a node's pods.
fn received(shop: &Shop, node: &str) -> f64 {
    let daemon = shop.cluster.daemon(node).unwrap();
    let labels = ["reporter=\"destination\""];
    daemon.metric("istio_tcp_received_bytes_total", &labels).unwrap_or_default()
}

#[test]
fn a_changed_policy_closes_exactly_the_connections_that_it_denies() {
    let Some(shop) = Shop::open() else { return };
    let cart = format!("{}:7000", shop.pod("shop/cart").ip4());
    let near = format!("{}:7000", shop.pod("shop/near").ip4());
    // Two of the same identity, others of other identities and none, and one to another pod.
    let callers = ["shop/web", "shop/web", "shop/near", "data/batch", "street/stranger"];
    let mut to_cart = callers.map(|caller| (caller, held(&shop, caller, &cart, "b")));
    let mut elsewhere = held(&shop, "shop/web", &near, "a");
    let web = from_principal("shop", "web");
    shop.cluster.apply(FILE, &authorization_policy("shop/no-web", "DENY", "cart", &web)).unwrap();
    for (caller, connection) in &mut to_cart {
        if *caller == "shop/web" {
            let ended = || connection.check_running().is_err();
            wait_until("the end of what is denied", IN_FORCE, ended).unwrap();
        }
    }
    wait_for("the records of both", IN_FORCE, || {
        let lines = cut_lines(&shop, "b")?;
        ensure!(lines.len() == 2, "{lines:?}");
        Ok(())
    })
    .unwrap();
    for line in cut_lines(&shop, "b").unwrap() {
        let sentence = "policy shop/no-web denies this connection: its rule 1 matches";
        assert!(line.contains(sentence) && line.contains("sa/web"), "{line}");
    }
    let before = received(&shop, "b");
    wait_until("bytes of the others", IN_FORCE, || received(&shop, "b") > before).unwrap();
    for (caller, connection) in &mut to_cart {
        if *caller != "shop/web" {
            connection.check_running().unwrap();
        }
    }
    elsewhere.check_running().unwrap();
    assert_eq!(cut_lines(&shop, "a").unwrap(), [""; 0]);
}

#[test]
fn a_policy_that_only_lets_more_in_closes_nothing() {
    let Some(shop) = Shop::open() else { return };
    let cart = format!("{}:7000", shop.pod("shop/cart").ip4());
    let web = from_principal("shop", "web");
    shop.cluster.apply(FILE, &authorization_policy("shop/a", "ALLOW", "cart", &web)).unwrap();
    shop.expect(&cart, &[("shop/web", Served), ("shop/near", Refused)]);
    let mut open = held(&shop, "shop/web", &cart, "b");
    let near = from_principal("shop", "near");
    let more = authorization_policy("shop/b", "ALLOW", "cart", &near);
    shop.cluster.apply("more.yaml", &more).unwrap();
    shop.expect(&cart, &[("shop/web", Served), ("shop/near", Served)]);
    shop.cluster.delete("more.yaml").unwrap();
    shop.expect(&cart, &[("shop/web", Served), ("shop/near", Refused)]);
    open.check_running().unwrap();
    // The other caller's attempts may have been under way.
    let by_web = |line: &String| line.contains("src.workload=\"web\"");
    let cut = cut_lines(&shop, "b").unwrap().into_iter().filter(by_web);
    assert_eq!(cut.collect::<Vec<_>>(), [""; 0]);
}

/// A workload must not name the policy of strict mode before that is there (istiod-observed.md, 8).
#[test]
fn strict_mode_begins_without_a_moment_of_refusal_for_who_has_an_identity() {
    let Some(shop) = Shop::open() else { return };
    let cart = format!("{}:7000", shop.pod("shop/cart").ip4());
    let mut open = held(&shop, "shop/web", &cart, "b");
    let in_force = AtomicBool::new(false);
    let failures: Vec<String> = thread::scope(|scope| {
        let attempts = scope.spawn(|| {
            let mut failures = Vec::new();
            while !in_force.load(Ordering::Relaxed) {
                failures.extend(shop.attempt("shop/web", &cart).err().map(|e| format!("{e:#}")));
            }
            failures
        });
        shop.cluster.apply(FILE, &peer_authentication("shop", "STRICT")).unwrap();
        let refused = || shop.attempt("street/stranger", &cart).is_err();
        let waited = wait_until("strict mode", IN_FORCE, refused);
        in_force.store(true, Ordering::Relaxed);
        waited.unwrap();
        attempts.join().unwrap()
    });
    assert!(failures.is_empty(), "{failures:?}");
    open.check_running().unwrap();
}
