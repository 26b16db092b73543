//! Who a peer is: SPIFFE names, certificates, the client of the certificate authority, and how
//! the control plane is reached and known.
//!
//! Private keys of workloads do not leave this module: others get TLS configurations.

mod authority;
mod bundles;
mod ca_client;
mod chain;
mod control_plane;
mod control_plane_verifier;
mod credential;
mod files;
mod handshake_error;
#[cfg(test)]
mod handshake_tests;
mod identities;
mod keeper;
mod key;
mod local_ca;
mod peer;
mod peer_chain;
mod plugged;
mod renewal;
mod revocation;
mod schedule;
mod source;
mod spiffe;
mod tls;
mod verification;
mod verifier;

pub use authority::{Authority, AuthorityError, ServerCertificate, SignError, Validity};
pub use ca_client::CaClient;
pub use chain::ChainError;
pub use control_plane::{Roots, ServerConfig, ServerError, Token};
pub use credential::Credential;
pub use files::{FilesError, IdentityFiles};
pub use handshake_error::HandshakeError;
pub use identities::{CertificateState, Identities, IdentityConfig, IssueReport, Unavailable};
pub use key::KeyError;
pub use local_ca::LocalCa;
pub use peer::{PeerError, peer_identity};
pub use peer_chain::{CertificateName, PeerChain};
pub use plugged::PluggedError;
pub use renewal::{Jitter, Renewal};
pub use revocation::{RevocationError, Revocations};
pub use source::{BoxFuture, CaError, CertificateSource, IssueError};
pub use spiffe::{Spiffe, SpiffeError};
pub use tls::{Compliance, TlsVersions, provider as crypto_provider};
pub use verification::{Objection, Verification};
