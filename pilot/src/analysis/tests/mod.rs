//! Every code, with an input that has it and the nearest that has it not.
//!
//! Inputs are lines: `KIND NAMESPACE/NAME LABELS @ ANNOTATIONS | SPEC || STATUS`, each part after the name optional; of an
//! EndpointSlice, `| ENDPOINTS || PORTS`. A line for an object of [`MESH`] stands in its place.

mod hosts;
mod policies;
mod references;
mod routes;
mod waypoints;

use std::{collections::BTreeMap, path::Path, sync::Arc};

use super::{Code, Finding, analyze, with_problems};
use crate::{
    compile::MeshConfig,
    manifests::{Kind, Manifests, Problem, Severity, read_text},
};

/// In it, nothing is found.
const MESH: &str = "
Namespace shop {istio.io/dataplane-mode: ambient, istio.io/use-waypoint: wp}
Namespace plain {istio.io/dataplane-mode: ambient}
Gateway shop/wp | {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]} || {addresses: [{type: IPAddress, value: 10.9.0.1}]}
Service shop/web | {clusterIP: 10.1.0.1, selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp-db, port: 5432}]}
Service plain/api | {clusterIP: 10.1.0.2, selector: {app: api}, ports: [{name: http, port: 80, targetPort: 8080}]}
Pod shop/web-1 {app: web, version: v1} | {serviceAccountName: web, containers: [{name: c, image: i, ports: [{name: main, containerPort: 8080}]}]} || {podIP: 10.0.0.1}
Pod plain/api-1 {app: api} | {serviceAccountName: api, containers: [{name: c, image: i}]} || {podIP: 10.0.0.2}
ServiceAccount shop/web
ServiceAccount plain/api
ConfigMap istio-system/istio | {mesh: '{extensionProviders: [{name: opa, envoyExtAuthzGrpc: {service: api.plain.svc.cluster.local, port: 80}}]}'}
";

