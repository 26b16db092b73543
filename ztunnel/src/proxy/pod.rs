//! A pod that is being served: what all threads know of it.

use std::{net::IpAddr, sync::Arc, time::Duration};

use mesh::store::{Store, Workload};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::Share;
use crate::{
    capture::Netns,
    pods::{CaptureOptions, PodUid, SourceAddress},
};

/// How long a connection waits for the control plane to describe its pod, as in Istio's ztunnel.
const RECORD_LIMIT: Duration = Duration::from_secs(5);

/// A pod that is being served.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its unique name.
    pub uid: PodUid,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its service account.
    pub service_account: String,
    /// Its network namespace.
    pub netns: Arc<Netns>,
    /// Its addresses, at most one of each family.
    pub ips: Vec<IpAddr>,
    /// How its traffic is captured.
    pub capture: CaptureOptions,
    /// Whose address its applications see on connections out of the mesh.
    pub source_address: SourceAddress,
    /// The one port that its peers can reach, if not all of them.
    pub only_port: Option<u16>,
    /// What it uses of the daemon.
    pub share: Arc<Share>,
    /// Cancelled when it is removed.
    pub removed: CancellationToken,
}

/// The control plane has not described a pod in time.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "the control plane has not described pod {namespace}/{name} with service account {service_account}"
)]
pub(crate) struct UnknownPod {
    namespace: String,
    name: String,
    service_account: String,
}

impl Pod {
    /// Whether another announcement of the pod says the same.
    pub(super) fn is_described_as(&self, other: &Self) -> bool {
        let said = |pod: &Self| {
            (
                pod.namespace.clone(),
                pod.name.clone(),
                pod.service_account.clone(),
                pod.capture.clone(),
            )
        };
        said(self) == said(other) && self.ips == other.ips
    }

    /// The pod's record, found by its name and never by an address. Waits for it for at most five seconds.
    pub(crate) async fn workload(&self, store: &Store) -> Result<Arc<Workload>, UnknownPod> {
        if let Some(workload) = self.record(store) {
            return Ok(workload);
        }
        let mut changes = store.subscribe();
        let arrival = async {
            loop {
                changes.borrow_and_update();
                if let Some(workload) = self.record(store) {
                    return workload;
                }
                if changes.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        timeout(RECORD_LIMIT, arrival).await.map_err(|_| UnknownPod {
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            service_account: self.service_account.clone(),
        })
    }

    /// The pod's record, if it has arrived.
    pub(crate) fn record(&self, store: &Store) -> Option<Arc<Workload>> {
        store.load().workload_of(&self.namespace, &self.name, &self.service_account).cloned()
    }
}
