//! What operators are shown of a connection: metrics of both ends, profiles.

use std::fs;

use testbed::{Daemon, wait_for};

use crate::shop::{IN_FORCE, Shop};

/// A metric and some of its labels.
type Series = (&'static str, &'static [&'static str]);

/// Waits until each series has at least one count: a connection's end is seen a moment after the client's.
fn expect(daemon: &Daemon, expected: &[Series]) {
    wait_for(&format!("{expected:?}"), IN_FORCE, || {
        for (name, labels) in expected {
            let found = daemon.metric(name, labels)?;
            anyhow::ensure!(found >= 1.0, "{name} {labels:?} is {found}");
        }
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_connection_is_counted_and_timed_at_both_ends() {
    let Some(shop) = Shop::open() else { return };
    let service = shop.cluster.service("shop/cart").unwrap().0;
    shop.attempt("shop/web", &format!("{service}:7000")).unwrap();
    let source: &[&str] = &[
        "reporter=\"source\"",
        "source_workload=\"web\"",
        "destination_service=\"cart.shop.svc.cluster.local\"",
        "destination_principal=\"spiffe://cluster.local/ns/shop/sa/cart\"",
        "connection_security_policy=\"mutual_tls\"",
    ];
    expect(
        shop.cluster.daemon("a").unwrap(),
        &[
            ("istio_tcp_connections_opened_total", source),
            ("istio_tcp_connections_closed_total", source),
            ("istio_tcp_received_bytes_total", source),
            ("aquifer_dial_seconds_count", &["to=\"tunnel\""]),
            ("aquifer_first_byte_seconds_count", &["reporter=\"source\""]),
            ("aquifer_tls_handshake_seconds_count", &["role=\"client\""]),
            (
                "aquifer_tls_handshakes_total",
                &["role=\"client\"", "group=\"X25519MLKEM768\"", "resumed=\"false\""],
            ),
            ("workload_manager_active_proxy_count", &[]),
            ("workload_manager_proxies_started_total", &[]),
            ("tokio_num_workers", &[]),
            ("istio_build", &["component=\"ztunnel\""]),
        ],
    );
    expect(
        shop.cluster.daemon("b").unwrap(),
        &[
            (
                "istio_tcp_connections_closed_total",
                &["reporter=\"destination\"", "source_workload=\"web\"", "response_flags=\"-\""],
            ),
            ("aquifer_dial_seconds_count", &["to=\"application\""]),
            ("aquifer_first_byte_seconds_count", &["reporter=\"destination\""]),
            ("aquifer_tls_handshakes_total", &["role=\"server\""]),
        ],
    );
}

#[test]
fn a_tunnels_socket_is_sampled_when_it_ends() {
    let Some(mut shop) = Shop::open() else { return };
    let to = format!("{}:7000", shop.pod("shop/cart").ip4());
    shop.attempt("shop/web", &to).unwrap();
    shop.cluster.daemon_mut("b").unwrap().kill().unwrap();
    expect(
        shop.cluster.daemon("a").unwrap(),
        &[("aquifer_tunnel_rtt_seconds_count", &["role=\"client\""])],
    );
}

#[test]
fn profiles_are_taken_from_a_running_daemon() {
    let Some(shop) = Shop::open() else { return };
    let daemon = shop.cluster.daemon("a").unwrap();
    let admin = "http://127.0.0.1:15000/debug/pprof";
    daemon.get(&format!("{admin}/heap")).expect_err("profiling is not active yet");
    daemon.get(&format!("{admin}/heap/profiling?activate=true")).unwrap();
    shop.attempt("shop/web", &format!("{}:7000", shop.pod("shop/near").ip4())).unwrap();
    for page in ["heap", "profile?seconds=1"] {
        let file = shop.cluster.manifest_dir().with_file_name("profile.pb.gz");
        let path = file.display().to_string();
        daemon.ask(&["curl", "-sSf", "-o", &path, &format!("{admin}/{page}")]).unwrap();
        let profile = fs::read(&file).unwrap();
        assert!(profile.starts_with(&[0x1f, 0x8b]), "{page} is gzip: {} bytes", profile.len());
        fs::remove_file(&file).unwrap();
    }
    daemon.get(&format!("{admin}/heap/profiling?activate=false")).unwrap();
    daemon.get(&format!("{admin}/heap")).expect_err("profiling is not active any more");
}
