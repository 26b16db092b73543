//! Identities that policies name and no workload has.
//!
//! In: AuthorizationPolicies, and the accounts of pods, WorkloadEntries and ServiceAccounts. Out: findings on exact
//! names of the mesh's own trust domain. Others may be of another mesh.

use std::collections::HashSet;

use super::{Code, Findings, view::View};
use crate::manifests::Rule;

pub(super) fn find(view: &View<'_>, findings: &mut Findings) {
    if !view.has_pods() {
        return;
    }
    let known = Known::of(view);
    for policy in &view.manifests.authorization_policies {
        for (i, rule) in policy.spec.rules.iter().flatten().enumerate() {
            for (field, account) in accounts(rule, &policy.meta.namespace) {
                if let Some((namespace, name)) = known.is_nobody(&account) {
                    let field = format!("spec.rules[{i}].{field}");
                    let reason = format!("no workload runs as {namespace}/{name}");
                    findings.add(Code::NobodyHasIt, &policy.meta, &field, reason);
                }
            }
        }
    }
}

/// A name, as a policy has it.
enum Name {
    Principal(String),
    Account { namespace: String, name: String },
}

fn accounts(rule: &Rule, own: &str) -> Vec<(String, Name)> {
    let mut all = Vec::new();
    for (i, from) in rule.from.iter().flatten().enumerate() {
        let Some(source) = &from.source else { continue };
        let lists = [("principals", &source.principals), ("notPrincipals", &source.not_principals)];
        for (list, values) in lists {
            for (j, value) in values.iter().flatten().enumerate() {
                let field = format!("from[{i}].source.{list}[{j}]");
                all.push((field, Name::Principal(value.clone())));
            }
        }
        let lists = [
            ("serviceAccounts", &source.service_accounts),
            ("notServiceAccounts", &source.not_service_accounts),
        ];
        for (list, values) in lists {
            for (j, value) in values.iter().flatten().enumerate() {
                let (namespace, name) = value.split_once('/').unwrap_or((own, value));
                let name = Name::Account { namespace: namespace.into(), name: name.into() };
                all.push((format!("from[{i}].source.{list}[{j}]"), name));
            }
        }
    }
    for (i, condition) in rule.when.iter().flatten().enumerate() {
        if condition.key == "source.principal" {
            let values = condition.values.iter().flatten().enumerate();
            all.extend(values.map(|(j, value)| {
                (format!("when[{i}].values[{j}]"), Name::Principal(value.clone()))
            }));
        }
    }
    all
}

struct Known<'a> {
    trust_domains: Vec<&'a str>,
    accounts: HashSet<(&'a str, &'a str)>,
}

impl<'a> Known<'a> {
    fn of(view: &View<'a>) -> Self {
        let all = view.manifests;
        let pods = all.pods.iter();
        let pods = pods.map(|pod| (&*pod.meta.namespace, &*pod.spec.service_account));
        let there = all.service_accounts.iter();
        let there = there.map(|account| (&*account.meta.namespace, &*account.meta.name));
        let entries = all.workload_entries.iter();
        let entries =
            entries.map(|entry| (&*entry.meta.namespace, entry.spec.service_account.as_str()));
        let inline = all.service_entries.iter().flat_map(|entry| {
            let endpoints = entry.spec.endpoints.iter();
            endpoints.map(|one| (&*entry.meta.namespace, one.service_account.as_str()))
        });
        let domains = view.config.trust_domain_aliases.iter().map(String::as_str);
        Self {
            accounts: pods.chain(there).chain(entries).chain(inline).collect(),
            trust_domains: domains
                .chain([view.config.trust_domain.as_str(), "cluster.local"])
                .collect(),
        }
    }

    /// Namespace and name, if it is nobody's.
    fn is_nobody(&self, name: &Name) -> Option<(String, String)> {
        let (namespace, name) = match name {
            Name::Account { namespace, name } => (namespace.as_str(), name.as_str()),
            Name::Principal(text) => {
                let parts: Vec<_> = text.split('/').collect();
                let [domain, "ns", namespace, "sa", name] = parts.as_slice() else { return None };
                if !self.trust_domains.contains(domain) {
                    return None;
                }
                (*namespace, *name)
            }
        };
        let exact = !namespace.contains('*') && !name.contains('*');
        let nobody = exact && name != "default" && !self.accounts.contains(&(namespace, name));
        nobody.then(|| (namespace.to_owned(), name.to_owned()))
    }
}
