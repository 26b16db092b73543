//! What is refused of policies that are attached to waypoints, where, and why.

use super::read_text;
use std::{path::Path, sync::Arc};

fn check(api_version: &str, kind: &str, spec: &str, expected: &[&str]) {
    let text = format!(
        "apiVersion: {api_version}\nkind: {kind}\nmetadata: {{name: r, namespace: n}}\nspec: {spec}\n"
    );
    let mut problems = Vec::new();
    read_text(&Arc::from(Path::new("f")), &text, &mut problems);
    let found =
        problems.iter().map(|one| format!("{}: {}: {}", one.severity, one.field, one.reason));
    assert_eq!(found.collect::<Vec<_>>(), expected, "{spec}");
}

#[test]
fn a_target_is_something_that_policies_are_attached_to() {
    let group = "gateway.networking.k8s.io";
    for (target, expected) in [
        (format!("{{group: {group}, kind: Gateway, name: wp}}"), vec![]),
        (format!("{{group: {group}, kind: GatewayClass, name: istio-waypoint}}"), vec![]),
        ("{group: '', kind: Service, name: web}".into(), vec![]),
        ("{group: networking.istio.io, kind: ServiceEntry, name: web}".into(), vec![]),
        (
            "{group: networking.istio.io, kind: Gateway, name: wp}".into(),
            vec![
                "error: spec.targetRefs[0].kind: nothing is attached to a networking.istio.io/Gateway",
            ],
        ),
        (
            "{kind: Pod, name: web}".into(),
            vec!["error: spec.targetRefs[0].kind: nothing is attached to a Pod"],
        ),
        ("{kind: Service}".into(), vec!["error: spec.targetRefs[0].name: missing"]),
        (
            "{kind: Service, name: web, namespace: other}".into(),
            vec![
                "error: spec.targetRefs[0].namespace: a target is always in the namespace of what names it: leave it out",
            ],
        ),
    ] {
        let spec = format!("{{targetRefs: [{target}], rules: [{{}}]}}");
        check("security.istio.io/v1", "AuthorizationPolicy", &spec, &expected);
        let spec = format!("{{targetRefs: [{target}]}}");
        check("telemetry.istio.io/v1", "Telemetry", &spec, &expected);
    }
}

#[test]
fn a_template_of_a_path_has_whole_segments_and_its_rest_at_the_end() {
    for (path, expected) in [
        ("/a/{*}/b/{**}", None),
        ("/{**}", None),
        ("/a/{**}/b", None),
        ("/a/{**}/{*}", Some("nothing can stand for anything after `{**}`")),
        ("/a/{**}/b/{**}", Some("nothing can stand for anything after `{**}`")),
        ("/a/x{*}", Some("`{*}` and `{**}` stand for whole segments")),
        ("/{*}/b*", Some("a template has no `*`, `{` and `}` but `{*}` and `{**}`")),
        ("/{*}/{a}", Some("a template has no `*`, `{` and `}` but `{*}` and `{**}`")),
    ] {
        let spec = format!(
            "{{targetRefs: [{{kind: Service, name: web}}], action: DENY, rules: [{{to: [{{operation: {{paths: ['{path}']}}}}]}}]}}"
        );
        let expected = expected.map(|reason| {
            format!("error: spec.rules[0].to[0].operation.paths[0]: `{path}`: {reason}")
        });
        let expected: Vec<_> = expected.iter().map(String::as_str).collect();
        check("security.istio.io/v1", "AuthorizationPolicy", &spec, &expected);
    }
}

#[test]
fn an_unknown_attribute_is_refused_and_not_passed_over() {
    for key in ["request.header[x]", "source.ips", "request.headers[x", "experimental.other[x]"] {
        let spec = format!(
            "{{targetRefs: [{{kind: Service, name: web}}], action: DENY, rules: [{{when: [{{key: '{key}', values: [a]}}]}}]}}"
        );
        let expected = format!("error: spec.rules[0].when[0].key: there is no attribute `{key}`");
        check("security.istio.io/v1", "AuthorizationPolicy", &spec, &[&expected]);
    }
}

#[test]
fn an_issuer_has_a_name_and_keys() {
    let keys = r#"'{"keys":[{"kty":"EC"}]}'"#;
    for (rule, expected) in [
        (format!("{{issuer: i, jwks: {keys}}}"), vec![]),
        ("{issuer: i, jwksUri: 'https://i.example/keys'}".into(), vec![]),
        ("{issuer: 'https://i.example'}".into(), vec![]),
        (
            "{issuer: i}".into(),
            vec![
                "error: spec.jwtRules[0].issuer: `i` is no http or https address to have keys from",
            ],
        ),
        (
            "{issuer: i, jwksUri: 'file:///keys'}".into(),
            vec![
                "error: spec.jwtRules[0].jwksUri: `file:///keys` is no http or https address to have keys from",
            ],
        ),
        (format!("{{jwks: {keys}}}"), vec!["error: spec.jwtRules[0].issuer: missing"]),
        (
            "{issuer: i, jwks: '{}'}".into(),
            vec!["error: spec.jwtRules[0].jwks: no set of keys: no list `keys`"],
        ),
        (
            "{issuer: i, jwks: '{\"keys\":[]}'}".into(),
            vec!["error: spec.jwtRules[0].jwks: no set of keys: no key"],
        ),
        (
            "{issuer: i, jwks: '{\"keys\":[{}]}'}".into(),
            vec!["error: spec.jwtRules[0].jwks: no set of keys: keys[0] has no `kty`"],
        ),
        (
            format!("{{issuer: i, jwks: {keys}, audiences: ['']}}"),
            vec!["error: spec.jwtRules[0].audiences[0]: empty"],
        ),
        (
            format!("{{issuer: i, jwks: {keys}, fromHeaders: [{{name: 'a b'}}]}}"),
            vec!["error: spec.jwtRules[0].fromHeaders[0].name: `a b` is no name of a header"],
        ),
        (
            format!("{{issuer: i, jwks: {keys}, outputClaimToHeaders: [{{header: x-a}}]}}"),
            vec!["error: spec.jwtRules[0].outputClaimToHeaders[0].claim: missing"],
        ),
    ] {
        let spec = format!("{{jwtRules: [{rule}]}}");
        check("security.istio.io/v1", "RequestAuthentication", &spec, &expected);
    }
}

#[test]
fn what_telemetry_says_can_be_done() {
    for (spec, expected) in [
        ("{tracing: [{providers: [{name: a}], randomSamplingPercentage: 100}]}", vec![]),
        (
            "{tracing: [{providers: [{name: a}, {name: b}]}]}",
            vec!["error: spec.tracing[0].providers: one provider at most"],
        ),
        (
            "{tracing: [{randomSamplingPercentage: 101}]}",
            vec!["error: spec.tracing[0].randomSamplingPercentage: between 0 and 100"],
        ),
        (
            "{tracing: [{customTags: {a: {}}}]}",
            vec![
                "error: spec.tracing[0].customTags.a: one of literal, environment, header and formatter",
            ],
        ),
        (
            "{accessLogging: [{providers: [{}]}]}",
            vec!["error: spec.accessLogging: a provider without a name"],
        ),
    ] {
        check("telemetry.istio.io/v1", "Telemetry", spec, &expected);
    }
}
