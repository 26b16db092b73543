//! End-to-end tests: real processes in network namespaces. They need root and cgroup v2; without, they say so and pass, except
//! where the environment has `CI=true`.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a step that fails is the test failing")]

#[path = "mesh/address_reuse.rs"]
mod address_reuse;
#[path = "mesh/certificate_files.rs"]
mod certificate_files;
#[path = "mesh/certificates.rs"]
mod certificates;
#[path = "mesh/dedicated.rs"]
mod dedicated;
#[path = "mesh/dns.rs"]
mod dns;
#[path = "mesh/enrolment.rs"]
mod enrolment;
#[path = "mesh/envoy.rs"]
mod envoy;
#[path = "mesh/fabric.rs"]
mod fabric;
#[path = "mesh/floods.rs"]
mod floods;
#[path = "mesh/host_names.rs"]
mod host_names;
#[path = "mesh/limits.rs"]
mod limits;
#[path = "mesh/networks.rs"]
mod networks;
#[path = "mesh/node_agent.rs"]
mod node_agent;
#[path = "mesh/on_demand.rs"]
mod on_demand;
#[path = "mesh/open_connections.rs"]
mod open_connections;
#[path = "mesh/outage.rs"]
mod outage;
#[path = "mesh/outbound.rs"]
mod outbound;
#[path = "mesh/own_metrics.rs"]
mod own_metrics;
#[path = "mesh/peers.rs"]
mod peers;
#[path = "mesh/pending_policies.rs"]
mod pending_policies;
#[path = "mesh/policy.rs"]
mod policy;
#[path = "mesh/privilege.rs"]
mod privilege;
#[path = "mesh/recorded.rs"]
mod recorded;
#[path = "mesh/replayed.rs"]
mod replayed;
#[path = "mesh/shop.rs"]
mod shop;
#[path = "mesh/socks.rs"]
mod socks;
#[path = "mesh/telemetry.rs"]
mod telemetry;
#[path = "mesh/topology.rs"]
mod topology;
#[path = "mesh/traffic.rs"]
mod traffic;
#[path = "mesh/trust.rs"]
mod trust;
#[path = "mesh/waypoint_accepts.rs"]
mod waypoint_accepts;
#[path = "mesh/waypoint_traffic.rs"]
mod waypoint_traffic;
