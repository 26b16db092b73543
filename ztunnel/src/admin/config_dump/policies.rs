//! Policies as the dump shows them.

use ipnet::IpNet;
use mesh::policy::{self, Action, Field, Mode, Policies, Reach, Scope};
use serde::Serialize;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Policy<'a> {
    name: &'a str,
    namespace: &'a str,
    scope: &'static str,
    action: &'static str,
    rules: Vec<Rule<'a>>,
    dry_run: bool,
}

type Rule<'a> = Vec<Clause<'a>>;
type Clause<'a> = Vec<Match<'a>>;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Match<'a> {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    namespaces: Vec<StringMatch<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_namespaces: Vec<StringMatch<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    service_accounts: Vec<ServiceAccount<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_service_accounts: Vec<ServiceAccount<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    principals: Vec<StringMatch<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    not_principals: Vec<StringMatch<'a>>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    source_ips: &'a [IpNet],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    not_source_ips: &'a [IpNet],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    destination_ips: &'a [IpNet],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    not_destination_ips: &'a [IpNet],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    destination_ports: &'a [u16],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    not_destination_ports: &'a [u16],
}

#[derive(Serialize)]
enum StringMatch<'a> {
    Exact(&'a str),
    Prefix(&'a str),
    Suffix(&'a str),
    Presence(),
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ServiceAccount<'a> {
    namespace: &'a str,
    service_account: &'a str,
}

/// A policy whose newest version cannot be understood.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Rejected<'a> {
    policy: &'a str,
    applies_to: String,
    error: &'a str,
    in_force: &'static str,
}

impl<'a> Rejected<'a> {
    pub(super) fn of(rejected: &'a policy::Rejected, policies: &Policies) -> Self {
        let older = policies.get(&rejected.key).is_some();
        Self {
            policy: &rejected.key,
            applies_to: match &rejected.reach {
                Reach::Everyone => "everyone".to_owned(),
                Reach::Namespace(namespace) => format!("namespace {namespace}"),
                Reach::Named => "workloads that name it".to_owned(),
                Reach::NoOne => "nobody: it is a dry run".to_owned(),
            },
            error: &rejected.fault,
            in_force: match &rejected.reach {
                _ if older => "older version",
                Reach::Everyone | Reach::Namespace(_) | Reach::Named => "denial",
                Reach::NoOne => "nothing",
            },
        }
    }
}

impl<'a> Policy<'a> {
    pub(super) fn of(policy: &'a policy::Policy) -> Self {
        Self {
            name: &policy.name,
            namespace: &policy.namespace,
            scope: match policy.scope {
                Scope::Global => "Global",
                Scope::Namespace => "Namespace",
                Scope::WorkloadSelector => "WorkloadSelector",
            },
            action: match policy.action {
                Action::Allow => "Allow",
                Action::Deny => "Deny",
            },
            rules: policy.rules.iter().map(rule).collect(),
            dry_run: policy.mode == Mode::DryRun,
        }
    }
}

fn rule(rule: &policy::Rule) -> Rule<'_> {
    rule.clauses.iter().map(|clause| clause.matches.iter().map(Match::of).collect()).collect()
}

impl<'a> Match<'a> {
    fn of(matched: &'a policy::Match) -> Self {
        let strings = |field: &'a Field<policy::StringMatch>| {
            (StringMatch::all(&field.any_of), StringMatch::all(&field.none_of))
        };
        let (namespaces, not_namespaces) = strings(&matched.namespaces);
        let (principals, not_principals) = strings(&matched.principals);
        Self {
            namespaces,
            not_namespaces,
            service_accounts: ServiceAccount::all(&matched.service_accounts.any_of),
            not_service_accounts: ServiceAccount::all(&matched.service_accounts.none_of),
            principals,
            not_principals,
            source_ips: &matched.source_ips.any_of,
            not_source_ips: &matched.source_ips.none_of,
            destination_ips: &matched.destination_ips.any_of,
            not_destination_ips: &matched.destination_ips.none_of,
            destination_ports: &matched.destination_ports.any_of,
            not_destination_ports: &matched.destination_ports.none_of,
        }
    }
}

impl<'a> StringMatch<'a> {
    fn all(matches: &'a [policy::StringMatch]) -> Vec<Self> {
        let one = |matched: &'a policy::StringMatch| match matched {
            policy::StringMatch::Exact(text) => Self::Exact(text),
            policy::StringMatch::Prefix(text) => Self::Prefix(text),
            policy::StringMatch::Suffix(text) => Self::Suffix(text),
            policy::StringMatch::Presence => Self::Presence(),
        };
        matches.iter().map(one).collect()
    }
}

impl<'a> ServiceAccount<'a> {
    fn all(accounts: &'a [policy::ServiceAccount]) -> Vec<Self> {
        let one = |account: &'a policy::ServiceAccount| Self {
            namespace: &account.namespace,
            service_account: &account.name,
        };
        accounts.iter().map(one).collect()
    }
}
