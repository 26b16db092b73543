//! The rules of L4 authorization, one test each.

use std::sync::Arc;

use super::*;
use crate::identity::Spiffe;

pub(super) mod fixture;

use fixture::policies;

/// Decides `[<trust domain>/]<namespace>/<service account>|- <address> -> <address>:<port> [naming <policy>..]` for a workload of
/// namespace `shop`.
fn check(written: &str, connection: &str, expected: &str) {
    with(written, connection, |policies, to, connection| {
        let found = match authorize(policies, to, connection) {
            Ok(permit) => match permit.grounds() {
                Grounds::Unrestricted => "unrestricted".to_owned(),
                Grounds::Allowed { policy, rule } => format!("allowed by rule {rule} of {policy}"),
                Grounds::Originated => "originated".to_owned(),
            },
            Err(denied) => denied.to_string(),
        };
        assert_eq!(found, expected, "{written}: {connection:?}");
    });
}

/// Whether a policy `shop/p` of these rules matches a connection.
fn check_match(rules: &str, connection: &str, expected: bool) {
    let written = format!("deny shop/p namespace {rules}");
    with(&written, connection, |policies, to, connection| {
        let found = authorize(policies, to, connection).is_err();
        assert_eq!(found, expected, "{rules}: {connection:?}");
    });
}

fn check_dry_run(written: &str, connection: &str, expected: &str) {
    with(written, connection, |policies, to, connection| {
        let found = dry_run(policies, to, connection);
        let found: Vec<String> =
            found.iter().map(|r| format!("{} {:?}", r.policy, r.verdict)).collect();
        assert_eq!(found.join(", "), expected, "{written}: {connection:?}");
    });
}

fn with(
    written: &str,
    connection: &str,
    check: impl FnOnce(&Policies, Destination<'_>, &Connection<'_>),
) {
    let policies = policies(written);
    let words: Vec<&str> = connection.split_whitespace().collect();
    let [peer, source, "->", destination, named @ ..] = &words[..] else {
        panic!("not understood: {connection}");
    };
    let peer = (*peer != "-").then(|| match peer.split('/').collect::<Vec<_>>()[..] {
        [namespace, account] => Spiffe::new("cluster.local", namespace, account).unwrap(),
        [domain, namespace, account] => Spiffe::new(domain, namespace, account).unwrap(),
        _ => panic!("not understood: {peer}"),
    });
    let named: Vec<Arc<str>> = named.iter().skip(1).map(|key| (*key).into()).collect();
    let connection = Connection {
        peer: peer.as_ref(),
        source: std::net::SocketAddr::new(source.parse().unwrap(), 40_000),
        destination: destination.parse().unwrap(),
    };
    check(&policies, Destination { namespace: "shop", policies: &named }, &connection);
}

const FROM_WEB: &str = "web/front 10.0.0.1 -> 10.1.0.1:8080";
const PLAIN: &str = "- 10.0.0.1 -> 10.1.0.1:8080";

#[test]
fn without_policies_everything_is_allowed() {
    check("", FROM_WEB, "unrestricted");
    check("", PLAIN, "unrestricted");
}

#[test]
fn deny_comes_before_allow() {
    let both = "
        allow shop/a namespace *
        deny  shop/z namespace namespaces=web
    ";
    check(both, FROM_WEB, "policy shop/z denies this connection: its rule 1 matches");
    check(both, "bank/teller 10.0.0.1 -> 10.1.0.1:8080", "allowed by rule 1 of shop/a");
}

#[test]
fn a_deny_that_does_not_match_allows() {
    check("deny shop/d namespace namespaces=bank", FROM_WEB, "unrestricted");
}

#[test]
fn one_matching_allow_is_enough() {
    let two = "
        allow shop/a namespace namespaces=bank
        allow shop/b namespace namespaces=lab | namespaces=web
    ";
    check(two, FROM_WEB, "allowed by rule 2 of shop/b");
}

#[test]
fn where_allow_policies_exist_and_none_matches_nothing_is_allowed() {
    check(
        "allow shop/a namespace namespaces=bank",
        FROM_WEB,
        "no policy allows this connection: nearest is rule 1 of shop/a, whose namespaces wants bank and found web",
    );
}

#[test]
fn scopes_decide_where_a_policy_applies() {
    for (policy, applies) in [
        ("deny root/d global *", true),
        ("deny shop/d namespace *", true),
        ("deny bank/d namespace *", false),
        ("deny shop/d selector *", false),
    ] {
        let denied = "denies this connection: its rule 1 matches";
        let key = policy.split_whitespace().nth(1).unwrap();
        let expected =
            if applies { format!("policy {key} {denied}") } else { "unrestricted".into() };
        check(policy, FROM_WEB, &expected);
    }
    let named = format!("{FROM_WEB} naming shop/d");
    let denied = "policy shop/d denies this connection: its rule 1 matches";
    check("deny shop/d selector *", &named, denied);
}

