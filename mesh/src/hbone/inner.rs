//! A tunnel inside a tunnel: to somebody behind the gateway of another network, who answers for himself.
//!
//! In: an open stream to the gateway, whom to expect behind it, the request. Out: a [`Stream`] whose CONNECT was answered
//! with success, and who answered. Each carries one connection and is never shared: a gateway chooses for each outer
//! stream who is behind it.

use std::{
    future::poll_fn, net::SocketAddr, pin::Pin, rc::Rc, sync::Arc, task::Poll, time::Duration,
};

use bytes::Bytes;
use h2::client::{Connection, SendRequest};
use http::HeaderMap;
use rustls_pki_types::ServerName;
use tokio::time::timeout;

use super::{
    Authority, ConnectRequest, HboneConfig, OpenError, Stream, StreamError,
    channel::Channel,
    conduct::StreamConduct,
    connection::{self, Pinger, Tick},
    pool::http_request,
    transport::{Transport, Witness},
};
use crate::identity::{Credential, HandshakeError, PeerChain, PeerError, Spiffe};

/// A peer that does not end its way of the outer stream within this time after we have ended ours is cut off. Until then
/// the gateway may still be passing on what we sent last, which a reset would destroy.
const LINGER_LIMIT: Duration = Duration::from_secs(10);

/// A tunnel inside a tunnel.
pub struct Inner {
    /// The connection through both.
    pub stream: Stream,
    /// The headers of the answer.
    pub headers: HeaderMap,
    /// Who answered.
    pub peer: Spiffe,
}

/// Opens a tunnel inside `outer`, which was opened on a tunnel to the gateway at `dial`, to one of `behind`.
///
/// The deadlines of a handshake and of an answer hold as they do for the outer tunnel. Dropping the stream, or its end,
/// ends both tunnels' streams; so does a failure here.
///
/// # Errors
/// [`OpenError`] says which step failed.
pub async fn open_inner(
    outer: Stream,
    dial: SocketAddr,
    behind: &Arc<[Spiffe]>,
    credential: &Credential,
    request: ConnectRequest,
    config: &HboneConfig,
) -> Result<Inner, OpenError> {
    let witness = Witness::of(outer.source().clone());
    let channel = Channel::new(outer, Rc::clone(&witness));
    let limit = config.handshake_limit;
    let name = session_name(&request.authority, dial);
    let work =
        Box::pin(handshake(config, credential, channel.clone(), &witness, (dial, name), behind));
    let (sender, mut connection, peer, chain) =
        timeout(limit, work).await.unwrap_or(Err(OpenError::HandshakeTimeout { dial, limit }))?;
    let pinger = Pinger::new(config, Rc::clone(&witness), connection.ping_pong());
    tokio::task::spawn_local(drive(connection, pinger, Rc::clone(&witness), channel));
    let (stream, headers) = connect(sender, request, dial, config.answer_limit, &witness).await?;
    Ok(Inner { stream: stream.with_peer(chain), headers, peer })
}

/// Sessions are remembered by the service: who is behind a gateway does not know those of the gateway.
fn session_name(authority: &Authority, dial: SocketAddr) -> ServerName<'static> {
    match authority {
        Authority::Host { name, .. } => ServerName::try_from(name.as_str().to_owned())
            .unwrap_or(ServerName::IpAddress(dial.ip().into())),
        Authority::Address(_) => ServerName::IpAddress(dial.ip().into()),
    }
}

type Lower = Transport<Channel>;
type Handshaken = (SendRequest<Bytes>, Connection<Lower, Bytes>, Spiffe, PeerChain);

async fn handshake(
    config: &HboneConfig,
    credential: &Credential,
    channel: Channel,
    witness: &Rc<Witness>,
    (dial, name): (SocketAddr, ServerName<'static>),
    behind: &Arc<[Spiffe]>,
) -> Result<Handshaken, OpenError> {
    let transport = Transport::connect_over(
        channel,
        name,
        credential.client_config(),
        Rc::clone(witness),
        config.observer,
    )
    .await
    .map_err(|error| OpenError::Handshake { dial, source: Arc::new(error.into()) })?;
    if !transport.is_http2() {
        return Err(OpenError::NotHttp2 { dial });
    }
    let peer = match credential.expect_peer(transport.peer_certificates(), behind) {
        Ok(peer) => peer,
        Err(PeerError::WrongPeer { found, .. }) => {
            return Err(OpenError::WrongPeer { dial, found, expected: Arc::clone(behind) });
        }
        Err(source) => return Err(OpenError::Unidentified { dial, source }),
    };
    let chain = credential
        .peer_chain(transport.peer_certificates())
        .map_err(|source| OpenError::Unidentified { dial, source })?;
    let (sender, connection) = connection::client(config, transport)
        .await
        .map_err(|error| OpenError::of_stream(dial, StreamError::from(error)))?;
    Ok((sender, connection, peer, chain))
}

/// Asks for the one stream. The sender goes, so that the tunnel ends with it.
async fn connect(
    mut sender: SendRequest<Bytes>,
    request: ConnectRequest,
    dial: SocketAddr,
    limit: Duration,
    witness: &Rc<Witness>,
) -> Result<(Stream, HeaderMap), OpenError> {
    // A TLS 1.3 server refuses a client's certificate when the client has already finished.
    let failed = |error: h2::Error| match witness.failure() {
        Some(failure) => {
            OpenError::Handshake { dial, source: Arc::new(HandshakeError::from(failure)) }
        }
        None => OpenError::of_stream(dial, StreamError::from(error)),
    };
    poll_fn(|cx| sender.poll_ready(cx)).await.map_err(failed)?;
    let (answer, send) = sender.send_request(http_request(request), false).map_err(failed)?;
    let conduct = StreamConduct::new(witness, send.stream_id());
    drop(sender);
    let answer = match timeout(limit, answer).await {
        Ok(answer) => answer.map_err(failed)?,
        Err(_) => return Err(OpenError::Timeout { dial, limit }),
    };
    let (head, receive) = answer.into_parts();
    if !head.status.is_success() {
        return Err(OpenError::Refused { dial, status: head.status });
    }
    Ok((Stream::new(send, receive, conduct, None), head.headers))
}

/// The task of one inner tunnel: moves its frames and sends PINGs until its stream has ended and all has been sent.
///
/// The outer tunnel's PINGs go no farther than the gateway, so this one has its own.
async fn drive(
    mut connection: Connection<Lower, Bytes>,
    mut pinger: Pinger,
    witness: Rc<Witness>,
    channel: Channel,
) {
    let ended_well = poll_fn(|cx| {
        if let Poll::Ready(ended) = Pin::new(&mut connection).poll(cx) {
            return Poll::Ready(ended.is_ok());
        }
        if witness.conduct.nuisance().is_some() {
            return Poll::Ready(false);
        }
        while let Poll::Ready(tick) = pinger.poll_tick(cx) {
            if tick == Tick::Dead {
                return Poll::Ready(false);
            }
        }
        Poll::Pending
    })
    .await;
    if ended_well {
        // If it does not end, there is nothing left that a reset could destroy.
        let _ = timeout(LINGER_LIMIT, channel.drained()).await;
    }
    // Dropping the connection and the channel resets what has not ended: the stream, and the outer one.
}
