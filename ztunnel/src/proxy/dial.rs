//! Opens TCP connections out of a pod's network namespace.
//!
//! In: the pod and where to. Out: a connection that capture leaves alone, or why there is none, within ten seconds.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use mesh::telemetry::{self, DialedFor};
use tokio::{net::TcpStream, time::timeout};

use super::{Node, Pod};
use crate::pods::SourceAddress;

/// A TCP connection is made within this time, as by Istio's ztunnel.
pub(super) const DIAL_LIMIT: Duration = Duration::from_secs(10);

/// Dials as the pod itself.
pub(super) async fn dial(
    node: &Node,
    pod: &Pod,
    to: SocketAddr,
    purpose: DialedFor,
) -> io::Result<TcpStream> {
    limited(purpose, node.capture.dial(&pod.netns, to)).await
}

/// Dials the pod's application; it sees `client` as the source, unless the pod is set to see itself.
pub(super) async fn dial_application(
    node: &Node,
    pod: &Pod,
    client: IpAddr,
    to: SocketAddr,
) -> io::Result<TcpStream> {
    // A connection from the pod to itself keeps the pod's own address: both ends would be the same socket pair.
    let as_client = pod.source_address == SourceAddress::Client && client != to.ip();
    if !as_client || client.is_ipv4() != to.is_ipv4() {
        return dial(node, pod, to, DialedFor::Application).await;
    }
    limited(DialedFor::Application, node.capture.dial_as(&pod.netns, client, to)).await
}

async fn limited(
    purpose: DialedFor,
    connect: impl Future<Output = io::Result<TcpStream>>,
) -> io::Result<TcpStream> {
    let began = Instant::now();
    match timeout(DIAL_LIMIT, connect).await {
        Ok(result) => {
            let tcp = result?;
            telemetry::dialed(purpose, began.elapsed());
            Ok(tcp)
        }
        Err(_) => {
            Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {DIAL_LIMIT:?}")))
        }
    }
}
