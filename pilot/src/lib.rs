//! The control plane: manifests in, xDS and certificates out.
//!
//! [`manifests`] reads what the user wrote, [`compile`] turns it into what the daemons take, [`ca`] signs their
//! certificates, and [`serve`] hands both out.

#![forbid(unsafe_code)]

pub mod ca;
pub mod compile;
pub mod manifests;
pub mod serve;
