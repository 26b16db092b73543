//! The filters that allow and refuse.
//!
//! In: the AuthorizationPolicies that count for a chain. Out: one filter for each action, AUDIT, DENY and ALLOW in this
//! order. A policy under trial stands in the shadow of its action's filter: it is counted, and decides nothing.

use proto::{
    envoy::envoy::config::rbac::v3::{Policy, rbac::Action as RbacAction},
    google::Any,
};

use super::{
    rule::{Reading, never},
    wire::{HttpRbac, NetworkRbac, Rules},
};
use crate::{
    compile::{
        MeshConfig,
        waypoint::{ChainKind, message::any},
    },
    manifests::{Action, AuthorizationPolicy, Object},
};

/// The name of the filter of requests.
pub(super) const HTTP_RBAC: &str = "envoy.filters.http.rbac";
/// The name of the filter of connections.
pub(super) const NETWORK_RBAC: &str = "envoy.filters.network.rbac";
/// Before the names of all statistics of connections.
pub(super) const TCP_PREFIX: &str = "tcp.";

/// The rules of one filter.
#[derive(Debug, Default)]
pub(super) struct Rbac {
    pub rules: Option<Rules>,
    pub shadow_rules: Option<Rules>,
    pub shadow_prefix: &'static str,
}

impl Rbac {
    /// The name and the configuration of the filter.
    pub(super) fn filter(self, kind: ChainKind) -> (&'static str, Any) {
        let Self { rules, shadow_rules, shadow_prefix } = self;
        let shadow_rules_stat_prefix = shadow_prefix.to_owned();
        match kind {
            ChainKind::Http => {
                (HTTP_RBAC, any(&HttpRbac { rules, shadow_rules, shadow_rules_stat_prefix }))
            }
            ChainKind::Tcp => {
                let stat_prefix = TCP_PREFIX.to_owned();
                let rbac =
                    NetworkRbac { rules, shadow_rules, stat_prefix, shadow_rules_stat_prefix };
                (NETWORK_RBAC, any(&rbac))
            }
        }
    }
}

/// The filters of the policies that this proxy decides itself.
pub(super) fn filters(
    policies: &[&Object<AuthorizationPolicy>],
    config: &MeshConfig,
    kind: ChainKind,
) -> Vec<(&'static str, Any)> {
    let actions = [
        (Action::Audit, RbacAction::Log),
        (Action::Deny, RbacAction::Deny),
        (Action::Allow, RbacAction::Allow),
    ];
    let filters = actions.into_iter().filter_map(|(action, rbac_action)| {
        let of_action = policies.iter().filter(|policy| policy.spec.action == action);
        let mut rbac = Rbac { shadow_prefix: "istio_dry_run_allow_", ..Rbac::default() };
        for policy in of_action {
            let place = if policy.spec.dry_run {
                if action == Action::Deny {
                    rbac.shadow_prefix = "istio_dry_run_deny_";
                }
                &mut rbac.shadow_rules
            } else {
                &mut rbac.rules
            };
            // Stays without rules if none can be checked here: a filter that allows nothing.
            let rules = place
                .get_or_insert_with(|| Rules { action: rbac_action.into(), ..Rules::default() });
            rules.policies.extend(named(policy, config, kind));
        }
        (rbac.rules.is_some() || rbac.shadow_rules.is_some()).then(|| rbac.filter(kind))
    });
    filters.collect()
}

/// The rules of a policy by their names.
pub(super) fn named(
    policy: &Object<AuthorizationPolicy>,
    config: &MeshConfig,
    kind: ChainKind,
) -> Vec<(String, Policy)> {
    let name =
        |i: usize| format!("ns[{}]-policy[{}]-rule[{i}]", policy.meta.namespace, policy.meta.name);
    let rules = policy.spec.rules.as_deref().unwrap_or_default();
    if rules.is_empty() {
        return vec![(name(0), never())];
    }
    let namespace = &policy.meta.namespace;
    let reading = Reading { config, kind, action: policy.spec.action, namespace };
    let rules = rules.iter().enumerate();
    rules.filter_map(|(i, rule)| Some((name(i), reading.policy(rule)?))).collect()
}
