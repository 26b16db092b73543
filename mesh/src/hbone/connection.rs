//! What both sides of a tunnel share: the settings of HTTP/2 and the question whether the peer is alive.

use std::{
    future::Future,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use h2::{Ping, PingPong, client, server};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::{Instant, Sleep},
};

use super::{
    HboneConfig,
    keepalive::{Keepalive, Verdict},
    transport::{Transport, Witness},
    windows::Windows,
};
use crate::identity::{Credential, PeerChain};

/// Bytes of one stream that may wait in memory for the socket. The data path reads more only when less is waiting, so a
/// stream whose peer does not read holds this and one buffer.
const SEND_BUFFER_BYTES: usize = 256 * 1024;

/// Headers of a request that a server reads and those of an answer that a client reads, as Istio has them.
const REQUEST_HEADER_BYTES: u32 = 64 * 1024;
const ANSWER_HEADER_BYTES: u32 = 16 * 1024;

/// What `h2` may hold on account of small DATA frames before it closes the tunnel. Its own choice, half the tunnel's
/// window, closes one whose applications are slow to read 100-byte messages; this takes some 200,000 unread ones.
const SMALL_FRAMES_BUDGET: usize = 32 << 20;

/// Streams that a peer may reset before we have looked at them (CVE-2023-44487), more than one burst of
/// impatient clients makes.
const UNSEEN_RESETS: usize = 50;

/// Streams that we may reset because the peer broke the rules, before the tunnel is closed (CVE-2025-8671).
const OWN_RESETS: usize = 200;

/// Streams that a client sends before the server has said how many it takes: the one that the tunnel was opened for.
pub(super) const STREAMS_BEFORE_SETTINGS: usize = 1;

/// Begins HTTP/2 as the client.
pub(super) async fn client<L: AsyncRead + AsyncWrite + Unpin>(
    config: &HboneConfig,
    mut transport: Transport<L>,
) -> Result<(client::SendRequest<Bytes>, client::Connection<Transport<L>, Bytes>), h2::Error> {
    let (stream_bytes, tunnel_bytes) = transport.keep(Windows::of(config)).sizes();
    client::Builder::new()
        .enable_push(false)
        .initial_window_size(stream_bytes)
        .initial_connection_window_size(tunnel_bytes)
        .max_frame_size(config.frame_bytes)
        .max_header_list_size(ANSWER_HEADER_BYTES)
        .max_send_buffer_size(SEND_BUFFER_BYTES)
        .data_frame_budget(SMALL_FRAMES_BUDGET)
        .max_local_error_reset_streams(Some(OWN_RESETS))
        .initial_max_send_streams(STREAMS_BEFORE_SETTINGS)
        .handshake(transport)
        .await
}

/// Begins HTTP/2 as the server.
pub(super) async fn server(
    config: &HboneConfig,
    mut transport: Transport,
) -> Result<server::Connection<Transport, Bytes>, h2::Error> {
    let (stream_bytes, tunnel_bytes) = transport.keep(Windows::of(config)).sizes();
    server::Builder::new()
        .initial_window_size(stream_bytes)
        .initial_connection_window_size(tunnel_bytes)
        .max_frame_size(config.frame_bytes)
        .max_header_list_size(REQUEST_HEADER_BYTES)
        .max_send_buffer_size(SEND_BUFFER_BYTES)
        .data_frame_budget(SMALL_FRAMES_BUDGET)
        .max_concurrent_streams(config.accepted_streams)
        .max_pending_accept_reset_streams(UNSEEN_RESETS)
        .max_local_error_reset_streams(Some(OWN_RESETS))
        .handshake(transport)
        .await
}

/// Sends the PINGs of one tunnel and tells when its peer is gone.
pub(super) struct Pinger {
    keepalive: Keepalive,
    limit: Duration,
    sleep: Pin<Box<Sleep>>,
    witness: Rc<Witness>,
    ping_pong: Option<PingPong>,
}

/// What [`Pinger::poll_tick`] found.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Tick {
    /// The peer is alive, or has been asked.
    Alive,
    /// The peer has sent nothing for too long.
    Dead,
}

impl Pinger {
    pub(super) fn new(
        config: &HboneConfig,
        witness: Rc<Witness>,
        ping_pong: Option<PingPong>,
    ) -> Self {
        let now = Instant::now();
        let keepalive = Keepalive::new(now.into_std(), config.ping_interval, config.ping_limit);
        let sleep = Box::pin(tokio::time::sleep_until(keepalive.timeout().into()));
        Self { keepalive, limit: config.ping_limit, sleep, witness, ping_pong }
    }

    /// How long a peer may stay silent after a PING.
    pub(super) fn limit(&self) -> Duration {
        self.limit
    }

    /// Ready once per timeout of the keep-alive.
    pub(super) fn poll_tick(&mut self, cx: &mut Context<'_>) -> Poll<Tick> {
        ready!(self.sleep.as_mut().poll(cx));
        self.witness.sample();
        let verdict =
            self.keepalive.handle_timeout(Instant::now().into_std(), self.witness.heard());
        self.sleep.as_mut().reset(self.keepalive.timeout().into());
        // Registers the new deadline: a `Sleep` that is reset wakes nobody until it is polled.
        if self.sleep.as_mut().poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
        match verdict {
            Verdict::Wait => Poll::Ready(Tick::Alive),
            Verdict::Ping => {
                self.ping(cx);
                Poll::Ready(Tick::Alive)
            }
            Verdict::Dead => Poll::Ready(Tick::Dead),
        }
    }

    fn ping(&mut self, cx: &mut Context<'_>) {
        if let Some(ping_pong) = &mut self.ping_pong {
            // An answer to the previous PING must be taken before the next is sent; if there was none, that PING is
            // still under way and asks the same question. A closed tunnel shows elsewhere.
            let _ = ping_pong.poll_pong(cx);
            let _ = ping_pong.send_ping(Ping::opaque());
        }
    }
}

/// When the first of both ends' certificates expires.
pub(super) fn valid_until(credential: &Credential, chain: &PeerChain) -> std::time::Instant {
    let expiry = credential.not_after().min(chain.not_after());
    let left = expiry.duration_since(SystemTime::now()).unwrap_or_default();
    std::time::Instant::now() + left
}

/// An error of HTTP/2 as one of input and output.
pub(super) fn into_io(error: h2::Error) -> io::Error {
    if error.is_io() {
        error.into_io().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into())
    } else {
        io::Error::other(error)
    }
}
