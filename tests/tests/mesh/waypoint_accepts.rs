//! A stock Envoy takes all that pilot makes of the cases that were recorded of a real istiod.
//!
//! Each recorded waypoint is an Envoy in a pod that pilot runs in, too. It must refuse nothing, and have each listener,
//! cluster and assignment of pilot's in force.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use testbed::waypoint::{Pilot, Protocol, WaypointSpec};
use testbed::{Cluster, Pod, PodSpec, Process, Waypoint, binaries, wait_for};

use crate::certificates::{Signer, Validity, issue};
use crate::privilege;

/// Names that nobody resolves hold a cluster up until the resolver gives up.
const SETTLED: std::time::Duration = std::time::Duration::from_secs(60);

/// A module that does nothing, with what Proxy-Wasm 0.2.1 wants of one: a memory, and a way to get some of it.
const WASM: &[u8] = b"\0asm\x01\0\0\0\
    \x01\x09\x02\x60\0\0\x60\x01\x7f\x01\x7f\
    \x03\x03\x02\0\x01\
    \x05\x03\x01\0\x01\
    \x07\x3f\x03\x06memory\x02\0\x17proxy_abi_version_0_2_1\0\0\
    \x18proxy_on_memory_allocate\0\x01\
    \x0a\x09\x02\x02\0\x0b\x04\0\x41\0\x0b";

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/fixtures/istiod")
}

/// Every waypoint that was recorded: case and name.
fn recorded() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for case in fs::read_dir(fixtures()).unwrap() {
        let case = case.unwrap();
        if !case.file_type().unwrap().is_dir() {
            continue;
        }
        for file in fs::read_dir(case.path()).unwrap() {
            let file = file.unwrap().file_name().into_string().unwrap();
            if let Some(waypoint) = file.strip_suffix(".lds.pb") {
                found.push((case.file_name().into_string().unwrap(), waypoint.to_owned()));
            }
        }
    }
    found.sort();
    assert!(found.len() > 10, "{found:?}");
    found
}

