//! Captures the traffic of enrolled pods, and gives the daemon its sockets inside of them.
//!
//! In: pods (a namespace, addresses, the daemon's listeners). Out: accepted connections and where they were meant to
//! go, and connections of the daemon that are not captured again. Who may talk to whom is not decided here. Only
//! this module touches the kernel programs and their maps.
//!
//! Everything is pinned: capture outlives the daemon, and pods whose daemon is away are refused rather than sent in
//! the clear, until they are withdrawn.

#[cfg(feature = "ebpf-log")]
mod decisions;
mod dial;
mod dns_listeners;
mod enrolment;
mod error;
mod listeners;
mod netlink;
mod netns;
mod object;
mod preflight;
mod reply_routing;
mod sockets;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, BorrowedFd},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicU16},
};

use aya::{
    Ebpf,
    maps::{HashMap, Map, MapData, MapError, PerCpuArray},
    programs::ProgramFd,
};
use ebpf_common::{Asker, Counter, OriginalDestination, map};
use ipnet::IpNet;
use socket2::{Domain, Protocol, Socket, Type};

pub use dial::{ResetUnlessKept, pod_socket, reset};
pub use dns_listeners::DnsListeners;
use enrolment::Enrolment;
pub use enrolment::{EnrolledPod, uninstall};
pub use error::CaptureError;
pub use listeners::{PodListeners, home_listener, loopback_listener, pod_listener};
pub use netns::{Netns, NetnsError};
use object::{Object, Pins};
pub use preflight::{Missing, preflight, self_check};
pub use reply_routing::RoutingError;
pub use sockets::{Families, KeepAlive, SocketOptions};

use crate::sys;

/// Where capture works.
#[derive(Clone, Debug)]
pub struct CaptureConfig {
    /// A directory on a bpffs; pins go to `aquifer/v3` below it. Default `/sys/fs/bpf`.
    pub pin_dir: PathBuf,
    /// The cgroup (version 2) whose processes can be captured, the daemon's own among them. Default: the root of the
    /// hierarchy, `/sys/fs/cgroup`.
    pub cgroup: PathBuf,
    /// Options of the daemon's sockets in pods.
    pub sockets: SocketOptions,
}

impl Default for CaptureConfig {
    fn default() -> Self {
        let sockets = SocketOptions::default();
        Self { pin_dir: "/sys/fs/bpf".into(), cgroup: "/sys/fs/cgroup".into(), sockets }
    }
}

/// What becomes of a pod's traffic while the daemon is away.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum DaemonAway {
    /// connect() fails with EPERM, inbound connections are reset.
    #[default]
    Refuse,
    /// It passes uncaptured, in the clear.
    Pass,
}

/// Whose addresses applications can be shown.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Sources {
    /// Their clients', if the pod's routing can be set up for it.
    #[default]
    WherePossible,
    /// Their clients': the pod is not served without.
    Preserved,
    /// The pod's own alone: its routing is left as it is.
    Own,
}

/// What a namespace is that is captured.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Scope {
    /// A pod's.
    #[default]
    Pod,
    /// The host's, in which the daemon lives: its own process and [`Exclusions`] are not captured.
    Host,
}

/// What of a host is not captured.
#[derive(Clone, Debug, Default)]
pub struct Exclusions {
    /// Ports of the host, such as the one of ssh.
    pub inbound_ports: Vec<u16>,
    /// Ports of others.
    pub outbound_ports: Vec<u16>,
    /// Destinations.
    pub destinations: Vec<IpNet>,
}

/// A pod whose traffic is to be captured.
#[derive(Clone, Debug)]
pub struct PodCapture {
    /// The pod's namespace.
    pub netns: Arc<Netns>,
    /// All addresses of the pod; the first of each family is where its own connections are redirected to, but for
    /// link-local ones of IPv6.
    pub ips: Vec<IpAddr>,
    /// What happens without the daemon.
    pub daemon_away: DaemonAway,
    /// Whether its applications are to be dialed under their clients' addresses.
    pub sources: Sources,
    /// Whether it is the host itself.
    pub scope: Scope,
}

