//! What no recording of istiod has: rules that are hashed, delegated, and on ports of unknown protocol.

use std::{path::Path, sync::Arc};

use proto::envoy::envoy::config::route::v3::{
    Route, RouteAction, route::Action, route_action::ClusterSpecifier,
};

use super::{http, tcp};
use crate::{
    compile::{
        MeshConfig,
        waypoint::{Client, Context},
        world::World,
    },
    manifests::{Manifests, Severity, read_text},
};

const MESH: &str = "\
apiVersion: v1
kind: Namespace
metadata: {name: app, labels: {istio.io/use-waypoint: waypoint}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: waypoint, namespace: app}
spec:
  gatewayClassName: istio-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}]
---
apiVersion: v1
kind: Service
metadata: {name: waypoint, namespace: app}
spec:
  clusterIP: 10.0.0.9
  selector: {gateway.networking.k8s.io/gateway-name: waypoint}
  ports: [{name: mesh, port: 15008, appProtocol: hbone}]
---
apiVersion: v1
kind: Pod
metadata: {name: wp, namespace: app, labels: {gateway.networking.k8s.io/gateway-name: waypoint}}
spec: {nodeName: n, containers: [{name: c, image: i}]}
status:
  phase: Running
  podIPs: [{ip: 10.1.0.9}]
  conditions: [{type: Ready, status: 'True'}]
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: app}
spec: {clusterIP: 10.0.0.1, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: any, namespace: app}
spec: {clusterIP: 10.0.0.2, ports: [{name: any, port: 90}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: any, namespace: app}
spec:
  host: any
  trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x-user}}}
---
";

fn virtual_service(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: {name}, \
         namespace: app}}\nspec: {spec}\n---\n"
    )
}

/// Calls with the context of the waypoint.
fn with<T>(more: &str, call: impl FnOnce(&Context<'_>) -> T) -> T {
    let mut problems = Vec::new();
    let text = format!("{MESH}{more}");
    let resources = read_text(&Arc::from(Path::new("f.yaml")), &text, &mut problems);
    problems.retain(|problem| problem.severity == Severity::Error);
    assert!(problems.is_empty(), "{problems:#?}");
    let manifests = Manifests::gather(&resources).0;
    let config = MeshConfig::default();
    let world = World::of(&manifests, &config);
    let pod = &manifests.pods[0];
    let mut client = Client {
        namespace: "app".into(),
        name: "wp".into(),
        addresses: pod.spec.addresses.clone(),
        ..Client::default()
    };
    client.apply(pod, &world.registry);
    call(&Context::new(&manifests, &world, &client).unwrap())
}

fn routes(more: &str, host: &str) -> Vec<Route> {
    with(more, |context| {
        let hostname = format!("{host}.app.svc.cluster.local");
        let host = context.registry.find("app", &hostname).unwrap();
        http(context, Some(host), Some(&host.ports[0])).virtual_hosts.remove(0).routes
    })
}

fn forwarded(route: &Route) -> &RouteAction {
    match route.action.as_ref() {
        Some(Action::Route(action)) => action,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_hashed_destination_is_hashed_by_rules_too_and_not_retried_elsewhere() {
    let rule = "{hosts: [web], http: [{route: [{destination: {host: any}}]}]}";
    let routes = routes(&virtual_service("web", rule), "web");
    let action = forwarded(&routes[0]);
    let cluster = "inbound-vip|90|http|any.app.svc.cluster.local".to_owned();
    assert_eq!(action.cluster_specifier, Some(ClusterSpecifier::Cluster(cluster)));
    assert_eq!(action.hash_policy.len(), 1);
    assert_eq!(action.retry_policy.as_ref().unwrap().retry_host_predicate, []);
}

#[test]
fn a_port_of_unknown_protocol_has_a_cluster_of_either_kind() {
    let rule = "{hosts: [any], tcp: [{route: [{destination: {host: any}}]}]}";
    let found = with(&virtual_service("any", rule), |context| {
        let mut hosts = context.registry.by_hostname("any.app.svc.cluster.local");
        let host = hosts.next().unwrap();
        tcp(context, host, &host.ports[0])
    });
    assert_eq!(found, [("inbound-vip|90|tcp|any.app.svc.cluster.local".to_owned(), 1)]);
}

#[test]
fn a_delegate_stands_in_for_the_rule_that_delegates() {
    let root = "{hosts: [web], http: [{name: root, match: [{uri: {prefix: /a}}], delegate: {name: leaf}}, \
                {directResponse: {status: 404}}]}";
    let leaf = "{http: [{name: leaf, match: [{uri: {prefix: /a/b}}], route: [{destination: {host: any}}]}, \
                {name: wide, match: [{uri: {prefix: /}}], route: [{destination: {host: any}}]}]}";
    let more = virtual_service("web", root) + &virtual_service("leaf", leaf);
    let names: Vec<_> = routes(&more, "web").into_iter().map(|route| route.name).collect();
    assert_eq!(names, ["root-leaf", ""]);
    // Without it, nothing else does what it should have done.
    let names: Vec<_> =
        routes(&virtual_service("web", root), "web").into_iter().map(|route| route.name).collect();
    assert_eq!(names, [""]);
}

#[test]
fn a_rule_without_anywhere_to_go_lets_nothing_pass() {
    let rule = "{hosts: [web], http: [{route: [{destination: {host: gone}}]}]}";
    let routes = routes(&virtual_service("web", rule), "web");
    let cluster = "inbound-vip|80|http|gone.app.svc.cluster.local".to_owned();
    let action = forwarded(&routes[0]);
    assert_eq!(action.cluster_specifier, Some(ClusterSpecifier::Cluster(cluster)));
}

#[test]
fn a_prefix_that_is_the_root_keeps_its_slash_when_it_is_replaced() {
    let route = "\
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r, namespace: app}
spec:
  parentRefs: [{group: '', kind: Service, name: web}]
  rules:
  - filters:
    - {type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /x}}}
    backendRefs: [{name: web, port: 80}]
";
    let routes = routes(route, "web");
    assert_eq!(forwarded(&routes[0]).prefix_rewrite, "/x/");
}
