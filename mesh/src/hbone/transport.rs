//! Mutual TLS over one TCP connection, or over a stream of a tunnel.
//!
//! In: a connected socket, or what stands for one, and an identity's TLS configuration. Out: a [`Transport`] whose handshake is done. Which
//! identity the peer has is for the caller to judge.

use std::{
    cell::Cell,
    io,
    net::SocketAddr,
    os::fd::AsFd,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

use rustls::{ClientConfig, HandshakeKind, ServerConfig};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::{
    Handshaken, Observer, Role, SampledSocket, buffers::Buffer, conduct::Conduct, frames::Frames,
    rounds::Place, socket, source::Source, windows::Windows,
};

/// The one protocol spoken inside.
const ALPN: &[u8] = b"h2";

/// Bytes that may wait, sealed, for the socket. rustls' own 64 KiB would split a large frame into several writes.
const SEALED_BYTES: usize = 256 * 1024;

/// Ciphertext read before the streams that it is for get to run, while it is still in the core's cache.
const TURN_BYTES: usize = 256 * 1024;

/// Slices of a write that is cut: a frame is its head and its payload.
const CUT_SLICES: usize = 8;

/// TLS below HTTP/2, on TCP or on what `L` is.
pub(super) struct Transport<L = Socket> {
    tls: TlsStream<L>,
    frames: Frames,
    witness: Rc<Witness>,
    /// Given back with the tunnel.
    windows: Option<Windows>,
}

/// What HTTP/2 hides of the connection below it.
#[derive(Default)]
pub(super) struct Witness {
    pub(super) conduct: Conduct,
    /// Whose turn it must be for the connection to move something.
    pub(super) source: Source,
    heard: Cell<bool>,
    sample_due: Cell<bool>,
    failure: Cell<Option<io::Error>>,
}

impl Witness {
    /// Of a connection that moves what `source` sends and receives.
    pub(super) fn of(source: Source) -> Rc<Self> {
        Rc::new(Self { source, ..Self::default() })
    }

    /// The peer has sent something.
    pub(super) fn hear(&self) {
        self.heard.set(true);
    }

    /// Whether the peer has sent anything since this was last asked.
    pub(super) fn heard(&self) -> bool {
        self.heard.replace(false)
    }

    /// Asks for a sample of the socket when it is next read.
    pub(super) fn sample(&self) {
        self.sample_due.set(true);
    }

    /// What TLS or the socket said when it failed, once.
    pub(super) fn failure(&self) -> Option<io::Error> {
        self.failure.take()
    }
}

impl Transport {
    /// Connects as a client. The address is the key of the session cache; it is never sent as a server name.
    pub(super) async fn connect(
        tcp: TcpStream,
        dial: SocketAddr,
        config: Arc<ClientConfig>,
        observer: Observer,
    ) -> io::Result<Self> {
        let witness = Witness::of(Source::of(tcp.local_addr()?.ip()));
        let socket = Socket::new(tcp, &witness, observer, Role::Client)?;
        let name = ServerName::IpAddress(dial.ip().into());
        Self::connect_over(socket, name, config, witness, observer).await
    }

    /// Accepts as a server.
    pub(super) async fn accept(
        tcp: TcpStream,
        config: Arc<ServerConfig>,
        observer: Observer,
    ) -> io::Result<Self> {
        let began = Instant::now();
        let witness = Witness::of(Source::of(tcp.peer_addr()?.ip()));
        let socket = Socket::new(tcp, &witness, observer, Role::Server)?;
        let mut stream = TlsAcceptor::from(config).accept(socket).await?;
        let tls = stream.get_mut().1;
        tls.set_buffer_limit(Some(SEALED_BYTES));
        (observer.handshaken)(handshaken(tls, Role::Server, began));
        Ok(Self { tls: stream.into(), frames: Frames::of_client(), witness, windows: None })
    }
}

impl<L: AsyncRead + AsyncWrite + Unpin> Transport<L> {
    /// Connects as a client over `lower`. The name is the key of the session cache; it is never sent.
    pub(super) async fn connect_over(
        lower: L,
        name: ServerName<'static>,
        config: Arc<ClientConfig>,
        witness: Rc<Witness>,
        observer: Observer,
    ) -> io::Result<Self> {
        let began = Instant::now();
        let mut stream = TlsConnector::from(config).connect(name, lower).await?;
        let tls = stream.get_mut().1;
        tls.set_buffer_limit(Some(SEALED_BYTES));
        (observer.handshaken)(handshaken(tls, Role::Client, began));
        Ok(Self { tls: stream.into(), frames: Frames::of_server(), witness, windows: None })
    }

    /// Keeps the tunnel's windows as long as the tunnel lasts.
    pub(super) fn keep(&mut self, windows: Windows) -> &Windows {
        self.windows.insert(windows)
    }

    /// The peer's chain, leaf first.
    pub(super) fn peer_certificates(&self) -> &[CertificateDer<'static>] {
        self.tls.get_ref().1.peer_certificates().unwrap_or_default()
    }

    /// Whether the peer agreed to HTTP/2. One that says nothing of protocols may speak any.
    pub(super) fn is_http2(&self) -> bool {
        self.tls.get_ref().1.alpn_protocol() == Some(ALPN)
    }

    pub(super) fn witness(&self) -> Rc<Witness> {
        Rc::clone(&self.witness)
    }
}

/// The first `bytes` of what `slices` hold, or less where these are many.
fn cut<'a>(slices: &'a [io::IoSlice<'a>], bytes: usize) -> ([io::IoSlice<'a>; CUT_SLICES], usize) {
    let (mut cut, mut count, mut left) = ([io::IoSlice::new(&[]); CUT_SLICES], 0, bytes);
    for (slice, part) in slices.iter().zip(&mut cut) {
        *part = io::IoSlice::new(&slice[..left.min(slice.len())]);
        left -= part.len();
        count += 1;
        if left == 0 {
            break;
        }
    }
    (cut, count)
}

