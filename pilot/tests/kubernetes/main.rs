//! The binary on a real API server: what a daemon gets from it, also while the server is away.

#![expect(clippy::unwrap_used, reason = "a test ends at the first thing that fails")]

mod crds;
mod pilot;
mod server;
mod statuses;
mod tokens;
mod waypoints;
mod webhook;

use kube::api::DeleteParams;
use serde_json::{Value, json};

use pilot::{Daemon, Pilot};
use server::Server;

const WEB: &str = "Kubernetes//Pod/shop/web";
const CART: &str = "Kubernetes//Pod/shop/cart";
const LATE: &str = "Kubernetes//Pod/shop/late";

async fn create_shop(server: &Server) {
    let labels = json!({"istio.io/dataplane-mode": "ambient"});
    server
        .apply(json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": "shop", "labels": labels},
        }))
        .await;
    create_pod(server, "web", "10.1.0.1").await;
}

async fn create_pod(server: &Server, name: &str, address: &str) {
    let metadata = json!({"name": name, "namespace": "shop", "labels": {"app": name}});
    let spec = json!({
        "nodeName": "node-a",
        "serviceAccountName": name,
        "containers": [{"name": "app", "image": "app"}],
    });
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec});
    server.apply(pod).await;
    let status = json!({
        "phase": "Running",
        "podIP": address,
        "podIPs": [{"ip": address}],
        "conditions": [{"type": "Ready", "status": "True"}],
    });
    server.patch_status("pods", "shop", name, json!({"status": status})).await;
}

/// A definition that lets everything through: what is wrong is then ours to find.
fn definition(kind: &str, plural: &str, group: &str) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{group}")},
        "spec": {
            "group": group,
            "names": {"kind": kind, "plural": plural, "singular": kind.to_lowercase()},
            "scope": "Namespaced",
            "versions": [{
                "name": "v1",
                "served": true,
                "storage": true,
                "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {
                    "type": "object",
                    "x-kubernetes-preserve-unknown-fields": true,
                }},
            }],
        },
    })
}

fn policy(action: &str) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": "web", "namespace": "shop"},
        "spec": {
            "action": action,
            "selector": {"matchLabels": {"app": "web"}},
            "rules": [{"from": [{"source": {"namespaces": ["shop"]}}]}],
        },
    })
}

#[tokio::test]
async fn what_is_listed_and_watched_is_served_and_a_bad_object_is_refused_alone() {
    let Some(server) = Server::start().await else { return };
    create_shop(&server).await;
    let pilot = Pilot::start(&server.kubeconfig());
    let mut daemon = Daemon::connect(&pilot).await;
    daemon.until(|held| held.contains(WEB)).await;

    create_pod(&server, "cart", "10.1.0.2").await;
    daemon.until(|held| held.contains(CART)).await;

    // A kind that the server has from now on.
    let kind = definition("AuthorizationPolicy", "authorizationpolicies", "security.istio.io");
    server.apply(kind).await;
    server.apply_when_served(policy("ALLOW")).await;
    daemon.until(|held| held.contains("shop/web")).await;

    server.apply(policy("ALLOWED")).await;
    let config = pilot.debug_has("/debug/config", "AuthorizationPolicy shop/web").await;
    assert!(config.contains("spec.action"), "{config}");
    create_pod(&server, "late", "10.1.0.3").await;
    daemon.until(|held| held.contains(LATE)).await;
    // The last good form.
    assert!(daemon.held.contains("shop/web"), "{:?}", daemon.held);
    let metrics = pilot.debug("/metrics").await;
    let bad = "pilot_k8s_object_errors{type=\"AuthorizationPolicy\"} 1\n";
    assert!(metrics.contains(bad), "{metrics}");
    assert!(metrics.contains("pilot_k8s_reg_events{type=\"Pod\",event=\"add\"}"), "{metrics}");

    let now = DeleteParams::default().grace_period(0);
    server.delete("v1", "Pod", "pods", "shop", "cart", &now).await;
    daemon.until(|held| !held.contains(CART)).await;
    let of = ("security.istio.io/v1", "AuthorizationPolicy", "authorizationpolicies");
    server.delete(of.0, of.1, of.2, "shop", "web", &now).await;
    daemon.until(|held| !held.contains("shop/web")).await;
}

// A server that starts keeps one thread waiting: connections must be answered on another.
#[tokio::test(flavor = "multi_thread")]
async fn while_the_server_is_away_what_it_said_last_is_served() {
    let Some(mut server) = Server::start().await else { return };
    create_shop(&server).await;
    create_pod(&server, "cart", "10.1.0.2").await;
    let kubeconfig = server.kubeconfig();
    let pilot = Pilot::start(&kubeconfig);
    let mut daemon = Daemon::connect(&pilot).await;
    daemon.until(|held| held.contains(WEB) && held.contains(CART)).await;
    pilot.debug_has("/metrics", "pilot_k8s_connected 1\n").await;

    let address = server.stop();
    pilot.debug_has("/metrics", "pilot_k8s_connected 0\n").await;
    let mut other = Daemon::connect(&pilot).await;
    other.until(|held| held.contains(WEB) && held.contains(CART)).await;
    // One that is started now knows nothing, and says so.
    let started_alone = Pilot::start(&kubeconfig);
    let answer = started_alone.debug("/ready").await;
    assert!(answer.contains("503"), "{answer}");

    // Where pilot does not look: when it can again, its place in the history is forgotten (410).
    server.start_at(None).await;
    let now = DeleteParams::default().grace_period(0);
    server.delete("v1", "Pod", "pods", "shop", "cart", &now).await;
    create_pod(&server, "late", "10.1.0.3").await;
    server.stop();
    server.start_at(Some(address)).await;
    daemon.until(|held| held.contains(LATE) && !held.contains(CART)).await;
    assert!(daemon.held.contains(WEB), "{:?}", daemon.held);
    pilot.debug_has("/metrics", "pilot_k8s_connected 1\n").await;
    let mut third = Daemon::connect(&started_alone).await;
    third.until(|held| held.contains(WEB) && held.contains(LATE)).await;
    // And the watches go on.
    create_pod(&server, "cart", "10.1.0.2").await;
    daemon.until(|held| held.contains(CART)).await;
    third.until(|held| held.contains(CART)).await;
}

#[tokio::test]
async fn what_a_server_has_is_looked_at_once() {
    let Some(server) = Server::start().await else { return };
    server
        .apply(json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": "shop", "labels": {"istio.io/use-waypoint": "nowhere"}},
        }))
        .await;
    let read = ::pilot::kubernetes::once(Some(&server.kubeconfig()), "istio-system").await;
    let (manifests, problems) = read.unwrap();
    let found = ::pilot::analysis::analyze(&manifests, &::pilot::compile::MeshConfig::default());
    let found = ::pilot::analysis::with_problems(found, &problems);
    let codes: Vec<_> = found.iter().map(|one| (one.code.id(), one.object.as_str())).collect();
    assert_eq!(codes, [("AQ0101", "Namespace shop")]);
}
