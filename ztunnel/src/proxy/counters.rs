//! Which way bytes count: metrics know the connection's initiator, copying knows the near side.

use mesh::{hbone::ByteCounters, telemetry::ConnectionMetrics};

/// The near side is the initiator: outbound, and plaintext inbound.
pub(super) struct NearInitiates<'a>(pub(super) &'a ConnectionMetrics);

/// The far side is the initiator: a tunnel's stream to the application.
pub(super) struct FarInitiates<'a>(pub(super) &'a ConnectionMetrics);

impl ByteCounters for NearInitiates<'_> {
    fn sent(&self, count: u64) {
        self.0.received(count);
    }

    fn received(&self, count: u64) {
        self.0.sent(count);
    }
}

impl ByteCounters for FarInitiates<'_> {
    fn sent(&self, count: u64) {
        self.0.sent(count);
    }

    fn received(&self, count: u64) {
        self.0.received(count);
    }
}
