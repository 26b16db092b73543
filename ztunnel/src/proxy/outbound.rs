//! A connection that an application of this node made: decides its next hop, opens the tunnel or dials, copies.

use std::{net::SocketAddr, os::fd::AsFd, rc::Rc, sync::Arc};

use mesh::{
    hbone::{self, Authority, ConnectRequest, PoolKey, Side, Stream},
    identity::{Credential, Spiffe},
    store::{Service, Workload},
    telemetry::{
        self, Connection, ConnectionMetrics, DialedFor, Failure, Party, Reason, Reporter, Security,
        Traffic,
    },
};
use tokio::net::TcpStream;

use super::{
    across::{self, Across},
    counters::NearInitiates,
    credential::credential,
    dial, failure,
    labels::{self, Trace},
    live::CutNote,
    on_demand, revocation,
    thread::{DataThread, LocalPod},
};
use crate::{
    admin::{Direction, OpenConnection, Protocol},
    capture,
    next_hop::{HboneAddr, NextHop, Outbound},
};

/// A decided connection.
pub(super) struct Route {
    pub(super) source: Arc<Workload>,
    client: SocketAddr,
    pub(super) dial: SocketAddr,
    via: Via,
    /// The next hop, where it is a workload.
    destination: Option<Arc<Workload>>,
    service: Option<Arc<Service>>,
    pub(super) hop: NextHop,
    trace: Trace,
}

/// How the next hop is reached.
enum Via {
    Plain,
    Tunnel(OneTunnel),
    Across(Across),
}

/// One tunnel to the next hop.
struct OneTunnel {
    authority: HboneAddr,
    expect: Arc<[Spiffe]>,
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
    let route = match decide(&thread, &pod, client, original).await {
        Ok(route) => route,
        Err(failure) => return refuse(Reporter::Source, tcp, client, original, &failure),
    };
    let _listed = thread.node.connections.open(OpenConnection {
        pod: pod.pod.uid.clone(),
        direction: Direction::Outbound,
        source: client,
        original_destination: original,
        actual_destination: route.dial,
        protocol: match route.via {
            Via::Plain => Protocol::Tcp,
            Via::Tunnel(_) => Protocol::Hbone,
            Via::Across(_) => Protocol::DoubleHbone,
        },
        peer: route.expected().cloned(),
    });
    let tunnel = match &route.via {
        Via::Across(across) => return across::serve(&thread, &pod, tcp, &route, across).await,
        Via::Tunnel(tunnel) => Some(tunnel),
        Via::Plain => None,
    };
    let metrics = thread.metrics.open(route.connection());
    let result = forward(&thread, &pod, tcp, &route, tunnel, &metrics).await;
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

async fn decide(
    thread: &DataThread,
    pod: &LocalPod,
    client: SocketAddr,
    orig_dst: SocketAddr,
) -> Result<Route, Failure> {
    let node = &thread.node;
    let source = pod
        .pod
        .workload(&node.store)
        .await
        .map_err(|error| Failure::new(Reason::UnknownSource, &error))?;
    let outbound = Outbound { source: &source, orig_dst, network: &node.network };
    let hop = on_demand::decide(node, &outbound).await?;
    let hop = match hop {
        NextHop::Unresolved(unresolved) => {
            let ip = dial::resolve(&unresolved.host, orig_dst.ip()).await?;
            unresolved.at(ip)
        }
        hop @ (NextHop::Passthrough { .. }
        | NextHop::Plain { .. }
        | NextHop::Direct { .. }
        | NextHop::Waypoint { .. }
        | NextHop::Across { .. }) => hop,
    };
    Route::new(source, client, hop)
}

impl Route {
    fn new(source: Arc<Workload>, client: SocketAddr, hop: NextHop) -> Result<Self, Failure> {
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

async fn forward(
    thread: &Rc<DataThread>,
    pod: &Rc<LocalPod>,
    tcp: TcpStream,
    route: &Route,
    tunnel: Option<&OneTunnel>,
    metrics: &ConnectionMetrics,
) -> Result<(), Failure> {
    let (_registered, order) = thread.live.outbound(&pod.pod);
    let (permit, counters, note) = (route.hop.permit(), NearInitiates(metrics), CutNote::default());
    let outcome = match tunnel {
        None => match dial::dial(&thread.node, &pod.pod, route.dial, DialedFor::Plaintext).await {
            Ok(upstream) => hbone::relay(&permit, tcp, upstream, &counters, note.wait(order)).await,
            Err(error) => {
                capture::reset(tcp);
                return Err(failure::dial(route.dial, &error));
            }
        },
        Some(tunnel) => match open(thread, pod, route, tunnel).await {
            Ok(stream) => {
                let order = revocation::or(thread.standing_of(&stream), note.wait(order));
                hbone::splice(&permit, tcp, stream, &counters, order).await
            }
            Err(failure) => {
                capture::reset(tcp);
                return Err(failure);
            }
        },
    };
    failure::outcome(&outcome, Side::Near, note.error())
}

async fn open(
    thread: &Rc<DataThread>,
    pod: &Rc<LocalPod>,
    route: &Route,
    tunnel: &OneTunnel,
) -> Result<Stream, Failure> {
    let node = &thread.node;
    let credential = credential(node, &pod.pod, &route.source).await?;
    let key = route.pool_key(&credential, &tunnel.expect);
    let request = route.request(Authority::Address(tunnel.authority.get()));
    let dial = async |to| {
        pod.tunnel_place(thread)?;
        dial::dial(node, &pod.pod, to, DialedFor::Tunnel).await
    };
    match pod.pool.open(&key, &credential, request, dial).await {
        Ok((stream, _answer)) => Ok(stream),
        Err(error) => Err(Failure::new(Reason::from(&error), &error)),
    }
}
