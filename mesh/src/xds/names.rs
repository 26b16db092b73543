//! The names by which a resource can be asked for.
//!
//! In: a resource and what it says. Out: its name, the aliases it came with, and its addresses as names. A server sends
//! aliases to those who ask for single addresses; that an answer is recognised does not depend on it.

use proto::discovery::Resource;

use super::Named;
use crate::store::{NetworkAddress, Update};

pub(super) fn of(resource: &Resource, update: &Update) -> Named {
    let mut aliases = match update {
        Update::Workload(workload) => {
            let network = &workload.network;
            workload.addresses.iter().map(|ip| format!("{network}/{ip}")).collect()
        }
        Update::Service(service) => service.addresses.iter().map(address).collect(),
        Update::RemoveAddress(_)
        | Update::Policy(_)
        | Update::RejectPolicy(_)
        | Update::RemovePolicy(_) => Vec::new(),
    };
    aliases.extend(resource.aliases.iter().cloned());
    aliases.sort();
    aliases.dedup();
    Named { name: resource.name.as_str().into(), aliases }
}

fn address(NetworkAddress { network, net }: &NetworkAddress) -> String {
    if net.prefix_len() == net.max_prefix_len() {
        format!("{network}/{}", net.addr())
    } else {
        format!("{network}/{net}")
    }
}
