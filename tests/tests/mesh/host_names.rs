//! Workloads that have a name in the place of an address: the node's own resolver tells where they are.
//!
//! The control plane is a folder that is played to the daemon of node a. Behind the service's address are workloads of
//! names below `outside.test`, which dnsmasq in `street/dns` knows; the daemon's own resolver asks it.

use std::{fs, net::Ipv4Addr, time::Instant};

use anyhow::ensure;
use serde_json::{Value, json};
use testbed::{PodSpec, Process, wait_for};

use crate::{
    replayed::{ADDRESS, Replayed, base64, workload_of},
    shop::{IN_FORCE, Shop, description},
};

const VIP: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 9);
const TO: &str = "198.51.100.9:7000";
const KEY: &str = "shop/outside.shop.svc.cluster.local";
const NAME: &str = "db.outside.test";

struct Outside {
    shop: Shop,
    replayed: Replayed,
    server: Process,
}

impl Outside {
    /// The service, with a workload of `NAME` that is reached by `tunnel`, and the records of the name.
    fn open(name: &str, tunnel: &str, records: impl Fn(&Shop) -> Vec<String>) -> Option<Self> {
        let mut shop = Shop::of(description().pod(PodSpec::new("street/dns", "b")))?;
        shop.serve("street/stranger");
        let server = serve_names(&shop, &records(&shop));
        let place = shop.cluster.daemon("a").unwrap().place().clone();
        let conf = shop.cluster.plan().dir().join("node-resolv.conf");
        fs::write(&conf, format!("nameserver {}\n", shop.pod("street/dns").ip4())).unwrap();
        place.resolve_by(&conf).unwrap();

        let port = json!({ "service_port": 7000, "target_port": 7000 });
        let outside = json!({ "@type": ADDRESS, "workload": {
            "uid": "outside", "name": "outside", "namespace": "shop", "hostname": NAME,
            "service_account": "cart", "tunnel_protocol": tunnel, "services": { KEY: { "ports": [port] } },
        } });
        let service = json!({ "@type": ADDRESS, "service": {
            "name": "outside", "namespace": "shop", "hostname": "outside.shop.svc.cluster.local",
            "ports": [port], "addresses": [{ "address": base64(&VIP.octets()) }],
        } });
        let web = workload_of(shop.pod("shop/web"));
        let resources = json!({ "web": web, "outside": outside, KEY: service });
        let files: [(&str, Value); 2] =
            [("ztunnel.address.json", resources), ("ztunnel.authorization.json", json!({}))];
        let control = shop.cluster.control().unwrap();
        let (url, root, token) = (
            control.url(),
            control.root_certificate().display().to_string(),
            control.node_token("node-a").unwrap().display().to_string(),
        );
        let variables = [("CA_ADDRESS", &*url), ("CA_ROOT_CA", &*root), ("AUTH_TOKEN", &*token)];
        let replayed = Replayed::start(&mut shop.cluster, name, &files, &[], &variables).unwrap();
        replayed.daemon.register(shop.pod("shop/web")).unwrap();
        Some(Self { shop, replayed, server })
    }

    fn attempt(&self) -> anyhow::Result<()> {
        self.shop.attempt("shop/web", TO)
    }

    /// How often the daemon has asked its resolver.
    fn asked(&self) -> f64 {
        let labels = ["hostname=\"db.outside.test\"", "source_workload_namespace=\"shop\""];
        self.replayed.daemon.metric("istio_on_demand_dns_total", &labels).unwrap()
    }

    /// Waits until it is asked again, with attempts that all succeed.
    fn until_asked_again(&self) {
        let before = self.asked();
        wait_for("the resolver to be asked again", testbed::wait::PATIENCE, || {
            self.attempt().unwrap();
            ensure!(self.asked() > before, "it is not");
            Ok(())
        })
        .unwrap();
    }

    fn access_log(&self) -> String {
        let log = self.replayed.daemon.log().unwrap();
        log.lines().filter(|line| line.contains("\taccess\t")).collect::<Vec<_>>().join("\n")
    }
}