fn handshaken<D>(tls: &rustls::ConnectionCommon<D>, role: Role, began: Instant) -> Handshaken {
    let group = tls.negotiated_key_exchange_group().and_then(|group| group.name().as_str());
    Handshaken {
        role,
        took: began.elapsed(),
        group: group.unwrap_or("unknown"),
        resumed: tls.handshake_kind() == Some(HandshakeKind::Resumed),
    }
}

impl<L: AsyncRead + AsyncWrite + Unpin> AsyncRead for Transport<L> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        target: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = target.filled().len();
        let done = ready!(Pin::new(&mut this.tls).poll_read(cx, target));
        this.frames.read(&target.filled()[before..], |frame| this.witness.conduct.saw(frame));
        Poll::Ready(done.map_err(|error| {
            let seen = io::Error::new(error.kind(), error.to_string());
            this.witness.failure.set(Some(error));
            seen
        }))
    }
}

impl<L: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Transport<L> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let turn = ready!(this.witness.source.poll_turn(cx, Place::First, bytes.len()));
        let count =
            ready!(Pin::new(&mut this.tls).poll_write(cx, &bytes[..turn.min(bytes.len())]))?;
        this.witness.source.moved(count);
        Poll::Ready(Ok(count))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let bytes = slices.iter().map(|slice| slice.len()).sum();
        let turn = ready!(this.witness.source.poll_turn(cx, Place::First, bytes));
        let tls = Pin::new(&mut this.tls);
        let count = if bytes <= turn {
            ready!(tls.poll_write_vectored(cx, slices))?
        } else {
            let (cut, count) = cut(slices, turn);
            ready!(tls.poll_write_vectored(cx, &cut[..count]))?
        };
        this.witness.source.moved(count);
        Poll::Ready(Ok(count))
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}

/// Reads ciphertext in pieces as large as the kernel has.
///
/// rustls asks for 4 KiB at a time, which would be a system call for each. What it has not taken yet waits in a buffer
/// of the thread, which goes back when it is empty: before every wait.
pub(super) struct Socket {
    tcp: TcpStream,
    unread: Option<Unread>,
    witness: Rc<Witness>,
    /// Bytes read since the task last let others run.
    turn_bytes: usize,
    /// Bytes of the last read.
    last_bytes: usize,
    observer: Observer,
    role: Role,
    /// The observer's.
    counted: u32,
}

struct Unread {
    buffer: Buffer,
    start: usize,
    end: usize,
}

impl Socket {
    fn new(
        tcp: TcpStream,
        witness: &Rc<Witness>,
        observer: Observer,
        role: Role,
    ) -> io::Result<Self> {
        // Nagle would hold a small frame back until the peer's delayed ACK, up to 40 ms on Linux.
        tcp.set_nodelay(true)?;
        let witness = Rc::clone(witness);
        Ok(Self {
            tcp,
            unread: None,
            witness,
            turn_bytes: 0,
            last_bytes: 0,
            observer,
            role,
            counted: 0,
        })
    }

    fn sample(&mut self) {
        let (socket, counted) = (self.tcp.as_fd(), &mut self.counted);
        (self.observer.sampled)(SampledSocket { socket, role: self.role, counted });
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Unread>> {
        if self.turn_bytes >= TURN_BYTES {
            self.turn_bytes = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if self.tcp.poll_read_ready(cx)?.is_pending() {
            self.turn_bytes = 0;
            return Poll::Pending;
        }
        let turn = ready!(self.witness.source.poll_turn(cx, Place::Last, self.last_bytes));
        let mut buffer = Buffer::take();
        let wanted = turn.min(buffer.len());
        let end = ready!(socket::poll_read(&self.tcp, cx, &mut buffer[..wanted]))?;
        self.witness.source.moved(end);
        self.last_bytes = end;
        self.witness.hear();
        if self.witness.sample_due.take() {
            self.sample();
        }
        self.turn_bytes += end;
        Poll::Ready(Ok(Unread { buffer, start: 0, end }))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.sample();
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        target: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let mut unread = match this.unread.take() {
            Some(unread) => unread,
            None => ready!(this.poll_fill(cx))?,
        };
        let count = target.remaining().min(unread.end - unread.start);
        target.put_slice(&unread.buffer[unread.start..unread.start + count]);
        unread.start += count;
        if unread.start < unread.end {
            this.unread = Some(unread);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        socket::poll_write(&self.tcp, cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        socket::poll_write_vectored(&self.tcp, cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(socket::finish(&self.tcp))
    }
}
