//! The control plane: manifests in, xDS and certificates out.

#![forbid(unsafe_code)]

pub mod ca;
