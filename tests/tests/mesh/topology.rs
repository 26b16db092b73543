//! The testbed itself: what the other tests rely on.

use std::process::Command;
use std::time::Duration;

use testbed::{Cluster, PodSpec, teardown, wait};

use crate::privilege;

fn two_nodes() -> testbed::Builder {
    Cluster::builder()
        .nodes(&["a", "b"])
        .outside("shop")
        .pod(PodSpec::new("shop/web", "a"))
        .pod(PodSpec::new("shop/cart", "b"))
        .without_mesh()
}

#[test]
fn pods_reach_each_other_over_both_families_and_the_fabric_sees_it() {
    if !privilege::granted() {
        return;
    }
    let cluster = two_nodes().start().unwrap();
    let (web, cart) = (cluster.pod("shop/web").unwrap(), cluster.pod("shop/cart").unwrap());
    let _nginx = cart.nginx("a page of the cart").unwrap();
    let tcpdump = cluster.tcpdump("clear", "tcp").unwrap();
    for address in [cart.ip4().to_string(), format!("[{}]", cart.ip6())] {
        let page =
            web.ask(&["curl", "-sS", "--globoff", "-i", &format!("http://{address}/")]).unwrap();
        assert!(page.ends_with("a page of the cart"), "{page}");
        assert!(web.ips().iter().any(|ip| page.contains(&format!("X-Client: {ip}"))), "{page}");
    }
    let packets = tcpdump.stop().unwrap();
    assert_eq!(packets.ports_dialed().unwrap(), [80].into());
    assert!(packets.contain("a page of the cart"));
    assert!(!packets.contain("a page of the till"));
}

#[test]
fn a_cluster_that_is_dropped_leaves_nothing() {
    if !privilege::granted() {
        return;
    }
    let cluster = two_nodes().start().unwrap();
    let plan = cluster.plan();
    let servers = cluster.pod("shop/cart").unwrap().load_servers().unwrap();
    // Not even a process that nobody ends.
    std::mem::forget(servers);
    drop(cluster);
    assert_eq!(teardown::remains(plan).unwrap(), [""; 0]);
}

#[test]
fn the_load_tool_agrees_with_itself_over_a_wire() {
    if !privilege::granted() {
        return;
    }
    let cluster = two_nodes().start().unwrap();
    let (web, cart) = (cluster.pod("shop/web").unwrap(), cluster.pod("shop/cart").unwrap());
    let _servers = cart.load_servers().unwrap();
    for (job, port, options) in [
        ("bulk", 7001, ["--direction", "up"].as_slice()),
        ("bulk", 7002, &["--direction", "down", "--streams", "3"]),
        ("transfer", 7003, &["--direction", "up", "--bytes", "10000001"]),
        ("transfer", 7002, &["--direction", "down", "--bytes", "10000001"]),
        ("rr", 7000, &["--connections", "8"]),
        ("crr", 7000, &["--parallel", "4"]),
    ] {
        let report = web.load(job, &format!("{}:{port}", cart.ip4()), options).unwrap();
        assert_eq!((report.errors, report.count > 0), (0, true), "{job}: {report:?}");
    }
    web.endings(&cart.ip4().to_string()).unwrap();
}

#[test]
fn a_signal_removes_the_cluster() {
    if !privilege::granted() {
        return;
    }
    // This test again, as a process of its own that can be ended.
    if std::env::var_os("TESTBED_HOLD").is_some() {
        let cluster = two_nodes().start().unwrap();
        println!("cluster {}", cluster.plan().number());
        loop {
            std::thread::park();
        }
    }
    let this = std::env::current_exe().unwrap();
    let mut child = Command::new(this)
        .args(["topology::a_signal_removes_the_cluster", "--exact", "--nocapture"])
        .env("TESTBED_HOLD", "1")
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    let number =
        lines.map_while(Result::ok).find_map(|line| line.split_once("cluster ")?.1.parse().ok());
    let plan = testbed::plan::Plan::new(number.unwrap());
    assert_ne!(teardown::remains(plan).unwrap(), [""; 0]);
    testbed::command::run("kill", ["-TERM".to_owned(), child.id().to_string()]).unwrap();
    wait::wait_until("the process to end", Duration::from_secs(20), || {
        child.try_wait().unwrap().is_some()
    })
    .unwrap();
    assert_eq!(teardown::remains(plan).unwrap(), [""; 0]);
}
