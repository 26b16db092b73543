//! The table of served pods: opens their listeners, has them captured, hands them to the data threads.
//!
//! In: pods announced and taken back by their sources. Out: traffic captured, or an [`AddError`] and nothing left
//! behind. Lives on the control thread.

mod claims;
mod itself;
mod on_host;
mod wanted;

use std::{
    cell::RefCell,
    collections::BTreeMap,
    num::NonZeroUsize,
    path::Path,
    rc::Rc,
    sync::{Arc, Mutex, PoisonError},
};

use mesh::identity::Spiffe;
use metrics::counter;
use tokio::{runtime::RuntimeMetrics, sync::watch};

use self::{claims::Claims, itself::Itself, on_host::Host, wanted::Wanted};
use super::{DataThreads, Node, Pod, thread::ThreadListeners};
use crate::{
    admin::{PodState, PodStatus},
    capture::{
        DaemonAway, DnsListeners, Netns, PodCapture, PodListeners, Scope, Sources,
        loopback_listener,
    },
    next_hop::SOCKS_PORT,
    pods::{AddError, Announced, DnsCapture, PodTable, PodUid, SourceAddress, WithoutDaemon},
};

/// All served pods.
pub struct Pods {
    node: Arc<Node>,
    threads: DataThreads,
    served: RefCell<BTreeMap<PodUid, Served>>,
    /// Pods that were announced and could not be served. What an earlier daemon captured of them stays captured, and so
    /// refused, until they are removed: to release it would send their traffic in the clear.
    refused: RefCell<BTreeMap<PodUid, Refused>>,
    listing: Listing,
    /// In dedicated mode: the host that is captured.
    host: RefCell<Option<Host>>,
    /// The daemon as a workload of the mesh.
    itself: RefCell<Option<Itself>>,
    /// How many pods of the node agent wait to be served.
    waiting: watch::Sender<usize>,
    /// The daemon's own network namespace.
    home: Option<u64>,
}

/// A pod that could not be served, and is tried again.
#[derive(Clone)]
struct Refused {
    wanted: Wanted,
    claims: Claims,
}

/// What other threads see of the table.
pub type Listing = Arc<Mutex<BTreeMap<PodUid, PodStatus>>>;

struct Served {
    pod: Arc<Pod>,
    claims: Claims,
}

/// Who announced a pod.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Source {
    /// Our own folder and socket.
    Registry,
    /// Istio's node agent.
    NodeAgent,
    /// The settings: the host itself.
    Host,
}

/// The table as one source sees it: it lists, replaces and removes only its own pods.
pub struct SourceView {
    pods: Rc<Pods>,
    source: Source,
}

impl Pods {
    /// An empty table.
    pub fn new(node: Arc<Node>, threads: DataThreads) -> Rc<Self> {
        Rc::new(Self {
            node,
            threads,
            served: RefCell::default(),
            refused: RefCell::default(),
            listing: Arc::default(),
            host: RefCell::default(),
            itself: RefCell::default(),
            waiting: watch::Sender::new(0),
            home: Netns::open(Path::new("/proc/self/ns/net")).ok().map(|home| home.cookie()),
        })
    }

    /// The table for one source.
    pub fn of(self: &Rc<Self>, source: Source) -> SourceView {
        SourceView { pods: self.clone(), source }
    }

    /// The pods being served, for other threads to look at.
    pub fn listing(&self) -> Listing {
        self.listing.clone()
    }

    /// How many pods of the node agent wait to be served: it counts on none of them to be forgotten.
    pub fn waiting(&self) -> watch::Receiver<usize> {
        self.waiting.subscribe()
    }

    /// Takes away the capture of pods that an earlier daemon left and no source has named.
    pub fn release_leftovers(&self) {
        let refused = self.refused.borrow();
        let mut named: Vec<u64> =
            refused.values().map(|refused| refused.wanted.netns.cookie()).collect();
        named.extend(self.served.borrow().values().map(|served| served.pod.netns.cookie()));
        match self.node.capture.reconcile(&named) {
            Ok(released) => {
                for pod in released {
                    tracing::info!(ips = ?pod.ips, "released a pod that an earlier daemon left");
                }
            }
            Err(error) => {
                tracing::error!(%error, "what an earlier daemon left is not wholly released");
            }
        }
    }