/// Capture on this node; shared by all threads.
pub struct Capture {
    enrolment: Mutex<Enrolment>,
    /// Attached to each pod's namespace.
    steer: ProgramFd,
    pins: Pins,
    original_destinations: MapData,
    own_sockets: MapData,
    asked: HashMap<MapData, Asker, OriginalDestination>,
    stats: PerCpuArray<MapData, u64>,
    /// Options of the daemon's sockets in pods.
    sockets: SocketOptions,
    /// Where [`Capture::dial_as`] looks for a free source port.
    next_port: AtomicU16,
    /// Reads the programs' log until the end.
    #[cfg(feature = "ebpf-log")]
    _decisions: decisions::Decisions,
}

impl Capture {
    /// Attaches the kernel programs, or takes over what an earlier daemon has pinned, without a gap.
    ///
    /// Pods that were enrolled stay so, and are refused (or passed, as each chose) until they are enrolled again:
    /// see [`Capture::enrolled`].
    ///
    /// # Errors
    /// [`CaptureError::Unsupported`] with everything that the machine lacks; else what the kernel refused.
    pub fn open(config: &CaptureConfig) -> Result<Self, CaptureError> {
        let missing = preflight(config);
        if !missing.is_empty() {
            return Err(CaptureError::Unsupported { missing });
        }
        let pins = Pins::below(&config.pin_dir);
        let mut object = Object::load(&pins)?;
        #[cfg(feature = "ebpf-log")]
        let decisions = decisions::Decisions::start(&mut object.ebpf)
            .map_err(|source| CaptureError::Path { path: "decisions".into(), source })?;
        let steer = object.attach(config, &pins)?;
        let mut ebpf = object.ebpf;
        let stats = take(&mut ebpf, map::STATS)?;
        let asked = take(&mut ebpf, map::ASKED)?;
        Ok(Self {
            enrolment: Mutex::new(Enrolment::take_over(&mut ebpf, &pins)?),
            steer,
            pins,
            original_destinations: storage(take(&mut ebpf, map::ORIGINAL_DESTINATION)?)?,
            own_sockets: storage(take(&mut ebpf, map::OWN_SOCKETS)?)?,
            asked: HashMap::try_from(asked)
                .map_err(|source| CaptureError::Map { map: map::ASKED, source })?,
            stats: PerCpuArray::try_from(stats)
                .map_err(|source| CaptureError::Map { map: map::STATS, source })?,
            sockets: config.sockets.clone(),
            next_port: AtomicU16::new(rand::random()),
            #[cfg(feature = "ebpf-log")]
            _decisions: decisions,
        })
    }

    /// Captures a pod from when this returns on; connections made before stay as they are. A pod that is enrolled
    /// already gets the new listeners, without a gap.
    ///
    /// The listeners stay the caller's: capture of the pod lasts while they are open. Out: whose addresses applications
    /// can be shown, `Preserved` or `Own`.
    ///
    /// # Errors
    /// What is wrong with the pod, or what the kernel refused. The pod is then not enrolled; one that was enrolled
    /// before stays so, and is refused rather than sent in the clear.
    pub fn enrol(
        &self,
        pod: &PodCapture,
        listeners: &PodListeners,
    ) -> Result<Sources, CaptureError> {
        let mut enrolment = self.enrolment();
        let cookie = pod.netns.cookie();
        let known = enrolment.is_enrolled(cookie);
        let result = enrolment.enrol(pod, listeners, &self.pins, self.steer.as_fd());
        if result.is_err() && !known {
            // The reason for the failure matters more than one of the way back.
            let _ = enrolment.withdraw(cookie, &self.pins);
        }
        result
    }

    /// Ends the capture of a pod, given by its namespace's cookie, and removes everything that belongs to it.
    /// A pod that is not enrolled is no error.
    ///
    /// # Errors
    /// The first thing that could not be removed; the rest is.
    pub fn withdraw(&self, netns_cookie: u64) -> Result<(), CaptureError> {
        self.enrolment().withdraw(netns_cookie, &self.pins)
    }

    /// Options of the daemon's sockets in pods.
    pub fn sockets(&self) -> &SocketOptions {
        &self.sockets
    }

    /// Every pod that is enrolled, those that an earlier daemon left behind included.
    pub fn enrolled(&self) -> Vec<EnrolledPod> {
        self.enrolment().enrolled()
    }

