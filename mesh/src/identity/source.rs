//! Where certificates come from, and why one does not come.

use std::{pin::Pin, time::Duration};

use super::{ChainError, HandshakeError, KeyError, ServerError, SignError, Spiffe};

/// A boxed future, for a trait that is used as an object.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A certificate authority as its clients see it.
pub trait CertificateSource: Send + Sync {
    /// Asks for a certificate for the key of `csr_pem` under the name `who`.
    ///
    /// The answer is `cert_chain` of the certificate service: leaf, intermediates, and last the bundle of roots.
    /// It is not checked yet.
    fn issue<'a>(
        &'a self,
        csr_pem: String,
        who: &'a Spiffe,
        lifetime: Duration,
    ) -> BoxFuture<'a, Result<Vec<String>, CaError>>;
}

/// Why an identity got no certificate.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The key could not be made or used: a fault of this machine.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The certificate authority gave none.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// What the certificate authority sent does not pass.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// TLS did not take the material.
    #[error("building the TLS configuration of {who}")]
    Tls {
        /// Whose.
        who: Spiffe,
        /// What rustls says.
        source: rustls::Error,
    },
    /// The request ended without an answer: a bug in the [`CertificateSource`].
    #[error("the request ended abnormally: {reason}")]
    Aborted {
        /// How.
        reason: String,
    },
}

impl IssueError {
    /// The kind of failure, as one word for metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Key(_) => "key",
            Self::Ca(error) => error.kind(),
            Self::Chain(_) => "chain",
            Self::Tls { .. } => "tls_configuration",
            Self::Aborted { .. } => "aborted",
        }
    }
}

/// Why the certificate authority gave no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// Our configuration: address, roots, or token.
    #[error(transparent)]
    Configuration(#[from] ServerError),
    /// The network: no connection.
    #[error("cannot connect to the certificate authority at {address}: {reason}")]
    Connect {
        /// As configured.
        address: String,
        /// What the innermost error says.
        reason: String,
    },
    /// The TLS handshake with the certificate authority failed; the source says on whose side.
    #[error("the TLS handshake with the certificate authority at {address} failed")]
    Tls {
        /// As configured.
        address: String,
        /// Why.
        source: HandshakeError,
    },
    /// The certificate authority did not answer in time.
    #[error("no answer from the certificate authority at {address} within {limit:?}")]
    Timeout {
        /// As configured.
        address: String,
        /// How long we waited.
        limit: Duration,
    },
    /// The certificate authority does not accept our token, or not for this identity. Istio's answers the second as
    /// the first, and for a pod so new that it has not seen it.
    #[error("the certificate authority does not let this node act for {who}: {message}")]
    Denied {
        /// For whom we asked.
        who: Spiffe,
        /// What it says.
        message: String,
    },
    /// The certificate authority refuses the request itself.
    #[error("the certificate authority refused the request for {who} ({code:?}): {message}")]
    Rejected {
        /// For whom we asked.
        who: Spiffe,
        /// The gRPC status.
        code: tonic::Code,
        /// What it says.
        message: String,
    },
    /// The certificate authority has a fault, or is overloaded or shutting down.
    #[error("the certificate authority at {address} failed ({code:?}): {message}")]
    Unavailable {
        /// As configured.
        address: String,
        /// The gRPC status.
        code: tonic::Code,
        /// What it says.
        message: String,
    },
    /// The authority in this process did not sign.
    #[error("the local authority did not sign")]
    Local(#[from] SignError),
}

impl CaError {
    fn kind(&self) -> &'static str {
        match self {
            Self::Configuration(_) => "configuration",
            Self::Connect { .. } => "connect",
            Self::Tls { .. } => "tls",
            Self::Timeout { .. } => "timeout",
            Self::Denied { .. } => "denied",
            Self::Rejected { .. } => "rejected",
            Self::Unavailable { .. } => "unavailable",
            Self::Local(_) => "signing",
        }
    }
}
