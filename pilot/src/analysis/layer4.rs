//! AuthorizationPolicies that daemons enforce, and what of them they cannot.
//!
//! In: policies without targets. Out: findings on rules that need the request, on actions that only a waypoint has, on
//! ports that are not those of a container. What a rule comes to is asked of the compiler.

use std::collections::BTreeSet;

use proto::security;

use super::{Code, Findings, view::View};
use crate::{
    compile::authorization,
    manifests::{
        Action, AuthorizationPolicy, Object, Operation, Rule, Selector, attribute::beyond_layer_4,
    },
};

pub(super) fn find(view: &View<'_>, findings: &mut Findings) {
    for policy in &view.manifests.authorization_policies {
        never(policy, findings);
        if policy.spec.is_targeted() || policy.spec.dry_run {
            continue;
        }
        match policy.spec.action {
            Action::Audit | Action::Custom => {
                let reason = "daemons neither ask nor record: the policy does nothing";
                findings.add(Code::ActionWithoutWaypoint, &policy.meta, "spec.action", reason);
            }
            Action::Allow | Action::Deny => {
                for (i, rule) in policy.spec.rules.iter().flatten().enumerate() {
                    check_rule(policy, rule, &format!("spec.rules[{i}]"), findings);
                }
                ports(view, policy, findings);
            }
        }
    }
}

/// Without rules, only ALLOW means something: nobody.
fn never(policy: &Object<AuthorizationPolicy>, findings: &mut Findings) {
    let empty = policy.spec.rules.as_ref().is_none_or(Vec::is_empty);
    if empty && policy.spec.action != Action::Allow {
        let reason = "there are none: only ALLOW without rules means something (nobody)";
        findings.add(Code::NeverMatches, &policy.meta, "spec.rules", reason);
    }
}

fn check_rule(
    policy: &Object<AuthorizationPolicy>,
    rule: &Rule,
    field: &str,
    findings: &mut Findings,
) {
    let beyond = beyond_layer_4(rule);
    if beyond.is_empty() {
        return;
    }
    let beyond = beyond.join(", ");
    if policy.spec.action == Action::Allow {
        let reason = format!("{beyond}: the rule allows nothing");
        return findings.add(Code::AllowsNothing, &policy.meta, field, reason);
    }
    // A clause of which no match is left is never true, and all clauses of a rule must be.
    let clauses = authorization::clauses(rule, &policy.meta.namespace);
    let never = |clause: &security::Clause| {
        clause.matches.iter().all(|one| *one == security::Match::default())
    };
    if clauses.iter().any(never) {
        let reason = format!("{beyond}: the rule refuses nothing");
        findings.add(Code::DeniesNothing, &policy.meta, field, reason);
    } else {
        let reason = format!("{beyond}: the rule refuses whatever its other attributes match");
        findings.add(Code::DeniesMore, &policy.meta, field, reason);
    }
}

/// Daemons see the port of the container. A rule for a port that none of the selected pods is reached at, and that a
/// Service before them has, means the Service's.
fn ports(view: &View<'_>, policy: &Object<AuthorizationPolicy>, findings: &mut Findings) {
    let pods = view.policed(&policy.meta.namespace, policy.spec.selector.as_ref());
    // A policy for all pods of a namespace or of the mesh is about many services.
    if pods.is_empty() || Selector::labels(policy.spec.selector.as_ref()).is_none() {
        return;
    }
    let mut of_services = BTreeSet::new();
    let mut of_pods = BTreeSet::new();
    for pod in pods {
        for (_, pairs) in view.registry.leading_to(pod) {
            of_services.extend(pairs.iter().map(|(of_service, _)| *of_service));
            of_pods.extend(pairs.iter().map(|(_, target)| *target));
        }
        of_pods.extend(pod.spec.named_ports.iter().map(|(_, number)| *number));
    }
    for (field, port) in named_ports(&policy.spec) {
        if of_services.contains(&port) && !of_pods.contains(&port) {
            let reason = format!("{port} is a port of a Service; daemons see the container's");
            findings.add(Code::OtherSidesPort, &policy.meta, &field, reason);
        }
    }
}

/// The ports that rules name, with their fields.
pub(super) fn named_ports(policy: &AuthorizationPolicy) -> Vec<(String, u16)> {
    let mut all = Vec::new();
    for (i, rule) in policy.rules.iter().flatten().enumerate() {
        for (j, to) in rule.to.iter().flatten().enumerate() {
            let Some(Operation { ports, .. }) = &to.operation else { continue };
            let ports = ports.iter().flatten().filter_map(|port| port.parse().ok());
            let field = format!("spec.rules[{i}].to[{j}].operation.ports");
            all.extend(ports.map(|port| (field.clone(), port)));
        }
        for (j, condition) in rule.when.iter().flatten().enumerate() {
            if condition.key == "destination.port" {
                let ports = condition.values.iter().flatten();
                let field = format!("spec.rules[{i}].when[{j}].values");
                all.extend(
                    ports.filter_map(|port| port.parse().ok()).map(|port| (field.clone(), port)),
                );
            }
        }
    }
    all
}