fn serve_names(shop: &Shop, records: &[String]) -> Process {
    let records: Vec<&str> = records.iter().map(String::as_str).collect();
    let options = [&["--local=/outside.test/", "--no-negcache"], &*records].concat();
    shop.pod("street/dns").dnsmasq(&options).unwrap()
}

fn record(ip: Ipv4Addr) -> String {
    format!("--host-record={NAME},{ip}")
}

#[test]
fn a_workload_with_a_name_is_dialed_where_the_nodes_resolver_says() {
    let stranger = |shop: &Shop| vec![record(shop.pod("street/stranger").ip4())];
    let Some(mut outside) = Outside::open("by-name", "NONE", stranger) else { return };
    outside.attempt().unwrap();
    assert!((outside.asked() - 1.0).abs() < f64::EPSILON, "{}", outside.asked());
    let reached = format!("dst.addr={}:7000", outside.shop.pod("street/stranger").ip4());
    wait_for("the log's line", IN_FORCE, || {
        let log = outside.access_log();
        ensure!(log.contains(&reached), "{log}");
        Ok(())
    })
    .unwrap();
    let queries = || outside.server.log().unwrap().matches(&format!("query[A] {NAME}")).count();
    // What was told is used for ten seconds, and after them where the resolver fails.
    let (began, before) = (Instant::now(), queries());
    for _ in 0..30 {
        outside.attempt().unwrap();
    }
    let asked = (queries() - before) as u64;
    assert!(asked <= 1 + began.elapsed().as_secs() / 10, "{asked} in {:?}", began.elapsed());
    outside.server.kill().unwrap();
    outside.until_asked_again();
    outside.attempt().unwrap();

    // It moves: connections follow.
    let near = outside.shop.pod("shop/near").ip4();
    outside.server = serve_names(&outside.shop, &[record(near)]);
    wait_for("the other address", testbed::wait::PATIENCE, || {
        outside.attempt().unwrap();
        let log = outside.access_log();
        ensure!(log.contains(&format!("dst.addr={near}:7000")), "{log}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn of_several_addresses_of_a_name_one_that_serves_is_found() {
    // Nobody is at the second: its node refuses.
    let both = |shop: &Shop| {
        vec![record(shop.pod("street/stranger").ip4()), record(shop.pod("street/dns").ip4())]
    };
    let Some(outside) = Outside::open("several", "NONE", both) else { return };
    for _ in 0..20 {
        outside.attempt().unwrap();
    }
}

#[test]
fn a_name_that_cannot_be_resolved_refuses_with_the_name_in_the_log() {
    let Some(mut outside) = Outside::open("no-name", "NONE", |_| Vec::new()) else { return };
    outside.attempt().unwrap_err();
    wait_for("the log's line", IN_FORCE, || {
        let log = outside.access_log();
        let told = |line: &str| {
            line.contains("reason=\"dial_failed\"") && line.contains(&format!("resolving {NAME}: "))
        };
        ensure!(log.lines().any(told), "{log}");
        Ok(())
    })
    .unwrap();
    // A failure is not remembered.
    outside.server.kill().unwrap();
    let stranger = outside.shop.pod("street/stranger").ip4();
    outside.server = serve_names(&outside.shop, &[record(stranger)]);
    wait_for("the name", IN_FORCE, || outside.attempt()).unwrap();
}

#[test]
fn a_workload_with_a_name_that_speaks_hbone_is_reached_in_a_tunnel() {
    let cart = |shop: &Shop| vec![record(shop.pod("shop/cart").ip4())];
    let Some(outside) = Outside::open("tunnel", "HBONE", cart) else { return };
    wait_for("the certificate and the tunnel", IN_FORCE, || outside.attempt()).unwrap();
    let cart = outside.shop.pod("shop/cart").ip4();
    let expected = [
        format!("dst.addr={cart}:15008"),
        format!("dst.hbone_addr={cart}:7000"),
        "dst.identity=\"spiffe://cluster.local/ns/shop/sa/cart\"".to_owned(),
    ];
    wait_for("the log's line", IN_FORCE, || {
        let log = outside.access_log();
        let told = |line: &str| expected.iter().all(|word| line.contains(&**word));
        ensure!(log.lines().any(told), "{expected:?} in {log}");
        Ok(())
    })
    .unwrap();
}
