//! Which ALLOW rule came nearest to allowing a connection, and on what it missed.
//!
//! In: ALLOW policies, none of which matched. Out: a [`NearestMiss`] for the user's sentence.

use std::{fmt, sync::Arc};

use super::{
    Clause, Connection, Field, Match, Policy, Rule,
    matching::{FieldVerdict, MatchField},
};

/// How many wanted values a sentence lists.
const LISTED: usize = 4;

/// How many rules are looked at for the sentence of a refusal. Whoever is refused must not cost more than whoever is
/// not.
pub(super) const EXAMINED: usize = 48;

/// The rule that came nearest to allowing a connection: the fewest clauses that fail, then the fewest fields.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum NearestMiss {
    /// No policy has a rule; this is the first policy.
    NoRules {
        /// `<namespace>/<name>`.
        policy: Arc<str>,
    },
    /// A clause of the rule has no condition that can hold at this layer.
    EmptyClause {
        /// `<namespace>/<name>`.
        policy: Arc<str>,
        /// Which of its rules, counted from 1.
        rule: usize,
    },
    /// A field of the rule does not hold.
    Field {
        /// `<namespace>/<name>`.
        policy: Arc<str>,
        /// Which of its rules, counted from 1.
        rule: usize,
        /// The field's name in the compiled policy, such as `not_source_ips`.
        field: &'static str,
        /// What the rule asks of it.
        wanted: String,
        /// What the connection has.
        found: String,
    },
}

impl fmt::Display for NearestMiss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRules { policy } => write!(f, "{policy} has no rules, so it allows nothing"),
            Self::EmptyClause { policy, rule } => {
                write!(f, "nearest is rule {rule} of {policy}, which cannot match at layer 4")
            }
            Self::Field { policy, rule, field, wanted, found } => {
                write!(
                    f,
                    "nearest is rule {rule} of {policy}, whose {field} wants {wanted} and found {found}"
                )
            }
        }
    }
}

/// How far a rule is from holding: failing clauses, then failing fields in the best match of each.
type Distance = (usize, usize);

/// No rule that fails is nearer.
const NEAREST: Distance = (1, 1);

impl NearestMiss {
    /// The nearest of policies that did not match, the first among equals and of as many as are looked at; none if there
    /// are no policies.
    pub(super) fn among<'a>(
        policies: impl Iterator<Item = &'a Arc<Policy>>,
        connection: &Connection<'_>,
    ) -> Option<Self> {
        let mut without_rules = None;
        let mut best: Option<(Distance, &Policy, usize)> = None;
        let mut examined = 0;
        for policy in policies {
            if policy.rules.is_empty() {
                without_rules.get_or_insert(policy);
            }
            for (index, rule) in policy.rules.iter().enumerate() {
                examined += 1;
                let distance = rule.distance(connection);
                if best.is_none_or(|(nearest, ..)| distance < nearest) {
                    best = Some((distance, policy, index));
                }
            }
            if examined >= EXAMINED || best.is_some_and(|(nearest, ..)| nearest == NEAREST) {
                break;
            }
        }
        match (best, without_rules) {
            (Some((_, policy, index)), _) => Some(Self::of(policy, index, connection)),
            (None, Some(policy)) => Some(Self::NoRules { policy: policy.key.clone() }),
            (None, None) => None,
        }
    }

    fn of(policy: &Policy, index: usize, connection: &Connection<'_>) -> Self {
        let (policy, rule) = (policy.key.clone(), &policy.rules[index]);
        let rule_number = index + 1;
        let failing = rule.clauses.iter().find(|clause| !clause.holds(connection));
        let nearest = failing.and_then(|clause| clause.nearest_match(connection));
        let missed = nearest.and_then(|(one, _)| {
            let field = MatchField::ALL.into_iter().find(|field| one.misses(*field, connection))?;
            Some((one, field, one.verdict(field, connection)))
        });
        match missed {
            None => Self::EmptyClause { policy, rule: rule_number },
            Some((one, field, verdict)) => Self::Field {
                policy,
                rule: rule_number,
                field: field.name(verdict),
                wanted: one.wanted(field, verdict),
                found: field.found(connection),
            },
        }
    }
}

