//! What the daemon's dump must say of resources in istiod's JSON: an account of its own, that shares no code with the daemon.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use anyhow::{Result, ensure};
use serde_json::{Map, Value, json};

/// The resources by kind and key, each with the fields that the dump must have.
pub(crate) type Resources = BTreeMap<String, Value>;

/// What is expected of recorded addresses and policies.
pub(crate) fn expected(addresses: &Value, policies: &Value) -> Resources {
    let mut all = Resources::new();
    for value in addresses.as_object().unwrap().values() {
        if let Some(wire) = value.get("workload") {
            all.insert(format!("workload {}", text(wire, "uid", "")), workload(wire));
        } else {
            let wire = &value["service"];
            let key = format!("{}/{}", text(wire, "namespace", ""), text(wire, "hostname", ""));
            all.insert(format!("service {key}"), service(wire, &key, addresses));
        }
    }
    for (key, wire) in policies.as_object().unwrap() {
        all.insert(format!("policy {key}"), policy(wire));
    }
    all
}

/// Fails with the first difference between what is expected and what the dump has.
pub(crate) fn missing(expected: &Resources, dump: &Value) -> Result<()> {
    let mut found = Resources::new();
    let list = |name: &str| dump[name].as_array().cloned().unwrap_or_default();
    for one in list("workloads") {
        found.insert(format!("workload {}", text(&one, "uid", "")), one);
    }
    for one in list("services") {
        let key = format!("{}/{}", text(&one, "namespace", ""), text(&one, "hostname", ""));
        found.insert(format!("service {key}"), one);
    }
    for one in list("policies") {
        let key = format!("{}/{}", text(&one, "namespace", ""), text(&one, "name", ""));
        found.insert(format!("policy {key}"), one);
    }
    for (key, wanted) in expected {
        let Some(one) = found.get(key) else { anyhow::bail!("the dump has no {key}") };
        for (field, value) in wanted.as_object().unwrap() {
            let shown = one.get(field).cloned().unwrap_or(Value::Null);
            ensure!(shown == *value, "{key}: {field} is {shown}, expected {value}");
        }
    }
    let surplus = found.keys().find(|key| !expected.contains_key(*key));
    ensure!(surplus.is_none(), "the dump has {surplus:?}, which was not sent");
    Ok(())
}

fn workload(wire: &Value) -> Value {
    let mut services: Vec<String> = keys(wire, "services");
    services.sort();
    let ips: Vec<String> =
        list(wire, "addresses").iter().map(|one| ip(one.as_str().unwrap()).to_string()).collect();
    let tunnel = wire.get("application_tunnel").map(|tunnel| {
        let mut shown = json!({ "protocol": text(tunnel, "protocol", "NONE") });
        if let Some(port) = tunnel.get("port") {
            shown["port"] = port.clone();
        }
        shown
    });
    json!({
        "uid": text(wire, "uid", ""),
        "name": text(wire, "name", ""),
        "namespace": text(wire, "namespace", ""),
        "workloadIps": ips,
        "network": optional(wire, "network"),
        "protocol": match text(wire, "tunnel_protocol", "NONE").as_str() { "HBONE" => "HBONE", _ => "TCP" },
        "trustDomain": text(wire, "trust_domain", "cluster.local"),
        "serviceAccount": text(wire, "service_account", "default"),
        "waypoint": gateway(wire.get("waypoint")),
        "networkGateway": gateway(wire.get("network_gateway")),
        "node": optional(wire, "node"),
        "canonicalName": optional(wire, "canonical_name"),
        "canonicalRevision": optional(wire, "canonical_revision"),
        "workloadType": text(wire, "workload_type", "DEPLOYMENT").to_lowercase(),
        "workloadName": optional(wire, "workload_name"),
        "nativeTunnel": wire.get("native_tunnel").cloned().unwrap_or(Value::Null),
        "applicationTunnel": tunnel,
        "authorizationPolicies": wire.get("authorization_policies").cloned().unwrap_or(Value::Null),
        "status": match text(wire, "status", "HEALTHY").as_str() { "HEALTHY" => "Healthy", _ => "Unhealthy" },
        "clusterId": text(wire, "cluster_id", "Kubernetes"),
        "hostname": optional(wire, "hostname"),
        "locality": wire.get("locality").cloned().unwrap_or(Value::Null),
        "networkMode": match text(wire, "network_mode", "STANDARD").as_str() { "STANDARD" => "Standard", _ => "HostNetwork" },
        "services": if services.is_empty() { Value::Null } else { json!(services) },
        "capacity": wire.get("capacity").cloned().unwrap_or(json!(1)),
    })
}

