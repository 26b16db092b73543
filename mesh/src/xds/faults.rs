//! Why a resource is rejected, in words of bounded length: it goes into a NACK, the log and the dump.
//!
//! In: a [`Fault`]. Out: a [`Rejected`]. What the server sent may be part of both, and may be of any length.

use std::fmt;

use super::Rejected;
use crate::store::DecodeError;

/// Bytes of a name, and of a reason, that are told.
const LONGEST_NAME: usize = 256;
const LONGEST_REASON: usize = 512;

/// Why a resource is rejected.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("carries no resource")]
    Empty,
    #[error("has type {found} in a response of another type")]
    OtherType { found: String },
    #[error("holds the policy {found}, which is another name")]
    OtherName { found: String },
    #[error("{0}")]
    Protobuf(#[from] prost::DecodeError),
    #[error("{0}")]
    Content(#[from] DecodeError),
}

impl Fault {
    /// The resource of this name, rejected.
    pub(super) fn rejected(&self, name: &str) -> Rejected {
        let (field, reason) = match self {
            Self::Content(error) => {
                (Some(clip(error.path(), LONGEST_REASON)), error.fault().to_string())
            }
            Self::Empty | Self::OtherType { .. } | Self::OtherName { .. } | Self::Protobuf(_) => {
                (None, self.to_string())
            }
        };
        Rejected { name: clip(name, LONGEST_NAME), field, reason: clip(&reason, LONGEST_REASON) }
    }
}

impl fmt::Display for Rejected {
    /// `name: field: reason`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.field {
            Some(field) => write!(f, "{}: {field}: {}", self.name, self.reason),
            None => write!(f, "{}: {}", self.name, self.reason),
        }
    }
}

fn clip(text: &str, limit: usize) -> String {
    if text.len() <= limit {
        return text.to_owned();
    }
    format!("{}…", &text[..text.floor_char_boundary(limit)])
}
