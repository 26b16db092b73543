//! Authorization on the wire: who is let in, how soon a change is in force, and what is said about a refusal.

use anyhow::ensure;
use testbed::manifests::{authorization_policy, from_principal, peer_authentication};
use testbed::wait::wait_until;
use testbed::wait_for;

use crate::shop::Answer::{Refused, Served};
use crate::shop::{IN_FORCE, Shop};

const FILE: &str = "policy.yaml";

/// Every caller of `shop/cart`, in the order of the tables below.
const CALLERS: [&str; 4] = ["shop/web", "shop/near", "data/batch", "street/stranger"];

fn source(field: &str, values: &str) -> String {
    format!("  - from:\n    - source:\n        {field}: [{values}]\n")
}

fn to_ports(ports: &str) -> String {
    format!("  - to:\n    - operation:\n        ports: [{ports}]\n")
}

#[test]
fn policies_decide_by_identity_namespace_address_and_port() {
    let Some(shop) = Shop::open() else { return };
    let cart = format!("{}:7000", shop.pod("shop/cart").ip4());
    let web_ip = shop.pod("shop/web").ip4();
    let allow = |rules: &str| authorization_policy("shop/allow", "ALLOW", "cart", rules);
    let deny = |rules: &str| authorization_policy("shop/deny", "DENY", "cart", rules);
    let web = from_principal("shop", "web");
    let rows = [
        ("ALLOW one principal", allow(&web), [Served, Refused, Refused, Refused]),
        ("DENY one principal", deny(&web), [Refused, Served, Served, Served]),
        (
            "DENY before ALLOW",
            allow(&source("namespaces", "shop")) + &deny(&web),
            [Refused, Served, Refused, Refused],
        ),
        (
            "ALLOW a namespace",
            allow(&source("namespaces", "shop")),
            [Served, Served, Refused, Refused],
        ),
        (
            "DENY a namespace",
            deny(&source("namespaces", "shop")),
            [Refused, Refused, Served, Served],
        ),
        (
            "ALLOW all but a namespace",
            allow(&source("notNamespaces", "shop")),
            [Refused, Refused, Served, Served],
        ),
        (
            "ALLOW whoever has an identity",
            allow(&source("principals", "\"*\"")),
            [Served, Served, Served, Refused],
        ),
        (
            "DENY whoever has none",
            deny(&source("notPrincipals", "\"*\"")),
            [Served, Served, Served, Refused],
        ),
        (
            "ALLOW a prefix",
            allow(&source("principals", "\"cluster.local/ns/data/*\"")),
            [Refused, Refused, Served, Refused],
        ),
        (
            "ALLOW a suffix",
            allow(&source("principals", "\"*/sa/near\"")),
            [Refused, Served, Refused, Refused],
        ),
        (
            "ALLOW an address",
            allow(&source("ipBlocks", &format!("{web_ip}/32"))),
            [Served, Refused, Refused, Refused],
        ),
        (
            "DENY an address",
            deny(&source("ipBlocks", &web_ip.to_string())),
            [Refused, Served, Served, Served],
        ),
        ("ALLOW another port", allow(&to_ports("\"7001\"")), [Refused; 4]),
        ("DENY the port", deny(&to_ports("\"7000\"")), [Refused; 4]),
        (
            "ALLOW nobody",
            allow("  - from:\n    - source:\n        namespaces: [nowhere]\n"),
            [Refused; 4],
        ),
    ];
    for (name, yaml, expected) in rows {
        eprintln!("row: {name}");
        shop.expect(&cart, &CALLERS.map(|caller| (caller, Served)));
        shop.cluster.apply(FILE, &yaml).unwrap();
        let expected: Vec<_> = CALLERS.into_iter().zip(expected).collect();
        shop.expect(&cart, &expected);
        // The policy is for the cart alone.
        shop.attempt("street/stranger", &format!("{}:7000", shop.pod("shop/near").ip4())).unwrap();
        shop.cluster.delete(FILE).unwrap();
    }
}

#[test]
fn strict_mode_refuses_whoever_has_no_identity() {
    let Some(shop) = Shop::open() else { return };
    let (cart, near) = (shop.pod("shop/cart"), shop.pod("shop/near"));
    shop.cluster.apply(FILE, &peer_authentication("shop", "STRICT")).unwrap();
    for host in [cart.ip4().to_string(), format!("[{}]", cart.ip6()), near.ip4().to_string()] {
        shop.expect(&format!("{host}:7000"), &[("shop/web", Served), ("street/stranger", Refused)]);
    }
    shop.cluster.apply(FILE, &peer_authentication("shop", "PERMISSIVE")).unwrap();
    shop.expect(
        &format!("{}:7000", cart.ip4()),
        &[("shop/web", Served), ("street/stranger", Served)],
    );
}

