//! A tunnel inside a tunnel, through a gateway that forwards what it does not understand.

use http::{HeaderName, HeaderValue, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

const NETWORK: HeaderName = HeaderName::from_static("x-forwarded-network");

/// `web` dials gateway `ew`, and `cart` is behind it.
struct Networks {
    client: Client,
    behind: Arc<[Spiffe]>,
    config: HboneConfig,
    /// The authority and headers of what the gateway was asked.
    asked: mpsc::UnboundedReceiver<(Authority, HeaderMap)>,
    /// How the gateway's copying ended.
    ends: mpsc::UnboundedReceiver<Ended>,
}

fn credentials() -> (Mesh, Mesh) {
    let ca = LocalCa::new("cluster.local").unwrap();
    let credential = |name| Arc::new(ca.credential(&spiffe(name)).unwrap());
    let near = Mesh { web: credential("web"), cart: credential("ew") };
    let far = Mesh { web: Arc::clone(&near.web), cart: credential("cart") };
    (near, far)
}

/// A gateway that sends everything to `to`, and its client.
async fn networks(near: &Mesh, to: SocketAddr, config: HboneConfig) -> Networks {
    let mut server = serve(near, HboneConfig::default()).await;
    let client = Client::new(near, server.addr, HboneConfig::default());
    let (asked_sender, asked) = mpsc::unbounded_channel();
    let (end_sender, ends) = mpsc::unbounded_channel();
    spawn_local(async move {
        while let Some((_, incoming)) = server.requests.recv().await {
            let question = (incoming.authority.clone().unwrap(), incoming.headers.clone());
            asked_sender.send(question).unwrap_or_default();
            let tcp = TcpStream::connect(to).await.unwrap();
            let stream = incoming.accept(HeaderMap::new()).unwrap();
            let end_sender = end_sender.clone();
            spawn_local(async move {
                let outcome = splicing(tcp, stream).0.await.unwrap();
                end_sender.send(outcome.ended).unwrap_or_default();
            });
        }
    });
    Networks { client, behind: Arc::new([spiffe("cart")]), config, asked, ends }
}

impl Networks {
    async fn open(&self) -> Result<Inner, OpenError> {
        let Client { pool, key, credential, dials } = &self.client;
        let request = |headers| ConnectRequest {
            authority: Authority::parse("cart.shop.svc:80").unwrap(),
            headers,
        };
        let dial = async |addr| {
            dials.set(dials.get() + 1);
            TcpStream::connect(addr).await
        };
        let (outer, _) = pool.open(key, credential, || request(HeaderMap::new()), dial).await?;
        let headers = HeaderMap::from_iter([(NETWORK, HeaderValue::from_static("near"))]);
        let request = request(headers);
        open_inner(outer, key.dial, &self.behind, credential, request, &self.config).await
    }

    /// Why a tunnel did not open, without the address.
    async fn refusal(&self) -> String {
        refusal(&self.client, self.open().await.map(|inner| inner.stream))
    }
}

/// Applications at both ends of two tunnels.
async fn with_path(test: impl AsyncFnOnce(Path, Networks)) {
    let (near, far) = credentials();
    let mut server = serve(&far, HboneConfig::default()).await;
    let networks = networks(&near, server.addr, HboneConfig::default()).await;
    let (inner, (_, far)) = tokio::join!(networks.open(), server.accept());
    let (near_app, near_tcp) = tcp_pair().await;
    let (far_app, far_tcp) = tcp_pair().await;
    let (near_proxy, near_abort) = splicing(near_tcp, inner.unwrap().stream);
    let (far_proxy, _) = splicing(far_tcp, far);
    test(Path { near_app, far_app, near_proxy, far_proxy, near_abort }, networks).await;
}

#[test]
fn both_tunnels_ask_for_the_same_and_only_the_inner_names_the_network() {
    run(async || {
        let (near, far) = credentials();
        let mut server = serve(&far, HboneConfig::default()).await;
        let mut networks = networks(&near, server.addr, HboneConfig::default()).await;
        let answering = async {
            let (_, incoming) = server.requests.recv().await.unwrap();
            assert_eq!(incoming.authority, Authority::parse("cart.shop.svc:80"));
            assert_eq!(incoming.headers[NETWORK], "near");
            let answer = HeaderMap::from_iter([(
                HeaderName::from_static("baggage"),
                HeaderValue::from_static("far"),
            )]);
            incoming.accept(answer).unwrap()
        };
        let (inner, mut far) = tokio::join!(networks.open(), answering);
        let Inner { mut stream, headers, peer } = inner.unwrap();
        assert_eq!((headers["baggage"].to_str().unwrap(), peer), ("far", spiffe("cart")));
        let (authority, headers) = networks.asked.recv().await.unwrap();
        assert_eq!(authority, Authority::parse("cart.shop.svc:80").unwrap());
        assert!(!headers.contains_key(NETWORK));

        stream.write("ping".into()).await.unwrap();
        assert_eq!(far.read().await.unwrap().unwrap(), "ping");
        far.write("pong".into()).await.unwrap();
        assert_eq!(stream.read().await.unwrap().unwrap(), "pong");
    });
}

#[test]
fn the_outer_tunnel_is_shared_and_the_inner_one_never() {
    run(async || {
        let (near, far) = credentials();
        let mut server = serve(&far, HboneConfig::default()).await;
        let networks = networks(&near, server.addr, HboneConfig::default()).await;
        let (first, (one, _first)) = tokio::join!(networks.open(), server.accept());
        let (second, (two, _second)) = tokio::join!(networks.open(), server.accept());
        assert_eq!((one, two), (0, 1), "a tunnel of its own for each");
        assert_eq!(networks.client.dials.get(), 1, "one tunnel to the gateway");
        drop((first, second));
    });
}

#[test]
fn each_way_ends_for_itself_and_nothing_is_lost() {
    run(async || {
        with_path(async |mut path, mut networks| {
            let sent: Vec<u8> = (0..3_000_000_u32).map(|i| i.to_le_bytes()[1]).collect();
            let mut received = Vec::new();
            let sending = async {
                path.near_app.write_all(&sent).await.unwrap();
                path.near_app.shutdown().await.unwrap();
            };
            let (_, read) = tokio::join!(sending, path.far_app.read_to_end(&mut received));
            read.unwrap();
            assert!(received == sent, "{} of {} bytes", received.len(), sent.len());
            path.far_app.write_all(b"late").await.unwrap();
            drop(path.far_app);
            let mut answer = String::new();
            path.near_app.read_to_string(&mut answer).await.unwrap();
            assert_eq!(answer, "late");
            let near = path.near_proxy.await.unwrap();
            assert!(matches!(near.ended, Ended::Finished { first: Side::Near }), "{near:?}");
            // The gateway sees an end and no reset: it may still be passing on the last bytes.
            let ended = networks.ends.recv().await.unwrap();
            assert!(matches!(ended, Ended::Finished { .. }), "{ended:?}");
        })
        .await;
    });
}

#[test]
fn the_last_bytes_arrive_when_the_other_way_has_ended_before() {
    run(async || {
        with_path(async |mut path, _networks| {
            path.far_app.shutdown().await.unwrap();
            assert_eq!(path.near_app.read(&mut [0; 8]).await.unwrap(), 0);
            let sent = vec![7; 2_000_000];
            let mut received = Vec::new();
            let sending = async {
                path.near_app.write_all(&sent).await.unwrap();
                drop(path.near_app);
            };
            let (_, read) = tokio::join!(sending, path.far_app.read_to_end(&mut received));
            read.unwrap();
            assert_eq!(received.len(), sent.len());
        })
        .await;
    });
}

#[test]
fn a_reset_goes_through_both_tunnels() {
    run(async || {
        with_path(async |mut path, _networks| {
            path.near_app.set_zero_linger().unwrap();
            drop(path.near_app);
            assert_eq!(kind(path.far_app.read_u8().await), io::ErrorKind::ConnectionReset);
            let Ended::Stream { source } = path.far_proxy.await.unwrap().ended else { panic!() };
            assert_eq!(source.to_string(), "the peer reset the stream: CONNECT_ERROR");
        })
        .await;
        with_path(async |mut path, _networks| {
            path.far_app.set_zero_linger().unwrap();
            drop(path.far_app);
            assert_eq!(kind(path.near_app.read_u8().await), io::ErrorKind::ConnectionReset);
            let Ended::Stream { source } = path.near_proxy.await.unwrap().ended else { panic!() };
            assert_eq!(source.to_string(), "the peer reset the stream: CONNECT_ERROR");
        })
        .await;
    });
}

#[test]
fn an_abort_ends_both_tunnels() {
    run(async || {
        with_path(async |mut path, mut networks| {
            path.near_abort.send(Abort::PodRemoved).await.unwrap();
            assert_eq!(kind(path.near_app.read_u8().await), io::ErrorKind::ConnectionReset);
            assert_eq!(kind(path.far_app.read_u8().await), io::ErrorKind::ConnectionReset);
            networks.ends.recv().await.unwrap();
        })
        .await;
    });
}

#[test]
fn somebody_else_behind_the_gateway_is_refused_and_the_gateway_let_go() {
    run(async || {
        let (near, far) = credentials();
        let server = serve(&far, HboneConfig::default()).await;
        let mut networks = networks(&near, server.addr, HboneConfig::default()).await;
        networks.behind = Arc::new([spiffe("ew")]);
        let expected = "DIAL is spiffe://cluster.local/ns/shop/sa/cart, expected spiffe://cluster.local/ns/shop/sa/ew";
        assert_eq!(networks.refusal().await, expected);
        let Ended::Stream { source } = networks.ends.recv().await.unwrap() else { panic!() };
        assert_eq!(source.to_string(), "the peer reset the stream: CANCEL");
        networks.behind = Arc::new([]);
        assert!(
            networks.refusal().await.starts_with("DIAL is "),
            "nobody is expected: nobody will do"
        );
    });
}

#[test]
fn the_inner_answer_may_be_a_refusal() {
    run(async || {
        let (near, far) = credentials();
        let mut server = serve(&far, HboneConfig::default()).await;
        let networks = networks(&near, server.addr, HboneConfig::default()).await;
        let refusing =
            async { server.requests.recv().await.unwrap().1.refuse(StatusCode::UNAUTHORIZED) };
        let (refusal, ()) = tokio::join!(networks.refusal(), refusing);
        assert_eq!(refusal, "DIAL refused the CONNECT: 401 Unauthorized");
    });
}

#[test]
fn the_deadlines_hold_behind_the_gateway() {
    run(async || {
        let brief = Duration::from_millis(50);
        let (near, far) = credentials();
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let config = HboneConfig { handshake_limit: brief, ..HboneConfig::default() };
        let mute = networks(&near, silent.local_addr().unwrap(), config).await;
        let refusal = mute.refusal().await;
        assert_eq!(refusal, "DIAL did not finish the TLS handshake within 50ms");

        let server = serve(&far, HboneConfig::default()).await;
        let config = HboneConfig { answer_limit: brief, ..HboneConfig::default() };
        let unanswered = networks(&near, server.addr, config).await;
        assert_eq!(unanswered.refusal().await, "DIAL did not answer the CONNECT within 50ms");
    });
}

#[test]
fn a_gateway_that_reaches_nobody_fails_the_inner_handshake() {
    run(async || {
        let (near, _) = credentials();
        let closing = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let networks = networks(&near, closing.local_addr().unwrap(), HboneConfig::default()).await;
        let accepting = async { drop(closing.accept().await.unwrap()) };
        let (refusal, ()) = tokio::join!(networks.refusal(), accepting);
        assert!(refusal.starts_with("the TLS handshake with DIAL failed: "), "{refusal}");
    });
}

#[test]
fn somebody_behind_the_gateway_who_falls_silent_is_given_up() {
    run(async || {
        let (near, far) = credentials();
        let config = HboneConfig {
            ping_interval: Duration::from_millis(20),
            ping_limit: Duration::from_millis(50),
            ..HboneConfig::default()
        };
        // Between the gateway and its server stands somebody who stops forwarding.
        let mut server = serve(&far, HboneConfig::default()).await;
        let middle = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let networks = networks(&near, middle.local_addr().unwrap(), config).await;
        let to = server.addr;
        let (stop, mut stopped) = mpsc::channel(1);
        let forwarding = spawn_local(async move {
            let (mut near, _) = middle.accept().await.unwrap();
            let mut far = TcpStream::connect(to).await.unwrap();
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                _ = stopped.recv() => {}
            }
            std::future::pending::<()>().await;
        });
        let (inner, (_, _far)) = tokio::join!(networks.open(), server.accept());
        stop.send(()).await.unwrap();
        let error = inner.unwrap().stream.read().await.unwrap_err();
        assert!(matches!(error, StreamError::Lost { .. }), "{error}");
        forwarding.abort();
    });
}
