//! Which of a workload's addresses is dialed.
//!
//! In: the workload, the service it was chosen for, and the address the application dialed. Out: an address, or a name to
//! resolve.

use std::{net::IpAddr, sync::Arc};

use mesh::store::{IpFamilies, Service, Workload};

/// Where a workload is.
#[derive(Clone, Debug)]
pub(super) enum Address {
    Ip(IpAddr),
    Host(Arc<str>),
}

/// The dialed address if the workload has it; else its first of the same family, else its first, among those that the
/// service allows; else its host name.
pub(super) fn of(
    workload: &Workload,
    service: Option<&Service>,
    dialed: IpAddr,
) -> Option<Address> {
    let families = service.map_or(IpFamilies::Any, |service| service.ip_families);
    let allowed = |ip: &&IpAddr| match families {
        IpFamilies::Any => true,
        IpFamilies::Ipv4 => ip.is_ipv4(),
        IpFamilies::Ipv6 => ip.is_ipv6(),
    };
    let addresses = || workload.addresses.iter().filter(allowed);
    let ip = workload
        .addresses
        .iter()
        .find(|ip| **ip == dialed)
        .or_else(|| addresses().find(|ip| ip.is_ipv4() == dialed.is_ipv4()))
        .or_else(|| addresses().next());
    match ip {
        Some(ip) => Some(Address::Ip(*ip)),
        None if workload.hostname.is_empty() => None,
        None => Some(Address::Host(workload.hostname.clone())),
    }
}