/// The case's input. What it names and only a real cluster has is there, too: files for TLS, and a pair in a Secret.
fn input(case: &str, files: &Path) -> String {
    let written = fs::read_to_string(fixtures().join(case).join("input.yaml")).unwrap();
    let pair = issue(files, "tls", Signer::Stranger, None, Validity::Current);
    fs::rename(&pair.certificate, files.join("tls.crt")).unwrap();
    for roots in ["ca.crt", "ca.pem"] {
        fs::copy(files.join("tls.crt"), files.join(roots)).unwrap();
    }
    for code in ["stats", "stats2", "stats3"] {
        fs::write(files.join(format!("{code}.wasm")), WASM).unwrap();
    }
    let text = written.replace("/etc/certs/", &format!("{}/", files.display()));
    let text = text.replace("file:///opt/", &format!("file://{}/", files.display()));
    let lines = text.lines().map(|line| match line.trim().split_once(": ") {
        Some((key @ ("tls.crt" | "tls.key" | "ca.crt"), "placeholder")) => {
            let pem = Value::from(fs::read_to_string(files.join(key)).unwrap());
            line.replace("placeholder", &pem.to_string())
        }
        _ => line.to_owned(),
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// The first pod of a Gateway: name, namespace, node and address.
fn pod_of(input: &str, gateway: &str) -> [String; 4] {
    let label = format!("gateway.networking.k8s.io/gateway-name: {gateway}");
    let mut documents = input.split("\n---\n");
    let pod = documents.find(|document| {
        document.contains("kind: Pod\n") && document.lines().any(|line| line.trim() == label)
    });
    let pod = pod.unwrap_or_else(|| panic!("no pod of {gateway}"));
    ["  name: ", "  namespace: ", "  nodeName: ", "  podIP: "].map(|key| {
        let value = pod.lines().find_map(|line| line.strip_prefix(key));
        value.unwrap_or_else(|| panic!("no {key}")).trim().to_owned()
    })
}

/// Pilot on `input`, in the pod; and the token of a node.
fn pilot(pod: &Pod, case: &str, input: &str, node: &str) -> (Process, String) {
    let folder = pod.folder(&format!("mesh-{case}")).unwrap();
    fs::write(folder.join("input.yaml"), input).unwrap();
    let data = pod.folder("pilot").unwrap().display().to_string();
    let pilot = binaries::ours("pilot").unwrap().display().to_string();
    let folder = folder.display().to_string();
    let is_multi_network = (case == "11-multinetwork").to_string();
    let words = [&*pilot, "serve", "--folder", &folder, "--data", &data];
    let listen = ["--listen-tls", "127.0.0.1:15012", "--multi-network", &is_multi_network];
    let mut process = pod.spawn("pilot", &[&words[..], &listen[..]].concat()).unwrap();
    process.wait_listening(15010).unwrap();
    process.wait_listening(15014).unwrap();
    let token = pod.ask(&[&pilot, "node-token", node, "--data", &data]).unwrap();
    (process, token.trim().to_owned())
}

/// Where a waypoint's Envoy is, and its pilot.
struct Rig {
    pod: Pod,
    proxy: String,
    waypoint: Waypoint,
    _pilot: Process,
}

impl Rig {
    fn start(pod: &Pod, case: &str, gateway: &str, protocol: Protocol) -> Rig {
        let input = input(case, &pod.folder("certs").unwrap());
        let [name, namespace, node, address] = pod_of(&input, gateway);
        let (pilot, token) = pilot(pod, case, &input, &node);
        let proxy = format!("{name}.{namespace}");
        let spec = WaypointSpec {
            name,
            namespace,
            address,
            token,
            protocol,
            pilot: Pilot::Here { port: 15010 },
        };
        let waypoint = Waypoint::start(pod, &spec).unwrap();
        Rig { pod: pod.clone(), proxy, waypoint, _pilot: pilot }
    }

    fn ask_pilot(&self, path: &str) -> Result<Value> {
        let url = format!("http://127.0.0.1:15014{path}");
        let said = self.pod.ask(&["curl", "-sS", "--fail", "--max-time", "10", &url])?;
        Ok(serde_json::from_str(&said)?)
    }

    /// Everything that pilot sends is in force, and nothing was refused.
    fn is_settled(&self) -> Result<()> {
        let clients = self.ask_pilot("/debug/clients")?;
        let nacks: Vec<_> = clients["clients"]
            .as_array()
            .into_iter()
            .flatten()
            .flat_map(|client| client["types"].as_object().into_iter().flatten())
            .filter(|(_, status)| !status["nack"].is_null())
            .collect();
        ensure!(nacks.is_empty(), "refused: {nacks:#?}");
        let sent = self.ask_pilot(&format!("/debug/config_dump?proxy={}", self.proxy))?;
        let has = self.waypoint.config()?;
        for (section, list, what, name) in PARTS {
            let expected = names(&sent, section, list, what, name);
            let may_lack = matches!(*name, "cluster_name") || *list == "ecds_filters";
            ensure!(!expected.is_empty() || may_lack, "pilot sent no {section}");
            let found = names(&has, section, list, what, name);
            let missing: Vec<_> = expected.difference(&found).collect();
            ensure!(missing.is_empty(), "not in force: {section} {missing:?}");
        }
        let text = has.to_string();
        for bad in ["dynamic_warming_clusters", "warming_state", "error_state"] {
            ensure!(
                !text.contains(&format!("\"{bad}\"")),
                "there is a {bad}: {}",
                around(&text, bad)
            );
        }
        let rejected = self.waypoint.rejected()?;
        ensure!(rejected.is_empty(), "updates were rejected: {rejected:?}");
        Ok(())
    }
}

/// Section, list, path of the message, and its name.
const PARTS: &[(&str, &str, &str, &str)] = &[
    ("ClustersConfigDump", "dynamic_active_clusters", "/cluster", "name"),
    ("EndpointsConfigDump", "dynamic_endpoint_configs", "/endpoint_config", "cluster_name"),
    ("ListenersConfigDump", "dynamic_listeners", "/active_state/listener", "name"),
    ("EcdsConfigDump", "ecds_filters", "/ecds_filter", "name"),
];

fn names(dump: &Value, section: &str, list: &str, path: &str, name: &str) -> BTreeSet<String> {
    let sections = dump["configs"].as_array().into_iter().flatten();
    let of_type =
        sections.filter(|one| one["@type"].as_str().is_some_and(|kind| kind.ends_with(section)));
    let entries = of_type.flat_map(|one| one[list].as_array().into_iter().flatten());
    let named = entries.filter_map(|entry| entry.pointer(path)?.get(name)?.as_str());
    named.map(str::to_owned).collect()
}

fn around(text: &str, word: &str) -> String {
    let at = text.find(word).unwrap_or_default();
    text.chars().skip(text[..at].chars().count().saturating_sub(200)).take(1500).collect()
}

fn check(cases: &[(String, String)], protocol: Protocol) {
    if !privilege::with_envoy() {
        return;
    }
    let cluster = Cluster::builder().nodes(&["a"]).outside("oracle").without_mesh();
    let cluster = cluster.pod(PodSpec::new("oracle/envoy", "a")).dns_server("oracle/envoy");
    let cluster = cluster.start().unwrap();
    let pod = cluster.pod("oracle/envoy").unwrap();
    // Every name has an address: a cluster waits for its own.
    let _names = pod.dnsmasq(&["--address=/#/192.0.2.1"]).unwrap();
    let mut failures = String::new();
    for (case, gateway) in cases {
        let rig = Rig::start(pod, case, gateway, protocol);
        let settled = wait_for(&format!("{case}/{gateway}"), SETTLED, || rig.is_settled());
        if let Err(error) = settled.context("a stock Envoy") {
            failures += &format!("{error:#}\n");
        }
    }
    assert!(failures.is_empty(), "{failures}");
}

#[test]
fn a_stock_envoy_takes_every_recorded_case() {
    check(&recorded(), Protocol::Delta);
}

#[test]
fn a_stock_envoy_takes_a_recorded_case_by_state_of_the_world() {
    check(&[("05-waypoint-simple".to_owned(), "waypoint".to_owned())], Protocol::Sotw);
}
