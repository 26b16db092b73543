//! The control plane: manifests in, xDS and certificates out.
//!
//! [`manifests`] reads what the user wrote, [`compile`] turns it into what the daemons take, and [`ca`] signs their
//! certificates.

#![forbid(unsafe_code)]

pub mod ca;
pub mod compile;
pub mod manifests;
