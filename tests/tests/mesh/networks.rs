//! Two networks: node a is in `near`, node b in `far`, and a stock Envoy at `street/gateway` stands before `far`.
//!
//! What the control plane says of them is written by hand in istiod's form and played to the daemons; certificates come from
//! pilot.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use serde_json::{Map, Value, json};
use testbed::envoy::Certificate;
use testbed::{Daemon, Envoy, PodSpec, Process, ServiceSpec, binaries, wait_for};

use crate::certificates::{Signer, Validity, issue};
use crate::privilege;
use crate::shop::Answer::{Refused, Served};
use crate::shop::{IN_FORCE, Shop, description};

/// The ports of the load tool's servers.
const PORTS: [u16; 6] = [7000, 7001, 7002, 7003, 7004, 7005];
const HOST: &str = "remote.shop.svc.cluster.local";
const XDS_PORT: u16 = 15013;
const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

/// The networks and what runs in them.
struct Networks {
    shop: Shop,
    gateway: Envoy,
    /// Where what the daemons are told is written down.
    told: PathBuf,
    _control_planes: Vec<Process>,
}

/// What varies in what the daemons are told.
struct Told {
    /// The service account of the gateway.
    gateway: &'static str,
    /// The service account behind the service.
    service: &'static str,
    /// Where `shop/cart` takes everything, and wants to be told from whom.
    announced_at: Option<u16>,
}

const AS_IT_IS: Told = Told { gateway: "gateway", service: "cart", announced_at: None };

impl Networks {
    fn open() -> Option<Networks> {
        if !privilege::with_envoy() {
            return None;
        }
        let remote = ServiceSpec::new("shop/remote").port(7000, 7000);
        let description = description().pod(PodSpec::new("street/gateway", "b")).service(remote);
        let shop = Shop::of(description)?;
        let folder = shop.cluster.plan().dir();
        let control = shop.cluster.control().unwrap();
        let name = "spiffe://cluster.local/ns/street/sa/gateway";
        let files =
            issue(&folder, "gateway", Signer::Mesh(&control.data()), Some(name), Validity::Current);
        let roots = control.root_certificate();
        let certificate = Certificate { chain: files.certificate, key: files.key, roots };
        let authorities = PORTS.map(|port| format!("{HOST}:{port}"));
        let (pod, cart) = (shop.pod("street/gateway"), shop.pod("shop/cart"));
        let gateway = Envoy::gateway(pod, &certificate, &authorities, cart).unwrap();
        let told = folder.join("told");
        fs::create_dir(&told).unwrap();
        let mut networks = Networks { shop, gateway, told, _control_planes: Vec::new() };
        networks.tell(&AS_IT_IS);
        let policy = json!({ "shop/callers": allow_only("shop", "web") });
        networks.write("ztunnel.authorization.json", &policy);
        for (node, network) in [("a", "near"), ("b", "far")] {
            let player = networks.play(node);
            networks._control_planes.push(player);
            let daemon = networks.shop.cluster.daemon_mut(node).unwrap();
            daemon.set_variable("XDS_ADDRESS", &format!("http://127.0.0.1:{XDS_PORT}"));
            daemon.set_variable("NETWORK", network);
            daemon.restart().unwrap();
        }
        Some(networks)
    }

    /// Plays what the daemons are told, on a node's own loopback address.
    fn play(&self, node: &str) -> Process {
        let meshctl = binaries::ours("meshctl").unwrap().display().to_string();
        let (told, listen) = (self.told.display().to_string(), format!("127.0.0.1:{XDS_PORT}"));
        let words = [&*meshctl, "replay", &told, "--listen", &listen];
        let place = self.daemon(node).place();
        let mut process = place.spawn(&format!("replay-{node}"), &words, &[]).unwrap();
        process.wait_listening(XDS_PORT).unwrap();
        process
    }

    fn daemon(&self, node: &str) -> &Daemon {
        self.shop.cluster.daemon(node).unwrap()
    }

    /// Where clients of `near` dial the service of `far`.
    fn service(&self) -> Ipv4Addr {
        self.shop.cluster.service("shop/remote").unwrap().0
    }

    fn write(&self, file: &str, resources: &Value) {
        // In one step: a file half written would be read as it is.
        let fresh = self.told.with_extension("new");
        fs::write(&fresh, resources.to_string()).unwrap();
        fs::rename(&fresh, self.told.join(file)).unwrap();
    }

