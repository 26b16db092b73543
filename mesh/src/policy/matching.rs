//! Whether a policy, a rule, a clause, a match or a field holds for a connection.
//!
//! In: the compiled policy and a [`Connection`]. Out: yes or no, and for one field, on which side it fails.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use super::{
    Clause, Connection, Destination, Field, Match, Policy, Rule, Scope, ServiceAccount, StringMatch,
};
use crate::identity::Spiffe;

/// A field of [`Match`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum MatchField {
    Namespaces,
    ServiceAccounts,
    Principals,
    SourceIps,
    DestinationIps,
    DestinationPorts,
}

/// How one field of a match stands to a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum FieldVerdict {
    /// It holds.
    Holds,
    /// Values are wanted, and none of them matches.
    NoneWanted,
    /// A value that is excluded matches.
    Excluded,
}

impl Policy {
    /// The first rule that matches, counted from 1.
    pub(super) fn matching_rule(&self, connection: &Connection<'_>) -> Option<usize> {
        self.rules.iter().position(|rule| rule.holds(connection)).map(|index| index + 1)
    }
}

impl Policy {
    /// Whether it could match a peer, whatever the addresses and ports of the connection.
    pub(super) fn could_match(&self, peer: Option<&Spiffe>) -> bool {
        let matches = |one: &Match| !one.is_empty() && one.holds_for(peer);
        let clause =
            |clause: &Clause| clause.matches.is_empty() || clause.matches.iter().any(matches);
        self.rules.iter().any(|rule| rule.clauses.iter().all(clause))
    }

    /// Whether it applies to a workload.
    pub(super) fn applies(&self, to: Destination<'_>) -> bool {
        match self.scope {
            Scope::Global => true,
            Scope::Namespace if *self.namespace == *to.namespace => true,
            Scope::Namespace | Scope::WorkloadSelector => to.policies.contains(&self.key),
        }
    }
}

impl Rule {
    fn holds(&self, connection: &Connection<'_>) -> bool {
        self.clauses.iter().all(|clause| clause.holds(connection))
    }
}

impl Clause {
    pub(super) fn holds(&self, connection: &Connection<'_>) -> bool {
        self.matches.is_empty() || self.matches.iter().any(|one| one.holds(connection))
    }
}

impl Match {
    fn holds(&self, connection: &Connection<'_>) -> bool {
        !self.is_empty()
            && MatchField::ALL
                .iter()
                .all(|field| self.verdict(*field, connection) == FieldVerdict::Holds)
    }

    /// Whether the fields about the peer hold.
    fn holds_for(&self, peer: Option<&Spiffe>) -> bool {
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        let connection = Connection { peer, source: nowhere, destination: nowhere };
        [MatchField::Namespaces, MatchField::ServiceAccounts, MatchField::Principals]
            .into_iter()
            .all(|field| self.verdict(field, &connection) == FieldVerdict::Holds)
    }

    /// Whether no field asks for anything. Such a match never holds: it is what is left of conditions that only HTTP
    /// can decide.
    pub(super) fn is_empty(&self) -> bool {
        self.namespaces.is_empty()
            && self.service_accounts.is_empty()
            && self.principals.is_empty()
            && self.source_ips.is_empty()
            && self.destination_ips.is_empty()
            && self.destination_ports.is_empty()
    }

    pub(super) fn verdict(&self, field: MatchField, to: &Connection<'_>) -> FieldVerdict {
        match field {
            MatchField::Namespaces => {
                let namespace = to.peer.map_or("", Spiffe::namespace);
                self.namespaces.verdict(|wanted| wanted.holds(namespace))
            }
            MatchField::ServiceAccounts => self
                .service_accounts
                .verdict(|wanted| to.peer.is_some_and(|peer| wanted.is_account_of(peer))),
            MatchField::Principals => self
                .principals
                .verdict(|wanted| to.peer.is_some_and(|peer| wanted.holds(peer.principal()))),
            MatchField::SourceIps => {
                let source: IpAddr = to.source.ip().to_canonical();
                self.source_ips.verdict(|wanted| wanted.contains(&source))
            }
            MatchField::DestinationIps => {
                let destination = to.destination.ip().to_canonical();
                self.destination_ips.verdict(|wanted| wanted.contains(&destination))
            }
            MatchField::DestinationPorts => {
                self.destination_ports.verdict(|wanted| *wanted == to.destination.port())
            }
        }
    }
}

impl<T> Field<T> {
    fn is_empty(&self) -> bool {
        self.any_of.is_empty() && self.none_of.is_empty()
    }

    fn verdict(&self, matches: impl Fn(&T) -> bool) -> FieldVerdict {
        if !self.any_of.is_empty() && !self.any_of.iter().any(&matches) {
            FieldVerdict::NoneWanted
        } else if self.none_of.iter().any(&matches) {
            FieldVerdict::Excluded
        } else {
            FieldVerdict::Holds
        }
    }
}

impl StringMatch {
    fn holds(&self, text: &str) -> bool {
        match self {
            Self::Exact(wanted) => text == &**wanted,
            Self::Prefix(wanted) => text.starts_with(&**wanted),
            Self::Suffix(wanted) => text.ends_with(&**wanted),
            Self::Presence => !text.is_empty(),
        }
    }
}

impl ServiceAccount {
    fn is_account_of(&self, peer: &Spiffe) -> bool {
        *self.namespace == *peer.namespace() && *self.name == *peer.service_account()
    }
}

impl fmt::Display for StringMatch {
    /// As an AuthorizationPolicy writes it: `a`, `a*`, `*a`, `*`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(text) => f.write_str(text),
            Self::Prefix(text) => write!(f, "{text}*"),
            Self::Suffix(text) => write!(f, "*{text}"),
            Self::Presence => f.write_str("*"),
        }
    }
}

impl fmt::Display for ServiceAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl MatchField {
    pub(super) const ALL: [Self; 6] = [
        Self::Namespaces,
        Self::ServiceAccounts,
        Self::Principals,
        Self::SourceIps,
        Self::DestinationIps,
        Self::DestinationPorts,
    ];
}
