//! How long the steps of a connection take, and how well tunnels' sockets do.
//!
//! In: durations and samples. Out: `aquifer_*` histograms and counters. Handles are resolved once for each thread, and the
//! labels are few and fixed.

use std::{cell::OnceCell, time::Duration};

use metrics::{Counter, Histogram, counter, histogram};

use super::Reporter;
use crate::hbone::{Handshaken, Role};

/// What a TCP connection was dialed for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum DialedFor {
    /// A tunnel.
    Tunnel,
    /// The application of a pod on this node.
    Application,
    /// A destination that takes no tunnels.
    Plaintext,
}

thread_local! {
    static DIALS: [OnceCell<Histogram>; 3] = const { [const { OnceCell::new() }; 3] };
    static FIRST_BYTES: [OnceCell<Histogram>; 2] = const { [const { OnceCell::new() }; 2] };
    static RTTS: [OnceCell<(Histogram, Counter)>; 2] = const { [const { OnceCell::new() }; 2] };
}

/// Records a TCP connection that was made.
pub fn dialed(purpose: DialedFor, took: Duration) {
    let (slot, label) = match purpose {
        DialedFor::Tunnel => (0, "tunnel"),
        DialedFor::Application => (1, "application"),
        DialedFor::Plaintext => (2, "plaintext"),
    };
    DIALS.with(|dials| {
        dials[slot].get_or_init(|| histogram!("aquifer_dial_seconds", "to" => label)).record(took);
    });
}

/// Records a TLS handshake.
pub fn handshaken(handshake: Handshaken) {
    let role = handshake.role.as_str();
    let resumed = if handshake.resumed { "true" } else { "false" };
    let labels = [("role", role), ("group", handshake.group), ("resumed", resumed)];
    counter!("aquifer_tls_handshakes_total", &labels).increment(1);
    histogram!("aquifer_tls_handshake_seconds", "role" => role).record(handshake.took);
}

/// Records the time from a connection's acceptance to the first byte that went back to its initiator.
pub(super) fn first_byte(reporter: Reporter, took: Duration) {
    let slot = match reporter {
        Reporter::Source => 0,
        Reporter::Destination => 1,
    };
    FIRST_BYTES.with(|bytes| {
        let open = || histogram!("aquifer_first_byte_seconds", "reporter" => reporter.as_str());
        bytes[slot].get_or_init(open).record(took);
    });
}

/// Records a sample of a tunnel's socket: its smoothed round-trip time, and segments sent again since the last sample.
pub fn sampled(role: Role, rtt: Duration, retransmitted: u32) {
    let (slot, role) = match role {
        Role::Client => (0, role.as_str()),
        Role::Server => (1, role.as_str()),
    };
    RTTS.with(|rtts| {
        let (rtts, retransmits) = rtts[slot].get_or_init(|| {
            (
                histogram!("aquifer_tunnel_rtt_seconds", "role" => role),
                counter!("aquifer_tunnel_retransmits_total", "role" => role),
            )
        });
        rtts.record(rtt);
        retransmits.increment(retransmitted.into());
    });
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    #[test]
    fn every_step_has_its_series() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let prometheus = recorder.handle();
        // A thread of its own: handles are kept by thread.
        std::thread::spawn(move || {
            metrics::with_local_recorder(&recorder, || {
                dialed(DialedFor::Application, Duration::from_millis(1));
                first_byte(Reporter::Source, Duration::from_millis(1));
                sampled(Role::Server, Duration::from_millis(1), 3);
                let (took, group) = (Duration::from_millis(2), "X25519MLKEM768");
                handshaken(Handshaken { role: Role::Client, took, group, resumed: true });
            });
        })
        .join()
        .unwrap();
        let text = prometheus.render();
        for line in [
            "aquifer_dial_seconds_count{to=\"application\"} 1",
            "aquifer_first_byte_seconds_count{reporter=\"source\"} 1",
            "aquifer_tunnel_retransmits_total{role=\"server\"} 3",
            "aquifer_tunnel_rtt_seconds_count{role=\"server\"} 1",
            "aquifer_tls_handshakes_total{role=\"client\",group=\"X25519MLKEM768\",resumed=\"true\"} 1",
        ] {
            assert!(text.contains(line), "no {line} in {text}");
        }
    }
}
