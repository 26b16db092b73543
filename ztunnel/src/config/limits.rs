//! What one pod may use of the daemon, so that it leaves something to the others, and one destination or source of its
//! connections.
//!
//! In: environment variables. Out: [`LimitSection`].

use std::num::{NonZeroU32, NonZeroU64};

use mesh::store::Rate;
use serde::Serialize;

use super::Reader;

/// What one pod may use, one destination and one source.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LimitSection {
    /// Connections of one pod at a time, of both directions; further ones are refused. `AQUIFER_POD_CONNECTIONS`,
    /// default 32768: at some 5 KB each, 170 MB.
    pub pod_connections: NonZeroU32,
    /// Tunnels that peers may have open to one pod, and as many that it may have dialed. `AQUIFER_POD_TUNNELS`, default
    /// 4096.
    pub pod_tunnels: NonZeroU32,
    /// Bytes that the peers of one pod may have sent through tunnels and nobody has taken. Tunnels get smaller
    /// windows as it is used up, the smallest 64 KiB. `AQUIFER_POD_BUFFER`, default 256 MiB, at least 1 MiB.
    pub pod_buffer_bytes: NonZeroU64,
    /// Connections of this node open to one service, or to one workload dialed by itself, where its annotation sets
    /// none. `AQUIFER_MAX_CONNECTIONS_PER_DESTINATION`, no limit by default.
    pub max_connections_per_destination: Option<NonZeroU32>,
    /// New connections of one identity on this node, as many a second, or a second and at once: `100` or `100:200`, where
    /// no annotation sets one. `AQUIFER_CONNECTION_RATE_PER_IDENTITY`, no limit by default.
    pub connection_rate_per_identity: Option<Rate>,
}

impl Reader<'_> {
    pub(super) fn limits(&mut self) -> LimitSection {
        let count = |n| NonZeroU32::new(n).expect("a positive literal");
        let limits = LimitSection {
            pod_connections: self.parsed("AQUIFER_POD_CONNECTIONS", count(32_768)),
            pod_tunnels: self.parsed("AQUIFER_POD_TUNNELS", count(4096)),
            pod_buffer_bytes: self.parsed(
                "AQUIFER_POD_BUFFER",
                const { NonZeroU64::new(256 << 20).expect("256 MiB is not 0") },
            ),
            max_connections_per_destination: self
                .parsed_if_set("AQUIFER_MAX_CONNECTIONS_PER_DESTINATION"),
            connection_rate_per_identity: self
                .parsed_if_set("AQUIFER_CONNECTION_RATE_PER_IDENTITY"),
        };
        if limits.pod_buffer_bytes.get() < 1 << 20 {
            self.refuse(
                "AQUIFER_POD_BUFFER",
                limits.pod_buffer_bytes,
                "at least 1048576 is needed",
            );
        }
        limits
    }
}
