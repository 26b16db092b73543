//! What happens to connections of and to an enrolled pod.

use std::{io::ErrorKind, net::SocketAddr, os::fd::AsFd};

use aya::maps::{HashMap, Map, MapData};
use ebpf_common::Flow;
use ztunnel::capture::{Capture, DaemonAway, PodListeners, reset};

use crate::bed::{Bed, Host, accept, canonical, close, connected, idle};

/// Addresses that nobody has: only a captured connection to them succeeds.
const NOWHERE: [&str; 3] = ["203.0.113.7:80", "[2001:db8::7]:443", "[::ffff:203.0.113.8]:8080"];

fn enrolled(bed: &Bed, daemon_away: DaemonAway) -> (Capture, PodListeners) {
    let capture = bed.open();
    let listeners = bed.pod.daemon(1);
    capture.enrol(&bed.pod.capture(daemon_away), &listeners).unwrap();
    (capture, listeners)
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

fn std_stream(stream: tokio::net::TcpStream) -> std::net::TcpStream {
    let stream = stream.into_std().unwrap();
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(crate::bed::LIMIT)).unwrap();
    stream
}

fn counter(capture: &Capture, name: &str) -> u64 {
    capture.counters().unwrap().into_iter().find(|(other, _)| *other == name).unwrap().1
}

#[test]
fn outbound_connections_reach_the_daemon_with_their_original_destination() {
    let Some(bed) = Bed::new() else { return };
    let (capture, daemon) = enrolled(&bed, DaemonAway::Refuse);
    for to in NOWHERE {
        let client = bed.pod.connect(to).unwrap();
        let asked: SocketAddr = to.parse().unwrap();
        assert_eq!(client.peer_addr().unwrap(), asked, "the application sees what it asked for");
        let own = canonical(client.local_addr()).ip();
        assert!(own == bed.pod.ip4 || own == bed.pod.ip6, "{own} is the pod's own address");

        let accepted = accept(&daemon.outbound[0]);
        let original = capture.original_destination(accepted.as_fd()).unwrap().unwrap();
        assert_eq!(original, canonical(Ok(asked)));
        assert_eq!(canonical(accepted.peer_addr()), canonical(client.local_addr()));
        connected(&client, &accepted);
    }
    assert_eq!(counter(&capture, "outbound_captured"), 3);
    assert_eq!(counter(&capture, "outbound_handed_over"), 3);
    assert_eq!(counter(&capture, "steered_outbound"), 3);
}

#[test]
fn connections_are_dealt_to_all_listeners_of_a_port() {
    let Some(bed) = Bed::new() else { return };
    let capture = bed.open();
    let daemon = bed.pod.daemon(3);
    capture.enrol(&bed.pod.capture(DaemonAway::Refuse), &daemon).unwrap();
    let clients: Vec<_> = (0..60).map(|_| bed.pod.connect(NOWHERE[0]).unwrap()).collect();
    let mut total = 0;
    for listener in &daemon.outbound {
        let mut dealt = 0;
        while !idle(listener) {
            dealt += 1;
        }
        assert!(dealt > 0, "a listener was left out");
        total += dealt;
    }
    assert_eq!(total, clients.len());
}

#[test]
fn a_pod_that_is_not_enrolled_connects_as_ever() {
    let Some(bed) = Bed::new() else { return };
    let (_capture, _daemon) = enrolled(&bed, DaemonAway::Refuse);
    let application = bed.outside.listen(8080);
    connected(&bed.other.connect("10.77.0.9:8080").unwrap(), &accept(&application));
}

#[test]
fn connections_of_a_pod_to_itself_stay_uncaptured() {
    let Some(bed) = Bed::new() else { return };
    let (_capture, _daemon) = enrolled(&bed, DaemonAway::Refuse);
    let application = bed.pod.listen(8080);
    for to in ["127.0.0.1:8080", "[::1]:8080", "10.77.0.2:8080", "[fd77::2]:8080", "0.0.0.0:8080"] {
        connected(&bed.pod.connect(to).unwrap(), &accept(&application));
    }
}

#[test]
fn an_application_cannot_dial_the_daemons_ports_in_its_own_pod() {
    let Some(bed) = Bed::new() else { return };
    let (_capture, _daemon) = enrolled(&bed, DaemonAway::Refuse);
    for host in ["127.0.0.1", "[::1]", "10.77.0.2", "[fd77::2]", "0.0.0.0", "[::ffff:127.0.0.1]"] {
        for port in [15001, 15006, 15008] {
            let refused = bed.pod.connect(&format!("{host}:{port}")).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::PermissionDenied, "{host}:{port}");
        }
    }
}