#[test]
fn a_named_policy_that_has_not_arrived_denies() {
    let named = format!("{FROM_WEB} naming shop/here shop/gone");
    let missing =
        "policy shop/gone applies to the destination and has not arrived, so nothing is allowed";
    check("allow shop/here selector *", &named, missing);
    let denied = "policy shop/here denies this connection: its rule 1 matches";
    check("deny shop/here selector *", &named, denied);
    check("", &format!("{PLAIN} naming shop/gone"), missing);
}

#[test]
fn a_policy_that_cannot_be_understood_denies_where_it_would_apply() {
    let invalid = |policies: &mut Policies, key: &str| {
        let reach = Reach::Namespace("shop".into());
        policies.reject(Rejected { key: key.into(), reach, fault: "action: 9 is no".into() });
    };
    let decide = |policies: &Policies| {
        let peer = Spiffe::new("cluster.local", "web", "front").unwrap();
        let (source, destination) =
            ("10.0.0.1:4000".parse().unwrap(), "10.1.0.1:80".parse().unwrap());
        let connection = Connection { peer: Some(&peer), source, destination };
        let to = Destination { namespace: "shop", policies: &["shop/gone".into()] };
        authorize(policies, to, &connection).unwrap_err().to_string()
    };
    let mut held = policies("allow shop/all namespace *");
    invalid(&mut held, "shop/new");
    let expected = "policy shop/new applies to the destination and cannot be understood \
                    (action: 9 is no), so nothing is allowed";
    assert_eq!(decide(&held), expected);
    let mut denied = policies("deny shop/none namespace *");
    invalid(&mut denied, "shop/new");
    assert_eq!(decide(&denied), "policy shop/none denies this connection: its rule 1 matches");
}

#[test]
fn an_allow_without_rules_allows_nothing_and_a_deny_without_rules_denies_nothing() {
    let nothing = "no policy allows this connection: shop/a has no rules, so it allows nothing";
    check("allow shop/a namespace none", FROM_WEB, nothing);
    check("deny shop/d namespace none", FROM_WEB, "unrestricted");
}

#[test]
fn a_rule_without_clauses_matches_everything() {
    check_match("*", FROM_WEB, true);
    check_match("*", PLAIN, true);
}

#[test]
fn a_clause_without_matches_holds() {
    check_match("any", FROM_WEB, true);
    check_match("any & namespaces=bank", FROM_WEB, false);
}

#[test]
fn an_empty_match_never_holds() {
    check_match("{}", FROM_WEB, false);
    check_match("{} & namespaces=web", FROM_WEB, false);
    check_match("{} , namespaces=web", FROM_WEB, true);
    check(
        "allow shop/a namespace {}",
        FROM_WEB,
        "no policy allows this connection: nearest is rule 1 of shop/a, which cannot match at layer 4",
    );
}

#[test]
fn rules_are_alternatives_clauses_conditions_matches_alternatives_fields_conditions() {
    let cases = [
        ("namespaces=bank | namespaces=web", true),
        ("namespaces=bank | namespaces=lab", false),
        ("namespaces=web & ports=8080", true),
        ("namespaces=web & ports=80", false),
        ("namespaces=bank , ports=8080", true),
        ("namespaces=bank , ports=80", false),
        ("namespaces=web ports=8080", true),
        ("namespaces=web ports=80", false),
        ("ports=80+8080", true),
    ];
    for (rules, expected) in cases {
        check_match(rules, FROM_WEB, expected);
    }
}

#[test]
fn a_field_wants_one_of_its_values_and_none_of_the_excluded_ones() {
    let cases = [
        ("namespaces=web not_namespaces=bank", true),
        ("namespaces=web not_namespaces=web", false),
        ("not_namespaces=bank", true),
        ("not_namespaces=bank+web", false),
    ];
    for (rules, expected) in cases {
        check_match(rules, FROM_WEB, expected);
    }
}

#[test]
fn texts_match_exactly_by_prefix_by_suffix_or_by_being_there() {
    let cases = [
        ("namespaces=web", true),
        ("namespaces=we", false),
        ("namespaces=we*", true),
        ("namespaces=eb*", false),
        ("namespaces=*eb", true),
        ("namespaces=*we", false),
        ("namespaces=*", true),
        ("namespaces=Web", false),
    ];
    for (rules, expected) in cases {
        check_match(rules, FROM_WEB, expected);
    }
}

