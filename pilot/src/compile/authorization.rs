//! AuthorizationPolicies, as far as layer 4 can enforce them.
//!
//! A rule becomes ANDed clauses: one for all of `to`, one for all of `from`, one for each `when`. What needs the
//! request is left out: an ALLOW rule that has such an attribute is dropped whole (it would allow too much), and in a
//! DENY rule the attribute goes, which may leave a match that never fires; validation says so.

use std::sync::Arc;

use proto::security::{
    self, Authorization, Clause, Match, Scope, ServiceAccountMatch, StringMatch,
    string_match::MatchType,
};

use super::{
    MeshConfig,
    selector::{EVERYWHERE, Selectors},
    workload::octets,
};
use crate::manifests::{
    Action, AuthorizationPolicy, Condition, Labels, Object, Operation, Rule, Selector, Source,
    Values, attribute,
};

/// The policies that are sent.
pub(crate) struct Policies {
    sent: Vec<(Arc<Object<AuthorizationPolicy>>, Scope, security::Action)>,
    selectors: Selectors<Arc<Object<AuthorizationPolicy>>>,
}

impl Policies {
    pub(crate) fn of(all: &[Arc<Object<AuthorizationPolicy>>], config: &MeshConfig) -> Self {
        let mut sent = Vec::new();
        let mut selecting = Vec::new();
        for policy in all {
            let action = match policy.spec.action {
                Action::Allow => security::Action::Allow,
                Action::Deny => security::Action::Deny,
                Action::Audit | Action::Custom => continue,
            };
            if policy.spec.is_targeted() || policy.spec.dry_run {
                continue;
            }
            let in_root = *policy.meta.namespace == *config.root_namespace;
            let scope = match Selector::labels(policy.spec.selector.as_ref()) {
                Some(labels) => {
                    let namespace = if in_root { EVERYWHERE } else { &policy.meta.namespace };
                    selecting.push((namespace, labels, Arc::clone(policy)));
                    Scope::WorkloadSelector
                }
                None if in_root => Scope::Global,
                None => Scope::Namespace,
            };
            sent.push((Arc::clone(policy), scope, action));
        }
        Self { sent, selectors: Selectors::new(selecting) }
    }

    /// The names of the policies that select a pod, sorted.
    pub(crate) fn selecting(&self, namespace: &str, pod: &Labels) -> Vec<String> {
        let policies = self.selectors.matching(namespace, pod);
        let mut names: Vec<_> = policies
            .map(|policy| format!("{}/{}", policy.meta.namespace, policy.meta.name))
            .collect();
        names.sort_unstable();
        names
    }

    /// The messages, in no order.
    pub(crate) fn compile(&self) -> Vec<Authorization> {
        let messages = self.sent.iter().map(|(policy, scope, action)| Authorization {
            name: policy.meta.name.to_string(),
            namespace: policy.meta.namespace.to_string(),
            scope: (*scope).into(),
            action: (*action).into(),
            rules: rules(policy),
            ..Authorization::default()
        });
        messages.collect()
    }
}

/// Whether any connection can match what a daemon is sent: a clause whose matches are all empty never fires.
pub(crate) fn can_fire(policy: &Object<AuthorizationPolicy>) -> bool {
    let fires = |clause: &Clause| clause.matches.iter().any(|one| *one != Match::default());
    rules(policy).iter().any(|rule| rule.clauses.iter().all(fires))
}

fn rules(policy: &Object<AuthorizationPolicy>) -> Vec<security::Rule> {
    let rules = policy.spec.rules.iter().flatten();
    let enforceable = rules.filter(|rule| match policy.spec.action {
        Action::Allow => attribute::beyond_layer_4(rule).is_empty(),
        Action::Deny | Action::Audit | Action::Custom => true,
    });
    enforceable
        .map(|rule| security::Rule { clauses: clauses(rule, &policy.meta.namespace) })
        .collect()
}

