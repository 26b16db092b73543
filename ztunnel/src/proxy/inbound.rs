//! A tunnel that a peer opened to a pod of this node: who it is, what each CONNECT may reach, then the application.

use std::{io, net::SocketAddr, rc::Rc, sync::Arc, time::Instant};

use http::{HeaderMap, Method, StatusCode};
use mesh::{
    hbone::{self, AcceptError, Authority, Incoming, ProxyHeader, Side, Stream, Tunnel},
    identity::Spiffe,
    policy::Permit,
    store::{Snapshot, Workload},
    telemetry::{
        self, Connection, ConnectionMetrics, DialedFor, Failure, Party, Reason, Reporter, Security,
        Traffic,
    },
};
use tokio::{io::AsyncWriteExt, net::TcpStream, sync::oneshot, task::spawn_local};

use super::{
    counters::FarInitiates,
    credential::credential,
    dial, failure, judge,
    labels::{self, Trace},
    live::{Cut, CutNote, Registered, Subject},
    revocation::{self, Standing},
    share::Held,
    thread::{DataThread, LocalPod},
};
use crate::{
    admin::{Direction, Listed, OpenConnection, Protocol},
    admission::{Admission, AnnouncedAt, Local, Refusal, admit},
    capture::{self, ResetUnlessKept},
};

/// The two ends of a tunnel.
pub(super) struct Ends {
    peer: Spiffe,
    standing: Standing,
    client: SocketAddr,
    /// The pod's address and the tunnel port.
    local: SocketAddr,
}

/// Serves one accepted tunnel to its end, and keeps its place in the pod's share as long.
pub(super) async fn serve(
    thread: Rc<DataThread>,
    pod: Rc<LocalPod>,
    tcp: TcpStream,
    client: SocketAddr,
    _place: Held,
) {
    let _open = thread.metrics.socket(Reporter::Destination);
    let _load = thread.loaded();
    let Ok(local) = tcp.local_addr() else { return };
    let local = SocketAddr::new(local.ip().to_canonical(), local.port());
    let mut tunnel = match accept(&thread, &pod, tcp).await {
        Ok(tunnel) => tunnel,
        Err(failure) => return telemetry::refused(Reporter::Destination, client, local, &failure),
    };
    let peer = tunnel.peer().clone();
    let standing = thread.standing(tunnel.peer_chain());
    let ends = Rc::new(Ends { peer, standing, client, local });
    let node = thread.node.clone();
    let mut lost = std::pin::pin!(ends.standing.lost());
    let mut told = false;
    let mut removed = std::pin::pin!(pod.pod.removed.cancelled());
    let mut parted = false;
    let mut draining = std::pin::pin!(node.draining.cancelled());
    let mut drained = false;
    loop {
        tokio::select! {
            // Its connections are being cut, each with its reason.
            () = &mut removed, if !parted => {
                parted = true;
                tunnel.drain(Instant::now() + revocation::PARTING);
            }
            () = &mut draining, if !drained => {
                drained = true;
                tunnel.drain(Instant::now() + thread.node.drain_limit);
            }
            _why = &mut lost, if !told => {
                told = true;
                tunnel.drain(Instant::now() + revocation::PARTING);
            }
            next = tunnel.next() => match next {
                Some(Ok(incoming)) => {
                    spawn_local(stream(thread.clone(), pod.clone(), ends.clone(), incoming));
                }
                Some(Err(error)) => {
                    let failure = Failure::new(Reason::from(&error), &error);
                    if matches!(failure.reason, Reason::PeerMisbehaved | Reason::PeerStalled) {
                        return telemetry::refused(Reporter::Destination, client, local, &failure);
                    }
                    tracing::debug!(peer = %ends.peer, %client, reason = %failure.reason, error = failure.error, "tunnel ended");
                    return;
                }
                None => return,
            }
        }
    }
}

async fn accept(thread: &DataThread, pod: &LocalPod, tcp: TcpStream) -> Result<Tunnel, Failure> {
    let node = &thread.node;
    let workload = pod
        .pod
        .workload(&node.store)
        .await
        .map_err(|error| Failure::new(Reason::UnknownDestination, &error))?;
    let credential = credential(node, &pod.pod, &workload).await?;
    Tunnel::accept(tcp, &credential, &pod.hbone)
        .await
        .map_err(|error: AcceptError| Failure::new(Reason::from(&error), &error))
}

/// A stream of which all is known, and which is listed, counted and recorded.
struct Opened {
    metrics: ConnectionMetrics,
    order: oneshot::Receiver<Cut>,
    registered: Registered,
    _listed: Listed,
    _place: Held,
}

