//! Makes the connection to the next hop, at another endpoint if one fails before the first byte.
//!
//! In: who connects, to what. Out: an open connection with the route it took, or the last failure with the route that had
//! it. At most [`ATTEMPTS`] endpoints are tried, all addresses of a name each, within the time of one dial as a whole.
//! Records nothing of the connection but the attempts that were given up.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    pin::pin,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use mesh::{
    hbone::{Inner, Stream},
    identity::Credential,
    store::{Snapshot, Workload},
    telemetry::{DialedFor, Failure, Reason},
};
use metrics::counter;
use tokio::{net::TcpStream, time::timeout};

use super::{
    across,
    credential::credential,
    dial::{self, DIAL_LIMIT},
    failure, labels, on_demand,
    outbound::{Route, Via},
    retryable::{Blame, blame},
    revocation::Standing,
    thread::{DataThread, LocalPod},
};
use crate::{
    admin::Listed,
    balance::Opened,
    next_hop::{Experience, NextHop, NoRoute, Outbound, next_hop},
};

/// Endpoints that are tried for one connection.
const ATTEMPTS: usize = 3;
/// An endpoint that has not answered for this long is left for another, if there is one.
const PATIENCE: Duration = Duration::from_secs(3);

/// The open way to the next hop.
pub(super) enum Upstream {
    Tcp(TcpStream),
    Tunnel(Stream),
    /// With the standing of the gateway's certificate.
    Across(Box<(Inner, Option<Standing>)>),
}

/// A connection that was made.
pub(super) struct Reached {
    pub(super) route: Route,
    pub(super) upstream: Upstream,
    /// While it is open it is listed, and counts for its destination.
    pub(super) held: Held,
}

/// What ends with the connection.
pub(super) struct Held {
    _listed: Listed,
    _workload: Option<Opened>,
    _destination: Option<Opened>,
}

/// A connection that could not be made.
pub(super) struct Missed {
    /// None if there was no way to begin with.
    pub(super) route: Option<Route>,
    pub(super) failure: Failure,
}

/// One connection's tries.
pub(super) struct Attempts<'a> {
    thread: &'a Rc<DataThread>,
    pod: &'a Rc<LocalPod>,
    source: Arc<Workload>,
    client: SocketAddr,
    original: SocketAddr,
    /// The uids of endpoints that failed.
    tried: Vec<Arc<str>>,
    began: Instant,
}

impl<'a> Attempts<'a> {
    pub(super) fn new(
        thread: &'a Rc<DataThread>,
        pod: &'a Rc<LocalPod>,
        source: Arc<Workload>,
        client: SocketAddr,
        original: SocketAddr,
    ) -> Self {
        let began = Instant::now();
        Self { thread, pod, source, client, original, tried: Vec::new(), began }
    }

    /// Tries until one endpoint takes the connection.
    pub(super) async fn run(mut self) -> Result<Reached, Missed> {
        let no_way = |failure| Missed { route: None, failure };
        let (node, decide) =
            (&self.thread.node, |snapshot: &_| self.next_hop(snapshot, &self.tried));
        let hop = on_demand::decide(node, &self.outbound(), decide).await.map_err(no_way)?;
        let mut waiting = self.routes(hop).await.map_err(no_way)?;
        let mut destination = match waiting.front().map(|route| self.open_destination(route)) {
            Some(Ok(opened)) => opened,
            Some(Err(failure)) => return Err(Missed { route: waiting.pop_front(), failure }),
            None => None,
        };
        loop {
            let route = waiting.pop_front().expect("routes are at least one, and refilled below");
            let failure = match self.attempt(&route, !waiting.is_empty()).await {
                Ok((upstream, listed, workload)) => {
                    let (_listed, _workload, _destination) = (listed, workload, destination.take());
                    return Ok(Reached {
                        route,
                        upstream,
                        held: Held { _listed, _workload, _destination },
                    });
                }
                Err(failure) => failure,
            };
            if blame(failure.reason) == Blame::Nobody || self.began.elapsed() >= DIAL_LIMIT {
                return Err(Missed { route: Some(route), failure });
            }
            if waiting.is_empty() {
                let more = match self.another(&route) {
                    Some(hop) => self.routes(hop).await.ok(),
                    None => None,
                };
                let Some(more) = more else { return Err(Missed { route: Some(route), failure }) };
                self.tried.extend(route.target().map(|target| target.uid.clone()));
                waiting = more;
            }
            counter!("aquifer_retried_connections_total", "reason" => failure.reason.as_str())
                .increment(1);
            tracing::debug!(dial = %route.dial, reason = %failure.reason, error = failure.error, "trying another endpoint");
        }
    }

