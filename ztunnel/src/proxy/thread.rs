//! The data threads: one per CPU, each with its own runtime, listeners, tunnel pools and metrics.
//!
//! In: pods to serve, and accepted tunnels dealt by other threads. Out: connections served. Pods leave by their own
//! `removed` token, everything by the daemon's `draining` and `ending` tokens.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    io,
    net::SocketAddr,
    rc::Rc,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use mesh::{
    hbone::{HboneConfig, Pool, Stream, take_turns},
    identity::PeerChain,
    telemetry::{DialedFor, Reporter, TrafficMetrics},
};
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::{LocalOptions, RuntimeMetrics},
    sync::mpsc,
    task::spawn_local,
};

use super::{
    Node, Pod,
    accept::{Freed, Kind, accept},
    denials::Denials,
    dial,
    dry_run::DryRuns,
    inbound, judge,
    live::Live,
    outbound, plaintext,
    revocation::{Peers, Standing},
    share::{Held, Share},
    socks,
    stale::retire_stale,
};
use crate::{capture::DnsListeners, dns, pods::PodUid};

/// Orders a thread may be behind with. A full queue means a thread that does not run: a pod is then refused, a tunnel
/// stays with the thread that accepted it.
const QUEUE: usize = 1024;
/// Events polled between two looks at the sockets. Fewer than tokio's 61, so that a bulk transfer holds small messages
/// up for less time.
const EVENT_INTERVAL: u32 = 8;

/// The data threads do not start.
#[derive(Debug, thiserror::Error)]
#[error("starting data thread {index}: {source}")]
pub struct StartError {
    index: usize,
    source: io::Error,
}

/// A thread does not take orders.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("data thread {index} does not take pods")]
pub(super) struct Stuck {
    index: usize,
}

/// All data threads.
pub struct DataThreads {
    handles: Arc<[Handle]>,
    joins: Mutex<Vec<JoinHandle<()>>>,
    runtimes: Vec<RuntimeMetrics>,
}

/// What others hold of a thread.
#[derive(Clone)]
struct Handle {
    orders: mpsc::Sender<Order>,
    /// Open streams and tunnels.
    load: Arc<AtomicUsize>,
}

enum Order {
    Serve { pod: Arc<Pod>, listeners: ThreadListeners },
    Dns { pod: Arc<Pod>, listeners: DnsListeners },
    Tunnel { pod: Arc<Pod>, tcp: std::net::TcpStream, peer: SocketAddr, held: Held },
}

/// One thread's listeners of a pod, non-blocking. What is not captured has none of some kinds.
#[derive(Default)]
pub(super) struct ThreadListeners {
    pub(super) outbound: Option<std::net::TcpListener>,
    pub(super) plaintext: Option<std::net::TcpListener>,
    pub(super) hbone: Option<std::net::TcpListener>,
    pub(super) socks: Option<std::net::TcpListener>,
}

/// One data thread.
pub(super) struct DataThread {
    pub(super) node: Arc<Node>,
    pub(super) metrics: TrafficMetrics,
    pub(super) live: Rc<Live>,
    pub(super) dry_runs: DryRuns,
    peers: Rc<Peers>,
    /// Tells those who wait for descriptors that a connection has ended.
    pub(super) freed: Rc<Freed>,
    pub(super) denials: Denials,
    index: usize,
    all: Arc<[Handle]>,
    pods: RefCell<BTreeMap<PodUid, Rc<LocalPod>>>,
}

/// A pod as one thread serves it.
pub(super) struct LocalPod {
    pub(super) pod: Arc<Pod>,
    pub(super) pool: Pool,
    /// Limits and deadlines of its tunnels, and the budget that they share: for every tunnel of the pod, one inside
    /// another included.
    pub(super) hbone: HboneConfig,
}

/// Counts a stream or tunnel of a thread while it lives.
pub(super) struct Load {
    load: Arc<AtomicUsize>,
    freed: Rc<Freed>,
}

