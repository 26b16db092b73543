//! Manifests of a large mesh, as an API server would hold them.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::Result;

/// How large.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    pub(crate) services: usize,
    pub(crate) pods: usize,
    pub(crate) policies: usize,
    pub(crate) routes: usize,
}

/// The mesh of the issue's first number.
pub(crate) const TEN_THOUSAND: Size =
    Size { services: 1_000, pods: 10_000, policies: 500, routes: 300 };
/// That of its second.
pub(crate) const A_HUNDRED_THOUSAND: Size =
    Size { services: 1_000, pods: 100_000, policies: 500, routes: 300 };

const NAMESPACES: usize = 50;
const NODES: usize = 1_000;

impl Size {
    fn pods_of_service(self) -> usize {
        self.pods / self.services
    }
}

/// Writes a file for each service and its pods, and one for each namespace with its waypoint, policies and routes.
pub(crate) fn write(size: Size, dir: &Path) -> Result<()> {
    let mut nodes = String::new();
    for node in 0..NODES {
        writeln!(
            nodes,
            "---\napiVersion: v1\nkind: Node\nmetadata: {{name: node-{node}, labels: {{topology.kubernetes.io/region: r, \
             topology.kubernetes.io/zone: z{}}}}}",
            node % 3
        )?;
    }
    fs::write(dir.join("nodes.yaml"), nodes)?;
    for namespace in 0..NAMESPACES {
        fs::write(dir.join(format!("ns-{namespace}.yaml")), self::namespace(size, namespace)?)?;
    }
    for service in 0..size.services {
        fs::write(
            dir.join(format!("service-{service}.yaml")),
            self::service(size, service, "v1")?,
        )?;
    }
    Ok(())
}

fn namespace(size: Size, namespace: usize) -> Result<String> {
    let mut text = format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: ns-{namespace}, labels: {{istio.io/dataplane-mode: ambient, \
         istio.io/use-waypoint: waypoint}}}}\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: \
         {{name: waypoint, namespace: ns-{namespace}}}\nspec: {{gatewayClassName: istio-waypoint, listeners: [{{name: mesh, \
         port: 15008, protocol: HBONE}}]}}\n---\napiVersion: v1\nkind: Service\nmetadata: {{name: waypoint, namespace: \
         ns-{namespace}}}\nspec: {{clusterIP: 10.250.0.{namespace}, selector: {{gateway.networking.k8s.io/gateway-name: \
         waypoint}}, ports: [{{name: mesh, port: 15008, appProtocol: hbone}}]}}\n"
    );
    for policy in (namespace..size.policies).step_by(NAMESPACES) {
        write!(
            text,
            "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: policy-{policy}, namespace: \
             ns-{namespace}}}\nspec:\n  selector: {{matchLabels: {{app: app-{}}}}}\n  rules:\n  - from: [{{source: \
             {{principals: [cluster.local/ns/ns-{}/sa/app-{policy}]}}}}]\n    to: [{{operation: {{ports: ['8080']}}}}]\n",
            policy * 2,
            policy % 7,
        )?;
    }
    for route in (namespace..size.routes).step_by(NAMESPACES) {
        write!(
            text,
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: route-{route}, namespace: \
             ns-{namespace}}}\nspec:\n  parentRefs: [{{group: '', kind: Service, name: app-{route}, port: 80}}]\n  rules:\n  \
             - matches: [{{path: {{type: PathPrefix, value: /v2}}}}]\n    backendRefs: [{{name: app-{route}, port: 80}}]\n  \
             - backendRefs: [{{name: app-{route}, port: 80}}]\n"
        )?;
    }
    Ok(text)
}

/// A service and its pods; `revision` is a label of the first one.
pub(crate) fn service(size: Size, service: usize, revision: &str) -> Result<String> {
    let namespace = service % NAMESPACES;
    let (high, low) = (service / 250, service % 250);
    let mut text = format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: app-{service}, namespace: ns-{namespace}}}\nspec:\n  clusterIP: \
         10.251.{high}.{low}\n  clusterIPs: [10.251.{high}.{low}]\n  ipFamilies: [IPv4]\n  selector: {{app: app-{service}}}\n  \
         ports: [{{name: http, port: 80, targetPort: 8080, protocol: TCP}}]\n"
    );
    for of_service in 0..size.pods_of_service() {
        let pod = service * size.pods_of_service() + of_service;
        let ip = format!("10.{}.{}.{}", pod / 60_000, pod / 250 % 240, pod % 250);
        let node = pod % NODES;
        let revision = if of_service == 0 { revision } else { "v1" };
        write!(
            text,
            r#"---
apiVersion: v1
kind: Pod
metadata:
  name: app-{service}-{of_service}
  namespace: ns-{namespace}
  generateName: app-{service}-
  creationTimestamp: "2026-11-01T10:00:00Z"
  labels: {{app: app-{service}, version: {revision}, pod-template-hash: 5d7bf4c9b8}}
  ownerReferences:
  - {{apiVersion: apps/v1, kind: ReplicaSet, name: app-{service}, uid: 4f6c9a55-9c1d-4a6b-8f57-4f6c9a559c1d, controller: true}}
spec:
  nodeName: node-{node}
  serviceAccountName: app-{service}
  containers:
  - name: app
    image: registry.example/app:1.2.3
    ports: [{{name: http, containerPort: 8080, protocol: TCP}}]
    env: [{{name: MODE, value: production}}]
    resources: {{requests: {{cpu: 100m, memory: 128Mi}}}}
status:
  phase: Running
  podIP: {ip}
  podIPs: [{{ip: {ip}}}]
  hostIP: 192.168.{}.{}
  startTime: "2026-11-01T10:00:00Z"
  conditions:
  - {{type: Initialized, status: "True", lastTransitionTime: "2026-11-01T10:00:00Z"}}
  - {{type: Ready, status: "True", lastTransitionTime: "2026-11-01T10:00:00Z"}}
  - {{type: ContainersReady, status: "True", lastTransitionTime: "2026-11-01T10:00:00Z"}}
"#,
            node / 250,
            node % 250,
        )?;
    }
    Ok(text)
}
