//! Which pods are captured: the maps that the kernel programs look pods up in, each pod's link and routing.
//!
//! In: pods to enrol and to withdraw. Out: maps, pins and routing changed, in the order that leaves no moment open.
//! The maps are pinned, so they are the truth; nothing is kept in memory that they could tell.

use std::{
    collections::HashMap as StdHashMap,
    fs,
    net::{IpAddr, TcpListener},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::fs::MetadataExt,
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use aya::{
    Ebpf,
    maps::{
        HashMap, Map, MapData, MapError, SockHash,
        lpm_trie::{Key, LpmTrie},
    },
};
use ebpf_common::{
    Address, DNS_PORT, ExcludedPort, FAIL_OPEN, HBONE_PORT, HOST, Ip, ListenKey, OUTBOUND_PORT,
    PLAINTEXT_PORT, Pod, TCP, UDP, map,
};
use ipnet::IpNet;

use super::{
    CaptureError, DaemonAway, Exclusions, PodCapture, Scope, Sources,
    dns_listeners::redirected_to,
    listeners::PodListeners,
    netns::Netns,
    object::{self, Pins},
    reply_routing, take,
};
use crate::sys::AttachPoint;

/// A pod that is enrolled, by this daemon or by an earlier one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct EnrolledPod {
    /// Cookie of its namespace.
    pub netns_cookie: u64,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
}

/// The maps of enrolment.
pub(super) struct Enrolment {
    pods: HashMap<MapData, u64, Pod>,
    addresses: HashMap<MapData, Ip, Address>,
    listen: SockHash<MapData, ListenKey>,
    exempt: LpmTrie<MapData, [u32; 4], u32>,
    excluded_ports: HashMap<MapData, ExcludedPort, u32>,
    excluded_nets: LpmTrie<MapData, [u32; 4], u32>,
    /// Namespaces of the pods that this daemon has enrolled. Others are found by their links.
    netns: StdHashMap<u64, Arc<Netns>>,
    /// Cookies of the pods whose links are pinned.
    linked: Vec<u64>,
}

impl Enrolment {
    pub(super) fn take_over(ebpf: &mut Ebpf, pins: &Pins) -> Result<Self, CaptureError> {
        Ok(Self {
            pods: typed(ebpf, map::PODS)?,
            addresses: typed(ebpf, map::ADDRESSES)?,
            listen: typed(ebpf, map::LISTEN)?,
            exempt: typed(ebpf, map::EXEMPT)?,
            excluded_ports: typed(ebpf, map::EXCLUDED_PORTS)?,
            excluded_nets: typed(ebpf, map::EXCLUDED_NETS)?,
            netns: StdHashMap::new(),
            linked: pins.pods()?,
        })
    }

    pub(super) fn enrolled(&self) -> Vec<EnrolledPod> {
        let mut pods: StdHashMap<u64, Vec<IpAddr>> = StdHashMap::new();
        for (ip, address) in self.addresses.iter().flatten() {
            pods.entry(address.netns).or_default().push(ip.into());
        }
        // A daemon killed in between has left one without the other.
        for cookie in self.pods.keys().flatten().chain(self.linked.iter().copied()) {
            pods.entry(cookie).or_default();
        }
        let pods = pods.into_iter();
        pods.map(|(netns_cookie, ips)| EnrolledPod { netns_cookie, ips }).collect()
    }

    pub(super) fn is_enrolled(&self, cookie: u64) -> bool {
        self.linked.contains(&cookie) || self.pods.get(&cookie, 0).is_ok()
    }

