//! What pilot has sent to one client, and who has taken what.
//!
//! In: pilot's `/debug/syncz` and `/debug/config_dump`, which are istiod's. Out: tables, or the answer itself.

use anyhow::{Context, bail};
use clap::Args;
use serde_json::{Map, Value};

use crate::{Output, ask, table::Table};

/// Headings, and what istiod calls the types.
const TYPES: [(&str, &str); 7] = [
    ("CDS", "cluster"),
    ("LDS", "listener"),
    ("EDS", "endpoint"),
    ("RDS", "route"),
    ("ECDS", "extensionconfig"),
    ("ADDRESS", "address"),
    ("AUTHORIZATION", "authorization"),
];

/// Which client, and what of it.
#[derive(Args)]
pub(crate) struct Arguments {
    /// The client: POD.NAMESPACE, or its node id.
    proxy: String,
    /// Only what is of this type: cluster, listener, endpoint, extension, secret, address, authorization.
    #[arg(long)]
    r#type: Option<String>,
}

/// Shows every client of a pilot, and which of its types are behind.
pub(crate) async fn status(pilot: &str, output: Output) -> anyhow::Result<()> {
    let answer = ask::get(pilot, "/debug/syncz").await?;
    match output {
        Output::Json => println!("{answer:#}"),
        Output::Table => {
            let clients = answer.as_array().context("the answer is no list")?;
            print!("{}", status_table(clients));
        }
    }
    Ok(())
}

fn status_table(clients: &[Value]) -> String {
    let headings = TYPES.map(|(heading, _)| heading);
    let mut table = Table::new(&[&["NAME", "TYPE"][..], &headings, &["VERSION"]].concat());
    for client in clients {
        let text = |key: &str| client[key].as_str().unwrap_or_default().to_owned();
        let [cds, lds, eds, rds, ecds, address, authorization] =
            TYPES.map(|(_, of)| standing(client, of).to_owned());
        let (name, kind, version) = (text("proxy"), text("proxy_type"), text("istio_version"));
        table.row([name, kind, cds, lds, eds, rds, ecds, address, authorization, version]);
    }
    table.render()
}

/// In istioctl's words; empty if nothing of the type was sent.
fn standing(client: &Value, of: &str) -> &'static str {
    let nonce = |what: &str| client.get(format!("{of}_{what}")).and_then(Value::as_str);
    match (nonce("sent"), nonce("acked")) {
        (None, _) => "",
        (Some(sent), Some(acked)) if sent == acked => "SYNCED",
        (Some(_), _) => "STALE",
    }
}

/// Shows what a client has been sent.
pub(crate) async fn config(
    pilot: &str,
    arguments: &Arguments,
    output: Output,
) -> anyhow::Result<()> {
    let page = format!("/debug/config_dump?proxy={}", ask::escaped(&arguments.proxy));
    let answer = ask::get(pilot, &page).await?;
    let mut resources = resources(&answer);
    if let Some(wanted) = &arguments.r#type {
        resources.retain(|one| one.kind == *wanted);
        if resources.is_empty() {
            bail!("{} has nothing of type {wanted}", arguments.proxy);
        }
    }
    match output {
        Output::Json => println!("{:#}", json_of(&resources)),
        Output::Table => {
            let mut table = Table::new(&["TYPE", "NAME"]);
            for one in &resources {
                table.row([one.kind.to_owned(), one.name.clone()]);
            }
            print!("{}", table.render());
        }
    }
    Ok(())
}

/// One resource of a dump.
struct Resource<'a> {
    kind: &'static str,
    name: String,
    value: &'a Value,
}