#[test]
fn without_the_daemon_connections_are_refused_at_once() {
    let Some(bed) = Bed::new() else { return };
    let (capture, daemon) = enrolled(&bed, DaemonAway::Refuse);
    let _application = bed.pod.listen(8080);
    close(daemon);
    for to in NOWHERE {
        let refused = bed.pod.connect(to).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::PermissionDenied, "{to}");
    }
    for to in ["10.77.0.2:8080", "[fd77::2]:8080", "10.77.0.2:15008"] {
        let refused = bed.outside.connect(to).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{to}");
    }
    assert_eq!(counter(&capture, "outbound_refused_daemon_away"), 3);
    assert_eq!(counter(&capture, "inbound_dropped_daemon_away"), 3);
}

#[test]
fn without_the_daemon_a_pod_that_fails_open_connects_in_the_clear() {
    let Some(bed) = Bed::new() else { return };
    let (_capture, daemon) = enrolled(&bed, DaemonAway::Pass);
    close(daemon);
    let (inside, outside) = (bed.pod.listen(8080), bed.outside.listen(8080));
    connected(&bed.pod.connect("10.77.0.9:8080").unwrap(), &accept(&outside));
    connected(&bed.outside.connect("[fd77::2]:8080").unwrap(), &accept(&inside));
    // The tunnel's port is never the application's.
    let refused = bed.outside.connect("10.77.0.2:15008").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn inbound_connections_reach_the_daemon_under_their_destination() {
    let Some(bed) = Bed::new() else { return };
    let (capture, daemon) = enrolled(&bed, DaemonAway::Refuse);
    let application = bed.pod.listen(8080);
    for to in ["10.77.0.2:8080", "[fd77::2]:8080", "10.77.0.2:9"] {
        let client = bed.outside.connect(to).unwrap();
        let accepted = accept(&daemon.plaintext[0]);
        assert_eq!(canonical(accepted.local_addr()), to.parse().unwrap());
        assert_eq!(canonical(accepted.peer_addr()), canonical(client.local_addr()));
        assert_eq!(capture.original_destination(accepted.as_fd()).unwrap(), None);
        connected(&client, &accepted);
    }
    assert!(idle(&application));
    for to in ["10.77.0.2:15008", "[fd77::2]:15008"] {
        connected(&bed.outside.connect(to).unwrap(), &accept(&daemon.hbone[0]));
    }
    assert_eq!(counter(&capture, "steered_plaintext"), 3);
    assert_eq!(counter(&capture, "steered_hbone"), 2);
}

#[test]
fn the_pods_own_ports_are_closed_to_others() {
    let Some(bed) = Bed::new() else { return };
    let (capture, daemon) = enrolled(&bed, DaemonAway::Refuse);
    for to in ["10.77.0.2:15001", "[fd77::2]:15006"] {
        let refused = bed.outside.connect(to).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{to}");
    }
    assert!(idle(&daemon.outbound[0]) && idle(&daemon.plaintext[0]));
    assert_eq!(counter(&capture, "inbound_dropped_own_port"), 2);
}

#[test]
fn the_dns_port_of_a_pod_whose_queries_are_not_captured_is_an_applications() {
    let Some(bed) = Bed::new() else { return };
    let (capture, daemon) = enrolled(&bed, DaemonAway::Refuse);
    for to in ["10.77.0.2:15053", "[fd77::2]:15053"] {
        connected(&bed.outside.connect(to).unwrap(), &accept(&daemon.plaintext[0]));
    }
    assert_eq!(counter(&capture, "steered_plaintext"), 2);
    assert_eq!(counter(&capture, "inbound_dropped_own_port"), 0);
}

#[test]
fn an_address_that_the_daemon_does_not_know_lets_nobody_in() {
    let Some(bed) = Bed::new() else { return };
    let (_capture, _daemon) = enrolled(&bed, DaemonAway::Refuse);
    let _application = bed.pod.listen(8080);
    bed.pod.ip("addr add 10.77.0.22/24 dev eth0");
    let refused = bed.outside.connect("10.77.0.22:8080").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn exempt_sources_reach_the_application_and_others_do_not() {
    let Some(bed) = Bed::new() else { return };
    let (capture, daemon) = enrolled(&bed, DaemonAway::Refuse);
    let application = bed.pod.listen(8080);
    capture.exempt(&["10.77.0.8/31".parse().unwrap(), "fd77::9/128".parse().unwrap()]).unwrap();
    for to in ["10.77.0.2:8080", "[fd77::2]:8080"] {
        connected(&bed.outside.connect(to).unwrap(), &accept(&application));
        connected(&bed.other.connect(to).unwrap(), &accept(&daemon.plaintext[0]));
    }
    capture.exempt(&[]).unwrap();
    connected(&bed.outside.connect("10.77.0.2:8080").unwrap(), &accept(&daemon.plaintext[0]));
}

#[test]
fn the_daemons_own_connections_are_not_captured() {
    let Some(bed) = Bed::new() else { return };
    let (capture, daemon) = enrolled(&bed, DaemonAway::Refuse);
    let application = bed.outside.listen(8080);
    for to in ["10.77.0.9:8080", "[fd77::9]:8080"] {
        let stream = block_on(async {
            std_stream(capture.dial(&bed.pod.netns, to.parse().unwrap()).await.unwrap())
        });
        connected(&stream, &accept(&application));
    }
    assert!(idle(&daemon.outbound[0]));
    // A pod that calls itself over the mesh: the tunnel goes to its own address.
    let stream = block_on(async {
        std_stream(capture.dial(&bed.pod.netns, "10.77.0.2:15008".parse().unwrap()).await.unwrap())
    });
    connected(&stream, &accept(&daemon.hbone[0]));
}

#[test]
fn an_application_sees_the_clients_own_address() {
    let Some(bed) = Bed::new() else { return };
    let (capture, daemon) = enrolled(&bed, DaemonAway::Refuse);
    let application = bed.pod.listen(8080);
    for (source, to) in [
        (bed.outside.ip4, "10.77.0.2:8080"),
        (bed.outside.ip6, "[fd77::2]:8080"),
        // Mapped, as the peer of a dual-stack listener appears.
        ("::ffff:10.77.0.9".parse().unwrap(), "10.77.0.2:8080"),
    ] {
        let stream = block_on(async {
            let to = to.parse().unwrap();
            std_stream(capture.dial_as(&bed.pod.netns, source, to).await.unwrap())
        });
        let accepted = accept(&application);
        let peer = canonical(accepted.peer_addr());
        assert_eq!(peer.ip(), source.to_canonical());
        assert!((10240..32768).contains(&peer.port()), "{peer}");
        connected(&stream, &accepted);
    }
    assert!(idle(&daemon.plaintext[0]), "the daemon's own connection was captured again");
}

#[test]
fn a_closed_port_of_the_application_is_refused_at_once_in_both_families() {
    let Some(bed) = Bed::new() else { return };
    let (capture, _daemon) = enrolled(&bed, DaemonAway::Refuse);
    for (source, to) in [(bed.outside.ip4, "10.77.0.2:9"), (bed.outside.ip6, "[fd77::2]:9")] {
        let refused = block_on(async {
            let dialing = capture.dial_as(&bed.pod.netns, source, to.parse().unwrap());
            tokio::time::timeout(crate::bed::LIMIT, dialing).await.expect("no reset came")
        });
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused, "{to}");
    }
    // What let the daemon's SYN in must not let in the client from the same port.
    let pin = bed.pin_directory().join(ebpf_common::map::OWN_FLOWS);
    let map = Map::from_map_data(MapData::from_pin(pin).unwrap()).unwrap();
    let flows = HashMap::<_, Flow, u32>::try_from(map).unwrap();
    assert_eq!(flows.keys().flatten().collect::<Vec<_>>(), []);
}

#[test]
fn many_connections_under_one_client_address_use_many_ports() {
    let Some(bed) = Bed::new() else { return };
    let (capture, _daemon) = enrolled(&bed, DaemonAway::Refuse);
    let application = bed.pod.listen(8080);
    let mut ports = Vec::new();
    let streams = block_on(async {
        let mut streams = Vec::new();
        for _ in 0..200 {
            let to = "10.77.0.2:8080".parse().unwrap();
            streams.push(capture.dial_as(&bed.pod.netns, bed.outside.ip4, to).await.unwrap());
            ports.push(accept(&application).peer_addr().unwrap().port());
        }
        streams
    });
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), streams.len());
}

