//! What counts in place of a policy that cannot be read and never could.
//!
//! In: the object. Out: forms that close what it was to close, the narrowest first. Leaving the policy out would open it:
//! where no policy is, all may pass.

use serde_json::{Map, Value, json};

use crate::manifests::Kind;

/// The forms to try; of other kinds none.
pub(super) fn stand_ins(kind: Kind, object: &Value) -> Vec<Value> {
    let closed = if kind == Kind::AuthorizationPolicy {
        // Allows what its rules say, and it has none.
        json!({"action": "ALLOW"})
    } else if kind == Kind::PeerAuthentication {
        json!({"mtls": {"mode": "STRICT"}})
    } else {
        return Vec::new();
    };
    let metadata: Map<String, Value> = ["name", "namespace", "creationTimestamp", "generation"]
        .into_iter()
        .filter_map(|key| Some((key.to_owned(), object["metadata"].get(key)?.clone())))
        .collect();
    let with = |fields: &[&str]| {
        let mut spec = closed.clone();
        for field in fields {
            if let Some(value) = object["spec"].get(field) {
                spec[field] = value.clone();
            }
        }
        json!({"metadata": metadata, "spec": spec})
    };
    // What it is for may be what is wrong with it: then it is for its whole namespace.
    vec![with(&["selector", "targetRef", "targetRefs"]), with(&[])]
}

#[cfg(test)]
mod tests {
    use std::{path::Path, sync::Arc};

    use super::*;
    use crate::manifests::{Mtls, Resource, read_object};

    fn stand_in(kind: Kind, spec: &Value) -> Option<Resource> {
        let object = json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": spec});
        let place = Arc::from(Path::new("api"));
        let mut forms = stand_ins(kind, &object).into_iter();
        forms.find_map(|form| read_object(kind, form, &place, &mut Vec::new()))
    }

    #[test]
    fn a_bad_authorization_policy_lets_nobody_to_what_it_selects() {
        let selector = json!({"matchLabels": {"app": "web"}});
        for (spec, selects) in [
            (json!({"selector": selector, "action": "ALLOWED"}), true),
            (json!({"selector": selector, "rules": "all"}), true),
            (json!({"selector": "web", "action": "ALLOW"}), false),
        ] {
            let found = stand_in(Kind::AuthorizationPolicy, &spec);
            let Some(Resource::AuthorizationPolicy(policy)) = found else { panic!("{found:?}") };
            assert!(policy.spec.rules.is_none(), "{spec}");
            assert_eq!(policy.spec.selector.is_some(), selects, "{spec}");
        }
    }

    #[test]
    fn a_bad_peer_authentication_asks_for_tunnels() {
        let found = stand_in(Kind::PeerAuthentication, &json!({"mtls": {"mode": "STRIKT"}}));
        let Some(Resource::PeerAuthentication(policy)) = found else { panic!("{found:?}") };
        let mode = |mtls: &Mtls| format!("{:?}", mtls.mode);
        assert!(policy.spec.mtls.as_ref().is_some_and(|mtls| mode(mtls).contains("Strict")));
    }

    #[test]
    fn other_kinds_are_left_out() {
        assert!(stand_in(Kind::VirtualService, &json!({"hosts": 1})).is_none());
    }
}
