//! Policies that a pod's record names before they have come, that never come, and that come and cannot be understood.
//!
//! The control plane is a folder that is played to the daemon of node a, which serves `shop/near` and `data/batch`. The
//! stranger, who has no identity, connects to them in the clear.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use testbed::{Pod, Process, wait_for};

use crate::{
    replayed::{Replayed, base64, workload_of, write},
    shop::{IN_FORCE, Shop},
};

const ADDRESSES: &str = "ztunnel.address.json";
const POLICIES: &str = "ztunnel.authorization.json";
/// How long a missing policy is waited for.
const LIMIT: Duration = Duration::from_secs(2);

/// The shop under a control plane that plays what a test writes.
struct Played {
    shop: Shop,
    replayed: Replayed,
}

impl Played {
    fn open(name: &str) -> Option<Self> {
        let mut shop = Shop::open()?;
        shop.serve("data/batch");
        let files = [(ADDRESSES, addresses(&shop, &[])), (POLICIES, json!({}))];
        let replayed = Replayed::start(&mut shop.cluster, name, &files, &[], &[]).unwrap();
        for path in ["shop/near", "data/batch"] {
            replayed.daemon.register(shop.pod(path)).unwrap();
        }
        let played = Self { shop, replayed };
        for path in ["shop/near", "data/batch"] {
            wait_for(path, IN_FORCE, || played.attempt(path)).unwrap();
        }
        Some(played)
    }

    /// Plays a record of `shop/near` that names `policies`, and waits until it is in force.
    fn name(&self, policies: &[&str]) -> Instant {
        let before = Instant::now();
        self.write(ADDRESSES, addresses(&self.shop, policies));
        wait_for("the record", IN_FORCE, || {
            let dump = self.replayed.daemon.config_dump()?;
            let workloads = dump["workloads"].as_array().cloned().unwrap_or_default();
            let near = workloads.iter().find(|one| one["name"] == "near").cloned();
            let named = near.unwrap_or_default()["authorizationPolicies"].clone();
            let expected = if policies.is_empty() { Value::Null } else { json!(policies) };
            ensure!(named == expected, "it names {named}");
            Ok(())
        })
        .unwrap();
        before
    }

    fn write(&self, file: &'static str, content: Value) {
        write(&self.replayed.folder, &[(file, content)]).unwrap();
    }

    fn address(&self, path: &str) -> String {
        format!("{}:7000", self.shop.pod(path).ip4())
    }

    fn attempt(&self, path: &str) -> Result<()> {
        self.shop.attempt("street/stranger", &self.address(path))
    }

    /// A connection of the stranger's to `shop/near`, which is established with the daemon and wants one answer.
    fn connect(&self) -> Process {
        let load = testbed::binaries::ours("load").unwrap().display().to_string();
        let to = self.address("shop/near");
        let words = [&load, "rr", "--seconds", "0", "--to", &to];
        let mut client = self.stranger().spawn("waiting", &words).unwrap();
        wait_for("the connection", IN_FORCE, || {
            client.check_running()?;
            let listed = ["ss", "-Htn", "state", "established", "dst", &to];
            ensure!(!self.stranger().ask(&listed)?.is_empty(), "it is not there");
            Ok(())
        })
        .unwrap();
        client
    }

    fn stranger(&self) -> &Pod {
        self.shop.pod("street/stranger")
    }

    fn denials(&self, reason: &str) -> f64 {
        let labels = format!("reason=\"{reason}\"");
        self.replayed.daemon.metric("aquifer_denials_total", &[&labels]).unwrap()
    }
}

/// Who is on node a, `shop/near` with names of policies.
fn addresses(shop: &Shop, policies: &[&str]) -> Value {
    let mut near = workload_of(shop.pod("shop/near"));
    near["workload"]["authorization_policies"] = json!(policies);
    json!({ "near": near, "batch": workload_of(shop.pod("data/batch")) })
}

/// A policy that allows, or does not deny, what matches `rule`.
fn policy(name: &str, action: &str, scope: &str, rule: &Value) -> Value {
    json!({
        "@type": "type.googleapis.com/istio.security.Authorization",
        "name": name, "namespace": "shop", "action": action, "scope": scope,
        "groups": [{ "rules": [{ "matches": [rule] }] }],
    })
}

/// Waits for a client's end: whether it got its answer.
fn outcome(client: &mut Process) -> bool {
    let report = wait_for("the client's end", IN_FORCE, || {
        ensure!(client.check_running().is_err(), "it waits");
        client.log()
    })
    .unwrap();
    report.contains("\"errors\":0")
}

#[test]
fn a_connection_is_held_until_a_policy_that_is_named_before_it_comes_has_come() {
    let Some(played) = Played::open("late") else { return };
    played.name(&["shop/late"]);
    let mut client = played.connect();
    // For half a second nothing is decided: the client has its connection, and neither an answer nor an end.
    std::thread::sleep(Duration::from_millis(500));
    client.check_running().unwrap();
    let everyone = json!({ "destination_ports": [7000] });
    let late = policy("late", "ALLOW", "WORKLOAD_SELECTOR", &everyone);
    played.write(POLICIES, json!({ "shop/late": late }));
    assert!(outcome(&mut client), "{}", client.log().unwrap());
    assert_eq!(played.denials("policy_missing"), 0.0);
    played.attempt("shop/near").unwrap();
}