    /// Tells the daemons of pods, the gateway, what stands for the far pod in `near`, and the service.
    fn tell(&self, what: &Told) {
        let gateway_ip = base64(&self.shop.pod("street/gateway").ip4().octets());
        let mut told = Map::new();
        let mut tell = |name: &str, kind: &str, mut resource: Value| {
            if kind == "workload" {
                resource["uid"] = json!(name);
            }
            let any =
                json!({ "@type": "type.googleapis.com/istio.workload.Address", kind: resource });
            told.insert(name.to_owned(), any);
        };
        for (path, network) in [
            ("shop/web", "near"),
            ("shop/near", "near"),
            ("data/batch", "near"),
            ("shop/cart", "far"),
        ] {
            let pod = self.shop.pod(path);
            let (namespace, name) = path.split_once('/').unwrap();
            let mut workload = json!({
                "name": name,
                "namespace": namespace,
                "service_account": name,
                "workload_name": name,
                "workload_type": "POD",
                "canonical_name": name,
                "node": pod.node_name(),
                "network": network,
                "addresses": [base64(&pod.ip4().octets())],
                "tunnel_protocol": "HBONE",
                "services": if name == "cart" { membership() } else { json!({}) },
            });
            if let (Some(port), "cart") = (what.announced_at, name) {
                workload["application_tunnel"] = json!({ "protocol": "PROXY", "port": port });
            }
            tell(&format!("Kubernetes//Pod/{path}"), "workload", workload);
        }
        let gateway = json!({
            "name": "gateway",
            "namespace": "street",
            "service_account": what.gateway,
            "network": "far",
            "addresses": [gateway_ip],
        });
        tell("NetworkGateway/far/gateway/15008", "workload", gateway);
        let stand_in = json!({
            "name": "stand-in",
            "namespace": "shop",
            "network": "far",
            "tunnel_protocol": "HBONE",
            "services": membership(),
            "network_gateway": {
                "address": { "network": "far", "address": gateway_ip },
                "hbone_mtls_port": 15008,
            },
        });
        tell("far/SplitHorizonWorkload/street/gateway/shop/remote", "workload", stand_in);
        let service = json!({
            "name": "remote",
            "namespace": "shop",
            "hostname": HOST,
            "canonical": true,
            "addresses": [{ "network": "near", "address": base64(&self.service().octets()) }],
            "ports": ports(),
            "subject_alt_names": [format!("spiffe://cluster.local/ns/shop/sa/{}", what.service)],
        });
        tell(&format!("shop/{HOST}"), "service", service);
        self.write("ztunnel.address.json", &Value::Object(told));
    }

    /// Waits until an attempt from `shop/web` fails and the node's log says why.
    fn fails(&self, why: &[&str]) {
        let to = format!("{}:7000", self.service());
        wait_for(&format!("a failure with {why:?}"), IN_FORCE, || {
            ensure!(self.shop.attempt("shop/web", &to).is_err(), "it does not fail");
            line(self.daemon("a"), why).map(drop)
        })
        .unwrap();
    }
}

fn ports() -> Value {
    PORTS.map(|port| json!({ "service_port": port, "target_port": port })).to_vec().into()
}

fn membership() -> Value {
    json!({ format!("shop/{HOST}"): { "ports": ports() } })
}

fn allow_only(namespace: &str, account: &str) -> Value {
    let principal = format!("cluster.local/ns/{namespace}/sa/{account}");
    json!({
        "@type": "type.googleapis.com/istio.security.Authorization",
        "name": "callers",
        "namespace": "shop",
        "scope": "NAMESPACE",
        "action": "ALLOW",
        "groups": [{ "rules": [{ "matches": [{ "principals": [{ "exact": principal }] }] }] }],
    })
}

/// RFC 4648 §4, as JSON has bytes of messages.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = chunk
            .iter()
            .chain(&[0, 0])
            .take(3)
            .fold(0, |bits, byte| bits << 8 | usize::from(*byte));
        for at in 0..4 {
            let letter = LETTERS[bits >> (18 - 6 * at) & 63];
            text.push(if at <= chunk.len() { letter.into() } else { '=' });
        }
    }
    text
}

/// The last line of a daemon's access log that holds all of `words`.
fn line(daemon: &Daemon, words: &[&str]) -> anyhow::Result<String> {
    let log = daemon.log()?;
    let found = log.lines().rev().find(|line| {
        line.contains("connection complete") && words.iter().all(|word| line.contains(word))
    });
    found.map(str::to_owned).with_context(|| format!("no line with {words:?} in\n{log}"))
}

fn field<'a>(line: &'a str, name: &str) -> &'a str {
    let value = line.split_once(&format!("{name}=\"")).unwrap().1;
    value.split_once('"').unwrap().0
}

