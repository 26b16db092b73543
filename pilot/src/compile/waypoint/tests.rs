//! The rules of a waypoint's configuration that no recording shows.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use prost::Message;
use proto::envoy::envoy::{
    config::{
        cluster::v3::{Cluster, cluster::LbPolicy},
        core::v3::{Extension, Node},
        endpoint::v3::ClusterLoadAssignment,
        listener::v3::Listener,
    },
    extensions::filters::network::http_connection_manager::v3::HttpConnectionManager,
};

use super::{ClientError, WaypointConfig, of_node};
use crate::{
    compile::MeshConfig,
    manifests::{Manifests, Severity, read_text},
};

const MESH: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient, istio.io/use-waypoint: wp}}
---
apiVersion: v1
kind: Node
metadata:
  name: node-a
  labels: {topology.kubernetes.io/region: r1, topology.kubernetes.io/zone: a}
---
apiVersion: v1
kind: Node
metadata:
  name: node-b
  labels: {topology.kubernetes.io/region: r1, topology.kubernetes.io/zone: b}
---
apiVersion: v1
kind: Node
metadata:
  name: node-c
  labels: {topology.kubernetes.io/region: r2, topology.kubernetes.io/zone: c}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: shop}
spec:
  gatewayClassName: istio-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
---
apiVersion: v1
kind: Service
metadata: {name: wp, namespace: shop, labels: {gateway.networking.k8s.io/gateway-name: wp}}
spec:
  clusterIP: 10.96.0.2
  selector: {gateway.networking.k8s.io/gateway-name: wp}
  ports: [{name: mesh, port: 15008, appProtocol: hbone}]
---
apiVersion: v1
kind: Pod
metadata:
  name: wp-1
  namespace: shop
  labels:
    gateway.networking.k8s.io/gateway-name: wp
    gateway.istio.io/managed: istio.io-mesh-controller
    istio.io/dataplane-mode: none
spec: {serviceAccountName: wp, nodeName: node-a, containers: [{name: c}]}
status: {phase: Running, podIP: 10.1.0.2, conditions: [{type: Ready, status: 'True'}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.0.10
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}, {name: tcp, port: 90}]
---
apiVersion: v1
kind: Pod
metadata: {name: web-a, namespace: shop, labels: {app: web, version: v1}}
spec: {nodeName: node-a, containers: [{name: c}]}
status: {phase: Running, podIP: 10.1.0.10, conditions: [{type: Ready, status: 'True'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-b, namespace: shop, labels: {app: web, version: v2}}
spec: {nodeName: node-b, containers: [{name: c}]}
status: {phase: Running, podIP: 10.1.1.10, conditions: [{type: Ready, status: 'True'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-c, namespace: shop, labels: {app: web, version: v2}}
spec: {nodeName: node-c, containers: [{name: c}]}
status: {phase: Running, podIP: 10.1.2.10, conditions: [{type: Ready, status: 'True'}]}
";

/// The Envoy of the waypoint `shop/wp`.
pub(crate) fn node() -> Node {
    Node { id: "waypoint~10.1.0.2~wp-1.shop~shop.svc.cluster.local".into(), ..Node::default() }
}

/// A mesh whose namespace `shop` has a waypoint, and more.
pub(crate) fn manifests(more: &str) -> Manifests {
    let mut problems = Vec::new();
    let text = format!("{MESH}\n---\n{more}");
    let resources = read_text(&Arc::from(Path::new("mesh.yaml")), &text, &mut problems);
    problems.retain(|problem| problem.severity == Severity::Error);
    assert!(problems.is_empty(), "{problems:#?}");
    Manifests::gather(&resources).0
}

fn compiled(more: &str) -> WaypointConfig {
    of_node(&manifests(more), &MeshConfig::default(), &node()).unwrap().unwrap()
}

fn cluster(more: &str, name: &str) -> Cluster {
    let clusters = compiled(more).clusters;
    let names: Vec<_> = clusters.iter().map(|cluster| cluster.name.clone()).collect();
    let found = clusters.into_iter().find(|cluster| cluster.name == name);
    found.unwrap_or_else(|| panic!("{name} is not among {names:?}"))
}

fn rule(policy: &str) -> String {
    format!(
        "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: web, namespace: shop}}
spec: {{host: web, trafficPolicy: {policy}}}
"
    )
}

const HTTP: &str = "inbound-vip|80|http|web.shop.svc.cluster.local";
const TCP: &str = "inbound-vip|90|tcp|web.shop.svc.cluster.local";

/// Priority, weight and number of endpoints by zone.
fn zones(more: &str) -> BTreeMap<String, (u32, u32, usize)> {
    let assignments = compiled(more).assignments;
    let of_http = |assignment: &ClusterLoadAssignment| assignment.cluster_name == HTTP;
    let assignment = assignments.into_iter().find(of_http).unwrap();
    let localities = assignment.endpoints.into_iter().map(|locality| {
        let weight = locality.load_balancing_weight.unwrap().value;
        let zone = locality.locality.unwrap().zone;
        (zone, (locality.priority, weight, locality.lb_endpoints.len()))
    });
    localities.collect()
}

fn placed(expected: [(&str, (u32, u32, usize)); 3]) -> BTreeMap<String, (u32, u32, usize)> {
    expected.into_iter().map(|(zone, place)| (zone.to_owned(), place)).collect()
}

#[test]
fn without_outlier_detection_no_locality_comes_first() {
    let expected = placed([("a", (0, 1, 1)), ("b", (0, 1, 1)), ("c", (0, 1, 1))]);
    assert_eq!(zones(&rule("{connectionPool: {tcp: {maxConnections: 1}}}")), expected);
}

#[test]
fn with_outlier_detection_the_nearest_come_first() {
    let expected = placed([("a", (0, 1, 1)), ("b", (1, 1, 1)), ("c", (2, 1, 1))]);
    assert_eq!(zones(&rule("{outlierDetection: {consecutive5xxErrors: 3}}")), expected);
}

#[test]
fn a_rule_that_turns_localities_off_stands_before_outlier_detection() {
    let policy = "{outlierDetection: {consecutive5xxErrors: 3},
        loadBalancer: {localityLbSetting: {enabled: false}}}";
    let expected = placed([("a", (0, 1, 1)), ("b", (0, 1, 1)), ("c", (0, 1, 1))]);
    assert_eq!(zones(&rule(policy)), expected);
}

#[test]
fn shares_are_spread_over_the_localities_of_a_pattern_and_others_get_nothing() {
    let policy =
        "{loadBalancer: {localityLbSetting: {distribute: [{from: r1/*, to: {r1/*: 100}}]}}}";
    let expected = placed([("a", (0, 50, 1)), ("b", (0, 50, 1)), ("c", (0, 1, 0))]);
    assert_eq!(zones(&rule(policy)), expected);
}

#[test]
fn the_first_label_that_differs_decides_the_priority() {
    let policy = "{outlierDetection: {consecutive5xxErrors: 3}, loadBalancer: {localityLbSetting:
        {failoverPriority: [version=v2, topology.kubernetes.io/region]}}}";
    let expected = placed([("a", (2, 1, 1)), ("b", (0, 1, 1)), ("c", (1, 1, 1))]);
    assert_eq!(zones(&rule(policy)), expected);
}

#[test]
fn what_is_said_of_a_port_counts_whole_and_of_no_other_port() {
    let policy = "{loadBalancer: {simple: RANDOM}, connectionPool: {tcp: {maxConnections: 7}},
        portLevelSettings: [{port: {number: 80}, loadBalancer: {simple: ROUND_ROBIN}}]}";
    let connections = |cluster: &Cluster| {
        let breakers = cluster.circuit_breakers.clone().unwrap();
        breakers.thresholds[0].max_connections.unwrap().value
    };
    let http = cluster(&rule(policy), HTTP);
    assert_eq!((http.lb_policy(), connections(&http)), (LbPolicy::RoundRobin, u32::MAX));
    let tcp = cluster(&rule(policy), TCP);
    assert_eq!((tcp.lb_policy(), connections(&tcp)), (LbPolicy::Random, 7));
}