impl DataThreads {
    /// Starts `count` threads.
    ///
    /// # Errors
    /// [`StartError`]: the system gives no thread or no event queue.
    pub fn start(node: &Arc<Node>, count: usize) -> Result<Self, StartError> {
        let (handles, queues): (Vec<_>, Vec<_>) = (0..count)
            .map(|_| {
                let (orders, queue) = mpsc::channel(QUEUE);
                (Handle { orders, load: Arc::default() }, queue)
            })
            .unzip();
        let handles: Arc<[Handle]> = handles.into();
        let started = queues
            .into_iter()
            .enumerate()
            .map(|(index, queue)| {
                start(node, &handles, index, queue).map_err(|source| StartError { index, source })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let (joins, runtimes) = started.into_iter().unzip();
        Ok(Self { handles, joins: Mutex::new(joins), runtimes })
    }

    /// What their runtimes do.
    pub fn runtimes(&self) -> Vec<RuntimeMetrics> {
        self.runtimes.clone()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.handles.len()
    }

    /// Gives each thread its listeners of a pod.
    pub(super) fn serve(
        &self,
        pod: &Arc<Pod>,
        listeners: Vec<ThreadListeners>,
    ) -> Result<(), Stuck> {
        for (index, (handle, listeners)) in self.handles.iter().zip(listeners).enumerate() {
            let order = Order::Serve { pod: pod.clone(), listeners };
            handle.orders.try_send(order).map_err(|_| Stuck { index })?;
        }
        Ok(())
    }

    /// The thread for what one thread does of a pod: pods are dealt by their namespaces' cookies, which are counted up.
    pub(super) fn of(&self, pod: &Pod) -> usize {
        usize::try_from(pod.netns.cookie()).unwrap_or(0) % self.count()
    }

    /// Gives one thread the pod's queries.
    pub(super) fn serve_dns(&self, pod: &Arc<Pod>, listeners: DnsListeners) -> Result<(), Stuck> {
        let index = self.of(pod);
        let order = Order::Dns { pod: pod.clone(), listeners };
        self.handles[index].orders.try_send(order).map_err(|_| Stuck { index })
    }

    /// Waits for the threads, which end when the node's `ending` token is cancelled.
    pub fn join(&self) {
        let joins = std::mem::take(&mut *self.joins.lock().unwrap_or_else(PoisonError::into_inner));
        for join in joins {
            if join.join().is_err() {
                tracing::error!("a data thread panicked");
            }
        }
    }
}

fn start(
    node: &Arc<Node>,
    all: &Arc<[Handle]>,
    index: usize,
    queue: mpsc::Receiver<Order>,
) -> io::Result<(JoinHandle<()>, RuntimeMetrics)> {
    let (node, all) = (node.clone(), all.clone());
    // The runtime belongs to its thread, so whether there is one is told from there.
    let (tell, told) = std::sync::mpsc::sync_channel(1);
    let join = std::thread::Builder::new().name(format!("data-{index}")).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .event_interval(EVENT_INTERVAL)
            .build_local(LocalOptions::default());
        let runtime = match runtime {
            Ok(runtime) => runtime,
            Err(error) => return drop(tell.send(Err(error))),
        };
        let _ = tell.send(Ok(runtime.metrics()));
        let thread = Rc::new(DataThread {
            node,
            metrics: TrafficMetrics::new(),
            live: Rc::default(),
            dry_runs: DryRuns::default(),
            peers: Rc::default(),
            freed: Rc::default(),
            denials: Denials::default(),
            index,
            all,
            pods: RefCell::default(),
        });
        runtime.block_on(thread.run(queue));
        // Connections that did not end in time are dropped with the runtime.
    })?;
    let runtime =
        told.recv().unwrap_or_else(|_| Err(io::Error::other("the thread ended at once")))?;
    Ok((join, runtime))
}

