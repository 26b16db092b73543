//! What compiles to what, one rule each.

use std::{path::Path, sync::Arc};

use prost::Message;
use proto::{
    security::{Authorization, Match, StringMatch, string_match::MatchType},
    workload::{
        Address, TunnelProtocol, Workload, WorkloadStatus, address::Type,
        gateway_address::Destination,
    },
};

use super::{Compiled, MeshConfig, compile};
use crate::manifests::{Manifests, Severity, read_text};

fn compiled(text: &str) -> Compiled {
    let mut problems = Vec::new();
    let resources = read_text(&Arc::from(Path::new("test.yaml")), text, &mut problems);
    let (manifests, across) = Manifests::gather(&resources);
    problems.extend(across);
    problems.retain(|problem| problem.severity == Severity::Error);
    assert!(problems.is_empty(), "{problems:?}");
    compile(&manifests, &MeshConfig::default())
}

fn pod(extra: &str) -> String {
    let lines = extra.lines();
    let pod = "
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}, annotations: {}}
spec: {nodeName: node-a, serviceAccountName: web, containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}
status: {phase: Running, podIP: 10.0.0.1}";
    lines.fold(pod.to_owned(), |pod, line| match line.split_once(": ") {
        Some((key, _)) => pod
            .lines()
            .map(|old| if old.starts_with(&format!("{key}:")) { line } else { old })
            .collect::<Vec<_>>()
            .join("\n"),
        None => pod,
    })
}

const AMBIENT: &str = "
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---";

fn workload(compiled: &Compiled) -> Option<Workload> {
    let resource = compiled.addresses.get("Kubernetes//Pod/shop/web")?;
    match Address::decode(resource.encoded.as_slice()).unwrap().r#type.unwrap() {
        Type::Workload(workload) => Some(workload),
        Type::Service(_) => None,
    }
}

fn policy(compiled: &Compiled, name: &str) -> Option<Authorization> {
    let resource = compiled.authorizations.get(name)?;
    Some(Authorization::decode(resource.encoded.as_slice()).unwrap())
}

fn tunnel(namespace: &str, pod_change: &str) -> TunnelProtocol {
    let compiled = compiled(&format!("{namespace}{}", pod(pod_change)));
    workload(&compiled).unwrap().tunnel_protocol()
}

#[test]
fn a_pod_is_in_the_mesh_if_its_labels_or_a_node_agent_say_so() {
    let metadata = |labels: &str, annotations: &str| {
        format!(
            "metadata: {{name: web, namespace: shop, labels: {{{labels}}}, annotations: {{{annotations}}}}}"
        )
    };
    let host = "spec: {hostNetwork: true, containers: []}";
    for (namespace, change, expected) in [
        ("", String::new(), TunnelProtocol::None),
        (AMBIENT, String::new(), TunnelProtocol::Hbone),
        (AMBIENT, metadata("istio.io/dataplane-mode: none", ""), TunnelProtocol::None),
        (AMBIENT, metadata("istio.io/dataplane-mode: other", ""), TunnelProtocol::Hbone),
        ("", metadata("istio.io/dataplane-mode: ambient", ""), TunnelProtocol::Hbone),
        ("", metadata("", "ambient.istio.io/redirection: enabled"), TunnelProtocol::Hbone),
        (AMBIENT, metadata("", "ambient.istio.io/redirection: pending"), TunnelProtocol::None),
        (AMBIENT, metadata("", "sidecar.istio.io/status: x"), TunnelProtocol::None),
        ("", metadata("networking.istio.io/tunnel: http", ""), TunnelProtocol::Hbone),
        (AMBIENT, host.to_owned(), TunnelProtocol::None),
    ] {
        assert_eq!(tunnel(namespace, &change), expected, "{namespace} {change}");
    }
}

#[test]
fn a_pod_that_ended_or_has_no_address_is_no_workload() {
    for status in [
        "status: {phase: Succeeded, podIP: 10.0.0.1}",
        "status: {phase: Failed, podIP: 10.0.0.1}",
        "status: {phase: Pending}",
        "status: {}",
    ] {
        assert!(workload(&compiled(&pod(status))).is_none(), "{status}");
    }
}

