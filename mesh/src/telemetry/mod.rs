//! Outcomes in; metrics, access log and the one [`Reason`] of every refusal out.

mod reason;

pub use reason::{Reason, ResponseFlag};
