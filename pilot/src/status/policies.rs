//! The statuses of AuthorizationPolicies: who enforces them, and what of them.
//!
//! In: the policies, and which waypoint each service has. Out: `ZtunnelAccepted` of those that daemons enforce,
//! `WaypointAccepted` of those that name targets.

use serde_json::{Value, json};

use super::{Statuses, condition::Condition, put};
use crate::{
    compile::{self, MeshConfig, status},
    manifests::{Action, AuthorizationPolicy, Kind, Manifests, Meta, Object, TargetRef, attribute},
};

pub(super) fn add(
    manifests: &Manifests,
    config: &MeshConfig,
    of: &status::Statuses,
    statuses: &mut Statuses,
) {
    for policy in &manifests.authorization_policies {
        let condition = if policy.spec.is_targeted() {
            Some(Targets { manifests, config, of, policy: &policy.meta }.condition(&policy.spec))
        } else {
            at_layer_4(policy)
        };
        if let Some(condition) = condition {
            let status = json!({ "conditions": [as_istio(&condition, &policy.meta)] });
            put(statuses, Kind::AuthorizationPolicy, &policy.meta, status);
        }
    }
}

/// Numbers of 64 bits are text in protobuf's JSON, and no message is none.
fn as_istio(condition: &Condition, of: &Meta) -> Value {
    let mut json = condition.json(of);
    json["observedGeneration"] = of.generation.to_string().into();
    if condition.message.is_empty()
        && let Some(members) = json.as_object_mut()
    {
        members.remove("message");
    }
    json
}

const BY_DAEMONS: &str = "ZtunnelAccepted";
const BY_WAYPOINTS: &str = "WaypointAccepted";

/// What a daemon makes of it. A policy that is only logged is not sent, and has none.
fn at_layer_4(policy: &Object<AuthorizationPolicy>) -> Option<Condition> {
    let Object { spec, .. } = policy;
    match spec.action {
        Action::Audit => return None,
        Action::Custom => {
            let message = "ztunnel does not support the CUSTOM action";
            return Some(Condition::no(BY_DAEMONS, "UnsupportedValue", message));
        }
        Action::Allow | Action::Deny if spec.dry_run => return None,
        Action::Allow | Action::Deny => {}
    }
    let rules = spec.rules.iter().flatten();
    let mut beyond: Vec<&str> = rules.flat_map(attribute::beyond_layer_4).collect();
    beyond.sort_unstable();
    beyond.dedup();
    if beyond.is_empty() {
        return Some(Condition::yes(BY_DAEMONS, "Accepted", "attached to ztunnel"));
    }
    let consequence = if spec.action == Action::Allow {
        "Within an ALLOW policy, rules matching HTTP attributes are omitted. This will be more restrictive than requested."
    } else if compile::can_fire(policy) {
        "DENY policy with HTTP attributes is enforced without the HTTP rules. This will be more restrictive than requested."
    } else {
        "After omitting unsupported HTTP attributes, this DENY policy has no enforceable rules at ztunnel and will \
         have no effect. Deploy a waypoint proxy and use a targetRef to enforce this policy."
    };
    let message = format!(
        "ztunnel does not support HTTP attributes (found: {}). In ambient mode you must use a waypoint proxy to \
         enforce HTTP rules. {consequence}",
        beyond.join(", ")
    );
    Some(Condition::yes(BY_DAEMONS, "UnsupportedValue", message))
}

/// What the targets of one policy are looked for in.
struct Targets<'a> {
    manifests: &'a Manifests,
    config: &'a MeshConfig,
    of: &'a status::Statuses,
    policy: &'a Meta,
}

/// A target that no waypoint enforces the policy for.
struct Unbound {
    reason: &'static str,
    message: String,
}

