//! Requests through a waypoint: pod, our daemon, a stock Envoy under our pilot, our daemon, application.

use anyhow::ensure;
use testbed::{Cluster, PodSpec, Process, ServiceSpec, Waypoint, manifests, wait_for};

use crate::privilege;
use crate::shop::IN_FORCE;

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
        let cluster = Cluster::builder()
            .nodes(&["a", "b"])
            .ambient("shop")
            .pod(PodSpec::new("shop/web", "a"))
            .pod(PodSpec::new("shop/cart", "b"))
            .pod(PodSpec::new("shop/cart-v2", "a"))
            .pod(PodSpec::new("shop/waypoint", "b").waypoint("waypoint"))
            .service(ServiceSpec::new("shop/cart").http_port(80, 80).guarded_by("waypoint"))
            .service(ServiceSpec::new("shop/cart-v2").http_port(80, 80))
            .service(ServiceSpec::new("shop/waypoint").port(15008, 15008))
            .manifest("gateway.yaml", &manifests::waypoint("shop/waypoint"))
            .start()
            .unwrap();
        let servers = [("shop/cart", "first"), ("shop/cart-v2", "second")];
        let servers = servers.map(|(path, page)| cluster.pod(path).unwrap().nginx(page).unwrap());
        let waypoint = Waypoint::of(&cluster, "shop/waypoint").unwrap();
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

#[test]
fn requests_pass_a_waypoint_of_stock_envoy_and_obey_its_rules() {
    let Some(shop) = Guarded::open() else { return };
    shop.expect("/", &[], "200", "first");
    shop.cluster
        .apply("route.yaml", &manifests::header_route("shop/cart", "x-version", "v2", "cart-v2"))
        .unwrap();
    shop.expect("/", &["x-version: v2"], "200", "second");
    shop.expect("/", &[], "200", "first");
    shop.cluster.apply("policy.yaml", &manifests::deny_paths("shop/cart", "/admin*")).unwrap();
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
