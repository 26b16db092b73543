//! Opens TCP connections out of a pod's network namespace.
//!
//! In: the pod and where to. Out: a connection that capture leaves alone, or why there is none, within ten seconds.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use mesh::telemetry::{self, DialedFor, Failure, Reason};
use tokio::{net::TcpStream, time::timeout};

use super::{Node, Pod};
use crate::pods::SourceAddress;

/// A TCP connection is made within this time, as by Istio's ztunnel.
const DIAL_LIMIT: Duration = Duration::from_secs(10);

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

/// An address of a name, by the system's resolver; one of the family of `like` where there is one.
pub(super) async fn resolve(host: &str, like: IpAddr) -> Result<IpAddr, Failure> {
    let failed = |error: String| Failure {
        reason: Reason::DialFailed,
        error: format!("resolving {host}: {error}"),
    };
    let answer = timeout(DIAL_LIMIT, tokio::net::lookup_host((host, 0))).await;
    let found: Vec<IpAddr> = answer
        .map_err(|_| failed(format!("no answer within {DIAL_LIMIT:?}")))?
        .map_err(|error| failed(error.to_string()))?
        .map(|found| found.ip())
        .collect();
    let alike = found.iter().find(|ip| ip.is_ipv4() == like.is_ipv4());
    alike.or(found.first()).copied().ok_or_else(|| failed("the name has no address".to_owned()))
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
