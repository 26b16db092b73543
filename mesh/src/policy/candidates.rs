//! Policies found by what a connection has, without a look at those that ask for something else.
//!
//! In: policies of one action, and a [`Connection`]. Out: the first policy that matches it. For each rule one of its
//! conditions is looked up; the whole policy is then evaluated. Rules of which nothing can be looked up are all
//! evaluated.

use std::{collections::BTreeMap, hash::Hash, net::IpAddr, sync::Arc};

use imbl::{HashMap, OrdMap};
use ipnet::IpNet;

use super::{Clause, Connection, Match, Policy, Rule, StringMatch};

/// Policies by key, in the order of their keys.
pub(super) type ByKey = OrdMap<Arc<str>, Arc<Policy>>;

/// Policies of one action.
#[derive(Clone, Debug, Default)]
pub(super) struct Candidates {
    all: ByKey,
    texts: [Texts; 7],
    sources: Nets,
    destinations: Nets,
    ports: HashMap<u16, ByKey>,
    /// Those with a rule of which nothing can be looked up.
    rest: ByKey,
}

/// Policies by a text, or by its beginning or end.
#[derive(Clone, Debug, Default)]
struct Texts {
    by_text: HashMap<Box<str>, ByKey>,
    /// How many texts there are of each length.
    lengths: BTreeMap<usize, usize>,
}

/// Policies by a prefix of addresses.
#[derive(Clone, Debug, Default)]
struct Nets {
    by_net: HashMap<IpNet, ByKey>,
    /// How many prefixes there are of each length, of IPv4 and of IPv6.
    lengths: [BTreeMap<u8, usize>; 2],
}

/// What is compared with a text.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum TextField {
    Namespace,
    NamespacePrefix,
    NamespaceSuffix,
    Principal,
    PrincipalPrefix,
    PrincipalSuffix,
    /// `<namespace>/sa/<service account>`, which is the end of a principal.
    Account,
}

/// One value that a rule asks for.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Wanted {
    Text(TextField, Box<str>),
    Source(IpNet),
    Destination(IpNet),
    Port(u16),
}

/// Where a rule is found.
enum Place {
    /// Under each of these values.
    Under(Vec<Wanted>),
    /// Nowhere: a clause of it never holds.
    Nowhere,
    /// Among the rest.
    Rest,
}

impl Candidates {
    /// All of them.
    pub(super) fn all(&self) -> &ByKey {
        &self.all
    }

    pub(super) fn insert(&mut self, policy: &Arc<Policy>) {
        self.all.insert(policy.key.clone(), policy.clone());
        for rule in &policy.rules {
            match self.place(rule) {
                Place::Under(values) => {
                    for value in values {
                        self.put(value, policy);
                    }
                }
                Place::Nowhere => {}
                Place::Rest => {
                    self.rest.insert(policy.key.clone(), policy.clone());
                }
            }
        }
    }

    /// Takes out a policy that was inserted.
    pub(super) fn remove(&mut self, policy: &Policy) {
        self.all.remove(&policy.key);
        self.rest.remove(&policy.key);
        let clauses = policy.rules.iter().flat_map(|rule| rule.clauses.iter());
        let matches = clauses.flat_map(|clause| clause.matches.iter());
        // Which of its values a rule was put under depended on what else was there.
        for value in matches.flat_map(alternatives).flatten() {
            self.take(&value, &policy.key);
        }
    }

    /// The first policy that matches, in the order of keys, and its first rule that does, counted from 1.
    pub(super) fn first_match(&self, connection: &Connection<'_>) -> Option<(&Arc<Policy>, usize)> {
        let mut first: Option<(&Arc<Policy>, usize)> = None;
        self.each_found(connection, |policies| {
            for policy in policies.values() {
                if first.is_some_and(|(first, _)| first.key <= policy.key) {
                    return;
                }
                if let Some(rule) = policy.matching_rule(connection) {
                    first = Some((policy, rule));
                    return;
                }
            }
        });
        first
    }

