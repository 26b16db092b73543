//! The server's side of one tunnel.
//!
//! In: an accepted TCP connection. Out: the streams that the peer opens, one by one. Whether a stream is allowed, and
//! what it is connected to, is decided elsewhere.

use std::{
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use h2::{
    Reason, RecvStream,
    server::{Connection, SendResponse},
};
use http::{HeaderMap, Method, Request, Response, StatusCode, request};
use tokio::{net::TcpStream, time::Sleep};

use super::{
    Authority, BadAuthority, ErrorCode, HboneConfig, Nuisance, Stream, StreamError,
    conduct::StreamConduct,
    connection::{self, Pinger, Tick},
    source::Source,
    transport::{Transport, Witness},
    turn,
};
use crate::identity::{Credential, HandshakeError, PeerChain, PeerError, Spiffe, peer_identity};

/// The server's side of one tunnel. It moves only while [`Tunnel::next`] is awaited; dropping it resets its streams.
pub struct Tunnel {
    connection: Connection<Transport, Bytes>,
    pinger: Pinger,
    witness: Rc<Witness>,
    peer: Spiffe,
    chain: Arc<PeerChain>,
    peer_addr: SocketAddr,
    state: State,
}

enum State {
    /// The first certificate of both ends expires when this ends.
    Open(Pin<Box<Sleep>>),
    /// GOAWAY was said; streams go on.
    Retired,
    /// GOAWAY was said; the tunnel is cut when this ends.
    Draining(Pin<Box<Sleep>>),
    Ended,
}

/// Why an accepted connection did not become a tunnel.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// The connection was gone before it began.
    #[error("the connection failed")]
    Connection {
        /// What the kernel said.
        source: io::Error,
    },
    /// The peer took too long.
    #[error("{peer_addr} did not finish the handshake within {limit:?}")]
    Timeout {
        /// Where it came from.
        peer_addr: SocketAddr,
        /// The deadline.
        limit: Duration,
    },
    /// TLS failed, on either side.
    #[error("the TLS handshake with {peer_addr} failed")]
    Handshake {
        /// Where it came from.
        peer_addr: SocketAddr,
        /// What was wrong.
        source: HandshakeError,
    },
    /// The peer did not offer HTTP/2 in ALPN.
    #[error("{peer_addr} does not speak HTTP/2")]
    NotHttp2 {
        /// Where it came from.
        peer_addr: SocketAddr,
    },
    /// The peer's certificate does not say who it is.
    #[error("{peer_addr} has no usable identity")]
    Unidentified {
        /// Where it came from.
        peer_addr: SocketAddr,
        /// What is wrong with the certificate.
        source: PeerError,
    },
    /// What came inside TLS was not the beginning of HTTP/2.
    #[error("{peer_addr} did not begin HTTP/2")]
    Http2 {
        /// Where it came from.
        peer_addr: SocketAddr,
        /// What happened.
        source: StreamError,
    },
}

/// Why a tunnel ended badly.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// The peer answered no PING.
    #[error("{peer_addr} did not answer a PING within {limit:?}")]
    Stalled {
        /// Where it came from.
        peer_addr: SocketAddr,
        /// The deadline.
        limit: Duration,
    },
    /// The peer did too much of something that brings nobody anything.
    #[error("{peer_addr} sent too many {nuisance}")]
    Nuisance {
        /// Where it came from.
        peer_addr: SocketAddr,
        /// What it was.
        nuisance: Nuisance,
    },
    /// The peer did something wrong, or its connection failed.
    #[error("the tunnel from {peer_addr} ended")]
    Ended {
        /// Where it came from.
        peer_addr: SocketAddr,
        /// What happened.
        source: StreamError,
    },
}

/// A request that a peer made. Dropping it unanswered resets the stream.
pub struct Incoming {
    /// Only CONNECT opens a tunnel.
    pub method: Method,
    /// What the peer wants to reach.
    pub authority: Result<Authority, BadAuthority>,
    /// The request's headers.
    pub headers: HeaderMap,
    /// The peer has given up so many requests that this one should be refused. What it has open need not suffer for it.
    pub is_excess: bool,
    pub(super) came: Instant,
    receive: RecvStream,
    conduct: StreamConduct,
    respond: SendResponse<Bytes>,
}

