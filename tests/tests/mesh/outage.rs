//! What happens when a part dies: nothing goes in the clear, and its successor carries on.

use std::thread;

use anyhow::ensure;
use testbed::wait::wait_until;
use testbed::wait_for;

use crate::shop::Answer::{Refused, Served};
use crate::shop::{IN_FORCE, Shop, description};

#[test]
fn without_its_daemon_a_pod_neither_connects_nor_is_connected_to() {
    let Some(mut shop) = Shop::open() else { return };
    let (web, cart) = (shop.pod("shop/web").clone(), shop.pod("shop/cart").clone());
    let to = format!("{}:7000", cart.ip4());
    let mut held = shop.hold("shop/web", &to);
    shop.attempt("shop/web", &to).unwrap();
    let filter = format!("host {} and host {}", web.ip4(), cart.ip4());
    let tcpdump = shop.cluster.tcpdump("outage", &filter).unwrap();
    shop.cluster.daemon_mut("a").unwrap().kill().unwrap();
    wait_until("the end of what was open", IN_FORCE, || held.check_running().is_err()).unwrap();
    let start = std::time::Instant::now();
    let error = shop.attempt("shop/web", &to).unwrap_err();
    assert!(format!("{error:#}").contains("not permitted"), "{error:#}");
    for from in ["shop/cart", "street/stranger", "data/batch"] {
        shop.attempt(from, &format!("{}:7000", shop.pod("shop/near").ip4())).unwrap_err();
    }
    // At once: a refusal that takes its time would be a timeout.
    assert!(start.elapsed().as_secs() < 10, "{:?}", start.elapsed());
    let packets = tcpdump.stop().unwrap();
    assert!(packets.tcp_ports().unwrap().is_subset(&[15008].into()));

    shop.cluster.daemon_mut("a").unwrap().restart().unwrap();
    shop.expect(&to, &[("shop/web", Served), ("data/batch", Served)]);
    shop.expect(
        &format!("{}:7000", shop.pod("shop/near").ip4()),
        &[("shop/cart", Served), ("street/stranger", Served)],
    );
}

