//! Peers that send too much of something, or too slowly: they lose their own tunnel, with a reason, and nobody else's.

use tokio::io::AsyncWriteExt;
use tokio_rustls::client::TlsStream;

use super::{
    hostile::{PREFACE, connect, end, frame, reset, tls},
    *,
};

const CALM: &str =
    "the tunnel from PEER ended: the peer broke the rules of HTTP/2: ENHANCE_YOUR_CALM";

/// Sends `bytes` as long as the server takes them: what it does not take is no harm to it.
async fn send(peer: &mut TlsStream<TcpStream>, bytes: &[u8]) {
    let _ = peer.write_all(bytes).await;
    let _ = peer.flush().await;
}

/// A peer sends `flood` after its preface: its tunnel ends as `expected`, while another goes on.
fn check(flood: impl FnOnce() -> Vec<u8>, expected: &str) {
    run(async || {
        let mesh = Mesh::new();
        let mut server = serve(&mesh, HboneConfig::default()).await;
        let client = Client::new(&mesh, server.addr, HboneConfig::default());
        let (mut near, mut far) = pair(&client, &mut server).await;
        let mut peer = tls(&mesh, &server).await;
        send(&mut peer, &[PREFACE, &flood()].concat()).await;
        assert_eq!(end(&mut server, peer.get_ref().0).await, expected);
        near.write("unharmed".into()).await.unwrap();
        assert_eq!(far.read().await.unwrap().unwrap(), "unharmed");
        let _another = pair(&client, &mut server).await;
        assert_eq!(client.dials.get(), 1);
    });
}

#[test]
fn a_flood_of_settings_ends_the_tunnel() {
    check(|| frame(4, 0, 0, &[]).repeat(200), "PEER sent too many SETTINGS frames");
}

#[test]
fn a_flood_of_pings_ends_the_tunnel() {
    check(|| frame(6, 0, 0, &[0; 8]).repeat(30_000), "PEER sent too many PING frames");
}

#[test]
fn a_flood_of_frames_without_meaning_ends_the_tunnel() {
    check(|| frame(0xf0, 0, 0, &[]).repeat(30_000), "PEER sent too many frames that say nothing");
    let priority = frame(2, 0, 1, &[0, 0, 0, 0, 0]).repeat(30_000);
    check(|| priority, "PEER sent too many frames that say nothing");
}

#[test]
fn a_flood_of_empty_data_ends_the_tunnel() {
    check(|| [connect(1), frame(0, 0, 1, &[]).repeat(300_000)].concat(), CALM);
}

#[test]
fn a_flood_of_resets_ends_the_tunnel() {
    let flood = || (0..500).flat_map(|n| [connect(2 * n + 1), reset(2 * n + 1)].concat()).collect();
    check(flood, CALM);
}

/// The headers of a CONNECT with `count` more, and one of these: never indexed, a name of one byte, a value of 100.
fn headers(count: usize) -> Vec<u8> {
    [&b"\x02\x07CONNECT\x01\x07cart:80"[..], &header().repeat(count)].concat()
}

fn header() -> Vec<u8> {
    [&b"\x10\x01x\x64"[..], &[b'v'; 100]].concat()
}

#[test]
fn headers_without_end_end_the_tunnel() {
    let endless = [frame(1, 0, 1, &headers(1)), frame(9, 0, 1, &header()).repeat(20_000)].concat();
    check(|| endless, CALM);
    let empty = [frame(1, 0, 1, &headers(1)), frame(9, 0, 1, &[]).repeat(100_000)].concat();
    check(|| empty, CALM);
}

#[test]
fn a_megabyte_of_headers_is_the_end_of_the_tunnel_and_somewhat_too_many_that_of_the_request() {
    const END_HEADERS: u8 = 4;
    let megabyte = headers(10_000);
    let (first, rest) = megabyte.split_at(1_000_000);
    check(|| [frame(1, 0, 1, first), frame(9, END_HEADERS, 1, rest)].concat(), CALM);
    check(|| frame(1, END_HEADERS, 1, first), CALM);
    run(async || {
        let mesh = Mesh::new();
        let mut server = serve(&mesh, HboneConfig::default()).await;
        let mut peer = tls(&mesh, &server).await;
        let too_many = frame(1, END_HEADERS, 1, &headers(700));
        send(&mut peer, &[PREFACE, &too_many, &connect(3)].concat()).await;
        tokio::select! {
            Some((_, incoming)) = server.requests.recv() => assert!(incoming.headers.is_empty()),
            end = server.ends.recv() => panic!("{end:?}"),
        }
    });
}

#[test]
fn a_window_that_overflows_ends_the_tunnel() {
    check(
        || [frame(8, 0, 0, &[0x7f, 0xff, 0xff, 0xff]), frame(8, 0, 0, &[0x7f; 4])].concat(),
        "the tunnel from PEER ended: the peer broke the rules of HTTP/2: FLOW_CONTROL_ERROR",
    );
}