#[test]
fn a_policy_that_was_waited_for_denies_whom_it_denies() {
    let Some(played) = Played::open("denies") else { return };
    played.name(&["shop/late"]);
    let mut client = played.connect();
    let everyone = json!({ "destination_ports": [7000] });
    let late = policy("late", "DENY", "WORKLOAD_SELECTOR", &everyone);
    played.write(POLICIES, json!({ "shop/late": late }));
    assert!(!outcome(&mut client), "{}", client.log().unwrap());
    assert_eq!((played.denials("policy_missing"), played.denials("policy_deny")), (0.0, 1.0));
}

#[test]
fn a_policy_that_is_named_and_does_not_come_denies_after_two_seconds() {
    let Some(played) = Played::open("never") else { return };
    let named = played.name(&["shop/never"]);
    let mut client = played.connect();
    assert!(!outcome(&mut client), "{}", client.log().unwrap());
    assert!(named.elapsed() >= LIMIT, "{:?}", named.elapsed());
    wait_for("the daemon's word for it", IN_FORCE, || {
        let log = played.replayed.daemon.log()?;
        let told = |line: &str| line.contains("policy_missing") && line.contains("shop/never");
        ensure!(log.lines().any(told), "{log}");
        Ok(())
    })
    .unwrap();
    assert_eq!(played.denials("policy_missing"), 1.0);
    // It has had its time: nobody is held any more, and nobody else is concerned.
    let began = Instant::now();
    played.attempt("shop/near").unwrap_err();
    assert!(began.elapsed() < LIMIT, "{:?}", began.elapsed());
    played.attempt("data/batch").unwrap();
    // It comes after all, or is not named any more.
    let everyone = json!({ "destination_ports": [7000] });
    let never = policy("never", "ALLOW", "WORKLOAD_SELECTOR", &everyone);
    played.write(POLICIES, json!({ "shop/never": never }));
    wait_for("the policy", IN_FORCE, || played.attempt("shop/near")).unwrap();
    played.write(POLICIES, json!({}));
    wait_for("its removal", IN_FORCE, || {
        ensure!(played.attempt("shop/near").is_err(), "it is served");
        Ok(())
    })
    .unwrap();
    played.name(&[]);
    played.attempt("shop/near").unwrap();
}

#[test]
fn a_policy_that_cannot_be_understood_denies_where_it_would_apply_and_is_named_everywhere() {
    let Some(played) = Played::open("misunderstood") else { return };
    let bad = json!({ "source_ips": [{ "address": "CgAA", "length": 8 }] });
    let field = "rules[0].clauses[0].matches[0].source_ips[0]";
    let rejected = || {
        let dump = played.replayed.daemon.config_dump().unwrap();
        dump["xds"]["authorization"]["rejected"].clone()
    };
    // A whole namespace; then one workload, which names it.
    for (scope, name, named) in
        [("NAMESPACE", "wide", &[][..]), ("WORKLOAD_SELECTOR", "narrow", &["shop/narrow"])]
    {
        let key = format!("shop/{name}");
        let play = |rule: &Value| {
            played.write(POLICIES, json!({ &key: policy(name, "ALLOW", scope, rule) }));
        };
        let before = played.denials("policy_invalid");
        play(&bad);
        wait_for("the rejection", IN_FORCE, || {
            ensure!(rejected()[0]["name"] == key.as_str(), "{}", rejected());
            Ok(())
        })
        .unwrap();
        played.name(named);
        played.attempt("shop/near").unwrap_err();
        played.attempt("data/batch").unwrap();
        wait_for("the denial to be counted", IN_FORCE, || {
            ensure!(played.denials("policy_invalid") > before, "it is not");
            Ok(())
        })
        .unwrap();
        let told = rejected()[0].clone();
        assert_eq!(told["field"], field, "{told}");
        let reason = told["reason"].as_str().unwrap().to_owned();
        let nack = format!("{key}: {field}: {reason}");
        let said = played.replayed.replay.log().unwrap();
        assert!(said.lines().any(|line| line.contains(" NACK ") && line.contains(&nack)), "{said}");
        let log = played.replayed.daemon.log().unwrap();
        for words in [[&*key, field, &*reason], [&*key, "policy_invalid", "dst.addr="]] {
            let told = |line: &str| words.iter().all(|word| line.contains(word));
            assert!(log.lines().any(told), "{words:?} in {log}");
        }

        // The same policy, with the stranger's address whole. From then on a bad version does not take its place.
        let stranger = base64(&played.stranger().ip4().octets());
        play(&json!({ "source_ips": [{ "address": stranger, "length": 32 }] }));
        wait_for("the good one", IN_FORCE, || played.attempt("shop/near")).unwrap();
        assert_eq!(rejected(), json!([]));
        play(&bad);
        wait_for("the rejection", IN_FORCE, || {
            ensure!(rejected()[0]["name"] == key.as_str(), "{}", rejected());
            Ok(())
        })
        .unwrap();
        played.attempt("shop/near").unwrap();
        played.write(POLICIES, json!({}));
        wait_for("its removal", IN_FORCE, || {
            ensure!(rejected() == json!([]), "{}", rejected());
            Ok(())
        })
        .unwrap();
    }
}
