//! What is refused of VirtualServices, DestinationRules and the Gateway API's routes, where, and why.

use super::{Severity, read_text};
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

fn virtual_service(spec: &str, expected: &[&str]) {
    check("networking.istio.io/v1", "VirtualService", spec, expected);
}

/// A rule for all requests, with more than where it leads.
fn rule(more: &str, expected: &[&str]) {
    let expected: Vec<String> =
        expected.iter().map(|one| one.replace("http[0]", "spec.http[0]")).collect();
    let expected: Vec<_> = expected.iter().map(String::as_str).collect();
    let spec =
        format!("{{hosts: [web], http: [{{route: [{{destination: {{host: web}}}}], {more}}}]}}");
    virtual_service(&spec, &expected);
}

#[test]
fn a_virtual_service_has_hosts_and_rules() {
    for (spec, expected) in [
        ("{hosts: [web]}", vec!["error: spec: has no rules: none of http, tls and tcp"]),
        (
            "{hosts: [web, web], http: [{directResponse: {status: 200}}]}",
            vec!["error: spec.hosts[1]: `web` stands there twice"],
        ),
        (
            "{hosts: ['*'], http: [{directResponse: {status: 200}}]}",
            vec!["error: spec.hosts[0]: `*` is for gateways only, and this one is for the mesh"],
        ),
        ("{hosts: ['*'], gateways: [g], http: [{directResponse: {status: 200}}]}", vec![]),
        ("{http: [{directResponse: {status: 200}}]}", vec![]),
        (
            "{http: [{delegate: {name: d}}]}",
            vec!["error: spec.http[0].delegate: one without hosts cannot delegate further"],
        ),
        (
            "{hosts: [web], http: [{}]}",
            vec![
                "error: spec.http[0]: does nothing: set route, redirect, directResponse or delegate",
            ],
        ),
        (
            "{hosts: [web], http: [{redirect: {uri: /a}, directResponse: {status: 200}}]}",
            vec!["error: spec.http[0]: only one of redirect, directResponse can be set"],
        ),
        (
            "{hosts: [web], tls: [{route: [{destination: {host: web}}]}]}",
            vec!["error: spec.tls[0].match: missing: needs sniHosts"],
        ),
        (
            "{hosts: [web], tcp: [{match: [{destinationSubnets: [x], port: 70000}], route: []}]}",
            vec![
                "error: spec.tcp[0].match[0].port: 70000 is no port (1 to 65535)",
                "error: spec.tcp[0].match[0].destinationSubnets[0]: `x` is neither an IP address nor a CIDR block",
                "error: spec.tcp[0].route: missing",
            ],
        ),
    ] {
        virtual_service(spec, &expected);
    }
}

#[test]
fn destinations_share_all_of_the_traffic() {
    for (route, expected) in [
        ("[{destination: {host: a}, weight: 0}]", vec![]),
        (
            "[{destination: {host: a}}, {destination: {host: b}}]",
            vec!["error: spec.http[0].route: no destination has a weight"],
        ),
        (
            "[{destination: {host: a}, weight: -1}, {destination: {}, weight: 1}]",
            vec![
                "error: spec.http[0].route[0].weight: -1 is negative",
                "error: spec.http[0].route[1].destination.host: missing",
            ],
        ),
    ] {
        virtual_service(&format!("{{hosts: [web], http: [{{route: {route}}}]}}"), &expected);
    }
}

#[test]
fn matches_can_be_met() {
    for (matched, expected) in [
        ("{uri: {}}", vec!["error: http[0].match[0].uri: empty: needs exact, prefix or regex"]),
        (
            "{uri: {exact: /a, prefix: /b}}",
            vec!["error: http[0].match[0].uri: only one of exact, prefix and regex can be set"],
        ),
        (
            "{uri: {regex: '['}}",
            vec![
                "error: http[0].match[0].uri.regex: `[` is no regular expression: unclosed character class",
            ],
        ),
        ("{headers: {x-a: {regex: '*'}, ':authority': {exact: a}}}", vec![]),
        (
            "{headers: {'a b': {}}}",
            vec!["error: http[0].match[0].headers: `a b` is no header name"],
        ),
        ("{headers: {'@request.auth.claims.a': {}}}", vec![]),
        (
            "{headers: {'@request.auth.claims': {}}}",
            vec!["error: http[0].match[0].headers: `@request.auth.claims` names no claim"],
        ),
        (
            "{sourceLabels: {a: b}}",
            vec![
                "warning: http[0].match[0].sourceLabels: a waypoint does not know the labels of a source: the match has no effect",
            ],
        ),
    ] {
        rule(&format!("match: [{matched}]"), &expected);
    }
}

