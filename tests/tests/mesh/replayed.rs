//! The daemon under a control plane that plays what a real istiod sent, or what a test has written.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use testbed::{Cluster, Daemon, Pod, Process, binaries, daemon::DaemonConfig, wait_for};

use crate::{
    recorded::{expected, missing},
    shop::{IN_FORCE, Shop},
};

pub(crate) const ADDRESS: &str = "type.googleapis.com/istio.workload.Address";

/// A daemon on node a of a cluster, and the folder that is played to it.
pub(crate) struct Replayed {
    pub(crate) folder: PathBuf,
    pub(crate) replay: Process,
    pub(crate) daemon: Daemon,
}

impl Replayed {
    /// Takes the place of the daemon of node a.
    pub(crate) fn start(
        cluster: &mut Cluster,
        name: &str,
        files: &[(&str, Value)],
        options: &[&str],
        variables: &[(&str, &str)],
    ) -> Result<Self> {
        let place = cluster.daemon("a")?.place().clone();
        let pin_dir = cluster.daemon("a")?.pin_dir().to_owned();
        cluster.daemon_mut("a")?.kill()?;
        let folder = cluster.plan().dir().join(name);
        fs::create_dir_all(&folder)?;
        write(&folder, files)?;
        let binary = binaries::ours("meshctl")?.display().to_string();
        let path = folder.display().to_string();
        let mut words =
            vec![binary.as_str(), "replay", path.as_str(), "--listen", "127.0.0.1:15010"];
        words.extend(options);
        let mut replay = place.spawn(&format!("{name}-replay"), &words, &[])?;
        replay.wait_listening(15010)?;
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).into()));
        let config = DaemonConfig {
            binary: binaries::ours("ztunnel")?,
            node_name: "node-a".to_owned(),
            control_url: "http://127.0.0.1:15010".to_owned(),
            root_certificate: "/nonexistent/root-cert.pem".into(),
            token: "/nonexistent/token".into(),
            pin_dir,
            state_dir: folder.join("state"),
            variables: variables.collect(),
        };
        let daemon = Daemon::start(config, place)?;
        Ok(Self { folder, replay, daemon })
    }
}

/// Puts files in place of what is played, each at once.
pub(crate) fn write(folder: &Path, files: &[(&str, Value)]) -> Result<()> {
    for (name, content) in files {
        fs::write(folder.join("next"), format!("{content:#}"))?;
        fs::rename(folder.join("next"), folder.join(name))?;
    }
    Ok(())
}

fn recorded(case: &Path) -> Result<Vec<(&'static str, Value)>> {
    let read = |name: &'static str| -> Result<(&'static str, Value)> {
        let path = case.join(name);
        let text = fs::read(&path).with_context(|| path.display().to_string())?;
        Ok((name, serde_json::from_slice(&text)?))
    };
    // Policies first: a workload must not name one that is not there yet.
    Ok(vec![read("ztunnel.authorization.json")?, read("ztunnel.address.json")?])
}

fn cases() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/fixtures/istiod");
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut cases: Vec<PathBuf> = entries.filter(|path| path.is_dir()).collect();
    cases.sort();
    cases
}

#[test]
fn the_dump_holds_every_resource_that_a_real_istiod_sent_with_all_its_fields() {
    let Some(shop) = Shop::open() else { return };
    let mut cluster = shop.cluster;
    let cases = cases();
    assert_eq!(cases.len(), 12);
    let first = recorded(&cases[0]).unwrap();
    let replayed = Replayed::start(&mut cluster, "recorded", &first, &[], &[]).unwrap();
    for case in &cases {
        let files = recorded(case).unwrap();
        write(&replayed.folder, &files).unwrap();
        let wanted = expected(&files[1].1, &files[0].1);
        wait_for(&format!("the resources of {}", case.display()), IN_FORCE, || {
            missing(&wanted, &replayed.daemon.config_dump()?)
        })
        .unwrap();
    }
    let said = replayed.replay.log().unwrap();
    assert!(said.contains(" ACK ") && !said.contains(" NACK "), "{said}");
}

/// What a control plane says of a pod, without a tunnel: it is reached in the clear.
pub(crate) fn workload_of(pod: &Pod) -> Value {
    let spec = pod.spec();
    json!({ "@type": ADDRESS, "workload": {
        "uid": spec.name, "name": spec.name, "namespace": spec.namespace, "node": pod.node_name(),
        "service_account": spec.service_account, "addresses": [base64(&pod.ip4().octets())],
    } })
}

fn workload(uid: &str, address: &str) -> Value {
    json!({ "@type": ADDRESS, "workload": { "uid": uid, "name": uid, "namespace": "shop", "addresses": [address] } })
}

#[test]
fn a_bad_resource_is_rejected_by_name_field_and_reason_and_the_others_apply() {
    let Some(shop) = Shop::open() else { return };
    let mut cluster = shop.cluster;
    let files = [(
        "ztunnel.address.json",
        json!({ "good": workload("good", "CgAAAQ=="), "bad": workload("bad", "CgAA"), "fine": workload("fine", "CgAAAg==") }),
    )];
    let options = ["--until-acked"];
    let mut replayed = Replayed::start(&mut cluster, "rejected", &files, &options, &[]).unwrap();
    let reason = "an address has 4 or 16 bytes, found 3";
    let dump = replayed.daemon.config_dump().unwrap();
    let uids: Vec<&str> = dump["workloads"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|one| one["uid"].as_str())
        .collect();
    assert_eq!(uids, ["fine", "good"]);
    let rejected = json!([{ "name": "bad", "field": "addresses[0]", "reason": reason }]);
    assert_eq!(dump["xds"]["address"]["rejected"], rejected);
    let url = format!("url=\"{ADDRESS}\"");
    let count = replayed.daemon.metric("aquifer_xds_rejected_resources", &[&url]).unwrap();
    assert!((count - 1.0).abs() < f64::EPSILON, "{count}");
    let ended = wait_for("the replay to end", IN_FORCE, || {
        ensure!(replayed.replay.check_running().is_err(), "it runs");
        replayed.replay.log()
    })
    .unwrap();
    assert!(ended.contains(&format!("NACK nonce-2: bad: addresses[0]: {reason}")), "{ended}");
}

