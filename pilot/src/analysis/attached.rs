//! Policies that waypoints follow: whether there is one, and whether what they ask for can be known there.
//!
//! In: policies with targets, and those that ought to have some. Out: findings.

use super::{
    Code, Findings,
    layer4::named_ports,
    view::{Targeted, View},
};
use crate::manifests::{
    Action, AuthorizationPolicy, Condition, Meta, Object, Rule, Selector, TargetRef, Values,
    attribute::beyond_layer_4,
};

pub(super) fn find(view: &View<'_>, findings: &mut Findings) {
    without_target(view, findings);
    for (meta, targets) in super::secrets::targeting(view) {
        for (i, target) in targets.into_iter().enumerate() {
            check_guarded(view, meta, target, &format!("spec.targetRefs[{i}]"), findings);
        }
    }
    for policy in view.manifests.authorization_policies.iter().filter(|one| one.spec.is_targeted())
    {
        tokens(view, policy, findings);
        for (i, rule) in policy.spec.rules.iter().flatten().enumerate() {
            protocols(view, policy, rule, &format!("spec.rules[{i}]"), findings);
        }
        ports(view, policy, findings);
        hosts(view, policy, findings);
    }
    for authentication in &view.manifests.request_authentications {
        let targets: Vec<_> = targets_of_tokens(&authentication.spec).collect();
        let mut policies = view.manifests.authorization_policies.iter();
        let needed = policies.any(|policy| {
            needs_token(&policy.spec)
                && shares(view, &targets, &authentication.meta, &policy.spec, &policy.meta)
        });
        if !targets.is_empty() && !needed {
            let reason =
                "requests without a token pass: no AuthorizationPolicy of its targets asks for one";
            findings.add(Code::TokenNotNeeded, &authentication.meta, "spec.jwtRules", reason);
        }
    }
}

/// What no daemon follows, and waypoints only if they are named.
fn without_target(view: &View<'_>, findings: &mut Findings) {
    let all = view.manifests;
    let tokens = all.request_authentications.iter();
    let tokens = tokens.map(|one| (&one.meta, targets_of_tokens(&one.spec).count()));
    let plugins = all.wasm_plugins.iter();
    let plugins = plugins
        .map(|one| (&one.meta, one.spec.target_ref.iter().chain(&one.spec.target_refs).count()));
    let extensions = all.traffic_extensions.iter();
    let extensions = extensions.map(|one| (&one.meta, one.spec.target_refs.len()));
    for (meta, targets) in tokens.chain(plugins).chain(extensions) {
        if targets == 0 {
            let reason = "none: no waypoint follows it, and no daemon can";
            findings.add(Code::WithoutTarget, meta, "spec.targetRefs", reason);
        }
    }
    for one in &all.telemetries {
        let targets = one.spec.target_ref.iter().chain(&one.spec.target_refs).count();
        if targets == 0 && Selector::labels(one.spec.selector.as_ref()).is_some() {
            let reason = "waypoints are not selected by labels: no waypoint follows it";
            findings.add(Code::WithoutTarget, &one.meta, "spec.selector", reason);
        }
    }
}

/// A service without a waypoint has nobody to follow its policies.
fn check_guarded(
    view: &View<'_>,
    meta: &Meta,
    target: &TargetRef,
    field: &str,
    findings: &mut Findings,
) {
    let Some(Targeted::Hosts(hosts)) = view.targeted(target, &meta.namespace) else { return };
    if !hosts.is_empty() && hosts.iter().all(|host| view.guard(host).is_none()) {
        let (kind, namespace) = (&target.kind, &meta.namespace);
        let reason = format!("{kind} {namespace}/{} has no waypoint to follow it", target.name);
        findings.add(Code::PolicyWithoutWaypoint, meta, field, reason);
    }
}

fn targets_of(policy: &AuthorizationPolicy) -> impl Iterator<Item = &TargetRef> {
    policy.target_ref.iter().chain(policy.target_refs.iter().flatten())
}

fn targets_of_tokens(
    policy: &crate::manifests::RequestAuthentication,
) -> impl Iterator<Item = &TargetRef> {
    policy.target_ref.iter().chain(&policy.target_refs)
}

/// Whether some rule can only match a request with a token.
fn needs_token(policy: &AuthorizationPolicy) -> bool {
    policy.rules.iter().flatten().any(|rule| !token_fields(rule).is_empty())
}

/// The attributes of a rule that are a token's.
fn token_fields(rule: &Rule) -> Vec<String> {
    let mut fields = Vec::new();
    for (i, from) in rule.from.iter().flatten().enumerate() {
        let Some(source) = &from.source else { continue };
        let named = |values: &Values| values.is_some();
        if named(&source.request_principals) || named(&source.not_request_principals) {
            fields.push(format!("from[{i}].source"));
        }
    }
    let of_token = |condition: &Condition| condition.key.starts_with("request.auth.");
    let conditions = rule.when.iter().flatten().enumerate();
    let conditions = conditions.filter(|(_, condition)| of_token(condition));
    fields.extend(conditions.map(|(i, _)| format!("when[{i}].key")));
    fields
}

/// Whether both are attached to some place together.
fn shares(
    view: &View<'_>,
    targets: &[&TargetRef],
    meta: &Meta,
    policy: &AuthorizationPolicy,
    of_policy: &Meta,
) -> bool {
    let place = |target: &TargetRef, namespace: &str| {
        (target.kind.clone(), namespace.to_owned(), target.name.clone())
    };
    let covered = |target: &TargetRef, namespace: &str| {
        let targeted = view.targeted(target, namespace);
        let hosts = targeted.iter().flat_map(|targeted| targeted.hosts().iter());
        hosts.map(|host| host.key()).collect::<Vec<_>>()
    };
    targets_of(policy).any(|theirs| {
        let hosts = covered(theirs, &of_policy.namespace);
        targets.iter().any(|ours| {
            place(ours, &meta.namespace) == place(theirs, &of_policy.namespace)
                || covered(ours, &meta.namespace).iter().any(|host| hosts.contains(host))
        })
    })
}