#[test]
fn another_network_is_reached_in_two_tunnels_and_both_nodes_know_whom_they_have() {
    let Some(networks) = Networks::open() else { return };
    let Networks { shop, gateway, .. } = &networks;
    let to = format!("{}:7000", networks.service());
    shop.attempt("shop/web", &to).unwrap();

    // Bytes, ends and resets pass a gateway that understands none of them.
    for (direction, port) in [("up", 7003), ("down", 7002)] {
        let options = ["--direction", direction, "--bytes", "50000000"];
        let to = format!("{}:{port}", networks.service());
        let report = shop.pod("shop/web").load("transfer", &to, &options).unwrap();
        assert_eq!(report.count, 50_000_000, "{direction}");
    }
    shop.pod("shop/web").endings(&networks.service().to_string()).unwrap();

    let mut held = shop.hold("shop/web", &to);
    wait_for("the connection to be listed", IN_FORCE, || {
        let dump = networks.daemon("a").config_dump()?;
        let state = dump["workloadState"].to_string();
        ensure!(state.contains("\"DOUBLEHBONE\""), "{state}");
        Ok(())
    })
    .unwrap();
    held.kill().unwrap();

    let (web, cart) =
        ["web", "cart"].map(|name| format!("spiffe://cluster.local/ns/shop/sa/{name}")).into();
    let at_gateway = format!("dst.addr={}:15008", shop.pod("street/gateway").ip4());
    let (asked, service) =
        (format!("dst.hbone_addr={HOST}:7000"), format!("dst.service=\"{HOST}\""));
    let (src, dst) = (format!("src.identity=\"{web}\""), format!("dst.identity=\"{cart}\""));
    wait_for("the lines of both nodes", IN_FORCE, || {
        let near = line(
            networks.daemon("a"),
            &[
                &at_gateway,
                &asked,
                &service,
                &src,
                &dst,
                "dst.workload=\"cart\"",
                "direction=\"outbound\"",
            ],
        )?;
        let id = format!("trace.id=\"{}\"", field(&near, "trace.id"));
        line(
            networks.daemon("b"),
            &[&id, &asked, &service, &src, &dst, "src.workload=\"web\"", "direction=\"inbound\""],
        )
        .map(drop)
    })
    .unwrap();
    let principal = format!("destination_principal=\"{cart}\"");
    let opened = networks.daemon("a").metric(
        "istio_tcp_connections_opened_total",
        &["reporter=\"source\"", "destination_workload=\"cart\"", &principal],
    );
    assert!(opened.unwrap() >= 4.0);
    let said = format!("CONNECT {HOST}:7000 200 from {web}");
    wait_for("the gateway to say whom it saw", IN_FORCE, || {
        let log = gateway.log()?;
        ensure!(log.contains(&said), "{log}");
        Ok(())
    })
    .unwrap();

    // The gateway lets everybody through; the destination decides by who is in the inner tunnel.
    shop.expect(&to, &[("shop/web", Served), ("data/batch", Refused)]);
    wait_for("the refusal in both logs", IN_FORCE, || {
        line(networks.daemon("a"), &["reason=\"tunnel_denied\"", "the tunnel through gateway"])?;
        line(networks.daemon("b"), &["reason=\"policy_no_allow\"", "src.workload=\"batch\""])
            .map(drop)
    })
    .unwrap();
}

#[test]
fn a_failure_says_which_of_the_two_tunnels_did_not_open() {
    let Some(mut networks) = Networks::open() else { return };
    let to = format!("{}:7000", networks.service());
    networks.shop.attempt("shop/web", &to).unwrap();
    networks.tell(&Told { service: "somebody", ..AS_IT_IS });
    networks.fails(&["reason=\"wrong_peer\"", "the tunnel through gateway", "sa/cart, expected"]);
    networks.tell(&Told { gateway: "somebody", ..AS_IT_IS });
    networks.fails(&["reason=\"wrong_peer\"", "the tunnel to gateway", "sa/gateway, expected"]);
    networks.tell(&AS_IT_IS);
    networks.shop.expect(&to, &[("shop/web", Served)]);
    networks.gateway.kill().unwrap();
    networks.fails(&["reason=\"dial_refused\"", "the tunnel to gateway"]);
}

#[test]
fn a_tunnel_to_a_gateway_counts_among_those_that_a_pod_may_dial() {
    let Some(mut networks) = Networks::open() else { return };
    let daemon = networks.shop.cluster.daemon_mut("a").unwrap();
    daemon.set_variable("AQUIFER_POD_TUNNELS", "1");
    daemon.set_variable("ZTUNNEL_WORKER_THREADS", "1");
    daemon.restart().unwrap();
    networks.shop.attempt("shop/web", &format!("{}:7000", networks.service())).unwrap();
    // Who is expected to be somebody else needs a tunnel of its own, and the first one stays open for minutes.
    networks.tell(&Told { gateway: "somebody", ..AS_IT_IS });
    networks.fails(&["reason=\"pod_tunnel_limit\"", "the tunnel to gateway"]);
}