#[test]
fn an_on_demand_daemon_asks_for_what_its_pods_connect_to() {
    let Some(shop) = Shop::open() else { return };
    let (near, cart) = (shop.pod("shop/near").ip4(), shop.pod("shop/cart").ip4());
    let web = shop.pod("shop/web").clone();
    let mut cluster = shop.cluster;
    let plain = |name: &str, node: &str, ip: std::net::Ipv4Addr, account: &str| {
        json!({ "@type": ADDRESS, "workload": {
            "uid": name, "name": name, "namespace": "shop", "node": node, "service_account": account,
            "addresses": [base64(&ip.octets())],
        } })
    };
    let account = web.registration()["serviceAccount"].as_str().unwrap().to_owned();
    let files = [(
        "ztunnel.address.json",
        json!({
            "web": plain("web", "node-a", web.ip4(), &account),
            "cart": plain("cart", "node-b", cart, "cart"),
            "other": plain("other", "node-b", std::net::Ipv4Addr::new(10, 9, 9, 9), "cart"),
        }),
    )];
    let variables = [("XDS_ON_DEMAND", "true")];
    let replayed = Replayed::start(&mut cluster, "on-demand", &files, &[], &variables).unwrap();
    replayed.daemon.register(&web).unwrap();
    let held = || -> Vec<String> {
        let dump = replayed.daemon.config_dump().unwrap();
        let workloads = dump["workloads"].as_array().unwrap().iter();
        workloads.map(|one| one["uid"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(held(), ["web"], "what runs on the node comes unasked");

    let attempt = |ip: std::net::Ipv4Addr| {
        let report = web.load("rr", &format!("{ip}:7000"), &["--seconds", "0"]).unwrap();
        assert_eq!(report.errors, 0, "{:?}", report.first_error);
    };
    attempt(cart);
    assert_eq!(held(), ["cart", "web"]);
    attempt(near);
    assert_eq!(held(), ["cart", "web"], "there is nothing at {near}");
    attempt(cart);
    let said = replayed.replay.log().unwrap();
    let asked: Vec<&str> = said
        .lines()
        .filter_map(|line| line.split_once("address: asked for "))
        .map(|(_, name)| name)
        .collect();
    assert_eq!(asked, [format!("/{cart}"), format!("/{near}")], "{said}");
}

#[test]
fn local_configuration_is_served_without_a_control_plane_and_followed() {
    let Some(shop) = Shop::open() else { return };
    let mut cluster = shop.cluster;
    let path = cluster.plan().dir().join("local.yaml");
    fs::write(&path, "workloads: [{ uid: a, workloadIps: [10.0.0.1] }]").unwrap();
    let place = cluster.daemon("a").unwrap().place().clone();
    let pin_dir = cluster.daemon("a").unwrap().pin_dir().to_owned();
    cluster.daemon_mut("a").unwrap().kill().unwrap();
    let config = DaemonConfig {
        binary: binaries::ours("ztunnel").unwrap(),
        node_name: "node-a".to_owned(),
        control_url: String::new(),
        root_certificate: "/nonexistent/root-cert.pem".into(),
        token: "/nonexistent/token".into(),
        pin_dir,
        state_dir: cluster.plan().dir().join("local-state"),
        variables: vec![("LOCAL_XDS_PATH".to_owned(), path.clone().into())],
    };
    let daemon = Daemon::start(config, place).unwrap();
    let uids = || -> Result<Value> {
        let dump = daemon.config_dump()?;
        Ok(dump["workloads"]
            .as_array()
            .context("workloads")?
            .iter()
            .map(|one| one["uid"].clone())
            .collect())
    };
    assert_eq!(uids().unwrap(), json!(["a"]));
    let change = |text: &str, wanted: Value| {
        fs::write(path.with_extension("next"), text).unwrap();
        fs::rename(path.with_extension("next"), &path).unwrap();
        wait_for("the file to be read", Duration::from_secs(10), || {
            let found = uids()?;
            ensure!(found == wanted, "{found}");
            Ok(())
        })
        .unwrap();
    };
    change("workloads: [{ uid: b }, { uid: c }]", json!(["b", "c"]));
    change("workloads: [{ uid: b, hostname: x }]", json!(["b"]));
    fs::write(&path, "workloads: [{ uid: b, wrong: 1 }]").unwrap();
    wait_for("the fault to be told", IN_FORCE, || {
        let log = daemon.log()?;
        ensure!(log.contains("workloads[0]: unknown field `wrong`"), "{log}");
        Ok(())
    })
    .unwrap();
    assert_eq!(uids().unwrap(), json!(["b"]), "the last good state stays");
}

pub(crate) fn base64(bytes: &[u8; 4]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let number = bytes.iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte)) << 4;
    let digit = |place: u32| DIGITS[usize::try_from(number >> (6 * place) & 63).unwrap()];
    let digits: Vec<u8> = (0..6).rev().map(digit).collect();
    format!("{}==", String::from_utf8(digits).unwrap())
}
