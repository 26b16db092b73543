//! What happens to DNS queries of an enrolled pod, in datagrams and on connections.

use std::{
    fs,
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    os::fd::AsFd,
};

use ztunnel::capture::{Capture, DaemonAway, DnsListeners, Exclusions, PodListeners, Scope};

use crate::bed::{Bed, accept, canonical, close, connected, idle};

/// Servers that nobody is: only a captured query is answered.
const SERVERS: [&str; 3] = ["203.0.113.53:53", "[2001:db8::53]:53", "[::ffff:203.0.113.54]:53"];

fn enrolled(bed: &Bed, daemon_away: DaemonAway) -> (Capture, PodListeners) {
    let capture = bed.open();
    let listeners = bed.pod.daemon_with_dns();
    capture.enrol(&bed.pod.capture(daemon_away), &listeners).unwrap();
    (capture, listeners)
}

fn dns(daemon: &PodListeners) -> &DnsListeners {
    daemon.dns.as_ref().unwrap()
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Where a socket that asks this server is bound.
fn any(server: &str) -> &'static str {
    if address(server).is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }
}

/// Takes a query as the daemon does: from whom, and which server was asked.
fn take(bed: &Bed, capture: &Capture, daemon: &UdpSocket) -> (SocketAddr, Option<SocketAddr>) {
    let mut bytes = [0; 64];
    let (length, from) = daemon.recv_from(&mut bytes).expect("a query should have come here");
    assert_eq!(&bytes[..length], b"question");
    (from, capture.asked_server(bed.pod.netns.cookie(), from).unwrap())
}

/// The daemon's socket of the family that carries queries to this server.
fn socket_for<'a>(daemon: &'a PodListeners, server: &str) -> &'a UdpSocket {
    let is_v4 = address(server).ip().to_canonical().is_ipv4();
    let of_family = |socket: &&UdpSocket| socket.local_addr().unwrap().is_ipv4() == is_v4;
    dns(daemon).datagrams.iter().find(of_family).unwrap()
}

/// One question and its answer; gives the source that the application is told.
fn ask(
    bed: &Bed,
    capture: &Capture,
    daemon: &UdpSocket,
    app: &UdpSocket,
    server: &str,
) -> SocketAddr {
    app.send_to(b"question", server).unwrap();
    let (from, asked) = take(bed, capture, daemon);
    assert_eq!(asked, Some(canonical(Ok(address(server)))));
    daemon.send_to(b"answer", from).unwrap();
    let mut bytes = [0; 64];
    let (length, source) = app.recv_from(&mut bytes).unwrap();
    assert_eq!(&bytes[..length], b"answer");
    source
}

fn counter(capture: &Capture, name: &str) -> u64 {
    capture.counters().unwrap().into_iter().find(|(other, _)| *other == name).unwrap().1
}

#[test]
fn queries_of_an_unconnected_socket_are_answered_in_the_name_of_the_server_asked() {
    let Some(bed) = Bed::new() else { return };
    let (capture, daemon) = enrolled(&bed, DaemonAway::Refuse);
    for server in SERVERS {
        let app = bed.pod.datagrams(any(server));
        let source = ask(&bed, &capture, socket_for(&daemon, server), &app, server);
        assert_eq!(source, address(server));
    }
    assert_eq!(counter(&capture, "dns_captured"), 3);
    assert_eq!(counter(&capture, "steered_dns"), 3);
}

#[test]
fn a_socket_that_asks_two_servers_in_turn_hears_from_each() {
    let Some(bed) = Bed::new() else { return };
    let (capture, daemon) = enrolled(&bed, DaemonAway::Refuse);
    let app = bed.pod.datagrams("0.0.0.0:0");
    for server in ["203.0.113.1:53", "203.0.113.2:53", "203.0.113.1:53"] {
        let source = ask(&bed, &capture, socket_for(&daemon, server), &app, server);
        assert_eq!(source, address(server));
    }
}

#[test]
fn connected_sockets_see_the_server_asked_and_the_daemon_knows_it() {
    let Some(bed) = Bed::new() else { return };
    let (capture, daemon) = enrolled(&bed, DaemonAway::Refuse);
    let apps: Vec<UdpSocket> = SERVERS.map(|server| bed.pod.datagrams(any(server))).into();
    for (app, server) in apps.iter().zip(SERVERS) {
        app.connect(server).unwrap();
        assert_eq!(app.peer_addr().unwrap(), address(server));
        let own = canonical(app.local_addr()).ip();
        assert!(own == bed.pod.ip4 || own == bed.pod.ip6, "{own} is the pod's own address");
    }
    // All at once: the last one connected is not taken for the others.
    for (app, server) in apps.iter().zip(SERVERS) {
        app.send(b"question").unwrap();
        let socket = socket_for(&daemon, server);
        let (from, asked) = take(&bed, &capture, socket);
        assert_eq!(asked, Some(canonical(Ok(address(server)))));
        socket.send_to(b"answer", from).unwrap();
        let mut bytes = [0; 64];
        let (_, source) = app.recv_from(&mut bytes).unwrap();
        assert_eq!(source, address(server));
    }
}

