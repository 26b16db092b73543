//! What one pod may use of the daemon, so that it leaves something to the others.
//!
//! In: environment variables. Out: [`LimitSection`].

use std::num::{NonZeroU32, NonZeroU64};

use serde::Serialize;

use super::Reader;

/// What one pod may use.
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
