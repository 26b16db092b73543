//! The limits and deadlines of tunnels.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use super::{Observer, WindowBudget};

/// Limits and deadlines of the tunnels of one pod, on both sides.
#[derive(Clone, Debug)]
pub struct HboneConfig {
    /// The TLS and HTTP/2 handshakes together take at most this long. Default 10 s.
    pub handshake_limit: Duration,
    /// The peer answers a CONNECT within this time. Default 15 s: its own dial of the application may take 10 s, and its
    /// answer that it failed says more than silence.
    pub answer_limit: Duration,
    /// Streams on one tunnel before another is dialed; the peer may allow fewer. Default 100.
    pub streams_per_tunnel: NonZeroU32,
    /// Streams that a peer may have open on one tunnel to us. Default 200.
    pub accepted_streams: u32,
    /// An unused tunnel is closed after this long, give or take `ping_interval`. Default 5 min.
    pub idle_limit: Duration,
    /// A PING goes to a peer that has sent nothing for this long. Default 10 s.
    pub ping_interval: Duration,
    /// A peer that sends nothing for this long after a PING is gone. Default 20 s.
    pub ping_limit: Duration,
    /// HTTP/2 window of each stream, in bytes, at most 2^31 - 1. Default 4 MiB.
    pub stream_window_bytes: u32,
    /// HTTP/2 window of each tunnel, in bytes, at most 2^31 - 1. Default 16 MiB: four times that of a stream, so that one
    /// unread stream does not starve its siblings.
    pub tunnel_window_bytes: u32,
    /// What the windows of these tunnels may add up to; tunnels get smaller ones as it is used up. Default: no bound.
    pub budget: Option<Arc<WindowBudget>>,
    /// Largest HTTP/2 frame that a peer may send, in bytes, 16,384 to 2^24 - 1. Default 1 MiB.
    pub frame_bytes: u32,
    /// Who is told of handshakes and sockets. Default nobody.
    pub observer: Observer,
}

impl Default for HboneConfig {
    fn default() -> Self {
        Self {
            handshake_limit: Duration::from_secs(10),
            answer_limit: Duration::from_secs(15),
            streams_per_tunnel: const { NonZeroU32::new(100).expect("not zero") },
            accepted_streams: 200,
            idle_limit: Duration::from_secs(300),
            ping_interval: Duration::from_secs(10),
            ping_limit: Duration::from_secs(20),
            stream_window_bytes: 4 << 20,
            tunnel_window_bytes: 16 << 20,
            budget: None,
            frame_bytes: 1 << 20,
            observer: Observer::default(),
        }
    }
}
