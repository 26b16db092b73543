//! One tunnel that we dialed, and the task that drives it.
//!
//! The pool and the streams hold the tunnel; the task holds only a weak reference, so that the tunnel says GOAWAY and
//! closes when the pool has let it go and its last stream has ended.

use std::{
    cell::{Cell, RefCell},
    future::Future,
    io,
    net::SocketAddr,
    num::NonZeroU32,
    pin::Pin,
    rc::{Rc, Weak},
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use h2::client::{Connection, SendRequest};
use tokio::{net::TcpStream, time::Instant};

use super::{
    ErrorCode, HboneConfig, OpenError, StreamError,
    conduct::StreamConduct,
    connection::{self, Pinger, STREAMS_BEFORE_SETTINGS, Tick},
    slots::{Dialing, PoolKey, Pooled, Proof, Slots},
    transport::{Transport, Witness},
    turn,
};
use crate::identity::{Credential, HandshakeError, PeerChain, PeerError};

/// One tunnel that we dialed.
pub(super) struct ClientTunnel {
    key: PoolKey,
    /// The peer's certificates.
    chain: Arc<PeerChain>,
    proof: Proof,
    witness: Rc<Witness>,
    sender: SendRequest<Bytes>,
    streams: Cell<u32>,
    unused_since: Cell<Instant>,
    /// Until the peer's SETTINGS have come, only the stream that the tunnel was dialed for uses it.
    dialing: Cell<Option<Dialing<ClientTunnel>>>,
    settled: Cell<bool>,
    /// Why the tunnel ended before it settled.
    failure: RefCell<Option<OpenError>>,
}

/// A place for one stream.
pub(super) struct Place {
    pub(super) lease: Lease,
    pub(super) sender: SendRequest<Bytes>,
}

/// Keeps a place, until dropped.
pub(super) struct Lease(Rc<ClientTunnel>);

impl Pooled for ClientTunnel {
    fn key(&self) -> &PoolKey {
        &self.key
    }

    /// Before it has settled, that is for its task to find out.
    fn is_open(&self) -> bool {
        if !self.settled.get() {
            return true;
        }
        let mut sender = self.sender.clone();
        !matches!(sender.poll_ready(&mut Context::from_waker(Waker::noop())), Poll::Ready(Err(_)))
    }

    fn has_room(&self, limit: NonZeroU32) -> bool {
        let streams = self.streams.get();
        let peer_limit = self.sender.current_max_send_streams();
        self.settled.get() && streams < limit.get() && (streams as usize) < peer_limit
    }

    fn proof(&self) -> Proof {
        self.proof
    }
}

impl ClientTunnel {
    /// The peer's certificates.
    pub(super) fn chain(&self) -> &Arc<PeerChain> {
        &self.chain
    }

    /// A place for one stream.
    pub(super) fn take_place(self: &Rc<Self>) -> Place {
        self.streams.set(self.streams.get() + 1);
        Place { lease: Lease(Rc::clone(self)), sender: self.sender.clone() }
    }

    /// The peer has said what it allows: others may use the tunnel.
    fn settle(&self) {
        self.settled.set(true);
        drop(self.dialing.take());
    }

    /// Takes the tunnel out of use. Those who wait for it, if it has not settled, fail with `error`.
    fn retire(&self, slots: &Weak<Slots<Self>>, error: impl FnOnce() -> OpenError) {
        if let Some(slots) = slots.upgrade() {
            slots.retire(self);
        }
        if let Some(dialing) = self.dialing.take() {
            let error = error();
            self.failure.replace(Some(error.clone()));
            dialing.fail(error);
        }
    }

    fn has_expired(&self) -> bool {
        self.proof.valid_until <= Instant::now().into_std()
    }

    fn is_unused_for(&self, limit: Duration) -> bool {
        self.streams.get() == 0 && self.unused_since.get().elapsed() >= limit
    }
}

impl Lease {
    /// The peer answered on this tunnel.
    pub(super) fn answered(&self) {
        self.0.settle();
    }

    /// The peer did not answer. A tunnel that has no other stream is of no use to anyone.
    pub(super) fn unanswered(&self, slots: &Rc<Slots<ClientTunnel>>, error: &OpenError) {
        if self.0.streams.get() == 1 {
            self.0.retire(&Rc::downgrade(slots), || error.clone());
        }
    }

    /// The peer's certificates.
    pub(super) fn chain(&self) -> &Arc<PeerChain> {
        self.0.chain()
    }

    /// How the peer behaves in a stream of the tunnel.
    pub(super) fn conduct(&self, stream: h2::StreamId) -> StreamConduct {
        StreamConduct::new(&self.0.witness, stream)
    }

    /// Why the tunnel ended before the peer showed that it accepts it.
    pub(super) fn failure(&self) -> Option<OpenError> {
        self.0.failure.borrow().clone()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let left = self.0.streams.get() - 1;
        self.0.streams.set(left);
        if left == 0 {
            self.0.unused_since.set(Instant::now());
        }
    }
}

/// Makes a tunnel on a connected socket and starts the task that drives it. The place is for the stream that the tunnel
/// was dialed for; others wait until the peer's SETTINGS have come.
pub(super) async fn establish(
    config: &HboneConfig,
    credential: &Arc<Credential>,
    tcp: TcpStream,
    dialing: Dialing<ClientTunnel>,
) -> Result<Place, OpenError> {
    let made = Box::pin(handshake(config, credential, tcp, dialing.key())).await;
    let (sender, mut connection, witness, chain) = match made {
        Ok(made) => made,
        Err(error) => {
            dialing.fail(error.clone());
            return Err(error);
        }
    };
    let tunnel = Rc::new(ClientTunnel {
        key: dialing.key().clone(),
        proof: Proof {
            credential_built_at: credential.built_at(),
            valid_until: connection::valid_until(credential, &chain),
        },
        chain: Arc::new(chain),
        witness: Rc::clone(&witness),
        sender,
        streams: Cell::new(0),
        unused_since: Cell::new(Instant::now()),
        dialing: Cell::new(None),
        settled: Cell::new(false),
        failure: RefCell::new(None),
    });
    let driver = Driver {
        pinger: Pinger::new(config, Rc::clone(&witness), connection.ping_pong()),
        idle_limit: config.idle_limit,
        witness,
        settled: false,
        tunnel: Rc::downgrade(&tunnel),
        slots: dialing.slots(),
        connection,
    };
    let place = tunnel.take_place();
    dialing.add(&tunnel);
    tunnel.dialing.set(Some(dialing));
    tokio::task::spawn_local(driver);
    Ok(place)
}

type Handshaken = (SendRequest<Bytes>, Connection<Transport, Bytes>, Rc<Witness>, PeerChain);

/// TLS, who the peer is, and our half of HTTP/2's beginning.
async fn handshake(
    config: &HboneConfig,
    credential: &Credential,
    tcp: TcpStream,
    key: &PoolKey,
) -> Result<Handshaken, OpenError> {
    let dial = key.dial;
    let limit = config.handshake_limit;
    let work = async {
        let transport = Transport::connect(tcp, dial, credential.client_config(), config.observer)
            .await
            .map_err(|error| OpenError::Handshake { dial, source: Arc::new(error.into()) })?;
        if !transport.is_http2() {
            return Err(OpenError::NotHttp2 { dial });
        }
        match credential.expect_peer(transport.peer_certificates(), &key.expected) {
            Ok(_) => {}
            Err(PeerError::WrongPeer { found, .. }) => {
                let expected = Arc::clone(&key.expected);
                return Err(OpenError::WrongPeer { dial, found, expected });
            }
            Err(source) => return Err(OpenError::Unidentified { dial, source }),
        }
        let chain = credential
            .peer_chain(transport.peer_certificates())
            .map_err(|source| OpenError::Unidentified { dial, source })?;
        let witness = transport.witness();
        let (sender, connection) = connection::client(config, transport)
            .await
            .map_err(|error| OpenError::of_stream(dial, StreamError::from(error)))?;
        Ok((sender, connection, witness, chain))
    };
    tokio::time::timeout(limit, work)
        .await
        .unwrap_or(Err(OpenError::HandshakeTimeout { dial, limit }))
}

/// The task of one tunnel: moves its frames, sends PINGs, and takes it out of use when it is dead or unused.
struct Driver {
    connection: Connection<Transport, Bytes>,
    pinger: Pinger,
    idle_limit: Duration,
    witness: Rc<Witness>,
    settled: bool,
    tunnel: Weak<ClientTunnel>,
    slots: Weak<Slots<ClientTunnel>>,
}

impl Driver {
    /// Takes the tunnel out of use. Before it has settled, a failure is one of the handshake: a TLS 1.3 server refuses
    /// a client's certificate when the client has already finished.
    fn end(&self, error: impl FnOnce(SocketAddr) -> OpenError) {
        let Some(tunnel) = self.tunnel.upgrade() else { return };
        let dial = tunnel.key.dial;
        tunnel.retire(&self.slots, || match self.witness.failure() {
            Some(failure) => {
                OpenError::Handshake { dial, source: Arc::new(HandshakeError::from(failure)) }
            }
            None => error(dial),
        });
    }
}

impl Future for Driver {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        let polled = Pin::new(&mut this.connection).poll(cx);
        turn::sent();
        if let Poll::Ready(ended) = polled {
            this.end(|dial| match ended {
                Ok(()) => {
                    let source = Arc::new(io::ErrorKind::UnexpectedEof.into());
                    OpenError::Lost { dial, source }
                }
                Err(error) => OpenError::of_stream(dial, error.into()),
            });
            return Poll::Ready(());
        }
        if this.witness.conduct.nuisance().is_some() {
            this.end(|dial| OpenError::Misbehaved { dial, code: ErrorCode::ENHANCE_YOUR_CALM });
            return Poll::Ready(());
        }
        if !this.settled && this.connection.max_concurrent_send_streams() != STREAMS_BEFORE_SETTINGS
        {
            this.settled = true;
            if let Some(tunnel) = this.tunnel.upgrade() {
                tunnel.settle();
            }
        }
        while let Poll::Ready(tick) = this.pinger.poll_tick(cx) {
            match tick {
                Tick::Alive => {
                    if let Some(tunnel) = this.tunnel.upgrade()
                        && (tunnel.is_unused_for(this.idle_limit) || tunnel.has_expired())
                        && let Some(slots) = this.slots.upgrade()
                    {
                        slots.retire(&tunnel);
                    }
                }
                Tick::Dead => {
                    let limit = this.pinger.limit();
                    this.end(|dial| OpenError::Timeout { dial, limit });
                    // Dropping the connection ends its streams with an error.
                    return Poll::Ready(());
                }
            }
        }
        Poll::Pending
    }
}