    /// Waits for the data threads, which end with the node's `ending` token. Capture stays: without a daemon it
    /// refuses.
    pub fn join(&self) {
        self.threads.join();
    }

    /// What the data threads' runtimes do.
    pub fn runtimes(&self) -> Vec<RuntimeMetrics> {
        self.threads.runtimes()
    }

    fn list(&self) {
        let (served, refused) = (self.served.borrow(), self.refused.borrow());
        let pending = refused.iter().map(|(uid, refused)| (uid.clone(), refused.wanted.status()));
        let up = served.iter().map(|(uid, served)| (uid.clone(), status(&served.pod)));
        let itself = self.itself.borrow().as_ref().map(|itself| (itself.uid(), itself.status()));
        let listed = pending.chain(up).chain(itself).collect();
        let agents =
            refused.values().filter(|refused| refused.claims.has(Source::NodeAgent)).count();
        self.waiting.send_if_modified(|waiting| std::mem::replace(waiting, agents) != agents);
        *self.listing.lock().unwrap_or_else(PoisonError::into_inner) = listed;
    }

    fn add(&self, announced: Announced, source: Source) -> Result<(), AddError> {
        if self.node.draining.is_cancelled() {
            return Err(AddError::ShuttingDown);
        }
        if self.itself.borrow().as_ref().is_some_and(|itself| itself.uid() == announced.uid) {
            return Err(AddError::DaemonUid { uid: announced.uid });
        }
        let wanted = Wanted::of(announced)?;
        self.attempt(&wanted, &source.into()).inspect_err(|_| self.refuse(wanted, source.into()))
    }

    fn attempt(&self, wanted: &Wanted, claims: &Claims) -> Result<(), AddError> {
        let (uid, cookie) = (&wanted.uid, wanted.netns.cookie());
        self.check_netns(wanted)?;
        let former = self.served.borrow().get(uid).map(|served| served.pod.clone());
        if former.as_ref().is_some_and(|former| former.netns.cookie() != cookie) {
            self.remove(uid);
        }
        // An earlier failure in the same namespace left it captured, and so refused, until this succeeds.
        let earlier = self.refused.borrow().get(uid).map(|earlier| earlier.wanted.netns.cookie());
        if let Some(earlier) = earlier.filter(|earlier| *earlier != cookie) {
            self.refused.borrow_mut().remove(uid);
            self.withdraw(uid, earlier);
        }
        let pod = wanted.pod(&self.node)?;
        match former {
            Some(former) if former.netns.cookie() == cookie && former.is_described_as(&pod) => {
                self.claim(uid, claims);
            }
            // What changed is put in force over the former, which stays captured meanwhile.
            Some(_) | None => self.serve(pod, wanted.scope, claims)?,
        }
        // Whoever announced it while it was refused has it served now.
        let waited = self.refused.borrow_mut().remove(uid);
        if let Some(waited) = waited {
            self.claim(uid, &waited.claims);
        }
        self.list();
        Ok(())
    }

    fn refuse(&self, wanted: Wanted, mut claims: Claims) {
        let mut refused = self.refused.borrow_mut();
        if let Some(former) = refused.get(&wanted.uid) {
            claims.join(&former.claims);
        }
        refused.insert(wanted.uid.clone(), Refused { wanted, claims });
        drop(refused);
        self.list();
    }

    /// Tries once more to serve the pods that could not be served.
    pub fn retry(&self) {
        if self.node.draining.is_cancelled() {
            return;
        }
        self.serve_itself();
        let waiting: Vec<_> = self.refused.borrow().values().cloned().collect();
        for Refused { wanted, claims } in waiting {
            if let Err(error) = self.attempt(&wanted, &claims) {
                tracing::warn!(uid = %wanted.uid, pod = %wanted.name, %error, "a pod is still not served");
                self.refuse(wanted, claims);
            }
        }
    }

    /// A namespace is one pod's, and not the daemon's own: its connections to the control plane must not be captured.
    /// In dedicated mode the programs know which those are.
    fn check_netns(&self, wanted: &Wanted) -> Result<(), AddError> {
        let (uid, cookie) = (&wanted.uid, wanted.netns.cookie());
        if self.home == Some(cookie) && wanted.scope == Scope::Pod {
            return Err(AddError::OwnNetns);
        }
        let served = self.served.borrow();
        let mut others = served.iter().filter(|(other, _)| *other != uid);
        match others.find(|(_, served)| served.pod.netns.cookie() == cookie) {
            Some((other, _)) => Err(AddError::SharedNetns { other: other.clone() }),
            None => Ok(()),
        }
    }