/// An application that is told who comes, on port 7100 of `shop/cart`: it answers with the address it sees and what it is
/// told, in hexadecimal.
fn announced(shop: &Shop) -> Process {
    let length = 16 + 12 + 3 + WEB.len() + 3 + HOST.len();
    let program = format!("SYSTEM:echo $SOCAT_PEERADDR; od -An -v -tx1 -N {length}");
    let words = ["socat", "TCP-LISTEN:7100,fork,reuseaddr", &program];
    let mut process = shop.pod("shop/cart").spawn("announced", &words).unwrap();
    process.wait_listening(7100).unwrap();
    process
}

/// What the application saw and was told when `shop/web` dialed `to`: the address it saw, and source address, destination,
/// identity and host name from the header.
fn told_by_header(shop: &Shop, to: SocketAddrV4) -> anyhow::Result<[String; 5]> {
    let dial = format!("echo question | timeout 10 socat -t 5 - TCP:{to}");
    let answer = shop.pod("shop/web").ask(&["sh", "-c", &dial])?;
    let (seen, dump) = answer.split_once('\n').with_context(|| format!("said {answer:?}"))?;
    let bytes: Vec<u8> = dump
        .split_whitespace()
        .map(|byte| u8::from_str_radix(byte, 16))
        .collect::<Result<_, _>>()?;
    ensure!(bytes.starts_with(b"\r\n\r\n\0\r\nQUIT\n\x21\x11"), "{answer}");
    let ip = |at: usize| Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]);
    let port = u16::from_be_bytes([bytes[26], bytes[27]]);
    ensure!(bytes[28] == 0xd0, "{answer}");
    let (identity, host) = bytes[31..].split_at(WEB.len());
    ensure!(host[0] == 0xd1, "{answer}");
    let [identity, host] = [identity, &host[3..]].map(|text| String::from_utf8(text.to_vec()));
    let destination = SocketAddrV4::new(ip(20), port).to_string();
    Ok([seen.to_owned(), ip(16).to_string(), destination, identity?, host?])
}

#[test]
fn an_application_that_takes_everything_is_told_who_comes_and_for_what() {
    let Some(mut networks) = Networks::open() else { return };
    networks.tell(&Told { announced_at: Some(7100), ..AS_IT_IS });
    let _application = announced(&networks.shop);
    // The daemon dials at the loopback address, and says for which of the service's addresses it came.
    let through = SocketAddrV4::new(networks.service(), 7000);
    let gateway = networks.shop.pod("street/gateway").ip4().to_string();
    let expect = |shop: &Shop, seen: &str| {
        let expected = [seen, &gateway, &through.to_string(), WEB, HOST];
        wait_for(&format!("{expected:?}"), IN_FORCE, || {
            let found = told_by_header(shop, through)?;
            ensure!(found == expected, "found {found:?}");
            Ok(())
        })
        .unwrap();
    };
    expect(&networks.shop, "127.0.0.1");
    // Or at the pod's own, as whom it has for its peer.
    let daemon = networks.shop.cluster.daemon_mut("b").unwrap();
    daemon.set_variable("LOCALHOST_APP_TUNNEL", "false");
    daemon.restart().unwrap();
    expect(&networks.shop, &gateway);
}

#[test]
fn without_baggage_the_certificate_alone_names_the_far_end() {
    let Some(mut networks) = Networks::open() else { return };
    let daemon = networks.shop.cluster.daemon_mut("b").unwrap();
    daemon.set_variable("ENABLE_RESPONSE_BAGGAGE", "false");
    daemon.restart().unwrap();
    networks.shop.attempt("shop/web", &format!("{}:7000", networks.service())).unwrap();
    let peers = [("a", "outbound", "dst", "cart"), ("b", "inbound", "src", "web")];
    for (node, direction, side, name) in peers {
        let direction = format!("direction=\"{direction}\"");
        let namespace = format!("{side}.namespace=\"shop\"");
        let identity = format!("{side}.identity=\"spiffe://cluster.local/ns/shop/sa/{name}\"");
        wait_for(&format!("the line of node {node}"), IN_FORCE, || {
            let line = line(networks.daemon(node), &[&direction, &namespace, &identity])?;
            ensure!(!line.contains(&format!("{side}.workload")), "{line}");
            Ok(())
        })
        .unwrap();
    }
}