#[test]
fn a_connected_socket_keeps_the_port_it_was_bound_to() {
    let Some(bed) = Bed::new() else { return };
    let (capture, daemon) = enrolled(&bed, DaemonAway::Refuse);
    let app = bed.pod.datagrams("10.77.0.2:5353");
    app.connect(SERVERS[0]).unwrap();
    app.send(b"question").unwrap();
    let (from, asked) = take(&bed, &capture, socket_for(&daemon, SERVERS[0]));
    assert_eq!(from, address("10.77.0.2:5353"));
    assert_eq!(asked, Some(address(SERVERS[0])));
}

#[test]
fn connections_to_port_53_reach_the_dns_proxy_with_the_server_asked() {
    let Some(bed) = Bed::new() else { return };
    let (capture, daemon) = enrolled(&bed, DaemonAway::Refuse);
    for server in SERVERS {
        let client = bed.pod.connect(server).unwrap();
        assert_eq!(client.peer_addr().unwrap(), address(server));
        let accepted = accept(&dns(&daemon).connections);
        let asked = capture.original_destination(accepted.as_fd()).unwrap();
        assert_eq!(asked, Some(canonical(Ok(address(server)))));
        connected(&client, &accepted);
    }
    assert!(idle(&daemon.outbound[0]));
}

#[test]
fn datagrams_to_other_ports_and_queries_to_the_pod_itself_are_left_alone() {
    let Some(bed) = Bed::new() else { return };
    let (_capture, _daemon) = enrolled(&bed, DaemonAway::Refuse);
    let (outside, inside) = (bed.outside.datagrams("0.0.0.0:5300"), bed.pod.datagrams("[::]:53"));
    let app = bed.pod.datagrams("0.0.0.0:0");
    let mut bytes = [0; 64];
    for (to, receiver) in
        [("10.77.0.9:5300", &outside), ("127.0.0.1:53", &inside), ("10.77.0.2:53", &inside)]
    {
        app.send_to(b"hello", to).unwrap();
        let (_, from) = receiver.recv_from(&mut bytes).unwrap();
        receiver.send_to(b"world", from).unwrap();
        assert_eq!(app.recv_from(&mut bytes).unwrap().1, address(to));
    }
}

#[test]
fn queries_of_pods_without_dns_capture_go_where_they_were_sent() {
    let Some(bed) = Bed::new() else { return };
    let capture = bed.open();
    let (server, connections) = (bed.outside.datagrams("0.0.0.0:53"), bed.outside.listen(53));
    let without_dns = bed.pod.daemon(1);
    capture.enrol(&bed.pod.capture(DaemonAway::Refuse), &without_dns).unwrap();
    let mut bytes = [0; 64];
    for host in [&bed.pod, &bed.other] {
        let app = host.datagrams("0.0.0.0:0");
        app.send_to(b"question", "10.77.0.9:53").unwrap();
        let (_, from) = server.recv_from(&mut bytes).unwrap();
        assert_eq!(from.ip(), host.ip4);
    }
    // Connections are captured as to any other port; those of a pod that is not enrolled are not.
    bed.pod.connect("10.77.0.9:53").unwrap();
    accept(&without_dns.outbound[0]);
    connected(&bed.other.connect("10.77.0.9:53").unwrap(), &accept(&connections));
}

#[test]
fn without_the_daemon_queries_are_refused_at_once() {
    let Some(bed) = Bed::new() else { return };
    let (_capture, daemon) = enrolled(&bed, DaemonAway::Refuse);
    close(daemon);
    for server in SERVERS {
        let app = bed.pod.datagrams(any(server));
        let kind = |error: std::io::Error| error.kind();
        assert_eq!(
            kind(app.send_to(b"question", server).unwrap_err()),
            ErrorKind::PermissionDenied
        );
        assert_eq!(kind(app.connect(server).unwrap_err()), ErrorKind::PermissionDenied);
        assert_eq!(kind(bed.pod.connect(server).unwrap_err()), ErrorKind::PermissionDenied);
    }
}

