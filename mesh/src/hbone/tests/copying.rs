//! How ends and resets pass from one application to the other.

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

async fn with_path(test: impl AsyncFnOnce(Path)) {
    let mesh = Mesh::new();
    let mut server = serve(&mesh, HboneConfig::default()).await;
    let client = Client::new(&mesh, server.addr, HboneConfig::default());
    test(path(&client, &mut server).await).await;
}

async fn read_all(app: &mut TcpStream) -> String {
    let mut text = String::new();
    app.read_to_string(&mut text).await.unwrap();
    text
}

#[test]
fn the_near_way_may_end_while_the_far_way_goes_on() {
    run(async || {
        with_path(async |mut path| {
            path.near_app.write_all(b"question").await.unwrap();
            path.near_app.shutdown().await.unwrap();
            assert_eq!(read_all(&mut path.far_app).await, "question");
            path.far_app.write_all(b"answer").await.unwrap();
            path.far_app.shutdown().await.unwrap();
            assert_eq!(read_all(&mut path.near_app).await, "answer");
            let outcome = path.near_proxy.await.unwrap();
            assert!(matches!(outcome.ended, Ended::Finished { first: Side::Near }));
            assert_eq!((outcome.sent_bytes, outcome.received_bytes), (8, 6));
            let outcome = path.far_proxy.await.unwrap();
            assert!(matches!(outcome.ended, Ended::Finished { first: Side::Far }));
            assert_eq!((outcome.sent_bytes, outcome.received_bytes), (6, 8));
        })
        .await;
    });
}

#[test]
fn the_far_way_may_end_while_the_near_way_goes_on() {
    run(async || {
        with_path(async |mut path| {
            path.far_app.shutdown().await.unwrap();
            assert_eq!(read_all(&mut path.near_app).await, "");
            path.near_app.write_all(b"late").await.unwrap();
            path.near_app.shutdown().await.unwrap();
            assert_eq!(read_all(&mut path.far_app).await, "late");
            let outcome = path.near_proxy.await.unwrap();
            assert!(matches!(outcome.ended, Ended::Finished { first: Side::Far }));
        })
        .await;
    });
}

/// `app` has been reset.
async fn expect_reset(app: &mut TcpStream) {
    assert_eq!(kind(app.read_u8().await), io::ErrorKind::ConnectionReset);
}

/// `app`, which has seen the end of the other way, can no longer write.
async fn expect_reset_after_end(app: &mut TcpStream) {
    while app.write_all(b"more").await.is_ok() {
        tokio::task::yield_now().await;
    }
}

#[test]
fn a_reset_by_the_near_application_resets_the_far_one() {
    run(async || {
        with_path(async |mut path| {
            path.near_app.set_zero_linger().unwrap();
            drop(path.near_app);
            expect_reset(&mut path.far_app).await;
            let outcome = path.near_proxy.await.unwrap();
            assert!(matches!(outcome.ended, Ended::Tcp { side: Side::Near, .. }));
            let Ended::Stream { source } = path.far_proxy.await.unwrap().ended else { panic!() };
            assert_eq!(source.to_string(), "the peer reset the stream: CONNECT_ERROR");
        })
        .await;
    });
}

#[test]
fn a_reset_by_the_far_application_resets_the_near_one() {
    run(async || {
        with_path(async |mut path| {
            path.far_app.set_zero_linger().unwrap();
            drop(path.far_app);
            expect_reset(&mut path.near_app).await;
        })
        .await;
    });
}

#[test]
fn a_reset_after_the_end_of_its_own_way_is_passed_on() {
    run(async || {
        with_path(async |mut path| {
            path.near_app.shutdown().await.unwrap();
            assert_eq!(read_all(&mut path.far_app).await, "");
            path.near_app.set_zero_linger().unwrap();
            drop(path.near_app);
            expect_reset_after_end(&mut path.far_app).await;
            assert!(matches!(path.near_proxy.await.unwrap().ended, Ended::Tcp { .. }));
        })
        .await;
    });
}

#[test]
fn a_reset_after_the_end_of_the_other_way_is_passed_on() {
    run(async || {
        with_path(async |mut path| {
            path.far_app.shutdown().await.unwrap();
            assert_eq!(read_all(&mut path.near_app).await, "");
            path.far_app.set_zero_linger().unwrap();
            drop(path.far_app);
            expect_reset_after_end(&mut path.near_app).await;
            assert!(matches!(path.near_proxy.await.unwrap().ended, Ended::Stream { .. }));
        })
        .await;
    });
}

#[test]
fn a_reset_is_seen_while_the_peer_takes_nothing() {
    run(async || {
        let mesh = Mesh::new();
        let mut server = serve(&mesh, HboneConfig::default()).await;
        let client = Client::new(&mesh, server.addr, HboneConfig::default());
        let (near, _unread) = pair(&client, &mut server).await;
        let (mut app, tcp) = tcp_pair().await;
        let (proxy, _abort) = splicing(tcp, near);
        let filling = async {
            let full = Duration::from_millis(200);
            while tokio::time::timeout(full, app.write_all(&[0; 65536])).await.is_ok() {}
        };
        filling.await;
        app.set_zero_linger().unwrap();
        drop(app);
        assert!(matches!(proxy.await.unwrap().ended, Ended::Tcp { side: Side::Near, .. }));
    });
}

