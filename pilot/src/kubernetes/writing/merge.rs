//! What is to be written into an object's status.
//!
//! In: the status as it is to be, and as it is. Out: what to apply, or nothing if all of it is there. What others say in
//! the same lists stays; a condition keeps the moment of its last turn. Told the time.

use serde_json::{Map, Value, json};

use crate::manifests::Kind;

/// As we have it in the routes' parents; Istio's too, so that of both only one has an entry.
const CONTROLLER: &str = "istio.io/gateway-controller";

/// Says of an object that it was refused.
pub(super) const ACCEPTED: &str = "aquifer.io/Accepted";

/// The conditions at the top of a status that are ours to set and to take away.
fn is_ours(kind: Kind, condition: &Value) -> bool {
    let of = condition["type"].as_str().unwrap_or_default();
    match of {
        ACCEPTED
        | "istio.io/WaypointBound"
        | "istio.io/WaypointMissing"
        | "istio.io/VisibilityApplied" => true,
        "ZtunnelAccepted" | "WaypointAccepted" => kind == Kind::AuthorizationPolicy,
        _ => false,
    }
}

/// Whether a list of conditions is replaced as a whole, so that what others say must be repeated: the definitions of
/// Istio's kinds do not say that the type tells one condition from another.
fn is_atomic(kind: Kind) -> bool {
    kind.group().ends_with(".istio.io")
}

/// The status to apply, if anything of it is not there.
pub(super) fn to_apply(
    kind: Kind,
    wanted: Option<&Value>,
    there: &Value,
    now: &str,
) -> Option<Value> {
    let mut status = match wanted {
        Some(Value::Object(members)) => members.clone(),
        Some(_) | None => Map::new(),
    };
    let others = others(kind, there);
    let gone = list(there, "conditions").filter(|one| is_ours(kind, one)).any(|one| {
        let conditions = status.get("conditions").and_then(Value::as_array);
        !conditions.into_iter().flatten().any(|wanted| wanted["type"] == one["type"])
    });
    let addresses_gone = kind == Kind::ServiceEntry
        && list(there, "addresses").next().is_some()
        && !status.contains_key("addresses");
    if wanted.is_none() && !gone && !addresses_gone {
        return None;
    }
    let conditions = status.entry("conditions").or_insert_with(|| json!([]));
    if let (true, Value::Array(conditions)) = (is_atomic(kind), &mut *conditions) {
        conditions.extend(others.conditions);
    }
    if let Some(Value::Array(parents)) = status.get_mut("parents") {
        parents.extend(others.parents);
        // What routes say stands with their parents.
        status.remove("conditions");
    }
    let mut status = Value::Object(status);
    keep_turns(&mut status, there, now);
    (gone || addresses_gone || !holds(&status, there)).then_some(status)
}

/// What others say in lists that are replaced as a whole.
struct Others {
    conditions: Vec<Value>,
    parents: Vec<Value>,
}

fn others(kind: Kind, there: &Value) -> Others {
    let conditions = list(there, "conditions").filter(|one| !is_ours(kind, one));
    let parents =
        list(there, "parents").filter(|one| one["controllerName"].as_str() != Some(CONTROLLER));
    Others { conditions: conditions.cloned().collect(), parents: parents.cloned().collect() }
}

fn list<'a>(of: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    of.get(key).and_then(Value::as_array).into_iter().flatten()
}