/// What a rule asks of tokens, where none is looked at.
fn tokens(view: &View<'_>, policy: &Object<AuthorizationPolicy>, findings: &mut Findings) {
    let mut all = view.manifests.request_authentications.iter();
    let checked = all.any(|one| {
        let targets: Vec<_> = targets_of_tokens(&one.spec).collect();
        shares(view, &targets, &one.meta, &policy.spec, &policy.meta)
    });
    for (i, rule) in policy.spec.rules.iter().flatten().enumerate() {
        for field in token_fields(rule) {
            let field = format!("spec.rules[{i}].{field}");
            if policy.spec.action == Action::Custom {
                let reason = "no token has been checked when CUSTOM is decided";
                findings.add(Code::CustomBeforeToken, &policy.meta, &field, reason);
            } else if !checked {
                let reason = "no RequestAuthentication has the same target: no request has it";
                findings.add(Code::NoTokenChecked, &policy.meta, &field, reason);
            }
        }
    }
}

/// On a port of connections, what needs the request is left out: ALLOW allows less, DENY refuses more.
fn protocols(
    view: &View<'_>,
    policy: &Object<AuthorizationPolicy>,
    rule: &Rule,
    field: &str,
    findings: &mut Findings,
) {
    let beyond: Vec<_> = beyond_layer_4(rule)
        .into_iter()
        .filter(|name| {
            // A waypoint knows these of a connection, too.
            !matches!(
                *name,
                "connection.sni"
                    | "source.serviceAccount"
                    | "source.trustDomain"
                    | "trustDomains"
                    | "notTrustDomains"
                    | "remote.ip"
                    | "remoteIpBlocks"
                    | "notRemoteIpBlocks"
            )
        })
        .collect();
    if beyond.is_empty() || matches!(policy.spec.action, Action::Audit | Action::Custom) {
        return;
    }
    let named: Vec<u16> = named_ports(&policy.spec).into_iter().map(|(_, port)| port).collect();
    let mut ports = Vec::new();
    for target in targets_of(&policy.spec) {
        let targeted = view.targeted(target, &policy.meta.namespace);
        for host in targeted.iter().flat_map(|targeted| targeted.hosts().iter()) {
            let concerned = host.ports.iter().filter(|port| {
                port.protocol.is_tcp() && (named.is_empty() || named.contains(&port.number))
            });
            ports.extend(concerned.map(|port| format!("{}:{}", host.hostname, port.number)));
        }
    }
    if ports.is_empty() {
        return;
    }
    ports.sort();
    ports.dedup();
    let effect = match policy.spec.action {
        Action::Allow => "the rule allows nothing",
        Action::Deny | Action::Audit | Action::Custom => "the rule refuses more than it says",
    };
    let reason = format!("{}: {effect} on {}", beyond.join(", "), super::view::some_of(&ports));
    findings.add(Code::RequestRuleOnTcp, &policy.meta, field, reason);
}

/// A waypoint sees the port of the Service. One that only its pods have means theirs.
fn ports(view: &View<'_>, policy: &Object<AuthorizationPolicy>, findings: &mut Findings) {
    let targeted = targets_of(&policy.spec)
        .filter_map(|target| view.targeted(target, &policy.meta.namespace))
        .collect::<Vec<_>>();
    let hosts: Vec<_> = targeted.iter().flat_map(|targeted| targeted.hosts()).collect();
    for (field, port) in named_ports(&policy.spec) {
        let of_service = hosts.iter().any(|host| host.port(port).is_some());
        let of_pod = hosts.iter().any(|host| {
            let members = view.registry.members(host);
            members
                .iter()
                .any(|member| member.ports(host).iter().any(|(_, target)| *target == port))
        });
        if of_pod && !of_service {
            let reason = format!("{port} is a port of the pods; a waypoint sees the Service's");
            findings.add(Code::OtherSidesPort, &policy.meta, &field, reason);
        }
    }
}

/// Clients say the port in the host of a request, unless it is the usual one.
fn hosts(view: &View<'_>, policy: &Object<AuthorizationPolicy>, findings: &mut Findings) {
    let usual = targets_of(&policy.spec).any(|target| {
        let targeted = view.targeted(target, &policy.meta.namespace);
        let hosts = targeted.iter().flat_map(|targeted| targeted.hosts());
        let mut ports = hosts.flat_map(|host| &host.ports);
        ports.any(|port| matches!(port.number, 80 | 443))
    });
    let any = targets_of(&policy.spec).any(|target| {
        let targeted = view.targeted(target, &policy.meta.namespace);
        targeted.is_some_and(|targeted| !targeted.hosts().is_empty())
    });
    if usual || !any {
        return;
    }
    for (i, rule) in policy.spec.rules.iter().flatten().enumerate() {
        for (j, to) in rule.to.iter().flatten().enumerate() {
            let Some(operation) = &to.operation else { continue };
            let values: Vec<_> = operation.hosts.iter().flatten().collect();
            let bare = |host: &&&String| !host.contains(':') && !host.ends_with('*');
            let alone = values
                .iter()
                .filter(bare)
                .find(|host| !values.iter().any(|other| other.starts_with(&format!("{host}:"))));
            if let Some(host) = alone {
                let field = format!("spec.rules[{i}].to[{j}].operation.hosts");
                let reason = format!("`{host}` is not what clients of these ports say");
                findings.add(Code::HostWithoutPort, &policy.meta, &field, reason);
            }
        }
    }
}