/// What a rule comes to at layer 4.
pub(crate) fn clauses(rule: &Rule, namespace: &str) -> Vec<Clause> {
    let mut clauses = Vec::new();
    if let Some(to) = &rule.to {
        let matches = to.iter().filter_map(|to| to.operation.as_ref()).map(operation_match);
        clauses.push(Clause { matches: matches.collect() });
    }
    if let Some(from) = &rule.from {
        let sources = from.iter().filter_map(|from| from.source.as_ref());
        clauses.push(Clause {
            matches: sources.map(|source| source_match(source, namespace)).collect(),
        });
    }
    let conditions = rule.when.iter().flatten();
    clauses
        .extend(conditions.map(|condition| Clause { matches: vec![condition_match(condition)] }));
    clauses
}

fn operation_match(operation: &Operation) -> Match {
    Match {
        destination_ports: ports(&operation.ports),
        not_destination_ports: ports(&operation.not_ports),
        ..Match::default()
    }
}

fn source_match(source: &Source, namespace: &str) -> Match {
    let mut principals = strings(&source.principals);
    if source.beyond_layer_4().is_empty() {
        principals.extend(trust_domains(&source.trust_domains));
    }
    let mut not_principals = strings(&source.not_principals);
    not_principals.extend(trust_domains(&source.not_trust_domains));
    Match {
        principals,
        not_principals,
        namespaces: strings(&source.namespaces),
        not_namespaces: strings(&source.not_namespaces),
        service_accounts: service_accounts(&source.service_accounts, namespace),
        not_service_accounts: service_accounts(&source.not_service_accounts, namespace),
        source_ips: blocks(&source.ip_blocks),
        not_source_ips: blocks(&source.not_ip_blocks),
        ..Match::default()
    }
}

/// A condition on another attribute leaves an empty match, which never fires.
fn condition_match(condition: &Condition) -> Match {
    let Condition { key, values, not_values } = condition;
    match key.as_str() {
        "source.ip" => Match {
            source_ips: blocks(values),
            not_source_ips: blocks(not_values),
            ..Match::default()
        },
        "source.namespace" => Match {
            namespaces: strings(values),
            not_namespaces: strings(not_values),
            ..Match::default()
        },
        "source.principal" => Match {
            principals: strings(values),
            not_principals: strings(not_values),
            ..Match::default()
        },
        "destination.ip" => Match {
            destination_ips: blocks(values),
            not_destination_ips: blocks(not_values),
            ..Match::default()
        },
        "destination.port" => Match {
            destination_ports: ports(values),
            not_destination_ports: ports(not_values),
            ..Match::default()
        },
        _ => Match::default(),
    }
}

fn strings(values: &Values) -> Vec<StringMatch> {
    values.iter().flatten().map(|value| string_match(value)).collect()
}

fn string_match(value: &str) -> StringMatch {
    let kind = if value == "*" {
        MatchType::Presence(())
    } else if let Some(suffix) = value.strip_prefix('*') {
        MatchType::Suffix(suffix.to_owned())
    } else if let Some(prefix) = value.strip_suffix('*') {
        MatchType::Prefix(prefix.to_owned())
    } else {
        MatchType::Exact(value.to_owned())
    };
    StringMatch { match_type: Some(kind) }
}

fn trust_domains(values: &Values) -> impl Iterator<Item = StringMatch> {
    let patterns =
        values.iter().flatten().filter_map(|value| attribute::trust_domain_pattern(value));
    patterns.map(|pattern| string_match(&pattern))
}

fn service_accounts(values: &Values, own: &str) -> Vec<ServiceAccountMatch> {
    let accounts = values.iter().flatten().map(|value| {
        let (namespace, name) = value.split_once('/').unwrap_or((own, value));
        ServiceAccountMatch { namespace: namespace.to_owned(), service_account: name.to_owned() }
    });
    accounts.collect()
}

fn blocks(values: &Values) -> Vec<security::Address> {
    let blocks = values.iter().flatten().filter_map(|value| attribute::block(value));
    blocks
        .map(|(ip, length)| security::Address { address: octets(ip), length: length.into() })
        .collect()
}

fn ports(values: &Values) -> Vec<u32> {
    values.iter().flatten().filter_map(|value| value.parse().ok()).collect()
}