    fn outbound(&self) -> Outbound<'_> {
        let network = &self.thread.node.network;
        Outbound { source: &self.source, orig_dst: self.original, network }
    }

    fn next_hop(&self, snapshot: &Snapshot, tried: &[Arc<str>]) -> Result<NextHop, NoRoute> {
        let (node, now) = (&self.thread.node, Instant::now());
        let experience = Experience {
            open: &|workload| node.balance.open_to(&workload.uid),
            ejected: &|workload, ip| node.balance.is_ejected(now, &workload.uid, ip),
            tried,
        };
        next_hop(snapshot, &self.outbound(), &experience, rand::random())
    }

    /// A hop to another endpoint than those that failed, this one included.
    fn another(&self, failed: &Route) -> Option<NextHop> {
        let failed = failed.target()?.uid.clone();
        if self.tried.len() + 1 >= ATTEMPTS {
            return None;
        }
        let tried: Vec<_> = self.tried.iter().cloned().chain([failed]).collect();
        // What was dialed by itself is decided the same again.
        self.next_hop(&self.thread.node.store.load(), &tried)
            .ok()
            .filter(|hop| hop.target().is_none_or(|target| !tried.contains(&target.uid)))
    }

    /// The routes of a hop: one, or one for each address of its name.
    async fn routes(&self, hop: NextHop) -> Result<VecDeque<Route>, Failure> {
        let route = |hop| Route::new(self.source.clone(), self.client, hop);
        match hop {
            NextHop::Unresolved(unresolved) => {
                let source = labels::party(&self.source, self.source.identity());
                let names = &self.thread.node.names;
                let ips = names.resolve(&unresolved.host, self.original.ip(), &source).await?;
                ips.into_iter().map(|ip| route(unresolved.clone().at(ip))).collect()
            }
            hop @ (NextHop::Passthrough { .. }
            | NextHop::Plain { .. }
            | NextHop::Direct { .. }
            | NextHop::Waypoint { .. }
            | NextHop::Across { .. }) => Ok([route(hop)?].into()),
        }
    }

    fn open_destination(&self, route: &Route) -> Result<Option<Opened>, Failure> {
        let (key, own) = match (&route.service, route.target()) {
            (Some(service), _) => (&service.key, service.limits.max_connections),
            (None, Some(workload)) => (&workload.uid, workload.limits.max_connections),
            (None, None) => return Ok(None),
        };
        let opened = self.thread.node.balance.open_destination(key, own);
        opened.map(Some).map_err(|full| Failure::new(Reason::ConnectionLimit, &full))
    }

    async fn attempt(
        &self,
        route: &Route,
        has_other_addresses: bool,
    ) -> Result<(Upstream, Listed, Option<Opened>), Failure> {
        let balance = &self.thread.node.balance;
        let target = route.target();
        let workload = target.map(|workload| balance.open_workload(workload)).transpose();
        let workload = workload.map_err(|full| Failure::new(Reason::ConnectionLimit, &full))?;
        let listed = self.thread.node.connections.open(route.listed(&self.pod.pod, self.original));
        let result = self.open_patiently(route, has_other_addresses).await;
        // The gateway's address says nothing of who is behind it.
        if let (Some(target), false) = (target, matches!(route.via, Via::Across(_))) {
            let (now, ip) = (Instant::now(), route.dial.ip());
            match &result {
                Ok(_) => balance.succeeded(now, &target.uid, ip),
                Err(failure) if blame(failure.reason) == Blame::Endpoint => {
                    let snapshot = self.thread.node.store.load();
                    balance.failed(now, &snapshot, target, ip, failure.reason);
                }
                Err(_) => {}
            }
        }
        Ok((result?, listed, workload))
    }

    /// Opens the way, and gives up early only where there is another.
    async fn open_patiently(
        &self,
        route: &Route,
        has_other_addresses: bool,
    ) -> Result<Upstream, Failure> {
        // The wait for this side's own certificate is not the endpoint's fault.
        let credential = match &route.via {
            Via::Plain => None,
            Via::Tunnel(_) | Via::Across(_) => {
                Some(credential(&self.thread.node, &self.pod.pod, &route.source).await?)
            }
        };
        let mut opening = pin!(open(self.thread, self.pod, route, credential.as_ref()));
        let left = || DIAL_LIMIT.saturating_sub(self.began.elapsed());
        let silent = |limit: Duration| Failure {
            reason: match route.via {
                Via::Plain => Reason::DialTimeout,
                Via::Tunnel(_) | Via::Across(_) => Reason::TunnelTimeout,
            },
            error: format!("{} did not take the connection within {limit:?}", route.dial),
        };
        if let Ok(opened) = timeout(PATIENCE.min(left()), opening.as_mut()).await {
            return opened;
        }
        if has_other_addresses || self.another(route).is_some() {
            return Err(silent(PATIENCE));
        }
        if self.tried.is_empty() {
            // The only one: its own deadlines hold, and tell more exactly what it did not do.
            return opening.await;
        }
        timeout(left(), opening).await.unwrap_or_else(|_| Err(silent(DIAL_LIMIT)))
    }
}

async fn open(
    thread: &Rc<DataThread>,
    pod: &Rc<LocalPod>,
    route: &Route,
    credential: Option<&Arc<Credential>>,
) -> Result<Upstream, Failure> {
    let node = &thread.node;
    match (&route.via, credential) {
        (Via::Tunnel(tunnel), Some(credential)) => {
            let key = route.pool_key(credential, &tunnel.expect);
            let request = || route.request(tunnel.authority.into());
            let dial = async |to| pod.dial_tunnel(thread, to).await;
            match pod.pool.open(&key, credential, request, dial).await {
                Ok((stream, _answer)) => Ok(Upstream::Tunnel(stream)),
                Err(error) => Err(Failure::new(Reason::from(&error), &error)),
            }
        }
        (Via::Across(to), Some(credential)) => {
            let opened = Box::pin(across::open(thread, pod, route, to, credential)).await?;
            Ok(Upstream::Across(Box::new(opened)))
        }
        (Via::Tunnel(_) | Via::Across(_), None) => {
            let error = "no certificate to open a tunnel with".to_owned();
            Err(Failure { reason: Reason::CertificateUnavailable, error })
        }
        (Via::Plain, _) => {
            match dial::dial(node, &pod.pod, route.dial, DialedFor::Plaintext).await {
                Ok(tcp) => Ok(Upstream::Tcp(tcp)),
                Err(error) => Err(failure::dial(route.dial, &error)),
            }
        }
    }
}
