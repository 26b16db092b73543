//! Serves one pod's queries, in datagrams and on connections.
//!
//! In: the pod's sockets. Out: answers, from the mesh or from the servers that the pod would have asked. What the mesh
//! knows is answered at once and in turn; what must wait has a task of its own, of which a pod has only so many.

use std::{
    cell::Cell,
    io,
    net::SocketAddr,
    os::fd::AsFd as _,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use hickory_proto::op::ResponseCode;
use mesh::store::Workload;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    task::spawn_local,
};

use super::{
    Answer, Client, Question, answer,
    observe::{Observer, log},
    on_demand,
    pod_resolver::{PodResolver, own_nameservers},
    upstream::{self, within},
    wire::{Malformed, Request, Transport},
};
use crate::{
    capture::DnsListeners,
    proxy::{Node, Pod},
};

/// Queries of a pod that may wait at once; one more is answered by SERVFAIL.
const MAX_WAITING: usize = 512;
/// Connections of a pod at once; one more is closed.
const MAX_CONNECTIONS: usize = 128;
/// How long a connection may say nothing, or not take its answer.
const IDLE_LIMIT: Duration = Duration::from_secs(5);
/// Queries are far shorter; what is longer cannot be read.
const MAX_QUERY: usize = 4096;
/// Pause after a failed accept: out of descriptors, accepting at once again would spin.
const PAUSE: Duration = Duration::from_millis(50);

/// One pod's DNS.
struct PodDns {
    node: Arc<Node>,
    pod: Arc<Pod>,
    resolver: PodResolver,
    own_nameservers: Vec<SocketAddr>,
    observer: Observer,
    waiting: Cell<usize>,
    connections: Cell<usize>,
}

/// One of the few that a pod may have; given back when it is dropped.
struct Place<'a>(&'a Cell<usize>);

impl<'a> Place<'a> {
    fn take(taken: &'a Cell<usize>, limit: usize) -> Option<Self> {
        if taken.get() >= limit {
            return None;
        }
        taken.set(taken.get() + 1);
        Some(Self(taken))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Serves the pod's queries until it is removed or the daemon ends; while it drains, there may be nobody else to ask.
///
/// # Errors
/// A socket is not taken by the thread's event queue.
pub(crate) fn serve(node: &Arc<Node>, pod: &Arc<Pod>, listeners: DnsListeners) -> io::Result<()> {
    let dns = Rc::new(PodDns {
        resolver: PodResolver::new(pod, &node.dns.cluster_domain),
        own_nameservers: own_nameservers(),
        observer: Observer::default(),
        waiting: Cell::new(0),
        connections: Cell::new(0),
        node: node.clone(),
        pod: pod.clone(),
    });
    let (datagrams, connections) = listeners.into_sockets();
    for socket in datagrams {
        let socket = Rc::new(UdpSocket::from_std(socket)?);
        dns.spawn(dns.clone().datagrams(socket));
    }
    let listener = TcpListener::from_std(connections)?;
    dns.spawn(dns.clone().accept(listener));
    let resolver = dns.clone();
    dns.spawn(async move { resolver.resolver.keep_up().await });
    Ok(())
}

impl PodDns {
    /// Runs a task for as long as the pod is served.
    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let (removed, ending) = (self.pod.removed.clone(), self.node.ending.clone());
        spawn_local(async move {
            tokio::select! {
                () = task => {}
                () = removed.cancelled() => {}
                () = ending.cancelled() => {}
            }
        });
    }

    async fn datagrams(self: Rc<Self>, socket: Rc<UdpSocket>) {
        let mut bytes = vec![0; MAX_QUERY];
        loop {
            let (length, from) = match socket.recv_from(&mut bytes).await {
                Ok(received) => received,
                // Such as that an answer before met a closed port.
                Err(error) => {
                    tracing::debug!(target: "dns", pod = %self.pod.uid, %error, "receiving a query");
                    continue;
                }
            };
            // The kernel programs let nobody else through; answers are for the pod alone.
            if !self.is_of_pod(from) {
                continue;
            }
            match Request::read(&bytes[..length], Transport::Udp) {
                Ok(request) => self.datagram(&socket, request, from),
                Err(Malformed::Answered(answer)) => send(&socket, &answer, from),
                Err(Malformed::NoHeader) => {}
            }
        }
    }

    fn datagram(self: &Rc<Self>, socket: &Rc<UdpSocket>, request: Request, from: SocketAddr) {
        if let Some(answer) = self.at_once(&request) {
            return send(socket, &answer, from);
        }
        let asked = self.asked_server(from);
        let (dns, socket) = (self.clone(), socket.clone());
        self.spawn(async move {
            let answer = dns.later(&request, asked).await;
            send(&socket, &answer, from);
        });
    }

    async fn accept(self: Rc<Self>, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, from)) if self.is_of_pod(from) => {
                    let dns = self.clone();
                    self.spawn(async move {
                        let Some(_place) = Place::take(&dns.connections, MAX_CONNECTIONS) else {
                            tracing::debug!(target: "dns", pod = %dns.pod.uid, "too many connections");
                            return;
                        };
                        if let Err(error) = dns.connection(stream).await {
                            tracing::debug!(target: "dns", pod = %dns.pod.uid, %error, "a connection ended");
                        }
                    });
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(pod = %self.pod.uid, %error, "cannot accept");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }

    /// Answers the queries of a connection in turn, until its client ends it or is idle.
    async fn connection(&self, mut stream: TcpStream) -> io::Result<()> {
        let asked = self.node.capture.original_destination(stream.as_fd())?;
        loop {
            let length = within(IDLE_LIMIT, stream.read_u16()).await?;
            let mut bytes = vec![0; usize::from(length)];
            within(IDLE_LIMIT, stream.read_exact(&mut bytes)).await?;
            let answer = match Request::read(&bytes, Transport::Tcp) {
                Ok(request) => match self.at_once(&request) {
                    Some(answer) => answer,
                    None => self.later(&request, asked).await,
                },
                Err(Malformed::Answered(answer)) => answer,
                Err(Malformed::NoHeader) => return Ok(()),
            };
            let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
            let framed = [&length.to_be_bytes(), answer.as_slice()].concat();
            within(IDLE_LIMIT, stream.write_all(&framed)).await?;
        }
    }

    /// The answer, if it stands in memory.
    fn at_once(&self, request: &Request) -> Option<Vec<u8>> {
        let workload = self.pod.record(&self.node.store);
        self.observer.query(request, workload.as_ref());
        if self.node.on_demand.is_asking() {
            return None;
        }
        workload.and_then(|workload| self.of_mesh(request, &workload))
    }

    /// The answer that has to be waited for: for the pod's own record, or for a server elsewhere.
    async fn later(&self, request: &Request, asked: Option<SocketAddr>) -> Vec<u8> {
        let Some(_place) = Place::take(&self.waiting, MAX_WAITING) else {
            log(request, None, "too_many_waiting", None);
            return request.failure(ResponseCode::ServFail);
        };
        let Ok(workload) = self.pod.workload(&self.node.store).await else {
            log(request, None, "unknown_source", None);
            return request.failure(ResponseCode::ServFail);
        };
        if !self.is_asked(request, &workload).await {
            log(request, Some(&workload), "lookup_timeout", None);
            return request.failure(ResponseCode::ServFail);
        }
        match self.of_mesh(request, &workload) {
            Some(answer) => answer,
            None => self.forward(request, &workload, asked).await,
        }
    }

    /// Whether the store has what there is of the name, or the control plane was asked for it and has answered.
    async fn is_asked(&self, request: &Request, workload: &Workload) -> bool {
        let Some((name, _)) = request.addresses_of() else { return true };
        let resolv_conf = self.resolver.conf();
        let client = Client {
            namespace: &workload.namespace,
            network: &workload.network,
            resolv_conf: &resolv_conf,
        };
        let node = &self.node;
        !node.on_demand.is_asking()
            || on_demand::ask(
                &node.on_demand,
                &node.store,
                &node.dns,
                &client,
                &workload.uid,
                &name,
            )
            .await
    }

    fn of_mesh(&self, request: &Request, workload: &Workload) -> Option<Vec<u8>> {
        let (name, family) = request.addresses_of()?;
        let client = Client {
            namespace: &workload.namespace,
            network: &workload.network,
            resolv_conf: &self.resolver.conf(),
        };
        let settings = &self.node.dns;
        let question = Question { name: &name, family };
        let mut known = match answer(&self.node.store.load(), settings, &client, &question) {
            Answer::Known(known) => known,
            Answer::Unknown => return None,
        };
        shuffle(&mut known.addresses);
        log(request, Some(workload), "mesh", Some(known.addresses.len()));
        Some(request.answer(&known, settings.time_to_live))
    }

    async fn forward(
        &self,
        request: &Request,
        workload: &Arc<Workload>,
        asked: Option<SocketAddr>,
    ) -> Vec<u8> {
        let conf = self.resolver.conf();
        let servers = upstream::servers(asked, &conf, &self.own_nameservers);
        let (capture, netns) = (&self.node.capture, &self.pod.netns);
        let started = Instant::now();
        let result = upstream::forward(capture, netns, request, &servers, &conf).await;
        let answered = result.is_ok();
        self.observer.forwarded(request, Some(workload), started.elapsed(), answered);
        match result {
            Ok(answer) => {
                log(request, Some(workload), "forwarded", None);
                answer
            }
            Err(error) => {
                log(request, Some(workload), &error.to_string(), None);
                request.failure(ResponseCode::ServFail)
            }
        }
    }

    fn asked_server(&self, asker: SocketAddr) -> Option<SocketAddr> {
        let asked = self.node.capture.asked_server(self.pod.netns.cookie(), asker);
        asked.unwrap_or_else(|error| {
            tracing::warn!(pod = %self.pod.uid, %error, "cannot tell which server was asked");
            None
        })
    }

    fn is_of_pod(&self, from: SocketAddr) -> bool {
        let ip = from.ip().to_canonical();
        ip.is_loopback() || self.pod.ips.contains(&ip)
    }
}

/// A datagram that does not leave at once is dropped: its client asks again.
fn send(socket: &UdpSocket, answer: &[u8], to: SocketAddr) {
    if let Err(error) = socket.try_send_to(answer, to) {
        tracing::debug!(target: "dns", %to, %error, "sending an answer");
    }
}

/// Clients take the first address, so that the order shares out the load.
fn shuffle(addresses: &mut [std::net::IpAddr]) {
    for last in (1..addresses.len()).rev() {
        addresses.swap(last, rand::random_range(0..=last));
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, net::IpAddr};

    use super::shuffle;

    #[test]
    fn each_address_may_come_first_and_none_is_lost() {
        let all: BTreeSet<IpAddr> = (1..=3).map(|last| [10, 0, 0, last].into()).collect();
        let mut first = BTreeSet::new();
        // Each misses the first place 200 times in a row once in 10^35.
        for _ in 0..200 {
            let mut addresses: Vec<IpAddr> = all.iter().copied().collect();
            shuffle(&mut addresses);
            assert_eq!(addresses.iter().copied().collect::<BTreeSet<_>>(), all);
            first.insert(addresses[0]);
        }
        assert_eq!(first, all);
    }
}