#[test]
fn the_most_specific_host_of_the_first_namespace_counts() {
    let rules = "
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: all, namespace: shop}
spec: {host: '*.shop.svc.cluster.local', trafficPolicy: {loadBalancer: {simple: RANDOM}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: mesh, namespace: istio-system}
spec: {host: web.shop.svc.cluster.local, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}}
";
    assert_eq!(cluster(rules, HTTP).lb_policy(), LbPolicy::Random);
    let more = format!("{rules}\n---\n{}", rule("{loadBalancer: {simple: PASSTHROUGH}}"));
    assert_eq!(cluster(&more, HTTP).lb_policy(), LbPolicy::ClusterProvided);
    assert!(compiled(&more).assignments.iter().all(|one| !one.cluster_name.contains("web")));
}

#[test]
fn a_backend_policy_without_its_roots_believes_nobody() {
    let policy = "
apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {name: web, namespace: shop}
spec:
  targetRefs: [{group: '', kind: Service, name: web, sectionName: http}]
  validation:
    hostname: web.example
    caCertificateRefs: [{group: '', kind: ConfigMap, name: roots}]
";
    let text = |more: &str, name: &str| format!("{:?}", cluster(more, name).transport_socket);
    let nobody = "0".repeat(64);
    assert!(text(policy, HTTP).contains("InternalUpstreamTransport"));
    let bytes =
        |more: &str, name: &str| cluster(more, name).transport_socket.unwrap().encode_to_vec();
    let holds =
        |bytes: &[u8], wanted: &str| bytes.windows(wanted.len()).any(|at| at == wanted.as_bytes());
    assert!(holds(&bytes(policy, HTTP), &nobody));
    assert!(holds(&bytes(policy, HTTP), "web.example"));
    assert!(!holds(&bytes(policy, TCP), "web.example"));
    let roots = "
apiVersion: v1
kind: ConfigMap
metadata: {name: roots, namespace: shop}
data: {ca.crt: OF-THE-BACKEND}
";
    let both = format!("{policy}\n---\n{roots}");
    assert!(!holds(&bytes(&both, HTTP), &nobody));
    assert!(holds(&bytes(&both, HTTP), "OF-THE-BACKEND"));
}

