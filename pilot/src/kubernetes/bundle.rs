//! Tells the API server whose certificate our webhook shows.
//!
//! In: the roots as they are. Out: `caBundle` in the ValidatingWebhookConfiguration named `aquifer-pilot`, by server-side
//! apply, so that everything else in it stays the user's. Without that configuration nothing is done.

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tracing::{info, warn};

const NAME: &str = "aquifer-pilot";
const FIELD_MANAGER: &str = "aquifer-pilot-webhook";
/// Between two looks at the configuration: whoever applies it anew waits so long at most.
const PERIOD: Duration = Duration::from_secs(10);

/// Looks from time to time for as long as it is polled.
pub(crate) async fn keep(client: Client, roots: impl Fn() -> String) {
    let configurations: Api<ValidatingWebhookConfiguration> = Api::all(client);
    let mut said = String::new();
    loop {
        match apply(&configurations, &roots()).await {
            Ok(()) => said.clear(),
            // Said once, however long it lasts.
            Err(error) if error.to_string() != said => {
                said = error.to_string();
                warn!(
                    reason = said,
                    "the API server is not told by which roots to know the webhook"
                );
            }
            Err(_) => {}
        }
        tokio::time::sleep(PERIOD).await;
    }
}

async fn apply(
    configurations: &Api<ValidatingWebhookConfiguration>,
    roots: &str,
) -> Result<(), kube::Error> {
    let Some(found) = configurations.get_opt(NAME).await? else { return Ok(()) };
    let webhooks = found.webhooks.unwrap_or_default();
    let is_known = |bundle: Option<&k8s_openapi::ByteString>| {
        bundle.is_some_and(|bundle| bundle.0 == roots.as_bytes())
    };
    if webhooks.iter().all(|webhook| is_known(webhook.client_config.ca_bundle.as_ref())) {
        return Ok(());
    }
    let bundle = STANDARD.encode(roots);
    let webhooks: Vec<_> = webhooks
        .iter()
        .map(|webhook| json!({ "name": webhook.name, "clientConfig": { "caBundle": bundle } }))
        .collect();
    let patch = json!({
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": { "name": NAME },
        "webhooks": webhooks,
    });
    let how = PatchParams::apply(FIELD_MANAGER).force();
    configurations.patch(NAME, &how, &Patch::Apply(&patch)).await?;
    info!(name = NAME, "webhook configuration: roots applied");
    Ok(())
}