#[test]
fn a_pod_is_healthy_if_it_is_ready_and_stays() {
    for (change, expected) in [
        ("", WorkloadStatus::Healthy),
        ("status: {podIP: 10.0.0.1}", WorkloadStatus::Healthy),
        ("status: {phase: Pending, podIP: 10.0.0.1}", WorkloadStatus::Unhealthy),
        (
            "status: {phase: Running, podIP: 10.0.0.1, conditions: [{type: Ready, status: 'False'}]}",
            WorkloadStatus::Unhealthy,
        ),
        (
            "metadata: {name: web, namespace: shop, deletionTimestamp: '2026-01-01T00:00:00Z'}",
            WorkloadStatus::Unhealthy,
        ),
    ] {
        assert_eq!(workload(&compiled(&pod(change))).unwrap().status(), expected, "{change}");
    }
}

#[test]
fn a_service_leads_to_the_pods_of_its_selector_and_to_named_ports() {
    let service = "
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.1.0.1
  selector: {app: web}
  ports:
  - {name: a, port: 80, targetPort: http}
  - {name: b, port: 81, targetPort: absent}
  - {name: c, port: 82}";
    let workload = workload(&compiled(&format!("{}{service}", pod("")))).unwrap();
    let ports = &workload.services["shop/web.shop.svc.cluster.local"].ports;
    let ports: Vec<_> = ports.iter().map(|port| (port.service_port, port.target_port)).collect();
    assert_eq!(ports, [(80, 8080), (82, 82)]);
}

#[test]
fn a_service_without_selector_leads_where_its_slice_says() {
    let service = "
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.1.0.1, ports: [{name: a, port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints:
- {addresses: [10.0.0.1], targetRef: {kind: Pod, name: web, namespace: shop}}
ports: [{name: a, port: 8080}]";
    let workload = workload(&compiled(&format!("{}{service}", pod("")))).unwrap();
    let ports = &workload.services["shop/web.shop.svc.cluster.local"].ports;
    assert_eq!((ports[0].service_port, ports[0].target_port), (80, 8080));
}

/// The waypoint of Service `web` and of its pod, as `<namespace>/<hostname>:<port>`, with these labels.
fn waypoints(namespace: &str, service: &str, pod_labels: &str) -> [String; 2] {
    let pod = pod(&format!("metadata: {{name: web, namespace: shop, labels: {{{pod_labels}}}}}"));
    let gateway = |namespace: &str, name: &str, labels: &str, from: &str| {
        format!(
            "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{namespace: {namespace}, name: {name}, labels: {{{labels}}}}}
spec:
  gatewayClassName: istio-waypoint
  listeners:
  - {{name: mesh, port: 15008, protocol: HBONE, allowedRoutes: {{namespaces: {{from: {from}}}}}}}
status: {{addresses: [{{type: Hostname, value: {name}.{namespace}.svc.cluster.local}}]}}
---"
        )
    };
    let gateways = gateway("shop", "wp", "", "Same")
        + &gateway("shop", "pods", "istio.io/waypoint-for: workload", "Same")
        + &gateway("infra", "wp", "", "All")
        + &gateway("infra", "closed", "", "Same");
    let compiled = compiled(&format!(
        "{gateways}
apiVersion: v1
kind: Namespace
metadata: {{name: shop, labels: {{{namespace}}}}}
---{pod}
---
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: shop, labels: {{{service}}}}}
spec: {{clusterIP: 10.1.0.1, ports: [{{port: 80}}]}}"
    ));
    let resource = &compiled.addresses["shop/web.shop.svc.cluster.local"];
    let of_service = match Address::decode(resource.encoded.as_slice()).unwrap().r#type.unwrap() {
        Type::Service(service) => service.waypoint,
        Type::Workload(workload) => panic!("{workload:?}"),
    };
    [of_service, workload(&compiled).unwrap().waypoint].map(|waypoint| {
        let Some(waypoint) = waypoint else { return String::new() };
        let Some(Destination::Hostname(host)) = waypoint.destination else { panic!("no host") };
        format!("{}/{}:{}", host.namespace, host.hostname, waypoint.hbone_mtls_port)
    })
}