/// An answered stream and what it leads to.
struct Joined {
    permit: Permit,
    application: TcpStream,
    stream: Stream,
}

/// Answers one CONNECT and copies to its end.
pub(super) async fn stream(
    thread: Rc<DataThread>,
    pod: Rc<LocalPod>,
    ends: Rc<Ends>,
    incoming: Incoming,
) {
    let _load = thread.loaded();
    // Boxed: what it takes to answer is not kept while bytes are copied.
    let Some((opened, joined)) = Box::pin(open(&thread, &pod, &ends, incoming)).await else {
        return;
    };
    let Opened { metrics, order, registered: _registered, _listed, _place } = opened;
    let result = match joined {
        Ok(Joined { permit, application, stream }) => {
            let note = CutNote::default();
            // Boxed: a future that is handed on takes its size again in each place.
            let order = Box::pin(ends.standing.or(note.wait(order)));
            let counters = FarInitiates(&metrics);
            let outcome = hbone::splice(&permit, application, stream, &counters, order).await;
            failure::outcome(&outcome, Side::Near, note.error())
        }
        Err(failure) => Err(failure),
    };
    metrics.finish(result);
}

/// Answers one CONNECT. One that may not even be tried is refused and recorded.
async fn open(
    thread: &Rc<DataThread>,
    pod: &Rc<LocalPod>,
    ends: &Ends,
    incoming: Incoming,
) -> Option<(Opened, Result<Joined, Failure>)> {
    incoming.source().begin_connection().await;
    let refused = |incoming: Incoming, status, failure: &Failure| {
        telemetry::refused(Reporter::Destination, ends.client, ends.local, failure);
        incoming.refuse(status);
        None
    };
    let snapshot = thread.node.store.load();
    let (workload, admission) = match admitted(thread, pod, ends, &snapshot, &incoming) {
        Ok(admitted) => admitted,
        Err((status, failure)) => return refused(incoming, status, &failure),
    };
    let place = match pod.pod.share.connection() {
        Ok(place) => place,
        Err(full) => {
            let status = StatusCode::SERVICE_UNAVAILABLE;
            return refused(incoming, status, &Failure::from(full));
        }
    };
    let metrics =
        thread.metrics.open(connection(thread, &snapshot, ends, &workload, &admission, &incoming));
    drop(snapshot);
    let listed = thread.node.connections.open(OpenConnection {
        pod: pod.pod.uid.clone(),
        direction: Direction::Inbound,
        source: ends.client,
        original_destination: ends.local,
        actual_destination: admission.dial,
        protocol: Protocol::Hbone,
        peer: Some(ends.peer.clone()),
    });
    let subject = Subject {
        peer: Some(ends.peer.clone()),
        source: ends.client,
        destination: admission.authorize,
    };
    let (registered, order) = thread.live.inbound(&pod.pod, subject.clone());
    let mut opened = Opened { metrics, order, registered, _listed: listed, _place: place };
    let joined =
        join(thread, pod, ends, (&workload, &admission), incoming, &subject, &mut opened).await;
    Some((opened, joined))
}

type Refused = (StatusCode, Failure);

fn admitted(
    thread: &DataThread,
    pod: &LocalPod,
    ends: &Ends,
    snapshot: &Snapshot,
    incoming: &Incoming,
) -> Result<(Arc<Workload>, Admission), Refused> {
    if incoming.method != Method::CONNECT {
        let error = format!("the method is {}, expected CONNECT", incoming.method);
        return Err((StatusCode::BAD_REQUEST, Failure { reason: Reason::ConnectMethod, error }));
    }
    if incoming.is_excess {
        let reason = Reason::PeerGaveUp;
        let failure = Failure { reason, error: reason.describe().to_owned() };
        return Err((StatusCode::SERVICE_UNAVAILABLE, failure));
    }
    let authority: &Authority = incoming.authority.as_ref().map_err(|error| {
        (StatusCode::BAD_REQUEST, Failure::new(Reason::ConnectAuthority, error))
    })?;
    let workload = pod.pod.record(&thread.node.store).ok_or_else(|| {
        let error = "the pod's record was taken away".to_owned();
        (StatusCode::SERVICE_UNAVAILABLE, Failure { reason: Reason::UnknownDestination, error })
    })?;
    let announced = thread.node.announced;
    let (ip, only_port) = (ends.local.ip(), pod.pod.only_port);
    let local = Local { workload: &workload, ip, announced, only_port };
    let admission = admit(snapshot, local, authority)
        .and_then(|admission| match admission.authorize.port() {
            port if thread.node.is_own_port(port) => Err(Refusal::OwnPort { port }),
            _ => Ok(admission),
        })
        .map_err(|refusal| (refusal.status(), Failure::new(Reason::from(&refusal), &refusal)))?;
    Ok((workload, admission))
}

