//! Why a tunnel did not open.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use http::StatusCode;

use super::{ErrorCode, StreamError};
use crate::identity::{HandshakeError, PeerError, Spiffe};

/// Why a stream did not open. One variant for each thing an operator would do differently. All who waited for one dial
/// get its error.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OpenError {
    /// The pod's tunnels are being closed.
    #[error("the tunnels of this pod are closed")]
    Closed,
    /// TCP did not connect.
    #[error("dialing {dial}")]
    Dial {
        /// What was dialed.
        dial: SocketAddr,
        /// What the kernel, or the caller's deadline, said.
        source: Arc<io::Error>,
    },
    /// TLS failed, on either side.
    #[error("the TLS handshake with {dial} failed")]
    Handshake {
        /// What was dialed.
        dial: SocketAddr,
        /// What was wrong.
        source: Arc<HandshakeError>,
    },
    /// TLS took too long.
    #[error("{dial} did not finish the TLS handshake within {limit:?}")]
    HandshakeTimeout {
        /// What was dialed.
        dial: SocketAddr,
        /// The deadline.
        limit: Duration,
    },
    /// The peer did not choose HTTP/2 in ALPN.
    #[error("{dial} does not speak HTTP/2")]
    NotHttp2 {
        /// What was dialed.
        dial: SocketAddr,
    },
    /// The peer's certificate is good and somebody else's.
    #[error("{dial} is {found}, expected {}", expected.iter().map(Spiffe::as_str).collect::<Vec<_>>().join(" or "))]
    WrongPeer {
        /// What was dialed.
        dial: SocketAddr,
        /// Whose certificate it is.
        found: Spiffe,
        /// The identities any of which would do.
        expected: Arc<[Spiffe]>,
    },
    /// The peer's certificate does not say who it is.
    #[error("{dial} has no usable identity")]
    Unidentified {
        /// What was dialed.
        dial: SocketAddr,
        /// What is wrong with the certificate.
        source: PeerError,
    },
    /// The peer did not answer the CONNECT in time.
    #[error("{dial} did not answer the CONNECT within {limit:?}")]
    Timeout {
        /// What was dialed.
        dial: SocketAddr,
        /// The deadline.
        limit: Duration,
    },
    /// The peer answered the CONNECT with a refusal: 401 is a policy, 400 the request, 503 the application.
    #[error("{dial} refused the CONNECT: {status}")]
    Refused {
        /// What was dialed.
        dial: SocketAddr,
        /// The answer.
        status: StatusCode,
    },
    /// The peer reset the stream before it answered.
    #[error("{dial} reset the CONNECT: {code}")]
    Reset {
        /// What was dialed.
        dial: SocketAddr,
        /// The peer's reason.
        code: ErrorCode,
    },
    /// The peer closed the tunnel before it took the stream, twice in a row.
    #[error("{dial} closed the tunnel: {code}")]
    Goaway {
        /// What was dialed.
        dial: SocketAddr,
        /// The peer's reason.
        code: ErrorCode,
    },
    /// The peer broke the rules of HTTP/2 or its limits.
    #[error("{dial} broke the rules of HTTP/2: {code}")]
    Misbehaved {
        /// What was dialed.
        dial: SocketAddr,
        /// The rule.
        code: ErrorCode,
    },
    /// The tunnel's connection failed.
    #[error("the tunnel to {dial} was lost")]
    Lost {
        /// What was dialed.
        dial: SocketAddr,
        /// What the socket or TLS said.
        source: Arc<io::Error>,
    },
}

impl OpenError {
    pub(super) fn of_stream(dial: SocketAddr, error: StreamError) -> Self {
        match error {
            StreamError::Reset { code } => Self::Reset { dial, code },
            StreamError::Goaway { code } => Self::Goaway { dial, code },
            StreamError::Misbehaved { code } => Self::Misbehaved { dial, code },
            StreamError::Lost { source } => Self::Lost { dial, source },
        }
    }

    /// Whether the peer has said that it did not begin the stream, so that another tunnel may be tried
    /// (RFC 9113 §8.7).
    pub(super) fn is_unprocessed(&self) -> bool {
        match self {
            Self::Goaway { .. } => true,
            Self::Reset { code, .. } => *code == ErrorCode::REFUSED_STREAM,
            Self::Closed
            | Self::Dial { .. }
            | Self::Handshake { .. }
            | Self::HandshakeTimeout { .. }
            | Self::NotHttp2 { .. }
            | Self::WrongPeer { .. }
            | Self::Unidentified { .. }
            | Self::Timeout { .. }
            | Self::Refused { .. }
            | Self::Misbehaved { .. }
            | Self::Lost { .. } => false,
        }
    }
}
