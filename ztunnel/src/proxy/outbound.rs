//! A connection that an application of this node made: has it made to its next hop, copies, records.

use std::{net::SocketAddr, os::fd::AsFd, rc::Rc, sync::Arc, time::Instant};

use mesh::{
    hbone::{self, Authority, ConnectRequest, PoolKey, Side},
    identity::{Credential, Spiffe},
    store::{Rate, Service, Workload},
    telemetry::{self, Connection, Failure, Party, Reason, Reporter, Security, Traffic},
};
use tokio::{net::TcpStream, sync::oneshot};

use super::{
    Pod,
    across::Across,
    attempts::{Attempts, Missed, Reached, Upstream},
    counters::NearInitiates,
    failure,
    labels::{self, Trace},
    live::{Cut, CutNote},
    revocation,
    thread::{DataThread, LocalPod},
};
use crate::{
    admin::{Direction, OpenConnection, Protocol},
    capture,
    next_hop::{HboneAddr, NextHop},
};

/// A decided connection.
pub(super) struct Route {
    pub(super) source: Arc<Workload>,
    client: SocketAddr,
    pub(super) dial: SocketAddr,
    pub(super) via: Via,
    /// The next hop, where it is a workload.
    destination: Option<Arc<Workload>>,
    pub(super) service: Option<Arc<Service>>,
    pub(super) hop: NextHop,
    trace: Trace,
}

/// How the next hop is reached.
pub(super) enum Via {
    Plain,
    Tunnel(OneTunnel),
    Across(Across),
}

/// One tunnel to the next hop.
pub(super) struct OneTunnel {
    pub(super) authority: HboneAddr,
    pub(super) expect: Arc<[Spiffe]>,
}

/// Serves one accepted connection to its end.
pub(super) async fn serve(
    thread: Rc<DataThread>,
    pod: Rc<LocalPod>,
    tcp: TcpStream,
    client: SocketAddr,
) {
    let _open = thread.metrics.socket(Reporter::Source);
    let _load = thread.loaded();
    let original = match original_destination(&thread, &tcp) {
        Ok(original) => original,
        Err(failure) => return refuse(Reporter::Source, tcp, client, client, &failure),
    };
    let began = Instant::now();
    let source = match admit(&thread, &pod).await {
        Ok(source) => source,
        Err(failure) => return refuse(Reporter::Source, tcp, client, original, &failure),
    };
    let (_registered, order) = thread.live.outbound(&pod.pod);
    // Boxed: what it takes to connect is not kept while bytes are copied.
    let attempts = Box::pin(Attempts::new(&thread, &pod, source, client, original).run());
    match attempts.await {
        Ok(reached) => carry(&thread, tcp, reached, order, began).await,
        Err(Missed { route: Some(route), failure }) => {
            capture::reset(tcp);
            thread.metrics.open_since(route.connection(), began).finish(Err(failure));
        }
        Err(Missed { route: None, failure }) => {
            refuse(Reporter::Source, tcp, client, original, &failure);
        }
    }
}

/// The record of the pod that connects, if it may connect now.
async fn admit(thread: &DataThread, pod: &LocalPod) -> Result<Arc<Workload>, Failure> {
    let node = &thread.node;
    let source = pod.pod.workload(&node.store).await;
    let source = source.map_err(|error| Failure::new(Reason::UnknownSource, &error))?;
    match node.balance.admit(Instant::now(), &source) {
        Ok(()) => Ok(source),
        Err(rate) => {
            let Rate { per_second, burst } = rate;
            let error = format!(
                "{} makes more than {per_second} new connections a second, {burst} at once",
                source.identity().map_or(&*source.uid, |identity| identity.principal()),
            );
            Err(Failure { reason: Reason::RateLimit, error })
        }
    }
}

/// Copies until both sides have ended, and records the connection.
async fn carry(
    thread: &DataThread,
    tcp: TcpStream,
    reached: Reached,
    order: oneshot::Receiver<Cut>,
    began: Instant,
) {
    let Reached { route, upstream, held: _held } = reached;
    let mut connection = route.connection();
    if let Upstream::Across(opened) = &upstream {
        let (inner, _gateway) = &**opened;
        connection.traffic.destination = labels::stranger(&inner.headers, Some(&inner.peer));
    }
    let metrics = thread.metrics.open_since(connection, began);
    let (permit, counters, note) =
        (route.hop.permit(), NearInitiates(&metrics), CutNote::default());
    let (stream, gateway) = match upstream {
        Upstream::Tcp(upstream) => {
            let cut = note.wait(order);
            let outcome = hbone::relay(&permit, tcp, upstream, &counters, cut).await;
            let result = failure::outcome(&outcome, Side::Near, note.error());
            return metrics.finish(result);
        }
        Upstream::Tunnel(stream) => (stream, None),
        Upstream::Across(opened) => {
            let (inner, gateway) = *opened;
            (inner.stream, gateway)
        }
    };
    let order = revocation::or(thread.standing_of(&stream), note.wait(order));
    let order = revocation::or(gateway, order);
    let outcome = hbone::splice(&permit, tcp, stream, &counters, order).await;
    let result = failure::outcome(&outcome, Side::Near, note.error());
    metrics.finish(result);
}