/// Connects the stream to its application, if policy lets it.
async fn join(
    thread: &Rc<DataThread>,
    pod: &Rc<LocalPod>,
    ends: &Ends,
    (workload, admission): (&Workload, &Admission),
    mut incoming: Incoming,
    subject: &Subject,
    opened: &mut Opened,
) -> Result<Joined, Failure> {
    let reaching = async {
        let permit = judge::permit(thread, pod, subject, &opened.registered, &mut opened.order)
            .await
            .map_err(|failure| (StatusCode::UNAUTHORIZED, failure))?;
        let application = dialed(thread, pod, ends, admission).await.map_err(|error| {
            (StatusCode::SERVICE_UNAVAILABLE, failure::dial(admission.dial, &error))
        })?;
        Ok((permit, application))
    };
    let reached = tokio::select! {
        biased;
        reached = ends.standing.unless_lost(reaching) => {
            reached.unwrap_or_else(|lost| Err((StatusCode::UNAUTHORIZED, lost)))
        }
        gone = incoming.abandoned() => return Err(failure::stream(&gone)),
    };
    let (permit, application) = match reached {
        Ok(reached) => reached,
        Err((status, failure)) => {
            incoming.refuse(status);
            return Err(failure);
        }
    };
    let answer = match thread.node.baggage {
        true => labels::answer_headers(workload),
        false => HeaderMap::new(),
    };
    match incoming.accept(answer) {
        Ok(stream) => Ok(Joined { permit, application, stream }),
        Err(error) => {
            // The peer has reset it meanwhile: a mere close would tell the application of an orderly end.
            capture::reset(application);
            Err(failure::stream(&error))
        }
    }
}

/// Connects to the application, and tells it who comes if it wants to be told.
async fn dialed(
    thread: &DataThread,
    pod: &LocalPod,
    ends: &Ends,
    admission: &Admission,
) -> io::Result<TcpStream> {
    let (node, pod, client) = (&thread.node, &pod.pod, ends.client);
    let Some(announced) = &admission.announced else {
        return dial::dial_application(node, pod, client.ip(), admission.dial).await;
    };
    let application = match node.announced {
        // The header names the client, and the application listens for its own node's proxy.
        AnnouncedAt::Loopback => {
            dial::dial(node, pod, admission.dial, DialedFor::Application).await?
        }
        AnnouncedAt::Pod => dial::dial_application(node, pod, client.ip(), admission.dial).await?,
    };
    let header = ProxyHeader {
        client,
        destination: announced.destination,
        peer: Some(ends.peer.clone()),
        host: announced.host.clone(),
    };
    let mut application = ResetUnlessKept::new(application);
    application.write_all(&header.to_bytes()).await?;
    Ok(application.keep())
}

fn connection(
    thread: &DataThread,
    snapshot: &Snapshot,
    ends: &Ends,
    workload: &Workload,
    admission: &Admission,
    incoming: &Incoming,
) -> Connection {
    let node = &thread.node;
    let headers = &incoming.headers;
    // The record at the peer's address is the peer's if it has the identity that TLS proved; a waypoint's or
    // gateway's address stands for somebody else.
    let is_own = !labels::is_from_other_network(headers, &node.network);
    let source = is_own
        .then(|| snapshot.workload_by_address(&node.network, ends.client.ip()))
        .flatten()
        .filter(|source| source.identity() == Some(&ends.peer));
    let source: Party = match source {
        Some(source) => labels::party(source, Some(&ends.peer)),
        None if node.baggage => labels::stranger(headers, Some(&ends.peer)),
        None => labels::stranger(&HeaderMap::new(), Some(&ends.peer)),
    };
    // The pod may serve several services on one port: the client's word for what it dialed comes first.
    let dialed = labels::dialed_host(headers)
        .and_then(|host| snapshot.service_by_host(host, &workload.namespace))
        .filter(|service| workload.membership(&service.key).is_some());
    let service = dialed.map(|service| &**service).or(admission.service.as_deref());
    Connection {
        traffic: Traffic {
            reporter: Reporter::Destination,
            source,
            destination: labels::party(workload, workload.identity()),
            service: service.map(labels::service_name),
            security: Security::MutualTls,
        },
        source: ends.client,
        destination: ends.local,
        hbone_authority: incoming
            .authority
            .as_ref()
            .ok()
            .map(|authority| authority.to_string().into()),
        trace: Some(Trace::of(headers).unwrap_or_else(Trace::random).id()),
    }
}
