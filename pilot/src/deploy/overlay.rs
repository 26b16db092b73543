//! Kubernetes' strategic merge patch, for the objects that are made here.
//!
//! In: an object and what a user wants of it. Out: the object, changed. Mappings are merged, null takes a field away,
//! and a list whose items have names of their own is merged item by item; `$patch: delete` takes an item away,
//! `$patch: replace` puts a whole in place of another.
//! (Kubernetes, `sig-api-machinery/strategic-merge-patch.md`.)

use serde_json::{Map, Value};

const DIRECTIVE: &str = "$patch";

/// Which field tells the items of a list apart; all other lists are replaced.
fn key_of(list: &str) -> Option<&'static str> {
    match list {
        "containers" | "initContainers" | "volumes" | "env" | "imagePullSecrets" => Some("name"),
        "volumeMounts" => Some("mountPath"),
        "hostAliases" => Some("ip"),
        "topologySpreadConstraints" => Some("topologyKey"),
        "ownerReferences" => Some("uid"),
        "conditions" => Some("type"),
        _ => None,
    }
}

/// Ports are told apart by their number, which has another name in a container.
fn key_of_ports(items: &[Value]) -> &'static str {
    let of_container = items.iter().any(|item| item.get("containerPort").is_some());
    if of_container { "containerPort" } else { "port" }
}

/// Changes `object` as `overlay` says.
pub(super) fn apply(object: &mut Value, overlay: &Value) {
    let (Value::Object(fields), Value::Object(changes)) = (&mut *object, overlay) else {
        *object = overlay.clone();
        return;
    };
    if changes.get(DIRECTIVE).is_some_and(|directive| directive == "replace") {
        *object = without_directive(changes);
        return;
    }
    for (field, change) in changes {
        match (fields.get_mut(field), change) {
            (_, Value::Null) => {
                fields.remove(field);
            }
            (Some(Value::Array(items)), Value::Array(others)) => merge(field, items, others),
            (Some(value), change) => apply(value, change),
            (None, change) => {
                fields.insert(field.clone(), change.clone());
            }
        }
    }
}

fn merge(field: &str, items: &mut Vec<Value>, others: &[Value]) {
    let key = if field == "ports" { Some(key_of_ports(others)) } else { key_of(field) };
    let Some(key) = key.filter(|key| others.iter().all(|other| other.get(key).is_some())) else {
        *items = others.to_vec();
        return;
    };
    for other in others {
        let found = items.iter().position(|item| item.get(key) == other.get(key));
        let deletes = other.get(DIRECTIVE).is_some_and(|directive| directive == "delete");
        match found {
            Some(i) if deletes => {
                items.remove(i);
            }
            Some(i) => apply(&mut items[i], other),
            None if deletes => {}
            None => items.push(other.clone()),
        }
    }
}

fn without_directive(fields: &Map<String, Value>) -> Value {
    let rest = fields.iter().filter(|(field, _)| *field != DIRECTIVE);
    Value::Object(rest.map(|(field, value)| (field.clone(), value.clone())).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_has_a_name_is_merged_and_what_has_none_is_replaced() {
        for (object, overlay, expected) in [
            (
                json!({"a": 1, "b": {"c": 2}}),
                json!({"b": {"d": 3}}),
                json!({"a": 1, "b": {"c": 2, "d": 3}}),
            ),
            (json!({"a": 1, "b": 2}), json!({"a": null}), json!({"b": 2})),
            (
                json!({"containers": [{"name": "x", "image": "i", "env": [{"name": "A", "value": "1"}]}]}),
                json!({"containers": [{"name": "x", "env": [{"name": "B", "value": "2"}]}, {"name": "y"}]}),
                json!({"containers": [
                    {"name": "x", "image": "i", "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]},
                    {"name": "y"},
                ]}),
            ),
            (
                json!({"env": [{"name": "A", "value": "1"}, {"name": "B"}]}),
                json!({"env": [{"name": "A", "$patch": "delete"}]}),
                json!({"env": [{"name": "B"}]}),
            ),
            (json!({"args": ["a", "b"]}), json!({"args": ["c"]}), json!({"args": ["c"]})),
            (
                json!({"ports": [{"port": 15008, "name": "mesh"}]}),
                json!({"ports": [{"port": 15008, "nodePort": 30000}, {"port": 1}]}),
                json!({"ports": [{"port": 15008, "name": "mesh", "nodePort": 30000}, {"port": 1}]}),
            ),
            (
                json!({"resources": {"limits": {"cpu": "2"}}}),
                json!({"resources": {"$patch": "replace", "requests": {"cpu": "1"}}}),
                json!({"resources": {"requests": {"cpu": "1"}}}),
            ),
        ] {
            let mut changed = object.clone();
            apply(&mut changed, &overlay);
            assert_eq!(changed, expected, "{object} with {overlay}");
        }
    }
}
