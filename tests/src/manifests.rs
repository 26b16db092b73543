//! Writes Kubernetes manifests.
//!
//! In: specifications and the addresses the testbed gave them. Out: YAML text as a user would have it from `kubectl get`,
//! reduced to the fields that a mesh reads. Which file it goes into is the cluster's matter.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::description::{Dataplane, NamespaceSpec, ServiceSpec};
use crate::pod::Pod;

/// A namespace.
pub fn namespace(spec: &NamespaceSpec) -> String {
    let mut yaml =
        format!("---\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: {}\n", spec.name);
    match spec.dataplane {
        Dataplane::Ambient => yaml.push_str("  labels:\n    istio.io/dataplane-mode: ambient\n"),
        Dataplane::Outside => {}
    }
    yaml
}

/// A node.
pub fn node(name: &str, ip: IpAddr) -> String {
    format!(
        "\
---
apiVersion: v1
kind: Node
metadata:
  name: {name}
  labels:
    kubernetes.io/hostname: {name}
status:
  addresses:
  - type: InternalIP
    address: {ip}
"
    )
}

/// A service account.
pub fn service_account(namespace: &str, name: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: ServiceAccount\nmetadata:\n  name: {name}\n  namespace: {namespace}\n"
    )
}

/// A running pod that is ready.
pub fn pod(pod: &Pod) -> String {
    let labels = pod.spec().labels.iter().map(|(name, value)| format!("    {name}: {value}\n"));
    format!(
        "\
---
apiVersion: v1
kind: Pod
metadata:
  name: {name}
  namespace: {namespace}
  uid: {uid}
  labels:
    app: {name}
{labels}spec:
  nodeName: {node}
  serviceAccountName: {service_account}
  containers:
  - name: main
    image: testbed
status:
  phase: Running
  hostIP: {host_ip}
  podIP: {ip4}
  podIPs:
  - ip: {ip4}
  - ip: {ip6}
  conditions:
  - type: Ready
    status: \"True\"
",
        name = pod.spec().name,
        labels = labels.collect::<String>(),
        namespace = pod.spec().namespace,
        uid = pod.uid(),
        node = pod.node_name(),
        service_account = pod.spec().service_account,
        host_ip = pod.host_ip(),
        ip4 = pod.ip4(),
        ip6 = pod.ip6(),
    )
}

/// A service of both address families.
pub fn service(spec: &ServiceSpec, ip4: Ipv4Addr, ip6: Ipv6Addr) -> String {
    let labels = spec.waypoint.as_ref().map_or_else(String::new, |waypoint| {
        format!("  labels:\n    istio.io/use-waypoint: {waypoint}\n")
    });
    let mut yaml = format!(
        "\
---
apiVersion: v1
kind: Service
metadata:
  name: {name}
  namespace: {namespace}
{labels}spec:
  selector:
    app: {name}
  clusterIP: {ip4}
  clusterIPs:
  - {ip4}
  - \"{ip6}\"
  ipFamilies:
  - IPv4
  - IPv6
  ipFamilyPolicy: RequireDualStack
  ports:
",
        name = spec.name,
        namespace = spec.namespace,
    );
    for (kind, port, target_port) in &spec.ports {
        // Writing to a String cannot fail.
        let _ = write!(
            yaml,
            "  - name: {kind}-{port}\n    port: {port}\n    targetPort: {target_port}\n    protocol: TCP\n"
        );
    }
    yaml
}

/// A Gateway `namespace/name` that is a waypoint.
///
/// # Panics
/// If `path` has no slash.
pub fn waypoint(path: &str) -> String {
    let (namespace, name) = path.split_once('/').expect("a Gateway is written namespace/name");
    format!(
        "\
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata:
  name: {name}
  namespace: {namespace}
spec:
  gatewayClassName: istio-waypoint
  listeners:
  - name: mesh
    port: 15008
    protocol: HBONE
"
    )
}

/// A route of service `namespace/name`: requests with `header: value` go to service `other`, all others on.
///
/// # Panics
/// If `path` has no slash.
pub fn header_route(path: &str, header: &str, value: &str, other: &str) -> String {
    let (namespace, name) = path.split_once('/').expect("a service is written namespace/name");
    format!(
        "\
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata:
  name: {name}
  namespace: {namespace}
spec:
  parentRefs:
  - group: \"\"
    kind: Service
    name: {name}
    port: 80
  rules:
  - matches:
    - headers:
      - name: {header}
        value: {value}
    backendRefs:
    - name: {other}
      port: 80
  - backendRefs:
    - name: {name}
      port: 80
"
    )
}

/// A policy that denies requests for `paths` at the waypoint of service `namespace/name`.
///
/// # Panics
/// If `path` has no slash.
pub fn deny_paths(path: &str, paths: &str) -> String {
    let (namespace, name) = path.split_once('/').expect("a service is written namespace/name");
    format!(
        "\
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: {name}-paths
  namespace: {namespace}
spec:
  targetRefs:
  - group: \"\"
    kind: Service
    name: {name}
  action: DENY
  rules:
  - to:
    - operation:
        paths: [\"{paths}\"]
"
    )
}

/// A policy `namespace/name` of `action` for the pods whose label `app` is given, with `rules` as YAML below `rules:`.
///
/// # Panics
/// If `path` has no slash.
pub fn authorization_policy(path: &str, action: &str, app: &str, rules: &str) -> String {
    let (namespace, name) = path.split_once('/').expect("a policy is written namespace/name");
    format!(
        "\
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: {name}
  namespace: {namespace}
spec:
  selector:
    matchLabels:
      app: {app}
  action: {action}
  rules:
{rules}"
    )
}

/// A rule that lets in, or keeps out, one service account.
pub fn from_principal(namespace: &str, service_account: &str) -> String {
    format!(
        "  - from:\n    - source:\n        principals:\n        - cluster.local/ns/{namespace}/sa/{service_account}\n"
    )
}

/// Mutual TLS of mode `mode` for a whole namespace.
pub fn peer_authentication(namespace: &str, mode: &str) -> String {
    format!(
        "\
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata:
  name: default
  namespace: {namespace}
spec:
  mtls:
    mode: {mode}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_ambient_namespace_carries_the_label() {
        let yaml = |dataplane| namespace(&NamespaceSpec { name: "shop".to_owned(), dataplane });
        assert!(yaml(Dataplane::Ambient).contains("istio.io/dataplane-mode: ambient"));
        assert!(!yaml(Dataplane::Outside).contains("labels"));
    }

    #[test]
    fn a_service_lists_its_ports_with_their_targets() {
        let spec = ServiceSpec::new("shop/cart").port(80, 8080).port(81, 9090);
        let yaml = service(&spec, Ipv4Addr::new(10, 1, 128, 1), Ipv6Addr::LOCALHOST);
        assert!(yaml.ends_with(
            "  - name: tcp-80\n    port: 80\n    targetPort: 8080\n    protocol: TCP\n  - name: tcp-81\n    port: 81\n    targetPort: 9090\n    protocol: TCP\n"
        ));
    }
}
