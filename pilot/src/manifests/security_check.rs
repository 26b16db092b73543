//! The limits on policies that their schema does not state.
//!
//! In: an AuthorizationPolicy or a PeerAuthentication. Out: problems. A policy that passes has a meaning in every
//! field; what cannot be enforced at layer 4 is a warning, because a waypoint may enforce it.

use std::num::NonZeroU16;

use super::{
    attachment_check::attachment,
    attribute::{self, Layer},
    document::Report,
    security::{
        Action, AuthorizationPolicy, Condition, Operation, PeerAuthentication, Rule, Selector,
        Source, Values,
    },
};

pub(crate) fn authorization_policy(policy: &AuthorizationPolicy, report: &mut Report<'_>) {
    selector(policy.selector.as_ref(), report);
    let targets = policy.target_refs.as_deref().unwrap_or_default();
    attachment(policy.selector.as_ref(), policy.target_ref.as_ref(), targets, report);
    match (policy.action, &policy.provider) {
        (Action::Custom, None) => report.error("spec.provider", "missing: action CUSTOM needs one"),
        (Action::Custom, Some(provider)) if provider.name.is_empty() => {
            report.error("spec.provider.name", "empty");
        }
        (Action::Allow | Action::Deny | Action::Audit, Some(_)) => {
            report.error("spec.provider", "only action CUSTOM has a provider");
        }
        (Action::Custom, Some(_)) | (Action::Allow | Action::Deny | Action::Audit, None) => {}
    }
    for (i, rule) in policy.rules.iter().flatten().enumerate() {
        check_rule(rule, &format!("spec.rules[{i}]"), report);
    }
    enforcement(policy, report);
}

/// What of a policy no daemon enforces.
fn enforcement(policy: &AuthorizationPolicy, report: &mut Report<'_>) {
    if policy.is_targeted() {
        // By the waypoint.
        return;
    }
    match policy.action {
        Action::Audit => return report.warning("spec.action", "AUDIT is not enforced at layer 4"),
        Action::Custom => {
            return report.warning("spec.action", "CUSTOM is not enforced at layer 4");
        }
        Action::Allow | Action::Deny => {}
    }
    for (i, rule) in policy.rules.iter().flatten().enumerate() {
        let beyond = attribute::beyond_layer_4(rule);
        if beyond.is_empty() {
            continue;
        }
        let effect = if policy.action == Action::Allow {
            "the rule allows nothing at layer 4"
        } else {
            "the rule may refuse nothing at layer 4"
        };
        let reason = format!("{} can only be enforced by a waypoint: {effect}", beyond.join(", "));
        report.warning(&format!("spec.rules[{i}]"), reason);
    }
}

fn check_rule(rule: &Rule, field: &str, report: &mut Report<'_>) {
    if rule.from.as_ref().is_some_and(Vec::is_empty) {
        report.error(&format!("{field}.from"), "empty: leave it out or name a source");
    }
    if rule.to.as_ref().is_some_and(Vec::is_empty) {
        report.error(&format!("{field}.to"), "empty: leave it out or name an operation");
    }
    for (i, from) in rule.from.iter().flatten().enumerate() {
        let field = format!("{field}.from[{i}].source");
        match &from.source {
            Some(source) => check_source(source, &field, report),
            None => report.error(&field, "missing"),
        }
    }
    for (i, to) in rule.to.iter().flatten().enumerate() {
        let field = format!("{field}.to[{i}].operation");
        match &to.operation {
            Some(operation) => check_operation(operation, &field, report),
            None => report.error(&field, "missing"),
        }
    }
    for (i, condition) in rule.when.iter().flatten().enumerate() {
        check_condition(condition, &format!("{field}.when[{i}]"), report);
    }
}

