//! Policies written down in one line each, for tests.
//!
//! ```text
//! allow|deny|allow-dry|deny-dry  NAMESPACE/NAME  global|namespace|selector  none | RULE | RULE ..
//! ```
//! A rule is `*`, or clauses joined by `&`; a clause is `any`, or matches joined by `,`; a match is `{}`, or fields
//! `name=value+value` separated by spaces.

use std::net::IpAddr;

use proto::security::{
    Address, Authorization, Clause, Match, Rule, ServiceAccountMatch, StringMatch,
    string_match::MatchType,
};

use crate::policy::Policies;

/// Reads policies, through the same messages that a control plane sends.
pub(in crate::policy) fn policies(written: &str) -> Policies {
    let mut policies = Policies::default();
    for line in written.lines().map(str::trim).filter(|line| !line.is_empty()) {
        policies.insert(policy(line).try_into().expect("fixtures are well formed"));
    }
    policies
}

fn policy(line: &str) -> Authorization {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [action, key, scope, rules @ ..] = &words[..] else { panic!("not understood: {line}") };
    let (namespace, name) = key.split_once('/').unwrap();
    let rules = rules.join(" ");
    Authorization {
        name: name.into(),
        namespace: namespace.into(),
        scope: match *scope {
            "global" => 0,
            "namespace" => 1,
            "selector" => 2,
            other => panic!("scope {other}"),
        },
        action: i32::from(action.starts_with("deny")),
        dry_run: action.ends_with("-dry"),
        rules: match rules.as_str() {
            "none" => Vec::new(),
            rules => rules.split(" | ").map(rule).collect(),
        },
        extensions: Vec::new(),
    }
}

fn rule(text: &str) -> Rule {
    match text {
        "*" => Rule::default(),
        text => Rule { clauses: text.split(" & ").map(clause).collect() },
    }
}

fn clause(text: &str) -> Clause {
    match text {
        "any" => Clause::default(),
        text => Clause { matches: text.split(" , ").map(one_match).collect() },
    }
}

fn one_match(text: &str) -> Match {
    let mut one = Match::default();
    for field in text.split_whitespace().filter(|field| *field != "{}") {
        let (name, values) = field.split_once('=').unwrap();
        let values = || values.split('+');
        match name {
            "namespaces" => one.namespaces = values().map(string).collect(),
            "not_namespaces" => one.not_namespaces = values().map(string).collect(),
            "principals" => one.principals = values().map(string).collect(),
            "not_principals" => one.not_principals = values().map(string).collect(),
            "service_accounts" => one.service_accounts = values().map(account).collect(),
            "not_service_accounts" => one.not_service_accounts = values().map(account).collect(),
            "source_ips" => one.source_ips = values().map(address).collect(),
            "not_source_ips" => one.not_source_ips = values().map(address).collect(),
            "destination_ips" => one.destination_ips = values().map(address).collect(),
            "not_destination_ips" => one.not_destination_ips = values().map(address).collect(),
            "ports" => one.destination_ports = values().map(|p| p.parse().unwrap()).collect(),
            "not_ports" => {
                one.not_destination_ports = values().map(|p| p.parse().unwrap()).collect()
            }
            other => panic!("field {other}"),
        }
    }
    one
}

fn string(text: &str) -> StringMatch {
    let match_type = match (text.strip_prefix('*'), text.strip_suffix('*')) {
        (Some(""), _) => MatchType::Presence(()),
        (Some(suffix), _) => MatchType::Suffix(suffix.into()),
        (None, Some(prefix)) => MatchType::Prefix(prefix.into()),
        (None, None) => MatchType::Exact(text.into()),
    };
    StringMatch { match_type: Some(match_type) }
}

fn account(text: &str) -> ServiceAccountMatch {
    let (namespace, account) = text.split_once('/').unwrap();
    ServiceAccountMatch { namespace: namespace.into(), service_account: account.into() }
}

fn address(text: &str) -> Address {
    let (ip, length) = text.split_once('/').unwrap();
    let address = match ip.parse().unwrap() {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    Address { address, length: length.parse().unwrap() }
}
