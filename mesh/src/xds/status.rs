//! What the client tells others about itself: readiness, the dump and the command line read it.

use std::time::SystemTime;

use serde::Serialize;

use super::{Handled, ResourceType, session::complaint};

/// The state of the subscription.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct XdsStatus {
    /// Whether a stream is open.
    pub connected: bool,
    /// Why the last stream ended or could not be opened; empty before that.
    pub last_error: String,
    /// Policies.
    pub authorization: TypeStatus,
    /// Workloads and services.
    pub address: TypeStatus,
}

/// The state of one resource type.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TypeStatus {
    /// Whether a response was applied since the start. One that brought nothing counts, one that was rejected whole
    /// does not.
    pub accepted_once: bool,
    /// Resources held.
    pub resources: usize,
    /// When the last response without fault came.
    pub last_ack: Option<SystemTime>,
    /// When the last response with a fault came.
    pub last_nack: Option<SystemTime>,
    /// What was wrong with it.
    pub last_nack_message: String,
    /// Resources the last response with a fault was rejected for.
    pub last_nack_resources: usize,
}

impl XdsStatus {
    /// Whether both types were applied since the start: then what the store says is the truth, not the beginning of it.
    pub fn synced(&self) -> bool {
        self.authorization.accepted_once && self.address.accepted_once
    }

    /// The state of `resource_type`.
    pub fn of(&self, resource_type: ResourceType) -> &TypeStatus {
        match resource_type {
            ResourceType::Authorization => &self.authorization,
            ResourceType::Address => &self.address,
        }
    }

    pub(super) fn handled(
        &mut self,
        resource_type: ResourceType,
        handled: &Handled,
        resources: usize,
        now: SystemTime,
    ) {
        let status = match resource_type {
            ResourceType::Authorization => &mut self.authorization,
            ResourceType::Address => &mut self.address,
        };
        status.resources = resources;
        if handled.rejected.is_empty() {
            status.last_ack = Some(now);
        } else {
            status.last_nack = Some(now);
            status.last_nack_message = complaint(&handled.rejected);
            status.last_nack_resources = handled.rejected.len();
        }
        let applied = handled.rejected.is_empty() || handled.accepted + handled.removed > 0;
        status.accepted_once |= applied;
    }
}