    /// Everything that the pod's traffic will need comes first, its capture last.
    pub(super) fn enrol(
        &mut self,
        pod: &PodCapture,
        listeners: &PodListeners,
        pins: &Pins,
        steer: BorrowedFd<'_>,
    ) -> Result<Sources, CaptureError> {
        let per_port = per_port(listeners)?;
        let flags = flags(pod);
        let cookie = pod.netns.cookie();
        let [ip4, ip6] =
            redirected_to(&pod.ips).map(|first| first.map(Ip::from).unwrap_or_default());
        if pod.ips.is_empty() {
            return Err(CaptureError::NoAddress);
        }

        let sources = reply_sources(pod)?;
        let dns_port = listeners.dns.as_ref().map_or(0, |dns| dns.port);
        let address = Address { netns: cookie, flags, listeners: per_port, dns_port };
        for ip in pod.ips.iter().map(|ip| Ip::from(*ip)) {
            self.listen_at(ip, listeners)?;
            self.addresses.insert(ip, address, 0).map_err(in_map(map::ADDRESSES))?;
        }
        self.forget_other_addresses(cookie, &pod.ips)?;
        self.netns.insert(cookie, Arc::clone(&pod.netns));
        object::attach(&pins.pod(cookie), steer, pod.netns.as_fd(), AttachPoint::SkLookup)?;
        if !self.linked.contains(&cookie) {
            self.linked.push(cookie);
        }
        // What the daemon has shown stays: the programs write it, and nobody else.
        let daemon = self.pods.get(&cookie, 0).map_or(0, |former| former.daemon);
        let pod = Pod { ip6, ip4, flags, daemon, dns_port, padding: 0 };
        self.pods.insert(cookie, pod, 0).map_err(in_map(map::PODS))?;
        Ok(sources)
    }

    /// Capture ends first, then what it has needed goes.
    pub(super) fn withdraw(&mut self, cookie: u64, pins: &Pins) -> Result<(), CaptureError> {
        let mut result = absent_is_fine(self.pods.remove(&cookie)).map_err(in_map(map::PODS));
        let pin = pins.pod(cookie);
        let routing = match self.netns.remove(&cookie) {
            Some(netns) => reply_routing::remove(&netns).map_err(CaptureError::from),
            None => unroute(&pin),
        };
        result = result.and(object::detach(&pin)).and(routing);
        self.linked.retain(|linked| *linked != cookie);
        result.and(self.forget_other_addresses(cookie, &[]))
    }

    pub(super) fn exempt(&mut self, sources: &[IpNet]) -> Result<(), CaptureError> {
        set_prefixes(&mut self.exempt, sources).map_err(in_map(map::EXEMPT))
    }

    pub(super) fn exclude(&mut self, exclusions: &Exclusions) -> Result<(), CaptureError> {
        let key = |is_inbound| move |port: &u16| ExcludedPort { port: *port, is_inbound };
        let inbound = exclusions.inbound_ports.iter().map(key(1));
        let wanted: Vec<_> = inbound.chain(exclusions.outbound_ports.iter().map(key(0))).collect();
        let wrap = in_map(map::EXCLUDED_PORTS);
        for port in &wanted {
            self.excluded_ports.insert(port, 1, 0).map_err(&wrap)?;
        }
        let present: Vec<_> =
            self.excluded_ports.keys().collect::<Result<_, _>>().map_err(&wrap)?;
        for port in present.iter().filter(|port| !wanted.contains(port)) {
            absent_is_fine(self.excluded_ports.remove(port)).map_err(&wrap)?;
        }
        set_prefixes(&mut self.excluded_nets, &exclusions.destinations)
            .map_err(in_map(map::EXCLUDED_NETS))
    }

    fn listen_at(&mut self, ip: Ip, listeners: &PodListeners) -> Result<(), CaptureError> {
        for (port, sockets) in by_port(listeners) {
            for (slot, socket) in (0..).zip(sockets) {
                self.listen
                    .insert(ListenKey { ip, port, slot, protocol: TCP }, socket.as_raw_fd(), 0)
                    .map_err(in_map(map::LISTEN))?;
            }
        }
        let Some(dns) = &listeners.dns else { return self.forget_dns(ip) };
        let mut insert = |protocol, socket| {
            let key = ListenKey { ip, port: DNS_PORT, slot: 0, protocol };
            self.listen.insert(key, socket, 0).map_err(in_map(map::LISTEN))
        };
        insert(TCP, dns.connections.as_raw_fd())?;
        let of_ip = dns.ips.iter().zip(&dns.datagrams).find(|(of, _)| Ip::from(**of) == ip);
        of_ip.map_or(Ok(()), |(_, socket)| insert(UDP, socket.as_raw_fd()))
    }

    fn forget_dns(&mut self, ip: Ip) -> Result<(), CaptureError> {
        [TCP, UDP].into_iter().try_for_each(|protocol| {
            let removed = self.listen.remove(&ListenKey { ip, port: DNS_PORT, slot: 0, protocol });
            absent_is_fine(removed).map_err(in_map(map::LISTEN))
        })
    }