#[test]
fn a_refusal_is_explained_in_one_word_by_log_metric_and_command_line() {
    let Some(shop) = Shop::open() else { return };
    let cart = format!("{}:7000", shop.pod("shop/cart").ip4());
    let yaml =
        authorization_policy("shop/callers", "ALLOW", "cart", &from_principal("shop", "near"));
    shop.cluster.apply(FILE, &yaml).unwrap();
    shop.expect(&cart, &[("shop/web", Refused), ("shop/near", Served)]);
    let daemon = shop.cluster.daemon("b").unwrap();
    let word = "policy_no_allow";
    // The refusal seen first may have been an open connection's, which the change of policy cut for another reason.
    shop.attempt("shop/web", &cart).unwrap_err();
    wait_for("the log's line", IN_FORCE, || {
        let log = daemon.log()?;
        ensure!(log.lines().any(|line| line.contains(word) && line.contains("callers")), "{log}");
        Ok(())
    })
    .unwrap();
    let denied = daemon.metric("aquifer_denials_total", &["reason=\"policy_no_allow\""]).unwrap();
    assert!(denied >= 1.0, "{}", daemon.metrics().unwrap());
    let failed =
        daemon.metric("istio_tcp_connections_failed_total", &["response_flags=\"DENY\""]).unwrap();
    assert!(failed >= 1.0, "{}", daemon.metrics().unwrap());
    let meshctl = testbed::binaries::ours("meshctl").unwrap().display().to_string();
    let words = [&meshctl, "explain", "--from", "shop/web", "--to", &cart];
    let output = daemon.place().run(&words).unwrap();
    let said = testbed::command::text(&output.stdout);
    for expected in [word, "shop/callers", "principals"] {
        assert!(said.contains(expected), "{said}{}", testbed::command::text(&output.stderr));
    }
}

#[test]
fn a_changed_policy_cuts_what_it_no_longer_allows() {
    let Some(shop) = Shop::open() else { return };
    let cart = format!("{}:7000", shop.pod("shop/cart").ip4());
    let daemon = shop.cluster.daemon("b").unwrap();
    let opened =
        || daemon.metric("istio_tcp_connections_opened_total", &["reporter=\"destination\""]);
    for caller in ["shop/web", "street/stranger"] {
        let before = opened().unwrap();
        let mut held = shop.hold(caller, &cart);
        wait_for("the connection", IN_FORCE, || {
            ensure!(opened()? > before, "it is not there");
            Ok(())
        })
        .unwrap();
        held.check_running().unwrap();
        let yaml =
            authorization_policy("shop/closed", "ALLOW", "cart", &from_principal("shop", "near"));
        shop.cluster.apply(FILE, &yaml).unwrap();
        wait_until("the connection's end", IN_FORCE, || held.check_running().is_err()).unwrap();
        shop.cluster.delete(FILE).unwrap();
        shop.expect(&cart, &[(caller, Served)]);
    }
}

#[test]
fn a_bad_file_leaves_the_last_good_state_in_force() {
    let Some(shop) = Shop::open() else { return };
    let cart = format!("{}:7000", shop.pod("shop/cart").ip4());
    let good =
        authorization_policy("shop/callers", "ALLOW", "cart", &from_principal("shop", "near"));
    shop.cluster.apply(FILE, &good).unwrap();
    shop.expect(&cart, &[("shop/web", Refused), ("shop/near", Served)]);
    shop.cluster.apply(FILE, &good.replace("action: ALLOW", "action: PERHAPS")).unwrap();
    let log = shop.cluster.control().unwrap().place().logs.join("pilot.log");
    wait_for("pilot's complaint", IN_FORCE, || {
        let log = std::fs::read_to_string(&log)?;
        ensure!(log.contains("policy.yaml") && log.contains("PERHAPS"), "{log}");
        Ok(())
    })
    .unwrap();
    shop.expect(&cart, &[("shop/web", Refused), ("shop/near", Served)]);
    shop.cluster.apply(FILE, &good.replace("sa/near", "sa/web")).unwrap();
    shop.expect(&cart, &[("shop/web", Served), ("shop/near", Refused)]);
}
