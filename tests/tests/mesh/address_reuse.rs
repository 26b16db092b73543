//! An address outlives its pod: whoever gets it next is somebody else.

use testbed::manifests::{authorization_policy, from_principal};
use testbed::wait::wait_until;
use testbed::{PodSpec, wait_for};

use crate::shop::Answer::{Refused, Served};
use crate::shop::{IN_FORCE, Shop};

#[test]
fn a_reused_address_does_not_inherit_the_rights_of_its_last_owner() {
    let Some(mut shop) = Shop::open() else { return };
    let cart = format!("{}:7000", shop.pod("shop/cart").ip4());
    let near = format!("{}:7000", shop.pod("shop/near").ip4());
    let yaml =
        authorization_policy("shop/callers", "ALLOW", "cart", &from_principal("shop", "web"));
    shop.cluster.apply("policy.yaml", &yaml).unwrap();
    shop.expect(&cart, &[("shop/web", Served), ("shop/near", Refused)]);
    let old = shop.pod("shop/web").ips();

    shop.cluster.remove_pod("shop/web").unwrap();
    let heir = shop.cluster.add_pod(PodSpec::new("data/heir", "a")).unwrap();
    assert_eq!(heir.ips(), old);
    // Never served, neither at first nor once it is in the mesh as whoever it is: every attempt counts.
    for _ in 0..20 {
        shop.attempt("data/heir", &cart).unwrap_err();
    }
    shop.expect(&near, &[("data/heir", Served)]);
    let refusals = |shop: &Shop| {
        let daemon = shop.cluster.daemon("b").unwrap();
        daemon.metric("aquifer_denials_total", &["reason=\"policy_no_allow\""]).unwrap()
    };
    let before = refusals(&shop);
    for _ in 0..20 {
        shop.attempt("data/heir", &cart).unwrap_err();
    }
    wait_until("policy's twenty refusals", IN_FORCE, || refusals(&shop) - before >= 20.0).unwrap();
    // Nothing but the policy was in its way.
    shop.cluster.delete("policy.yaml").unwrap();
    shop.expect(&cart, &[("data/heir", Served)]);
    shop.cluster.apply("policy.yaml", &yaml).unwrap();
    shop.expect(&cart, &[("data/heir", Refused)]);

    shop.cluster.remove_pod("data/heir").unwrap();
    let web = shop.cluster.add_pod(PodSpec::new("shop/web", "a")).unwrap();
    assert_eq!(web.ips(), old);
    shop.expect(&cart, &[("shop/web", Served), ("shop/near", Refused)]);
}

#[test]
fn connections_to_a_reused_address_reach_its_new_owner_as_such() {
    let Some(mut shop) = Shop::open() else { return };
    let near = format!("{}:7000", shop.pod("shop/near").ip4());
    let yaml = authorization_policy("shop/closed", "DENY", "near", "  - {}\n");
    shop.cluster.apply("policy.yaml", &yaml).unwrap();
    shop.expect(
        &near,
        &[("shop/cart", Refused), ("shop/web", Refused), ("street/stranger", Refused)],
    );
    let old = shop.pod("shop/near").ips();
    shop.cluster.remove_pod("shop/near").unwrap();
    let heir = shop.cluster.add_pod(PodSpec::new("data/heir", "a")).unwrap();
    assert_eq!(heir.ips(), old);
    shop.serve("data/heir");
    shop.expect(&near, &[("shop/cart", Served), ("shop/web", Served), ("street/stranger", Served)]);
}

#[test]
fn pods_that_come_and_go_leave_nothing_open_in_the_daemon() {
    let Some(mut shop) = Shop::open() else { return };
    let near = format!("{}:7000", shop.pod("shop/near").ip4());
    let open = |shop: &Shop| {
        let pid = shop.cluster.daemon("a").unwrap().process().unwrap().pid();
        std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
    };
    let mut counts = Vec::new();
    for _ in 0..4 {
        shop.cluster.add_pod(PodSpec::new("data/guest", "a")).unwrap();
        shop.attempt("data/guest", &near).unwrap();
        shop.cluster.remove_pod("data/guest").unwrap();
        counts.push(open(&shop));
    }
    // The first guest may open what all later ones share.
    let (second, last) = (counts[1], counts[3]);
    wait_until("the count of open files to be as after the second guest", IN_FORCE, || {
        open(&shop) <= second
    })
    .unwrap_or_else(|error| panic!("{error:#}: {counts:?}, at last {last}"));
}

#[test]
fn an_heir_of_address_and_identity_gets_tunnels_of_its_own() {
    let Some(mut shop) = Shop::open() else { return };
    let near = format!("{}:7000", shop.pod("shop/near").ip4());
    // A tunnel from node b that is in use, and one that waits to be.
    let mut held = shop.hold("shop/cart", &near);
    shop.expect(&near, &[("shop/cart", Served)]);
    held.check_running().unwrap();
    let old = shop.pod("shop/near").ips();
    shop.cluster.remove_pod("shop/near").unwrap();
    wait_until("the end of what was open", IN_FORCE, || held.check_running().is_err()).unwrap();
    assert!(held.log().unwrap().contains("reset"), "{}", held.log().unwrap());

    let heir = PodSpec::new("shop/heir", "a").service_account("near");
    assert_eq!(shop.cluster.add_pod(heir).unwrap().ips(), old);
    shop.serve("shop/heir");
    shop.expect(&near, &[("shop/cart", Served)]);
    let daemon = shop.cluster.daemon("b").unwrap();
    let to_heir = ["reporter=\"source\"", "destination_workload=\"heir\""];
    // Node b may take the heir for its former self until it is told: they have one identity.
    wait_for("a connection to the heir by its own name", IN_FORCE, || {
        shop.attempt("shop/cart", &near)?;
        let opened = daemon.metric("istio_tcp_connections_opened_total", &to_heir)?;
        anyhow::ensure!(opened >= 1.0, "opened {opened}");
        Ok(())
    })
    .unwrap();
    let log = daemon.log().unwrap();
    assert!(!log.contains("tunnel_timeout") && !log.contains("peer_stalled"), "{log}");
}