    /// Removes the pod's addresses but those to `keep`. An address that another pod has got since is left to it.
    fn forget_other_addresses(&mut self, cookie: u64, keep: &[IpAddr]) -> Result<(), CaptureError> {
        let keep: Vec<_> = keep.iter().map(|ip| Ip::from(*ip)).collect();
        let entries = self.addresses.iter().collect::<Result<Vec<_>, _>>();
        let entries = entries.map_err(in_map(map::ADDRESSES))?;
        let mut result = Ok(());
        for (ip, address) in entries {
            if address.netns != cookie || keep.contains(&ip) {
                continue;
            }
            for port in [OUTBOUND_PORT, PLAINTEXT_PORT, HBONE_PORT] {
                for slot in 0..address.listeners {
                    let key = ListenKey { ip, port, slot, protocol: TCP };
                    let removed = self.listen.remove(&key);
                    result = result.and(absent_is_fine(removed).map_err(in_map(map::LISTEN)));
                }
            }
            result = result.and(self.forget_dns(ip));
            let removed = self.addresses.remove(&ip);
            result = result.and(absent_is_fine(removed).map_err(in_map(map::ADDRESSES)));
        }
        result
    }
}

/// Removes everything that is pinned below `pin_dir`, and what belongs to it in the pods that are still there: for
/// when the product leaves the node. Without it, pods that fail closed would stay cut off.
///
/// # Errors
/// The first thing that could not be removed; the rest is. Nothing pinned is no error.
pub fn uninstall(pin_dir: &Path) -> Result<(), CaptureError> {
    let pins = Pins::below(pin_dir);
    let mut result = retire_others(&pins, &[]).and(release_pods(&pins.map(map::PODS)));
    for cookie in pins.pods()? {
        let pin = pins.pod(cookie);
        result = result.and(unroute(&pin)).and(object::detach(&pin));
    }
    result.and(pins.remove())
}

/// Detaches and removes what versions with other layouts have pinned. The routing in pods is the same for all versions:
/// those to `keep` keep it.
pub(super) fn retire_others(pins: &Pins, keep: &[u64]) -> Result<(), CaptureError> {
    let mut result = Ok(());
    for other in pins.others()? {
        for link in other.programs()? {
            result = result.and(object::detach(&link));
        }
        for cookie in other.pods()? {
            let pin = other.pod(cookie);
            if !keep.contains(&cookie) {
                result = result.and(unroute(&pin));
            }
            result = result.and(object::detach(&pin));
        }
        result = result.and(other.remove());
    }
    result
}

/// Empties the map of pods: capture stops at once for all of them.
fn release_pods(pin: &Path) -> Result<(), CaptureError> {
    if !pin.exists() {
        return Ok(());
    }
    let wrap = in_map(map::PODS);
    let data = MapData::from_pin(pin).and_then(Map::from_map_data).map_err(&wrap)?;
    let mut pods = HashMap::<_, u64, Pod>::try_from(data).map_err(&wrap)?;
    let cookies: Vec<_> = pods.keys().collect::<Result<_, _>>().map_err(&wrap)?;
    cookies.iter().try_for_each(|cookie| absent_is_fine(pods.remove(cookie))).map_err(&wrap)
}

/// Removes the routing of a pod of which only the link is known; of one that is gone, nothing is left to remove.
fn unroute(pin: &Path) -> Result<(), CaptureError> {
    let Some(inode) = object::link_netns(pin)? else { return Ok(()) };
    let Some(path) = netns_paths().into_iter().find(|path| has_inode(path, inode)) else {
        return Ok(());
    };
    match Netns::open(&path) {
        Ok(netns) => Ok(reply_routing::remove(&netns)?),
        // The pod ended meanwhile.
        Err(_) if !has_inode(&path, inode) => Ok(()),
        Err(source) => Err(CaptureError::Netns { source }),
    }
}

/// Where namespaces can be found: named ones, and those of processes.
fn netns_paths() -> Vec<PathBuf> {
    let entries = |directory: &str| fs::read_dir(directory).into_iter().flatten().flatten();
    let named = entries("/run/netns").map(|entry| entry.path());
    let of_processes = entries("/proc").map(|entry| entry.path().join("ns/net"));
    named.chain(of_processes).collect()
}