    /// Withdraws every pod whose namespace's cookie is not among `keep`; gives those withdrawn. Ends the capture of
    /// versions with another layout, whose pods are refused from the start of this one until here.
    ///
    /// # Errors
    /// The first thing that could not be removed; the rest is.
    pub fn reconcile(&self, keep: &[u64]) -> Result<Vec<EnrolledPod>, CaptureError> {
        let mut enrolment = self.enrolment();
        let mut result = enrolment::retire_others(&self.pins, keep);
        let mut leftovers = enrolment.enrolled();
        leftovers.retain(|pod| !keep.contains(&pod.netns_cookie));
        for pod in &leftovers {
            result = result.and(enrolment.withdraw(pod.netns_cookie, &self.pins));
        }
        result.map(|()| leftovers)
    }

    /// Leaves inbound connections from these sources, and from no others, uncaptured.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn exempt(&self, sources: &[IpNet]) -> Result<(), CaptureError> {
        self.enrolment().exempt(sources)
    }

    /// Leaves these connections of a host, and no others, uncaptured.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn exclude(&self, exclusions: &Exclusions) -> Result<(), CaptureError> {
        self.enrolment().exclude(exclusions)
    }

    /// Shows the kernel programs which process the daemon is, so that on a host they leave its connections to the
    /// control plane alone. By a socket that it has tagged: its process id has other numbers in other namespaces.
    ///
    /// # Errors
    /// The kernel's answer to socket() or to the tag.
    pub fn show_daemon(&self) -> io::Result<()> {
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 9));
        let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        self.tag_own(socket.as_fd())?;
        // What comes of it does not matter: the programs have seen it.
        let _ = socket.connect(&nowhere.into());
        Ok(())
    }

    /// Where the connection accepted from a pod was meant to go; nothing if it was not captured but dialed the
    /// daemon directly, which is to be closed. Takes no lock.
    ///
    /// # Errors
    /// The kernel's.
    pub fn original_destination(&self, accepted: BorrowedFd<'_>) -> io::Result<Option<SocketAddr>> {
        let map = self.original_destinations.fd().as_fd();
        let original = sys::socket_storage::<OriginalDestination>(map, accepted)?;
        Ok(original.map(|to| SocketAddr::new(to.ip.into(), to.port)))
    }

    /// Which DNS server was asked by the datagram socket at `asker` in the namespace, last; nothing if that is not known.
    /// Takes no lock.
    ///
    /// # Errors
    /// The kernel's.
    pub fn asked_server(
        &self,
        netns_cookie: u64,
        asker: SocketAddr,
    ) -> Result<Option<SocketAddr>, CaptureError> {
        let is_v4 = u16::from(asker.ip().to_canonical().is_ipv4());
        let key = Asker { netns: netns_cookie, port: asker.port(), is_v4, padding: 0 };
        match self.asked.get(&key, 0) {
            Ok(asked) => Ok(Some(SocketAddr::new(asked.ip.into(), asked.port))),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(source) => Err(CaptureError::Map { map: map::ASKED, source }),
        }
    }

    /// Marks a socket as the daemon's own, before connect(): it is not captured. Takes no lock.
    ///
    /// # Errors
    /// The kernel's.
    pub fn tag_own(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        sys::set_socket_storage(self.own_sockets.fd().as_fd(), socket, 1_u32)
    }

    /// What the kernel programs have decided so far, by name, since they were first attached.
    ///
    /// # Errors
    /// The map could not be read.
    pub fn counters(&self) -> Result<Vec<(&'static str, u64)>, CaptureError> {
        let read = |counter: &Counter| {
            let values = self.stats.get(&(*counter as u32), 0);
            let values = values.map_err(|source| CaptureError::Map { map: map::STATS, source })?;
            Ok((counter.name(), values.iter().sum()))
        };
        Counter::ALL.iter().map(read).collect()
    }

    fn enrolment(&self) -> MutexGuard<'_, Enrolment> {
        // The maps in the kernel are the state; a panic elsewhere has not left it half-written.
        self.enrolment.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, CaptureError> {
    ebpf.take_map(name).ok_or(CaptureError::Object { name })
}

/// The map behind a socket storage, for access by descriptor.
fn storage(map: Map) -> Result<MapData, CaptureError> {
    let Map::SkStorage(data) = map else {
        return Err(CaptureError::Object { name: "socket storage" });
    };
    Ok(data)
}