#[test]
fn a_reset_reaches_the_peer_as_a_reset() {
    let Some(bed) = Bed::new() else { return };
    let (_capture, daemon) = enrolled(&bed, DaemonAway::Refuse);
    let mut client = bed.pod.connect(NOWHERE[0]).unwrap();
    let accepted = accept(&daemon.outbound[0]);
    block_on(async {
        accepted.set_nonblocking(true).unwrap();
        reset(tokio::net::TcpStream::from_std(accepted).unwrap());
    });
    let error = std::io::Read::read(&mut client, &mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

#[test]
fn squatting_on_the_daemons_ports_neither_stops_nor_diverts_capture() {
    let Some(bed) = Bed::new() else { return };
    let squat = |pod: &Host, port| pod.listen(port);
    let (squatter, inbound) = (squat(&bed.pod, 15001), squat(&bed.pod, 15008));
    let (capture, daemon) = enrolled(&bed, DaemonAway::Refuse);
    let client = bed.pod.connect(NOWHERE[0]).unwrap();
    let accepted = accept(&daemon.outbound[0]);
    assert_eq!(
        capture.original_destination(accepted.as_fd()).unwrap(),
        Some(NOWHERE[0].parse().unwrap())
    );
    connected(&client, &accepted);
    connected(&bed.outside.connect("10.77.0.2:15008").unwrap(), &accept(&daemon.hbone[0]));
    assert!(idle(&squatter) && idle(&inbound));
}
