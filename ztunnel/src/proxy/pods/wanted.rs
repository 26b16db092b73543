//! A pod as it was announced, its network namespace entered: what is tried until it can be served.
//!
//! In: an announcement. Out: the [`Pod`] to serve, with its addresses, or why there is none. Nothing is captured here.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::Arc,
};

use tokio_util::sync::CancellationToken;

use crate::{
    admin::{PodState, PodStatus},
    capture::{Families, Netns, Scope},
    config::HostWorkload,
    pods::{AddError, Announced, CaptureOptions, PodUid, host},
    proxy::{Node, Pod, Share},
};

/// An announcement that can be tried again.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) uid: PodUid,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) service_account: String,
    pub(super) netns: Arc<Netns>,
    pub(super) scope: Scope,
    /// As announced: none asks for those of the default routes, or of the whole host.
    ips: Vec<IpAddr>,
    capture: CaptureOptions,
}

impl Wanted {
    /// Takes an announcement.
    ///
    /// # Errors
    /// [`AddError::Enter`] if what was announced is no network namespace.
    pub(super) fn of(announced: Announced) -> Result<Self, AddError> {
        let Announced { uid, namespace, name, service_account, netns, ips, capture } = announced;
        let netns = Netns::from_fd(netns.into()).map_err(|source| AddError::Enter { source })?;
        let netns = Arc::new(netns);
        let scope = Scope::Pod;
        Ok(Self { uid, namespace, name, service_account, netns, scope, ips, capture })
    }

    /// The host itself.
    ///
    /// # Errors
    /// [`AddError::Enter`] if the kernel does not tell of the daemon's own namespace.
    pub(super) fn host(who: &HostWorkload) -> Result<Self, AddError> {
        let netns = Netns::home().map_err(|source| AddError::Enter { source })?;
        Ok(Self {
            uid: PodUid::parse("host").expect("letters: nothing else is checked"),
            namespace: who.namespace.clone(),
            name: who.name.clone(),
            service_account: who.service_account.clone(),
            netns: Arc::new(netns),
            scope: Scope::Host,
            ips: Vec::new(),
            capture: CaptureOptions::default(),
        })
    }

    /// The pod to serve, with the addresses of this moment.
    ///
    /// # Errors
    /// It has no address, or more than one of a family.
    pub(super) fn pod(&self, node: &Node) -> Result<Pod, AddError> {
        let mut ips = match self.scope {
            Scope::Pod => addresses(&self.netns, &self.ips)?,
            Scope::Host => host_addresses()?,
        };
        if node.capture.sockets().families == Families::Ipv4 {
            ips.retain(IpAddr::is_ipv4);
        }
        if ips.is_empty() {
            return Err(AddError::NoAddress);
        }
        Ok(Pod {
            uid: self.uid.clone(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            service_account: self.service_account.clone(),
            netns: self.netns.clone(),
            ips,
            capture: self.capture.clone(),
            source_address: self.capture.source_address,
            only_port: None,
            share: Share::new(&node.limits),
            removed: CancellationToken::new(),
        })
    }

    /// The pod as administration shows it.
    pub(super) fn status(&self) -> PodStatus {
        PodStatus {
            uid: self.uid.clone(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            service_account: self.service_account.clone(),
            state: PodState::Pending,
            is_daemon: false,
        }
    }
}

/// The pod's addresses: those given, else those its default routes use.
fn addresses(netns: &Netns, given: &[IpAddr]) -> Result<Vec<IpAddr>, AddError> {
    if given.is_empty() {
        let found =
            netns.enter(default_addresses).map_err(|source| AddError::Addresses { source })?;
        return if found.is_empty() { Err(AddError::NoAddress) } else { Ok(found) };
    }
    let canonical: Vec<IpAddr> = given.iter().map(IpAddr::to_canonical).collect();
    for (index, first) in canonical.iter().enumerate() {
        let same = |second: &&IpAddr| first.is_ipv4() == second.is_ipv4();
        if let Some(second) = canonical[index + 1..].iter().find(same) {
            let family = if first.is_ipv4() { "IPv4" } else { "IPv6" };
            return Err(AddError::TwoAddresses { family, first: *first, second: *second });
        }
    }
    Ok(canonical)
}

/// All of the host's addresses; first those that its default routes use.
fn host_addresses() -> Result<Vec<IpAddr>, AddError> {
    let mut ips = default_addresses();
    let all = host::addresses().map_err(|source| AddError::Addresses { source })?;
    let others: Vec<_> = all.into_iter().filter(|ip| !ips.contains(ip)).collect();
    ips.extend(others);
    Ok(ips)
}

/// The source addresses that the kernel would choose towards the world. Connecting a UDP socket sends nothing.
fn default_addresses() -> Vec<IpAddr> {
    let worlds = [
        SocketAddr::from((Ipv4Addr::new(192, 0, 2, 1), 9)),
        SocketAddr::from((Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1), 9)),
    ];
    let towards = |world: SocketAddr| {
        let any = match world {
            SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
        };
        let socket = UdpSocket::bind(any).ok()?;
        socket.connect(world).ok()?;
        socket.local_addr().ok().map(|local| local.ip())
    };
    worlds.into_iter().filter_map(towards).collect()
}
