//! What every component of the mesh shares: who a peer is ([`identity`]), what exists ([`store`]), who may talk to
//! whom ([`policy`]), the tunnel between nodes ([`hbone`]), and the rims around them: [`xds`] brings configuration in,
//! [`telemetry`] takes outcomes out.

#![forbid(unsafe_code)]

pub mod hbone;
pub mod identity;
pub mod policy;
pub mod store;
pub mod telemetry;
pub mod wire;
pub mod xds;
