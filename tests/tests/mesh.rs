//! End-to-end tests: real processes in network namespaces. They need root and cgroup v2; without, they say so and pass, except
//! where the environment has `CI=true`.
#![forbid(unsafe_code)]

#[path = "mesh/privilege.rs"]
mod privilege;
#[path = "mesh/topology.rs"]
mod topology;
