//! Objects that pilot would refuse, on an API server that asks it first.

use std::{path::Path, time::Instant};

use kube::Error;
use serde_json::Value;

use crate::{
    create_shop, definition,
    pilot::Pilot,
    policy,
    server::{Server, documents},
};

fn configuration(pilot: &Pilot) -> Value {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("webhook.yaml");
    let mut configuration = documents(&std::fs::read_to_string(manifest).unwrap()).remove(0);
    // Nothing resolves names of services here.
    let client = &mut configuration["webhooks"][0]["clientConfig"];
    client.as_object_mut().unwrap().remove("service");
    client["url"] = format!("https://{}/validate", pilot.address("webhook")).into();
    configuration
}

#[tokio::test]
async fn a_bad_object_is_refused_before_it_is_stored_and_a_good_one_passes() {
    let Some(server) = Server::start().await else { return };
    create_shop(&server).await;
    let kind = definition("AuthorizationPolicy", "authorizationpolicies", "security.istio.io");
    server.apply(kind).await;
    server.apply_when_served(policy("DENY")).await;
    let pilot = Pilot::start(&server.kubeconfig_of_pilot().await);
    server.apply(configuration(&pilot)).await;

    // Until pilot has put its roots there and the server has seen them, it stores what it is given.
    let begun = Instant::now();
    let refusal = loop {
        match server.try_apply(&policy("DENIED")).await {
            Err(Error::Api(status)) => break status,
            found => assert!(begun.elapsed().as_secs() < 60, "{found:?}"),
        }
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    };
    assert_eq!(refusal.code, 422, "{refusal:?}");
    let expected = "AuthorizationPolicy shop/web: spec.action: ";
    assert!(refusal.message.contains(expected), "{}", refusal.message);
    server.apply(policy("ALLOW")).await;
    assert!(server.try_apply(&policy("DENIED")).await.is_err());
    let metrics = pilot.debug("/metrics").await;
    let passed = "galley_validation_passed{type=\"AuthorizationPolicy\"} ";
    assert!(metrics.contains(passed), "{metrics}");

    // What stood in the configuration is as it was.
    let of = ("admissionregistration.k8s.io/v1", "ValidatingWebhookConfiguration");
    let stored = server.get(of.0, of.1, "", "aquifer-pilot").await;
    let webhook = &stored["webhooks"][0];
    assert_eq!(webhook["failurePolicy"], "Ignore");
    assert!(webhook["clientConfig"]["url"].is_string() && webhook["rules"][1].is_object());

    // With pilot away everybody may write.
    drop(pilot);
    server.apply(policy("DENIED")).await;
}
