//! Which tunnel a stream goes to.

use std::num::NonZeroU32;

use tokio::io::AsyncWriteExt;

use super::{
    hostile::{PREFACE, connect, frame, tls, until_frame},
    *,
};
use crate::identity::Validity;

/// Kinds of frames (RFC 9113 §6).
const DATA: u8 = 0;
const GOAWAY: u8 = 7;

#[test]
fn concurrent_requests_share_one_dial() {
    run(async || {
        let mesh = Mesh::new();
        let mut server = serve(&mesh, HboneConfig::default()).await;
        let client = Client::new(&mesh, server.addr, HboneConfig::default());
        let opening: Vec<_> = (0..50).map(|_| client.opening()).collect();
        let mut far = Vec::new();
        for opening in opening {
            far.push(server.accept().await);
            // The answers come in the order of the requests.
            opening.await.unwrap().unwrap();
        }
        assert_eq!(client.dials.get(), 1);
    });
}

#[test]
fn those_who_wait_for_a_dial_share_its_failure() {
    run(async || {
        let mesh = Mesh::new();
        let server = serve(&mesh, HboneConfig::default()).await;
        let mut client = Client::new(&mesh, server.addr, HboneConfig::default());
        client.key.expected = Arc::new([spiffe("pay")]);
        let opening: Vec<_> = (0..5).map(|_| client.opening()).collect();
        for opening in opening {
            let error = opening.await.unwrap().err().unwrap();
            assert!(matches!(error, OpenError::WrongPeer { .. }), "{error}");
        }
        assert_eq!(client.dials.get(), 1);
    });
}

#[test]
fn a_dial_that_is_given_up_is_taken_over() {
    run(async || {
        let mesh = Mesh::new();
        let mut server = serve(&mesh, HboneConfig::default()).await;
        let client = Client::new(&mesh, server.addr, HboneConfig::default());
        let [first, second] = [client.opening(), client.opening()];
        tokio::task::yield_now().await;
        assert_eq!(client.dials.get(), 1);
        first.abort();
        let _stream = server.accept().await;
        second.await.unwrap().unwrap();
        assert_eq!(client.dials.get(), 2);
    });
}

#[test]
fn a_full_tunnel_is_used_again_when_a_stream_has_ended() {
    run(async || {
        let mesh = Mesh::new();
        let mut server = serve(&mesh, HboneConfig::default()).await;
        let client = Client::new(&mesh, server.addr, HboneConfig::default());
        let mut streams = Vec::new();
        for number in 0..101 {
            let (near, (tunnel, far)) = tokio::join!(client.open(), server.accept());
            assert_eq!(tunnel, number / 100, "stream {number}");
            streams.push((near.unwrap(), far));
        }
        assert_eq!((client.dials.get(), client.pool.tunnels()), (2, 2));
        streams.swap_remove(40);
        let (near, (tunnel, _far)) = tokio::join!(client.open(), server.accept());
        near.unwrap();
        assert_eq!((tunnel, client.dials.get()), (0, 2));
    });
}

#[test]
fn a_peer_that_allows_fewer_streams_gets_fewer() {
    run(async || {
        let mesh = Mesh::new();
        let strict = HboneConfig { accepted_streams: 3, ..HboneConfig::default() };
        let mut server = serve(&mesh, strict).await;
        let client = Client::new(&mesh, server.addr, HboneConfig::default());
        let opening: Vec<_> = (0..7).map(|_| client.opening()).collect();
        let mut tunnels = [0; 3];
        let mut far = Vec::new();
        for _ in 0..7 {
            let (tunnel, stream) = server.accept().await;
            tunnels[tunnel] += 1;
            far.push(stream);
        }
        let mut near = Vec::new();
        for opening in opening {
            near.push(opening.await.unwrap().unwrap());
        }
        assert_eq!((tunnels, client.dials.get()), ([3, 3, 1], 3));
    });
}

#[test]
fn other_keys_have_other_tunnels() {
    run(async || {
        let mesh = Mesh::new();
        let mut server = serve(&mesh, HboneConfig::default()).await;
        let client = Client::new(&mesh, server.addr, HboneConfig::default());
        let mut other = client.clone();
        other.key.expected = Arc::new([spiffe("pay"), spiffe("cart")]);
        let _first = pair(&client, &mut server).await;
        let _second = pair(&other, &mut server).await;
        assert_eq!(client.pool.tunnels(), 2);
    });
}