#[test]
fn actions_can_be_done() {
    for (more, expected) in [
        ("timeout: 1.5s", vec![]),
        ("timeout: 0s", vec!["error: http[0].timeout: less than a millisecond"]),
        ("timeout: 1500us", vec!["error: http[0].timeout: not a whole number of milliseconds"]),
        (
            "headers: {request: {set: {Host: a, ':path': b}, remove: [host]}}",
            vec![
                "error: http[0].headers.request.set: `:path` is no header name",
                "error: http[0].headers.request.remove[0]: a request needs its host",
            ],
        ),
        (
            "headers: {response: {add: {x-a: '50%'}}}",
            vec![
                "error: http[0].headers.response.add: `50%`: there is no command `` (write `%%` for a `%`)",
            ],
        ),
        (
            "retries: {attempts: -1, perTryTimeout: 0s, retryOn: 'x'}",
            vec![
                "error: http[0].retries.attempts: -1 is negative",
                "error: http[0].retries.perTryTimeout: less than a millisecond",
                "error: http[0].retries.retryOn: `x` is neither a condition nor a status code",
            ],
        ),
        (
            "fault: {delay: {percentage: {value: 101}}, abort: {grpcStatus: NO}}",
            vec![
                "error: http[0].fault.delay.fixedDelay: missing",
                "error: http[0].fault.delay.percentage: 101 is not from 0 to 100",
                "error: http[0].fault.abort.grpcStatus: `NO` is no status of gRPC",
            ],
        ),
        (
            "fault: {abort: {httpStatus: 100}}",
            vec!["error: http[0].fault.abort.httpStatus: 100 is not from 200 to 599"],
        ),
        (
            "mirrorPercentage: {value: -1}, mirror: {host: a}",
            vec!["error: http[0].mirrorPercentage: -1 is not from 0 to 100"],
        ),
        (
            r"rewrite: {uri: /a, uriRegexRewrite: {match: '^/(.*)$', rewrite: '/\2'}}",
            vec![
                "error: http[0].rewrite.uriRegexRewrite: only one of uri and uriRegexRewrite can be set",
                r"error: http[0].rewrite.uriRegexRewrite.rewrite: `\2`: the pattern has 1 groups",
            ],
        ),
        (
            "rewrite: {authority: a}, headers: {request: {set: {host: b}}}",
            vec![
                "warning: http[0].rewrite.authority: beats the host that is set among the headers of the request",
            ],
        ),
        (
            "corsPolicy: {allowOrigins: [{}], allowMethods: ['G ET'], maxAge: 1500ms}",
            vec![
                "error: http[0].corsPolicy.allowOrigins[0]: empty: needs exact, prefix or regex",
                "error: http[0].corsPolicy.allowMethods[0]: `G ET` is no such name",
                "error: http[0].corsPolicy.maxAge: 1.5s is not a number of seconds",
            ],
        ),
    ] {
        rule(more, &expected);
    }
}

#[test]
fn a_redirect_leads_elsewhere() {
    for (redirect, expected) in [
        ("{uri: /a, redirectCode: 308}", vec![]),
        (
            "{}",
            vec![
                "error: spec.http[0].redirect: leads back: set uri, prefixRewrite, authority, scheme or port",
            ],
        ),
        (
            "{uri: /a, prefixRewrite: /b, redirectCode: 200}",
            vec![
                "error: spec.http[0].redirect: only one of uri and prefixRewrite can be set",
                "error: spec.http[0].redirect.redirectCode: 200 is none of 301, 302, 303, 307 and 308",
            ],
        ),
    ] {
        virtual_service(&format!("{{hosts: [web], http: [{{redirect: {redirect}}}]}}"), &expected);
    }
}

#[test]
fn an_answer_has_a_status_and_a_body_of_one_kind() {
    for (answer, expected) in [
        ("{status: 418, body: {bytes: aGk=}}", vec![]),
        (
            "{status: 100}",
            vec!["error: spec.http[0].directResponse.status: 100 is not from 200 to 599"],
        ),
        (
            "{status: 200, body: {bytes: a, string: b}}",
            vec![
                "error: spec.http[0].directResponse.body: only one of string and bytes can be set",
            ],
        ),
    ] {
        virtual_service(
            &format!("{{hosts: [web], http: [{{directResponse: {answer}}}]}}"),
            &expected,
        );
    }
}

