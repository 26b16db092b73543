//! What the client tells others about itself: readiness, the dump and the command line read it.

use std::time::SystemTime;

use serde::{Serialize, Serializer, ser::Error};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{Handled, Rejected, ResourceType, session::complaint};

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
    /// Whether a response was applied since the start. One that brought nothing counts, one of addresses that was
    /// rejected whole does not. One of policies always counts: those that were rejected deny from then on.
    pub accepted_once: bool,
    /// Resources held.
    pub resources: usize,
    /// When the last response without fault came.
    #[serde(serialize_with = "rfc3339")]
    pub last_ack: Option<SystemTime>,
    /// When the last response with a fault came.
    #[serde(serialize_with = "rfc3339")]
    pub last_nack: Option<SystemTime>,
    /// What was wrong with it.
    pub last_nack_message: String,
    /// Resources the last response with a fault was rejected for.
    pub last_nack_resources: usize,
    /// What was rejected and has not been accepted or removed since, by name; at most a thousand.
    pub rejected: Vec<Rejected>,
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
        rejected: Vec<Rejected>,
        now: SystemTime,
    ) {
        let status = match resource_type {
            ResourceType::Authorization => &mut self.authorization,
            ResourceType::Address => &mut self.address,
        };
        status.resources = resources;
        status.rejected = rejected;
        if handled.rejected.is_empty() {
            status.last_ack = Some(now);
        } else {
            status.last_nack = Some(now);
            status.last_nack_message = complaint(&handled.rejected);
            status.last_nack_resources = handled.rejected.len();
        }
        let applied = resource_type == ResourceType::Authorization
            || handled.rejected.is_empty()
            || handled.accepted + handled.removed > 0;
        status.accepted_once |= applied;
    }
}

fn rfc3339<S: Serializer>(moment: &Option<SystemTime>, to: S) -> Result<S::Ok, S::Error> {
    let text = moment.map(|moment| OffsetDateTime::from(moment).format(&Rfc3339));
    text.transpose().map_err(S::Error::custom)?.serialize(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a response with these counts leads to.
    fn handled(accepted: usize, rejected: usize) -> Handled {
        let one =
            || Rejected { name: "a".into(), field: Some("uid".into()), reason: "is empty".into() };
        Handled {
            resource_type: Some(ResourceType::Address),
            accepted,
            removed: 0,
            rejected: std::iter::repeat_with(one).take(rejected).collect(),
            reply: proto::discovery::DeltaDiscoveryRequest::default(),
            named: Vec::new(),
            absent: Vec::new(),
        }
    }

    fn accepted_once(resource_type: ResourceType, accepted: usize, rejected: usize) -> bool {
        let mut status = XdsStatus::default();
        let handled = handled(accepted, rejected);
        status.handled(resource_type, &handled, accepted, Vec::new(), SystemTime::UNIX_EPOCH);
        status.of(resource_type).accepted_once
    }

    #[test]
    fn a_response_counts_unless_it_was_rejected_whole() {
        let of = |accepted, rejected| accepted_once(ResourceType::Address, accepted, rejected);
        assert!(of(0, 0), "nothing exists, and that is the truth");
        assert!(of(2, 1), "one bad resource does not hold up a node");
        assert!(!of(0, 1));
    }

    #[test]
    fn policies_that_were_all_rejected_do_not_hold_up_a_node_since_they_deny() {
        assert!(accepted_once(ResourceType::Authorization, 0, 1));
    }

    #[test]
    fn moments_are_written_for_people() {
        let mut status = XdsStatus::default();
        let handled = handled(0, 1);
        let rejected = handled.rejected.clone();
        status.handled(ResourceType::Address, &handled, 0, rejected, SystemTime::UNIX_EPOCH);
        let json = serde_json::to_value(&status.address).unwrap();
        let expected = serde_json::json!({
            "acceptedOnce": false,
            "resources": 0,
            "lastAck": null,
            "lastNack": "1970-01-01T00:00:00Z",
            "lastNackMessage": "a: uid: is empty",
            "lastNackResources": 1,
            "rejected": [{ "name": "a", "field": "uid", "reason": "is empty" }],
        });
        assert_eq!(json, expected);
    }
}
