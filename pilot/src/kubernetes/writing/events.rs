//! Tells users of an object that was refused, where they look first: in the object's Events.
//!
//! In: what is refused, and why. Out: one Event for each object, content and reason, however often pilot starts.

use std::{
    collections::HashMap,
    time::{Duration, Instant, SystemTime},
};

use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use tokio::time::timeout;
use tracing::warn;

use super::{
    super::{objects::Refused, source::Shared},
    Key, PATIENCE, hash,
};

const CONTROLLER: &str = "aquifer.io/pilot";
/// What an Event's note may hold.
const NOTE_BYTES: usize = 1024;
/// After Events that could not be created.
const AGAIN: Duration = Duration::from_secs(5);

/// What has been told.
pub(super) struct Events {
    client: Client,
    me: String,
    told: HashMap<Key, u64>,
    retry_at: Option<Instant>,
}

impl Events {
    pub(super) fn new(client: Client, me: String) -> Self {
        Self { client, me, told: HashMap::new(), retry_at: None }
    }

    /// When what could not be told is to be told again.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Tells of everything that has not been told.
    pub(super) async fn announce(&mut self, refused: &HashMap<Key, Refused>, shared: &Shared) {
        if self.retry_at.is_some_and(|at| Instant::now() < at) {
            return;
        }
        self.retry_at = None;
        self.told.retain(|key, _| refused.contains_key(key));
        for (key, Refused { reason, seen }) in refused {
            let Some(resource) = shared.resource(key.0) else { continue };
            let told = hash(&(&seen.uid, seen.generation, seen.digest, reason));
            if self.told.get(key) == Some(&told) {
                continue;
            }
            let regarding = ObjectReference {
                api_version: Some(resource.api_version),
                kind: Some(resource.kind),
                name: Some(key.2.to_string()),
                namespace: key.0.is_namespaced().then(|| key.1.to_string()),
                uid: Some(seen.uid.to_string()),
                resource_version: Some(seen.version.to_string()),
                ..ObjectReference::default()
            };
            match self.create(regarding, reason, told).await {
                Ok(()) => {
                    self.told.insert(key.clone(), told);
                }
                Err(reason) => {
                    warn!(kind = key.0.name(), name = %key.2, reason, "creating an event");
                    self.retry_at = Some(Instant::now() + AGAIN);
                    return;
                }
            }
        }
    }

    async fn create(
        &self,
        regarding: ObjectReference,
        reason: &str,
        told: u64,
    ) -> Result<(), String> {
        // Events of objects without a namespace are in this one.
        let namespace = regarding.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let name = regarding.name.clone().unwrap_or_default();
        let now = Timestamp::try_from(SystemTime::now()).unwrap_or_default();
        let event = Event {
            metadata: ObjectMeta {
                // The same for the same: a pilot that starts anew, or another one, tells nobody twice.
                name: Some(format!("{name}.{told:016x}")),
                ..ObjectMeta::default()
            },
            action: Some("Validate".to_owned()),
            event_time: Some(MicroTime(now)),
            note: Some(note(reason).to_owned()),
            reason: Some("Refused".to_owned()),
            regarding: Some(regarding),
            reporting_controller: Some(CONTROLLER.to_owned()),
            reporting_instance: Some(self.me.clone()),
            type_: Some("Warning".to_owned()),
            ..Event::default()
        };
        let events: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        match timeout(PATIENCE, events.create(&PostParams::default(), &event)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => Ok(()),
            // A namespace that ends takes no new objects, and needs none.
            Ok(Err(kube::Error::Api(status))) if status.code == 403 && is_ending(&status) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {PATIENCE:?}")),
        }
    }
}

fn is_ending(status: &kube::core::Status) -> bool {
    status.message.contains("being terminated")
}

/// As much of a text as an Event's note holds.
fn note(reason: &str) -> &str {
    let mut end = reason.len().min(NOTE_BYTES);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    &reason[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_cut_between_characters() {
        assert_eq!(note("short"), "short");
        let long = "é".repeat(NOTE_BYTES);
        assert_eq!(note(&long).len(), NOTE_BYTES);
        let odd = format!("x{long}");
        assert_eq!(note(&odd).len(), NOTE_BYTES - 1);
    }
}
