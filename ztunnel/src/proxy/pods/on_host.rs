//! The host in the place of a pod: enrolled with all its addresses, which come and go while it runs.
//!
//! In: who the host is. Out: its traffic captured at whatever addresses it has. Connections are served as a pod's.

use std::sync::Arc;

use super::{Pods, Source, wanted::Wanted};
use crate::{
    capture::{CaptureError, DnsListeners, Exclusions, PodCapture, PodListeners},
    config::HostWorkload,
    pods::AddError,
    proxy::Pod,
};

/// What is needed to follow the host's addresses.
pub(super) struct Host {
    pub(super) capture: PodCapture,
    /// The listeners once more, for addresses to come. Dropped when draining begins: open ones would count as a daemon
    /// that answers.
    pub(super) listeners: PodListeners,
    /// The host as its queries are answered: with the addresses of this moment. It ends with the host, or when others
    /// take its place.
    pub(super) asker: Arc<Pod>,
}

impl Host {
    pub(super) fn new(pod: &Pod, capture: PodCapture, listeners: PodListeners) -> Self {
        let asker = Arc::new(Pod { removed: pod.removed.child_token(), ..pod.clone() });
        Self { capture, listeners, asker }
    }
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
        let claims = Source::Host.into();
        self.attempt(&wanted, &claims).inspect_err(|_| self.refuse(wanted, claims))
    }

    /// Whether the host is captured.
    pub fn has_host(&self) -> bool {
        self.served.borrow().values().any(|served| served.claims.has(Source::Host))
    }

    /// Captures at addresses that the host has got, and no longer at those that it has lost. What is open goes on, but
    /// for queries in datagrams, whose sockets belong to an address: their clients ask again.
    pub fn follow_host(&self) {
        let mut host = self.host.borrow_mut();
        let Some(host) = host.as_mut() else { return };
        let Some(asker) = self.host_of_this_moment() else { return };
        if asker.ips == host.capture.ips {
            return;
        }
        let former = host.capture.ips.clone();
        host.capture.ips.clone_from(&asker.ips);
        match self.capture_at_addresses(host, asker) {
            Ok(()) => tracing::info!(ips = ?host.capture.ips, "the host's addresses have changed"),
            Err(error) => {
                tracing::error!(%error, "the host's addresses have changed and are not captured");
                host.capture.ips = former;
            }
        }
    }

    /// What fails is tried again whole.
    fn capture_at_addresses(&self, host: &mut Host, asker: Pod) -> Result<(), AddError> {
        let listen = |source| AddError::Listen { source };
        let mut serve = None;
        if self.captures_dns(&asker) {
            let dns = DnsListeners::open(&asker.netns, &asker.ips, self.node.dns.port);
            let dns = dns.map_err(listen)?;
            serve = Some(dns.try_clone().map_err(listen)?);
            host.listeners.dns = Some(dns);
        }
        let enrolled = self.node.capture.enrol(&host.capture, &host.listeners);
        enrolled.map_err(|source| AddError::Capture { source })?;
        let asker = Arc::new(asker);
        if let Some(dns) = serve {
            let served = self.threads.serve_dns(&asker, dns);
            served.map_err(|error| AddError::Thread { reason: error.to_string() })?;
        }
        std::mem::replace(&mut host.asker, asker).removed.cancel();
        Ok(())
    }

    /// Lets go of what keeps the host's listeners open.
    pub fn let_go_of_host(&self) {
        self.host.replace(None);
    }

    fn host_of_this_moment(&self) -> Option<Pod> {
        let served = self.served.borrow();
        let host = served.values().find(|served| served.claims.has(Source::Host))?;
        let described = HostWorkload {
            namespace: host.pod.namespace.clone(),
            name: host.pod.name.clone(),
            service_account: host.pod.service_account.clone(),
        };
        let described = Wanted::host(&described).and_then(|wanted| wanted.pod(&self.node));
        let removed = host.pod.removed.child_token();
        described.map(|pod| Pod { removed, ..pod }).ok()
    }
}
