//! What the clients of a running pilot have.
//!
//! In: the URL of its debug port, and the resources that may be applied, which tell which pods are waypoints'. Out: the
//! resources of one daemon, and of the first pod of each waypoint that is connected.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, ensure};
use pilot::manifests::Manifests;
use serde_json::Value;

use super::Sent;
use crate::ask;

/// Asks pilot for its clients, and for what they have.
pub(super) async fn all(
    url: &str,
    manifests: &Manifests,
) -> anyhow::Result<BTreeMap<String, Sent>> {
    let clients = ask::get(url, "/debug/syncz").await?;
    let clients = clients.as_array().context("the answer is no list of clients")?;
    let named = |client: &Value| client["proxy"].as_str().map(str::to_owned);
    let is_daemon = |client: &&Value| client["proxy_type"] == "ztunnel";
    let mut asked = BTreeMap::new();
    if let Some(proxy) = clients.iter().find(is_daemon).and_then(named) {
        asked.insert("ztunnel".to_owned(), proxy);
    }
    let connected: BTreeSet<String> = clients.iter().filter_map(named).collect();
    for (client, pod) in super::waypoints(manifests) {
        let proxy = format!("{}.{}", pod.name, pod.namespace);
        if connected.contains(&proxy) {
            asked.insert(client.to_string(), proxy);
        }
    }
    ensure!(!asked.is_empty(), "{url}: neither a daemon nor a waypoint of the folder is connected");
    let mut all = BTreeMap::new();
    for (client, proxy) in asked {
        let page = format!("/debug/config_dump?proxy={}", ask::escaped(&proxy));
        all.insert(client, resources(&ask::get(url, &page).await?));
    }
    Ok(all)
}

/// The resources of one client's dump, in the form of Envoy's own, or of a daemon's.
fn resources(dump: &Value) -> Sent {
    let mut sent = Sent::new();
    for section in dump["configs"].as_array().into_iter().flatten() {
        let kind = section["@type"].as_str().unwrap_or_default();
        let (of, list, inner) = match kind.rsplit('.').next().unwrap_or_default() {
            "ClustersConfigDump" => ("cluster", "dynamic_active_clusters", "/cluster"),
            "ListenersConfigDump" => ("listener", "dynamic_listeners", "/active_state/listener"),
            "EndpointsConfigDump" => ("endpoint", "dynamic_endpoint_configs", "/endpoint_config"),
            "EcdsConfigDump" => ("extension", "ecds_filters", "/ecds_filter"),
            "Address" => ("address", "resources", ""),
            "Authorization" => ("authorization", "resources", ""),
            _ => continue,
        };
        for entry in section[list].as_array().into_iter().flatten() {
            if let Some(resource) = entry.pointer(inner) {
                sent.insert((of, name(of, resource)), resource.clone());
            }
        }
    }
    sent
}

/// What it is called in xDS.
fn name(of: &str, resource: &Value) -> String {
    let text = |path: &str| resource.pointer(path).and_then(Value::as_str).unwrap_or_default();
    match of {
        "endpoint" => text("/cluster_name").to_owned(),
        "authorization" => format!("{}/{}", text("/namespace"), text("/name")),
        "address" => match text("/workload/uid") {
            "" => format!("{}/{}", text("/service/namespace"), text("/service/hostname")),
            uid => uid.to_owned(),
        },
        _ => text("/name").to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn resources_of_a_dump_have_the_names_of_xds() {
        let dump = json!({"configs": [
            {"@type": "type.googleapis.com/istio.workload.Address", "resources": [
                {"workload": {"uid": "u"}},
                {"service": {"namespace": "shop", "hostname": "web"}},
            ]},
            {"@type": "type.googleapis.com/istio.security.Authorization", "resources": [
                {"namespace": "shop", "name": "p"},
            ]},
            {"@type": "type.googleapis.com/envoy.admin.v3.EndpointsConfigDump",
                "dynamic_endpoint_configs": [{"endpoint_config": {"cluster_name": "c"}}]},
            {"@type": "type.googleapis.com/envoy.admin.v3.ListenersConfigDump",
                "dynamic_listeners": [{"name": "l", "active_state": {"listener": {"name": "l"}}}]},
            {"@type": "type.googleapis.com/envoy.admin.v3.SecretsConfigDump",
                "dynamic_active_secrets": [{"name": "s"}]},
        ]});
        let names: Vec<_> = resources(&dump).into_keys().collect();
        let expected = [
            ("address", "shop/web"),
            ("address", "u"),
            ("authorization", "shop/p"),
            ("endpoint", "c"),
            ("listener", "l"),
        ];
        assert_eq!(names, expected.map(|(of, name)| (of, name.to_owned())));
    }
}