#[test]
fn what_asks_for_a_waypoint_refers_to_it() {
    const WP: &str = "istio.io/use-waypoint: wp";
    const NONE: &str = "istio.io/use-waypoint: none";
    const ABSENT: &str = "istio.io/use-waypoint: absent";
    const CLOSED: &str = "istio.io/use-waypoint: closed, istio.io/use-waypoint-namespace: infra";
    const PODS: &str = "istio.io/use-waypoint: pods";
    const ELSEWHERE: &str = "istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: infra";
    const CLASS: &str = "gateway.networking.k8s.io/gateway-class-name";
    const NAME: &str = "gateway.networking.k8s.io/gateway-name: x";
    let ours = "shop/wp.shop.svc.cluster.local:15008";
    let theirs = "infra/wp.infra.svc.cluster.local:15008";
    let pods = "shop/pods.shop.svc.cluster.local:15008";
    for (namespace, service, pod, expected) in [
        ("", "", "", ["", ""]),
        ("", WP, "", [ours, ""]),
        (WP, "", "", [ours, ""]),
        (ELSEWHERE, "", "", [theirs, ""]),
        (WP, ELSEWHERE, "", [theirs, ""]),
        (WP, NONE, "", ["", ""]),
        (NONE, WP, "", [ours, ""]),
        ("istio.io/use-waypoint-namespace: infra", WP, "", [ours, ""]),
        // A waypoint is for services unless it says otherwise.
        ("", "", WP, ["", ""]),
        ("", "", PODS, ["", pods]),
        (PODS, "", "", ["", pods]),
        (PODS, "", NONE, ["", ""]),
        ("", PODS, "", ["", ""]),
        // Nothing takes the place of what was asked for and is not to be had.
        (WP, ABSENT, "", ["", ""]),
        (WP, CLOSED, "", ["", ""]),
        (WP, NAME, "", ["", ""]),
        (WP, "istio.io/waypoint-for: all", "", ["", ""]),
        (WP, &format!("{NAME}, {CLASS}: istio-waypoint, {WP}"), "", ["", ""]),
        (WP, &format!("{NAME}, {CLASS}: istio"), "", [ours, ""]),
    ] {
        assert_eq!(waypoints(namespace, service, pod), expected, "{namespace}|{service}|{pod}");
    }
}

#[test]
fn an_identity_belongs_to_the_nodes_of_its_pods_that_have_not_ended() {
    let running = compiled(&pod("")).identities;
    assert!(running.has("node-a", "shop", "web"));
    assert!(!running.has("node-b", "shop", "web"));
    assert!(!running.has("node-a", "shop", "other"));
    let unnamed = "spec: {nodeName: node-a, serviceAccountName: '', containers: []}";
    assert!(compiled(&pod(unnamed)).identities.has("node-a", "shop", "default"));
    let ended = compiled(&pod("status: {phase: Failed, podIP: 10.0.0.1}")).identities;
    assert!(!ended.has("node-a", "shop", "web"));
}

fn authorization(spec: &str) -> Compiled {
    compiled(&format!(
        "{}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: p, namespace: shop}}
spec: {spec}",
        pod("")
    ))
}

#[test]
fn a_policy_that_layer_4_does_not_enforce_is_neither_sent_nor_named() {
    for spec in [
        "{action: AUDIT, selector: {matchLabels: {app: web}}, rules: [{}]}",
        "{action: CUSTOM, provider: {name: x}, selector: {matchLabels: {app: web}}, rules: [{}]}",
        "{targetRefs: [{kind: Service, group: '', name: web}], rules: [{}]}",
    ] {
        let compiled = authorization(spec);
        assert!(compiled.authorizations.is_empty(), "{spec}");
        assert!(workload(&compiled).unwrap().authorization_policies.is_empty(), "{spec}");
    }
}