impl Rule {
    fn distance(&self, connection: &Connection<'_>) -> Distance {
        let asking = self.clauses.iter().filter(|clause| !clause.matches.is_empty());
        // The nearest match of a clause that holds misses nothing.
        asking.fold((0, 0), |(clauses, fields), clause| match clause.nearest_match(connection) {
            Some((_, 0)) => (clauses, fields),
            Some((_, missed)) => (clauses + 1, fields + missed),
            None => (clauses + 1, fields + MatchField::ALL.len()),
        })
    }
}

impl Clause {
    /// The match with the fewest failing fields, and how many these are; none if no match asks for anything.
    fn nearest_match(&self, connection: &Connection<'_>) -> Option<(&Match, usize)> {
        let real = self.matches.iter().filter(|one| !one.is_empty());
        real.map(|one| (one, one.missed_fields(connection))).min_by_key(|(_, missed)| *missed)
    }
}

impl Match {
    fn missed_fields(&self, connection: &Connection<'_>) -> usize {
        MatchField::ALL.iter().filter(|field| self.misses(**field, connection)).count()
    }

    fn misses(&self, field: MatchField, connection: &Connection<'_>) -> bool {
        self.verdict(field, connection) != FieldVerdict::Holds
    }

    fn wanted(&self, field: MatchField, verdict: FieldVerdict) -> String {
        match field {
            MatchField::Namespaces => self.namespaces.wanted(verdict),
            MatchField::ServiceAccounts => self.service_accounts.wanted(verdict),
            MatchField::Principals => self.principals.wanted(verdict),
            MatchField::SourceIps => self.source_ips.wanted(verdict),
            MatchField::DestinationIps => self.destination_ips.wanted(verdict),
            MatchField::DestinationPorts => self.destination_ports.wanted(verdict),
        }
    }
}

impl<T: fmt::Display> Field<T> {
    fn wanted(&self, verdict: FieldVerdict) -> String {
        match verdict {
            FieldVerdict::NoneWanted | FieldVerdict::Holds => listed(&self.any_of),
            FieldVerdict::Excluded => format!("none of {}", listed(&self.none_of)),
        }
    }
}

impl MatchField {
    fn name(self, verdict: FieldVerdict) -> &'static str {
        let excluded = verdict == FieldVerdict::Excluded;
        match self {
            Self::Namespaces if excluded => "not_namespaces",
            Self::Namespaces => "namespaces",
            Self::ServiceAccounts if excluded => "not_service_accounts",
            Self::ServiceAccounts => "service_accounts",
            Self::Principals if excluded => "not_principals",
            Self::Principals => "principals",
            Self::SourceIps if excluded => "not_source_ips",
            Self::SourceIps => "source_ips",
            Self::DestinationIps if excluded => "not_destination_ips",
            Self::DestinationIps => "destination_ips",
            Self::DestinationPorts if excluded => "not_destination_ports",
            Self::DestinationPorts => "destination_ports",
        }
    }

    fn found(self, connection: &Connection<'_>) -> String {
        let peer = connection.peer;
        match self {
            Self::Namespaces => peer.map(|peer| peer.namespace().to_owned()),
            Self::ServiceAccounts => {
                peer.map(|peer| format!("{}/{}", peer.namespace(), peer.service_account()))
            }
            Self::Principals => peer.map(|peer| peer.principal().to_owned()),
            Self::SourceIps => Some(connection.source.ip().to_canonical().to_string()),
            Self::DestinationIps => Some(connection.destination.ip().to_canonical().to_string()),
            Self::DestinationPorts => Some(connection.destination.port().to_string()),
        }
        .unwrap_or_else(|| "no identity".to_owned())
    }
}

fn listed<T: fmt::Display>(values: &[T]) -> String {
    let shown: Vec<String> = values.iter().take(LISTED).map(T::to_string).collect();
    let shown = shown.join(" or ");
    match values.len().saturating_sub(LISTED) {
        0 => shown,
        more => format!("{shown} or one of {more} more"),
    }
}
