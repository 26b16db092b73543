//! Tunnels between two ends in one thread, over loopback TCP, with certificates of a [`LocalCa`].

mod copying;
mod floods;
mod hostile;
mod inner;
mod opening;
mod pooling;
mod slots;

use std::{
    cell::{Cell, RefCell},
    io,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use http::HeaderMap;
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::LocalRuntime,
    sync::mpsc,
    task::{JoinHandle, spawn_local},
};

use super::*;
use crate::{
    identity::{Credential, LocalCa, Spiffe},
    policy::originated,
};

/// Longer than anything here takes, shorter than a human's patience.
const PATIENCE: Duration = Duration::from_secs(20);

fn run(test: impl AsyncFnOnce()) {
    let runtime = LocalRuntime::new().unwrap();
    runtime.block_on(async { tokio::time::timeout(PATIENCE, test()).await.unwrap() });
}

fn spiffe(service_account: &str) -> Spiffe {
    Spiffe::new("cluster.local", "shop", service_account).unwrap()
}

/// `web` dials `cart`.
struct Mesh {
    web: Arc<Credential>,
    cart: Arc<Credential>,
}

impl Mesh {
    fn new() -> Self {
        let ca = LocalCa::new("cluster.local").unwrap();
        let credential = |name| Arc::new(ca.credential(&spiffe(name)).unwrap());
        Self { web: credential("web"), cart: credential("cart") }
    }
}

/// The accepting end: every request is handed out, together with the number of its tunnel.
struct Server {
    addr: SocketAddr,
    requests: mpsc::UnboundedReceiver<(usize, Incoming)>,
    /// How each tunnel ended, in order.
    ends: mpsc::UnboundedReceiver<String>,
    drain: Rc<RefCell<Vec<mpsc::UnboundedSender<std::time::Instant>>>>,
}

async fn serve(mesh: &Mesh, config: HboneConfig) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (request_sender, requests) = mpsc::unbounded_channel();
    let (end_sender, ends) = mpsc::unbounded_channel();
    let drain: Rc<RefCell<Vec<_>>> = Rc::default();
    let drains = Rc::clone(&drain);
    let credential = Arc::clone(&mesh.cart);
    spawn_local(async move {
        for number in 0.. {
            let (tcp, _) = listener.accept().await.unwrap();
            let (drain_sender, mut draining) = mpsc::unbounded_channel();
            drains.borrow_mut().push(drain_sender);
            let (request_sender, end_sender) = (request_sender.clone(), end_sender.clone());
            let (credential, config) = (Arc::clone(&credential), config.clone());
            spawn_local(async move {
                let mut tunnel = match Tunnel::accept(tcp, &credential, &config).await {
                    Ok(tunnel) => tunnel,
                    Err(error) => return end_sender.send(describe(&error)).unwrap_or_default(),
                };
                let end = loop {
                    tokio::select! {
                        next = tunnel.next() => match next {
                            Some(Ok(incoming)) => {
                                request_sender.send((number, incoming)).unwrap_or_default();
                            }
                            Some(Err(error)) => break describe(&error),
                            None => break "closed".to_owned(),
                        },
                        Some(deadline) = draining.recv() => tunnel.drain(deadline),
                    }
                };
                drop(tunnel);
                end_sender.send(end).unwrap_or_default();
            });
        }
    });
    Server { addr, requests, ends, drain }
}

impl Server {
    async fn accept(&mut self) -> (usize, Stream) {
        let (tunnel, incoming) = self.requests.recv().await.unwrap();
        (tunnel, incoming.accept(HeaderMap::new()).unwrap())
    }

    fn drain(&self, tunnel: usize, deadline: Duration) {
        self.drain.borrow()[tunnel].send(std::time::Instant::now() + deadline).unwrap();
    }
}

/// The dialing end, which counts its dials.
#[derive(Clone)]
struct Client {
    pool: Pool,
    key: PoolKey,
    credential: Arc<Credential>,
    dials: Rc<Cell<usize>>,
}

impl Client {
    fn new(mesh: &Mesh, dial: SocketAddr, config: HboneConfig) -> Self {
        Self {
            pool: Pool::new(config),
            key: PoolKey {
                source: mesh.web.spiffe().clone(),
                expected: Arc::new([mesh.cart.spiffe().clone()]),
                dial,
                workload: None,
            },
            credential: Arc::clone(&mesh.web),
            dials: Rc::default(),
        }
    }

    async fn open(&self) -> Result<Stream, OpenError> {
        self.open_with(HeaderMap::new()).await.map(|(stream, _)| stream)
    }

    async fn open_with(&self, headers: HeaderMap) -> Result<(Stream, HeaderMap), OpenError> {
        let authority = Authority::parse("10.0.0.2:80").unwrap();
        let request = ConnectRequest { authority, headers };
        let dial = async |addr| {
            self.dials.set(self.dials.get() + 1);
            TcpStream::connect(addr).await
        };
        self.pool.open(&self.key, &self.credential, || request.clone(), dial).await
    }

    fn opening(&self) -> JoinHandle<Result<Stream, OpenError>> {
        let client = self.clone();
        spawn_local(async move { client.open().await })
    }
}

/// Both ends of one stream.
async fn pair(client: &Client, server: &mut Server) -> (Stream, Stream) {
    let (near, (_, far)) = tokio::join!(client.open(), server.accept());
    (near.unwrap(), far)
}

/// An error with all its sources.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// The error of an opening, without the address.
fn refusal(client: &Client, opened: Result<Stream, OpenError>) -> String {
    let error = opened.err().expect("an error was expected");
    describe(&error).replace(&client.key.dial.to_string(), "DIAL")
}

/// Two ends of one TCP connection.
async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(addr), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

#[derive(Clone, Default)]
struct Counters {
    sent: Rc<Cell<u64>>,
    received: Rc<Cell<u64>>,
}

impl ByteCounters for Counters {
    fn sent(&self, count: u64) {
        self.sent.set(self.sent.get() + count);
    }

    fn received(&self, count: u64) {
        self.received.set(self.received.get() + count);
    }
}

/// Copies in a task of its own, until `abort` is told.
fn splicing(tcp: TcpStream, stream: Stream) -> (JoinHandle<Outcome>, mpsc::Sender<Abort>) {
    let (abort, mut aborted) = mpsc::channel(1);
    let counters = Counters::default();
    let task = spawn_local(async move {
        let abort = async move {
            match aborted.recv().await {
                Some(why) => why,
                None => std::future::pending().await,
            }
        };
        let outcome = splice(&originated(), tcp, stream, &counters, abort).await;
        let counted = (counters.sent.get(), counters.received.get());
        assert_eq!(counted, (outcome.sent_bytes, outcome.received_bytes));
        outcome
    });
    (task, abort)
}

/// An application, two proxies and another application.
struct Path {
    near_app: TcpStream,
    far_app: TcpStream,
    near_proxy: JoinHandle<Outcome>,
    far_proxy: JoinHandle<Outcome>,
    near_abort: mpsc::Sender<Abort>,
}

async fn path(client: &Client, server: &mut Server) -> Path {
    let (near, far) = pair(client, server).await;
    let (near_app, near_tcp) = tcp_pair().await;
    let (far_app, far_tcp) = tcp_pair().await;
    let (near_proxy, near_abort) = splicing(near_tcp, near);
    let (far_proxy, _) = splicing(far_tcp, far);
    Path { near_app, far_app, near_proxy, far_proxy, near_abort }
}

fn kind<T: std::fmt::Debug>(result: io::Result<T>) -> io::ErrorKind {
    result.unwrap_err().kind()
}
