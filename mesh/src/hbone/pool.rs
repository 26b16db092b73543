//! The tunnels that one pod has dialed from one thread.
//!
//! In: whom to reach and how to dial. Out: a [`Stream`] whose CONNECT was answered with success, or why not. Whom to
//! reach is decided elsewhere, and so is what the headers say.

use std::{future::poll_fn, io, net::SocketAddr, rc::Rc, sync::Arc, time::Instant};

use http::{HeaderMap, Method, Request, Uri, Version};
use tokio::net::TcpStream;

use super::{
    Authority, HboneConfig, OpenError, PoolKey, Stream, StreamError,
    client::{self, ClientTunnel, Place},
    slots::{Choice, Pooled, Slots},
};
use crate::identity::{Credential, PeerChain};

/// What is asked of the far end.
#[derive(Clone, Debug)]
pub struct ConnectRequest {
    /// What it is to reach.
    pub authority: Authority,
    /// `baggage`, `forwarded`, `traceparent`: made by the caller.
    pub headers: HeaderMap,
}

/// The tunnels that one pod has dialed from one thread. A clone is the same pool.
///
/// Works inside a [`LocalRuntime`](tokio::runtime::LocalRuntime) or a [`LocalSet`](tokio::task::LocalSet), where it
/// spawns one task for each tunnel. The task ends when the tunnel is out of use and its last stream has ended.
#[derive(Clone)]
pub struct Pool {
    slots: Rc<Slots<ClientTunnel>>,
    config: Rc<HboneConfig>,
}

impl Pool {
    /// A pool without tunnels.
    pub fn new(config: HboneConfig) -> Self {
        Self { slots: Slots::new(config.streams_per_tunnel), config: Rc::new(config) }
    }

    /// Opens a stream for `request` on a tunnel of `key`, dialing one if there is none with room.
    ///
    /// `dial` opens the TCP connection: the caller owns namespace, marks and deadline of that socket. Only one dial per
    /// key is under way at a time; others wait for it and share its failure. A stream that the peer says it did not
    /// begin is tried once more, on another tunnel.
    ///
    /// Out: the stream, and the headers of the peer's answer.
    ///
    /// # Errors
    /// [`OpenError`] says which step failed.
    pub async fn open(
        &self,
        key: &PoolKey,
        credential: &Arc<Credential>,
        request: impl Fn() -> ConnectRequest,
        dial: impl AsyncFn(SocketAddr) -> io::Result<TcpStream>,
    ) -> Result<(Stream, HeaderMap), OpenError> {
        let place = self.place(key, credential, &dial).await?;
        match self.connect(key.dial, place, request()).await {
            Err(error) if error.is_unprocessed() => {
                let place = self.place(key, credential, &dial).await?;
                self.connect(key.dial, place, request()).await
            }
            answered => answered,
        }
    }

    /// Refuses further streams. Each tunnel says GOAWAY and closes when its last stream has ended.
    pub fn close(&self) {
        self.slots.close();
    }

    /// Opens no more streams on the tunnels of the keys of which `is_such` holds. Streams that are open go on.
    pub fn retire(&self, is_such: impl Fn(&PoolKey) -> bool) {
        self.slots.retire_where(|tunnel| is_such(tunnel.key()));
    }

    /// Opens no more streams to the peers of which `is_such` holds. Streams that are open go on.
    pub fn retire_peers(&self, is_such: impl Fn(&PeerChain) -> bool) {
        self.slots.retire_where(|tunnel| is_such(tunnel.chain()));
    }

    /// Tunnels that take new streams.
    pub fn tunnels(&self) -> usize {
        self.slots.tunnels()
    }

    async fn place(
        &self,
        key: &PoolKey,
        credential: &Arc<Credential>,
        dial: impl AsyncFn(SocketAddr) -> io::Result<TcpStream>,
    ) -> Result<Place, OpenError> {
        loop {
            let chosen = self.slots.choose(key, credential.built_at(), Instant::now());
            let dialing = match chosen {
                Choice::Use(tunnel) => return Ok(tunnel.take_place()),
                Choice::Wait(dial) => {
                    dial.wait().await?;
                    continue;
                }
                Choice::Dial(dialing) => dialing,
                Choice::Closed => return Err(OpenError::Closed),
            };
            return match Box::pin(dial(key.dial)).await {
                Ok(tcp) => client::establish(&self.config, credential, tcp, dialing).await,
                Err(source) => {
                    let error = OpenError::Dial { dial: key.dial, source: Arc::new(source) };
                    dialing.fail(error.clone());
                    Err(error)
                }
            };
        }
    }

    async fn connect(
        &self,
        dial: SocketAddr,
        place: Place,
        request: ConnectRequest,
    ) -> Result<(Stream, HeaderMap), OpenError> {
        let Place { lease, mut sender } = place;
        let failed = |error: h2::Error| OpenError::of_stream(dial, StreamError::from(error));
        poll_fn(|cx| sender.poll_ready(cx)).await.map_err(failed)?;
        let (answer, send) = sender.send_request(http_request(request), false).map_err(failed)?;
        let conduct = lease.conduct(send.stream_id());
        let limit = self.config.answer_limit;
        let answer = match tokio::time::timeout(limit, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(lease.failure().unwrap_or_else(|| failed(error))),
            Err(_) => {
                let error = OpenError::Timeout { dial, limit };
                lease.unanswered(&self.slots, &error);
                return Err(error);
            }
        };
        lease.answered();
        let (head, receive) = answer.into_parts();
        if !head.status.is_success() {
            return Err(OpenError::Refused { dial, status: head.status });
        }
        Ok((Stream::new(send, receive, conduct, Some(lease)), head.headers))
    }
}

/// A CONNECT has an authority and neither scheme nor path (RFC 9113 §8.5).
pub(super) fn http_request(request: ConnectRequest) -> Request<()> {
    let uri = Uri::try_from(request.authority.to_string())
        .expect("an address or a DNS name with a port: the type guarantees it");
    let mut http = Request::new(());
    *http.method_mut() = Method::CONNECT;
    *http.version_mut() = Version::HTTP_2;
    *http.uri_mut() = uri;
    *http.headers_mut() = request.headers;
    http
}
