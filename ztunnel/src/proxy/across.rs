//! A connection to another network: a tunnel to its gateway, and inside it one to whoever is behind it.
//!
//! In: a decided route. Out: a stream, and whom it reached. The gateway chooses who that is, so it is known only when both
//! tunnels are open.

use std::sync::Arc;

use http::HeaderValue;
use mesh::{
    hbone::{Authority, Inner, OpenError, open_inner},
    identity::{Credential, Spiffe},
    store::Workload,
    telemetry::Failure,
};

use super::{
    labels,
    outbound::Route,
    revocation::Standing,
    thread::{DataThread, LocalPod},
};

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

/// Opens both tunnels.
pub(super) async fn open(
    thread: &DataThread,
    pod: &LocalPod,
    route: &Route,
    across: &Across,
    credential: &Arc<Credential>,
) -> Result<(Inner, Option<Standing>), Failure> {
    let node = &thread.node;
    let gateway = || across.gateway.uid.clone();
    let dial = async |to| pod.dial_tunnel(thread, to).await;
    let key = route.pool_key(credential, &across.expect);
    let request = || route.request(across.authority.clone());
    let (outer, _answer) = pod
        .pool
        .open(&key, credential, request, dial)
        .await
        .map_err(|source| AcrossError::Outer { gateway: gateway(), source })?;
    let standing = thread.standing_of(&outer);
    let mut request = request();
    // A name that no header can hold says nothing to anybody.
    if let Ok(network) = HeaderValue::from_str(&node.network) {
        request.headers.insert(labels::FORWARDED_NETWORK, network);
    }
    let inner =
        open_inner(outer, route.dial, &across.behind, credential, request, &pod.hbone).await;
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
