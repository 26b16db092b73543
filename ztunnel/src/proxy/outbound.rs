//! A connection that an application of this node made: has it made to its next hop, copies, records.

use std::{net::SocketAddr, os::fd::AsFd, rc::Rc, sync::Arc, time::Instant};

use mesh::{
    hbone::{self, Authority, ConnectRequest, PoolKey, Side, Stream},
    identity::{Credential, Spiffe},
    policy::Permit,
    store::{Rate, Service, Workload},
    telemetry::{
        self, Connection, ConnectionMetrics, Failure, Party, Reason, Reporter, Security, Traffic,
    },
};
use tokio::{net::TcpStream, sync::oneshot};

use super::{
    Pod,
    across::Across,
    attempts::{Attempts, Held, Missed, Reached, Upstream},
    counters::NearInitiates,
    failure,
    labels::{self, Trace},
    live::{Cut, CutNote, Registered},
    revocation::{self, Standing},
    share::Held as Place,
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

/// A connection that goes somewhere.
pub(super) struct Connected {
    near: TcpStream,
    far: Far,
    permit: Permit,
    metrics: ConnectionMetrics,
    order: oneshot::Receiver<Cut>,
    _registered: Registered,
    _held: Held,
}

enum Far {
    Tcp(TcpStream),
    /// With the standing of the gateway's certificate, where there is one between.
    Tunnel(Stream, Option<Standing>),
}

/// Serves one accepted connection to its end, and keeps its place in the pod's share as long.
pub(super) async fn serve(
    thread: Rc<DataThread>,
    pod: Rc<LocalPod>,
    tcp: TcpStream,
    client: SocketAddr,
    _place: Place,
) {
    let _open = thread.metrics.socket(Reporter::Source);
    let _load = thread.loaded();
    // Boxed: what it takes to connect is not kept while bytes are copied.
    let connecting = Box::pin(connect_captured(&thread, &pod, tcp, client));
    if let Some(connected) = connecting.await {
        connected.carry(&thread).await;
    }
}

async fn connect_captured(
    thread: &Rc<DataThread>,
    pod: &Rc<LocalPod>,
    near: TcpStream,
    client: SocketAddr,
) -> Option<Connected> {
    match original_destination(thread, &near) {
        Ok(original) => connect(thread, pod, near, client, original).await,
        Err(failure) => {
            refuse(Reporter::Source, near, client, client, &failure);
            None
        }
    }
}

/// Has the connection that the pod makes to `original`, however that became known, made to its next hop. If that fails it
/// is refused and recorded.
pub(super) async fn connect(
    thread: &Rc<DataThread>,
    pod: &Rc<LocalPod>,
    near: TcpStream,
    client: SocketAddr,
    original: SocketAddr,
) -> Option<Connected> {
    let began = Instant::now();
    let source = match admit(thread, pod).await {
        Ok(source) => source,
        Err(failure) => {
            refuse(Reporter::Source, near, client, original, &failure);
            return None;
        }
    };
    let (registered, order) = thread.live.outbound(&pod.pod);
    let reached = match Attempts::new(thread, pod, source, client, original).run().await {
        Ok(reached) => reached,
        Err(Missed { route: Some(route), failure }) => {
            capture::reset(near);
            thread.metrics.open_since(route.connection(), began).finish(Err(failure));
            return None;
        }
        Err(Missed { route: None, failure }) => {
            refuse(Reporter::Source, near, client, original, &failure);
            return None;
        }
    };
    let Reached { route, upstream, held } = reached;
    let mut connection = route.connection();
    let far = match upstream {
        Upstream::Tcp(far) => Far::Tcp(far),
        Upstream::Tunnel(stream) => Far::Tunnel(stream, None),
        Upstream::Across(opened) => {
            let (inner, gateway) = *opened;
            connection.traffic.destination = labels::stranger(&inner.headers, Some(&inner.peer));
            Far::Tunnel(inner.stream, gateway)
        }
    };
    Some(Connected {
        near,
        far,
        permit: route.hop.permit(),
        metrics: thread.metrics.open_since(connection, began),
        order,
        _registered: registered,
        _held: held,
    })
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

impl Connected {
    /// Copies until both sides have ended, and records the connection.
    pub(super) async fn carry(self, thread: &DataThread) {
        let Self { near, far, permit, metrics, order, _registered, _held } = self;
        let (counters, note) = (NearInitiates(&metrics), CutNote::default());
        let outcome = match far {
            Far::Tcp(far) => hbone::relay(&permit, near, far, &counters, note.wait(order)).await,
            Far::Tunnel(stream, gateway) => {
                let order = revocation::or(thread.standing_of(&stream), note.wait(order));
                // Boxed: a future that is handed on takes its size again in each place.
                let order = Box::pin(revocation::or(gateway, order));
                hbone::splice(&permit, near, stream, &counters, order).await
            }
        };
        let result = failure::outcome(&outcome, Side::Near, note.error());
        metrics.finish(result);
    }
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