/// Ends a connection that goes nowhere. The application sees a reset: its connect() had already succeeded.
pub(super) fn refuse(
    reporter: Reporter,
    tcp: TcpStream,
    client: SocketAddr,
    to: SocketAddr,
    failure: &Failure,
) {
    capture::reset(tcp);
    telemetry::refused(reporter, client, to, failure);
}

fn original_destination(thread: &DataThread, tcp: &TcpStream) -> Result<SocketAddr, Failure> {
    match thread.node.capture.original_destination(tcp.as_fd()) {
        Ok(Some(original)) => Ok(SocketAddr::new(original.ip().to_canonical(), original.port())),
        Ok(None) => {
            let error =
                "the connection was made to the daemon's own port and not captured".to_owned();
            Err(Failure { reason: Reason::OwnPort, error })
        }
        Err(error) => {
            let error = format!("reading the original destination: {error}");
            Err(Failure { reason: Reason::ConnectionFailed, error })
        }
    }
}

impl Route {
    pub(super) fn new(
        source: Arc<Workload>,
        client: SocketAddr,
        hop: NextHop,
    ) -> Result<Self, Failure> {
        let (dial, via, destination, service) = match hop.clone() {
            NextHop::Passthrough { dial, service } => (dial, Via::Plain, None, service),
            NextHop::Plain { dial, workload, service } => {
                (dial, Via::Plain, Some(workload), service)
            }
            NextHop::Direct { dial, authority, expect, workload, service } => {
                (dial, Via::Tunnel(OneTunnel { authority, expect }), Some(workload), service)
            }
            NextHop::Waypoint { dial, authority, expect, waypoint, service } => {
                (dial, Via::Tunnel(OneTunnel { authority, expect }), Some(waypoint), service)
            }
            NextHop::Across { dial, authority, expect, behind, gateway, service, target: _ } => {
                let across = Across { gateway: gateway.clone(), authority, expect, behind };
                (dial, Via::Across(across), Some(gateway), service)
            }
            NextHop::Unresolved(unresolved) => {
                let error = format!("{} stands for another name", unresolved.host);
                return Err(Failure { reason: Reason::DialFailed, error });
            }
        };
        let trace = Trace::random();
        Ok(Self { source, client, dial, via, destination, service, hop, trace })
    }

    fn expected(&self) -> Option<&Spiffe> {
        match &self.via {
            Via::Plain => None,
            Via::Tunnel(OneTunnel { expect, .. }) | Via::Across(Across { expect, .. }) => {
                expect.first()
            }
        }
    }

    /// The workload that was chosen, which another might be chosen in the place of.
    pub(super) fn target(&self) -> Option<&Arc<Workload>> {
        self.hop.target()
    }

    /// As operators see it.
    pub(super) fn listed(&self, pod: &Pod, original: SocketAddr) -> OpenConnection {
        OpenConnection {
            pod: pod.uid.clone(),
            direction: Direction::Outbound,
            source: self.client,
            original_destination: original,
            actual_destination: self.dial,
            protocol: match self.via {
                Via::Plain => Protocol::Tcp,
                Via::Tunnel(_) => Protocol::Hbone,
                Via::Across(_) => Protocol::DoubleHbone,
            },
            peer: self.expected().cloned(),
        }
    }

    /// Whose tunnels it may share.
    pub(super) fn pool_key(&self, credential: &Credential, expect: &Arc<[Spiffe]>) -> PoolKey {
        PoolKey {
            source: credential.spiffe().clone(),
            expected: expect.clone(),
            dial: self.dial,
            workload: self.destination.as_ref().map(|workload| workload.uid.clone()),
        }
    }

    /// What a tunnel for this connection is asked.
    pub(super) fn request(&self, authority: Authority) -> ConnectRequest {
        let service = self.service.as_deref();
        let headers = labels::request_headers(&self.source, self.client, service, self.trace);
        ConnectRequest { authority, headers }
    }

    /// What is recorded of it.
    pub(super) fn connection(&self) -> Connection {
        let tunnel = |authority: &dyn std::fmt::Display| {
            (Security::MutualTls, self.source.identity(), Some(authority.to_string().into()))
        };
        let (security, source_name, authority) = match &self.via {
            Via::Plain => (Security::Plaintext, None, None),
            Via::Tunnel(OneTunnel { authority, .. }) => tunnel(authority),
            Via::Across(Across { authority, .. }) => tunnel(authority),
        };
        Connection {
            traffic: Traffic {
                reporter: Reporter::Source,
                source: labels::party(&self.source, source_name),
                destination: self
                    .destination
                    .as_ref()
                    .map_or_else(Party::default, |to| labels::party(to, self.expected())),
                service: self.service.as_deref().map(labels::service_name),
                security,
            },
            source: self.client,
            destination: self.dial,
            hbone_authority: authority,
            trace: Some(self.trace.id()),
        }
    }
}
