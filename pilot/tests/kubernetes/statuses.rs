//! What pilot writes into the statuses of objects, and when it writes nothing.

use std::time::{Duration, Instant};

use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use crate::{create_pod, create_shop, definition, pilot::Pilot, policy, server::Server};

const LONG: Duration = Duration::from_secs(60);
const SERVICE: [&str; 3] = ["v1", "Service", "web"];
const POLICY: [&str; 3] = ["security.istio.io/v1", "AuthorizationPolicy", "web"];
const BOUND: &str = "istio.io/WaypointBound";

pub(crate) async fn create_kinds(server: &Server) {
    let istio_system = json!({"name": "istio-system"});
    server.apply(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": istio_system})).await;
    for (kind, plural, group) in [
        ("AuthorizationPolicy", "authorizationpolicies", "security.istio.io"),
        ("ServiceEntry", "serviceentries", "networking.istio.io"),
        ("GatewayClass", "gatewayclasses", "gateway.networking.k8s.io"),
        ("Gateway", "gateways", "gateway.networking.k8s.io"),
    ] {
        let mut definition = definition(kind, plural, group);
        if kind == "GatewayClass" {
            definition["spec"]["scope"] = "Cluster".into();
        }
        if group == "gateway.networking.k8s.io" {
            // The Gateway API's group is protected.
            let approved = json!({"api-approved.kubernetes.io": "https://example.com/pull/1"});
            definition["metadata"]["annotations"] = approved;
        }
        server.apply(definition).await;
    }
}

fn service(labels: &Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web", "namespace": "shop", "labels": labels},
        "spec": {"ports": [{"name": "http", "port": 80}], "selector": {"app": "web"}},
    })
}

async fn condition(server: &Server, of: [&str; 3], kind: &str) -> Option<Value> {
    let object = server.get(of[0], of[1], "shop", of[2]).await;
    let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.into_iter().find(|one| one["type"] == kind)
}

