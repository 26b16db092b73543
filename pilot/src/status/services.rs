//! The statuses of Services and ServiceEntries, as the API has them.
//!
//! In: what [`crate::compile::status`] says. Out: conditions without a generation, as Istio writes them, and the
//! addresses that were given to a ServiceEntry's hosts.

use serde_json::{Value, json};

use super::Statuses;
use crate::{compile::status, manifests::Kind};

pub(super) fn add(of: &status::Statuses, statuses: &mut Statuses) {
    for (key, conditions) in &of.services {
        put(statuses, Kind::Service, key, json!({ "conditions": list(conditions) }));
    }
    for (key, entry) in &of.entries {
        let mut status = serde_json::Map::new();
        if !entry.addresses.is_empty() {
            let addresses = entry.addresses.iter();
            let addresses = addresses.map(|(host, ip)| json!({ "host": host, "value": ip }));
            status.insert("addresses".to_owned(), addresses.collect());
        }
        if !entry.conditions.is_empty() {
            status.insert("conditions".to_owned(), list(&entry.conditions));
        }
        put(statuses, Kind::ServiceEntry, key, Value::Object(status));
    }
}

fn list(conditions: &[status::Condition]) -> Value {
    let conditions = conditions.iter().map(|condition| {
        json!({
            "type": condition.kind,
            "status": if condition.holds { "True" } else { "False" },
            "reason": condition.reason,
            "message": condition.message,
        })
    });
    conditions.collect()
}

fn put(statuses: &mut Statuses, kind: Kind, key: &str, status: Value) {
    if let Some((namespace, name)) = key.split_once('/') {
        statuses.insert((kind, namespace.into(), name.into()), status);
    }
}
