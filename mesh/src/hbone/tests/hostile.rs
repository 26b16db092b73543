//! Peers that stall, flood, or send something else.

use bytes::Bytes;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::*;

fn impatient() -> HboneConfig {
    HboneConfig {
        handshake_limit: Duration::from_millis(50),
        answer_limit: Duration::from_millis(50),
        ping_interval: Duration::from_millis(20),
        ping_limit: Duration::from_millis(50),
        ..HboneConfig::default()
    }
}

/// The end of the only tunnel, without the peer's address.
pub(super) async fn end(server: &mut Server, peer: &TcpStream) -> String {
    let end = server.ends.recv().await.unwrap();
    end.replace(&peer.local_addr().unwrap().to_string(), "PEER")
}

/// A client that speaks TLS and what it likes inside.
pub(super) async fn tls(mesh: &Mesh, server: &Server) -> TlsStream<TcpStream> {
    let tcp = TcpStream::connect(server.addr).await.unwrap();
    let name = ServerName::IpAddress(server.addr.ip().into());
    TlsConnector::from(mesh.web.client_config()).connect(name, tcp).await.unwrap()
}

#[test]
fn plaintext_is_refused() {
    run(async || {
        let mesh = Mesh::new();
        let mut server = serve(&mesh, HboneConfig::default()).await;
        let mut peer = TcpStream::connect(server.addr).await.unwrap();
        peer.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        assert_eq!(
            end(&mut server, &peer).await,
            "the TLS handshake with PEER failed: the peer does not speak TLS 1.3 correctly: \
             received corrupt message of type InvalidContentType"
        );
    });
}

#[test]
fn a_stalled_handshake_ends_at_its_deadline() {
    run(async || {
        let mesh = Mesh::new();
        let mut server = serve(&mesh, impatient()).await;
        let silent = TcpStream::connect(server.addr).await.unwrap();
        let expected = "PEER did not finish the handshake within 50ms";
        assert_eq!(end(&mut server, &silent).await, expected);
        let after_tls = tls(&mesh, &server).await;
        assert_eq!(end(&mut server, after_tls.get_ref().0).await, expected);
    });
}

#[test]
fn a_server_that_stalls_in_tls_is_given_up() {
    run(async || {
        let mesh = Mesh::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = Client::new(&mesh, listener.local_addr().unwrap(), impatient());
        assert_eq!(
            refusal(&client, client.open().await),
            "DIAL did not finish the TLS handshake within 50ms"
        );
    });
}

#[test]
fn a_server_that_does_not_answer_is_given_up_with_its_tunnel() {
    run(async || {
        let mesh = Mesh::new();
        let mut server = serve(&mesh, HboneConfig::default()).await;
        let client = Client::new(&mesh, server.addr, impatient());
        let (opened, _held) = tokio::join!(client.open(), server.requests.recv());
        assert_eq!(refusal(&client, opened), "DIAL did not answer the CONNECT within 50ms");
        assert_eq!(client.pool.tunnels(), 0);
    });
}

#[test]
fn garbage_inside_tls_is_refused() {
    run(async || {
        let mesh = Mesh::new();
        let mut server = serve(&mesh, HboneConfig::default()).await;
        let mut peer = tls(&mesh, &server).await;
        peer.write_all(b"GET / HTTP/1.1\r\nhost: cart\r\n\r\n").await.unwrap();
        assert_eq!(
            end(&mut server, peer.get_ref().0).await,
            "PEER did not begin HTTP/2: the peer broke the rules of HTTP/2: PROTOCOL_ERROR"
        );
    });
}

#[test]
fn a_peer_that_answers_no_ping_is_gone() {
    run(async || {
        let mesh = Mesh::new();
        let mut server = serve(&mesh, impatient()).await;
        let mut peer = tls(&mesh, &server).await;
        peer.write_all(PREFACE).await.unwrap();
        assert_eq!(
            end(&mut server, peer.get_ref().0).await,
            "PEER did not answer a PING within 50ms"
        );
    });
}

#[test]
fn a_server_that_answers_no_ping_loses_its_streams() {
    run(async || {
        let mesh = Mesh::new();
        let (near, far) = tcp_pair().await;
        let config = HboneConfig { answer_limit: PATIENCE, ..impatient() };
        let client = Client::new(&mesh, near.peer_addr().unwrap(), config);
        let near = RefCell::new(Some(near));
        let request = ConnectRequest {
            authority: Authority::parse("10.0.0.2:80").unwrap(),
            headers: HeaderMap::new(),
        };
        let dial = async |_| Ok(near.borrow_mut().take().unwrap());
        let opening = client.pool.open(&client.key, &client.credential, || request.clone(), dial);
        let accepting = async {
            let acceptor = tokio_rustls::TlsAcceptor::from(mesh.cart.server_config());
            acceptor.accept(far).await.unwrap()
        };
        let (opened, _silent) = tokio::join!(opening, accepting);
        let error = describe(&opened.err().unwrap()).replace(&client.key.dial.to_string(), "DIAL");
        assert_eq!(error, "DIAL did not answer the CONNECT within 50ms");
        assert_eq!(client.pool.tunnels(), 0);
    });
}

