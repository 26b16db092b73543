//! Finds what clients ask for that do not want everything: a workload by its address, a service by its name or address.
//!
//! In: every Address of a state. Out: an [`Index`]. A service is found with its workloads, which are its endpoints, and
//! a node with its own.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use prost::Message;
use proto::workload::{Address, NetworkAddress, Service, Workload, address::Type as Kind};

use crate::compile::Resources;

/// What Addresses are found by besides their names.
#[derive(Debug, Default)]
pub(crate) struct Index {
    /// By `network/address`.
    by_address: HashMap<Box<str>, Vec<Arc<str>>>,
    /// The workloads of each service.
    members: HashMap<Box<str>, Vec<Arc<str>>>,
    /// The workloads on each node.
    on_node: HashMap<Box<str>, Vec<Arc<str>>>,
    /// What each is found by.
    aliases: HashMap<Arc<str>, Vec<String>>,
}

impl Index {
    /// Reads every Address.
    pub(crate) fn of(addresses: &Resources) -> Self {
        let mut index = Self::default();
        for (name, resource) in addresses {
            // They are our own.
            match Address::decode(&*resource.encoded).ok().and_then(|address| address.r#type) {
                Some(Kind::Workload(workload)) => index.add_workload(name, &workload),
                Some(Kind::Service(service)) => index.add_service(name, &service),
                None => {}
            }
        }
        index
    }

    fn add_workload(&mut self, name: &Arc<str>, workload: &Workload) {
        let aliases = workload.addresses.iter();
        let aliases = aliases.filter_map(|bytes| alias(&workload.network, bytes, None));
        self.add_aliases(name, aliases.collect());
        for service in workload.services.keys() {
            self.members.entry(service.as_str().into()).or_default().push(Arc::clone(name));
        }
        if !workload.node.is_empty() {
            self.on_node.entry(workload.node.as_str().into()).or_default().push(Arc::clone(name));
        }
    }

    fn add_service(&mut self, name: &Arc<str>, service: &Service) {
        let of = |one: &NetworkAddress| alias(&one.network, &one.address, one.length);
        self.add_aliases(name, service.addresses.iter().filter_map(of).collect());
    }

    fn add_aliases(&mut self, name: &Arc<str>, aliases: Vec<String>) {
        for alias in &aliases {
            self.by_address.entry(alias.as_str().into()).or_default().push(Arc::clone(name));
        }
        self.aliases.insert(Arc::clone(name), aliases);
    }

    /// The names of all that `asked` means; none if there is no such thing.
    pub(crate) fn find(&self, addresses: &Resources, asked: &str) -> BTreeSet<Arc<str>> {
        let named = addresses.get_key_value(asked).map(|(name, _)| name);
        let addressed = self.by_address.get(asked).into_iter().flatten();
        let mut found: BTreeSet<_> = named.into_iter().chain(addressed).cloned().collect();
        let members = found.iter().filter_map(|name| self.members.get(&**name));
        let members: Vec<_> = members.flatten().cloned().collect();
        found.extend(members);
        found
    }

    /// The names of a node's workloads.
    pub(crate) fn on_node(&self, node: &str) -> impl Iterator<Item = &Arc<str>> {
        self.on_node.get(node).into_iter().flatten()
    }

    /// What else a resource is found by.
    pub(crate) fn aliases(&self, name: &str) -> &[String] {
        self.aliases.get(name).map_or(&[], Vec::as_slice)
    }
}

/// `network/address`, or `network/address/length` of a range.
fn alias(network: &str, bytes: &[u8], length: Option<u32>) -> Option<String> {
    let ip = match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        16 => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
        _ => return None,
    };
    let whole = if ip.is_ipv4() { 32 } else { 128 };
    Some(match length.filter(|length| *length != whole) {
        Some(length) => format!("{network}/{ip}/{length}"),
        None => format!("{network}/{ip}"),
    })
}
