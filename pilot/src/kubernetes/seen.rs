//! What an object of the API server looked like, as far as whoever writes its status must know.
//!
//! In: the object. Out: [`Seen`]. Pure.

use std::hash::{Hash, Hasher};

use serde_json::Value;
use twox_hash::XxHash64;

use crate::manifests::Kind;

/// An object as the API server last showed it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Seen {
    pub uid: Box<str>,
    pub version: Box<str>,
    pub generation: i64,
    /// All of it; null if there is none.
    pub status: Value,
    /// Of all but what only tells about it: who applied which field, its version, and what controllers say of it.
    pub digest: u64,
}

/// Whether objects of a kind have a status that is ours to write.
pub(super) fn is_reported(kind: Kind) -> bool {
    kind == Kind::Service || !kind.is_builtin()
}

impl Seen {
    pub(super) fn of(kind: Kind, object: &Value) -> Self {
        let text = |key: &str| object["metadata"][key].as_str().unwrap_or_default().into();
        Self {
            uid: text("uid"),
            version: text("resourceVersion"),
            generation: object["metadata"]["generation"].as_i64().unwrap_or_default(),
            status: if is_reported(kind) { object["status"].clone() } else { Value::Null },
            digest: digest(kind, object),
        }
    }
}

fn digest(kind: Kind, object: &Value) -> u64 {
    let mut hasher = XxHash64::with_seed(0);
    let Some(fields) = object.as_object() else { return 0 };
    for (key, value) in fields {
        match (&**key, value) {
            ("metadata", Value::Object(metadata)) => {
                let said = metadata.iter().filter(|(key, _)| *key != "resourceVersion");
                said.for_each(|(key, value)| hash(key, value, &mut hasher));
            }
            ("status", Value::Object(status)) if is_reported(kind) => {
                // Where a Gateway is and which addresses a ServiceEntry was given is read as well.
                let read = status
                    .iter()
                    .filter(|(key, _)| !matches!(&***key, "conditions" | "parents" | "listeners"));
                read.for_each(|(key, value)| hash(key, value, &mut hasher));
            }
            _ => hash(key, value, &mut hasher),
        }
    }
    hasher.finish()
}

fn hash(key: &str, value: &Value, hasher: &mut XxHash64) {
    key.hash(hasher);
    value.hash(hasher);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_only_tells_about_an_object_is_no_change_of_it() {
        let object = |version: &str, labels: Value, status: Value| {
            json!({
                "metadata": {"name": "web", "resourceVersion": version, "labels": labels},
                "spec": {"ports": []},
                "status": status,
            })
        };
        let before = object("1", json!({}), json!({}));
        let condition = json!({"conditions": [{"type": "istio.io/WaypointBound"}]});
        for (kind, object, same) in [
            (Kind::Service, object("2", json!({}), condition.clone()), true),
            (Kind::Pod, object("2", json!({}), condition), false),
            (Kind::Service, object("2", json!({"a": "b"}), json!({})), false),
            (Kind::Gateway, object("2", json!({}), json!({"addresses": []})), false),
        ] {
            let is_same = Seen::of(kind, &object).digest == Seen::of(kind, &before).digest;
            assert_eq!(is_same, same, "{kind:?} {object}");
        }
    }
}