impl Targets<'_> {
    fn condition(&self, spec: &AuthorizationPolicy) -> Condition {
        let targets = spec.target_ref.iter().chain(spec.target_refs.iter().flatten());
        let found: Vec<_> = targets.map(|target| self.bound(target)).collect();
        let unbound: Vec<_> = found.iter().filter_map(|one| one.as_ref().err()).collect();
        let faults = || unbound.iter().map(|one| &*one.message).collect::<Vec<_>>().join("; ");
        match (&*found, &*unbound) {
            ([Ok(to)], _) => Condition::yes(BY_WAYPOINTS, "Accepted", format!("bound to {to}")),
            (_, []) => Condition::yes(BY_WAYPOINTS, "Accepted", ""),
            (all, some) if some.len() < all.len() => {
                Condition::yes(BY_WAYPOINTS, "PartiallyInvalid", faults())
            }
            (_, [first, ..]) => Condition::no(BY_WAYPOINTS, first.reason, faults()),
        }
    }

    /// The waypoints that enforce it for a target.
    fn bound(&self, target: &TargetRef) -> Result<String, Unbound> {
        let no = |reason, message| Err(Unbound { reason, message });
        let namespace = &*self.policy.namespace;
        let title = format!("{} {namespace}/{}", target.kind, target.name);
        let missing = || no("TargetNotFound", format!("{title} was not found"));
        if target.namespace.as_ref().is_some_and(|other| !other.is_empty() && other != namespace) {
            return no("Invalid", format!("{title}: a target is of the policy's own namespace"));
        }
        let named = |meta: &Meta| *meta.namespace == *namespace && *meta.name == *target.name;
        let waypoints = match (target.group.as_deref().unwrap_or_default(), &*target.kind) {
            ("gateway.networking.k8s.io", "Gateway") => {
                let mut all = self.manifests.gateways.iter();
                return match all.any(|one| named(&one.meta)) {
                    true => Ok(format!("{namespace}/{}", target.name)),
                    false => missing(),
                };
            }
            ("gateway.networking.k8s.io", "GatewayClass") => {
                if *namespace != *self.config.root_namespace {
                    let message = format!(
                        "GatewayClass {}: only a policy of namespace {} is for a whole class",
                        target.name, self.config.root_namespace
                    );
                    return no("Invalid", message);
                }
                return Ok(target.name.clone());
            }
            ("" | "core", "Service") => {
                if !self.manifests.services.iter().any(|one| named(&one.meta)) {
                    return missing();
                }
                &self.of.service_waypoints
            }
            ("networking.istio.io", "ServiceEntry") => {
                if !self.manifests.service_entries.iter().any(|one| named(&one.meta)) {
                    return missing();
                }
                &self.of.entry_waypoints
            }
            _ => return no("Invalid", format!("{title}: no waypoint guards this kind")),
        };
        match waypoints.get(&format!("{namespace}/{}", target.name)) {
            Some(gateway) => Ok(gateway.clone()),
            None => no("AncestorNotBound", format!("{title} is not bound to a waypoint")),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, sync::Arc};

    use super::*;
    use crate::manifests::{Severity, read_text};

    const SHOP: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.0.0.1, ports: [{name: http, port: 80}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: shop}
spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
";

    fn check(namespace: &str, spec: &str, expected: Option<(&str, &str, &str)>) {
        let text = format!(
            "{SHOP}metadata: {{name: p, namespace: {namespace}, generation: 3}}\nspec: {spec}\n"
        );
        let mut problems = Vec::new();
        let resources = read_text(&Arc::from(Path::new("f.yaml")), &text, &mut problems);
        problems.retain(|problem| problem.severity == Severity::Error);
        assert!(problems.is_empty(), "{problems:?}");
        let statuses = super::super::all(&Manifests::gather(&resources).0, &MeshConfig::default());
        let mut statuses = statuses.into_iter();
        let status = statuses.find(|((kind, ..), _)| *kind == Kind::AuthorizationPolicy);
        let found = status.map(|(_, status)| status["conditions"][0].clone());
        let found = found.as_ref().map(|one| {
            assert_eq!(one["observedGeneration"], "3");
            let text = |key: &str| one[key].as_str().unwrap_or_default();
            (text("type"), text("status"), text("reason"))
        });
        assert_eq!(found, expected, "{spec}");
    }

    #[test]
    fn who_enforces_a_policy_says_so() {
        let gateway = "{group: gateway.networking.k8s.io, kind: Gateway, name: wp}";
        let class = "{group: gateway.networking.k8s.io, kind: GatewayClass, name: istio-waypoint}";
        let web = "{kind: Service, name: web}";
        let daemons = "ZtunnelAccepted";
        let waypoints = "WaypointAccepted";
        for (namespace, spec, expected) in [
            ("shop", "{rules: []}".to_owned(), Some((daemons, "True", "Accepted"))),
            ("shop", "{action: AUDIT, rules: [{}]}".to_owned(), None),
            (
                "shop",
                "{action: CUSTOM, provider: {name: p}, rules: [{}]}".to_owned(),
                Some((daemons, "False", "UnsupportedValue")),
            ),
            (
                "shop",
                "{rules: [{to: [{operation: {methods: [GET]}}]}]}".to_owned(),
                Some((daemons, "True", "UnsupportedValue")),
            ),
            ("shop", format!("{{targetRefs: [{gateway}]}}"), Some((waypoints, "True", "Accepted"))),
            (
                "shop",
                format!("{{targetRefs: [{web}]}}"),
                Some((waypoints, "False", "AncestorNotBound")),
            ),
            (
                "shop",
                format!("{{targetRefs: [{gateway}, {web}]}}"),
                Some((waypoints, "True", "PartiallyInvalid")),
            ),
            (
                "bank",
                format!("{{targetRefs: [{web}]}}"),
                Some((waypoints, "False", "TargetNotFound")),
            ),
            (
                "istio-system",
                format!("{{targetRefs: [{class}]}}"),
                Some((waypoints, "True", "Accepted")),
            ),
        ] {
            check(namespace, &spec, expected);
        }
    }
}