#[test]
fn the_namespace_of_nobody_is_empty() {
    let cases = [
        ("namespaces=*", false),
        ("not_namespaces=*", true),
        ("namespaces=web", false),
        ("not_namespaces=web", true),
    ];
    for (rules, expected) in cases {
        check_match(rules, PLAIN, expected);
    }
}

#[test]
fn a_principal_is_the_identity_without_its_scheme() {
    let cases = [
        ("principals=cluster.local/ns/web/sa/front", true),
        ("principals=spiffe://cluster.local/ns/web/sa/front", false),
        ("principals=cluster.local/ns/web/*", true),
        ("principals=*/sa/front", true),
        ("principals=*", true),
        ("principals=other/ns/web/sa/front", false),
        ("not_principals=cluster.local/ns/web/sa/front", false),
        ("not_principals=cluster.local/ns/bank/sa/front", true),
    ];
    for (rules, expected) in cases {
        check_match(rules, FROM_WEB, expected);
    }
}

#[test]
fn no_principal_matches_nobody_not_even_presence() {
    check_match("principals=*", PLAIN, false);
    check_match("principals=a*", PLAIN, false);
    check_match("not_principals=*", PLAIN, true);
    check_match("not_principals=*", FROM_WEB, false);
}

#[test]
fn a_service_account_is_compared_in_whatever_trust_domain_and_never_matches_nobody() {
    check_match("service_accounts=web/front", FROM_WEB, true);
    check_match("service_accounts=bank/front", FROM_WEB, false);
    check_match("service_accounts=web/back+web/front", FROM_WEB, true);
    check_match("not_service_accounts=web/front", FROM_WEB, false);
    check_match("not_service_accounts=web/back", FROM_WEB, true);
    check_match("service_accounts=web/front", PLAIN, false);
    check_match("not_service_accounts=web/front", PLAIN, true);
    let elsewhere = "other.example/web/front 10.0.0.1 -> 10.1.0.1:8080";
    check_match("service_accounts=web/front", elsewhere, true);
    check_match("not_service_accounts=web/front", elsewhere, false);
    // A principal is compared with its trust domain.
    check_match("principals=cluster.local/ns/web/sa/front", elsewhere, false);
    check_match("principals=other.example/ns/web/sa/front", elsewhere, true);
}

/// The connection is of `web/front`, from 10.0.0.1 to 10.1.0.1:8080.
#[test]
fn every_field_has_wanted_and_excluded_values_and_both_must_hold() {
    for (field, own, other) in [
        ("namespaces", "web", "bank"),
        ("service_accounts", "web/front", "web/back"),
        ("principals", "cluster.local/ns/web/sa/front", "cluster.local/ns/bank/sa/front"),
        ("source_ips", "10.0.0.0/24", "10.9.0.0/24"),
        ("destination_ips", "10.1.0.1/32", "10.1.0.2/32"),
        ("ports", "8080", "80"),
    ] {
        for (wanted, excluded, expected) in
            [(own, other, true), (own, own, false), (other, own, false), (other, other, false)]
        {
            let rule = format!("{field}={wanted} not_{field}={excluded}");
            check_match(&rule, FROM_WEB, expected);
        }
        check_match(&format!("{field}={other}+{own}"), FROM_WEB, true);
        check_match(&format!("not_{field}={other}+{own}"), FROM_WEB, false);
    }
}

#[test]
fn addresses_are_compared_by_prefix() {
    let cases = [
        ("source_ips=10.0.0.1/32", true),
        ("source_ips=10.0.0.2/32", false),
        ("source_ips=10.0.0.0/8", true),
        ("source_ips=10.0.0.9/24", true),
        ("source_ips=0.0.0.0/0", true),
        ("source_ips=::/0", false),
        ("source_ips=::ffff:10.0.0.0/104", true),
        ("not_source_ips=10.0.0.0/8", false),
        ("not_source_ips=192.168.0.0/16", true),
        ("destination_ips=10.1.0.1/32", true),
        ("destination_ips=10.0.0.1/32", false),
        ("not_destination_ips=10.1.0.0/16", false),
    ];
    for (rules, expected) in cases {
        check_match(rules, FROM_WEB, expected);
    }
    check_match("source_ips=fd00::/16", "- fd00::1 -> [fd00::2]:80", true);
    check_match("source_ips=10.0.0.0/8", "- ::ffff:10.0.0.1 -> [::ffff:10.1.0.1]:80", true);
    check_match("destination_ips=10.0.0.0/8", "- ::ffff:10.0.0.1 -> [::ffff:10.1.0.1]:80", true);
}