#[test]
fn a_restarted_daemon_adopts_the_pins_and_knows_its_pods() {
    let Some(mut shop) = Shop::open() else { return };
    let pins = |shop: &Shop| {
        let folder = shop.cluster.daemon("a").unwrap().pin_dir().display().to_string();
        let listing =
            testbed::command::run("find", [&folder, "-type", "f", "-printf", "%p %i\n"]).unwrap();
        let mut lines: Vec<String> = listing.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let before = pins(&shop);
    assert!(!before.is_empty());
    shop.cluster.daemon_mut("a").unwrap().kill().unwrap();
    assert_eq!(pins(&shop), before);
    shop.cluster.daemon_mut("a").unwrap().restart().unwrap();
    assert_eq!(pins(&shop), before);
    shop.expect(&format!("{}:7000", shop.pod("shop/cart").ip4()), &[("shop/web", Served)]);
}

#[test]
fn a_daemon_that_is_told_to_end_refuses_like_one_that_died() {
    let Some(mut shop) = Shop::open() else { return };
    let to = format!("{}:7000", shop.pod("shop/cart").ip4());
    shop.cluster.daemon_mut("a").unwrap().stop().unwrap();
    shop.expect(&to, &[("shop/web", Refused)]);
    shop.cluster.daemon_mut("a").unwrap().restart().unwrap();
    shop.expect(&to, &[("shop/web", Served)]);
}

#[test]
fn a_daemon_that_is_told_to_end_lets_open_connections_finish() {
    let description = description().variable("CONNECTION_TERMINATION_DEADLINE", "60s");
    let Some(mut shop) = Shop::of(description) else { return };
    let (web, to) = (shop.pod("shop/web").clone(), format!("{}:7000", shop.pod("shop/cart").ip4()));
    // Node b accepts the tunnel, node a opens it.
    for node in ["b", "a"] {
        shop.expect(&to, &[("shop/web", Served)]);
        let daemon = shop.cluster.daemon(node).unwrap();
        let open = || daemon.metric("istio_tcp_connections_opened_total", &[]);
        let before = open().unwrap();
        let (client, server) = (web.clone(), to.clone());
        let held = thread::spawn(move || client.load("rr", &server, &["--seconds", "3"]));
        wait_for("the connection", IN_FORCE, || {
            ensure!(open()? > before, "it is not there");
            Ok(())
        })
        .unwrap();
        let pid = daemon.process().unwrap().pid().to_string();
        testbed::command::run("kill", ["-TERM", &pid]).unwrap();
        shop.expect(&to, &[("shop/web", Refused)]);
        assert!(!held.is_finished(), "nothing was open while node {node} refused");
        let report = held.join().unwrap().unwrap();
        assert_eq!((report.errors, &report.first_error), (0, &None), "node {node}");
        // The last connection's end ends the wait: a minute would be past the testbed's patience.
        shop.cluster.daemon_mut(node).unwrap().stop().unwrap();
        shop.cluster.daemon_mut(node).unwrap().restart().unwrap();
    }
}

#[test]
fn a_newer_daemon_beside_an_older_one_takes_over_without_one_failed_connection() {
    let description = description().variable("CONNECTION_TERMINATION_DEADLINE", "60s");
    let Some(mut shop) = Shop::of(description) else { return };
    let to = format!("{}:7000", shop.pod("shop/cart").ip4());
    shop.expect(&to, &[("shop/web", Served)]);
    for node in ["a", "b"] {
        // New connections and one that is open already, all the time.
        let clients = [
            ("crr", ["--seconds", "6", "--parallel", "2"].as_slice()),
            ("rr", &["--seconds", "6"]),
        ]
        .map(|(job, options)| {
            let (web, to) = (shop.pod("shop/web").clone(), to.clone());
            thread::spawn(move || web.load(job, &to, options))
        });
        let daemon = shop.cluster.daemon(node).unwrap();
        let opened = || daemon.metric("istio_tcp_connections_opened_total", &[]).unwrap();
        let so_far = opened();
        wait_until("connections", IN_FORCE, || opened() > so_far + 20.0).unwrap();
        let newer = shop.cluster.daemon(node).unwrap().beside(&[
            ("AQUIFER_ADMIN_ADDRESS", "127.0.0.1:16000"),
            ("AQUIFER_STATS_ADDRESS", "127.0.0.1:16020"),
            ("AQUIFER_READINESS_ADDRESS", "127.0.0.1:16021"),
        ]);
        let mut newer = newer.unwrap();
        let ready =
            || shop.cluster.daemon(node).unwrap().get("http://127.0.0.1:16021/healthz/ready");
        newer.wait_running("the newer daemon", ready).unwrap();
        // The older one drains beside it, and ends when its last connection has.
        shop.cluster.daemon_mut(node).unwrap().stop().unwrap();
        for client in clients {
            let report = client.join().unwrap().unwrap();
            assert_eq!((report.errors, &report.first_error), (0, &None), "node {node}: {report:?}");
        }
        shop.expect(&to, &[("shop/web", Served), ("data/batch", Served)]);
        newer.terminate().unwrap();
        shop.cluster.daemon_mut(node).unwrap().restart().unwrap();
    }
}

#[test]
fn without_the_control_plane_the_last_state_stays_in_force() {
    let Some(mut shop) = Shop::open() else { return };
    let to = format!("{}:7000", shop.pod("shop/cart").ip4());
    shop.attempt("shop/web", &to).unwrap();
    shop.cluster.control_mut().unwrap().kill().unwrap();
    shop.expect(&to, &[("shop/web", Served), ("data/batch", Served)]);
    let yaml = testbed::manifests::authorization_policy("shop/closed", "DENY", "cart", "  - {}\n");
    shop.cluster.apply("policy.yaml", &yaml).unwrap();
    shop.cluster.control_mut().unwrap().restart().unwrap();
    shop.expect(&to, &[("shop/web", Refused), ("data/batch", Refused)]);
}

#[test]
fn connections_that_wait_to_be_accepted_are_served_when_the_daemon_ends() {
    let Some(mut shop) = Shop::open() else { return };
    let to = format!("{}:7000", shop.pod("shop/cart").ip4());
    shop.attempt("shop/web", &to).unwrap();
    let pid = shop.cluster.daemon("a").unwrap().process().unwrap().pid().to_string();
    let signal = |name: &str| drop(testbed::command::run("kill", [name, &pid]).unwrap());
    // While the daemon is stopped, the kernel makes the connections and queues them.
    signal("-STOP");
    let load = testbed::binaries::ours("load").unwrap().display().to_string();
    let words = [&*load, "rr", "--seconds", "0", "--connections", "20", "--to", &to];
    let mut waiting = shop.pod("shop/web").spawn("waiting", &words).unwrap();
    let web = shop.pod("shop/web").clone();
    wait_for("connections in the queues", IN_FORCE, || {
        let sockets = web.ask(&["ss", "-Htn", "state", "established"])?;
        let made = sockets
            .lines()
            .filter(|line| line.ends_with(":15001") || line.contains(":15001 "))
            .count();
        ensure!(made >= 20, "{made} of 20 in\n{sockets}");
        Ok(())
    })
    .unwrap();
    signal("-TERM");
    signal("-CONT");
    wait_until("the clients' end", IN_FORCE, || waiting.check_running().is_err()).unwrap();
    let report: testbed::load::Report =
        serde_json::from_str(waiting.log().unwrap().trim()).unwrap();
    assert_eq!((report.errors, &report.first_error), (0, &None));
    shop.cluster.daemon_mut("a").unwrap().stop().unwrap();
    shop.expect(&to, &[("shop/web", Refused)]);
}