#[test]
fn after_goaway_new_streams_go_elsewhere_and_old_ones_finish() {
    run(async || {
        let mesh = Mesh::new();
        let mut server = serve(&mesh, HboneConfig::default()).await;
        let client = Client::new(&mesh, server.addr, HboneConfig::default());
        let (mut old_near, mut old_far) = pair(&client, &mut server).await;
        server.drain(0, PATIENCE);
        loop {
            let (near, (tunnel, far)) = tokio::join!(client.open(), server.accept());
            near.unwrap();
            drop(far);
            if tunnel == 1 {
                break;
            }
        }
        old_near.write("still here".into()).await.unwrap();
        assert_eq!(old_far.read().await.unwrap().unwrap(), "still here");
        old_near.finish().unwrap();
        assert_eq!(old_far.read().await.unwrap(), None);
        old_far.finish().unwrap();
        assert_eq!(old_near.read().await.unwrap(), None);
        drop((old_near, old_far));
        assert_eq!(server.ends.recv().await.unwrap(), "closed");
    });
}

#[test]
fn a_drain_cuts_what_is_left_at_its_deadline() {
    run(async || {
        let mesh = Mesh::new();
        let mut server = serve(&mesh, HboneConfig::default()).await;
        let client = Client::new(&mesh, server.addr, HboneConfig::default());
        let (mut near, _far) = pair(&client, &mut server).await;
        server.drain(0, Duration::from_millis(50));
        assert_eq!(server.ends.recv().await.unwrap(), "closed");
        assert!(near.read().await.is_err());
    });
}

#[test]
fn of_several_drains_the_earliest_deadline_counts() {
    const NEVER: Duration = Duration::from_secs(3600);
    const SOON: Duration = Duration::from_millis(50);
    for deadlines in [[NEVER, SOON], [SOON, NEVER]] {
        run(async || {
            let mesh = Mesh::new();
            let mut server = serve(&mesh, HboneConfig::default()).await;
            let client = Client::new(&mesh, server.addr, HboneConfig::default());
            let (_near, _far) = pair(&client, &mut server).await;
            deadlines.iter().for_each(|deadline| server.drain(0, *deadline));
            assert_eq!(server.ends.recv().await.unwrap(), "closed");
        });
    }
}

#[test]
fn a_dead_tunnel_is_not_used() {
    run(async || {
        let mesh = Mesh::new();
        let mut server = serve(&mesh, HboneConfig::default()).await;
        let client = Client::new(&mesh, server.addr, HboneConfig::default());
        let (mut near, far) = pair(&client, &mut server).await;
        drop(far);
        server.drain(0, Duration::ZERO);
        near.read().await.unwrap_err();
        let (near, (tunnel, _far)) = tokio::join!(client.open(), server.accept());
        near.unwrap();
        assert_eq!((tunnel, client.pool.tunnels()), (1, 1));
    });
}

#[test]
fn an_unused_tunnel_is_closed_after_a_while() {
    run(async || {
        let mesh = Mesh::new();
        let mut server = serve(&mesh, HboneConfig::default()).await;
        let config = HboneConfig {
            idle_limit: Duration::from_millis(30),
            ping_interval: Duration::from_millis(10),
            ..HboneConfig::default()
        };
        let client = Client::new(&mesh, server.addr, config);
        let streams = pair(&client, &mut server).await;
        let busy = tokio::time::timeout(Duration::from_millis(100), server.ends.recv()).await;
        assert!(busy.is_err(), "a stream keeps its tunnel");
        drop(streams);
        assert_eq!(server.ends.recv().await.unwrap(), "closed");
        assert_eq!(client.pool.tunnels(), 0);
    });
}

#[test]
fn a_closed_pool_opens_nothing_and_lets_streams_finish() {
    run(async || {
        let mesh = Mesh::new();
        let mut server = serve(&mesh, HboneConfig::default()).await;
        let client = Client::new(&mesh, server.addr, HboneConfig::default());
        let (mut near, mut far) = pair(&client, &mut server).await;
        client.pool.close();
        assert_eq!(refusal(&client, client.open().await), "the tunnels of this pod are closed");
        near.write("last".into()).await.unwrap();
        assert_eq!(far.read().await.unwrap().unwrap(), "last");
        drop((near, far));
        assert_eq!(server.ends.recv().await.unwrap(), "closed");
    });
}

#[test]
fn a_limit_of_one_stream_makes_a_tunnel_for_each() {
    run(async || {
        let mesh = Mesh::new();
        let mut server = serve(&mesh, HboneConfig::default()).await;
        let config = HboneConfig { streams_per_tunnel: NonZeroU32::MIN, ..HboneConfig::default() };
        let client = Client::new(&mesh, server.addr, config);
        let _first = pair(&client, &mut server).await;
        let _second = pair(&client, &mut server).await;
        assert_eq!(client.dials.get(), 2);
    });
}