#[test]
fn rules_of_http_routes_can_be_followed() {
    for (rule, expected) in [
        ("{backendRefs: [{name: a, port: 80}]}", vec![]),
        (
            "{matches: [{path: {value: a}}, {path: {type: RegularExpression, value: '('}}]}",
            vec![
                "error: spec.rules[0].matches[0].path.value: `a` has no `/` before it",
                "error: spec.rules[0].matches[1].path.value: `(` is no regular expression: unclosed group",
            ],
        ),
        (
            "{backendRefs: [{name: a, weight: 2000000}]}",
            vec![
                "error: spec.rules[0].backendRefs[0].port: missing: a Service is reached at a port",
                "error: spec.rules[0].backendRefs[0].weight: 2000000 is more than 1000000",
            ],
        ),
        (
            "{filters: [{type: URLRewrite}]}",
            vec!["error: spec.rules[0].filters[0]: is of type URLRewrite and does not say how"],
        ),
        (
            "{matches: [{path: {type: Exact, value: /a}}], filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /b}}}]}",
            vec![
                "error: spec.rules[0].filters[0]: ReplacePrefixMatch needs exactly one match, of type PathPrefix",
            ],
        ),
        (
            "{filters: [{type: RequestMirror, requestMirror: {backendRef: {name: a, port: 80}, fraction: {numerator: 2, denominator: 1}}}]}",
            vec!["error: spec.rules[0].filters[0].requestMirror.fraction: 2/1 is not from 0 to 1"],
        ),
        (
            "{timeouts: {request: 1s, backendRequest: 2s}, retry: {attempts: 0, codes: [200]}}",
            vec![
                "error: spec.rules[0].timeouts.backendRequest: 2s is longer than the whole request may take (1s)",
                "error: spec.rules[0].retry.attempts: 0 is less than 1",
                "error: spec.rules[0].retry.codes[0]: 200 is not from 400 to 599",
            ],
        ),
    ] {
        let spec = format!("{{rules: [{rule}]}}");
        check("gateway.networking.k8s.io/v1", "HTTPRoute", &spec, &expected);
    }
}

#[test]
fn routes_of_other_protocols_can_be_followed() {
    for (kind, rule, expected) in [
        (
            "GRPCRoute",
            "{matches: [{method: {}}]}",
            vec!["error: spec.rules[0].matches[0].method: empty: needs service or method"],
        ),
        (
            "GRPCRoute",
            "{matches: [{method: {type: RegularExpression, service: '['}}]}",
            vec![
                "error: spec.rules[0].matches[0].method.service: `[` is no regular expression: unclosed character class",
            ],
        ),
        ("TCPRoute", "{}", vec!["error: spec.rules[0].backendRefs: missing"]),
        (
            "TLSRoute",
            "{backendRefs: [{name: a}]}",
            vec![
                "error: spec.rules[0].backendRefs[0].port: missing: a Service is reached at a port",
            ],
        ),
    ] {
        let spec = format!("{{rules: [{rule}]}}");
        check("gateway.networking.k8s.io/v1", kind, &spec, &expected);
    }
}

#[test]
fn the_settings_of_a_destination_rule_have_a_meaning() {
    for (policy, expected) in [
        ("{loadBalancer: {simple: ROUND_ROBIN, warmup: {duration: 1m}}}", vec![]),
        (
            "{loadBalancer: {simple: RANDOM, warmup: {duration: 1m}}}",
            vec![
                "error: spec.trafficPolicy.loadBalancer.warmup: only with ROUND_ROBIN or LEAST_REQUEST",
            ],
        ),
        (
            "{loadBalancer: {consistentHash: {maglev: {tableSize: 10}}}}",
            vec![
                "error: spec.trafficPolicy.loadBalancer.consistentHash: needs one of httpHeaderName, httpCookie, useSourceIp and httpQueryParameterName",
                "error: spec.trafficPolicy.loadBalancer.consistentHash.maglev.tableSize: 10 is no prime number up to 5000011",
            ],
        ),
        (
            "{loadBalancer: {localityLbSetting: {distribute: [{from: a, to: {b: 90}}], failover: [{from: a, to: a}]}}}",
            vec![
                "error: spec.trafficPolicy.loadBalancer.localityLbSetting: only one of distribute and failover can be set",
                "error: spec.trafficPolicy.loadBalancer.localityLbSetting.distribute[0].to: the weights add up to 90, not to 100",
                "error: spec.trafficPolicy.loadBalancer.localityLbSetting.failover[0].to: `a` is the region that fails",
            ],
        ),
        (
            "{connectionPool: {tcp: {maxConnections: -1, connectTimeout: 0s}, http: {idleTimeout: 0s}}}",
            vec![
                "error: spec.trafficPolicy.connectionPool.tcp.maxConnections: -1 is negative",
                "error: spec.trafficPolicy.connectionPool.tcp.connectTimeout: less than a millisecond",
            ],
        ),
        (
            "{outlierDetection: {maxEjectionPercent: 101, interval: 0s}}",
            vec![
                "error: spec.trafficPolicy.outlierDetection.interval: less than a millisecond",
                "error: spec.trafficPolicy.outlierDetection.maxEjectionPercent: 101 is not from 0 to 100",
            ],
        ),
        (
            "{tls: {mode: MUTUAL, clientCertificate: /a}}",
            vec![
                "error: spec.trafficPolicy.tls.privateKey: missing: mode MUTUAL needs it, or a credentialName",
            ],
        ),
        (
            "{tls: {mode: ISTIO_MUTUAL, credentialName: a}}",
            vec!["error: spec.trafficPolicy.tls: mode ISTIO_MUTUAL brings its own certificates"],
        ),
        (
            "{tunnel: {targetHost: a, targetPort: 1}, proxyProtocol: {}, portLevelSettings: [{}]}",
            vec![
                "error: spec.trafficPolicy.portLevelSettings[0].port.number: 0 is no port (1 to 65535)",
                "error: spec.trafficPolicy.tunnel: only one of tunnel and proxyProtocol can be set",
            ],
        ),
    ] {
        let spec = format!("{{host: a, trafficPolicy: {policy}}}");
        check("networking.istio.io/v1", "DestinationRule", &spec, &expected);
    }
    let subsets = "{subsets: [{name: a}, {name: a}, {name: B}]}";
    let expected = [
        "error: spec.host: missing",
        "error: spec.subsets[1].name: `a` stands there twice",
        "error: spec.subsets[2].name: `B` is no DNS label",
    ];
    check("networking.istio.io/v1", "DestinationRule", subsets, &expected);
}

