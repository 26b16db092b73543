//! A node that asks its control plane for single addresses, when a pod's query or connection needs them.
//!
//! The control plane is a folder that is played to the daemon of node a; it has a service `cart` of `shop`, and
//! `shop/web`, which runs on the node and comes unasked. The pods' own DNS server knows nothing below `cluster.local`.

use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::ensure;
use serde_json::{Value, json};
use testbed::{PodSpec, Process, wait_for};

use crate::{
    replayed::{ADDRESS, Replayed, base64, workload_of},
    shop::{IN_FORCE, Shop, description},
};

const CART: &str = "cart.shop.svc.cluster.local";
const KEY: &str = "shop/cart.shop.svc.cluster.local";
const VIP: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 8);

struct OnDemand {
    shop: Shop,
    replayed: Replayed,
    _server: Process,
}

impl OnDemand {
    fn open(name: &str) -> Option<Self> {
        let described = description().pod(PodSpec::new("street/dns", "b")).dns_server("street/dns");
        let mut shop = Shop::of(described)?;
        let server = shop.pod("street/dns").dnsmasq(&["--local=/cluster.local/"]).unwrap();
        let mut cart = workload_of(shop.pod("shop/cart"));
        let port = json!({ "service_port": 7000, "target_port": 7000 });
        cart["workload"]["services"] = json!({ KEY: { "ports": [port] } });
        let service = json!({ "@type": ADDRESS, "service": {
            "name": "cart", "namespace": "shop", "hostname": CART, "canonical": true, "ports": [port],
            "addresses": [{ "address": base64(&VIP.octets()) }],
        } });
        let web = workload_of(shop.pod("shop/web"));
        let resources = json!({ "web": web, "cart": cart, KEY: service });
        let files = [("ztunnel.address.json", resources)];
        let variables = [("XDS_ON_DEMAND", "true")];
        let replayed = Replayed::start(&mut shop.cluster, name, &files, &[], &variables).unwrap();
        replayed.daemon.register(shop.pod("shop/web")).unwrap();
        Some(Self { shop, replayed, _server: server })
    }

    /// Status and addresses that a pod is told for a name.
    fn dig(&self, name: &str) -> (String, Vec<String>) {
        let words = ["dig", "+tries=1", "+timeout=9", "+nosearch", name];
        let said = self.shop.pod("shop/web").ask(&words).unwrap();
        let status = said.split_once("status: ").unwrap().1.split(',').next().unwrap().to_owned();
        let records = said.lines().filter(|line| !line.starts_with(';') && line.contains("\tA\t"));
        let address = |line: &str| line.rsplit('\t').next().unwrap().to_owned();
        (status, records.map(address).collect())
    }

    /// What was asked of the control plane, in order.
    fn asked(&self) -> Vec<String> {
        let said = self.replayed.replay.log().unwrap();
        let asked = said.lines().filter_map(|line| line.split_once("address: asked for "));
        asked.map(|(_, names)| names.to_owned()).collect()
    }

    fn held(&self, kind: &str, key: &str) -> Vec<String> {
        let dump = self.replayed.daemon.config_dump().unwrap();
        let list = dump[kind].as_array().unwrap().iter();
        list.map(|one: &Value| one[key].as_str().unwrap().to_owned()).collect()
    }

    fn lookups_timed_out(&self) -> f64 {
        let labels = ["reason=\"lookup_timeout\""];
        self.replayed.daemon.metric("aquifer_failures_total", &labels).unwrap()
    }
}

#[test]
fn a_name_that_is_not_known_yet_is_asked_for_before_it_is_answered() {
    let Some(node) = OnDemand::open("named") else { return };
    let none: [&str; 0] = [];
    assert_eq!((node.held("workloads", "uid"), node.asked()), (vec!["web".to_owned()], vec![]));

    assert_eq!(node.dig(CART), ("NOERROR".to_owned(), vec![VIP.to_string()]));
    assert_eq!(node.asked(), [KEY]);
    // The service came with its endpoints: the connection asks for nothing but the address that it was told.
    assert_eq!(node.held("services", "hostname"), [CART]);
    assert_eq!(node.held("workloads", "uid"), ["cart", "web"]);
    node.shop.attempt("shop/web", &format!("{VIP}:7000")).unwrap();
    assert_eq!(node.held("workloads", "uid"), ["cart", "web"]);
    let before = node.asked().len();
    assert_eq!(node.dig(CART).1, [VIP.to_string()]);
    assert_eq!(node.asked().len(), before, "it is known now: {:?}", node.asked());

    // A name that nobody has is the server's to answer, and none of what it may stand for is asked for twice.
    let absent = "absent.shop.svc.cluster.local";
    for _ in 0..3 {
        assert_eq!(node.dig(absent), ("NXDOMAIN".to_owned(), none.map(str::to_owned).into()));
    }
    let asked = node.asked();
    assert_eq!(asked[before], format!("shop/{absent}"), "{asked:?}");
    let once: BTreeSet<&String> = asked.iter().collect();
    assert_eq!(once.len(), asked.len(), "{asked:?}");
    assert_eq!(node.held("services", "hostname"), [CART]);
}

#[test]
fn without_the_control_plane_what_is_not_known_is_neither_denied_nor_reached_in_the_clear() {
    let Some(mut node) = OnDemand::open("silent") else { return };
    assert_eq!(node.dig(CART).1, [VIP.to_string()]);
    node.shop.attempt("shop/web", &format!("{VIP}:7000")).unwrap();
    node.replayed.replay.kill().unwrap();

    let began = Instant::now();
    assert_eq!(node.dig("other.shop.svc.cluster.local").0, "SERVFAIL");
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    // An address that the mesh may have, where a server listens in the clear.
    node.shop.serve("street/stranger");
    let stranger = format!("{}:7000", node.shop.pod("street/stranger").ip4());
    let before = node.lookups_timed_out();
    node.shop.attempt("shop/web", &stranger).unwrap_err();
    wait_for("the reason", IN_FORCE, || {
        ensure!(node.lookups_timed_out() > before, "it is not counted");
        Ok(())
    })
    .unwrap();
    let log = node.replayed.daemon.log().unwrap();
    assert!(log.contains("the control plane has not said in time what /"), "{log}");
    // What is known stays.
    assert_eq!(node.dig(CART), ("NOERROR".to_owned(), vec![VIP.to_string()]));
    node.shop.attempt("shop/web", &format!("{VIP}:7000")).unwrap();
}