/// A certificate for `name` that is good for a little longer than a second: its times are in whole seconds.
fn short_lived(ca: &LocalCa, name: &str) -> Arc<Credential> {
    let now = std::time::SystemTime::now();
    let validity = Validity::starting(now, Duration::from_secs(60), Duration::from_secs(2));
    Arc::new(ca.credential_valid(&spiffe(name), validity, &[]).unwrap())
}

#[test]
fn a_renewed_credential_gets_a_new_tunnel_and_the_streams_of_the_old_one_go_on() {
    run(async || {
        let ca = LocalCa::new("cluster.local").unwrap();
        let credential = |name| Arc::new(ca.credential(&spiffe(name)).unwrap());
        let mesh = Mesh { web: credential("web"), cart: credential("cart") };
        let mut server = serve(&mesh, HboneConfig::default()).await;
        let mut client = Client::new(&mesh, server.addr, HboneConfig::default());
        let (mut near, mut far) = pair(&client, &mut server).await;
        client.credential = credential("web");
        let (second, (tunnel, _far)) = tokio::join!(client.open(), server.accept());
        let _second = second.unwrap();
        assert_eq!((tunnel, client.dials.get(), client.pool.tunnels()), (1, 2, 1));
        near.write("still here".into()).await.unwrap();
        assert_eq!(far.read().await.unwrap().unwrap(), "still here");
        drop((near, far));
        assert_eq!(server.ends.recv().await.unwrap(), "closed");
    });
}

#[test]
fn a_server_says_goaway_when_its_certificate_or_the_peers_expires_and_streams_go_on() {
    for short in ["web", "cart"] {
        run(async || {
            let ca = LocalCa::new("cluster.local").unwrap();
            let credential = |name| match name == short {
                true => short_lived(&ca, name),
                false => Arc::new(ca.credential(&spiffe(name)).unwrap()),
            };
            let mesh = Mesh { web: credential("web"), cart: credential("cart") };
            let mut server = serve(&mesh, HboneConfig::default()).await;
            let mut peer = tls(&mesh, &server).await;
            peer.write_all(&[PREFACE, &connect(1)].concat()).await.unwrap();
            let (_, mut far) = server.accept().await;
            // The peer, which trusts what it once trusted, is told not to open more.
            until_frame(&mut peer, GOAWAY).await;
            peer.write_all(&frame(DATA, 0, 1, b"up")).await.unwrap();
            assert_eq!(far.read().await.unwrap().unwrap(), "up", "{short}");
            far.write("down".into()).await.unwrap();
            assert_eq!(until_frame(&mut peer, DATA).await, b"down", "{short}");
            drop((peer, far));
            assert_eq!(server.ends.recv().await.unwrap(), "closed", "{short}");
        });
    }
}

#[test]
fn a_tunnel_with_an_expired_certificate_takes_no_streams() {
    run(async || {
        let ca = LocalCa::new("cluster.local").unwrap();
        let cart = Arc::new(ca.credential(&spiffe("cart")).unwrap());
        let mesh = Mesh { web: short_lived(&ca, "web"), cart };
        let mut server = serve(&mesh, HboneConfig::default()).await;
        let client = Client::new(&mesh, server.addr, HboneConfig::default());
        let _streams = pair(&client, &mut server).await;
        // Clocks say nothing when they have come so far: the server does, with GOAWAY to whoever shows that certificate.
        let mut witness = tls(&mesh, &server).await;
        witness.write_all(PREFACE).await.unwrap();
        until_frame(&mut witness, GOAWAY).await;
        // Another is dialed, and there the certificate is refused.
        assert!(client.open().await.is_err());
        assert_eq!(client.dials.get(), 2);
    });
}

#[test]
fn a_retired_key_gets_a_new_tunnel_and_the_streams_of_the_old_one_go_on() {
    run(async || {
        let mesh = Mesh::new();
        let mut server = serve(&mesh, HboneConfig::default()).await;
        let mut client = Client::new(&mesh, server.addr, HboneConfig::default());
        client.key.workload = Some("first".into());
        let (mut near, mut far) = pair(&client, &mut server).await;
        // The same address and identity, another workload.
        let mut heir = client.clone();
        heir.key.workload = Some("second".into());
        let _of_heir = pair(&heir, &mut server).await;
        assert_eq!(client.dials.get(), 2);
        client.pool.retire(|key| key.workload.as_deref() == Some("first"));
        assert_eq!(client.pool.tunnels(), 1);
        near.write("still here".into()).await.unwrap();
        assert_eq!(far.read().await.unwrap().unwrap(), "still here");
        drop((near, far));
        assert_eq!(server.ends.recv().await.unwrap(), "closed");
    });
}
