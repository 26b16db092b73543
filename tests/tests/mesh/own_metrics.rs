//! The daemon as a workload of the mesh: its metrics in tunnels, and nothing else of its node.

use std::{net::Ipv4Addr, time::Instant};

use testbed::{
    Daemon,
    manifests::{authorization_policy, from_principal, service_account},
    wait_for,
};

use crate::shop::{IN_FORCE, Shop, description};

/// The shop, whose daemon of node b is told that it is `mesh/ztunnel-b`.
struct Scraped {
    shop: Shop,
    ip: Ipv4Addr,
}

impl Scraped {
    fn open() -> Option<Self> {
        let mut shop = Shop::of(description().ambient("mesh"))?;
        let ip = shop.cluster.plan().node_ip4(2);
        let daemon = shop.cluster.daemon_mut("b").unwrap();
        for (name, value) in
            [("POD_NAME", "ztunnel-b"), ("POD_NAMESPACE", "mesh"), ("SERVICE_ACCOUNT", "ztunnel")]
        {
            daemon.set_variable(name, value);
        }
        daemon.restart().unwrap();
        Some(Self { shop, ip })
    }

    fn daemon(&self) -> &Daemon {
        self.shop.cluster.daemon("b").unwrap()
    }

    /// Has the control plane describe the daemon's pod, and waits until both nodes know.
    fn describe(&self) {
        let manifest = format!(
            "\
{account}---
apiVersion: v1
kind: Pod
metadata:
  name: ztunnel-b
  namespace: mesh
  uid: ztunnel-b
  labels:
    app: ztunnel
spec:
  nodeName: {node}
  serviceAccountName: ztunnel
  containers:
  - name: main
    image: testbed
status:
  phase: Running
  hostIP: {ip}
  podIP: {ip}
  podIPs:
  - ip: {ip}
  conditions:
  - type: Ready
    status: \"True\"
",
            account = service_account("mesh", "ztunnel"),
            node = self.shop.pod("shop/cart").node_name(),
            ip = self.ip,
        );
        self.shop.cluster.apply("daemon.yaml", &manifest).unwrap();
        for node in ["a", "b"] {
            wait_for("the daemon's record", IN_FORCE, || {
                let dump = self.shop.cluster.daemon(node)?.config_dump()?.to_string();
                anyhow::ensure!(dump.contains("Pod/mesh/ztunnel-b"), "node {node}: {dump}");
                Ok(())
            })
            .unwrap();
        }
    }

    /// What a pod gets from a port of the daemon's address.
    fn page(&self, from: &str, port: u16) -> anyhow::Result<String> {
        let url = format!("http://{}:{port}/metrics", self.ip);
        self.shop.pod(from).ask(&["curl", "-sSf", "--max-time", "9", &url])
    }

    /// Whether the daemon has counted a refusal.
    fn check_refused(&self, reason: &str, name: &str) -> anyhow::Result<()> {
        let label = format!("reason=\"{reason}\"");
        let found = self.daemon().metric(name, &["reporter=\"destination\"", label.as_str()])?;
        anyhow::ensure!(found >= 1.0, "{name} {label} is {found}");
        Ok(())
    }
}

#[test]
fn a_pod_scrapes_the_daemon_in_a_tunnel_under_policy() {
    let Some(scraped) = Scraped::open() else { return };
    scraped.describe();
    let web = scraped.shop.pod("shop/web").ip4();
    let filter = format!("host {} and host {web}", scraped.ip);
    let tcpdump = scraped.shop.cluster.tcpdump("scrape", &filter).unwrap();
    let page = scraped.page("shop/web", 15020).unwrap();
    assert!(page.contains("istio_build"), "{page}");
    assert_eq!(tcpdump.stop().unwrap().tcp_ports().unwrap(), [15008].into());
    // From its own node as well.
    scraped.page("shop/cart", 15020).unwrap();
    let labels = &[
        "reporter=\"destination\"",
        "source_workload=\"web\"",
        "destination_workload=\"ztunnel-b\"",
        "destination_principal=\"spiffe://cluster.local/ns/mesh/sa/ztunnel\"",
    ];
    wait_for("the connection's record", IN_FORCE, || {
        let found = scraped.daemon().metric("istio_tcp_connections_closed_total", labels)?;
        anyhow::ensure!(found >= 1.0, "{found}");
        Ok(())
    })
    .unwrap();
    assert!(scraped.daemon().config_dump().unwrap()["workloadState"].to_string().contains("mesh"));

    let guard =
        authorization_policy("mesh/guard", "DENY", "ztunnel", &from_principal("shop", "web"));
    scraped.shop.cluster.apply("guard.yaml", &guard).unwrap();
    // A scrape that the change overtakes is cut, and counted as such.
    wait_for("the policy", IN_FORCE, || {
        anyhow::ensure!(scraped.page("shop/web", 15020).is_err(), "still served");
        scraped.check_refused("policy_deny", "aquifer_denials_total")
    })
    .unwrap();
    scraped.page("shop/near", 15020).unwrap();
}

#[test]
fn tunnels_reach_no_other_port_of_the_daemons_node() {
    let Some(scraped) = Scraped::open() else { return };
    scraped.describe();
    let words = ["socat", "TCP4-LISTEN:22,fork,reuseaddr", "SYSTEM:echo hello"];
    let mut ssh = scraped.daemon().place().spawn("ssh", &words, &[]).unwrap();
    ssh.wait_listening(22).unwrap();
    let refused = || {
        let labels = &["reporter=\"destination\"", "reason=\"daemon_port\""];
        scraped.daemon().metric("aquifer_failures_total", labels).unwrap()
    };
    for (port, count) in [(22, 1.0), (15000, 2.0), (15021, 3.0)] {
        scraped.page("shop/web", port).unwrap_err();
        assert!((refused() - count).abs() < f64::EPSILON, "port {port}: {}", refused());
    }
    let log = scraped.daemon().log().unwrap();
    assert!(log.contains("port 22 is not the daemon's metrics port 15020"), "{log}");
    scraped.page("shop/web", 15020).unwrap();
}

#[test]
fn without_a_record_tunnels_to_the_daemon_wait_five_seconds_and_are_refused() {
    let Some(scraped) = Scraped::open() else { return };
    let to = format!("TCP4:{}:15008", scraped.ip);
    let began = Instant::now();
    let ended =
        scraped.shop.pod("street/stranger").run(&["timeout", "20", "socat", "-u", &to, "-"]);
    let (waited, ended) = (began.elapsed(), ended.unwrap());
    assert!((5..15).contains(&waited.as_secs()), "{waited:?} {ended:?}");
    let counted = || scraped.check_refused("unknown_destination", "aquifer_failures_total");
    wait_for("the refusal", IN_FORCE, counted).unwrap();
}

/// A process that is root only in a user namespace of its own has every capability, and may do nothing with them.
#[test]
fn a_daemon_that_may_not_enter_namespaces_says_so_at_start() {
    let Some(mut shop) = Shop::open() else { return };
    let daemon = shop.cluster.daemon_mut("a").unwrap();
    daemon.stop().unwrap();
    let binary = testbed::binaries::ours("ztunnel").unwrap().display().to_string();
    let words = ["timeout", "20", "unshare", "--user", "--map-root-user", &binary];
    let said = daemon.ask(&words).unwrap_err().to_string();
    for part in [
        "the daemon cannot enter a network namespace, not even its own: Operation not permitted",
        "the daemon cannot mark its sockets (SO_MARK): Operation not permitted",
    ] {
        assert!(said.contains(part), "{said}");
    }
}