/// Asks until it is so: a status tells nobody that it has changed but who watches.
pub(crate) async fn until<T>(what: &str, mut found: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = found().await {
            return found;
        }
        assert!(begun.elapsed() < LONG, "{what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn until_reason(server: &Server, of: [&str; 3], kind: &str, reason: &str) -> Value {
    until(reason, async || {
        condition(server, of, kind).await.filter(|found| found["reason"] == reason)
    })
    .await
}

async fn events(server: &Server, name: &str) -> Vec<Value> {
    let all = server.list("events.k8s.io/v1", "Event", "shop").await;
    all.into_iter().filter(|event| event["regarding"]["name"] == name).collect()
}

fn waypoint_of(name: &str) -> Value {
    json!({"istio.io/use-waypoint": name})
}

#[tokio::test]
async fn statuses_say_what_became_of_objects_and_leave_the_rest_alone() {
    let Some(server) = Server::start().await else { return };
    create_shop(&server).await;
    create_kinds(&server).await;
    server.apply(service(&waypoint_of("waypoint"))).await;
    let foreign = json!({"status": {"conditions": [{
        "type": "example.com/Ready",
        "status": "True",
        "reason": "R",
        "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }]}});
    server.patch_status_of(SERVICE, foreign).await;
    let pilot = Pilot::start(&server.kubeconfig_of_pilot().await);

    let bound = until_reason(&server, SERVICE, BOUND, "WaypointIsNotReady").await;
    assert_eq!(bound["status"], "False");
    assert!(bound["lastTransitionTime"].is_string(), "{bound}");
    assert!(condition(&server, SERVICE, "example.com/Ready").await.is_some());
    for (name, controller) in [
        ("istio", "istio.io/gateway-controller"),
        ("istio-waypoint", "istio.io/mesh-controller"),
        ("istio-remote", "istio.io/unmanaged-gateway"),
    ] {
        let class = until(name, async || {
            let all = server.list("gateway.networking.k8s.io/v1", "GatewayClass", "").await;
            all.into_iter().find(|class| class["metadata"]["name"] == name)
        });
        assert_eq!(class.await["spec"]["controllerName"], controller);
    }

    // A policy that is good, then bad, then good again.
    server.apply_when_served(policy("DENY")).await;
    let accepted = until_reason(&server, POLICY, "ZtunnelAccepted", "Accepted").await;
    assert_eq!(accepted["observedGeneration"], "1");
    server.apply(policy("DENIED")).await;
    let refused = until_reason(&server, POLICY, "aquifer.io/Accepted", "Invalid").await;
    let message = refused["message"].as_str().unwrap();
    assert!(message.starts_with("spec.action: "), "{message}");
    let told = until("an event", async || events(&server, "web").await.pop()).await;
    assert_eq!((&told["reason"], &told["type"]), (&json!("Refused"), &json!("Warning")));
    assert_eq!(told["note"].as_str(), Some(message));
    server.apply(policy("ALLOW")).await;
    until("it is good again", async || {
        condition(&server, POLICY, "aquifer.io/Accepted").await.is_none().then_some(())
    })
    .await;
    assert_eq!(events(&server, "web").await.len(), 1);
    assert!(condition(&server, POLICY, "ZtunnelAccepted").await.is_some());

    // What is said no more is taken away.
    server.apply(service(&json!({}))).await;
    until("the service asks for no waypoint", async || {
        condition(&server, SERVICE, BOUND).await.is_none().then_some(())
    })
    .await;
    assert!(condition(&server, SERVICE, "example.com/Ready").await.is_some());
    // An object that is gone is no failure.
    server.delete_named(POLICY).await;
    server.apply(service(&waypoint_of("other"))).await;
    until_reason(&server, SERVICE, BOUND, "WaypointIsNotReady").await;
    let metrics = pilot.debug("/metrics").await;
    assert!(!metrics.contains("result=\"failed\""), "{metrics}");
}

/// Puts another holder into the Lease, or nobody.
async fn hold(server: &Server, holder: &str) {
    let of = ["coordination.k8s.io/v1", "Lease", "aquifer-pilot-status"];
    let patch = Patch::Merge(json!({"spec": {"holderIdentity": holder}}));
    let api = server.api_of(of[0], of[1], "istio-system");
    api.patch(of[2], &PatchParams::default(), &patch).await.unwrap();
}

#[tokio::test]
async fn one_of_several_pilots_writes_and_who_loses_the_lease_writes_nothing() {
    let Some(server) = Server::start().await else { return };
    create_shop(&server).await;
    create_kinds(&server).await;
    server.apply(service(&waypoint_of("one"))).await;
    let first = Pilot::start(&server.kubeconfig_of_pilot().await);
    first.debug_has("/metrics", "pilot_status_leader 1\n").await;
    let second = Pilot::start(&server.kubeconfig_of_pilot().await);
    second.debug_has("/metrics", "pilot_status_leader 0\n").await;
    until_reason(&server, SERVICE, BOUND, "WaypointIsNotReady").await;
    second.debug_has("/ready", "200 OK").await;
    assert!(!second.debug("/metrics").await.contains("pilot_status_writes"));

    // Somebody else takes it: nothing is written however much there is to say.
    hold(&server, "somebody").await;
    first.debug_has("/metrics", "pilot_status_leader 0\n").await;
    let before = first.debug("/metrics").await;
    let written = |metrics: &str| {
        let lines = metrics.lines().filter(|line| line.starts_with("pilot_status_writes"));
        lines.map(str::to_owned).collect::<std::collections::BTreeSet<_>>()
    };
    server.apply(service(&json!({}))).await;
    create_pod(&server, "late", "10.1.0.3").await;
    // Whatever the pod's change leads to, the service's came before it.
    first.debug_has("/debug/config", "\"generation\": 3").await;
    assert!(condition(&server, SERVICE, BOUND).await.is_some());
    assert_eq!(written(&first.debug("/metrics").await), written(&before));

    // Given back, it is taken, and what has changed since is written.
    hold(&server, "").await;
    until("the service asks for no waypoint", async || {
        condition(&server, SERVICE, BOUND).await.is_none().then_some(())
    })
    .await;

    // Whoever ends gives it back: nobody waits for its end.
    let (leader, other) = match first.debug("/metrics").await.contains("pilot_status_leader 1\n") {
        true => (first, second),
        false => (second, first),
    };
    let begun = Instant::now();
    leader.terminate();
    other.debug_has("/metrics", "pilot_status_leader 1\n").await;
    assert!(begun.elapsed() < Duration::from_secs(14), "{:?}", begun.elapsed());
    server.apply(service(&waypoint_of("two"))).await;
    until_reason(&server, SERVICE, BOUND, "WaypointIsNotReady").await;
}

#[tokio::test]
async fn what_another_writer_undoes_is_not_fought_over() {
    let Some(server) = Server::start().await else { return };
    create_shop(&server).await;
    create_kinds(&server).await;
    server.apply(service(&waypoint_of("waypoint"))).await;
    let pilot = Pilot::start(&server.kubeconfig_of_pilot().await);
    // As an istiod beside us that sees it otherwise.
    let other = json!({"status": {"conditions": [{
        "type": BOUND,
        "status": "True",
        "reason": "WaypointAccepted",
        "message": "",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }]}});
    let generation = |config: &str| {
        config.lines().find(|line| line.contains("\"generation\"")).map(str::to_owned)
    };
    // After the classes that it makes itself.
    pilot.debug_has("/debug/config", "\"generation\": 2").await;
    let before = pilot.debug("/debug/config").await;
    for _ in 0..3 {
        until_reason(&server, SERVICE, BOUND, "WaypointIsNotReady").await;
        server.patch_status_of(SERVICE, other.clone()).await;
    }
    pilot.debug_has("/metrics", "pilot_status_contended 1\n").await;
    let metrics = pilot.debug("/metrics").await;
    let writes = "pilot_status_writes{type=\"Service\",result=\"written\"} 3\n";
    assert!(metrics.contains(writes), "{metrics}");
    // What is served has not been compiled anew for any of it.
    let after = pilot.debug("/debug/config").await;
    assert_eq!(generation(&after), generation(&before));
}
