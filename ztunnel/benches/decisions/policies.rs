//! A namespace with 1,000 policies: what it takes to decide on a connection.

use std::{fmt::Write as _, hint::black_box, net::SocketAddr};

use mesh::{
    identity::Spiffe,
    policy::{Connection, Destination, Policies, authorize},
};
use proto::security::{
    Action, Address, Authorization, Clause, Match, Rule, Scope, StringMatch,
    string_match::MatchType,
};

use crate::row::Row;

const POLICIES: u32 = 1000;

/// What the policy of a number asks for.
type Ask = fn(u32) -> Match;

/// By what policies ask for, and whether the first, the last or none of them matches.
pub(crate) fn decide() -> Vec<Row> {
    let asks: [(&str, Ask); 5] = [
        ("principal", principal),
        ("principal, prefix and port", everything),
        ("namespace and port", namespace_and_port),
        ("prefix of addresses", addresses),
        ("no port but one", all_but),
    ];
    let mut rows = Vec::new();
    for (name, ask) in asks {
        for action in [Action::Deny, Action::Allow] {
            let policies = policies(action, ask);
            for (hit, number) in [("the first", 0), ("the last", POLICIES - 1), ("none", POLICIES)]
            {
                // Of policies that exclude one value each, all but one match: none would need a peer they all exclude.
                let mut what = format!("1,000 {} policies", action.as_str_name());
                let _ = write!(what, ", each with a {name}, {hit} matches");
                let peer = Spiffe::new("cluster.local", "web", &format!("client-{number}"))
                    .expect("a good name");
                let [_, _, middle, low] = number.to_be_bytes();
                let connection = Connection {
                    peer: Some(&peer),
                    source: SocketAddr::from(([10, 9, middle, low], 40_000)),
                    destination: SocketAddr::from(([10, 1, 0, 1], 8000 + number as u16)),
                };
                let to = Destination { namespace: "shop", policies: &[] };
                rows.push(Row::calls(&what, "< 2 µs", |_| {
                    drop(black_box(authorize(&policies, to, black_box(&connection))));
                }));
            }
        }
    }
    rows
}

fn policies(action: Action, ask: Ask) -> Policies {
    let mut policies = Policies::default();
    for number in 0..POLICIES {
        let clause = Clause { matches: vec![ask(number)] };
        let wire = Authorization {
            name: format!("policy-{number:04}"),
            namespace: "shop".into(),
            scope: Scope::Namespace.into(),
            action: action.into(),
            rules: vec![Rule { clauses: vec![clause] }],
            ..Default::default()
        };
        policies.insert(wire.try_into().expect("well formed"));
    }
    policies
}

fn exact(text: String) -> Vec<StringMatch> {
    vec![StringMatch { match_type: Some(MatchType::Exact(text)) }]
}

fn principal(number: u32) -> Match {
    let principals = exact(format!("cluster.local/ns/web/sa/client-{number}"));
    Match { principals, ..Default::default() }
}

fn namespace_and_port(number: u32) -> Match {
    let namespaces = exact("web".into());
    Match { namespaces, destination_ports: vec![8000 + number], ..Default::default() }
}

fn addresses(number: u32) -> Match {
    let [_, _, middle, low] = number.to_be_bytes();
    let prefix = Address { address: vec![10, 9, middle, low], length: 32 };
    Match { source_ips: vec![prefix], ..Default::default() }
}

/// A connection that misses it misses all of it: no rule is near, and all that may be looked at are.
fn everything(number: u32) -> Match {
    let Match { principals, .. } = principal(number);
    Match { principals, destination_ports: vec![8000 + number], ..addresses(number) }
}

fn all_but(number: u32) -> Match {
    Match { not_destination_ports: vec![8000 + number], ..Default::default() }
}