#[test]
fn without_the_daemon_queries_of_a_pod_that_fails_open_go_to_the_server() {
    let Some(bed) = Bed::new() else { return };
    let (_capture, daemon) = enrolled(&bed, DaemonAway::Pass);
    close(daemon);
    let server = bed.outside.datagrams("0.0.0.0:53");
    let app = bed.pod.datagrams("0.0.0.0:0");
    app.send_to(b"question", "10.77.0.9:53").unwrap();
    let mut bytes = [0; 64];
    let (_, from) = server.recv_from(&mut bytes).unwrap();
    server.send_to(b"answer", from).unwrap();
    assert_eq!(app.recv_from(&mut bytes).unwrap().1, address("10.77.0.9:53"));
}

#[test]
fn the_dns_port_is_closed_to_others() {
    let Some(bed) = Bed::new() else { return };
    let (capture, daemon) = enrolled(&bed, DaemonAway::Refuse);
    let stranger = bed.outside.datagrams("[::]:0");
    for to in ["[::ffff:10.77.0.2]:15053", "[fd77::2]:15053"] {
        stranger.send_to(b"question", to).unwrap();
        let refused = bed.outside.connect(to).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{to}");
    }
    // The first datagram to arrive is the pod's own.
    for server in &SERVERS[..2] {
        let app = bed.pod.datagrams(any(server));
        ask(&bed, &capture, socket_for(&daemon, server), &app, server);
    }
    assert_eq!(counter(&capture, "inbound_dropped_own_port"), 4);
    for to in ["127.0.0.1:15053", "10.77.0.2:15053", "[fd77::2]:15053"] {
        let refused = bed.pod.connect(to).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::PermissionDenied, "{to}");
    }
}

#[test]
fn squatting_on_the_dns_port_neither_stops_nor_diverts_queries() {
    let Some(bed) = Bed::new() else { return };
    let (squatter, connections) = (bed.pod.datagrams("[::]:15053"), bed.pod.listen(15053));
    let (capture, daemon) = enrolled(&bed, DaemonAway::Refuse);
    for server in SERVERS {
        let socket = socket_for(&daemon, server);
        assert_ne!(socket.local_addr().unwrap().port(), 15053);
        let app = bed.pod.datagrams(any(server));
        assert_eq!(ask(&bed, &capture, socket, &app, server), address(server));
        app.connect(server).unwrap();
        assert_eq!(app.peer_addr().unwrap(), address(server));
        connected(&bed.pod.connect(server).unwrap(), &accept(&dns(&daemon).connections));
    }
    squatter.set_nonblocking(true).unwrap();
    assert_eq!(squatter.recv(&mut [0; 64]).unwrap_err().kind(), ErrorKind::WouldBlock);
    assert!(idle(&connections));
}

#[test]
fn the_daemons_own_queries_leave_the_pod() {
    let Some(bed) = Bed::new() else { return };
    let (capture, _daemon) = enrolled(&bed, DaemonAway::Refuse);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        for (at, to) in [("0.0.0.0:53", "10.77.0.9:53"), ("[fd77::9]:53", "[fd77::9]:53")] {
            let server = bed.outside.datagrams(at);
            let own = capture.datagram_socket(&bed.pod.netns, address(to)).unwrap();
            own.send(b"question").await.unwrap();
            let (_, from) = server.recv_from(&mut [0; 64]).unwrap();
            assert!(from.ip() == bed.pod.ip4 || from.ip() == bed.pod.ip6, "{from}");
        }
    });
}

#[test]
fn a_new_daemon_takes_the_queries_over() {
    let Some(bed) = Bed::new() else { return };
    let (_old, old_daemon) = enrolled(&bed, DaemonAway::Refuse);
    let app = bed.pod.datagrams("0.0.0.0:0");
    app.connect(SERVERS[0]).unwrap();
    let (new, new_daemon) = enrolled(&bed, DaemonAway::Refuse);
    close(old_daemon);
    app.send(b"question").unwrap();
    let (_, asked) = take(&bed, &new, socket_for(&new_daemon, SERVERS[0]));
    assert_eq!(asked, Some(address(SERVERS[0])));
}

#[test]
fn a_withdrawn_pod_asks_as_ever() {
    let Some(bed) = Bed::new() else { return };
    let (capture, daemon) = enrolled(&bed, DaemonAway::Refuse);
    capture.withdraw(bed.pod.netns.cookie()).unwrap();
    close(daemon);
    let server = bed.outside.datagrams("0.0.0.0:53");
    let app = bed.pod.datagrams("0.0.0.0:0");
    app.send_to(b"question", "10.77.0.9:53").unwrap();
    let (_, from) = server.recv_from(&mut [0; 64]).unwrap();
    assert_eq!(from.ip(), bed.pod.ip4);
}

