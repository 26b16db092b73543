//! Requests through a waypoint: pod, our daemon, a stock Envoy under our pilot, our daemon, application.

use anyhow::ensure;
use testbed::waypoint::{Pilot, Protocol, WaypointSpec};
use testbed::{Cluster, PodSpec, Process, ServiceSpec, Waypoint, manifests, wait_for};

use crate::privilege;
use crate::shop::IN_FORCE;

const GATEWAY: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata:
  name: waypoint
  namespace: shop
spec:
  gatewayClassName: istio-waypoint
  listeners:
  - name: mesh
    port: 15008
    protocol: HBONE
";

const ROUTE: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata:
  name: cart
  namespace: shop
spec:
  parentRefs:
  - group: \"\"
    kind: Service
    name: cart
    port: 80
  rules:
  - matches:
    - headers:
      - name: x-version
        value: v2
    backendRefs:
    - name: cart-v2
      port: 80
  - backendRefs:
    - name: cart
      port: 80
";

const POLICY: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: no-admin
  namespace: shop
spec:
  targetRefs:
  - group: \"\"
    kind: Service
    name: cart
  action: DENY
  rules:
  - to:
    - operation:
        paths: [\"/admin*\"]
";

/// The shop, whose service `cart` has a waypoint.
struct Guarded {
    cluster: Cluster,
    waypoint: Waypoint,
    _servers: Vec<Process>,
}

impl Guarded {
    fn open() -> Option<Guarded> {
        if !privilege::with_envoy() {
            return None;
        }
        let waypoint = PodSpec::new("shop/waypoint", "b")
            .label("gateway.networking.k8s.io/gateway-name", "waypoint")
            .label("gateway.istio.io/managed", "istio.io-mesh-controller")
            .label("istio.io/dataplane-mode", "none");
        let cluster = Cluster::builder()
            .nodes(&["a", "b"])
            .ambient("shop")
            .pod(PodSpec::new("shop/web", "a"))
            .pod(PodSpec::new("shop/cart", "b"))
            .pod(PodSpec::new("shop/cart-v2", "a"))
            .pod(waypoint)
            .service(ServiceSpec::new("shop/cart").port(80, 80))
            .service(ServiceSpec::new("shop/cart-v2").port(80, 80))
            .service(ServiceSpec::new("shop/waypoint").port(15008, 15008))
            .manifest("gateway.yaml", GATEWAY)
            .start()
            .unwrap();
        let servers = [("shop/cart", "first"), ("shop/cart-v2", "second")];
        let servers = servers.map(|(path, page)| cluster.pod(path).unwrap().nginx(page).unwrap());
        cluster.apply("services.yaml", &services(&cluster)).unwrap();
        let pod = cluster.pod("shop/waypoint").unwrap();
        let control = cluster.control().unwrap();
        let token = control.node_token("node-b").unwrap();
        let spec = WaypointSpec {
            name: "waypoint".to_owned(),
            namespace: "shop".to_owned(),
            address: pod.ip4().to_string(),
            token: std::fs::read_to_string(token).unwrap(),
            protocol: Protocol::Delta,
            pilot: Pilot::Tls {
                address: cluster.plan().control_ip4().to_string(),
                roots: control.root_certificate(),
            },
        };
        let mut waypoint = Waypoint::start(pod, &spec).unwrap();
        waypoint.process().wait_listening(15008).unwrap();
        Some(Guarded { cluster, waypoint, _servers: servers.into() })
    }

    /// What `shop/web` gets: the status, the server and the page.
    fn get(&self, path: &str, headers: &[&str]) -> anyhow::Result<(String, String, String)> {
        let (address, _) = self.cluster.service("shop/cart")?;
        let url = format!("http://{address}{path}");
        let mut words = vec!["curl", "-sS", "--max-time", "5"];
        words.extend(["-w", "\n%{http_code} %header{server}"]);
        words.extend(headers.iter().flat_map(|header| ["-H", header]));
        words.push(&url);
        let said = self.cluster.pod("shop/web")?.ask(&words)?;
        let (page, last) = said.rsplit_once('\n').unwrap_or(("", &said));
        let (status, server) = last.split_once(' ').unwrap_or((last, ""));
        Ok((status.to_owned(), server.to_owned(), page.trim().to_owned()))
    }

    /// Waits until a request is answered so.
    fn expect(&self, path: &str, headers: &[&str], status: &str, page: &str) {
        wait_for(&format!("{status} {page} for {path} {headers:?}"), IN_FORCE, || {
            let found = self.get(path, headers)?;
            ensure!(found.0 == status && found.2 == page, "found {found:?}");
            ensure!(found.1 == "istio-envoy", "not by the waypoint: {found:?}");
            Ok(())
        })
        .unwrap();
    }
}

/// The services, of which `cart` speaks HTTP and is guarded.
fn services(cluster: &Cluster) -> String {
    let mut yaml = String::new();
    for (name, port) in [("cart", 80), ("cart-v2", 80), ("waypoint", 15008)] {
        let path = format!("shop/{name}");
        let (ip4, ip6) = cluster.service(&path).unwrap();
        let spec = ServiceSpec::new(&path).port(port, port);
        let text = manifests::service(&spec, ip4, ip6).replace("tcp-80", "http-80");
        let guarded = "  name: cart\n  labels:\n    istio.io/use-waypoint: waypoint\n";
        yaml += &text.replacen("  name: cart\n", guarded, 1);
    }
    yaml
}

#[test]
fn requests_pass_a_waypoint_of_stock_envoy_and_obey_its_rules() {
    let Some(shop) = Guarded::open() else { return };
    shop.expect("/", &[], "200", "first");
    shop.cluster.apply("route.yaml", ROUTE).unwrap();
    shop.expect("/", &["x-version: v2"], "200", "second");
    shop.expect("/", &[], "200", "first");
    shop.cluster.apply("policy.yaml", POLICY).unwrap();
    shop.expect("/admin", &[], "403", "RBAC: access denied");
    shop.expect("/", &[], "200", "first");
    shop.cluster.delete("policy.yaml").unwrap();
    wait_for("the policy to be gone", IN_FORCE, || {
        let (status, ..) = shop.get("/admin", &[])?;
        ensure!(status == "404", "{status}");
        Ok(())
    })
    .unwrap();
    assert_eq!(shop.waypoint.rejected().unwrap(), [""; 0]);
    // Both ways in tunnels: whoever listens on the wire sees nothing of it.
    let daemon = shop.cluster.daemon("b").unwrap();
    let from_waypoint = ["reporter=\"destination\"", "source_workload=\"waypoint\""];
    assert!(daemon.metric("istio_tcp_connections_opened_total", &from_waypoint).unwrap() > 0.0);
}