    /// The policies that something the connection has leads to, at most `most`, then all others that cannot be looked up.
    pub(super) fn likely(&self, connection: &Connection<'_>, most: usize) -> Vec<&Arc<Policy>> {
        let mut found = Vec::new();
        self.each_found(connection, |policies| {
            found.extend(policies.values().take(most.saturating_sub(found.len())));
        });
        found
    }

    /// Passes on every set of policies that the connection leads to.
    fn each_found<'a>(&'a self, connection: &Connection<'_>, mut each: impl FnMut(&'a ByKey)) {
        use TextField::{
            Account, Namespace, NamespacePrefix, NamespaceSuffix, Principal, PrincipalPrefix,
            PrincipalSuffix,
        };
        let namespace = connection.peer.map_or("", |peer| peer.namespace());
        self.texts(Namespace).exact(namespace, &mut each);
        self.texts(NamespacePrefix).beginning(namespace, &mut each);
        self.texts(NamespaceSuffix).end(namespace, &mut each);
        if let Some(peer) = connection.peer {
            let principal = peer.principal();
            self.texts(Principal).exact(principal, &mut each);
            self.texts(PrincipalPrefix).beginning(principal, &mut each);
            self.texts(PrincipalSuffix).end(principal, &mut each);
            let account = "/ns/".len() + peer.trust_domain().len();
            self.texts(Account).exact(&principal[account..], &mut each);
        }
        self.sources.containing(connection.source.ip(), &mut each);
        self.destinations.containing(connection.destination.ip(), &mut each);
        if !self.ports.is_empty()
            && let Some(found) = self.ports.get(&connection.destination.port())
        {
            each(found);
        }
        each(&self.rest);
    }

    fn texts(&self, field: TextField) -> &Texts {
        &self.texts[field as usize]
    }

    /// Where a rule is best found: by the condition under whose values the fewest policies are.
    fn place(&self, rule: &Rule) -> Place {
        let never = |clause: &Clause| {
            !clause.matches.is_empty() && clause.matches.iter().all(Match::is_empty)
        };
        if rule.clauses.iter().any(never) {
            return Place::Nowhere;
        }
        let places = rule.clauses.iter().filter_map(|clause| self.place_of_clause(clause));
        match places.min_by_key(|(crowd, _)| *crowd) {
            Some((_, values)) => Place::Under(values),
            None => Place::Rest,
        }
    }

    /// Values one of which a connection has if the clause holds, and how many policies are under the fullest.
    fn place_of_clause(&self, clause: &Clause) -> Option<(usize, Vec<Wanted>)> {
        let real = clause.matches.iter().filter(|one| !one.is_empty());
        let mut place: Option<(usize, Vec<Wanted>)> = None;
        for one in real {
            let crowd = |values: &Vec<Wanted>| {
                values.iter().map(|value| self.crowd(value)).max().unwrap_or_default()
            };
            let best = alternatives(one).into_iter().map(|values| (crowd(&values), values));
            let (crowd, values) = best.min_by_key(|(crowd, _)| *crowd)?;
            let (fullest, all) = place.get_or_insert_default();
            *fullest = crowd.max(*fullest);
            all.extend(values);
        }
        place
    }

    fn crowd(&self, value: &Wanted) -> usize {
        let found = match value {
            Wanted::Text(field, text) => self.texts(*field).by_text.get(&**text),
            Wanted::Source(net) => self.sources.by_net.get(net),
            Wanted::Destination(net) => self.destinations.by_net.get(net),
            Wanted::Port(port) => self.ports.get(port),
        };
        found.map_or(0, OrdMap::len)
    }

    fn put(&mut self, value: Wanted, policy: &Arc<Policy>) {
        match value {
            Wanted::Text(field, text) => self.texts[field as usize].put(text, policy),
            Wanted::Source(net) => self.sources.put(net, policy),
            Wanted::Destination(net) => self.destinations.put(net, policy),
            Wanted::Port(port) => drop(put(&mut self.ports, port, policy)),
        }
    }

    fn take(&mut self, value: &Wanted, key: &str) {
        match value {
            Wanted::Text(field, text) => self.texts[*field as usize].take(text, key),
            Wanted::Source(net) => self.sources.take(*net, key),
            Wanted::Destination(net) => self.destinations.take(*net, key),
            Wanted::Port(port) => drop(take(&mut self.ports, port, key)),
        }
    }
}

