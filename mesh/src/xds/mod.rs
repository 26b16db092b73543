//! Configuration comes in here: workloads, services and policies by delta xDS, from whichever server is configured.
//!
//! In: an [`XdsConfig`]. Out: batches applied to the [`Store`](crate::store::Store), and an [`XdsStatus`] to watch.
//! [`Session`] decides what to say and does no I/O; [`run`] carries it. Nothing on a connection's path waits for
//! this module: when the server is away, the store stays as it is.

mod backoff;
mod client;
#[cfg(test)]
mod client_tests;
mod config;
mod faults;
mod local;
mod names;
mod on_demand;
mod session;
#[cfg(test)]
mod session_tests;
mod status;
mod subscription;

pub use crate::identity::{Roots, ServerConfig, ServerError, TlsVersions, Token};
pub use client::run;
pub use config::XdsConfig;
pub use local::{Local, LocalError, LocalSource, parse as parse_local};
pub use on_demand::{Key, Lookup, Named, OnDemand};
pub use session::{Handled, Rejected, ResourceType, Scope, Session};
pub use status::{TypeStatus, XdsStatus};
