//! What the owner of tunnels is told of the connections below them, for its metrics.
//!
//! In: finished handshakes and sockets whose state may be sampled. Out: calls of the owner's functions. Nothing is kept.

use std::{fmt, os::fd::BorrowedFd, time::Duration};

/// Functions that are told of what happens. By default they do nothing.
#[derive(Clone, Copy)]
pub struct Observer {
    /// A TLS handshake was done.
    pub handshaken: fn(Handshaken),
    /// A tunnel's socket, about every `ping_interval` and when the tunnel ends.
    pub sampled: fn(SampledSocket<'_>),
}

/// A TLS handshake that succeeded.
#[derive(Clone, Copy, Debug)]
pub struct Handshaken {
    /// Our side of it.
    pub role: Role,
    /// From the connected socket to the end of the handshake.
    pub took: Duration,
    /// The key exchange group, by its name in IANA's registry as rustls writes it; `unknown` if there was none.
    pub group: &'static str,
    /// Whether an earlier session was resumed.
    pub resumed: bool,
}

/// Who began a tunnel.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Role {
    /// We dialed it.
    Client,
    /// We accepted it.
    Server,
}

/// A tunnel's socket.
pub struct SampledSocket<'a> {
    /// The socket.
    pub socket: BorrowedFd<'a>,
    /// Our side of the tunnel.
    pub role: Role,
    /// The observer's to keep from one sample of this socket to the next; 0 at first.
    pub counted: &'a mut u32,
}

impl Role {
    /// `client` or `server`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
        }
    }
}

impl Default for Observer {
    fn default() -> Self {
        Self { handshaken: |_| {}, sampled: |_| {} }
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observer").finish_non_exhaustive()
    }
}