/// Gives every condition the moment it last turned: the one that is there, if it says the same.
fn keep_turns(status: &mut Value, there: &Value, now: &str) {
    const TURN: &str = "lastTransitionTime";
    match status {
        Value::Object(members) => {
            if let Some(Value::Array(conditions)) = members.get_mut("conditions") {
                for condition in conditions.iter_mut().filter(|one| one.get(TURN).is_none()) {
                    let before =
                        list(there, "conditions").find(|one| one["type"] == condition["type"]);
                    let same = before.filter(|before| before["status"] == condition["status"]);
                    let turned = same.and_then(|before| before.get(TURN)?.as_str());
                    condition[TURN] = turned.unwrap_or(now).into();
                }
            }
            for key in ["listeners", "parents"] {
                let Some(Value::Array(parts)) = members.get_mut(key) else { continue };
                for part in parts {
                    let before = list(there, key).find(|one| is_same_part(part, one));
                    let before = before.cloned().unwrap_or_default();
                    keep_turns(part, &before, now);
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {}
    }
}

/// Whether two entries of a list are about the same thing.
fn is_same_part(one: &Value, other: &Value) -> bool {
    ["type", "name", "parentRef", "controllerName", "value"].iter().all(|key| {
        match (one.get(key), other.get(key)) {
            (Some(one), Some(other)) => holds(one, other),
            (None, _) => true,
            (Some(_), None) => false,
        }
    })
}

/// Whether all of `part` is in `whole`. Lists that are replaced as a whole have no more in them.
fn holds(part: &Value, whole: &Value) -> bool {
    match (part, whole) {
        (Value::Object(part), Value::Object(whole)) => part.iter().all(|(key, value)| {
            let empty = value.as_array().is_some_and(Vec::is_empty);
            whole.get(key).map_or(empty, |found| holds(value, found))
        }),
        (Value::Array(part), Value::Array(whole)) => {
            let is_object = part.first().is_some_and(Value::is_object);
            if !is_object {
                return part == whole;
            }
            part.iter()
                .all(|one| whole.iter().any(|other| is_same_part(one, other) && holds(one, other)))
        }
        (part, whole) => part == whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: &str = "2026-01-02T00:00:00Z";
    const THEN: &str = "2026-01-01T00:00:00Z";

    fn condition(of: &str, status: &str, turned: Option<&str>) -> Value {
        let mut condition = json!({"type": of, "status": status, "reason": "R", "message": "m"});
        if let Some(turned) = turned {
            condition["lastTransitionTime"] = turned.into();
        }
        condition
    }

    const BOUND: &str = "istio.io/WaypointBound";

    #[test]
    fn only_what_differs_is_written_and_a_condition_keeps_its_turn() {
        let wanted = |status: &str| json!({"conditions": [condition(BOUND, status, None)]});
        let there = |status: &str| {
            let foreign = condition("example.com/Ready", "True", Some(THEN));
            json!({
                "loadBalancer": {},
                "conditions": [foreign, condition(BOUND, status, Some(THEN))],
            })
        };
        let apply =
            |wanted: &Value, there: &Value| to_apply(Kind::Service, Some(wanted), there, NOW);
        assert_eq!(apply(&wanted("True"), &there("True")), None);
        let expected = |turned| json!({"conditions": [condition(BOUND, "False", Some(turned))]});
        assert_eq!(apply(&wanted("False"), &there("True")), Some(expected(NOW)));
        assert_eq!(apply(&wanted("False"), &Value::Null), Some(expected(NOW)));
        let mut other_message = there("False");
        other_message["conditions"][1]["message"] = "other".into();
        assert_eq!(apply(&wanted("False"), &other_message), Some(expected(THEN)));
    }

    #[test]
    fn what_is_wanted_no_more_is_taken_away_and_what_others_say_stays() {
        let ours = || condition(BOUND, "True", Some(THEN));
        let foreign = || condition("example.com/Ready", "True", Some(THEN));
        let there = json!({"conditions": [ours(), foreign()]});
        let apply = |kind, there: &Value| to_apply(kind, None, there, NOW);
        assert_eq!(apply(Kind::Service, &there), Some(json!({"conditions": []})));
        let expected = json!({"conditions": [foreign()]});
        assert_eq!(apply(Kind::WorkloadEntry, &there), Some(expected));
        assert_eq!(apply(Kind::Service, &json!({"conditions": [foreign()]})), None);
        assert_eq!(apply(Kind::Service, &Value::Null), None);
        let addresses = json!({"addresses": [{"value": "240.240.0.1"}]});
        assert_eq!(apply(Kind::ServiceEntry, &addresses), Some(json!({"conditions": []})));
    }

    #[test]
    fn a_list_of_an_istio_kind_is_written_with_what_others_say_in_it() {
        let foreign = condition("Reconciled", "True", Some(THEN));
        let there = json!({"conditions": [foreign]});
        let wanted = json!({"conditions": [condition("ZtunnelAccepted", "True", None)]});
        let found = to_apply(Kind::AuthorizationPolicy, Some(&wanted), &there, NOW);
        let ours = condition("ZtunnelAccepted", "True", Some(NOW));
        assert_eq!(found, Some(json!({"conditions": [ours, foreign]})));
    }

    #[test]
    fn routes_keep_the_parents_of_other_controllers() {
        let parent = |controller: &str, turned: Option<&str>| {
            json!({
                "controllerName": controller,
                "parentRef": {"kind": "Service", "name": "web"},
                "conditions": [condition("Accepted", "True", turned)],
            })
        };
        let wanted = json!({"parents": [parent(CONTROLLER, None)]});
        let there = json!({"parents": [parent("example.com/other", Some(THEN))]});
        let both = json!({
            "parents": [parent(CONTROLLER, Some(NOW)), parent("example.com/other", Some(THEN))],
        });
        let apply = |there: &Value| to_apply(Kind::HttpRoute, Some(&wanted), there, NOW);
        assert_eq!(apply(&there), Some(both.clone()));
        assert_eq!(apply(&both), None);
        // A server that fills in what was left out changes nothing.
        let mut filled = both;
        filled["parents"][0]["parentRef"]["group"] = "".into();
        assert_eq!(apply(&filled), None);
    }

    #[test]
    fn an_allocated_address_is_written_once() {
        let wanted = json!({"addresses": [{"host": "a.example", "value": "240.240.0.1"}]});
        let apply = |there: &Value| to_apply(Kind::ServiceEntry, Some(&wanted), there, NOW);
        assert!(apply(&Value::Null).is_some());
        assert_eq!(apply(&wanted), None);
        let other = json!({"addresses": [{"host": "a.example", "value": "240.240.0.2"}]});
        assert!(apply(&other).is_some());
    }
}
