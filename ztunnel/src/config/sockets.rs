//! Settings of the daemon's own sockets in pods.
//!
//! In: environment variables. Out: [`SocketSection`].

use std::{
    num::{NonZeroU16, NonZeroU32},
    time::Duration,
};

use serde::Serialize;

use super::Reader;

/// Istio's mark of its proxy's sockets, which its node agent's rules leave alone.
const ISTIO_MARK: u32 = 1337;

/// The daemon's sockets in pods.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SocketSection {
    /// Whether peers that say nothing are asked whether they are there. `KEEPALIVE_ENABLED`, default true.
    pub keepalive: bool,
    /// Silence before the first question. `KEEPALIVE_TIME`, default 180 s.
    pub keepalive_time: Duration,
    /// Between two questions. `KEEPALIVE_INTERVAL`, default 180 s.
    pub keepalive_interval: Duration,
    /// Questions without an answer, after which the peer is gone. `KEEPALIVE_RETRIES`, default 9.
    pub keepalive_retries: NonZeroU16,
    /// Whether data that nobody acknowledges ends a connection after as long as a silent peer would be asked
    /// (`TCP_USER_TIMEOUT`). `USER_TIMEOUT_ENABLED`, default false.
    pub user_timeout: bool,
    /// Mark of what the daemon sends; 0 for none. `PACKET_MARK`, default 1337 as Istio's, 0 in dedicated mode.
    pub packet_mark: u32,
    /// Whether IPv6 of pods is carried; it is refused otherwise. `IPV6_ENABLED`, default true.
    pub ipv6: bool,
    /// Whether listeners share their ports with those of another daemon, which replaces this one or is replaced.
    /// `INPOD_PORT_REUSE`, default true.
    pub port_reuse: bool,
    /// Whether applications see their clients' addresses. `ENABLE_ORIG_SRC`: true, false, or by default where the pod's
    /// routing can be set up for it.
    pub original_source: Option<bool>,
    /// Whether applications may ask for connections by SOCKS5 at 127.0.0.1:15080 of their pod. `UNSTABLE_ENABLE_SOCKS5`,
    /// default false.
    pub socks5: bool,
}

impl Reader<'_> {
    pub(super) fn sockets(&mut self) -> SocketSection {
        let seconds = Duration::from_secs;
        let mark = if self.is_dedicated() { 0 } else { ISTIO_MARK };
        let sockets = SocketSection {
            keepalive: self.parsed("KEEPALIVE_ENABLED", true),
            keepalive_time: self.duration("KEEPALIVE_TIME", seconds(180)),
            keepalive_interval: self.duration("KEEPALIVE_INTERVAL", seconds(180)),
            keepalive_retries: self
                .parsed("KEEPALIVE_RETRIES", const { NonZeroU16::new(9).expect("9 is not 0") }),
            user_timeout: self.parsed("USER_TIMEOUT_ENABLED", false),
            packet_mark: self.parsed("PACKET_MARK", mark),
            socks5: self.parsed("UNSTABLE_ENABLE_SOCKS5", false),
            ipv6: self.parsed("IPV6_ENABLED", true),
            port_reuse: self.parsed("INPOD_PORT_REUSE", true),
            original_source: self
                .optional("ENABLE_ORIG_SRC")
                .map(|_| self.parsed("ENABLE_ORIG_SRC", true)),
        };
        for (name, time) in [
            ("KEEPALIVE_TIME", sockets.keepalive_time),
            ("KEEPALIVE_INTERVAL", sockets.keepalive_interval),
        ] {
            // The kernel counts in seconds, up to 32767 (MAX_TCP_KEEPIDLE).
            if !(1..=32_767).contains(&time.as_secs()) {
                self.refuse(name, format!("{time:?}"), "1s to 32767s is allowed");
            }
        }
        if sockets.packet_mark == ebpf_common::PRESERVED_SOURCE_MARK {
            self.refuse("PACKET_MARK", sockets.packet_mark, "it is the mark of preserved sources");
        }
        sockets
    }
}

impl SocketSection {
    /// The mark, if there is one.
    pub fn mark(&self) -> Option<NonZeroU32> {
        NonZeroU32::new(self.packet_mark)
    }
}
