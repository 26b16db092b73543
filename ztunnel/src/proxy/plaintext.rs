//! A connection from outside the mesh to a pod of this node: policy without an identity, then the application.

use std::{net::SocketAddr, rc::Rc, sync::Arc};

use mesh::{
    hbone::{self, Side},
    store::Workload,
    telemetry::{
        Connection, ConnectionMetrics, Failure, Party, Reason, Reporter, Security, Traffic,
    },
};
use tokio::net::TcpStream;

use super::{
    counters::NearInitiates,
    dial, failure, judge, labels,
    live::{CutNote, Subject},
    outbound::refuse,
    share::Held,
    thread::{DataThread, LocalPod},
};
use crate::{
    admin::{Direction, OpenConnection, Protocol},
    capture,
};

/// Serves one accepted connection to its end, and keeps its place in the pod's share as long.
pub(super) async fn serve(
    thread: Rc<DataThread>,
    pod: Rc<LocalPod>,
    tcp: TcpStream,
    client: SocketAddr,
    _place: Held,
) {
    let _open = thread.metrics.socket(Reporter::Destination);
    let _load = thread.loaded();
    let target = match tcp.local_addr() {
        // The listener takes any address and port: the kernel steers to it what was meant for the application.
        Ok(local) => SocketAddr::new(local.ip().to_canonical(), local.port()),
        Err(error) => {
            tracing::debug!(%client, %error, "a connection was gone before it began");
            return;
        }
    };
    if thread.node.is_own_port(target.port()) {
        let error = format!("{target} is a port of the daemon's own");
        return refuse(
            Reporter::Destination,
            tcp,
            client,
            target,
            &Failure { reason: Reason::OwnPort, error },
        );
    }
    let workload = match pod.pod.workload(&thread.node.store).await {
        Ok(workload) => workload,
        Err(error) => {
            let failure = Failure::new(Reason::UnknownDestination, &error);
            return refuse(Reporter::Destination, tcp, client, target, &failure);
        }
    };
    let metrics = thread.metrics.open(connection(&thread, &workload, client, target));
    let _listed = thread.node.connections.open(OpenConnection {
        pod: pod.pod.uid.clone(),
        direction: Direction::Inbound,
        source: client,
        original_destination: target,
        actual_destination: target,
        protocol: Protocol::Tcp,
        peer: None,
    });
    let subject = Subject { peer: None, source: client, destination: target };
    let result = forward(&thread, &pod, tcp, subject, &metrics).await;
    metrics.finish(result);
}

async fn forward(
    thread: &Rc<DataThread>,
    pod: &Rc<LocalPod>,
    tcp: TcpStream,
    subject: Subject,
    metrics: &ConnectionMetrics,
) -> Result<(), Failure> {
    let (client, target) = (subject.source, subject.destination);
    let (registered, mut order) = thread.live.inbound(&pod.pod, subject.clone());
    let permit = match judge::permit(thread, pod, &subject, &registered, &mut order).await {
        Ok(permit) => permit,
        Err(failure) => {
            capture::reset(tcp);
            return Err(failure);
        }
    };
    let application =
        match dial::dial_application(&thread.node, &pod.pod, client.ip(), target).await {
            Ok(application) => application,
            Err(error) => {
                capture::reset(tcp);
                return Err(failure::dial(target, &error));
            }
        };
    let note = CutNote::default();
    let outcome =
        hbone::relay(&permit, tcp, application, &NearInitiates(metrics), note.wait(order)).await;
    failure::outcome(&outcome, Side::Far, note.error())
}

fn connection(
    thread: &DataThread,
    workload: &Workload,
    client: SocketAddr,
    target: SocketAddr,
) -> Connection {
    let snapshot = thread.node.store.load();
    // Without a certificate an address says who it probably was: good for a label, not for policy.
    let source = snapshot.workload_by_address(&thread.node.network, client.ip());
    Connection {
        traffic: Traffic {
            reporter: Reporter::Destination,
            source: source.map_or_else(Party::default, |source| labels::party(source, None)),
            destination: labels::party(workload, None),
            service: None,
            security: Security::Plaintext,
        },
        source: client,
        destination: target,
        hbone_authority: None::<Arc<str>>,
        trace: None,
    }
}