impl DataThread {
    async fn run(self: Rc<Self>, mut queue: mpsc::Receiver<Order>) {
        spawn_local(take_turns());
        spawn_local(judge::keep_judging(self.clone()));
        spawn_local(judge_peers(self.clone()));
        spawn_local(retire_stale(self.clone()));
        loop {
            tokio::select! {
                biased;
                () = self.node.ending.cancelled() => break,
                order = queue.recv() => match order {
                    Some(Order::Serve { pod, listeners }) => {
                        if let Err(error) = self.serve(pod, listeners) {
                            tracing::error!(thread = self.index, %error, "cannot listen for a pod");
                        }
                    }
                    Some(Order::Dns { pod, listeners }) => {
                        if let Err(error) = dns::serve(&self.node, &pod, listeners) {
                            tracing::error!(thread = self.index, %error, "cannot take a pod's queries");
                        }
                    }
                    Some(Order::Tunnel { pod, tcp, peer, held }) => {
                        self.take_tunnel(&pod, tcp, peer, held);
                    }
                    None => break,
                },
            }
        }
        self.live.cut_all();
        // A cut connection needs one turn to reset its sockets; a stuck one is not waited for.
        let _ = tokio::time::timeout(Duration::from_secs(1), self.live.empty()).await;
    }

    fn serve(self: &Rc<Self>, pod: Arc<Pod>, listeners: ThreadListeners) -> io::Result<()> {
        let listener = |given: Option<_>| given.map(TcpListener::from_std).transpose();
        let outbound = listener(listeners.outbound)?;
        let plaintext = listener(listeners.plaintext)?;
        let hbone = listener(listeners.hbone)?;
        let socks = listener(listeners.socks)?;
        let budget = Some(pod.share.windows());
        let hbone_config = HboneConfig { budget, ..self.node.hbone.clone() };
        let pool = Pool::new(hbone_config.clone());
        let local = Rc::new(LocalPod { pool, hbone: hbone_config, pod });
        self.live.serve(&local.pod, &self.node.store.load(), Instant::now());
        self.pods.borrow_mut().insert(local.pod.uid.clone(), local.clone());
        let of_source = Kind { reporter: Reporter::Source, claim: Share::connection };
        let of_outside = Kind { reporter: Reporter::Destination, claim: Share::connection };
        let of_peer = Kind { reporter: Reporter::Destination, claim: Share::tunnel };
        if let Some(outbound) = outbound {
            let (this, served) = (self.clone(), local.clone());
            spawn_local(accept(
                this,
                served,
                outbound,
                of_source,
                |thread, pod, tcp, peer, held| {
                    spawn_local(outbound::serve(thread, pod, tcp, peer, held));
                },
            ));
        }
        if let Some(socks) = socks {
            let (this, served) = (self.clone(), local.clone());
            spawn_local(accept(this, served, socks, of_source, |thread, pod, tcp, peer, held| {
                spawn_local(socks::serve(thread, pod, tcp, peer, held));
            }));
        }
        if let Some(plaintext) = plaintext {
            let (this, served) = (self.clone(), local.clone());
            spawn_local(accept(
                this,
                served,
                plaintext,
                of_outside,
                |thread, pod, tcp, peer, held| {
                    spawn_local(plaintext::serve(thread, pod, tcp, peer, held));
                },
            ));
        }
        if let Some(hbone) = hbone {
            let (this, served) = (self.clone(), local.clone());
            spawn_local(accept(this, served, hbone, of_peer, |thread, pod, tcp, peer, held| {
                thread.deal(pod, tcp, peer, held);
            }));
        }
        spawn_local(end_with_pod(self.clone(), local));
        Ok(())
    }

    /// Gives an accepted tunnel to the thread with the fewest streams: the kernel's choice of a listener is by hash,
    /// and tunnels are few.
    fn deal(self: Rc<Self>, pod: Rc<LocalPod>, tcp: TcpStream, peer: SocketAddr, held: Held) {
        let load = |handle: &Handle| handle.load.load(Ordering::Relaxed);
        let own = load(&self.all[self.index]);
        let least =
            self.all.iter().min_by_key(|handle| load(handle)).filter(|handle| load(handle) < own);
        let Some(least) = least else {
            spawn_local(inbound::serve(self, pod, tcp, peer, held));
            return;
        };
        let order =
            tcp.into_std().map(|tcp| Order::Tunnel { pod: pod.pod.clone(), tcp, peer, held });
        match order.map(|order| least.orders.try_send(order)) {
            Ok(Ok(())) => {}
            Ok(Err(
                mpsc::error::TrySendError::Full(order) | mpsc::error::TrySendError::Closed(order),
            )) => {
                if let Order::Tunnel { pod, tcp, peer, held } = order {
                    self.take_tunnel(&pod, tcp, peer, held);
                }
            }
            Err(error) => tracing::warn!(%peer, %error, "an accepted tunnel was lost"),
        }
    }

