//! Compiles what a real istiod was given, and compares with what it sent to each waypoint.
//!
//! A message is compared part by part: a listener by its chains and their filters. What is not equal is named with
//! the first places that differ, as paths in JSON. What is not equal yet stands in [`PENDING`], what is meant to
//! differ in [`DIFFERENCES`]; either fails when it is equal after all.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    fs,
    path::{Path, PathBuf},
};

use prost::{Message, Name};
use proto::{discovery::DeltaDiscoveryResponse, google::Any};
use serde_json::Value;

use super::{Client, Context, compile};
use crate::{
    compile::{MeshConfig, registry::Registry, world::World},
    manifests::{Folder, Manifests},
    proto_json,
};

mod expected;

use expected::{DIFFERENCES, PENDING};

/// A part that is not equal, by its case (`case/waypoint`) and name. `*` stands for anything.
struct Pending {
    case: &'static str,
    part: &'static str,
}

/// Where we differ from istiod on purpose.
struct Difference {
    case: &'static str,
    part: &'static str,
    #[expect(dead_code, reason = "for those who read the list")]
    reason: &'static str,
}

/// JSON of each part by its name.
type Parts = BTreeMap<String, Value>;

#[test]
fn istiod_sends_the_same_to_waypoints() {
    let mut differing = BTreeMap::new();
    for (case, waypoint) in recorded_waypoints() {
        let istiod = recorded(&case, &waypoint);
        let ours = ours(&case, &waypoint);
        let names: BTreeSet<_> = istiod.keys().chain(ours.keys()).cloned().collect();
        for name in names {
            let mut found = Vec::new();
            let missing = Value::String("nothing".into());
            let (theirs, ours) =
                (istiod.get(&name).unwrap_or(&missing), ours.get(&name).unwrap_or(&missing));
            differences("", theirs, ours, &mut found);
            if !found.is_empty() {
                differing.insert((format!("{case}/{waypoint}"), name), found);
            }
        }
    }
    let expected = |case: &str, part: &str| {
        PENDING
            .iter()
            .map(|one| (one.case, one.part))
            .chain(DIFFERENCES.iter().map(|one| (one.case, one.part)))
            .any(|(c, p)| is_like(c, case) && is_like(p, part))
    };
    let mut report = String::new();
    for ((case, part), found) in &differing {
        if !expected(case, part) {
            report += &format!("{case} {part}\n");
            for line in found.iter().take(4) {
                report += &format!("    {line}\n");
            }
        }
    }
    let all = PENDING.iter().map(|one| (one.case, one.part));
    for (case, part) in all.chain(DIFFERENCES.iter().map(|one| (one.case, one.part))) {
        if !differing.keys().any(|(c, p)| is_like(case, c) && is_like(part, p)) {
            report += &format!("equal, though expected to differ: {case} {part}\n");
        }
    }
    assert!(report.is_empty(), "{report}");
}

/// Every waypoint that was recorded: case and name.
fn recorded_waypoints() -> Vec<(String, String)> {
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

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/fixtures/istiod")
}

fn recorded(case: &str, waypoint: &str) -> Parts {
    let mut parts = Parts::new();
    for (kind, split) in [
        ("lds", split_listener as fn(&mut Parts, Value)),
        ("cds", |parts, value| put(parts, "cds", "name", value)),
        ("eds", |parts, value| put(parts, "eds", "cluster_name", value)),
        ("ecds", |parts, value| put(parts, "ecds", "name", value)),
    ] {
        let path = fixtures().join(case).join(format!("{waypoint}.{kind}.pb"));
        if kind == "ecds" && !path.exists() {
            continue;
        }
        for any in resources(&path) {
            split(&mut parts, json(&any));
        }
    }
    parts
}

fn resources(path: &Path) -> Vec<Any> {
    let bytes = fs::read(path).unwrap();
    let mut rest = bytes.as_slice();
    let mut resources = Vec::new();
    while !rest.is_empty() {
        let response = DeltaDiscoveryResponse::decode_length_delimited(&mut rest).unwrap();
        resources.extend(response.resources.into_iter().map(|resource| resource.resource.unwrap()));
    }
    resources
}

fn ours(case: &str, waypoint: &str) -> Parts {
    let (manifests, config) = load(case);
    let world = World::of(&manifests, &config);
    let client = client(&manifests, &world.registry, &config, waypoint);
    let context = Context::new(&manifests, &world, &client).unwrap();
    let compiled = compile(&context);
    let mut parts = Parts::new();
    for listener in &compiled.listeners {
        split_listener(&mut parts, json_of(listener));
    }
    for cluster in &compiled.clusters {
        put(&mut parts, "cds", "name", json_of(cluster));
    }
    for assignment in &compiled.assignments {
        put(&mut parts, "eds", "cluster_name", json_of(assignment));
    }
    for extension in &compiled.extension_configs {
        put(&mut parts, "ecds", "name", json_of(extension));
    }
    parts
}

fn load(case: &str) -> (Manifests, MeshConfig) {
    let mut folder = Folder::new(fixtures().join(case));
    folder.refresh(&HashSet::new()).unwrap();
    // What is wrong in them, on purpose, is left out, as an API server would have refused it.
    let (manifests, _) = folder.load("istio-system");
    let multi_network = case == "11-multinetwork";
    let config = MeshConfig { multi_network, ..MeshConfig::default() };
    let (config, _) = config.with_settings_of(&manifests);
    (manifests, config)
}

