//! The control plane: manifests in, xDS and certificates out.
//!
//! [`manifests`] reads what the user wrote, and [`ca`] signs the daemons'
//! certificates, and [`serve`] hands both out.

#![forbid(unsafe_code)]

pub mod ca;
pub mod manifests;
