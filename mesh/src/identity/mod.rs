//! Who a peer is: SPIFFE names, certificates, the client of the certificate authority, and how
//! the control plane is reached and known.
//!
//! Private keys of workloads do not leave this module: others get TLS configurations.

mod authority;
mod ca_client;
mod chain;
mod control_plane;
mod credential;
mod handshake_error;
#[cfg(test)]
mod handshake_tests;
mod identities;
mod key;
mod local_ca;
mod peer;
mod renewal;
mod schedule;
mod source;
mod spiffe;
mod tls;
mod verifier;

pub use authority::{Authority, AuthorityError, ServerCertificate, SignError, Validity};
pub use ca_client::CaClient;
pub use chain::ChainError;
pub use control_plane::{Roots, ServerConfig, ServerError, Token};
pub use credential::Credential;
pub use handshake_error::HandshakeError;
pub use identities::{CertificateState, Identities, IdentityConfig, Unavailable};
pub use key::KeyError;
pub use local_ca::LocalCa;
pub use peer::{PeerError, expect_peer, peer_identity};
pub use renewal::{Jitter, Renewal};
pub use source::{BoxFuture, CaError, CertificateSource, IssueError};
pub use spiffe::{Spiffe, SpiffeError};
pub use tls::provider as crypto_provider;