impl Texts {
    fn put(&mut self, text: Box<str>, policy: &Arc<Policy>) {
        let length = text.len();
        if put(&mut self.by_text, text, policy) {
            *self.lengths.entry(length).or_default() += 1;
        }
    }

    fn take(&mut self, text: &str, key: &str) {
        if take(&mut self.by_text, text, key) {
            count_down(&mut self.lengths, text.len());
        }
    }

    fn exact<'a>(&'a self, text: &str, each: &mut impl FnMut(&'a ByKey)) {
        if self.by_text.is_empty() {
            return;
        }
        if let Some(found) = self.by_text.get(text) {
            each(found);
        }
    }

    fn beginning<'a>(&'a self, text: &str, each: &mut impl FnMut(&'a ByKey)) {
        for length in self.lengths.keys() {
            // What is not at the boundary of a character is the beginning of no text.
            let Some(beginning) = text.get(..*length) else { continue };
            self.exact(beginning, each);
        }
    }

    fn end<'a>(&'a self, text: &str, each: &mut impl FnMut(&'a ByKey)) {
        for length in self.lengths.keys() {
            let end = text.len().checked_sub(*length).and_then(|start| text.get(start..));
            let Some(end) = end else { continue };
            self.exact(end, each);
        }
    }
}

impl Nets {
    fn put(&mut self, net: IpNet, policy: &Arc<Policy>) {
        if put(&mut self.by_net, net, policy) {
            *self.lengths[usize::from(net.addr().is_ipv6())]
                .entry(net.prefix_len())
                .or_default() += 1;
        }
    }

    fn take(&mut self, net: IpNet, key: &str) {
        if take(&mut self.by_net, &net, key) {
            count_down(&mut self.lengths[usize::from(net.addr().is_ipv6())], net.prefix_len());
        }
    }

    fn containing<'a>(&'a self, ip: IpAddr, each: &mut impl FnMut(&'a ByKey)) {
        let ip = ip.to_canonical();
        for length in self.lengths[usize::from(ip.is_ipv6())].keys() {
            let Ok(net) = IpNet::new(ip, *length) else { continue };
            if let Some(found) = self.by_net.get(&net.trunc()) {
                each(found);
            }
        }
    }
}

/// For each field that wants one of several values that can be looked up, these values.
fn alternatives(one: &Match) -> Vec<Vec<Wanted>> {
    let mut fields = Vec::new();
    let mut add = |values: Option<Vec<Wanted>>| {
        fields.extend(values.filter(|values| !values.is_empty()));
    };
    add(texts(
        &one.principals.any_of,
        [TextField::Principal, TextField::PrincipalPrefix, TextField::PrincipalSuffix],
    ));
    let accounts = one.service_accounts.any_of.iter().map(|account| {
        let text = format!("{}/sa/{}", account.namespace, account.name);
        Wanted::Text(TextField::Account, text.into())
    });
    add(Some(accounts.collect()));
    add(texts(
        &one.namespaces.any_of,
        [TextField::Namespace, TextField::NamespacePrefix, TextField::NamespaceSuffix],
    ));
    add(Some(one.source_ips.any_of.iter().map(|net| Wanted::Source(net.trunc())).collect()));
    let destinations = one.destination_ips.any_of.iter();
    add(Some(destinations.map(|net| Wanted::Destination(net.trunc())).collect()));
    add(Some(one.destination_ports.any_of.iter().copied().map(Wanted::Port).collect()));
    fields
}

/// The texts of a field; none if it wants any text there may be.
fn texts(wanted: &[StringMatch], [exact, prefix, suffix]: [TextField; 3]) -> Option<Vec<Wanted>> {
    let one = |wanted: &StringMatch| match wanted {
        StringMatch::Exact(text) => Some(Wanted::Text(exact, text.clone())),
        StringMatch::Prefix(text) => Some(Wanted::Text(prefix, text.clone())),
        StringMatch::Suffix(text) => Some(Wanted::Text(suffix, text.clone())),
        StringMatch::Presence => None,
    };
    wanted.iter().map(one).collect()
}

