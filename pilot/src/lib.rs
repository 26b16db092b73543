//! The control plane: manifests in, xDS and certificates out.
//!
//! [`manifests`] reads what the user wrote, or what [`kubernetes`] watches; [`compile`] turns it into what the daemons
//! take, [`jwks`] fetches the keys of token issuers, [`ca`] signs their certificates, [`serve`] hands both out, and
//! [`status`] tells users what became of their objects, [`analysis`] what they may not have meant, and [`deploy`] says what
//! has to run for those that ask for a waypoint. [`offline`] prints what a client would be sent, [`proto_json`] is how
//! messages are printed, and [`settings`] are options of commands.

#![forbid(unsafe_code)]

pub mod analysis;
pub mod ca;
mod callers;
pub mod compile;
pub mod crds;
pub mod deploy;
pub mod jwks;
pub mod kubernetes;
pub mod manifests;
pub mod offline;
pub mod proto_json;
pub mod serve;
pub mod settings;
pub mod status;
