//! The testbed: a mesh of nodes and pods on one machine, made of network namespaces and real processes.
//!
//! In: a typed description of a cluster ([`Cluster::builder`]). Out: namespaces joined by bridges, manifests in a folder,
//! a running pilot and a daemon for every node, and handles that run programs in pods. The demo, the end-to-end tests
//! and the bench are written against this library; none of them knows how a namespace is made.
//!
//! Needs root, cgroup v2 and Debian's `ip`, `nsenter`, `sysctl` and `mount`. Everything it makes carries the cluster's number in its
//! name and goes away with the [`Cluster`], on a signal, or at the next start if the process was killed.
#![forbid(unsafe_code)]

pub mod binaries;
pub mod builder;
pub mod claim;
pub mod cluster;
pub mod command;
pub mod control;
pub mod daemon;
pub mod description;
pub mod envoy;
mod gate;
pub mod load;
pub mod manifests;
pub mod network;
pub mod node_agent;
pub mod place;
pub mod plan;
pub mod pod;
pub mod process;
pub mod tcpdump;
pub mod teardown;
pub mod wait;
pub mod waypoint;

pub use builder::Builder;
pub use cluster::Cluster;
pub use daemon::Daemon;
pub use description::{Dataplane, NamespaceSpec, PodSpec, ServiceSpec};
pub use envoy::Envoy;
pub use node_agent::NodeAgent;
pub use pod::Pod;
pub use process::Process;
pub use tcpdump::Tcpdump;
pub use wait::wait_for;
pub use waypoint::Waypoint;
