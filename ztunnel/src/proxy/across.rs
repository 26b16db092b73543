//! A connection to another network: a tunnel to its gateway, and inside it one to whoever is behind it.
//!
//! In: a decided route. Out: bytes copied, and a record of whom it reached. The gateway chooses who that is, so it is known
//! only when both tunnels are open.

use std::{rc::Rc, sync::Arc};

use http::HeaderValue;
use mesh::{
    hbone::{self, Authority, Inner, OpenError, Side, open_inner},
    identity::Spiffe,
    store::Workload,
    telemetry::{DialedFor, Failure},
};
use tokio::net::TcpStream;

use super::{
    counters::NearInitiates,
    credential::credential,
    dial, failure, labels,
    live::CutNote,
    outbound::Route,
    revocation::{self, Standing},
    thread::{DataThread, LocalPod},
};
use crate::capture;

/// What the two tunnels ask for, and of whom.
pub(super) struct Across {
    pub(super) gateway: Arc<Workload>,
    /// A service's name and port.
    pub(super) authority: Authority,
    /// Who must be found at the gateway.
    pub(super) expect: Arc<[Spiffe]>,
    /// Who must be found behind it.
    pub(super) behind: Arc<[Spiffe]>,
}

/// Which of the tunnels did not open.
#[derive(Debug, thiserror::Error)]
enum AcrossError {
    #[error("the tunnel to gateway {gateway}")]
    Outer { gateway: Arc<str>, source: OpenError },
    #[error("the tunnel through gateway {gateway}")]
    Inner { gateway: Arc<str>, source: OpenError },
}

/// Serves one connection to its end.
pub(super) async fn serve(
    thread: &Rc<DataThread>,
    pod: &Rc<LocalPod>,
    tcp: TcpStream,
    route: &Route,
    across: &Across,
) {
    let (_registered, order) = thread.live.outbound(&pod.pod);
    let mut connection = route.connection();
    let (Inner { stream, headers, peer }, gateway) = match open(thread, pod, route, across).await {
        Ok(inner) => inner,
        Err(failure) => {
            capture::reset(tcp);
            return thread.metrics.open(connection).finish(Err(failure));
        }
    };
    connection.traffic.destination = labels::stranger(&headers, Some(&peer));
    let metrics = thread.metrics.open(connection);
    let (permit, counters, note) =
        (route.hop.permit(), NearInitiates(&metrics), CutNote::default());
    let order = revocation::or(thread.standing_of(&stream), note.wait(order));
    let order = revocation::or(gateway, order);
    let outcome = hbone::splice(&permit, tcp, stream, &counters, order).await;
    let result = failure::outcome(&outcome, Side::Near, note.error());
    metrics.finish(result);
}

async fn open(
    thread: &DataThread,
    pod: &LocalPod,
    route: &Route,
    across: &Across,
) -> Result<(Inner, Option<Standing>), Failure> {
    let node = &thread.node;
    let credential = credential(node, &pod.pod, &route.source).await?;
    let gateway = || across.gateway.uid.clone();
    let dial = async |to| dial::dial(node, &pod.pod, to, DialedFor::Tunnel).await;
    let key = route.pool_key(&credential, &across.expect);
    let request = route.request(across.authority.clone());
    let (outer, _answer) = pod
        .pool
        .open(&key, &credential, request, dial)
        .await
        .map_err(|source| AcrossError::Outer { gateway: gateway(), source })?;
    let standing = thread.standing_of(&outer);
    let mut request = route.request(across.authority.clone());
    // A name that no header can hold says nothing to anybody.
    if let Ok(network) = HeaderValue::from_str(&node.network) {
        request.headers.insert(labels::FORWARDED_NETWORK, network);
    }
    let inner =
        open_inner(outer, route.dial, &across.behind, &credential, request, &node.hbone).await;
    let inner = inner.map_err(|source| AcrossError::Inner { gateway: gateway(), source })?;
    Ok((inner, standing))
}

impl From<AcrossError> for Failure {
    fn from(error: AcrossError) -> Self {
        let reason = match &error {
            AcrossError::Outer { source, .. } | AcrossError::Inner { source, .. } => source.into(),
        };
        Self::new(reason, &error)
    }
}