/// By type and name.
fn json_of(resources: &[Resource<'_>]) -> Value {
    let mut types: Map<String, Value> = Map::new();
    for Resource { kind, name, value } in resources {
        types.entry(*kind).or_insert_with(|| Value::Object(Map::new()))[name] = (*value).clone();
    }
    Value::Object(types)
}

/// What a section of Envoy's dump is called, its list, and where in an entry the resource is.
const SECTIONS: [(&str, &str, &str, &[&str]); 5] = [
    ("ClustersConfigDump", "dynamic_active_clusters", "cluster", &["cluster"]),
    ("ListenersConfigDump", "dynamic_listeners", "listener", &["active_state", "listener"]),
    ("EndpointsConfigDump", "dynamic_endpoint_configs", "endpoint", &["endpoint_config"]),
    ("EcdsConfigDump", "ecds_filters", "extension", &["ecds_filter"]),
    ("SecretsConfigDump", "dynamic_active_secrets", "secret", &[]),
];

fn resources(dump: &Value) -> Vec<Resource<'_>> {
    let mut all = Vec::new();
    for config in dump["configs"].as_array().into_iter().flatten() {
        let type_url = config["@type"].as_str().unwrap_or_default();
        let section = SECTIONS.iter().find(|(name, ..)| type_url.ends_with(name));
        let (list, path) = match section {
            Some((_, list, _, path)) => (*list, *path),
            None => ("resources", &[][..]),
        };
        for entry in config[list].as_array().into_iter().flatten() {
            let value = path.iter().fold(entry, |value, key| &value[key]);
            let kind = match section {
                Some((_, _, kind, _)) => kind,
                None if type_url.ends_with("Authorization") => "authorization",
                None => "address",
            };
            all.push(Resource { kind, name: name_of(value), value });
        }
    }
    all
}

/// By which it is known in xDS.
fn name_of(value: &Value) -> String {
    let text = |value: &Value, key: &str| value[key].as_str().map(str::to_owned);
    let service = &value["service"];
    let of_service =
        || Some(format!("{}/{}", text(service, "namespace")?, text(service, "hostname")?));
    let of_policy = || Some(format!("{}/{}", text(value, "namespace")?, text(value, "name")?));
    let name = text(&value["workload"], "uid").or_else(of_service).or_else(of_policy);
    name.or_else(|| text(value, "clusterName"))
        .or_else(|| text(value, "cluster_name"))
        .or_else(|| text(value, "name"))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_type_is_synced_once_the_last_response_was_taken() {
        let clients = [json!({
            "proxy": "wp.shop",
            "proxy_type": "waypoint",
            "istio_version": "1.30",
            "cluster_sent": "3",
            "cluster_acked": "3",
            "listener_sent": "4",
            "listener_acked": "2",
            "endpoint_sent": "1",
        })];
        assert_eq!(
            status_table(&clients),
            "\
NAME     TYPE      CDS     LDS    EDS    RDS  ECDS  ADDRESS  AUTHORIZATION  VERSION
wp.shop  waypoint  SYNCED  STALE  STALE  -    -     -        -              1.30
"
        );
    }

    #[test]
    fn resources_of_each_section_are_found_with_their_names() {
        let dump = json!({"configs": [
            {"@type": "x/envoy.admin.v3.ClustersConfigDump", "dynamic_active_clusters": [{"cluster": {"name": "c"}}]},
            {"@type": "x/envoy.admin.v3.ListenersConfigDump",
             "dynamic_listeners": [{"name": "l", "active_state": {"listener": {"name": "l"}}}]},
            {"@type": "x/envoy.admin.v3.EndpointsConfigDump",
             "dynamic_endpoint_configs": [{"endpoint_config": {"clusterName": "e"}}]},
            {"@type": "x/envoy.admin.v3.SecretsConfigDump", "dynamic_active_secrets": [{"name": "s"}]},
            {"@type": "x/istio.workload.Address", "resources": [
                {"workload": {"uid": "u", "name": "n"}},
                {"service": {"namespace": "a", "hostname": "b"}},
            ]},
            {"@type": "x/istio.security.Authorization", "resources": [{"namespace": "a", "name": "p"}]},
        ]});
        let found: Vec<_> =
            resources(&dump).iter().map(|one| format!("{} {}", one.kind, one.name)).collect();
        assert_eq!(
            found,
            [
                "cluster c",
                "listener l",
                "endpoint e",
                "secret s",
                "address u",
                "address a/b",
                "authorization a/p",
            ]
        );
        assert_eq!(json_of(&resources(&dump))["cluster"]["c"], json!({"name": "c"}));
    }
}
