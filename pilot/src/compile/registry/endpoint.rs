//! What is behind a host.
//!
//! In: a [`Member`] (a pod, a WorkloadEntry, an address written down) and the [`Host`] it belongs to. Out: an
//! [`Endpoint`], with addresses and ports.

use std::{net::IpAddr, sync::Arc};

use proto::workload::Locality;

use super::{Host, PortPairs, host::Port};
use crate::manifests::{
    EndpointSlice, Labels, Object, Pod, PodState, Service, SlicePort, TargetPort,
    networking::{ServiceEntry, WorkloadEntry},
};

/// What stands behind a host.
#[derive(Clone, Debug)]
pub(crate) enum Member {
    /// A pod that the host selects.
    Pod(Arc<Object<Pod>>),
    /// A pod that a slice of the host names, with the slice's ports: slice and position.
    Listed(Arc<Object<Pod>>, Arc<Object<EndpointSlice>>, usize),
    /// An address that a slice of the host has without a pod: slice and position.
    Foreign(Arc<Object<EndpointSlice>>, usize),
    /// A WorkloadEntry that the host selects.
    Entry(Arc<Vm>),
    /// One of the ServiceEntry's own endpoints, by position.
    Inline(Arc<Object<ServiceEntry>>, usize),
    /// The host's own name, which DNS resolves.
    Name(Arc<Object<ServiceEntry>>),
}

/// A WorkloadEntry with all of its labels.
#[derive(Debug)]
pub(crate) struct Vm {
    pub object: Arc<Object<WorkloadEntry>>,
    /// Those of its spec, and of its metadata where the spec has none by that name.
    pub labels: Labels,
}

/// One endpoint of a host.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    /// Its addresses; none if it has a host name.
    pub addresses: Vec<IpAddr>,
    pub hostname: Option<Box<str>>,
    /// Which port of the host leads to which of its own.
    pub ports: PortPairs,
    pub locality: Arc<Locality>,
    /// At least 1.
    pub weight: u32,
    pub health: Health,
    /// Where its addresses mean something.
    pub network: Box<str>,
    /// Whether it takes tunnels.
    pub tunnel: bool,
    /// Name of the workload.
    pub workload: Box<str>,
    pub namespace: Arc<str>,
    pub canonical_name: Box<str>,
    pub canonical_revision: Box<str>,
    /// Empty if nothing is known of it.
    pub service_account: Box<str>,
    /// Empty outside Kubernetes.
    pub node: Box<str>,
    pub member: Member,
}

/// Whether an endpoint can take traffic.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Health {
    Healthy,
    Unhealthy,
    /// It is going away.
    Terminating,
}

impl Endpoint {
    /// By these, subsets choose.
    pub(crate) fn labels(&self) -> &Labels {
        self.member.labels()
    }

    /// Its port for a port of the host.
    pub(crate) fn target(&self, service_port: u16) -> Option<u16> {
        self.ports.iter().find(|(of_service, _)| *of_service == service_port).map(|pair| pair.1)
    }
}

impl Member {
    pub(crate) fn labels(&self) -> &Labels {
        const NONE: &Labels = &Labels::new();
        match self {
            Self::Pod(pod) | Self::Listed(pod, ..) => &pod.meta.labels,
            Self::Entry(vm) => &vm.labels,
            Self::Inline(entry, i) => &entry.spec.endpoints[*i].labels,
            Self::Foreign(..) | Self::Name(_) => NONE,
        }
    }

    /// Where it stands among what is behind a host: what slices name, then pods by name, then what entries say.
    pub(super) fn order(&self) -> (u8, &str) {
        match self {
            Self::Listed(..) | Self::Foreign(..) => (0, ""),
            Self::Pod(pod) => Self::order_of(pod),
            Self::Entry(_) | Self::Inline(..) | Self::Name(_) => (2, ""),
        }
    }

    /// Where a pod that is selected stands.
    pub(super) fn order_of(pod: &Object<Pod>) -> (u8, &str) {
        (1, &pod.meta.name)
    }

    /// Which of the host's ports leads to which of its own.
    pub(crate) fn ports(&self, host: &Host) -> PortPairs {
        match self {
            Self::Pod(pod) => pod_ports(host, &pod.spec),
            Self::Listed(_, slice, _) | Self::Foreign(slice, _) => {
                slice_ports(host, &slice.spec.ports)
            }
            Self::Entry(vm) => entry_ports(host, &vm.object.spec),
            Self::Inline(entry, i) => entry_ports(host, &entry.spec.endpoints[*i]),
            Self::Name(_) => entry_ports(host, &WorkloadEntry::default()),
        }
    }
}

impl Health {
    pub(super) fn of_pod(pod: &Pod) -> Self {
        match pod.state {
            PodState::Ready => Self::Healthy,
            PodState::Terminating => Self::Terminating,
            PodState::NotReady | PodState::Ended => Self::Unhealthy,
        }
    }
}

/// A port whose name the pod does not have leads nowhere.
pub(super) fn pod_ports(host: &Host, pod: &Pod) -> PortPairs {
    let named = |name: &str| {
        let port = pod.named_ports.iter().find(|(named, _)| **named == *name);
        port.map(|(_, number)| *number)
    };
    collect(host, |port| match &port.target {
        TargetPort::Number(number) => Some(number.get()),
        TargetPort::Name(name) => named(name),
    })
}

/// A slice has its own ports, and names those of its Service.
fn slice_ports(host: &Host, slice: &[SlicePort]) -> PortPairs {
    let ports = slice.iter().filter(|port| port.tcp).filter_map(|port| {
        let of_host = host.ports.iter().find(|candidate| candidate.name == port.name)?;
        Some((of_host.number, port.port))
    });
    ports.collect()
}

/// A WorkloadEntry may give a port of its own for each name.
fn entry_ports(host: &Host, entry: &WorkloadEntry) -> PortPairs {
    let own = |name: &str| entry.ports.get(name).and_then(|port| u16::try_from(*port).ok());
    collect(host, |port| match &port.target {
        TargetPort::Number(number) => Some(own(&port.name).unwrap_or(number.get())),
        TargetPort::Name(name) => own(name).or_else(|| own(&port.name)),
    })
}

fn collect(host: &Host, target: impl Fn(&Port) -> Option<u16>) -> PortPairs {
    host.ports.iter().filter_map(|port| Some((port.number, target(port)?))).collect()
}

/// Whether the families of a Service have this address; a Service of one family has no endpoints of the other.
pub(super) fn is_of_families(service: &Service, ip: IpAddr) -> bool {
    let name = if ip.is_ipv4() { "IPv4" } else { "IPv6" };
    if service.ip_families.is_empty() {
        service.addresses.is_empty()
            || service.addresses.iter().any(|own| own.is_ipv4() == ip.is_ipv4())
    } else {
        service.ip_families.iter().any(|family| family == name)
    }
}

/// `region/zone/subzone`.
pub(crate) fn locality_of(text: &str) -> Locality {
    let mut parts = text.splitn(3, '/').map(str::to_owned);
    let mut next = || parts.next().unwrap_or_default();
    Locality { region: next(), zone: next(), subzone: next() }
}

/// What a Node's labels say of where it is.
pub(crate) fn locality_of_node(labels: &Labels) -> Locality {
    let label = |key: &str| labels.get(key).cloned().unwrap_or_default();
    Locality {
        region: label("topology.kubernetes.io/region"),
        zone: label("topology.kubernetes.io/zone"),
        subzone: label("topology.istio.io/subzone"),
    }
}