#[test]
fn requests_that_are_taken_back_as_soon_as_they_are_worked_on_are_bounded() {
    run(async || {
        let mesh = Mesh::new();
        let mut server = serve(&mesh, HboneConfig::default()).await;
        let mut peer = tls(&mesh, &server).await;
        send(&mut peer, PREFACE).await;
        let mut borne = 0;
        let end = loop {
            let stream = 2 * borne + 1;
            send(&mut peer, &connect(stream)).await;
            let mut incoming = tokio::select! {
                Some((_, incoming)) = server.requests.recv() => incoming,
                end = server.ends.recv() => break end.unwrap(),
            };
            send(&mut peer, &reset(stream)).await;
            incoming.abandoned().await;
            borne += 1;
        };
        assert!(end.ends_with(" sent too many requests taken back at once"), "{end}");
        assert!(borne >= 500, "{borne}");
    });
}

#[test]
fn clients_that_give_up_cost_the_peer_new_requests_and_nothing_that_is_open() {
    run(async || {
        let mesh = Mesh::new();
        let mut server = serve(&mesh, HboneConfig::default()).await;
        let mut peer = tls(&mesh, &server).await;
        send(&mut peer, &[PREFACE, &connect(1)].concat()).await;
        let (_, mut open) = server.accept().await;
        let mut given_up = 0;
        let mut streams = (3..).step_by(2);
        let excess = loop {
            let asked: Vec<u32> = streams.by_ref().take(150).collect();
            send(&mut peer, &asked.iter().flat_map(|&id| connect(id)).collect::<Vec<_>>()).await;
            let mut waiting = Vec::new();
            for _ in &asked {
                waiting.push(server.requests.recv().await.unwrap().1);
            }
            if let Some(at) = waiting.iter().position(|incoming| incoming.is_excess) {
                break waiting.swap_remove(at);
            }
            // The application has been waited for.
            for incoming in &mut waiting {
                incoming.came -= Duration::from_secs(1);
            }
            send(&mut peer, &asked.iter().flat_map(|&id| reset(id)).collect::<Vec<_>>()).await;
            for mut incoming in waiting {
                incoming.abandoned().await;
                given_up += 1;
            }
        };
        assert!(given_up >= 1000, "{given_up}");
        excess.refuse(http::StatusCode::SERVICE_UNAVAILABLE);
        send(&mut peer, &frame(0, 0, 1, b"unharmed")).await;
        assert_eq!(open.read().await.unwrap().unwrap(), "unharmed");
        server.ends.try_recv().unwrap_err();
    });
}

#[test]
fn a_peer_that_drips_its_handshake_ends_at_the_deadline() {
    let drip = async |peer: &mut (dyn tokio::io::AsyncWrite + Unpin), bytes: &[u8]| {
        let mut pace = tokio::time::interval(Duration::from_millis(5));
        for byte in bytes {
            pace.tick().await;
            if peer.write_all(&[*byte]).await.is_err() || peer.flush().await.is_err() {
                return;
            }
        }
        std::future::pending::<()>().await;
    };
    run(async || {
        let mesh = Mesh::new();
        let config =
            HboneConfig { handshake_limit: Duration::from_millis(100), ..HboneConfig::default() };
        let mut server = serve(&mesh, config).await;
        let expected = "PEER did not finish the handshake within 100ms";
        // The head of a TLS record of 512 bytes, and its beginning.
        let hello = [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &[0; 500]].concat();
        let mut slow = TcpStream::connect(server.addr).await.unwrap();
        let addr = slow.local_addr().unwrap().to_string();
        tokio::select! {
            () = drip(&mut slow, &hello) => panic!("the server has ended it first"),
            end = server.ends.recv() => assert_eq!(end.unwrap().replace(&addr, "PEER"), expected),
        }
        let mut slow = tls(&mesh, &server).await;
        let addr = slow.get_ref().0.local_addr().unwrap().to_string();
        tokio::select! {
            () = drip(&mut slow, PREFACE) => {}
            end = server.ends.recv() => assert_eq!(end.unwrap().replace(&addr, "PEER"), expected),
        }
    });
}

#[test]
fn a_peer_that_takes_nothing_costs_a_bounded_buffer() {
    run(async || {
        let mesh = Mesh::new();
        let mut server = serve(&mesh, HboneConfig::default()).await;
        let client = Client::new(&mesh, server.addr, HboneConfig::default());
        // Nobody reads `near`: the window fills, and then the application's own connection.
        let (near, far) = pair(&client, &mut server).await;
        let (mut app, tcp) = tcp_pair().await;
        let (_copy, abort) = splicing(tcp, far);
        let mut taken = 0;
        let piece = vec![7; 1 << 16];
        while let Ok(written) =
            tokio::time::timeout(Duration::from_millis(300), app.write_all(&piece)).await
        {
            written.unwrap();
            taken += piece.len();
        }
        // A stream's window, a buffer, and what the kernel holds of two connections.
        assert!(taken < 32 << 20, "{taken}");
        // Its sibling in the same tunnel moves on.
        let (mut near_sibling, mut far_sibling) = pair(&client, &mut server).await;
        far_sibling.write("unharmed".into()).await.unwrap();
        assert_eq!(near_sibling.read().await.unwrap().unwrap(), "unharmed");
        assert_eq!(client.dials.get(), 1);
        abort.send(Abort::Shutdown).await.unwrap();
        drop(near);
    });
}
