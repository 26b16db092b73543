//! The certificate a pod's tunnels are opened and accepted with.

use std::sync::Arc;

use mesh::{
    identity::Credential,
    store::Workload,
    telemetry::{Failure, Reason},
};

use super::{Node, Pod};

/// The certificate of `workload`, which is `pod`'s. Waits for a first one as long as the settings say. A removed pod gets
/// none: its identity may be forgotten already, and asking would bring it back.
pub(super) async fn credential(
    node: &Node,
    pod: &Pod,
    workload: &Workload,
) -> Result<Arc<Credential>, Failure> {
    let identity = workload.identity().ok_or_else(|| Failure {
        reason: Reason::CertificateUnavailable,
        error: format!("workload {} has no usable identity", workload.uid),
    })?;
    if let Some(credential) = node.identities.current(identity) {
        return Ok(credential);
    }
    match pod.removed.run_until_cancelled(node.identities.credential(identity)).await {
        Some(Ok(credential)) => Ok(credential),
        Some(Err(error)) => Err(Failure::new(Reason::CertificateUnavailable, &error)),
        None => {
            let error = format!("pod {} was removed", pod.uid);
            Err(Failure { reason: Reason::PodRemoved, error })
        }
    }
}