#[test]
fn a_reset_by_the_peer_is_seen_while_the_application_reads_nothing() {
    run(async || {
        let mesh = Mesh::new();
        let mut server = serve(&mesh, HboneConfig::default()).await;
        let client = Client::new(&mesh, server.addr, HboneConfig::default());
        let (near, mut far) = pair(&client, &mut server).await;
        let (_app, tcp) = tcp_pair().await;
        let (proxy, _abort) = splicing(tcp, near);
        let full = Duration::from_millis(200);
        let piece = || Bytes::from_static(&[0; 65536]);
        while tokio::time::timeout(full, far.write(piece())).await.is_ok() {}
        far.reset(ErrorCode::CONNECT_ERROR);
        assert!(matches!(proxy.await.unwrap().ended, Ended::Stream { .. }));
    });
}

#[test]
fn an_abort_resets_both_applications() {
    run(async || {
        with_path(async |mut path| {
            path.near_abort.send(Abort::PolicyChanged).await.unwrap();
            expect_reset(&mut path.near_app).await;
            expect_reset(&mut path.far_app).await;
            let ended = path.near_proxy.await.unwrap().ended;
            assert!(matches!(ended, Ended::Aborted { why: Abort::PolicyChanged }));
            let Ended::Stream { source } = path.far_proxy.await.unwrap().ended else { panic!() };
            assert_eq!(source.to_string(), "the peer reset the stream: CANCEL");
        })
        .await;
    });
}

#[test]
fn a_peer_that_wants_no_more_after_its_end_is_no_failure() {
    run(async || {
        let mesh = Mesh::new();
        let mut server = serve(&mesh, HboneConfig::default()).await;
        let client = Client::new(&mesh, server.addr, HboneConfig::default());
        let (near, mut far) = pair(&client, &mut server).await;
        let (mut app, tcp) = tcp_pair().await;
        let (proxy, _abort) = splicing(tcp, near);
        far.write("answer".into()).await.unwrap();
        far.finish().unwrap();
        drop(far);
        assert_eq!(read_all(&mut app).await, "answer");
        let ended = proxy.await.unwrap().ended;
        assert!(matches!(ended, Ended::Finished { first: Side::Far }), "{ended:?}");
    });
}

#[test]
fn a_lost_tunnel_resets_the_application() {
    run(async || {
        let mesh = Mesh::new();
        let mut server = serve(&mesh, HboneConfig::default()).await;
        let client = Client::new(&mesh, server.addr, HboneConfig::default());
        let (near, _far) = pair(&client, &mut server).await;
        let (mut app, tcp) = tcp_pair().await;
        let (proxy, _abort) = splicing(tcp, near);
        server.drain(0, Duration::ZERO);
        expect_reset(&mut app).await;
        assert!(matches!(proxy.await.unwrap().ended, Ended::Stream { .. }));
    });
}

/// Bytes that differ from place to place, so that nothing is lost, doubled or swapped unseen.
fn pattern(seed: u8, length: usize) -> Vec<u8> {
    (0..length).map(|at| seed.wrapping_add((at ^ (at >> 8) ^ (at >> 16)) as u8)).collect()
}

#[test]
fn large_transfers_arrive_whole_both_ways_at_once() {
    const BYTES: usize = 64 << 20;
    run(async || {
        with_path(async |path| {
            let (near, far) = (pattern(1, BYTES), pattern(2, BYTES));
            let (mut near_in, mut near_out) = path.near_app.into_split();
            let (mut far_in, mut far_out) = path.far_app.into_split();
            let send = async |out: &mut tokio::net::tcp::OwnedWriteHalf, bytes: &[u8]| {
                out.write_all(bytes).await.unwrap();
                out.shutdown().await.unwrap();
            };
            let receive = async |from: &mut tokio::net::tcp::OwnedReadHalf| {
                let mut bytes = Vec::with_capacity(BYTES);
                from.read_to_end(&mut bytes).await.unwrap();
                bytes
            };
            let ((), (), at_far, at_near) = tokio::join!(
                send(&mut near_out, &near),
                send(&mut far_out, &far),
                receive(&mut far_in),
                receive(&mut near_in)
            );
            assert!(at_far == near && at_near == far);
            let outcome = path.near_proxy.await.unwrap();
            assert_eq!((outcome.sent_bytes, outcome.received_bytes), (BYTES as u64, BYTES as u64));
        })
        .await;
    });
}

/// Two applications and a relay between them.
async fn with_relay(test: impl AsyncFnOnce(TcpStream, TcpStream, JoinHandle<Outcome>)) {
    let (near_app, near) = tcp_pair().await;
    let (far_app, far) = tcp_pair().await;
    let relaying = spawn_local(async move {
        let counters = Counters::default();
        relay(&originated(), near, far, &counters, std::future::pending()).await
    });
    test(near_app, far_app, relaying).await;
}

#[test]
fn a_relay_passes_each_end_on() {
    run(async || {
        with_relay(async |mut near, mut far, relaying| {
            near.write_all(b"question").await.unwrap();
            near.shutdown().await.unwrap();
            assert_eq!(read_all(&mut far).await, "question");
            far.write_all(b"answer").await.unwrap();
            far.shutdown().await.unwrap();
            assert_eq!(read_all(&mut near).await, "answer");
            let outcome = relaying.await.unwrap();
            assert!(matches!(outcome.ended, Ended::Finished { first: Side::Near }));
            assert_eq!((outcome.sent_bytes, outcome.received_bytes), (8, 6));
        })
        .await;
    });
}

#[test]
fn a_relay_passes_a_reset_on() {
    run(async || {
        with_relay(async |near, mut far, relaying| {
            near.set_zero_linger().unwrap();
            drop(near);
            expect_reset(&mut far).await;
            let ended = relaying.await.unwrap().ended;
            assert!(matches!(ended, Ended::Tcp { side: Side::Near, .. }));
        })
        .await;
        with_relay(async |mut near, far, _| {
            far.set_zero_linger().unwrap();
            drop(far);
            expect_reset(&mut near).await;
        })
        .await;
    });
}