fn service(wire: &Value, key: &str, addresses: &Value) -> Value {
    let (mut vips, mut cidrs) = (Vec::new(), Vec::new());
    for address in list(wire, "addresses") {
        let (network, ip) = (text(&address, "network", ""), ip(&text(&address, "address", "")));
        match address.get("length").and_then(Value::as_u64) {
            Some(length) if length != (if ip.is_ipv4() { 32 } else { 128 }) => {
                cidrs.push(json!({ "network": network, "cidr": format!("{ip}/{length}") }));
            }
            Some(_) | None => vips.push(json!(format!("{network}/{ip}"))),
        }
    }
    let mut endpoints = Map::new();
    for value in addresses.as_object().unwrap().values() {
        let Some(one) = value.get("workload") else { continue };
        let Some(member) = one.get("services").and_then(|services| services.get(key)) else {
            continue;
        };
        let uid = text(one, "uid", "");
        let status =
            if text(one, "status", "HEALTHY") == "HEALTHY" { "Healthy" } else { "Unhealthy" };
        let shown = json!({ "workloadUid": uid, "port": ports(member), "status": status });
        endpoints.insert(uid, shown);
    }
    let balancing = wire.get("load_balancing").map(|balancing| {
        let scopes: Vec<Value> = list(balancing, "routing_preference")
            .iter()
            .map(|one| json!(pascal(one.as_str().unwrap())))
            .collect();
        let mode = match text(balancing, "mode", "UNSPECIFIED_MODE").as_str() {
            "UNSPECIFIED_MODE" => "Standard".to_owned(),
            other => pascal(other),
        };
        let health = pascal(&text(balancing, "health_policy", "ONLY_HEALTHY"));
        json!({ "routingPreferences": scopes, "mode": mode, "healthPolicy": health })
    });
    let plain =
        json!({ "routingPreferences": [], "mode": "Standard", "healthPolicy": "OnlyHealthy" });
    json!({
        "name": text(wire, "name", ""),
        "namespace": text(wire, "namespace", ""),
        "hostname": text(wire, "hostname", ""),
        "vips": vips,
        "cidrVips": if cidrs.is_empty() { Value::Null } else { json!(cidrs) },
        "ports": ports(wire),
        "endpoints": endpoints,
        "subjectAltNames": list(wire, "subject_alt_names"),
        "waypoint": gateway(wire.get("waypoint")),
        "loadBalancer": balancing.filter(|shown| *shown != plain),
        "ipFamilies": match text(wire, "ip_families", "").as_str() {
            "IPV4_ONLY" => json!("IPv4"),
            "IPV6_ONLY" => json!("IPv6"),
            _ => Value::Null,
        },
        "canonical": wire.get("canonical").cloned().unwrap_or(Value::Null),
        "visibility": pascal(&text(wire, "visibility", "PUBLIC")),
    })
}

fn policy(wire: &Value) -> Value {
    let rules: Vec<Value> = list(wire, "groups")
        .iter()
        .map(|rule| {
            let clauses = list(rule, "rules");
            let matches = clauses.iter().map(|clause| {
                Value::Array(list(clause, "matches").iter().map(policy_match).collect())
            });
            Value::Array(matches.collect())
        })
        .collect();
    json!({
        "name": text(wire, "name", ""),
        "namespace": text(wire, "namespace", ""),
        "scope": pascal(&text(wire, "scope", "GLOBAL")),
        "action": pascal(&text(wire, "action", "ALLOW")),
        "rules": rules,
        "dryRun": false,
    })
}

