//! One application's connection inside a tunnel: bytes both ways, each way with an end of its own.
//!
//! This is all that others see of a tunnel's framing. Dropping a [`Stream`] before both ways have ended resets it.

use std::{
    fmt,
    future::poll_fn,
    io,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};

use super::{client::Lease, conduct::StreamConduct, connection::into_io, source::Source};
use crate::identity::PeerChain;

/// One application's connection inside a tunnel.
pub struct Stream {
    send: SendStream<Bytes>,
    receive: RecvStream,
    conduct: StreamConduct,
    /// A client's place in its tunnel, given back when the stream is dropped.
    _lease: Option<Lease>,
    peer_chain: Option<Arc<PeerChain>>,
}

/// Why a peer reset a stream or closed a tunnel (RFC 9113 §7).
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
pub struct ErrorCode(u32);

/// Why a stream ended early.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StreamError {
    /// The peer reset the stream.
    #[error("the peer reset the stream: {code}")]
    Reset {
        /// The peer's reason.
        code: ErrorCode,
    },
    /// The peer closed the tunnel and did not take the stream.
    #[error("the peer closed the tunnel: {code}")]
    Goaway {
        /// The peer's reason.
        code: ErrorCode,
    },
    /// The peer broke the rules of HTTP/2 or its limits.
    #[error("the peer broke the rules of HTTP/2: {code}")]
    Misbehaved {
        /// The rule.
        code: ErrorCode,
    },
    /// The tunnel's connection failed.
    #[error("the tunnel was lost")]
    Lost {
        /// What the socket or TLS said.
        source: Arc<io::Error>,
    },
}

impl Stream {
    pub(super) fn new(
        send: SendStream<Bytes>,
        receive: RecvStream,
        conduct: StreamConduct,
        lease: Option<Lease>,
    ) -> Self {
        let peer_chain = lease.as_ref().map(|lease| lease.chain().clone());
        Self { send, receive, conduct, _lease: lease, peer_chain }
    }

    /// The peer's certificates, if it is we who dialed.
    pub fn peer_chain(&self) -> Option<&Arc<PeerChain>> {
        self.peer_chain.as_ref()
    }

    /// Whose turn it must be to move something.
    pub(super) fn source(&self) -> &Source {
        self.conduct.source()
    }

    /// The stream of a tunnel that is no pool's, to the peer of `chain`.
    pub(super) fn with_peer(mut self, chain: PeerChain) -> Self {
        self.peer_chain = Some(Arc::new(chain));
        self
    }

    /// The next bytes, or `None` after the peer's end. The peer may send as many again at once.
    ///
    /// # Errors
    /// [`StreamError`] when the stream was reset or the tunnel lost.
    pub async fn read(&mut self) -> Result<Option<Bytes>, StreamError> {
        let bytes = poll_fn(|cx| self.poll_read(cx)).await?;
        if let Some(bytes) = &bytes {
            self.release(bytes.len());
        }
        Ok(bytes)
    }

