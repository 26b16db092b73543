//! What counts in place of a policy that cannot be read and never could.
//!
//! In: the object, as far as it is data at all. Out: a policy that refuses wherever this one would apply. Leaving it out
//! would open what it was to close: where no policy is, all may pass.

use std::{path::Path, sync::Arc};

use serde_json::{Map, Value, json};

use super::{Kind, Resource, read_object};

/// What counts for that policy; of other kinds, and of policies that only watch, nothing. `file` is where it stands.
pub(crate) fn stand_in(
    kind: Kind,
    namespace: &str,
    name: &str,
    object: &Value,
    file: &Arc<Path>,
) -> Option<Resource> {
    let closed = if !kind.is_closing() {
        return None;
    } else if kind == Kind::AuthorizationPolicy {
        if watches_only(object) {
            return None;
        }
        // A rule that asks for nothing matches everything.
        json!({"action": "DENY", "rules": [{}]})
    } else {
        json!({"mtls": {"mode": "STRICT"}})
    };
    let mut metadata: Map<String, Value> = ["creationTimestamp", "generation"]
        .into_iter()
        .filter_map(|key| Some((key.to_owned(), object["metadata"].get(key)?.clone())))
        .collect();
    metadata.insert("namespace".to_owned(), namespace.into());
    metadata.insert("name".to_owned(), name.into());
    let with = |fields: &[&str]| {
        let mut spec = closed.clone();
        for field in fields {
            if let Some(value) = object["spec"].get(field) {
                spec[field] = value.clone();
            }
        }
        json!({"metadata": metadata, "spec": spec})
    };
    let read = |form| read_object(kind, form, file, &mut Vec::new());
    // What it is for may be what is wrong with it: then it is for its whole namespace.
    read(with(&["selector", "targetRef", "targetRefs"])).or_else(|| read(with(&[])))
}

/// A dry run and an audit refuse nobody.
fn watches_only(policy: &Value) -> bool {
    policy["metadata"]["annotations"]["istio.io/dry-run"] == "true"
        || policy["spec"]["action"] == "AUDIT"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifests::{Action, MtlsMode, Rule};

    fn of(kind: Kind, object: &Value) -> Option<Resource> {
        stand_in(kind, "shop", "web", object, &Arc::from(Path::new("api")))
    }

    #[test]
    fn a_bad_authorization_policy_refuses_everybody_where_it_would_apply() {
        let selector = json!({"matchLabels": {"app": "web"}});
        let waypoint =
            json!({"kind": "Gateway", "group": "gateway.networking.k8s.io", "name": "w"});
        for (spec, selects, targets) in [
            (json!({"selector": selector, "action": "ALLOWED"}), true, false),
            (json!({"selector": selector, "rules": "all"}), true, false),
            (json!({"selector": "web", "action": "ALLOW"}), false, false),
            (json!({"targetRefs": [waypoint], "rules": 7}), false, true),
            // Nobody knows which of them was meant.
            (json!({"targetRefs": [waypoint], "selector": selector}), false, false),
            (Value::Null, false, false),
        ] {
            let object = json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": spec});
            let found = of(Kind::AuthorizationPolicy, &object);
            let Some(Resource::AuthorizationPolicy(policy)) = found else { panic!("{found:?}") };
            assert_eq!((&*policy.meta.namespace, &*policy.meta.name), ("shop", "web"));
            assert_eq!(policy.spec.action, Action::Deny, "{spec}");
            assert_eq!(policy.spec.rules, Some(vec![Rule::default()]), "{spec}");
            assert_eq!(policy.spec.selector.is_some(), selects, "{spec}");
            assert_eq!(policy.spec.target_refs.is_some(), targets, "{spec}");
        }
    }

    #[test]
    fn a_bad_peer_authentication_asks_for_tunnels() {
        for spec in [json!({"mtls": {"mode": "STRIKT"}}), json!(3)] {
            let found = of(Kind::PeerAuthentication, &json!({"spec": spec}));
            let Some(Resource::PeerAuthentication(policy)) = found else { panic!("{found:?}") };
            assert!(policy.spec.mtls.as_ref().is_some_and(|mtls| mtls.mode == MtlsMode::Strict));
        }
    }

    #[test]
    fn what_refuses_nobody_and_other_kinds_are_left_out() {
        for object in [
            json!({"metadata": {"annotations": {"istio.io/dry-run": "true"}}, "spec": {"rules": 7}}),
            json!({"spec": {"action": "AUDIT", "rules": 7}}),
        ] {
            assert!(of(Kind::AuthorizationPolicy, &object).is_none(), "{object}");
        }
        assert!(of(Kind::VirtualService, &json!({"spec": {"hosts": 1}})).is_none());
    }
}