fn has_inode(path: &Path, inode: u64) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.ino() == inode)
}

/// Sets up routing for clients' addresses, as far as the pod asks for it.
fn reply_sources(pod: &PodCapture) -> Result<Sources, CaptureError> {
    if pod.sources == Sources::Own {
        return Ok(Sources::Own);
    }
    match reply_routing::install(&pod.netns, &pod.ips) {
        Ok(()) => Ok(Sources::Preserved),
        Err(error) if pod.sources == Sources::WherePossible => {
            tracing::warn!(ips = ?pod.ips, %error, "applications of a pod will not see their clients' addresses");
            Ok(Sources::Own)
        }
        Err(error) => Err(error.into()),
    }
}

fn per_port(listeners: &PodListeners) -> Result<u16, CaptureError> {
    let count = |sockets: &[TcpListener]| sockets.len();
    let outbound = count(&listeners.outbound);
    let (plaintext, hbone) = (count(&listeners.plaintext), count(&listeners.hbone));
    u16::try_from(outbound)
        .ok()
        .filter(|_| outbound > 0 && outbound == plaintext && outbound == hbone)
        .ok_or(CaptureError::Listeners { outbound, plaintext, hbone })
}

fn by_port(listeners: &PodListeners) -> [(u16, &[TcpListener]); 3] {
    [
        (OUTBOUND_PORT, &listeners.outbound),
        (PLAINTEXT_PORT, &listeners.plaintext),
        (HBONE_PORT, &listeners.hbone),
    ]
}

fn flags(pod: &PodCapture) -> u32 {
    let away = match pod.daemon_away {
        DaemonAway::Refuse => 0,
        DaemonAway::Pass => FAIL_OPEN,
    };
    let scope = match pod.scope {
        Scope::Pod => 0,
        Scope::Host => HOST,
    };
    away | scope
}

/// Leaves these prefixes, and no others, in the trie.
fn set_prefixes(
    trie: &mut LpmTrie<MapData, [u32; 4], u32>,
    wanted: &[IpNet],
) -> Result<(), MapError> {
    let wanted: Vec<_> = wanted.iter().map(prefix).collect();
    for key in &wanted {
        trie.insert(key, 1, 0)?;
    }
    let present: Vec<_> = trie.keys().collect::<Result<_, _>>()?;
    let same = |a: &Key<[u32; 4]>, b: &Key<[u32; 4]>| {
        a.prefix_len() == b.prefix_len() && a.data() == b.data()
    };
    for key in present.iter().filter(|key| !wanted.iter().any(|other| same(key, other))) {
        absent_is_fine(trie.remove(key))?;
    }
    Ok(())
}

/// A prefix over the mapped form: IPv4 lengths count from bit 96.
fn prefix(net: &IpNet) -> Key<[u32; 4]> {
    let mapped = if net.addr().is_ipv4() { 96 } else { 0 };
    Key::new(mapped + u32::from(net.prefix_len()), Ip::from(net.network()).0)
}

fn typed<T: TryFrom<Map, Error = MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<T, CaptureError> {
    T::try_from(take(ebpf, name)?).map_err(in_map(name))
}

fn in_map(map: &'static str) -> impl Fn(MapError) -> CaptureError {
    move |source| CaptureError::Map { map, source }
}

fn absent_is_fine(removed: Result<(), MapError>) -> Result<(), MapError> {
    match removed {
        Err(MapError::KeyNotFound | MapError::ElementNotFound) => Ok(()),
        Err(MapError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
        {
            Ok(())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_counts_ipv4_from_bit_96() {
        for (net, length, address) in [
            ("10.1.2.3/8", 104, "10.0.0.0"),
            ("10.1.2.3/32", 128, "10.1.2.3"),
            ("fd77::1/64", 64, "fd77::"),
            ("::/0", 0, "::"),
        ] {
            let key = prefix(&net.parse().unwrap());
            let expected = Ip::from(address.parse::<IpAddr>().unwrap());
            let (prefix_length, data) = (key.prefix_len(), key.data());
            assert_eq!((prefix_length, data), (length, expected.0), "{net}");
        }
    }
}
