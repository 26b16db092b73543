//! Compares [`authorize`](super::authorize()) with the rules of evaluation, written down once more as plainly as possible.
//!
//! In: arbitrary policies and connections. Out: a failing test where the two disagree. The reference looks at every policy
//! and shares no code with the matcher.

use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;
use proptest::prelude::*;

use super::*;
use crate::identity::Spiffe;

/// One of a field's two lists, evaluated by hand.
fn any<T>(list: &[T], matches: impl Fn(&T) -> bool) -> bool {
    let mut found = false;
    for value in list {
        found = found || matches(value);
    }
    found
}

/// "Positive part true if the list is empty or any value matches; negative part true if the list is empty or no value
/// matches; both required."
fn field<T>(field: &Field<T>, matches: impl Fn(&T) -> bool) -> bool {
    let positive = field.any_of.is_empty() || any(&field.any_of, &matches);
    let negative = field.none_of.is_empty() || !any(&field.none_of, &matches);
    positive && negative
}

fn text(wanted: &StringMatch, text: &str) -> bool {
    match wanted {
        StringMatch::Exact(wanted) => text == wanted.as_ref(),
        StringMatch::Prefix(wanted) => text.get(..wanted.len()) == Some(wanted),
        StringMatch::Suffix(wanted) => {
            text.len() >= wanted.len() && text.get(text.len() - wanted.len()..) == Some(wanted)
        }
        StringMatch::Presence => !text.is_empty(),
    }
}

fn matches(one: &Match, c: &Connection<'_>) -> bool {
    if *one == Match::default() {
        return false;
    }
    let namespace = match c.peer {
        Some(peer) => peer.namespace(),
        None => "",
    };
    let contains = |net: &IpNet, ip: IpAddr| net.network() <= ip && ip <= net.broadcast();
    field(&one.namespaces, |wanted| text(wanted, namespace))
        && field(&one.service_accounts, |wanted| match c.peer {
            Some(peer) => {
                peer.namespace() == &*wanted.namespace && peer.service_account() == &*wanted.name
            }
            None => false,
        })
        && field(&one.principals, |wanted| match c.peer {
            Some(peer) => text(wanted, &peer.as_str()["spiffe://".len()..]),
            None => false,
        })
        && field(&one.source_ips, |net| contains(net, c.source.ip()))
        && field(&one.destination_ips, |net| contains(net, c.destination.ip()))
        && field(&one.destination_ports, |port| *port == c.destination.port())
}

/// The first rule that matches, counted from 1.
fn matching_rule(policy: &Policy, c: &Connection<'_>) -> Option<usize> {
    let mut number = 0;
    for rule in &policy.rules {
        number += 1;
        let mut every_clause = true;
        for clause in &rule.clauses {
            let mut some_match = clause.matches.is_empty();
            for one in &clause.matches {
                some_match |= matches(one, c);
            }
            every_clause &= some_match;
        }
        if every_clause {
            return Some(number);
        }
    }
    None
}

/// What is decided and by which rule, by a look at every policy there is: those for everyone, those of the namespace, those
/// that are named.
fn expected(policies: &[Policy], to: Destination<'_>, c: &Connection<'_>) -> String {
    let mut sorted: Vec<&Policy> = policies.iter().collect();
    sorted.sort_by(|a, b| a.key.cmp(&b.key));
    let global = |policy: &&Policy| policy.scope == Scope::Global;
    let own =
        |policy: &&Policy| policy.scope == Scope::Namespace && &*policy.namespace == to.namespace;
    let mut candidates: Vec<&Policy> = sorted.iter().copied().filter(global).collect();
    candidates.extend(sorted.iter().copied().filter(own));
    for key in to.policies {
        let named = sorted.iter().copied().find(|policy| policy.key == *key);
        candidates.extend(named.filter(|policy| !global(policy) && !own(policy)));
    }
    let of = |action| {
        let enforced =
            move |policy: &&&Policy| policy.mode == Mode::Enforce && policy.action == action;
        candidates.iter().filter(enforced)
    };
    let first = |action| {
        let mut rules = of(action).filter_map(|one| Some((one, matching_rule(one, c)?)));
        rules.next().map(|(one, rule)| format!("rule {rule} of {}", one.key))
    };
    if let Some(rule) = first(Action::Deny) {
        return format!("denied by {rule}");
    }
    if let Some(key) = to.policies.iter().find(|key| !policies.iter().any(|one| one.key == **key)) {
        return format!("{key} is missing");
    }
    match first(Action::Allow) {
        Some(rule) => format!("allowed by {rule}"),
        None if of(Action::Allow).next().is_none() => "unrestricted".to_owned(),
        None => "no allow".to_owned(),
    }
}