fn policy_match(wire: &Value) -> Value {
    let mut shown = Map::new();
    for (field, values) in wire.as_object().unwrap() {
        let values = values.as_array().unwrap().iter().map(|value| match field.as_str() {
            "destination_ports" | "not_destination_ports" => value.clone(),
            "service_accounts" | "not_service_accounts" => json!({
                "namespace": text(value, "namespace", ""),
                "serviceAccount": text(value, "serviceAccount", ""),
            }),
            "source_ips" | "not_source_ips" | "destination_ips" | "not_destination_ips" => {
                let length = value.get("length").and_then(Value::as_u64).unwrap_or(0);
                json!(format!("{}/{length}", ip(&text(value, "address", ""))))
            }
            _ => {
                let (kind, text) = value.as_object().unwrap().iter().next().unwrap();
                let text = if kind == "presence" { json!([]) } else { text.clone() };
                json!({ pascal(kind): text })
            }
        });
        shown.insert(camel(field), values.collect());
    }
    Value::Object(shown)
}

fn gateway(wire: Option<&Value>) -> Value {
    let Some(wire) = wire else { return Value::Null };
    let destination = match (wire.get("hostname"), wire.get("address")) {
        (Some(host), _) => {
            format!("{}/{}", text(host, "namespace", ""), text(host, "hostname", ""))
        }
        (None, Some(one)) => {
            format!("{}/{}", text(one, "network", ""), ip(&text(one, "address", "")))
        }
        (None, None) => panic!("{wire} names nothing"),
    };
    let port = wire.get("hbone_mtls_port").cloned().unwrap_or(json!(15008));
    json!({ "destination": destination, "hboneMtlsPort": port })
}

fn ports(wire: &Value) -> Value {
    let number = |port: &Value, field| port.get(field).and_then(Value::as_u64).unwrap_or(0);
    let ports = list(wire, "ports");
    let shown = ports
        .iter()
        .map(|port| (number(port, "service_port").to_string(), json!(number(port, "target_port"))));
    Value::Object(shown.collect())
}

fn text(wire: &Value, field: &str, default: &str) -> String {
    wire.get(field).and_then(Value::as_str).unwrap_or(default).to_owned()
}

fn optional(wire: &Value, field: &str) -> Value {
    wire.get(field).cloned().unwrap_or(Value::Null)
}

fn list(wire: &Value, field: &str) -> Vec<Value> {
    wire.get(field).and_then(Value::as_array).cloned().unwrap_or_default()
}

fn keys(wire: &Value, field: &str) -> Vec<String> {
    wire.get(field).and_then(Value::as_object).into_iter().flat_map(Map::keys).cloned().collect()
}

/// `ONLY_HEALTHY` as `OnlyHealthy`.
fn pascal(word: &str) -> String {
    let capital = |part: &str| part[..1].to_uppercase() + &part[1..].to_lowercase();
    word.split('_').map(capital).collect()
}

/// `not_source_ips` as `notSourceIps`.
fn camel(word: &str) -> String {
    let pascal = pascal(word);
    pascal[..1].to_lowercase() + &pascal[1..]
}

/// An address of 4 or 16 bytes in base64.
fn ip(base64: &str) -> IpAddr {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => u32::from(byte - b'A'),
        b'a'..=b'z' => u32::from(byte - b'a') + 26,
        b'0'..=b'9' => u32::from(byte - b'0') + 52,
        b'+' => 62,
        _ => 63,
    };
    let digits: Vec<u32> = base64.trim_end_matches('=').bytes().map(digit).collect();
    let mut bytes = Vec::new();
    for part in digits.chunks(4) {
        let number = (0..4).fold(0, |number, at| number << 6 | part.get(at).copied().unwrap_or(0));
        bytes.extend(&number.to_be_bytes()[1..part.len()]);
    }
    match <[u8; 4]>::try_from(&bytes[..]) {
        Ok(v4) => Ipv4Addr::from(v4).into(),
        Err(_) => Ipv6Addr::from(<[u8; 16]>::try_from(&bytes[..]).unwrap()).into(),
    }
}
