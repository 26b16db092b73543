//! Virtual addresses of ServiceEntries that have none.
//!
//! In: the hosts in need of one, and the addresses that their statuses already hold. Out: one IPv4 and one IPv6
//! address for each, from ranges that nothing else uses. A host's address follows from its name: it stays when others
//! come and go, unless two names fall on the same address; then the older one has it.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use twox_hash::XxHash64;

use crate::manifests::{
    Object,
    networking::{Resolution, ServiceEntry},
};

/// Set to `false`, a ServiceEntry gets none.
const ENABLE: &str = "networking.istio.io/enable-autoallocate-ip";
/// Of 240.240.0.0/16, and of 2001:2::/48 the same number.
const NUMBERS: u32 = 1 << 16;

/// Which numbers are taken.
#[derive(Debug, Default)]
pub(super) struct Allocated {
    taken: HashSet<u32>,
}

impl Allocated {
    /// Those that statuses hold are nobody else's.
    pub(super) fn of<'a>(entries: impl Iterator<Item = &'a Object<ServiceEntry>>) -> Self {
        let held = entries.flat_map(|entry| &entry.spec.status.addresses);
        let numbers = held.filter_map(|held| number(held.value.parse().ok()?));
        Self { taken: numbers.collect() }
    }

    /// The addresses of a host; to be asked in order of age.
    pub(super) fn addresses(&mut self, entry: &Object<ServiceEntry>, hostname: &str) -> Vec<IpNet> {
        if !is_wanted(entry, hostname) {
            return Vec::new();
        }
        let held = entry.spec.status.addresses.iter().filter(|held| held.host == hostname);
        let held: Vec<IpNet> =
            held.filter_map(|held| held.value.parse::<IpAddr>().ok()).map(IpNet::from).collect();
        if !held.is_empty() {
            return held;
        }
        let name = format!("{}/{}/{hostname}", entry.meta.namespace, entry.meta.name);
        let start = u32::try_from(XxHash64::oneshot(0, name.as_bytes()) % u64::from(NUMBERS));
        let start = start.unwrap_or_default();
        let free = (0..NUMBERS)
            .map(|step| (start + step) % NUMBERS)
            .find(|number| is_host(*number) && !self.taken.contains(number));
        let Some(number) = free else { return Vec::new() };
        self.taken.insert(number);
        let [.., high, low] = number.to_be_bytes();
        let v4 = Ipv4Addr::new(240, 240, high, low);
        let v6 = Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, u16::from_be_bytes([high, low]));
        vec![IpNet::from(IpAddr::V4(v4)), IpNet::from(IpAddr::V6(v6))]
    }
}

/// Whether a host of this entry has addresses allocated.
pub(super) fn is_wanted(entry: &Object<ServiceEntry>, hostname: &str) -> bool {
    let spec = &entry.spec;
    let opted_out = entry.meta.labels.get(ENABLE).is_some_and(|value| value == "false");
    let wildcard = hostname.starts_with('*');
    spec.addresses.is_empty()
        && spec.resolution != Resolution::None
        && !opted_out
        && (!wildcard || spec.resolution == Resolution::DynamicDns)
}

/// First and last of a /24 look like a network and its broadcast to some.
fn is_host(number: u32) -> bool {
    !matches!(number & 0xff, 0 | 0xff)
}

fn number(ip: IpAddr) -> Option<u32> {
    match ip {
        IpAddr::V4(ip) => match ip.octets() {
            [240, 240, high, low] => Some(u32::from_be_bytes([0, 0, high, low])),
            _ => None,
        },
        IpAddr::V6(ip) => match ip.segments() {
            [0x2001, 2, 0, 0, 0, 0, 0, last] => Some(last.into()),
            _ => None,
        },
    }
}
