//! One thing that is so or not so with an object, and why.

use serde_json::{Value, json};

use crate::manifests::Meta;

/// A condition of an object's status.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Condition {
    pub(super) kind: &'static str,
    pub(super) is: bool,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

impl Condition {
    pub(super) fn yes(
        kind: &'static str,
        reason: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self { kind, is: true, reason, message: message.into() }
    }

    pub(super) fn no(kind: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self { kind, is: false, reason, message: message.into() }
    }

    /// As the API has it, of this generation of the object.
    pub(super) fn json(&self, of: &Meta) -> Value {
        json!({
            "type": self.kind,
            "status": if self.is { "True" } else { "False" },
            "reason": self.reason,
            "message": self.message,
            "observedGeneration": of.generation,
        })
    }
}

/// All of them, as the API has them.
pub(super) fn list(conditions: &[Condition], of: &Meta) -> Value {
    conditions.iter().map(|condition| condition.json(of)).collect()
}
