//! How a copied connection ended, and what is told while it lasts.

use std::{future::Future, io};

use super::StreamError;

/// Takes the bytes of one connection while they move. The caller's metrics implement it.
pub trait ByteCounters {
    /// `count` bytes went from the near side to the far side.
    fn sent(&self, count: u64);
    /// `count` bytes went from the far side to the near side.
    fn received(&self, count: u64);
}

/// How a connection ended.
#[derive(Debug)]
pub struct Outcome {
    /// Bytes from the near side to the far side.
    pub sent_bytes: u64,
    /// Bytes from the far side to the near side.
    pub received_bytes: u64,
    /// Who ended it, and why.
    pub ended: Ended,
}

/// Who ended a connection, and why.
#[derive(Debug)]
pub enum Ended {
    /// Both ways came to their ends.
    Finished {
        /// Who ended its way first.
        first: Side,
    },
    /// A TCP connection was reset or failed.
    Tcp {
        /// Whose connection.
        side: Side,
        /// What the kernel said.
        source: io::Error,
    },
    /// The tunnel's stream was reset or lost.
    Stream {
        /// What happened to it.
        source: StreamError,
    },
    /// This daemon cut it.
    Aborted {
        /// Why.
        why: Abort,
    },
}

/// One of the two connections between which bytes are copied.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Side {
    /// The TCP connection given first: the application's.
    Near,
    /// The tunnel's stream, or the TCP connection given second.
    Far,
}

/// Why this daemon cuts a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Abort {
    /// A changed policy denies it.
    PolicyChanged,
    /// The peer's certificate is revoked.
    CertificateRevoked,
    /// The root of the peer's certificate is not trusted any more.
    CertificateUntrusted,
    /// Its pod was removed.
    PodRemoved,
    /// The daemon ends.
    Shutdown,
}

/// Resolves when a connection is to be cut. [`std::future::pending`] never does.
pub trait AbortSignal: Future<Output = Abort> {}

impl<F: Future<Output = Abort>> AbortSignal for F {}
