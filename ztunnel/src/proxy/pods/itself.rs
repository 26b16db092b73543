//! The daemon itself as a workload of the mesh: its metrics port is reached in tunnels, under policy as a pod's.
//!
//! In: who the daemon is. Out: a listener for tunnels in its own network namespace, of which nothing is captured.

use std::sync::Arc;

use mesh::store::HBONE_PORT;
use tokio_util::sync::CancellationToken;

use super::{Pods, ThreadListeners};
use crate::{
    admin::{PodState, PodStatus},
    capture::{Netns, home_listener},
    config::HostWorkload,
    pods::{AddError, CaptureOptions, PodUid, SourceAddress},
    proxy::{Pod, PodLimits, Share},
};

/// The daemon itself, served or about to be.
pub(super) struct Itself {
    who: HostWorkload,
    uid: PodUid,
    netns: Arc<Netns>,
    metrics_port: u16,
    state: PodState,
}

impl Itself {
    pub(super) fn uid(&self) -> PodUid {
        self.uid.clone()
    }

    /// As administration shows it.
    pub(super) fn status(&self) -> PodStatus {
        PodStatus {
            uid: self.uid(),
            namespace: self.who.namespace.clone(),
            name: self.who.name.clone(),
            service_account: self.who.service_account.clone(),
            state: self.state,
            is_daemon: true,
        }
    }

    /// Whether it has the identity of a pod.
    pub(super) fn is_identified_as(&self, pod: &Pod) -> bool {
        pod.namespace == self.who.namespace && pod.service_account == self.who.service_account
    }

    fn pod(&self, limits: &PodLimits) -> Pod {
        Pod {
            uid: self.uid(),
            namespace: self.who.namespace.clone(),
            name: self.who.name.clone(),
            service_account: self.who.service_account.clone(),
            netns: self.netns.clone(),
            ips: Vec::new(),
            capture: CaptureOptions::default(),
            source_address: SourceAddress::Pod,
            only_port: Some(self.metrics_port),
            share: Share::new(limits),
            removed: CancellationToken::new(),
        }
    }
}

impl Pods {
    /// Serves tunnels to the daemon itself. Of its namespace, which may be the node's, they reach `metrics_port` and
    /// nothing else, as connections of its own. If it cannot be served yet, it is tried again like a pod.
    ///
    /// # Errors
    /// [`AddError::Enter`] if the kernel does not tell of the daemon's own namespace.
    pub fn add_itself(&self, who: &HostWorkload, metrics_port: u16) -> Result<(), AddError> {
        let netns = Netns::home().map_err(|source| AddError::Enter { source })?;
        self.itself.replace(Some(Itself {
            who: who.clone(),
            uid: PodUid::parse("ztunnel").expect("letters: nothing else is checked"),
            netns: Arc::new(netns),
            metrics_port,
            state: PodState::Pending,
        }));
        self.serve_itself();
        Ok(())
    }

    /// Opens the listener, if it is not open.
    pub(super) fn serve_itself(&self) {
        if let Some(itself) = self.itself.borrow_mut().as_mut()
            && itself.state == PodState::Pending
        {
            let pod = Arc::new(itself.pod(&self.node.limits));
            match self.start_itself(&pod) {
                Ok(()) => {
                    itself.state = PodState::Up;
                    self.prefetch(&pod);
                    tracing::info!(pod = %pod.name, namespace = %pod.namespace, "metrics are served in tunnels");
                }
                Err(error) => {
                    // Some threads may have it already.
                    pod.removed.cancel();
                    tracing::warn!(%error, port = HBONE_PORT, "metrics are not served in tunnels yet");
                }
            }
        }
        self.list();
    }

    fn start_itself(&self, pod: &Arc<Pod>) -> Result<(), AddError> {
        let listener = home_listener(HBONE_PORT, self.node.capture.sockets())
            .map_err(|source| AddError::Listen { source })?;
        // One thread listens, all are dealt its tunnels.
        let first = ThreadListeners { hbone: Some(listener), ..ThreadListeners::default() };
        let none = std::iter::repeat_with(ThreadListeners::default);
        let listeners = std::iter::once(first).chain(none).take(self.threads.count()).collect();
        self.threads
            .serve(pod, listeners)
            .map_err(|error| AddError::Thread { reason: error.to_string() })
    }
}