    /// Sends `bytes` once the peer takes more.
    ///
    /// # Errors
    /// [`StreamError`] when the stream was reset or the tunnel lost.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), StreamError> {
        poll_fn(|cx| self.poll_writable(cx)).await?;
        self.send(bytes)
    }

    /// Ends our way; the peer's goes on.
    ///
    /// # Errors
    /// [`StreamError`] when the stream was reset or the tunnel lost.
    pub fn finish(&mut self) -> Result<(), StreamError> {
        self.send.send_data(Bytes::new(), true).map_err(|error| self.why(error))
    }

    /// Ends both ways at once. What has not left yet is thrown away.
    pub fn reset(&mut self, code: ErrorCode) {
        self.send.send_reset(Reason::from(code.0));
    }

    /// The next bytes, for which [`Self::release`] is due when they have left.
    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, StreamError>> {
        loop {
            match ready!(self.receive.poll_data(cx)) {
                // An empty frame says nothing, and an empty read would look like the end.
                Some(Ok(bytes)) if bytes.is_empty() => {}
                Some(Ok(bytes)) => return Poll::Ready(Ok(Some(bytes))),
                Some(Err(error)) => {
                    let error = self.judge(error.into());
                    // The peer has ended its way, and only says that it does not want ours (RFC 9113 §8.1).
                    let ended = error.says_no_error();
                    return Poll::Ready(if ended { Ok(None) } else { Err(error) });
                }
                None => return Poll::Ready(Ok(None)),
            }
        }
    }

    /// Lets the peer send `count` more bytes.
    pub(super) fn release(&mut self, count: usize) {
        // It fails only for more than was received, which the callers' counting excludes, or after the tunnel's end.
        let _ = self.receive.flow_control().release_capacity(count);
    }

    /// Waits until the peer takes bytes, and little is waiting for the socket.
    pub(super) fn poll_writable(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        // One byte of window shows that there is room. To reserve a whole read's worth would take the tunnel's window
        // from other streams; the excess of one read waits in memory instead.
        self.send.reserve_capacity(1);
        while self.send.capacity() == 0 {
            match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(self.judge(error.into()))),
                None => return self.poll_reset(cx).map(Err),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Hands `bytes` over without waiting. They must not be empty: a peer counts empty frames as misbehaviour.
    pub(super) fn send(&mut self, bytes: Bytes) -> Result<(), StreamError> {
        self.send.send_data(bytes, false).map_err(|error| self.why(error))
    }

    /// The reason of a reset, which `h2` tells only who asks for it, or else `error`.
    fn why(&mut self, error: h2::Error) -> StreamError {
        match self.poll_reset(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(reason) => reason,
            Poll::Pending => error.into(),
        }
    }

    /// Waits for the peer to reset the stream, or for the tunnel's end.
    pub(super) fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        ready!(self.send.poll_reset(cx)).map_or_else(
            |error| Poll::Ready(error.into()),
            |reason| Poll::Ready(self.judge(StreamError::Reset { code: reason.into() })),
        )
    }

    /// Once a peer has ended its way, a reset only takes back what it still accepts of ours. Envoy has the code for an
    /// internal error in it when its application ends first, where RFC 9113 §8.1 has that for no error; all that came
    /// before the end is good. `CONNECT_ERROR` remains what it is: a reset of the far TCP connection.
    fn judge(&self, error: StreamError) -> StreamError {
        match error {
            StreamError::Reset { code: ErrorCode::INTERNAL_ERROR } if self.conduct.has_ended() => {
                StreamError::Reset { code: ErrorCode::NO_ERROR }
            }
            StreamError::Reset { .. }
            | StreamError::Goaway { .. }
            | StreamError::Misbehaved { .. }
            | StreamError::Lost { .. } => error,
        }
    }
}

impl StreamError {
    /// Whether the peer reset the stream only because it wants no more of it.
    pub(super) fn says_no_error(&self) -> bool {
        matches!(self, Self::Reset { code: ErrorCode::NO_ERROR })
    }
}

impl ErrorCode {
    /// Nothing is wrong: the peer wants no more.
    pub const NO_ERROR: Self = Self(0);
    /// Something went wrong at the peer.
    pub const INTERNAL_ERROR: Self = Self(2);
    /// The stream was not begun and may be tried elsewhere.
    pub const REFUSED_STREAM: Self = Self(7);
    /// Nobody wants the stream any more.
    pub const CANCEL: Self = Self(8);
    /// The application's TCP connection was reset or failed (RFC 9113 §8.5).
    pub const CONNECT_ERROR: Self = Self(10);
    /// The peer does too much of something.
    pub const ENHANCE_YOUR_CALM: Self = Self(11);
}

impl From<Reason> for ErrorCode {
    fn from(reason: Reason) -> Self {
        Self(reason.into())
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 14] = [
            "NO_ERROR",
            "PROTOCOL_ERROR",
            "INTERNAL_ERROR",
            "FLOW_CONTROL_ERROR",
            "SETTINGS_TIMEOUT",
            "STREAM_CLOSED",
            "FRAME_SIZE_ERROR",
            "REFUSED_STREAM",
            "CANCEL",
            "COMPRESSION_ERROR",
            "CONNECT_ERROR",
            "ENHANCE_YOUR_CALM",
            "INADEQUATE_SECURITY",
            "HTTP_1_1_REQUIRED",
        ];
        match NAMES.get(self.0 as usize) {
            Some(name) => f.write_str(name),
            None => write!(f, "error code {}", self.0),
        }
    }
}

impl fmt::Debug for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<h2::Error> for StreamError {
    fn from(error: h2::Error) -> Self {
        let code = error.reason().map(ErrorCode::from);
        match code {
            Some(code) if error.is_remote() && error.is_go_away() => Self::Goaway { code },
            Some(code) if error.is_remote() && error.is_reset() => Self::Reset { code },
            Some(code) if error.is_library() => Self::Misbehaved { code },
            Some(_) | None => Self::Lost { source: Arc::new(into_io(error)) },
        }
    }
}