#[test]
fn ports_are_the_destinations() {
    check_match("ports=8080", FROM_WEB, true);
    check_match("ports=80", FROM_WEB, false);
    check_match("not_ports=22", FROM_WEB, true);
    check_match("not_ports=22+8080", FROM_WEB, false);
}

#[test]
fn strict_mode_denies_whoever_has_no_identity() {
    let strict = "deny root/istio_converted_static_strict selector not_principals=*";
    let naming = "naming root/istio_converted_static_strict";
    let denied =
        "policy root/istio_converted_static_strict denies this connection: its rule 1 matches";
    check(strict, &format!("{PLAIN} {naming}"), denied);
    check(strict, &format!("{FROM_WEB} {naming}"), "unrestricted");
}

#[test]
fn a_port_that_is_not_strict_is_left_out_of_strict_mode() {
    let ports = "deny shop/pa selector not_principals=* & not_ports=9090";
    let denied = "policy shop/pa denies this connection: its rule 1 matches";
    check(ports, &format!("{PLAIN} naming shop/pa"), denied);
    check(ports, "- 10.0.0.1 -> 10.1.0.1:9090 naming shop/pa", "unrestricted");
    let one_strict = "deny shop/pa selector not_principals=* ports=8080";
    check(one_strict, &format!("{PLAIN} naming shop/pa"), denied);
    check(one_strict, "- 10.0.0.1 -> 10.1.0.1:9090 naming shop/pa", "unrestricted");
}

#[test]
fn the_nearest_miss_has_the_fewest_failing_conditions() {
    let nearest = |written: &str, connection: &str, expected: &str| {
        let expected = format!("no policy allows this connection: nearest is rule {expected}");
        check(written, connection, &expected);
    };
    let three = "
        allow shop/a namespace namespaces=bank & ports=80
        allow shop/b namespace namespaces=bank ports=80 | namespaces=web ports=80+81
        allow shop/c namespace none
    ";
    nearest(three, FROM_WEB, "2 of shop/b, whose destination_ports wants 80 or 81 and found 8080");
    nearest(
        "allow shop/a namespace not_source_ips=10.0.0.0/8 namespaces=web",
        FROM_WEB,
        "1 of shop/a, whose not_source_ips wants none of 10.0.0.0/8 and found 10.0.0.1",
    );
    nearest(
        "allow shop/a namespace principals=cluster.local/ns/a/*+*/sa/b",
        PLAIN,
        "1 of shop/a, whose principals wants cluster.local/ns/a/* or */sa/b and found no identity",
    );
    nearest(
        "allow shop/a namespace ports=1+2+3+4+5+6",
        FROM_WEB,
        "1 of shop/a, whose destination_ports wants 1 or 2 or 3 or 4 or one of 2 more and found 8080",
    );
}

#[test]
fn dry_run_policies_report_and_decide_nothing() {
    let written = "
        deny-dry  shop/a namespace namespaces=web
        deny-dry  shop/b namespace namespaces=bank
        allow-dry shop/c namespace namespaces=bank
        allow-dry shop/d namespace namespaces=lab | namespaces=web
    ";
    check(written, FROM_WEB, "unrestricted");
    let reports = "shop/a Deny { rule: 1 }, shop/c NoAllow, shop/d Allow { rule: 2 }";
    check_dry_run(written, FROM_WEB, reports);
    check_dry_run("deny shop/x namespace *", FROM_WEB, "");
}

#[test]
fn a_dry_run_changes_no_decision_of_those_that_are_enforced() {
    let not_allowed = "no policy allows this connection: nearest is rule 1 of shop/a, \
                       whose namespaces wants bank and found web";
    for (written, expected) in [
        ("deny-dry shop/d namespace *", "unrestricted"),
        ("allow-dry shop/d namespace namespaces=bank", "unrestricted"),
        ("allow-dry shop/d namespace none", "unrestricted"),
        ("deny-dry shop/d namespace * \n allow shop/a namespace *", "allowed by rule 1 of shop/a"),
        ("allow-dry shop/d namespace * \n allow shop/a namespace namespaces=bank", not_allowed),
        (
            "allow-dry shop/c namespace * \n deny shop/d namespace *",
            "policy shop/d denies this connection: its rule 1 matches",
        ),
    ] {
        check(written, FROM_WEB, expected);
    }
}

#[test]
fn what_our_side_originates_is_decided_at_the_destination() {
    assert_eq!(*originated().grounds(), Grounds::Originated);
}