    fn claim(&self, uid: &PodUid, claims: &Claims) {
        if let Some(served) = self.served.borrow_mut().get_mut(uid) {
            served.claims.join(claims);
        }
    }

    fn serve(&self, pod: Pod, scope: Scope, claims: &Claims) -> Result<(), AddError> {
        let pod = self.start(pod, scope)?;
        tracing::info!(uid = %pod.uid, pod = %pod.name, namespace = %pod.namespace, ips = ?pod.ips, "pod captured");
        let former = self.served.borrow_mut().remove(&pod.uid);
        let mut claims = claims.clone();
        if let Some(former) = &former {
            claims.join(&former.claims);
        }
        self.served.borrow_mut().insert(pod.uid.clone(), Served { pod: pod.clone(), claims });
        match former {
            Some(former) => former.pod.removed.cancel(),
            None => counter!("workload_manager_proxies_started_total").increment(1),
        }
        Ok(())
    }

    /// Listeners first, capture last: what is captured has somebody to answer it.
    fn start(&self, mut pod: Pod, scope: Scope) -> Result<Arc<Pod>, AddError> {
        let count = NonZeroUsize::new(self.threads.count())
            .expect("there is a data thread: checked by the settings");
        let listen = |source| AddError::Listen { source };
        let mut listeners =
            PodListeners::open(&pod.netns, count, self.node.capture.sockets()).map_err(listen)?;
        if self.captures_dns(&pod) {
            let dns = DnsListeners::open(&pod.netns, &pod.ips, self.node.dns.port);
            listeners.dns = Some(dns.map_err(listen)?);
        }
        if self.node.socks5 {
            let socks = loopback_listener(&pod.netns, SOCKS_PORT, self.node.capture.sockets());
            listeners.socks = Some(socks.map_err(listen)?);
        }
        let capture = PodCapture {
            netns: pod.netns.clone(),
            ips: pod.ips.clone(),
            daemon_away: match pod.capture.without_daemon {
                WithoutDaemon::Refuse => DaemonAway::Refuse,
                WithoutDaemon::Pass => DaemonAway::Pass,
            },
            sources: self.node.sources,
            scope,
        };
        let sources = self
            .node
            .capture
            .enrol(&capture, &listeners)
            .map_err(|source| AddError::Capture { source })?;
        if sources == Sources::Own {
            pod.source_address = SourceAddress::Pod;
        }
        let mut asker = None;
        if scope == Scope::Host {
            let shown = self.node.capture.show_daemon();
            let kept = shown.and_then(|()| listeners.try_clone()).map_err(listen)?;
            let host = Host::new(&pod, capture, kept);
            asker = Some(host.asker.clone());
            self.host.replace(Some(host));
        }
        let pod = Arc::new(pod);
        let PodListeners { outbound, plaintext, hbone, dns, socks } = listeners;
        let mut listeners: Vec<_> = outbound
            .into_iter()
            .zip(plaintext)
            .zip(hbone)
            .map(|((outbound, plaintext), hbone)| {
                let (outbound, plaintext, hbone) = (Some(outbound), Some(plaintext), Some(hbone));
                ThreadListeners { outbound, plaintext, hbone, socks: None }
            })
            .collect();
        // One thread takes what a pod asks for by SOCKS5, as one takes its queries.
        listeners[self.threads.of(&pod)].socks = socks;
        let asker = asker.as_ref().unwrap_or(&pod);
        let served = self.threads.serve(&pod, listeners);
        served
            .and_then(|()| dns.map_or(Ok(()), |dns| self.threads.serve_dns(asker, dns)))
            .map_err(|error| {
                pod.removed.cancel();
                AddError::Thread { reason: error.to_string() }
            })?;
        self.prefetch(&pod);
        Ok(pod)
    }

    fn captures_dns(&self, pod: &Pod) -> bool {
        match pod.capture.dns {
            DnsCapture::Default => self.node.dns.capture,
            DnsCapture::Capture => true,
            DnsCapture::Pass => false,
        }
    }

