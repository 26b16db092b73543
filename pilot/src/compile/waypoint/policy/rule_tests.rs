//! What becomes of rules that a chain cannot check, and under which names a principal is known.

use std::{path::Path, sync::Arc};

use proto::envoy::envoy::config::rbac::v3::Policy;

use super::rbac::named;
use crate::{
    compile::{MeshConfig, waypoint::ChainKind},
    manifests::{Manifests, Object, Resource, read_text},
};

/// The policy's rules in a chain; the text of a missing one is `dropped`.
fn compiled(kind: ChainKind, action: &str, rule: &str) -> String {
    let target = "targetRefs: [{kind: Service, name: web}]";
    let text = |rule: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: n}}\n\
             spec: {{action: {action}, {target}, rules: [{rule}]}}\n"
        )
    };
    let resources = read_text(&Arc::from(Path::new("f")), &text("{}"), &mut Vec::new());
    let [Resource::AuthorizationPolicy(policy)] = &*resources else { panic!("{resources:?}") };
    // Not every rule here is one that reading lets through.
    let mut policy = Object::clone(policy);
    policy.spec.rules = Some(vec![serde_yaml_ng::from_str(rule).unwrap()]);
    let config = MeshConfig {
        trust_domain: "td.example".into(),
        trust_domain_aliases: vec!["old.example".into()],
        ..MeshConfig::default()
    };
    let rules = named(&policy, &config, kind);
    rules.first().map_or_else(|| "dropped".to_owned(), |(_, policy)| format!("{policy:?}"))
}

fn everything() -> String {
    compiled(ChainKind::Http, "DENY", "{}")
}

#[test]
fn what_only_requests_have_refuses_more_or_allows_less_where_there_are_none() {
    for rule in [
        "{to: [{operation: {methods: [GET]}}]}",
        "{to: [{operation: {notPaths: [/a]}}]}",
        "{from: [{source: {requestPrincipals: ['*']}}]}",
        "{when: [{key: 'request.headers[x]', values: [a]}]}",
        "{when: [{key: 'request.auth.claims[a]', notValues: [a]}]}",
    ] {
        assert_eq!(compiled(ChainKind::Tcp, "ALLOW", rule), "dropped", "{rule}");
        assert_eq!(compiled(ChainKind::Tcp, "DENY", rule), everything(), "{rule}");
        assert_ne!(compiled(ChainKind::Http, "ALLOW", rule), "dropped", "{rule}");
        assert_ne!(compiled(ChainKind::Http, "DENY", rule), everything(), "{rule}");
    }
    let both = "{to: [{operation: {methods: [GET], ports: ['80']}}]}";
    let port = "{to: [{operation: {ports: ['80']}}]}";
    assert_eq!(compiled(ChainKind::Tcp, "ALLOW", both), "dropped");
    assert_eq!(compiled(ChainKind::Tcp, "DENY", both), compiled(ChainKind::Tcp, "DENY", port));
}

#[test]
fn what_means_nothing_refuses_more_or_allows_less() {
    for rule in [
        "{when: [{key: source.shoe, values: [a]}]}",
        "{when: [{key: source.ip, values: [somewhere]}]}",
        "{from: [{source: {ipBlocks: [1.2.3]}}]}",
        "{to: [{operation: {ports: [http]}}]}",
    ] {
        for kind in [ChainKind::Http, ChainKind::Tcp] {
            assert_eq!(compiled(kind, "ALLOW", rule), "dropped", "{rule}");
            assert_eq!(compiled(kind, "DENY", rule), everything(), "{rule}");
        }
    }
}

#[test]
fn a_policy_without_rules_matches_never() {
    let expected: Policy = super::rule::never();
    let text = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p}\nspec: {}\n";
    let resources = read_text(&Arc::from(Path::new("f")), text, &mut Vec::new());
    let (manifests, _) = Manifests::gather(&resources);
    let rules =
        named(&manifests.authorization_policies[0], &MeshConfig::default(), ChainKind::Http);
    assert_eq!(rules, [("ns[default]-policy[p]-rule[0]".to_owned(), expected)]);
}

#[test]
fn a_principal_of_the_mesh_has_all_its_trust_domains() {
    for (principal, expected) in [
        (
            "td.example/ns/a/sa/b",
            vec!["spiffe://td.example/ns/a/sa/b", "spiffe://old.example/ns/a/sa/b"],
        ),
        (
            "old.example/ns/a/sa/b",
            vec!["spiffe://td.example/ns/a/sa/b", "spiffe://old.example/ns/a/sa/b"],
        ),
        (
            "cluster.local/ns/a/sa/b",
            vec!["spiffe://td.example/ns/a/sa/b", "spiffe://old.example/ns/a/sa/b"],
        ),
        ("other/ns/a/sa/b", vec!["spiffe://other/ns/a/sa/b"]),
    ] {
        let rule = format!("{{from: [{{source: {{principals: ['{principal}']}}}}]}}");
        let text = compiled(ChainKind::Tcp, "ALLOW", &rule);
        let found: Vec<_> = text.split('"').filter(|part| part.starts_with("spiffe://")).collect();
        assert_eq!(found, expected, "{principal}");
    }
}