impl Tunnel {
    /// Does the handshakes of TLS and HTTP/2 as the identity of `credential`.
    ///
    /// # Errors
    /// [`AcceptError`], at the latest when `config.handshake_limit` is over.
    pub async fn accept(
        tcp: TcpStream,
        credential: &Credential,
        config: &HboneConfig,
    ) -> Result<Self, AcceptError> {
        let peer_addr = tcp.peer_addr().map_err(|source| AcceptError::Connection { source })?;
        let limit = config.handshake_limit;
        let work = Box::pin(async {
            let transport = Transport::accept(tcp, credential.server_config(), config.observer)
                .await
                .map_err(|source| AcceptError::Handshake { peer_addr, source: source.into() })?;
            if !transport.is_http2() {
                return Err(AcceptError::NotHttp2 { peer_addr });
            }
            let peer = peer_identity(transport.peer_certificates())
                .map_err(|source| AcceptError::Unidentified { peer_addr, source })?;
            let chain = credential
                .peer_chain(transport.peer_certificates())
                .map_err(|source| AcceptError::Unidentified { peer_addr, source })?;
            let chain = Arc::new(chain);
            let witness = transport.witness();
            let mut connection = connection::server(config, transport)
                .await
                .map_err(|error| AcceptError::Http2 { peer_addr, source: error.into() })?;
            let pinger = Pinger::new(config, Rc::clone(&witness), connection.ping_pong());
            let expiry = connection::valid_until(credential, &chain);
            let expiry = Box::pin(tokio::time::sleep_until(expiry.into()));
            Ok(Self {
                connection,
                pinger,
                witness,
                peer,
                chain,
                peer_addr,
                state: State::Open(expiry),
            })
        });
        tokio::time::timeout(limit, work)
            .await
            .unwrap_or(Err(AcceptError::Timeout { peer_addr, limit }))
    }

    /// Who the peer is.
    pub fn peer(&self) -> &Spiffe {
        &self.peer
    }

    /// The certificates by which the peer was verified.
    pub fn peer_chain(&self) -> &Arc<PeerChain> {
        &self.chain
    }

    /// Where the peer's connection comes from.
    pub fn peer_addr(&self) -> SocketAddr {
        self.peer_addr
    }

    /// The next request, or `None` after the tunnel's end. An error is the end, too.
    ///
    /// All of the tunnel's streams move only while this is awaited, so call it again at once and leave the request to
    /// another task. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Result<Incoming, TunnelError>> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// Tells the peer to open no more streams here. Those that are open go on for as long as they like.
    ///
    /// It happens by itself when the certificate of either end expires: a tunnel's new streams do not outlive what proved
    /// who is at its ends, and no connection ends for a certificate that was good when it began.
    pub fn retire(&mut self) {
        if matches!(self.state, State::Open(_)) {
            self.connection.graceful_shutdown();
            self.state = State::Retired;
        }
    }

