//! Who a peer is: SPIFFE names, certificates and the client of the certificate authority.
//!
//! Private keys do not leave this module: others get TLS configurations.

mod spiffe;

pub use spiffe::{Spiffe, SpiffeError};
