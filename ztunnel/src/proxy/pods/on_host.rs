//! The host in the place of a pod: enrolled with all its addresses, which come and go while it runs.
//!
//! In: who the host is. Out: its traffic captured at whatever addresses it has. Connections are served as a pod's.

use std::net::IpAddr;

use super::{Pods, Source, wanted::Wanted};
use crate::{
    capture::{CaptureError, Exclusions, PodCapture, PodListeners},
    config::HostWorkload,
    pods::AddError,
};

/// What is needed to follow the host's addresses.
pub(super) struct Host {
    pub(super) capture: PodCapture,
    /// The listeners once more, for addresses to come. Dropped when draining begins: open ones would count as a daemon
    /// that answers.
    pub(super) listeners: PodListeners,
}

impl Pods {
    /// Leaves these connections of the host uncaptured.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn exclude(&self, exclusions: &Exclusions) -> Result<(), CaptureError> {
        self.node.capture.exclude(exclusions)
    }

    /// Captures the host itself.
    ///
    /// # Errors
    /// [`AddError`]: it is tried again like a pod.
    pub fn add_host(&self, who: &HostWorkload) -> Result<(), AddError> {
        let wanted = Wanted::host(who)?;
        self.attempt(&wanted, Source::Host).inspect_err(|_| self.refuse(wanted, Source::Host))
    }

    /// Captures at addresses that the host has got, and no longer at those that it has lost. What is open goes on.
    pub fn follow_host(&self) {
        let mut host = self.host.borrow_mut();
        let Some(host) = host.as_mut() else { return };
        let Some(ips) = self.addresses_of_host() else { return };
        if ips == host.capture.ips {
            return;
        }
        let former = std::mem::replace(&mut host.capture.ips, ips);
        match self.node.capture.enrol(&host.capture, &host.listeners) {
            Ok(_) => tracing::info!(ips = ?host.capture.ips, "the host's addresses have changed"),
            Err(error) => {
                tracing::error!(%error, "the host's addresses have changed and are not captured");
                host.capture.ips = former;
            }
        }
    }

    /// Lets go of what keeps the host's listeners open.
    pub fn let_go_of_host(&self) {
        self.host.replace(None);
    }

    fn addresses_of_host(&self) -> Option<Vec<IpAddr>> {
        let served = self.served.borrow();
        let host = served.values().find(|served| served.sources.contains(&Source::Host))?;
        let described = HostWorkload {
            namespace: host.pod.namespace.clone(),
            name: host.pod.name.clone(),
            service_account: host.pod.service_account.clone(),
        };
        let described = Wanted::host(&described).and_then(|wanted| wanted.pod(&self.node));
        described.map(|pod| pod.ips).ok()
    }
}
