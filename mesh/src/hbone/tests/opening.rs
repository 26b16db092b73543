//! What CONNECT carries, and how it is refused.

use http::{HeaderValue, Method, StatusCode};

use super::*;

#[test]
fn a_request_carries_authority_and_headers_and_its_answer_carries_headers() {
    run(async || {
        let mesh = Mesh::new();
        let mut server = serve(&mesh, HboneConfig::default()).await;
        let client = Client::new(&mesh, server.addr, HboneConfig::default());
        let headers = |value| {
            HeaderMap::from_iter([(
                http::header::HeaderName::from_static("baggage"),
                HeaderValue::from_static(value),
            )])
        };
        let opening = client.open_with(headers("near"));
        let answering = async {
            let (_, incoming) = server.requests.recv().await.unwrap();
            assert_eq!(incoming.method, Method::CONNECT);
            assert_eq!(incoming.authority, Authority::parse("10.0.0.2:80"));
            assert_eq!(incoming.headers["baggage"], "near");
            incoming.accept(headers("far")).unwrap()
        };
        let (opened, mut far) = tokio::join!(opening, answering);
        let (mut near, answer) = opened.unwrap();
        assert_eq!(answer["baggage"], "far");

        near.write("ping".into()).await.unwrap();
        assert_eq!(far.read().await.unwrap().unwrap(), "ping");
        far.write("pong".into()).await.unwrap();
        assert_eq!(near.read().await.unwrap().unwrap(), "pong");
    });
}

#[test]
fn a_tunnel_knows_its_peer() {
    run(async || {
        let mesh = Mesh::new();
        let (near, far) = tcp_pair().await;
        let from = near.local_addr().unwrap();
        let client = Client::new(&mesh, from, HboneConfig::default());
        let near = RefCell::new(Some(near));
        let request = ConnectRequest {
            authority: Authority::parse("10.0.0.2:80").unwrap(),
            headers: HeaderMap::new(),
        };
        let dial = async |_| Ok(near.borrow_mut().take().unwrap());
        let opening = client.pool.open(&client.key, &client.credential, || request.clone(), dial);
        let accepting = async {
            let config = HboneConfig::default();
            let mut tunnel = Tunnel::accept(far, &mesh.cart, &config).await.unwrap();
            assert_eq!((tunnel.peer(), tunnel.peer_addr()), (&spiffe("web"), from));
            let incoming = tunnel.next().await.unwrap().unwrap();
            let stream = incoming.accept(HeaderMap::new());
            assert!(tunnel.next().await.is_none(), "the client's end is the tunnel's");
            stream
        };
        let (opened, _) = tokio::join!(
            async {
                drop(opening.await.unwrap());
                client.pool.close()
            },
            accepting
        );
        opened
    });
}

#[test]
fn a_refusal_tells_its_status() {
    for status in [StatusCode::UNAUTHORIZED, StatusCode::SERVICE_UNAVAILABLE] {
        run(async || {
            let mesh = Mesh::new();
            let mut server = serve(&mesh, HboneConfig::default()).await;
            let client = Client::new(&mesh, server.addr, HboneConfig::default());
            let refusing = async { server.requests.recv().await.unwrap().1.refuse(status) };
            let (opened, ()) = tokio::join!(client.open(), refusing);
            assert_eq!(refusal(&client, opened), format!("DIAL refused the CONNECT: {status}"));
            assert_eq!(client.pool.tunnels(), 1, "the tunnel itself is good");
        });
    }
}

#[test]
fn an_unanswered_request_resets_its_stream() {
    run(async || {
        let mesh = Mesh::new();
        let mut server = serve(&mesh, HboneConfig::default()).await;
        let client = Client::new(&mesh, server.addr, HboneConfig::default());
        let ignoring = async { drop(server.requests.recv().await.unwrap()) };
        let (opened, ()) = tokio::join!(client.open(), ignoring);
        assert_eq!(refusal(&client, opened), "DIAL reset the CONNECT: CANCEL");
    });
}

#[test]
fn another_identity_than_the_expected_is_refused() {
    run(async || {
        let mesh = Mesh::new();
        let server = serve(&mesh, HboneConfig::default()).await;
        let mut client = Client::new(&mesh, server.addr, HboneConfig::default());
        client.key.expected = Arc::new([spiffe("pay"), spiffe("stock")]);
        assert_eq!(
            refusal(&client, client.open().await),
            "DIAL is spiffe://cluster.local/ns/shop/sa/cart, expected \
             spiffe://cluster.local/ns/shop/sa/pay or spiffe://cluster.local/ns/shop/sa/stock"
        );
        assert_eq!(client.pool.tunnels(), 0);
    });
}

#[test]
fn a_server_of_another_authority_is_refused_by_the_client() {
    run(async || {
        let mesh = Mesh::new();
        let stranger = Mesh { web: mesh.web, ..Mesh::new() };
        let mut server = serve(&stranger, HboneConfig::default()).await;
        let client = Client::new(&stranger, server.addr, HboneConfig::default());
        assert_eq!(
            refusal(&client, client.open().await),
            "the TLS handshake with DIAL failed: \
             the peer's certificate is signed by an unknown authority"
        );
        let end = server.ends.recv().await.unwrap();
        assert!(end.contains("the peer refused the handshake"), "{end}");
    });
}

#[test]
fn a_client_that_the_server_does_not_trust_learns_why() {
    run(async || {
        let [ours, theirs] = [(); 2].map(|()| LocalCa::new("cluster.local").unwrap());
        let web = theirs.credential(&spiffe("web")).unwrap();
        let ours_trusted = LocalCa::new("cluster.local").unwrap().trusting(&ours);
        drop(web);
        let mesh = Mesh {
            web: Arc::new(ours_trusted.credential(&spiffe("web")).unwrap()),
            cart: Arc::new(ours.credential(&spiffe("cart")).unwrap()),
        };
        let server = serve(&mesh, HboneConfig::default()).await;
        let client = Client::new(&mesh, server.addr, HboneConfig::default());
        assert_eq!(
            refusal(&client, client.open().await),
            "the TLS handshake with DIAL failed: the peer refused the handshake: \
             it does not know the authority of our certificate"
        );
    });
}

#[test]
fn a_dial_that_fails_says_so() {
    run(async || {
        let mesh = Mesh::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        drop(listener);
        let client = Client::new(&mesh, addr, HboneConfig::default());
        let text = refusal(&client, client.open().await);
        assert_eq!(text, "dialing DIAL: Connection refused (os error 111)");
    });
}

#[test]
fn a_request_whose_peer_has_gone_is_abandoned() {
    run(async || {
        let mesh = Mesh::new();
        let mut server = serve(&mesh, HboneConfig::default()).await;
        let client = Client::new(&mesh, server.addr, HboneConfig::default());
        let opening = client.opening();
        let (_, mut incoming) = server.requests.recv().await.unwrap();
        opening.abort();
        assert_eq!(incoming.abandoned().await.to_string(), "the peer reset the stream: CANCEL");
    });
}