fn filters(node: &Node) -> Vec<String> {
    let config = of_node(&manifests(""), &MeshConfig::default(), node).unwrap().unwrap();
    let main = |listener: &&Listener| listener.name == "main_internal";
    let main = config.listeners.iter().find(main).unwrap();
    let mut names = Vec::new();
    for filter in main.filter_chains.iter().flat_map(|chain| &chain.filters) {
        names.push(filter.name.clone());
        let Some(proto::envoy::envoy::config::listener::v3::filter::ConfigType::TypedConfig(any)) =
            &filter.config_type
        else {
            continue;
        };
        if any.type_url.ends_with("HttpConnectionManager") {
            let manager = HttpConnectionManager::decode(&*any.value).unwrap();
            names.extend(manager.http_filters.into_iter().map(|filter| filter.name));
        }
    }
    names
}

#[test]
fn an_envoy_without_istios_extensions_is_asked_for_none_of_them() {
    let of_istio = |names: &[String]| {
        names.iter().any(|name| name.starts_with("istio.") || name.ends_with("peer_metadata"))
    };
    assert!(of_istio(&filters(&node())));
    let router = Extension { name: "envoy.filters.http.router".into(), ..Extension::default() };
    let stock = Node { extensions: vec![router], ..node() };
    assert!(!of_istio(&filters(&stock)));
    let config = of_node(&manifests(""), &MeshConfig::default(), &stock).unwrap().unwrap();
    let bytes: Vec<u8> = config.listeners.iter().flat_map(Message::encode_to_vec).collect();
    assert!(!bytes.windows(21).any(|at| at == b"istio.hashable_string"));
}

#[test]
fn a_node_that_is_no_proxy_is_refused() {
    let of = |id: &str| {
        let node = Node { id: id.into(), ..Node::default() };
        of_node(&manifests(""), &MeshConfig::default(), &node)
    };
    assert!(matches!(of("wp-1"), Err(ClientError::Id { .. })));
    assert!(matches!(of("waypoint~x~none.shop~d"), Err(ClientError::NoAddress { .. })));
    // It is a pod, but of no Gateway.
    assert!(of("waypoint~10.1.0.10~web-a.shop~d").unwrap().is_none());
}

#[test]
fn equal_input_gives_equal_bytes() {
    let more = rule("{outlierDetection: {consecutive5xxErrors: 3}}");
    let first = compiled(&more).resources();
    for _ in 0..5 {
        assert_eq!(compiled(&more).resources(), first);
    }
    assert!(first.iter().all(|(_, resources)| resources.len() < 20));
    assert_eq!(first[0].1.len(), compiled(&more).clusters.len());
}

#[test]
fn code_that_nobody_fetches_for_an_envoy_without_agent_lets_nothing_through() {
    let plugin = |name: &str, url: &str, more: &str| {
        format!(
            "
apiVersion: extensions.istio.io/v1alpha1
kind: WasmPlugin
metadata: {{name: {name}, namespace: shop}}
spec:
  targetRefs: [{{group: gateway.networking.k8s.io, kind: Gateway, name: wp}}]
  url: {url}
  {more}
---"
        )
    };
    let more = plugin("closed", "oci://example.com/x:1", "failStrategy: FAIL_CLOSE")
        + &plugin("local", "file:///x.wasm", "failStrategy: FAIL_CLOSE")
        + &plugin("open", "oci://example.com/x:1", "failStrategy: FAIL_OPEN")
        + &plugin("tcp", "https://example.com/x.wasm", "type: NETWORK");
    let types = |node: &Node| {
        let config = of_node(&manifests(&more), &MeshConfig::default(), node).unwrap().unwrap();
        let configs = config.extension_configs.into_iter();
        let any = configs.map(|one| one.typed_config.unwrap());
        any.map(|any| {
            let kind = any.type_url.split("filters.").nth(1).unwrap().to_owned();
            // An RBAC filter without rules lets everything through.
            let rules = kind.contains("rbac") && any.value.starts_with(&[0x0a, 0]);
            (kind, rules)
        })
        .collect::<Vec<_>>()
    };
    let of = |kind: &str, denies: bool| (kind.to_owned(), denies);
    let router = Extension { name: "envoy.filters.http.router".into(), ..Extension::default() };
    let stock = Node { extensions: vec![router], ..node() };
    let wasm = of("http.wasm.v3.Wasm", false);
    assert_eq!(
        types(&stock),
        [
            of("http.rbac.v3.RBAC", true),
            wasm.clone(),
            of("http.rbac.v3.RBAC", false),
            of("network.rbac.v3.RBAC", true),
        ]
    );
    let network = of("network.wasm.v3.Wasm", false);
    assert_eq!(types(&node()), [wasm.clone(), wasm.clone(), wasm, network]);
}
