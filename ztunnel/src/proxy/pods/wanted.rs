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
    capture::Netns,
    pods::{AddError, Announced, CaptureOptions, PodUid},
    proxy::Pod,
};

/// An announcement that can be tried again.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) uid: PodUid,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) service_account: String,
    pub(super) netns: Arc<Netns>,
    /// As announced: none asks for those of the default routes.
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
        Ok(Self { uid, namespace, name, service_account, netns, ips, capture })
    }

    /// The pod to serve, with the addresses of this moment.
    ///
    /// # Errors
    /// It has no address, or more than one of a family.
    pub(super) fn pod(&self) -> Result<Pod, AddError> {
        Ok(Pod {
            uid: self.uid.clone(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
            service_account: self.service_account.clone(),
            netns: self.netns.clone(),
            ips: addresses(&self.netns, &self.ips)?,
            capture: self.capture.clone(),
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