    fn take_tunnel(
        self: &Rc<Self>,
        pod: &Pod,
        tcp: std::net::TcpStream,
        peer: SocketAddr,
        held: Held,
    ) {
        let local = self.pods.borrow().get(&pod.uid).cloned();
        // A pod that was removed meanwhile takes no tunnels.
        let Some(local) = local else { return };
        match TcpStream::from_std(tcp) {
            Ok(tcp) => {
                spawn_local(inbound::serve(self.clone(), local, tcp, peer, held));
            }
            Err(error) => tracing::warn!(%peer, %error, "an accepted tunnel was lost"),
        }
    }

    /// Whether the peer that was verified by `chain` is still accepted, and word of it when it is not.
    pub(super) fn standing(&self, chain: &Arc<PeerChain>) -> Standing {
        self.peers.watch(chain, &self.node.identities.verification().borrow())
    }

    /// As [`DataThread::standing`], of the peer that a stream was opened to.
    pub(super) fn standing_of(&self, stream: &Stream) -> Option<Standing> {
        stream.peer_chain().map(|chain| self.standing(chain))
    }

    /// Does something to the tunnels of each pod.
    pub(super) fn for_each_pool(&self, act: impl Fn(&Pool)) {
        self.pods.borrow().values().for_each(|pod| act(&pod.pool));
    }

    /// Counts a stream or tunnel of this thread until the guard is dropped.
    pub(super) fn loaded(&self) -> Load {
        let load = self.all[self.index].load.clone();
        load.fetch_add(1, Ordering::Relaxed);
        Load { load, freed: self.freed.clone() }
    }
}

impl LocalPod {
    /// Dials for a tunnel, to a workload or a gateway, if the pod may have one more.
    pub(super) async fn dial_tunnel(
        &self,
        thread: &DataThread,
        to: SocketAddr,
    ) -> io::Result<TcpStream> {
        self.tunnel_place(thread)?;
        dial::dial(&thread.node, &self.pod, to, DialedFor::Tunnel).await
    }

    /// Whether the pod may dial one more tunnel. Each thread dials its part: what the others have is theirs.
    fn tunnel_place(&self, thread: &DataThread) -> io::Result<()> {
        let limit = (thread.node.limits.tunnels.get() as usize / thread.all.len()).max(1);
        if self.pool.tunnels() < limit {
            return Ok(());
        }
        let text = format!("the pod has {limit} tunnels open on this thread");
        Err(io::Error::new(io::ErrorKind::QuotaExceeded, text))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.load.fetch_sub(1, Ordering::Relaxed);
        self.freed.tell();
    }
}

/// Ends everything of a pod when it is removed.
async fn end_with_pod(thread: Rc<DataThread>, pod: Rc<LocalPod>) {
    pod.pod.removed.cancelled().await;
    let mut pods = thread.pods.borrow_mut();
    // The same uid may have come back in another namespace.
    if pods.get(&pod.pod.uid).is_some_and(|current| Rc::ptr_eq(current, &pod)) {
        pods.remove(&pod.pod.uid);
    }
    drop(pods);
    thread.live.cut_pod(&pod.pod);
    pod.pool.close();
}

/// Ends what open tunnels of peers carry that are not accepted any more, each time that what is demanded of them changes.
async fn judge_peers(thread: Rc<DataThread>) {
    let mut changes = thread.node.identities.verification();
    while changes.changed().await.is_ok() {
        let verification = changes.borrow_and_update().clone();
        for pod in thread.pods.borrow().values() {
            pod.pool.retire_peers(|chain| verification.objection(chain).is_some());
        }
        thread.peers.judge(&verification).await;
    }
}