#[test]
fn what_a_version_with_another_layout_has_pinned_refuses_until_its_pods_are_taken_over() {
    let Some(bed) = Bed::new() else { return };
    let (former, daemon) = enrolled(&bed, DaemonAway::Refuse);
    close((former, daemon));
    let former = bed.config.pin_dir.join("aquifer/v0");
    fs::rename(bed.pin_directory(), &former).unwrap();

    let capture = bed.open();
    let refused = bed.pod.connect("10.77.0.9:80").unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::PermissionDenied);
    let daemon = bed.pod.daemon_with_dns();
    capture.enrol(&bed.pod.capture(DaemonAway::Refuse), &daemon).unwrap();
    capture.reconcile(&[bed.pod.netns.cookie()]).unwrap();
    assert!(!former.exists());
    connected(&bed.pod.connect("10.77.0.9:80").unwrap(), &accept(&daemon.outbound[0]));
    connected(&bed.outside.connect("10.77.0.2:80").unwrap(), &accept(&daemon.plaintext[0]));
}

#[test]
fn a_pod_whose_ipv6_is_link_local_alone_is_captured_all_the_same() {
    let Some(bed) = Bed::new() else { return };
    let capture = bed.open();
    let link_local = "fe80::77".parse().unwrap();
    let [v4, v6, ..] = SERVERS;
    let mut pod = bed.pod.capture(DaemonAway::Refuse);
    let mut daemon = bed.pod.daemon_with_dns();
    pod.ips = vec![link_local];
    daemon.dns = Some(DnsListeners::open(&bed.pod.netns, &pod.ips, 15053).unwrap());
    assert!(dns(&daemon).datagrams.is_empty());
    capture.enrol(&pod, &daemon).unwrap();
    for server in [v4, v6] {
        let refused = bed.pod.datagrams(any(server)).send_to(b"question", server).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::PermissionDenied, "{server}");
        assert_eq!(bed.pod.connect(server).unwrap_err().kind(), ErrorKind::PermissionDenied);
    }

    pod.ips = vec![link_local, bed.pod.ip4];
    let sockets = DnsListeners::open(&bed.pod.netns, &pod.ips, 15053).unwrap();
    sockets.datagrams.iter().for_each(|socket| socket.set_nonblocking(false).unwrap());
    daemon.dns = Some(sockets);
    capture.enrol(&pod, &daemon).unwrap();
    let app = bed.pod.datagrams(any(v4));
    assert_eq!(ask(&bed, &capture, socket_for(&daemon, v4), &app, v4), address(v4));
    connected(&bed.pod.connect("203.0.113.7:80").unwrap(), &accept(&daemon.outbound[0]));
}

#[test]
fn a_hosts_queries_to_excluded_servers_and_ports_are_not_captured() {
    let Some(bed) = Bed::new() else { return };
    let (capture, daemon) = (bed.open(), bed.pod.daemon_with_dns());
    let server = bed.outside.datagrams("[::]:53");
    let hears = || {
        let mut bytes = [0; 64];
        let (length, from) = server.recv_from(&mut bytes).expect("a query should have come here");
        assert_eq!(&bytes[..length], b"question");
        assert_eq!(canonical(Ok(from)).ip(), bed.pod.ip4);
    };
    let of_server =
        Exclusions { destinations: vec!["10.77.0.9/32".parse().unwrap()], ..Exclusions::default() };
    let of_port = Exclusions { outbound_ports: vec![53], ..Exclusions::default() };
    let mut host = bed.pod.capture(DaemonAway::Refuse);
    host.scope = Scope::Host;
    capture.enrol(&host, &daemon).unwrap();
    for exclusions in [&of_server, &of_port] {
        capture.exclude(exclusions).unwrap();
        bed.pod.datagrams("0.0.0.0:0").send_to(b"question", "10.77.0.9:53").unwrap();
        hears();
        let connected = bed.pod.datagrams("0.0.0.0:0");
        connected.connect("10.77.0.9:53").unwrap();
        connected.send(b"question").unwrap();
        hears();
    }
    capture.exclude(&of_server).unwrap();
    let [v4, ..] = SERVERS;
    let app = bed.pod.datagrams(any(v4));
    ask(&bed, &capture, socket_for(&daemon, v4), &app, v4);
    // Of a pod, nothing is excluded.
    capture.enrol(&bed.pod.capture(DaemonAway::Refuse), &daemon).unwrap();
    ask(&bed, &capture, socket_for(&daemon, v4), &app, "10.77.0.9:53");
}
