//! What one pod may use of the daemon: it leaves something to the others, and so does a lack of descriptors.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Stdio};

use anyhow::ensure;
use testbed::wait::wait_until;
use testbed::{Daemon, wait_for};

use crate::shop::Answer::Served;
use crate::shop::{IN_FORCE, Shop, description};

/// Connections that a pod holds until they are dropped.
struct Crowd(Child);

impl Drop for Crowd {
    fn drop(&mut self) {
        // Not asked to end: it would wait for the answers that it does not get.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Shop {
    /// Starts `count` connections from pod `from`, without waiting for them.
    fn crowd(&self, from: &str, to: &str, count: u32) -> Crowd {
        let load = testbed::binaries::ours("load").unwrap().display().to_string();
        let count = count.to_string();
        let words = [&load, "idle", "--to", to, "--connections", &count];
        let mut command = self.pod(from).place().command(&words);
        Crowd(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap())
    }
}

impl Crowd {
    /// Waits until each connection is made or refused, and gives how many are held and refused.
    fn report(&mut self) -> (u64, u64) {
        let mut line = String::new();
        BufReader::new(self.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let report: testbed::load::Report = serde_json::from_str(&line).unwrap();
        (report.count, report.errors)
    }
}

fn failures(daemon: &Daemon, reason: &str) -> f64 {
    let labels = format!("reason=\"{reason}\"");
    daemon.metric("aquifer_failures_total", &[&labels]).unwrap()
}

#[test]
fn a_pod_with_as_many_connections_as_it_may_have_is_refused_more_and_others_are_not() {
    let Some(shop) = Shop::of(description().variable("AQUIFER_POD_CONNECTIONS", "20")) else {
        return;
    };
    let to = format!("{}:7000", shop.pod("shop/cart").ip4());
    let mut crowd = shop.crowd("shop/web", &to, 30);
    let (held, refused) = crowd.report();
    assert_eq!((held, refused), (20, 10));
    let daemon = shop.cluster.daemon("a").unwrap();
    wait_until("ten refusals", IN_FORCE, || failures(daemon, "pod_connection_limit") >= 10.0)
        .unwrap();
    shop.attempt("shop/web", &to).unwrap_err();
    // The share is the pod's alone.
    shop.attempt("data/batch", &format!("{}:7000", shop.pod("shop/near").ip4())).unwrap();
    drop(crowd);
    shop.expect(&to, &[("shop/web", Served), ("data/batch", Served)]);
}

#[test]
fn a_pod_takes_no_more_tunnels_than_it_may_have() {
    let description =
        description().variable("AQUIFER_POD_TUNNELS", "1").variable("ZTUNNEL_WORKER_THREADS", "1");
    let Some(shop) = Shop::of(description) else { return };
    let to = format!("{}:7000", shop.pod("shop/cart").ip4());
    shop.attempt("shop/web", &to).unwrap();
    // Another identity needs a tunnel of its own, and the first one stays open for minutes.
    shop.attempt("data/batch", &to).unwrap_err();
    let daemon = shop.cluster.daemon("b").unwrap();
    wait_until("the refusal", IN_FORCE, || failures(daemon, "pod_tunnel_limit") >= 1.0).unwrap();
    shop.attempt("shop/web", &to).unwrap();
}

/// Writes an annotation into a manifest of the cluster, below the line that its object has alone.
fn annotate(shop: &Shop, file: &str, line: &str, annotation: &str) {
    let manifest = fs::read_to_string(shop.cluster.manifest_dir().join(file)).unwrap();
    assert_eq!(manifest.matches(line).count(), 1, "{line:?} in {manifest}");
    let annotated = format!("{line}  annotations:\n    {annotation}\n");
    shop.cluster.apply(file, &manifest.replace(line, &annotated)).unwrap();
}

fn annotate_pod(shop: &Shop, path: &str, annotation: &str) {
    let pod = shop.pod(path);
    let file = format!("{}-pods.yaml", pod.spec().namespace);
    annotate(shop, &file, &format!("  uid: {}\n", pod.uid()), annotation);
}

/// What came of twenty connections at once, which end again.
fn twenty(shop: &Shop, from: &str, to: &str) -> (u64, u64) {
    shop.crowd(from, to, 20).report()
}

fn told(daemon: &Daemon, reason: &str) {
    wait_for(reason, IN_FORCE, || {
        let log = daemon.log()?;
        ensure!(log.contains(&format!("reason=\"{reason}\"")), "{log}");
        ensure!(failures(daemon, reason) >= 1.0, "it is not counted");
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_pod_takes_as_many_connections_as_its_annotation_says() {
    let Some(shop) = Shop::open() else { return };
    let cart = format!("{}:7000", shop.pod("shop/cart").ip4());
    assert_eq!(twenty(&shop, "shop/web", &cart), (20, 0));
    annotate_pod(&shop, "shop/cart", "aquifer.io/max-connections: '5'");
    wait_for("the limit", IN_FORCE, || {
        let found = twenty(&shop, "shop/web", &cart);
        ensure!(found == (5, 15), "{found:?}");
        Ok(())
    })
    .unwrap();
    told(shop.cluster.daemon("a").unwrap(), "connection_limit");
    let near = format!("{}:7000", shop.pod("shop/near").ip4());
    assert_eq!(twenty(&shop, "shop/web", &near), (20, 0), "it is another's limit");
}

#[test]
fn a_pods_annotation_says_how_fast_it_connects() {
    let Some(shop) = Shop::open() else { return };
    let cart = format!("{}:7000", shop.pod("shop/cart").ip4());
    annotate_pod(&shop, "shop/web", "aquifer.io/connection-rate: '1:5'");
    wait_for("the rate", IN_FORCE, || {
        let found = twenty(&shop, "shop/web", &cart);
        ensure!(found.1 >= 10, "{found:?}");
        Ok(())
    })
    .unwrap();
    told(shop.cluster.daemon("a").unwrap(), "rate_limit");
    assert_eq!(twenty(&shop, "shop/near", &cart), (20, 0), "it is another's rate");
}

#[test]
fn a_namespaces_annotation_is_the_rate_of_its_pods_that_have_none() {
    let Some(shop) = Shop::open() else { return };
    let cart = format!("{}:7000", shop.pod("shop/cart").ip4());
    annotate_pod(&shop, "shop/near", "aquifer.io/connection-rate: '1000'");
    annotate(&shop, "shop.yaml", "  name: shop\n", "aquifer.io/connection-rate: '1:5'");
    wait_for("the rate", IN_FORCE, || {
        let found = twenty(&shop, "shop/web", &cart);
        ensure!(found.1 >= 10, "{found:?}");
        Ok(())
    })
    .unwrap();
    told(shop.cluster.daemon("a").unwrap(), "rate_limit");
    assert_eq!(twenty(&shop, "shop/near", &cart), (20, 0), "it has a rate of its own");
    assert_eq!(twenty(&shop, "data/batch", &cart), (20, 0), "it is of another namespace");
}

#[test]
fn without_descriptors_accepting_pauses_and_what_is_open_goes_on() {
    let script = std::env::temp_dir().join(format!("few-descriptors-{}", std::process::id()));
    let daemon = testbed::binaries::ours("ztunnel").unwrap();
    let text = format!("#!/bin/sh\nulimit -n 200\nexec {} \"$@\"\n", daemon.display());
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let shop = Shop::of(description().daemon(script.clone()));
    let Some(shop) = shop else { return };
    let to = format!("{}:7000", shop.pod("shop/cart").ip4());
    let near = format!("{}:7000", shop.pod("shop/near").ip4());
    let mut held = shop.hold("data/batch", &near);
    let daemon = shop.cluster.daemon("a").unwrap();
    wait_for("the held connection", IN_FORCE, || {
        ensure!(daemon.metric("istio_tcp_connections_opened_total", &[])? > 0.0, "not yet");
        Ok(())
    })
    .unwrap();
    let crowd = shop.crowd("shop/web", &to, 400);
    wait_until("accepting to pause", IN_FORCE, || {
        daemon.log().unwrap().contains("accepting pauses until connections end")
    })
    .unwrap();
    // Five turns of the longest pause: a daemon that span would use all of them.
    let before = daemon.process().unwrap().usage().unwrap().cpu;
    let began = std::time::Instant::now();
    let labels = ["reporter=\"source\"", "destination_workload=\"near\""];
    let sent = || daemon.metric("istio_tcp_sent_bytes_total", &labels).unwrap();
    let so_far = sent();
    wait_until("answers on the open connection", IN_FORCE, || sent() > so_far + 1e5).unwrap();
    held.check_running().unwrap();
    let used = daemon.process().unwrap().usage().unwrap().cpu - before;
    assert!(used.as_secs_f64() < began.elapsed().as_secs_f64() + 2.0, "{used:?}");
    let told = daemon.log().unwrap().matches("accepting pauses until connections end").count();
    assert_eq!(told, 1);
    drop(crowd);
    shop.expect(&to, &[("shop/web", Served)]);
    let pauses =
        daemon.metric("aquifer_accept_pauses_total", &["reason=\"out_of_resources\""]).unwrap();
    assert!(pauses >= 1.0);
    held.check_running().unwrap();
    let _ = fs::remove_file(script);
}