/// A client of the `h2` crate, which does what it is told.
pub(super) async fn h2_client(mesh: &Mesh, server: &Server) -> h2::client::SendRequest<Bytes> {
    let (sender, connection) = h2::client::Builder::new()
        .initial_max_send_streams(10_000)
        .handshake::<_, Bytes>(tls(mesh, server).await)
        .await
        .unwrap();
    spawn_local(connection);
    sender
}

fn connect_request(authority: &str) -> http::Request<()> {
    http::Request::connect(authority).body(()).unwrap()
}

#[test]
fn a_bad_authority_reaches_the_caller_with_its_reason() {
    run(async || {
        let mesh = Mesh::new();
        let mut server = serve(&mesh, HboneConfig::default()).await;
        let mut sender = h2_client(&mesh, &server).await;
        let (answer, _send) = sender.send_request(connect_request("cart"), true).unwrap();
        let (_, incoming) = server.requests.recv().await.unwrap();
        assert_eq!(incoming.authority.clone().unwrap_err().to_string(), "`cart` has no port");
        incoming.refuse(http::StatusCode::BAD_REQUEST);
        assert_eq!(answer.await.unwrap().status(), 400);
    });
}

#[test]
fn other_methods_reach_the_caller() {
    run(async || {
        let mesh = Mesh::new();
        let mut server = serve(&mesh, HboneConfig::default()).await;
        let mut sender = h2_client(&mesh, &server).await;
        let request = http::Request::get("https://cart:80/").body(()).unwrap();
        let (answer, _send) = sender.send_request(request, true).unwrap();
        let (_, incoming) = server.requests.recv().await.unwrap();
        assert_eq!(incoming.method, http::Method::GET);
        incoming.refuse(http::StatusCode::BAD_REQUEST);
        assert_eq!(answer.await.unwrap().status(), 400);
    });
}

#[test]
fn streams_beyond_the_limit_are_refused() {
    run(async || {
        let mesh = Mesh::new();
        let strict = HboneConfig { accepted_streams: 2, ..HboneConfig::default() };
        let mut server = serve(&mesh, strict).await;
        let mut sender = h2_client(&mesh, &server).await;
        let mut answers = Vec::new();
        // Sent before the server's SETTINGS can have come.
        for _ in 0..3 {
            answers.push(sender.send_request(connect_request("cart:80"), false).unwrap());
        }
        let _held = [server.accept().await, server.accept().await];
        let (answer, _send) = answers.pop().unwrap();
        assert_eq!(answer.await.unwrap_err().reason(), Some(h2::Reason::REFUSED_STREAM));
    });
}

/// The client's preface and an empty SETTINGS frame.
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// One frame (RFC 9113 §4.1).
pub(super) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Reads until a frame of that kind comes, and gives its payload.
pub(super) async fn until_frame(peer: &mut TlsStream<TcpStream>, wanted: u8) -> Vec<u8> {
    loop {
        let mut head = [0; 9];
        peer.read_exact(&mut head).await.unwrap();
        let [high, mid, low, kind, ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, high, mid, low]).try_into().unwrap()];
        peer.read_exact(&mut payload).await.unwrap();
        if kind == wanted {
            return payload;
        }
    }
}

/// A CONNECT to `cart:80` in literal headers.
pub(super) fn connect(stream: u32) -> Vec<u8> {
    const END_HEADERS: u8 = 4;
    frame(1, END_HEADERS, stream, b"\x02\x07CONNECT\x01\x07cart:80")
}

/// The reset of a stream that nobody wants any more.
pub(super) fn reset(stream: u32) -> Vec<u8> {
    const CANCEL: [u8; 4] = [0, 0, 0, 8];
    frame(3, 0, stream, &CANCEL)
}

#[test]
fn a_peer_that_vanishes_ends_its_tunnel() {
    run(async || {
        let mesh = Mesh::new();
        let mut server = serve(&mesh, HboneConfig::default()).await;
        let mut peer = tls(&mesh, &server).await;
        peer.write_all(PREFACE).await.unwrap();
        assert_ne!(peer.read_u8().await.unwrap(), 255, "the server has answered");
        peer.get_ref().0.set_zero_linger().unwrap();
        let addr = peer.get_ref().0.local_addr().unwrap().to_string();
        drop(peer);
        let end = server.ends.recv().await.unwrap().replace(&addr, "PEER");
        assert!(end.starts_with("the tunnel from PEER ended: the tunnel was lost"), "{end}");
    });
}