fn check_source(source: &Source, field: &str, report: &mut Report<'_>) {
    let attributes = source.attributes();
    if attributes.iter().all(|(_, values)| values.is_none()) {
        report.error(field, "empty: name at least one attribute");
    }
    for (name, values) in attributes {
        check_values(values, &format!("{field}.{name}"), report);
    }
    for (name, values) in [
        ("ipBlocks", &source.ip_blocks),
        ("notIpBlocks", &source.not_ip_blocks),
        ("remoteIpBlocks", &source.remote_ip_blocks),
        ("notRemoteIpBlocks", &source.not_remote_ip_blocks),
    ] {
        check_blocks(values, &format!("{field}.{name}"), report);
    }
    for (name, values) in [
        ("serviceAccounts", &source.service_accounts),
        ("notServiceAccounts", &source.not_service_accounts),
    ] {
        check_service_accounts(values, &format!("{field}.{name}"), report);
    }
    let by_account = source.service_accounts.is_some() || source.not_service_accounts.is_some();
    let by_other =
        [&source.principals, &source.not_principals, &source.namespaces, &source.not_namespaces];
    if by_account && by_other.iter().any(|values| values.is_some()) {
        report.error(field, "serviceAccounts cannot be combined with principals or namespaces");
    }
    for (name, values) in [
        ("principals", &source.principals),
        ("notPrincipals", &source.not_principals),
        ("namespaces", &source.namespaces),
        ("notNamespaces", &source.not_namespaces),
    ] {
        check_wildcards(values, &format!("{field}.{name}"), report);
    }
    check_scheme(&source.principals, &format!("{field}.principals"), report);
    check_scheme(&source.not_principals, &format!("{field}.notPrincipals"), report);
}

/// A principal is `<trust domain>/ns/<namespace>/sa/<account>`: one with the scheme before it is nobody.
fn check_scheme(values: &Values, field: &str, report: &mut Report<'_>) {
    for (i, value) in values.iter().flatten().enumerate() {
        if let Some(rest) = value.strip_prefix("spiffe://") {
            report.warning(&format!("{field}[{i}]"), format!("matches nobody: write `{rest}`"));
        }
    }
}

fn check_operation(operation: &Operation, field: &str, report: &mut Report<'_>) {
    let attributes = operation.attributes();
    if attributes.iter().all(|(_, values)| values.is_none()) {
        report.error(field, "empty: name at least one attribute");
    }
    for (name, values) in attributes {
        check_values(values, &format!("{field}.{name}"), report);
    }
    check_ports(&operation.ports, &format!("{field}.ports"), report);
    check_ports(&operation.not_ports, &format!("{field}.notPorts"), report);
    check_paths(&operation.paths, &format!("{field}.paths"), report);
    check_paths(&operation.not_paths, &format!("{field}.notPaths"), report);
}

/// A template of a path has `{*}` for a segment, and `{**}` for any number of them after everything else that stands for
/// something.
fn check_paths(values: &Values, field: &str, report: &mut Report<'_>) {
    check_each(values, field, report, |value| {
        if !value.contains("{*}") && !value.contains("{**}") {
            return None;
        }
        let rest = value.replace("{*}", "").replace("{**}", "");
        if rest.contains(['*', '{', '}']) {
            return Some(format!(
                "`{value}`: a template has no `*`, `{{` and `}}` but `{{*}}` and `{{**}}`"
            ));
        }
        let segments = value.split('/').filter(|segment| segment.contains('{'));
        let segments: Vec<_> = segments.collect();
        if segments.iter().any(|segment| !matches!(*segment, "{*}" | "{**}")) {
            return Some(format!("`{value}`: `{{*}}` and `{{**}}` stand for whole segments"));
        }
        let any = segments.iter().position(|segment| *segment == "{**}");
        any.is_some_and(|i| i + 1 < segments.len())
            .then(|| format!("`{value}`: nothing can stand for anything after `{{**}}`"))
    });
}

