//! Metrics of tunnels' connections: handshakes, round-trip times, retransmissions.
//!
//! In: what `mesh::hbone` tells an [`Observer`]. Out: metrics.

use mesh::{
    hbone::{Observer, SampledSocket},
    telemetry,
};

use crate::sys;

/// Counts and times what tunnels' connections do.
pub fn observer() -> Observer {
    Observer { handshaken: telemetry::handshaken, sampled }
}

fn sampled(sample: SampledSocket<'_>) {
    // A socket that is gone has nothing to tell.
    let Ok(state) = sys::tcp_state(sample.socket) else { return };
    let retransmitted = state.retransmits.saturating_sub(*sample.counted);
    *sample.counted = state.retransmits;
    telemetry::sampled(sample.role, state.rtt, retransmitted);
}
