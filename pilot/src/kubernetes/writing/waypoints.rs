//! Runs the waypoints that Gateways ask for.
//!
//! In: the manifests that are served. Out: server-side applies of what is to run for each Gateway, owned by it, so that
//! the cluster removes it with the Gateway. What is as it was applied last is left alone for a while, and then applied
//! again: others may have changed it. What is to run is decided in [`crate::deploy`].

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use kube::{
    Api, Client,
    api::{DynamicObject, Patch, PatchParams},
    core::{ApiResource, GroupVersionKind},
};
use metrics::counter;
use serde_json::{Value, json};
use tokio::time::timeout;
use tracing::{info, warn};

use super::{
    super::{Served, source::Shared},
    PATIENCE, hash,
};
use crate::{
    deploy::{self, Installation, Settings},
    manifests::{Kind, Manifests, Object, gateway_api::Gateway},
};

/// As Istio's: a mesh that moves from one to the other keeps its waypoints.
const FIELD_MANAGER: &str = "istio.io/gateway-controller";
/// After a failure.
const AGAIN: Duration = Duration::from_secs(10);
/// How long nobody is expected to have changed what was applied.
const TRUSTED: Duration = Duration::from_secs(300);

pub(super) struct Waypoints {
    client: Client,
    /// Nothing if waypoints are somebody else's to run.
    settings: Option<Settings>,
    /// What was applied, by kind, namespace and name: its hash, and when.
    applied: HashMap<String, (u64, Instant)>,
    /// Why a Gateway's cannot be run, as it was said.
    refused: HashMap<String, String>,
    last: Option<Arc<Served>>,
    due: Option<Instant>,
}

impl Waypoints {
    pub(super) fn new(client: Client, settings: Option<Settings>) -> Self {
        let (applied, refused) = (HashMap::new(), HashMap::new());
        Self { client, settings, applied, refused, last: None, due: None }
    }

    /// When to look again though nothing has changed.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Another pilot may have written in the meantime.
    pub(super) fn begin(&mut self) {
        self.applied.clear();
    }

    /// Applies what differs in new manifests.
    pub(super) async fn follow(
        &mut self,
        served: Arc<Served>,
        shared: &Shared,
        may_write: impl Fn() -> bool,
    ) {
        self.last = Some(served);
        self.apply(shared, may_write).await;
    }

    /// Applies what differs or is to be looked at again.
    pub(super) async fn apply(&mut self, shared: &Shared, may_write: impl Fn() -> bool) {
        let (Some(settings), Some(served)) = (&self.settings, self.last.clone()) else { return };
        let (manifests, config) = &*served;
        let installation = Installation::of(settings, config);
        let now = Instant::now();
        let mut due = None;
        for gateway in &manifests.gateways {
            for object in self.wanted(manifests, gateway, &installation, shared) {
                let name = name_of(&object);
                let wanted = hash(&object.to_string());
                if let Some((last, at)) = self.applied.get(&name)
                    && *last == wanted
                    && now < *at + TRUSTED
                {
                    due = due.into_iter().chain([*at + TRUSTED]).min();
                    continue;
                }
                if !may_write() {
                    return;
                }
                let result = match write(&self.client, &object).await {
                    Ok(()) => {
                        if self.applied.insert(name.clone(), (wanted, now)).is_none() {
                            info!(object = name, "applied for a waypoint");
                        }
                        due = due.into_iter().chain([now + TRUSTED]).min();
                        "applied"
                    }
                    Err(reason) => {
                        warn!(object = name, reason, "applying what a waypoint needs");
                        due = due.into_iter().chain([now + AGAIN]).min();
                        "failed"
                    }
                };
                counter!("aquifer_pilot_waypoint_objects", "result" => result).increment(1);
            }
        }
        self.due = due;
    }

    /// What is to run for a Gateway that is still there.
    fn wanted(
        &mut self,
        manifests: &Manifests,
        gateway: &Object<Gateway>,
        installation: &Installation,
        shared: &Shared,
    ) -> Vec<Value> {
        let meta = &gateway.meta;
        let key = (Kind::Gateway, Arc::clone(&meta.namespace), Arc::clone(&meta.name));
        let Some(uid) = shared.lock().seen(&key).map(|seen| seen.uid.clone()) else {
            return Vec::new();
        };
        let name = format!("{}/{}", meta.namespace, meta.name);
        match deploy::objects(manifests, gateway, installation) {
            Ok(mut objects) => {
                self.refused.remove(&name);
                for object in &mut objects {
                    object["metadata"]["ownerReferences"] = json!([{
                        "apiVersion": "gateway.networking.k8s.io/v1",
                        "kind": "Gateway",
                        "name": &*meta.name,
                        "uid": uid,
                    }]);
                }
                objects
            }
            Err(reason) => {
                let reason = reason.to_string();
                if self.refused.get(&name) != Some(&reason) {
                    warn!(gateway = name, reason, "a waypoint stays as it is");
                    self.refused.insert(name, reason);
                }
                Vec::new()
            }
        }
    }
}

fn name_of(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let metadata = &object["metadata"];
    format!(
        "{} {}/{}",
        text(&object["kind"]),
        text(&metadata["namespace"]),
        text(&metadata["name"])
    )
}

async fn write(client: &Client, object: &Value) -> Result<(), String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let api_version = text(&object["apiVersion"]);
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", &api_version));
    let of = GroupVersionKind::gvk(group, version, &text(&object["kind"]));
    let metadata = &object["metadata"];
    let api: Api<DynamicObject> = Api::namespaced_with(
        client.clone(),
        &text(&metadata["namespace"]),
        &ApiResource::from_gvk(&of),
    );
    let how = PatchParams::apply(FIELD_MANAGER).force();
    let name = text(&metadata["name"]);
    match timeout(PATIENCE, api.patch(&name, &how, &Patch::Apply(object))).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no answer within {PATIENCE:?}")),
    }
}