fn found(policies: &Policies, to: Destination<'_>, c: &Connection<'_>) -> String {
    match authorize(policies, to, c) {
        Ok(permit) => match permit.grounds() {
            Grounds::Unrestricted => "unrestricted".to_owned(),
            Grounds::Allowed { policy, rule } => format!("allowed by rule {rule} of {policy}"),
            Grounds::Originated => "originated".to_owned(),
        },
        Err(Denied::ByDeny { policy, rule }) => format!("denied by rule {rule} of {policy}"),
        Err(Denied::Missing { policy }) => format!("{policy} is missing"),
        Err(Denied::Invalid { policy, .. }) => format!("{policy} is invalid"),
        Err(Denied::NoAllow { .. }) => "no allow".to_owned(),
    }
}

fn list<T: std::fmt::Debug>(item: impl Strategy<Value = T>) -> impl Strategy<Value = Box<[T]>> {
    prop::collection::vec(item, 0..3).prop_map(Vec::into_boxed_slice)
}

fn some_field<T: std::fmt::Debug + Clone>(
    item: impl Strategy<Value = T> + Clone,
) -> impl Strategy<Value = Field<T>> {
    let filled =
        (list(item.clone()), list(item)).prop_map(|(any_of, none_of)| Field { any_of, none_of });
    prop_oneof![2 => Just(Field::default()), 1 => filled]
}

/// Texts from a small alphabet, so that they meet.
fn some_text() -> impl Strategy<Value = StringMatch> + Clone {
    let texts = prop::sample::select(vec!["", "a", "b", "ab", "td/ns/a", "sa/b", "td/ns/a/sa/b"]);
    (texts, 0..4).prop_map(|(text, kind)| match kind {
        0 => StringMatch::Exact(text.into()),
        1 => StringMatch::Prefix(text.into()),
        2 => StringMatch::Suffix(text.into()),
        _ => StringMatch::Presence,
    })
}

fn some_net() -> impl Strategy<Value = IpNet> + Clone {
    prop::sample::select(vec!["0.0.0.0/0", "10.0.0.0/8", "10.0.0.1/32", "::/0", "fd00::/16"])
        .prop_map(|net| net.parse().unwrap())
}

fn some_match() -> impl Strategy<Value = Match> {
    let account =
        (prop::sample::select(vec!["a", "b"]), prop::sample::select(vec!["a", "b"])).prop_map(
            |(namespace, name)| ServiceAccount { namespace: namespace.into(), name: name.into() },
        );
    let port = prop::sample::select(vec![80_u16, 81]);
    (
        some_field(some_text()),
        some_field(account),
        some_field(some_text()),
        some_field(some_net()),
        some_field(some_net()),
        some_field(port),
    )
        .prop_map(|(namespaces, service_accounts, principals, from, to, destination_ports)| {
            Match {
                namespaces,
                service_accounts,
                principals,
                source_ips: from,
                destination_ips: to,
                destination_ports,
            }
        })
}

fn some_policy() -> impl Strategy<Value = Policy> {
    let clause = list(some_match()).prop_map(|matches| Clause { matches });
    let rule = list(clause).prop_map(|clauses| Rule { clauses });
    (
        prop::sample::select(vec!["a", "b"]),
        0..6_u8,
        prop::sample::select(vec![Scope::Global, Scope::Namespace, Scope::WorkloadSelector]),
        prop::sample::select(vec![Action::Allow, Action::Deny]),
        prop::sample::select(vec![Mode::Enforce, Mode::Enforce, Mode::Enforce, Mode::DryRun]),
        list(rule),
    )
        .prop_map(|(namespace, name, scope, action, mode, rules)| Policy {
            key: format!("{namespace}/{name}").into(),
            namespace: namespace.into(),
            name: name.to_string().into(),
            scope,
            action,
            mode,
            rules,
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn authorize_agrees_with_the_reference(
        policies in prop::collection::vec(some_policy(), 0..16),
        removed in prop::collection::vec(0..6_u8, 0..3),
        named in prop::collection::vec(prop::sample::select(vec!["a/0", "a/1", "b/0"]), 0..2),
        peer in prop::sample::select(vec![None, Some("spiffe://td/ns/a/sa/b"), Some("spiffe://td/ns/b/sa/a")]),
        source in prop::sample::select(vec!["10.0.0.1:1", "10.0.0.2:1", "192.0.2.1:1", "[fd00::1]:1"]),
        destination in prop::sample::select(vec!["10.0.0.1:80", "10.9.0.2:81", "[fd00::2]:80", "[2001:db8::1]:80"]),
    ) {
        let mut index = Policies::default();
        let mut all: Vec<Policy> = Vec::new();
        for policy in policies {
            index.insert(policy.clone());
            all.retain(|held| held.key != policy.key);
            all.push(policy);
        }
        // The index has to come out the same whatever was in it before.
        for name in removed {
            let key = format!("a/{name}");
            index.remove(&key);
            all.retain(|held| *held.key != *key);
        }
        let named: Vec<Arc<str>> = named.into_iter().map(Arc::from).collect();
        let to = Destination { namespace: "a", policies: &named };
        let peer = peer.map(|peer| Spiffe::parse(peer).unwrap());
        let connection = Connection {
            peer: peer.as_ref(),
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
        };
        prop_assert_eq!(found(&index, to, &connection), expected(&all, to, &connection));
    }
}
