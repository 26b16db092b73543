//! Names and addresses of a cluster.
//!
//! In: the cluster's number. Out: the name or address of every part. Pure; two clusters with different numbers share
//! nothing, so tests run side by side.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

/// The names and addresses of one cluster.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Plan {
    number: u8,
}

/// Where the control plane is on the fabric.
const CONTROL_HOST: u8 = 200;
/// The third byte (fourth group) of service addresses.
const SERVICE_BLOCK: u8 = 128;

impl Plan {
    /// The plan of cluster `number`.
    pub fn new(number: u8) -> Plan {
        Plan { number }
    }

    /// The cluster's number.
    pub fn number(self) -> u8 {
        self.number
    }

    /// What the names of this cluster's namespaces begin with.
    pub fn netns_prefix(self) -> String {
        format!("aq{}-", self.number)
    }

    /// A namespace of this cluster.
    pub fn netns(self, part: &str) -> String {
        format!("{}{part}", self.netns_prefix())
    }

    /// The namespace that holds the fabric's bridge.
    pub fn fabric_netns(self) -> String {
        self.netns("fabric")
    }

    /// The folder of everything the cluster keeps in files.
    pub fn dir(self) -> PathBuf {
        PathBuf::from(format!("/run/aquifer-{}", self.number))
    }

    /// The folder name of the cluster's cgroup.
    pub fn cgroup_name(self) -> String {
        format!("aquifer-{}", self.number)
    }

    /// A node's address on the fabric; nodes count from 1.
    pub fn node_ip4(self, node: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, self.number, 0, node)
    }

    /// A node's address on the fabric; nodes count from 1.
    pub fn node_ip6(self, node: u8) -> Ipv6Addr {
        self.ip6(0, node)
    }

    /// The control plane's address on the fabric.
    pub fn control_ip4(self) -> Ipv4Addr {
        self.node_ip4(CONTROL_HOST)
    }

    /// The control plane's address on the fabric.
    pub fn control_ip6(self) -> Ipv6Addr {
        self.node_ip6(CONTROL_HOST)
    }

    /// Host `host` of node `node`'s pods; host 1 is the node itself.
    pub fn pod_ip4(self, node: u8, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, self.number, node, host)
    }

    /// Host `host` of node `node`'s pods; host 1 is the node itself.
    pub fn pod_ip6(self, node: u8, host: u8) -> Ipv6Addr {
        self.ip6(node, host)
    }

    /// The address of service `index`; no route leads there, so only capture can reach it.
    pub fn service_ip4(self, index: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, self.number, SERVICE_BLOCK, index)
    }

    /// The address of service `index`; no route leads there, so only capture can reach it.
    pub fn service_ip6(self, index: u8) -> Ipv6Addr {
        self.ip6(SERVICE_BLOCK, index)
    }

    /// All pods of a node.
    pub fn node_net4(self, node: u8) -> String {
        format!("{}/24", self.pod_ip4(node, 0))
    }

    /// All pods of a node.
    pub fn node_net6(self, node: u8) -> String {
        format!("{}/64", self.pod_ip6(node, 0))
    }

    fn ip6(self, block: u8, host: u8) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0xa9, self.number.into(), block.into(), 0, 0, 0, host.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_a_cluster_follow_from_its_number() {
        let plan = Plan::new(7);
        let rows: [(String, &str); 8] = [
            (plan.fabric_netns(), "aq7-fabric"),
            (plan.node_ip4(2).to_string(), "10.7.0.2"),
            (plan.control_ip6().to_string(), "fd00:a9:7::c8"),
            (plan.pod_ip4(2, 3).to_string(), "10.7.2.3"),
            (plan.pod_ip6(2, 3).to_string(), "fd00:a9:7:2::3"),
            (plan.service_ip4(5).to_string(), "10.7.128.5"),
            (plan.node_net4(1), "10.7.1.0/24"),
            (plan.node_net6(1), "fd00:a9:7:1::/64"),
        ];
        for (found, expected) in rows {
            assert_eq!(found, expected);
        }
    }
}