#[test]
fn what_an_api_server_took_is_not_refused() {
    let fixtures =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/fixtures/istiod").canonicalize();
    let mut cases = 0;
    for case in std::fs::read_dir(fixtures.unwrap()).unwrap() {
        let Ok(text) = std::fs::read_to_string(case.unwrap().path().join("input.yaml")) else {
            continue;
        };
        let mut problems = Vec::new();
        read_text(&Arc::from(Path::new("input.yaml")), &text, &mut problems);
        let kinds =
            ["VirtualService", "DestinationRule", "HTTPRoute", "GRPCRoute", "TCPRoute", "TLSRoute"];
        problems.retain(|problem| {
            problem.severity == Severity::Error
                && kinds.iter().any(|kind| problem.object.starts_with(&format!("{kind} ")))
        });
        assert!(problems.is_empty(), "{problems:#?}");
        cases += 1;
    }
    assert!(cases > 10, "{cases}");
}

#[test]
fn a_patch_that_cannot_be_read_is_refused_and_one_that_is_not_applied_is_told() {
    let filter = |patch: &str, expected: &[&str]| {
        let target = "{group: gateway.networking.k8s.io, kind: Gateway, name: w}";
        let spec = format!("{{targetRefs: [{target}], configPatches: [{patch}]}}");
        check("networking.istio.io/v1alpha3", "EnvoyFilter", &spec, expected);
    };
    filter("{applyTo: HTTP_FILTER, patch: {operation: INSERT_FIRST, value: {name: x}}}", &[]);
    filter("{applyTo: HTTP_FILTER, patch: {operation: REMOVE}}", &[]);
    filter(
        "{applyTo: HTTP_FILTER, patch: {operation: INSERT_FIRST}}",
        &["error: spec.configPatches[0].patch.value: missing"],
    );
    filter("{applyTo: HTTP_FILTER}", &["error: spec.configPatches[0].patch: missing"]);
    filter(
        "{applyTo: LISTENER, patch: {operation: MERGE, value: {name: x}}}",
        &["warning: spec.configPatches[0].applyTo: Merge of LISTENER is not applied to waypoints"],
    );
    let unknown = "{applyTo: HTTP_FILTER, patch: {operation: INSERT_FIRST, value: {nope: 1}}}";
    let text = format!(
        "apiVersion: networking.istio.io/v1alpha3\nkind: EnvoyFilter\nmetadata: {{name: r}}\n\
         spec: {{targetRefs: [{{kind: Gateway, name: w}}], configPatches: [{unknown}]}}\n"
    );
    let mut problems = Vec::new();
    read_text(&Arc::from(Path::new("f")), &text, &mut problems);
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert_eq!(
        (problems[0].severity, &*problems[0].field),
        (Severity::Error, "spec.configPatches[0].patch.value")
    );
    assert!(problems[0].reason.contains("nope"), "{}", problems[0].reason);
}
