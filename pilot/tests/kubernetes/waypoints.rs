//! What pilot runs for a Gateway that asks for a waypoint.

use serde_json::{Value, json};

use crate::{
    create_shop,
    pilot::Pilot,
    server::Server,
    statuses::{create_kinds, until},
};

const IMAGE: &str = "registry.example/proxy:1";

fn gateway(port: u16) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {"name": "waypoint", "namespace": "shop"},
        "spec": {
            "gatewayClassName": "istio-waypoint",
            "listeners": [{"name": "mesh", "port": port, "protocol": "HBONE"}],
        },
    })
}

async fn found(server: &Server, api_version: &str, kind: &str) -> Option<Value> {
    let all = server.list(api_version, kind, "shop").await;
    all.into_iter().find(|one| one["metadata"]["name"] == "waypoint")
}

#[tokio::test]
async fn a_gateway_gets_its_waypoint_and_keeps_what_others_add_to_it() {
    let Some(server) = Server::start().await else { return };
    create_shop(&server).await;
    create_kinds(&server).await;
    server.established("gateways.gateway.networking.k8s.io").await;
    let kubeconfig = server.kubeconfig_of_pilot().await;
    let _pilot = Pilot::start_with(&kubeconfig, &["--waypoint-image", IMAGE]);
    server.apply_when_served(gateway(15008)).await;

    let owner = until("a gateway", async || {
        found(&server, "gateway.networking.k8s.io/v1", "Gateway").await
    })
    .await;
    let deployment =
        until("a deployment", async || found(&server, "apps/v1", "Deployment").await).await;
    assert_eq!(deployment["metadata"]["ownerReferences"][0]["uid"], owner["metadata"]["uid"]);
    let template = &deployment["spec"]["template"];
    assert_eq!(template["spec"]["containers"][0]["image"], IMAGE);
    assert_eq!(template["spec"]["serviceAccountName"], "waypoint");
    assert!(found(&server, "v1", "ServiceAccount").await.is_some());
    let service = until("a service", async || found(&server, "v1", "Service").await).await;
    assert_eq!(service["spec"]["ports"][1]["port"], 15008);
    let account = found(&server, "autoscaling/v2", "HorizontalPodAutoscaler").await;
    assert!(account.is_none(), "{account:?}");

    // Somebody scales it: that is not ours to undo, and a new port is.
    server
        .apply(json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "waypoint", "namespace": "shop"},
            "spec": {"replicas": 3},
        }))
        .await;
    server.apply(gateway(15009)).await;
    until("another port", async || {
        let service = found(&server, "v1", "Service").await?;
        (service["spec"]["ports"][1]["port"] == 15009).then_some(())
    })
    .await;
    let deployment = found(&server, "apps/v1", "Deployment").await.unwrap();
    assert_eq!(deployment["spec"]["replicas"], 3);
}