#[test]
fn a_trust_domain_is_the_beginning_of_a_principal() {
    let source = |fields: &str| format!("{{rules: [{{from: [{{source: {{{fields}}}}}]}}]}}");
    let prefix = |text: &str| StringMatch { match_type: Some(MatchType::Prefix(text.into())) };
    let first = |compiled: &Compiled| -> Option<Match> {
        policy(compiled, "shop/p")
            .unwrap()
            .rules
            .first()
            .map(|rule| rule.clauses[0].matches[0].clone())
    };
    let only = first(&authorization(&source("trustDomains: [other.example]"))).unwrap();
    assert_eq!(only.principals, [prefix("other.example/")]);
    let none_of =
        first(&authorization(&source("notTrustDomains: [x], notPrincipals: [y*]"))).unwrap();
    assert_eq!(none_of.not_principals, [prefix("y"), prefix("x/")]);
    // Both at once cannot be said in one match, and half of it would allow too much.
    assert_eq!(first(&authorization(&source("trustDomains: [x], principals: [y]"))), None);
}

fn modes(spec: &str, namespace_mode: &str) -> Vec<String> {
    let compiled = compiled(&format!(
        "{}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: own, namespace: shop}}
spec: {{selector: {{matchLabels: {{app: web}}}}, {spec}}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {{name: default, namespace: shop}}
spec: {{mtls: {{mode: {namespace_mode}}}}}",
        pod("")
    ));
    let names = workload(&compiled).unwrap().authorization_policies;
    for name in &names {
        assert!(policy(&compiled, name).is_some(), "{name} is named and not sent");
    }
    names
}

#[test]
fn the_narrowest_peer_authentication_counts() {
    const STRICT: &str = "istio-system/istio_converted_static_strict";
    const PORTS: &str = "shop/converted_peer_authentication_own";
    for (spec, namespace, expected) in [
        ("mtls: {mode: STRICT}", "PERMISSIVE", vec![STRICT]),
        ("mtls: {mode: PERMISSIVE}", "STRICT", vec![]),
        ("mtls: {mode: DISABLE}", "STRICT", vec![]),
        ("mtls: {mode: UNSET}", "STRICT", vec![STRICT]),
        ("portLevelMtls: {80: {mode: STRICT}}", "STRICT", vec![STRICT]),
        ("portLevelMtls: {80: {mode: STRICT}}", "UNSET", vec![PORTS]),
        ("portLevelMtls: {'80': {mode: PERMISSIVE}}", "STRICT", vec![PORTS]),
        ("portLevelMtls: {80: {mode: UNSET}}", "STRICT", vec![STRICT]),
        ("portLevelMtls: {80: {mode: DISABLE}}", "PERMISSIVE", vec![]),
    ] {
        assert_eq!(modes(spec, namespace), expected, "{spec} under {namespace}");
    }
}

#[test]
fn equal_input_gives_equal_versions() {
    let (first, second) = (compiled(&pod("")), compiled(&pod("")));
    assert_eq!(first.addresses, second.addresses);
    assert_eq!(first.addresses["Kubernetes//Pod/shop/web"].version().len(), 16);
}

#[test]
fn limits_of_annotations_are_an_extension_and_the_pods_comes_before_the_namespaces() {
    let namespace = |annotations: &str| {
        format!(
            "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, annotations: {{{annotations}}}}}\n---"
        )
    };
    let metadata = |annotations: &str| {
        format!(
            "metadata: {{name: web, namespace: shop, labels: {{app: web}}, annotations: {{{annotations}}}}}"
        )
    };
    let rate = |value: &str| format!("aquifer.io/connection-rate: '{value}'");
    for (of_namespace, of_pod, expected) in [
        (String::new(), String::new(), "None None"),
        (rate("100"), String::new(), "None Some(\"100:100\")"),
        (rate("100"), rate("5:9"), "None Some(\"5:9\")"),
        (String::new(), "aquifer.io/max-connections: '7'".to_owned(), "Some(7) None"),
    ] {
        let text = format!("{}{}", namespace(&of_namespace), pod(&metadata(&of_pod)));
        let workload = mesh::store::Workload::try_from(workload(&compiled(&text)).unwrap());
        let limits = workload.unwrap().limits;
        let rate = limits.connection_rate.map(|rate| rate.to_string());
        assert_eq!(format!("{:?} {rate:?}", limits.max_connections), expected);
    }
}