    /// Asks for the pod's certificate before its first connection needs it, once its record names the trust domain.
    fn prefetch(&self, pod: &Arc<Pod>) {
        let (node, pod) = (self.node.clone(), pod.clone());
        tokio::task::spawn_local(async move {
            let described = pod.removed.run_until_cancelled(pod.workload(&node.store)).await;
            if let Some(Ok(workload)) = described
                && let Some(identity) = workload.identity()
            {
                node.identities.prefetch(identity);
            }
        });
    }

    fn remove(&self, uid: &PodUid) {
        self.give_up(uid);
        self.release(uid);
    }

    /// Serves a pod no longer. Waiting to be served again, it stays captured.
    fn release(&self, uid: &PodUid) {
        let Some(served) = self.served.borrow_mut().remove(uid) else { return };
        self.withdraw(uid, served.pod.netns.cookie());
        served.pod.removed.cancel();
        counter!("workload_manager_proxies_stopped_total").increment(1);
        self.list();
        self.release_unused(&served.pod);
        tracing::info!(%uid, pod = %served.pod.name, namespace = %served.pod.namespace, "pod released");
    }

    /// Tries a pod no longer that could not be served.
    fn give_up(&self, uid: &PodUid) {
        let refused = self.refused.borrow_mut().remove(uid);
        if let Some(refused) = refused {
            self.withdraw(uid, refused.wanted.netns.cookie());
            self.list();
        }
    }

    /// Ends the capture of a namespace that no pod is served in, nor waits to be.
    fn withdraw(&self, uid: &PodUid, cookie: u64) {
        let (served, refused) = (self.served.borrow(), self.refused.borrow());
        if served.values().any(|served| served.pod.netns.cookie() == cookie)
            || refused.values().any(|refused| refused.wanted.netns.cookie() == cookie)
        {
            return;
        }
        drop((served, refused));
        if let Err(error) = self.node.capture.withdraw(cookie) {
            tracing::error!(%uid, %error, "the capture of a removed pod is not wholly undone");
        }
    }

    /// Lets the certificate go of an identity that no pod of this node has any more.
    fn release_unused(&self, gone: &Pod) {
        let same = |pod: &Pod| {
            pod.namespace == gone.namespace && pod.service_account == gone.service_account
        };
        let itself = self.itself.borrow();
        let of_itself = itself.as_ref().is_some_and(|itself| itself.is_identified_as(gone));
        if of_itself || self.served.borrow().values().any(|served| same(&served.pod)) {
            return;
        }
        let of_gone = |name: &Spiffe| {
            name.namespace() == gone.namespace && name.service_account() == gone.service_account
        };
        for (name, _) in self.node.identities.states() {
            if of_gone(&name) {
                self.node.identities.release(&name);
            }
        }
    }
}

impl PodTable for SourceView {
    fn add(&self, pod: Announced) -> Result<(), AddError> {
        self.pods.add(pod, self.source)
    }

    fn remove(&self, uid: &PodUid) {
        let is_refused_nobodys = {
            let mut refused = self.pods.refused.borrow_mut();
            refused.get_mut(uid).is_some_and(|refused| refused.claims.leave(self.source))
        };
        let is_served_nobodys = {
            let mut served = self.pods.served.borrow_mut();
            served.get_mut(uid).is_some_and(|served| served.claims.leave(self.source))
        };
        if is_refused_nobodys {
            self.pods.give_up(uid);
        }
        if is_served_nobodys {
            self.pods.release(uid);
        }
    }

    fn uids(&self) -> Vec<PodUid> {
        let served = self.pods.served.borrow();
        let own = served.iter().filter(|(_, served)| served.claims.has(self.source));
        own.map(|(uid, _)| uid.clone()).collect()
    }

    fn waiting(&self) -> Vec<PodUid> {
        let refused = self.pods.refused.borrow();
        let own = refused.iter().filter(|(_, refused)| refused.claims.has(self.source));
        own.map(|(uid, _)| uid.clone()).collect()
    }
}

/// A pod as administration shows it.
fn status(pod: &Pod) -> PodStatus {
    PodStatus {
        uid: pod.uid.clone(),
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        service_account: pod.service_account.clone(),
        state: PodState::Up,
        is_daemon: false,
    }
}
