//! Answers pods' DNS queries from what the mesh knows, and passes the others on.
//!
//! In: a pod's captured queries. Out: answers. What the mesh says about a name is decided by [`answer`] alone; the rest
//! is messages, sockets and deadlines. Nothing is cached: the mesh is in memory, and servers elsewhere have caches of
//! their own.

mod answer;
mod candidates;
mod observe;
mod on_demand;
mod pod_resolver;
mod resolv_conf;
mod server;
mod upstream;
mod wire;

use std::time::Duration;

use serde::Serialize;

pub use answer::{Answer, Client, Family, Known, Question, answer};
pub use resolv_conf::ResolvConf;
pub(crate) use server::serve;
pub use wire::{Malformed, Request, Transport, finish_answer, matches};

/// How names are answered.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DnsSection {
    /// Whether pods' queries are captured. `ISTIO_META_DNS_CAPTURE`; anything but `true` means no. Default `true`.
    pub capture: bool,
    /// Port of the pods' sockets for queries; the kernel programs find them at whichever. From `DNS_PROXY_ADDR`, of
    /// which the host is of no consequence. Default 15053.
    pub port: u16,
    /// Domain of the cluster's services. `CLUSTER_DOMAIN`, default `cluster.local`.
    pub cluster_domain: String,
    /// Among services of one host name, those of this namespace come before others that are not canonical.
    /// `PREFERED_SERVICE_NAMESPACE`, unset by default.
    pub preferred_namespace: Option<String>,
    /// Whether IPv6 addresses are told. `IPV6_ENABLED`, default `true`.
    pub ipv6: bool,
    /// How long answers from the mesh may be kept, in whole seconds. `AQUIFER_DNS_TTL`, default 30 s as Istio's.
    pub time_to_live: Duration,
}