/// Puts a policy under a value; says whether the value is new.
fn put<K: Clone + Eq + Hash>(map: &mut HashMap<K, ByKey>, value: K, policy: &Arc<Policy>) -> bool {
    let policies = map.entry(value).or_default();
    let is_new = policies.is_empty();
    policies.insert(policy.key.clone(), policy.clone());
    is_new
}

/// Takes a policy from under a value; says whether the value is gone with it.
fn take<K, Q>(map: &mut HashMap<K, ByKey>, value: &Q, key: &str) -> bool
where
    K: Clone + Eq + Hash + std::borrow::Borrow<Q>,
    Q: Eq + Hash + ?Sized,
{
    let Some(policies) = map.get_mut(value) else { return false };
    policies.remove(key);
    let gone = policies.is_empty();
    if gone {
        map.remove(value);
    }
    gone
}

fn count_down<L: Ord>(lengths: &mut BTreeMap<L, usize>, length: L) {
    if let Some(count) = lengths.get_mut(&length) {
        *count -= 1;
        if *count == 0 {
            lengths.remove(&length);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Action, tests::fixture::policies},
        *,
    };
    use crate::identity::Spiffe;

    /// Where the one rule of a policy is found.
    fn check(rules: &str, expected: &str) {
        let held = policies(&format!("deny shop/d namespace {rules}"));
        let policy = held.get("shop/d").unwrap();
        assert_eq!(policy.action, Action::Deny);
        let found = match Candidates::default().place(&policy.rules[0]) {
            Place::Under(values) => format!("{values:?}"),
            Place::Nowhere => "nowhere".to_owned(),
            Place::Rest => "rest".to_owned(),
        };
        assert_eq!(found, expected, "{rules}");
    }

    #[test]
    fn a_rule_is_found_by_a_condition_that_must_hold() {
        check("principals=a", r#"[Text(Principal, "a")]"#);
        check("ports=1+2", "[Port(1), Port(2)]");
        check("namespaces=a , ports=1", r#"[Text(Namespace, "a"), Port(1)]"#);
        check("not_ports=1 & source_ips=10.0.0.0/8", "[Source(10.0.0.0/8)]");
        check("service_accounts=shop/web", r#"[Text(Account, "shop/sa/web")]"#);
        check("principals=a* & {} , ports=1", r#"[Text(PrincipalPrefix, "a")]"#);
        check("{} , ports=1", "[Port(1)]");
    }

    #[test]
    fn a_rule_that_excludes_or_takes_anything_is_among_the_rest() {
        for rules in ["*", "any", "not_ports=1", "principals=*", "ports=1 , not_principals=*"] {
            check(rules, "rest");
        }
    }

    #[test]
    fn a_rule_that_never_holds_is_found_nowhere() {
        check("{}", "nowhere");
        check("ports=1 & {}", "nowhere");
    }

    #[test]
    fn a_rule_is_put_where_the_fewest_others_are() {
        let mut written = String::new();
        for port in 1..=20 {
            written += &format!("deny shop/p{port:02} namespace namespaces=web & ports={port}\n");
        }
        let held = policies(&written);
        let mut candidates = Candidates::default();
        held.iter().for_each(|policy| candidates.insert(policy));
        let peer = Spiffe::new("td", "web", "front").unwrap();
        let source = "10.0.0.1:1".parse().unwrap();
        let at = |port| Connection {
            peer: Some(&peer),
            source,
            destination: std::net::SocketAddr::from(([10, 0, 0, 2], port)),
        };
        let mut looked_at = 0;
        candidates.each_found(&at(7), |policies| looked_at += policies.len());
        assert!(looked_at <= 3, "{looked_at}");
        let (policy, rule) = candidates.first_match(&at(7)).unwrap();
        assert_eq!((&*policy.key, rule), ("shop/p07", 1));
        assert!(candidates.first_match(&at(21)).is_none());
        held.iter().for_each(|policy| candidates.remove(policy));
        assert!(candidates.all().is_empty());
        candidates.each_found(&at(7), |policies| assert!(policies.is_empty()));
        assert!(candidates.texts.iter().all(|texts| texts.lengths.is_empty()));
    }
}
