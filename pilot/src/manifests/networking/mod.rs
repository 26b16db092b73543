//! The kinds of `networking.istio.io` as the user writes them: fields, names and defaults are Istio's. What they mean
//! is the compiler's question.

mod destination_rule;
mod gateway;
mod service_entry;
mod sidecar;
mod virtual_service;

pub use destination_rule::*;
pub use gateway::*;
pub use service_entry::*;
pub use sidecar::*;
pub use virtual_service::*;