    /// Tells the peer to open no more streams here. [`Tunnel::next`] goes on until they have ended, or until `deadline`,
    /// when it cuts them. The earliest of several deadlines counts.
    pub fn drain(&mut self, deadline: Instant) {
        let deadline = deadline.into();
        match &mut self.state {
            State::Ended => return,
            State::Draining(earlier) if earlier.deadline() <= deadline => return,
            State::Open(_) | State::Retired | State::Draining(_) => {}
        }
        self.connection.graceful_shutdown();
        self.state = State::Draining(Box::pin(tokio::time::sleep_until(deadline)));
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Incoming, TunnelError>>> {
        if matches!(self.state, State::Ended) {
            return Poll::Ready(None);
        }
        let polled = self.connection.poll_accept(cx);
        turn::sent();
        if let Some(nuisance) = self.witness.conduct.nuisance() {
            self.cut(cx, Reason::ENHANCE_YOUR_CALM);
            let peer_addr = self.peer_addr;
            return Poll::Ready(Some(Err(TunnelError::Nuisance { peer_addr, nuisance })));
        }
        match polled {
            Poll::Ready(Some(Ok((request, respond)))) => {
                return Poll::Ready(Some(Ok(Incoming::new(request, respond, &self.witness))));
            }
            Poll::Ready(Some(Err(error))) => {
                self.state = State::Ended;
                return Poll::Ready(self.judge(error).map(Err));
            }
            Poll::Ready(None) => {
                self.state = State::Ended;
                return Poll::Ready(None);
            }
            Poll::Pending => {}
        }
        if let State::Open(expiry) = &mut self.state
            && expiry.as_mut().poll(cx).is_ready()
        {
            self.retire();
            // Has the GOAWAY sent.
            cx.waker().wake_by_ref();
        }
        if let State::Draining(deadline) = &mut self.state
            && deadline.as_mut().poll(cx).is_ready()
        {
            self.cut(cx, Reason::NO_ERROR);
            return Poll::Ready(None);
        }
        while let Poll::Ready(tick) = self.pinger.poll_tick(cx) {
            if tick == Tick::Dead {
                self.cut(cx, Reason::NO_ERROR);
                let (peer_addr, limit) = (self.peer_addr, self.pinger.limit());
                return Poll::Ready(Some(Err(TunnelError::Stalled { peer_addr, limit })));
            }
        }
        Poll::Pending
    }

    /// `None`: nothing is wrong. The peer said that it goes, or closed when nothing was left but our goodbye.
    fn judge(&self, error: h2::Error) -> Option<TunnelError> {
        let source = StreamError::from(error);
        let harmless = match &source {
            StreamError::Goaway { code } => *code == ErrorCode::NO_ERROR,
            StreamError::Lost { source } => {
                source.kind() == io::ErrorKind::BrokenPipe && !self.connection.has_streams()
            }
            StreamError::Reset { .. } | StreamError::Misbehaved { .. } => false,
        };
        (!harmless).then_some(TunnelError::Ended { peer_addr: self.peer_addr, source })
    }

    /// Says GOAWAY, if the socket takes it at once.
    fn cut(&mut self, cx: &mut Context<'_>, reason: Reason) {
        self.state = State::Ended;
        self.connection.abrupt_shutdown(reason);
        // Sends what can be sent without waiting; what the peer does with it does not matter any more.
        let _ = self.connection.poll_closed(cx);
    }
}

impl Incoming {
    fn new(
        request: Request<RecvStream>,
        respond: SendResponse<Bytes>,
        witness: &Rc<Witness>,
    ) -> Self {
        let (request::Parts { method, uri, headers, .. }, receive) = request.into_parts();
        let authority = match uri.authority() {
            Some(authority) => Authority::parse(authority.as_str()),
            None => Err(BadAuthority::Missing),
        };
        let conduct = StreamConduct::new(witness, respond.stream_id());
        let (is_excess, came) = (!witness.conduct.takes_requests(), Instant::now());
        Self { method, authority, headers, is_excess, came, receive, conduct, respond }
    }

    /// Answers 200: the far end is connected.
    ///
    /// # Errors
    /// [`StreamError`] when the peer has reset the stream or is gone.
    pub fn accept(mut self, headers: HeaderMap) -> Result<Stream, StreamError> {
        let mut response = Response::new(());
        *response.headers_mut() = headers;
        let send = self
            .respond
            .send_response(response, false)
            .inspect_err(|_| self.conduct.abandoned(self.came.elapsed()))?;
        Ok(Stream::new(send, self.receive, self.conduct, None))
    }

    /// Answers `status` and ends the stream.
    pub fn refuse(mut self, status: StatusCode) {
        let mut response = Response::new(());
        *response.status_mut() = status;
        // It fails only when the peer has reset the stream or is gone, and then it needs no answer.
        if self.respond.send_response(response, true).is_err() {
            self.conduct.abandoned(self.came.elapsed());
        }
    }

    /// Where it comes from, which has its connections begun in turn with others.
    pub fn source(&self) -> &Source {
        self.conduct.source()
    }

    /// Ready when the peer has reset the stream or is gone: a dial on its behalf may stop.
    pub async fn abandoned(&mut self) -> StreamError {
        let ended = poll_fn(|cx| self.respond.poll_reset(cx)).await;
        self.conduct.abandoned(self.came.elapsed());
        match ended {
            Ok(reason) => StreamError::Reset { code: reason.into() },
            Err(error) => error.into(),
        }
    }
}
