//! The GatewayClasses that Istio makes, for whoever writes a Gateway.
//!
//! In: which are there. Out: those that are missing, created. One that is there is nobody's to change but the user's.

use kube::{
    Api, Client,
    api::{DynamicObject, PostParams},
};
use serde_json::json;
use tracing::{info, warn};

use super::super::source::Shared;
use crate::manifests::Kind;

/// Name, who serves it, and what it is.
type Class = (&'static str, &'static str, &'static str);

const ALWAYS: [Class; 3] = [
    ("istio", "istio.io/gateway-controller", "Gateways at the edge of the mesh"),
    (
        "istio-waypoint",
        "istio.io/mesh-controller",
        "Waypoints: proxies that read requests within the mesh",
    ),
    (
        "istio-remote",
        "istio.io/unmanaged-gateway",
        "Gateways of other networks, which say where they are",
    ),
];
const BETWEEN_NETWORKS: Class =
    ("istio-east-west", "istio.io/eastwest-controller", "Gateways between networks of the mesh");

/// Creates what is missing, where the API server has the kind.
pub(super) async fn create_missing(client: &Client, shared: &Shared, multi_network: bool) {
    let Some(resource) = shared.resource(Kind::GatewayClass) else { return };
    let missing: Vec<_> = {
        let objects = shared.lock();
        let all = ALWAYS.into_iter().chain(multi_network.then_some(BETWEEN_NETWORKS));
        let has =
            |name: &str| objects.seen(&(Kind::GatewayClass, "".into(), name.into())).is_some();
        all.filter(|(name, ..)| objects.has_listed(Kind::GatewayClass) && !has(name)).collect()
    };
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    for (name, controller, description) in missing {
        let spec = json!({ "controllerName": controller, "description": description });
        let class = DynamicObject::new(name, &resource).data(json!({ "spec": spec }));
        match api.create(&PostParams::default(), &class).await {
            Ok(_) => info!(name, "gateway class created"),
            // Another was faster.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => warn!(name, %error, "creating a gateway class"),
        }
    }
}