fn check_condition(condition: &Condition, field: &str, report: &mut Report<'_>) {
    if condition.values.is_none() && condition.not_values.is_none() {
        report.error(field, "neither values nor notValues");
    }
    let named = [("values", &condition.values), ("notValues", &condition.not_values)];
    for (name, values) in named {
        check_values(values, &format!("{field}.{name}"), report);
    }
    let check: fn(&Values, &str, &mut Report<'_>) = match attribute::layer_of(&condition.key) {
        Layer::Unknown => {
            let key = &condition.key;
            return report.error(&format!("{field}.key"), format!("there is no attribute `{key}`"));
        }
        Layer::Address => check_blocks,
        Layer::Port => check_ports,
        Layer::Identity => check_wildcards,
        Layer::Http => return,
    };
    for (name, values) in named {
        check(values, &format!("{field}.{name}"), report);
        if condition.key == "source.principal" {
            check_scheme(values, &format!("{field}.{name}"), report);
        }
    }
}

fn check_values(values: &Values, field: &str, report: &mut Report<'_>) {
    if values.as_ref().is_some_and(Vec::is_empty) {
        report.error(field, "empty: leave it out or give a value");
    }
    for (i, value) in values.iter().flatten().enumerate() {
        if value.is_empty() {
            report.error(&format!("{field}[{i}]"), "empty");
        }
    }
}

fn check_each(
    values: &Values,
    field: &str,
    report: &mut Report<'_>,
    fault: impl Fn(&str) -> Option<String>,
) {
    // An empty value has been reported already.
    for (i, value) in values.iter().flatten().enumerate().filter(|(_, value)| !value.is_empty()) {
        if let Some(reason) = fault(value) {
            report.error(&format!("{field}[{i}]"), reason);
        }
    }
}

fn check_blocks(values: &Values, field: &str, report: &mut Report<'_>) {
    check_each(values, field, report, |value| {
        attribute::block(value)
            .is_none()
            .then(|| format!("`{value}` is neither an IP address nor a CIDR block"))
    });
}

fn check_ports(values: &Values, field: &str, report: &mut Report<'_>) {
    check_each(values, field, report, |value| {
        value.parse::<u16>().is_err().then(|| format!("`{value}` is no port (0 to 65535)"))
    });
}

fn check_wildcards(values: &Values, field: &str, report: &mut Report<'_>) {
    for (i, value) in values.iter().flatten().enumerate().filter(|(_, value)| value.len() > 1) {
        if value.starts_with('*') && value.ends_with('*') {
            let reason = format!("`{value}`: the second `*` is taken as it stands");
            report.warning(&format!("{field}[{i}]"), reason);
        }
    }
    check_each(values, field, report, |value| {
        let inner = value.strip_prefix('*').unwrap_or(value);
        let inner = inner.strip_suffix('*').unwrap_or(inner);
        inner.contains('*').then(|| format!("`{value}`: `*` can stand at one end only"))
    });
}

fn check_service_accounts(values: &Values, field: &str, report: &mut Report<'_>) {
    check_each(values, field, report, |value| {
        let parts: Vec<&str> = value.split('/').collect();
        let wrong = value.contains('*') || parts.len() > 2 || parts.contains(&"");
        wrong.then(|| format!("`{value}` is neither `account` nor `namespace/account`"))
    });
}

pub(crate) fn peer_authentication(policy: &PeerAuthentication, report: &mut Report<'_>) {
    selector(policy.selector.as_ref(), report);
    let ports = policy.port_level_mtls.iter().flatten();
    if ports.clone().next().is_some() && Selector::labels(policy.selector.as_ref()).is_none() {
        report.error("spec.portLevelMtls", "needs a selector with labels");
    }
    for (port, _) in ports {
        if u16::try_from(port.0).ok().and_then(NonZeroU16::new).is_none() {
            report.error("spec.portLevelMtls", format!("{} is no port (1 to 65535)", port.0));
        }
    }
}

fn selector(selector: Option<&Selector>, report: &mut Report<'_>) {
    for (key, value) in
        selector.and_then(|selector| selector.match_labels.as_ref()).into_iter().flatten()
    {
        if key.is_empty() {
            report.error("spec.selector.matchLabels", "a label's name is empty");
        }
        if key.contains('*') || value.contains('*') {
            report.error(
                "spec.selector.matchLabels",
                format!("`{key}: {value}`: labels have no wildcards"),
            );
        }
    }
}
