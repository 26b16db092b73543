//! A service of any source, in one form.
//!
//! In: a Kubernetes Service or a ServiceEntry. Out: a [`Host`] for each of its host names. Says nothing of endpoints.

use std::{net::IpAddr, num::NonZeroU16, sync::Arc};

use ipnet::IpNet;

use super::protocol::Protocol;
use crate::manifests::{
    Labels, Meta, Object, Service, TargetPort,
    networking::{self, Location, ServiceEntry},
};

/// One host name of a Service or ServiceEntry.
#[derive(Debug)]
pub(crate) struct Host {
    /// Of the object it comes from.
    pub meta: Meta,
    /// The full name, perhaps with a leading `*`.
    pub hostname: Arc<str>,
    pub origin: Origin,
    pub ports: Vec<Port>,
    /// Where it is reached: single addresses (allocated ones included), or a ServiceEntry's CIDR blocks.
    pub addresses: Vec<IpNet>,
    pub resolution: Resolution,
    /// Whether its endpoints are outside the mesh.
    pub external: bool,
    /// Namespaces, `.`, `*` or `~`; empty is what the mesh says.
    pub export_to: Vec<String>,
    /// Identities its endpoints may have.
    pub subject_alt_names: Vec<String>,
    /// Whether this is what the bare name means when several namespaces have it.
    pub canonical: bool,
    pub visibility: Visibility,
    /// Its place in the registry.
    pub(super) index: usize,
}

/// The object that a [`Host`] comes from.
#[derive(Clone, Debug)]
pub(crate) enum Origin {
    Kubernetes(Arc<Object<Service>>),
    Entry(Arc<Object<ServiceEntry>>),
}

/// How its endpoints are found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Resolution {
    /// They are known.
    Endpoints,
    /// They are known, and dialed by their own addresses.
    Headless,
    /// All addresses that DNS has for their names.
    Dns,
    /// The first address that DNS has.
    DnsRoundRobin,
    /// Whatever name below the wildcard is asked for.
    DynamicDns,
    /// Wherever the application was going.
    Passthrough,
}

/// Who is told of it; the later the fewer.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) enum Visibility {
    Public,
    /// Its own namespace.
    Namespace,
    Nobody,
}

/// A port of a [`Host`].
#[derive(Debug)]
pub(crate) struct Port {
    pub name: Box<str>,
    pub number: u16,
    pub protocol: Protocol,
    pub target: TargetPort,
}

impl Host {
    /// `namespace/hostname`, its name in xDS.
    pub(crate) fn key(&self) -> String {
        format!("{}/{}", self.meta.namespace, self.hostname)
    }

    /// Its port of that number.
    pub(crate) fn port(&self, number: u16) -> Option<&Port> {
        self.ports.iter().find(|port| port.number == number)
    }

    /// Its single addresses, without CIDR blocks.
    pub(crate) fn ips(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let single = self.addresses.iter().filter(|net| net.prefix_len() == net.max_prefix_len());
        single.map(IpNet::addr)
    }

    /// Whether it stands for all names below a domain.
    pub(crate) fn is_wildcard(&self) -> bool {
        self.hostname.starts_with('*')
    }

    /// Whether it comes from this ServiceEntry.
    pub(crate) fn is_of(&self, entry: &Arc<Object<ServiceEntry>>) -> bool {
        match &self.origin {
            Origin::Entry(own) => Arc::ptr_eq(own, entry),
            Origin::Kubernetes(_) => false,
        }
    }

    /// The Service it comes from, if it is one.
    pub(crate) fn service(&self) -> Option<&Service> {
        match &self.origin {
            Origin::Kubernetes(service) => Some(&service.spec),
            Origin::Entry(_) => None,
        }
    }

    /// Which pods and WorkloadEntries are behind it; empty if it says so otherwise.
    pub(super) fn selector(&self) -> &Labels {
        const NONE: &Labels = &Labels::new();
        match &self.origin {
            Origin::Kubernetes(service) => &service.spec.selector,
            Origin::Entry(entry) => {
                entry.spec.workload_selector.as_ref().map_or(NONE, |selector| &selector.labels)
            }
        }
    }

    /// The one host name of a Service.
    pub(super) fn of_service(service: &Arc<Object<Service>>, domain: &str) -> Self {
        let Object { meta, spec } = &**service;
        let ports = spec.ports.iter().map(|port| Port {
            name: port.name.clone(),
            number: port.port.get(),
            protocol: Protocol::of_port(port),
            target: port.target.clone(),
        });
        let export_to = meta.annotations.get("networking.istio.io/exportTo");
        let export_to = export_to.into_iter().flat_map(|list| list.split(','));
        let headless = spec.addresses.is_empty();
        Self {
            meta: meta.clone(),
            hostname: format!("{}.{}.svc.{domain}", meta.name, meta.namespace).into(),
            origin: Origin::Kubernetes(Arc::clone(service)),
            ports: ports.collect(),
            addresses: spec.addresses.iter().copied().map(IpNet::from).collect(),
            resolution: if headless { Resolution::Headless } else { Resolution::Endpoints },
            external: false,
            export_to: export_to.map(|one| one.trim().to_owned()).collect(),
            subject_alt_names: Vec::new(),
            canonical: false,
            visibility: Visibility::Public,
            index: 0,
        }
    }

    /// One of the host names of a ServiceEntry, with the addresses that are the entry's own.
    pub(super) fn of_entry(entry: &Arc<Object<ServiceEntry>>, hostname: &str) -> Self {
        let Object { meta, spec } = &**entry;
        let ports = spec.ports.iter().filter_map(|port| {
            let number = u16::try_from(port.number).ok().and_then(NonZeroU16::new)?;
            let target = u16::try_from(port.target_port).ok().and_then(NonZeroU16::new);
            Some(Port {
                name: port.name.as_str().into(),
                number: number.get(),
                protocol: Protocol::parse(&port.protocol),
                target: TargetPort::Number(target.unwrap_or(number)),
            })
        });
        let resolution = match spec.resolution {
            networking::Resolution::None => Resolution::Passthrough,
            networking::Resolution::Static => Resolution::Endpoints,
            networking::Resolution::Dns => Resolution::Dns,
            networking::Resolution::DnsRoundRobin => Resolution::DnsRoundRobin,
            networking::Resolution::DynamicDns => Resolution::DynamicDns,
        };
        Self {
            meta: meta.clone(),
            hostname: hostname.into(),
            origin: Origin::Entry(Arc::clone(entry)),
            ports: ports.collect(),
            addresses: spec.addresses.iter().filter_map(|text| block(text)).collect(),
            resolution,
            external: spec.location == Location::MeshExternal,
            export_to: spec.export_to.clone(),
            subject_alt_names: spec.subject_alt_names.clone(),
            canonical: false,
            visibility: Visibility::Public,
            index: 0,
        }
    }
}

/// An address or a CIDR block.
pub(crate) fn block(text: &str) -> Option<IpNet> {
    let single = text.parse::<IpAddr>().ok().map(IpNet::from);
    single.or_else(|| text.parse::<IpNet>().ok().map(|net| net.trunc()))
}
