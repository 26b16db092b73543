//! A connection that an application of this node made: decides its next hop, opens the tunnel or dials, copies.

use std::{net::SocketAddr, os::fd::AsFd, rc::Rc, sync::Arc};

use mesh::{
    hbone::{self, Authority, ConnectRequest, PoolKey, Side, Stream},
    identity::Spiffe,
    store::{Service, Workload},
    telemetry::{
        self, Connection, ConnectionMetrics, DialedFor, Failure, Party, Reason, Reporter, Security,
        Traffic,
    },
};
use tokio::net::TcpStream;

use super::{
    counters::NearInitiates,
    credential::credential,
    dial, failure,
    labels::{self, Trace},
    live::CutNote,
    thread::{DataThread, LocalPod},
};
use crate::{
    admin::{Direction, OpenConnection, Protocol},
    capture,
    next_hop::{HboneAddr, NextHop, Outbound, next_hop},
};

/// A decided connection.
struct Route {
    source: Arc<Workload>,
    client: SocketAddr,
    dial: SocketAddr,
    via: Via,
    /// The next hop, where it is a workload.
    destination: Option<Arc<Workload>>,
    service: Option<Arc<Service>>,
    hop: NextHop,
}

/// How the next hop is reached.
enum Via {
    Plain,
    Tunnel { authority: HboneAddr, expect: Arc<[Spiffe]> },
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
    let metrics = thread.metrics.open(route.connection());
    let _listed = thread.node.connections.open(OpenConnection {
        pod: pod.pod.uid.clone(),
        direction: Direction::Outbound,
        source: client,
        original_destination: original,
        actual_destination: route.dial,
        protocol: match route.via {
            Via::Plain => Protocol::Tcp,
            Via::Tunnel { .. } => Protocol::Hbone,
        },
        peer: route.expected().cloned(),
    });
    let result = forward(&thread, &pod, tcp, &route, &metrics).await;
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
    let hop = next_hop(&node.store.load(), &outbound, rand::random())
        .map_err(|error| Failure::new(Reason::from(&error), &error))?;
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
                (dial, Via::Tunnel { authority, expect }, Some(workload), service)
            }
            NextHop::Waypoint { dial, authority, expect, waypoint, service } => {
                (dial, Via::Tunnel { authority, expect }, Some(waypoint), service)
            }
            NextHop::Across { target, .. } => {
                let error = format!("{} is on network `{}`", target.uid, target.network);
                return Err(Failure { reason: Reason::OtherNetwork, error });
            }
            NextHop::Unresolved(unresolved) => {
                let error = format!("{} stands for another name", unresolved.host);
                return Err(Failure { reason: Reason::DialFailed, error });
            }
        };
        Ok(Self { source, client, dial, via, destination, service, hop })
    }

    fn expected(&self) -> Option<&Spiffe> {
        match &self.via {
            Via::Plain => None,
            Via::Tunnel { expect, .. } => expect.first(),
        }
    }

    fn connection(&self) -> Connection {
        let (security, source_name, authority) = match &self.via {
            Via::Plain => (Security::Plaintext, None, None),
            Via::Tunnel { authority, .. } => {
                (Security::MutualTls, self.source.identity(), Some(authority.to_string().into()))
            }
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
        }
    }
}

async fn forward(
    thread: &Rc<DataThread>,
    pod: &Rc<LocalPod>,
    tcp: TcpStream,
    route: &Route,
    metrics: &ConnectionMetrics,
) -> Result<(), Failure> {
    let (_registered, order) = thread.live.register(&pod.pod, None);
    let (permit, counters, note) = (route.hop.permit(), NearInitiates(metrics), CutNote::default());
    let outcome = match &route.via {
        Via::Plain => match dial::dial(&thread.node, &pod.pod, route.dial, DialedFor::Plaintext)
            .await
        {
            Ok(upstream) => hbone::relay(&permit, tcp, upstream, &counters, note.wait(order)).await,
            Err(error) => {
                capture::reset(tcp);
                return Err(failure::dial(route.dial, &error));
            }
        },
        Via::Tunnel { authority, expect } => match open(thread, pod, route, *authority, expect)
            .await
        {
            Ok(stream) => hbone::splice(&permit, tcp, stream, &counters, note.wait(order)).await,
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
    authority: HboneAddr,
    expect: &Arc<[Spiffe]>,
) -> Result<Stream, Failure> {
    let node = &thread.node;
    let credential = credential(node, &pod.pod, &route.source).await?;
    let key =
        PoolKey { source: credential.spiffe().clone(), expected: expect.clone(), dial: route.dial };
    let trace = Trace { trace: rand::random(), span: rand::random() };
    let request = ConnectRequest {
        authority: Authority::Address(authority.get()),
        headers: labels::request_headers(
            &route.source,
            route.client,
            route.service.as_deref(),
            trace,
        ),
    };
    let dial = async |to| dial::dial(node, &pod.pod, to, DialedFor::Tunnel).await;
    match pod.pool.open(&key, &credential, request, dial).await {
        Ok((stream, _answer)) => Ok(stream),
        Err(error) => Err(Failure::new(Reason::from(&error), &error)),
    }
}
