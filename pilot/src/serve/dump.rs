//! What one client has been sent, for people: as Envoy's own `/config_dump` has it for a waypoint, by names for Secrets.
//!
//! In: a client's [`View`]. Out: JSON. Private keys are in nothing that is written here.

use anyhow::Result;
use proto::google::Any;
use serde_json::{Value, json};

use super::{types::Type, view::View};
use crate::proto_json;

const ADMIN: &str = "type.googleapis.com/envoy.admin.v3.";

/// All that the client has.
///
/// # Errors
/// If a message holds one of a type that is not described.
pub(crate) fn config(view: &View) -> Result<Value> {
    let mut configs = Vec::new();
    if view.waypoint.is_some() {
        let clusters = dynamic(view, Type::Cluster, "cluster")?;
        configs.push(section("ClustersConfigDump", "dynamic_active_clusters", clusters));
        let listeners = messages(view, Type::Listener)?.into_iter().map(|listener| {
            json!({ "name": listener["name"], "active_state": { "listener": listener } })
        });
        configs.push(section("ListenersConfigDump", "dynamic_listeners", listeners.collect()));
        let endpoints = dynamic(view, Type::Endpoint, "endpoint_config")?;
        configs.push(section("EndpointsConfigDump", "dynamic_endpoint_configs", endpoints));
        let filters = dynamic(view, Type::Extension, "ecds_filter")?;
        configs.push(section("EcdsConfigDump", "ecds_filters", filters));
        let secrets = view.all(Type::Secret).map(|(name, _)| json!({ "name": name }));
        configs.push(section("SecretsConfigDump", "dynamic_active_secrets", secrets.collect()));
    } else {
        for of in [Type::Address, Type::Authorization] {
            configs.push(json!({ "@type": of.type_url(), "resources": messages(view, of)? }));
        }
    }
    Ok(json!({ "configs": configs }))
}

/// What is behind the clusters of a waypoint.
///
/// # Errors
/// As those of [`config`].
pub(crate) fn endpoints(view: &View) -> Result<Value> {
    Ok(Value::Array(messages(view, Type::Endpoint)?))
}

fn section(kind: &str, list: &str, entries: Vec<Value>) -> Value {
    json!({ "@type": format!("{ADMIN}{kind}"), list: entries })
}

fn dynamic(view: &View, of: Type, key: &str) -> Result<Vec<Value>> {
    let messages = messages(view, of)?.into_iter();
    Ok(messages.map(|message| json!({ key: message })).collect())
}

fn messages(view: &View, of: Type) -> Result<Vec<Value>> {
    let encoded = view.all(of).map(|(_, found)| {
        let value = found.encoded.to_vec();
        proto_json::from_any(&Any { type_url: of.type_url().to_owned(), value })
    });
    encoded.collect()
}