/// A code, the field it is found at, an input that has it once, and one that has it not.
type Case = (Code, &'static str, &'static str, &'static str);

fn document(line: &str) -> (String, String) {
    let (head, rest) = line.split_once(" | ").unwrap_or((line, ""));
    let (spec, status) = rest.split_once(" || ").unwrap_or((rest, ""));
    let (head, annotations) = head.split_once(" @ ").unwrap_or((head, "{}"));
    let mut parts = head.trim().splitn(3, ' ');
    let (written, name) = (parts.next().unwrap(), parts.next().unwrap());
    let labels = parts.next().unwrap_or("{}");
    let kind = match written {
        "IstioGateway" => Kind::IstioGateway,
        name => *Kind::ALL.iter().find(|kind| kind.name() == name).unwrap(),
    };
    let (namespace, own) = name.split_once('/').unwrap_or(("", name));
    let namespace =
        if namespace.is_empty() { String::new() } else { format!(", namespace: {namespace}") };
    let body = if matches!(kind, Kind::ConfigMap | Kind::Secret) { "data" } else { "spec" };
    let mut text = format!(
        "apiVersion: {}\nkind: {}\nmetadata: {{name: {own}{namespace}, labels: {labels}, annotations: {annotations}}}\n",
        kind.versions()[0],
        kind.name()
    );
    if kind == Kind::EndpointSlice {
        text += &format!("addressType: IPv4\nendpoints: {spec}\nports: {status}\n");
        return (format!("{written} {name}"), text);
    }
    if !spec.is_empty() {
        text += &format!("{body}: {spec}\n");
    }
    if !status.is_empty() {
        text += &format!("status: {status}\n");
    }
    (format!("{written} {name}"), text)
}

/// Everything that is found, and the problems of reading.
fn found(lines: &str) -> (Vec<Finding>, Vec<Problem>) {
    let mut documents = BTreeMap::new();
    for line in MESH.lines().chain(lines.lines()).filter(|line| !line.trim().is_empty()) {
        let (name, text) = document(line);
        documents.insert(name, text);
    }
    let text: Vec<_> = documents.into_values().collect();
    let mut problems = Vec::new();
    let resources = read_text(&Arc::from(Path::new("f.yaml")), &text.join("---\n"), &mut problems);
    let (manifests, across) = Manifests::gather(&resources);
    problems.extend(across);
    let (config, of_config) = MeshConfig::default().with_settings_of(&manifests);
    problems.extend(of_config);
    (analyze(&manifests, &config), problems)
}

fn check(cases: &[Case]) {
    for (code, field, with, without) in cases {
        let (findings, problems) = found(with);
        let errors = problems.iter().filter(|problem| problem.severity == Severity::Error);
        assert_eq!(errors.collect::<Vec<_>>(), Vec::<&Problem>::new(), "{with}");
        let of_code: Vec<_> = findings.iter().filter(|one| one.code == *code).collect();
        let fields: Vec<_> = of_code.iter().map(|one| one.field.as_str()).collect();
        assert_eq!(fields, [*field], "{} in {with}: {findings:#?}", code.id());
        let (findings, _) = found(without);
        let still: Vec<_> = findings.iter().filter(|one| one.code == *code).collect();
        assert!(still.is_empty(), "{} in {without}: {still:#?}", code.id());
    }
}

#[test]
fn nothing_is_found_where_nothing_is_wrong() {
    let (findings, problems) = found("");
    assert!(findings.is_empty() && problems.is_empty(), "{findings:#?} {problems:#?}");
}

#[test]
fn every_code_is_found_in_some_test() {
    let tables =
        [references::CASES, hosts::CASES, policies::CASES, routes::CASES, waypoints::CASES];
    let tested: Vec<_> = tables.iter().flat_map(|table| table.iter().map(|case| case.0)).collect();
    for code in Code::ALL {
        // These two are problems of reading.
        let of_reading = matches!(code, Code::Refused | Code::Ignored);
        assert!(of_reading || tested.contains(code), "{}", code.id());
    }
}

#[test]
fn problems_have_a_code_and_are_not_said_twice() {
    let (findings, problems) = found(
        "AuthorizationPolicy shop/a | {rules: [{to: [{operation: {methods: [GET]}}]}]}
Service shop/bad | {clusterIP: nowhere, ports: [{port: 80}]}
VirtualService shop/v | {hosts: [web], http: [{match: [{sourceLabels: {a: b}}], route: [{destination: {host: web, port: {number: 80}}}]}]}",
    );
    let all = with_problems(findings, &problems);
    let of = |object: &str| {
        let of_object = all.iter().filter(|one| one.object == object);
        of_object.map(|one| one.code.id()).collect::<Vec<_>>()
    };
    assert_eq!(of("AuthorizationPolicy shop/a"), ["AQ0301"]);
    assert_eq!(of("Service shop/bad"), ["AQ0001"]);
    assert_eq!(of("VirtualService shop/v"), ["AQ0406", "AQ0002"]);
}

#[test]
fn a_finding_reads_as_a_line_and_as_json() {
    let (findings, _) = found(
        "Service shop/web {istio.io/use-waypoint: wq} | {clusterIP: 10.1.0.1, selector: {app: web}, ports: [{name: http, port: 80}]}",
    );
    let [finding] = findings.as_slice() else { panic!("{findings:#?}") };
    let line = finding.to_string();
    let said = "error AQ0101: Service shop/web: metadata.labels: there is no Gateway shop/wq: reached without one";
    assert!(line.starts_with("f.yaml:") && line.ends_with(said), "{line}");
    let json = finding.json();
    let fields = ["code", "severity", "kind", "namespace", "name", "field"];
    let fields: Vec<_> = fields.iter().map(|field| json[*field].as_str().unwrap()).collect();
    assert_eq!(fields, ["AQ0101", "error", "Service", "shop", "web", "metadata.labels"]);
}

#[test]
fn what_a_repository_does_not_hold_is_not_missed() {
    let lines = "
Namespace shop {istio.io/dataplane-mode: ambient, istio.io/use-waypoint: wp}
Gateway shop/wp | {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
Service shop/web | {clusterIP: 10.1.0.1, selector: {app: web}, ports: [{name: http, port: 80, targetPort: main}]}
AuthorizationPolicy shop/a | {selector: {matchLabels: {app: web}}, rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/x]}}]}]}
HTTPRoute shop/r | {parentRefs: [{group: '', kind: Service, name: web}], rules: [{backendRefs: [{name: web, port: 80}]}]}
DestinationRule shop/d | {host: web, trafficPolicy: {tls: {mode: SIMPLE, credentialName: c}}, subsets: [{name: v1, labels: {version: v1}}]}";
    let text: Vec<_> =
        lines.lines().filter(|line| !line.is_empty()).map(|line| document(line).1).collect();
    let mut problems = Vec::new();
    let resources = read_text(&Arc::from(Path::new("f.yaml")), &text.join("---\n"), &mut problems);
    let manifests = Manifests::gather(&resources).0;
    assert_eq!(analyze(&manifests, &MeshConfig::default()), []);
}

#[test]
fn every_code_has_its_section() {
    let page = include_str!("../../../../docs/codes.md");
    let sections: Vec<&str> = page.split("\n### ").skip(1).collect();
    for code in Code::ALL {
        let section = sections.iter().find(|section| section.starts_with(code.id())).unwrap();
        let body = section.split_once('\n').unwrap().1.replace('\n', " ");
        assert!(body.starts_with(code.title()), "{}: {body}", code.id());
    }
    assert_eq!(sections.len(), Code::ALL.len());
}