/// The first pod of a Gateway by that name, as it was recorded: with IPv4 only.
fn client(
    manifests: &Manifests,
    registry: &Registry,
    config: &MeshConfig,
    gateway: &str,
) -> Client {
    let of_gateway = |labels: &crate::manifests::Labels| {
        labels.get("gateway.networking.k8s.io/gateway-name").is_some_and(|name| name == gateway)
    };
    let pod = manifests.pods.iter().find(|pod| of_gateway(&pod.meta.labels)).unwrap();
    let mut client = Client {
        namespace: pod.meta.namespace.to_string(),
        name: pod.meta.name.to_string(),
        addresses: pod.spec.addresses.clone(),
        cluster_id: config.cluster_id.clone(),
        ..Client::default()
    };
    client.apply(pod, registry);
    client
}

fn put(parts: &mut Parts, kind: &str, key: &str, value: Value) {
    let name = value[key].as_str().unwrap().to_owned();
    let value = unordered(value);
    assert!(parts.insert(format!("{kind}/{name}"), value).is_none(), "{kind} {name} twice");
}

/// Endpoints within a locality come in no order when they are of several slices.
fn unordered(mut value: Value) -> Value {
    let localities = [value.pointer_mut("/endpoints").map(Value::take)];
    for mut localities in localities.into_iter().flatten() {
        for locality in localities.as_array_mut().into_iter().flatten() {
            if let Some(endpoints) = locality.get_mut("lb_endpoints").and_then(Value::as_array_mut)
            {
                endpoints.sort_by_key(ToString::to_string);
            }
        }
        value["endpoints"] = localities;
    }
    value
}

/// All of them must match: their order means nothing, and istiod's is that of a map.
fn sort_query_parameters(value: &mut Value) {
    match value {
        Value::Object(members) => {
            if let Some(Value::Array(all)) = members.get_mut("query_parameters") {
                all.sort_by_key(ToString::to_string);
            }
            members.values_mut().for_each(sort_query_parameters);
        }
        Value::Array(values) => values.iter_mut().for_each(sort_query_parameters),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn take(value: &mut Value, key: &str) -> Value {
    value.as_object_mut().and_then(|object| object.remove(key)).unwrap_or(Value::Null)
}

fn split_listener(parts: &mut Parts, mut listener: Value) {
    let name = format!("lds/{}", listener["name"].as_str().unwrap());
    let Value::Array(chains) = take(&mut listener, "filter_chains") else { panic!("no chains") };
    let mut names = Vec::new();
    for mut chain in chains {
        let chain_name = chain["name"].as_str().unwrap_or_default().to_owned();
        let Value::Array(filters) = take(&mut chain, "filters") else { panic!("no filters") };
        let mut filter_names = Vec::new();
        for filter in filters {
            let filter_name = filter["name"].as_str().unwrap().to_owned();
            split_filter(parts, &format!("{name}/{chain_name}/{filter_name}"), filter);
            filter_names.push(Value::String(filter_name));
        }
        chain["filters"] = Value::Array(filter_names);
        parts.insert(format!("{name}/{chain_name}"), chain);
        names.push(Value::String(chain_name));
    }
    parts.insert(format!("{name}/matcher"), take(&mut listener, "filter_chain_matcher"));
    parts.insert(format!("{name}/access_log"), take(&mut listener, "access_log"));
    listener["filter_chains"] = Value::Array(names);
    parts.insert(name, listener);
}

fn split_filter(parts: &mut Parts, name: &str, mut filter: Value) {
    let config = &mut filter["typed_config"];
    for part in ["access_log", "tracing", "route_config"] {
        let value = take(config, part);
        if !value.is_null() {
            let mut value = value;
            sort_query_parameters(&mut value);
            parts.insert(format!("{name}/{part}"), value);
        }
    }
    if let Value::Array(filters) = take(config, "http_filters") {
        let mut names = Vec::new();
        for filter in filters {
            let filter_name = filter["name"].clone();
            parts.insert(format!("{name}/{}", filter_name.as_str().unwrap()), filter);
            names.push(filter_name);
        }
        parts.insert(format!("{name}/http_filters"), Value::Array(names));
    }
    parts.insert(name.to_owned(), filter);
}

fn json_of<M: Message + Name>(message: &M) -> Value {
    json(&super::message::any(message))
}

fn json(any: &Any) -> Value {
    proto_json::from_any(any).unwrap()
}

/// The places in which two values differ: path, istiod's, ours.
fn differences(path: &str, istiod: &Value, ours: &Value, found: &mut Vec<String>) {
    match (istiod, ours) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: BTreeSet<_> = a.keys().chain(b.keys()).collect();
            for key in keys {
                let none = Value::Null;
                let (a, b) = (a.get(key).unwrap_or(&none), b.get(key).unwrap_or(&none));
                differences(&format!("{path}/{key}"), a, b, found);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (i, (a, b)) in a.iter().zip(b).enumerate() {
                differences(&format!("{path}/{i}"), a, b, found);
            }
        }
        (a, b) if a == b => {}
        (a, b) => found.push(format!("{path}: istiod {}, ours {}", short(a), short(b))),
    }
}

fn short(value: &Value) -> String {
    let text = value.to_string();
    if text.len() > 300 {
        format!("{}… ({} bytes)", text.chars().take(300).collect::<String>(), text.len())
    } else {
        text
    }
}

/// Whether a name is like a pattern, in which `*` stands for anything.
fn is_like(pattern: &str, name: &str) -> bool {
    let Some((before, after)) = pattern.split_once('*') else { return pattern == name };
    name.strip_prefix(before).is_some_and(|rest| {
        (0..=rest.len()).filter(|i| rest.is_char_boundary(*i)).any(|i| is_like(after, &rest[i..]))
    })
}
