//! Builds the namespaces of a cluster and the wires between them.
//!
//! In: a [`Plan`] and what to add. Out: a fabric (a bridge in a namespace of its own), nodes on it (each with a bridge for
//! its pods), and pods (a veth whose end is `eth0`), over IPv4 and IPv6, with routes between all of them. No process runs
//! here, and nothing is removed here: that is `teardown`'s.

use anyhow::Result;

use crate::command::{ip_batch, run};
use crate::plan::Plan;

/// Settings of TCP inside every namespace.
#[derive(Clone, Debug)]
pub struct Tcp {
    /// The congestion control, or none for what the host has.
    pub congestion_control: Option<String>,
    /// The first and last port that a pod's own connections are given. Above 32767, because the daemon takes the ports
    /// below for the connections it makes in the name of a client.
    pub local_ports: (u16, u16),
    /// How many ended connections are remembered; few, where a test makes very many connections.
    pub remembered_ends: Option<u32>,
}

impl Default for Tcp {
    fn default() -> Tcp {
        Tcp { congestion_control: None, local_ports: (32768, 65000), remembered_ends: None }
    }
}

/// Makes the fabric and the control plane's namespace on it.
///
/// # Errors
/// If a command fails.
pub fn add_fabric(plan: Plan, tcp: &Tcp) -> Result<()> {
    let (fabric, control) = (plan.fabric_netns(), plan.netns("control"));
    ip_batch(None, &[format!("netns add {fabric}"), format!("netns add {control}")])?;
    settle(&fabric, tcp, Forwarding::Off)?;
    settle(&control, tcp, Forwarding::Off)?;
    ip_batch(
        Some(&fabric),
        &[
            "link set lo up".to_owned(),
            "link add fabric0 type bridge mcast_snooping 0".to_owned(),
            "link set fabric0 up".to_owned(),
        ],
    )?;
    wire(&control, &fabric, "fabric0", "control")?;
    ip_batch(
        Some(&control),
        &[
            "link set lo up".to_owned(),
            format!("addr add {}/24 dev eth0", plan.control_ip4()),
            format!("addr add {}/64 dev eth0 nodad", plan.control_ip6()),
            "link set eth0 up".to_owned(),
        ],
    )
}

/// Makes node `index` (from 1) and the routes between it and the `others` already there.
///
/// # Errors
/// If a command fails.
pub fn add_node(
    plan: Plan,
    index: u8,
    name: &str,
    others: &[(u8, String)],
    tcp: &Tcp,
) -> Result<()> {
    let netns = plan.netns(name);
    ip_batch(None, &[format!("netns add {netns}")])?;
    settle(&netns, tcp, Forwarding::On)?;
    wire(&netns, &plan.fabric_netns(), "fabric0", name)?;
    let mut lines = vec![
        "link set lo up".to_owned(),
        format!("addr add {}/24 dev eth0", plan.node_ip4(index)),
        format!("addr add {}/64 dev eth0 nodad", plan.node_ip6(index)),
        "link set eth0 up".to_owned(),
        "link add pods0 type bridge mcast_snooping 0".to_owned(),
        format!("addr add {}/24 dev pods0", plan.pod_ip4(index, 1)),
        format!("addr add {}/64 dev pods0 nodad", plan.pod_ip6(index, 1)),
        "link set pods0 up".to_owned(),
    ];
    lines.extend(others.iter().flat_map(|(other, _)| routes(plan, *other)));
    ip_batch(Some(&netns), &lines)?;
    ip_batch(Some(&plan.netns("control")), &routes(plan, index))?;
    for (_, other) in others {
        ip_batch(Some(&plan.netns(other)), &routes(plan, index))?;
    }
    Ok(())
}

/// Makes pod `netns` as host `host` of node `node`.
///
/// # Errors
/// If a command fails.
pub fn add_pod(
    plan: Plan,
    netns: &str,
    (node, node_name): (u8, &str),
    host: u8,
    tcp: &Tcp,
) -> Result<()> {
    ip_batch(None, &[format!("netns add {netns}")])?;
    settle(netns, tcp, Forwarding::Off)?;
    wire(netns, &plan.netns(node_name), "pods0", &format!("pod{host}"))?;
    ip_batch(
        Some(netns),
        &[
            "link set lo up".to_owned(),
            // Made from the address: neighbours that knew its last owner find the new one at once.
            format!("link set eth0 address 0a:58:0a:{:02x}:{node:02x}:{host:02x}", plan.number()),
            format!("addr add {}/24 dev eth0", plan.pod_ip4(node, host)),
            format!("addr add {}/64 dev eth0 nodad", plan.pod_ip6(node, host)),
            "link set eth0 up".to_owned(),
            format!("route add default via {}", plan.pod_ip4(node, 1)),
            format!("route add ::/0 via {}", plan.pod_ip6(node, 1)),
        ],
    )
}

/// Removes pod `netns`, host `host` of `node_name`, with its wire. The wire goes first: the kernel takes namespaces away in its own
/// time, and the address and the port on the bridge must be free at once.
///
/// # Errors
/// If a command fails.
pub fn remove_pod(plan: Plan, netns: &str, node_name: &str, host: u8) -> Result<()> {
    ip_batch(Some(&plan.netns(node_name)), &[format!("link del pod{host}")])?;
    ip_batch(None, &[format!("netns del {netns}")])
}

enum Forwarding {
    On,
    Off,
}

/// `eth0` in `netns`, its other end `port` on a bridge of `bridge_netns`.
fn wire(netns: &str, bridge_netns: &str, bridge: &str, port: &str) -> Result<()> {
    ip_batch(
        None,
        &[format!("link add eth0 netns {netns} type veth peer name {port} netns {bridge_netns}")],
    )?;
    ip_batch(Some(bridge_netns), &[format!("link set {port} master {bridge} up")])
}

fn routes(plan: Plan, node: u8) -> [String; 2] {
    [
        format!("route add {} via {}", plan.node_net4(node), plan.node_ip4(node)),
        format!("route add {} via {}", plan.node_net6(node), plan.node_ip6(node)),
    ]
}

/// Sets what a namespace must have before its first link comes up.
fn settle(netns: &str, tcp: &Tcp, forwarding: Forwarding) -> Result<()> {
    let (first, last) = tcp.local_ports;
    let mut settings = vec![
        // No neighbour has our addresses: waiting to find out would cost a second for each.
        "net.ipv6.conf.all.accept_dad=0".to_owned(),
        "net.ipv6.conf.default.accept_dad=0".to_owned(),
        "net.ipv6.conf.all.disable_ipv6=0".to_owned(),
        format!("net.ipv4.ip_local_port_range={first} {last}"),
    ];
    if let Forwarding::On = forwarding {
        settings.extend([
            "net.ipv4.ip_forward=1".to_owned(),
            "net.ipv6.conf.all.forwarding=1".to_owned(),
        ]);
    }
    settings.extend(
        tcp.congestion_control.iter().map(|name| format!("net.ipv4.tcp_congestion_control={name}")),
    );
    settings.extend(
        tcp.remembered_ends.iter().map(|count| format!("net.ipv4.tcp_max_tw_buckets={count}")),
    );
    let enter = format!("--net=/run/netns/{netns}");
    run("nsenter", [enter, "sysctl".to_owned(), "-qw".to_owned()].into_iter().chain(settings))
        .map(drop)
}
