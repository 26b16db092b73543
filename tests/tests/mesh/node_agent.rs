//! Istio's node agent in the place of our registry: pods come over its socket, with their namespaces (§7.1).

use std::thread;

use anyhow::ensure;
use testbed::node_agent::{Greeted, Told};
use testbed::{Cluster, NodeAgent, PodSpec, wait_for};

use crate::privilege;
use crate::shop::IN_FORCE;

/// One node whose daemon follows an agent. No pod is in the mesh yet.
struct Agency {
    cluster: Cluster,
    agent: NodeAgent,
    _servers: testbed::Process,
    _folder: Folder,
}

/// A folder of this test alone, removed with it.
struct Folder(std::path::PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Agency {
    /// With the connection of the daemon, which has been told that there are no pods.
    fn open(name: &str) -> Option<(Agency, Greeted)> {
        if !privilege::granted() {
            return None;
        }
        let folder = std::env::temp_dir().join(format!("agency-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let folder = Folder(folder);
        let agent = NodeAgent::listen(&folder.0.join("ztunnel.sock")).unwrap();
        let description = Cluster::builder()
            .nodes(&["a"])
            .ambient("shop")
            .pod(PodSpec::new("shop/web", "a"))
            .pod(PodSpec::new("shop/cart", "a"))
            .variable("INPOD_UDS", &agent.path().display().to_string());
        // The daemon is not ready before it has a snapshot.
        let first = thread::spawn(move || {
            let greeted = agent.accept().unwrap();
            assert_eq!(greeted.tell(Told::SnapshotSent).unwrap(), None);
            (agent, greeted)
        });
        let cluster = description.start().unwrap();
        let (agent, greeted) = first.join().unwrap();
        for pod in cluster.pods() {
            cluster.daemon("a").unwrap().unregister(pod).unwrap();
        }
        let servers = cluster.pod("shop/cart").unwrap().load_servers().unwrap();
        Some((Agency { cluster, agent, _servers: servers, _folder: folder }, greeted))
    }

    fn pod(&self, name: &str) -> &testbed::Pod {
        self.cluster.pod(&format!("shop/{name}")).unwrap()
    }

    /// The next connection of the daemon, on which nothing was told yet.
    fn reconnected(&self) -> Greeted {
        self.agent.accept().unwrap()
    }

    /// Waits until these pods, and no others, are in the state given.
    fn expect(&self, expected: &[(&str, &str)]) {
        let mut expected: Vec<_> = expected
            .iter()
            .map(|(name, state)| (self.pod(name).uid(), (*state).to_owned()))
            .collect();
        expected.sort();
        wait_for(&format!("{expected:?}"), IN_FORCE, || {
            let dump = self.cluster.daemon("a")?.config_dump()?;
            let pods = dump["workloadState"].as_object().cloned().unwrap_or_default();
            let state =
                |value: &serde_json::Value| value["state"].as_str().unwrap_or("").to_owned();
            let mut found: Vec<_> =
                pods.iter().map(|(uid, pod)| (uid.clone(), state(pod))).collect();
            found.sort();
            ensure!(found == expected, "found {found:?}");
            Ok(())
        })
        .unwrap();
    }

    /// Waits until the daemon is ready, or not ready for want of its pods.
    fn expect_ready(&self, ready: bool) {
        let url = "http://127.0.0.1:15021/healthz/ready";
        wait_for("readiness", IN_FORCE, || {
            let answer = self.cluster.daemon("a")?.get(url);
            let said = answer.as_ref().map_or_else(|error| format!("{error:#}"), Clone::clone);
            ensure!(answer.is_ok() == ready, "it says {said}");
            ensure!(ready || said.contains("workload proxy manager"), "it says {said}");
            Ok(())
        })
        .unwrap();
    }

    /// Whether a connection from web to cart goes through the daemon.
    fn is_captured(&self) -> bool {
        let (web, cart) = (self.pod("web"), self.pod("cart"));
        let daemon = self.cluster.daemon("a").unwrap();
        let opened = || daemon.metric("istio_tcp_connections_opened_total", &[]).unwrap();
        let before = opened();
        let report = web.load("rr", &format!("{}:7000", cart.ip4()), &["--seconds", "0"]).unwrap();
        assert_eq!((report.errors, &report.first_error), (0, &None));
        opened() > before
    }
}

#[test]
fn a_pod_is_captured_when_its_add_is_acknowledged_and_released_with_its_del() {
    let Some((agency, agent)) = Agency::open("adds") else { return };
    assert!(!agency.is_captured());
    let netns = |name| Told::Add(agency.pod(name));
    for _ in 0..2 {
        // The second time it is the same namespace, and nothing changes.
        assert_eq!(agent.tell(netns("web")).unwrap(), None);
        assert_eq!(agent.tell(netns("cart")).unwrap(), None);
        agency.expect(&[("web", "Up"), ("cart", "Up")]);
        assert!(agency.is_captured());
    }
    for name in ["web", "cart"] {
        assert_eq!(agent.tell(Told::Del(agency.pod(name))).unwrap(), None);
    }
    agency.expect(&[]);
    assert!(!agency.is_captured());
}

#[test]
fn while_the_agent_is_away_pods_are_served_and_a_snapshot_settles_who_stays() {
    let Some((agency, agent)) = Agency::open("away") else { return };
    for name in ["web", "cart"] {
        assert_eq!(agent.tell(Told::Add(agency.pod(name))).unwrap(), None);
    }
    agency.expect_ready(true);
    drop(agent);
    let agent = agency.reconnected();
    agency.expect_ready(false);
    assert!(agency.is_captured());
    assert_eq!(agent.tell(Told::Keep(agency.pod("cart"))).unwrap(), None);
    agency.expect(&[("web", "Up"), ("cart", "Up")]);
    assert_eq!(agent.tell(Told::SnapshotSent).unwrap(), None);
    agency.expect(&[("cart", "Up")]);
    agency.expect_ready(true);
}

#[test]
fn a_pod_that_cannot_be_served_is_tried_again_until_a_snapshot_leaves_it_out() {
    let Some((agency, agent)) = Agency::open("refused") else { return };
    let web = agency.pod("web");
    for family in ["-4", "-6"] {
        web.ask(&["ip", family, "route", "del", "default"]).unwrap();
    }
    let refused = agent.tell(Told::Add(web)).unwrap().unwrap();
    assert!(refused.contains("no address with a default route"), "{refused}");
    agency.expect(&[("web", "Pending")]);
    agency.expect_ready(false);
    let gateway = agency.cluster.plan().pod_ip4(1, 1).to_string();
    web.ask(&["ip", "route", "add", "default", "via", &gateway]).unwrap();
    agency.expect(&[("web", "Up")]);
    agency.expect_ready(true);

    web.ask(&["ip", "route", "del", "default"]).unwrap();
    assert_eq!(agent.tell(Told::Del(web)).unwrap(), None);
    agent.tell(Told::Add(web)).unwrap().unwrap();
    agency.expect(&[("web", "Pending")]);
    drop(agent);
    let agent = agency.reconnected();
    assert_eq!(agent.tell(Told::SnapshotSent).unwrap(), None);
    agency.expect(&[]);
    agency.expect_ready(true);
}

#[test]
fn an_agent_that_breaks_the_protocol_is_told_so_and_the_daemon_lives_on() {
    let Some((agency, agent)) = Agency::open("breach") else { return };
    assert_eq!(agent.tell(Told::Add(agency.pod("web"))).unwrap(), None);
    let pid = agency.cluster.daemon("a").unwrap().process().unwrap().pid();
    let reason = agent.tell(Told::Keep(agency.pod("web"))).unwrap().unwrap();
    assert!(reason.contains("after the snapshot"), "{reason}");
    assert!(agent.is_closed().unwrap());
    let agent = agency.reconnected();
    agency.expect(&[("web", "Up")]);
    assert_eq!(agent.tell(Told::Add(agency.pod("web"))).unwrap(), None);
    assert_eq!(agent.tell(Told::SnapshotSent).unwrap(), None);
    agency.expect_ready(true);
    assert_eq!(agency.cluster.daemon("a").unwrap().process().unwrap().pid(), pid);
}
