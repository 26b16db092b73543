//! Handshakes in memory between two credentials: who gets in, who is refused, and in which words.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::{CipherSuite, HandshakeKind, NamedGroup, pki_types::ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

use super::*;

const HOUR: Duration = Duration::from_secs(3600);

type Client = client::TlsStream<DuplexStream>;
type Server = server::TlsStream<DuplexStream>;

fn name(uri: &str) -> Spiffe {
    Spiffe::parse(uri).unwrap()
}

fn web() -> Spiffe {
    name("spiffe://cluster.local/ns/shop/sa/web")
}

fn cart() -> Spiffe {
    name("spiffe://cluster.local/ns/shop/sa/cart")
}

fn from_now(begins_hours: i32, ends_hours: i32) -> Validity {
    let at = |hours: i32| {
        let distance = HOUR * hours.unsigned_abs();
        let now = SystemTime::now();
        if hours < 0 { now - distance } else { now + distance }
    };
    Validity { not_before: at(begins_hours), not_after: at(ends_hours) }
}

/// Handshakes and moves a byte each way, since a TLS 1.3 server judges the client's certificate after the client has
/// finished.
async fn handshake(
    from: &Credential,
    to: &Credential,
) -> (Result<Client, HandshakeError>, Result<Server, HandshakeError>) {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let address = ServerName::from(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2)));
    let client = async {
        let mut stream = TlsConnector::from(from.client_config()).connect(address, near).await?;
        stream.write_all(b"?").await?;
        stream.read_exact(&mut [0]).await?;
        Ok(stream)
    };
    let server = async {
        let mut stream = TlsAcceptor::from(to.server_config()).accept(far).await?;
        stream.read_exact(&mut [0]).await?;
        stream.write_all(b"!").await?;
        Ok(stream)
    };
    tokio::join!(client, server)
}

async fn refusals(from: &Credential, to: &Credential) -> (String, String) {
    let (client, server) = handshake(from, to).await;
    let text = |error: Option<HandshakeError>| error.map_or("accepted".into(), |e| e.to_string());
    (text(client.err()), text(server.err()))
}

#[tokio::test]
async fn two_workloads_of_one_mesh_know_each_other() {
    let ca = LocalCa::new("cluster.local").unwrap();
    let from = ca.credential(&web()).unwrap();
    let (client, server) = handshake(&from, &ca.credential(&cart()).unwrap()).await;
    let (client, server) = (client.unwrap(), server.unwrap());
    let seen_by_client = client.get_ref().1.peer_certificates().unwrap();
    let seen_by_server = server.get_ref().1.peer_certificates().unwrap();
    assert_eq!(from.expect_peer(seen_by_client, &[cart()]), Ok(cart()));
    assert_eq!(peer_identity(seen_by_server), Ok(web()));
}

#[tokio::test]
async fn a_tunnel_is_http2_over_tls13_with_the_hybrid_exchange_and_aes128() {
    let ca = LocalCa::new("cluster.local").unwrap();
    let (client, _) =
        handshake(&ca.credential(&web()).unwrap(), &ca.credential(&cart()).unwrap()).await;
    let client = client.unwrap();
    let connection = client.get_ref().1;
    assert_eq!(connection.alpn_protocol(), Some(&b"h2"[..]));
    assert_eq!(connection.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    let group = connection.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, NamedGroup::X25519MLKEM768);
    let suite = connection.negotiated_cipher_suite().unwrap().suite();
    assert_eq!(suite, tls::provider().cipher_suites[0].suite());
    assert_ne!(suite, CipherSuite::TLS13_AES_256_GCM_SHA384);
}

#[tokio::test]
async fn somebody_else_at_the_address_is_not_whom_we_expect() {
    let ca = LocalCa::new("cluster.local").unwrap();
    let from = ca.credential(&web()).unwrap();
    let (client, _) = handshake(&from, &ca.credential(&cart()).unwrap()).await;
    let client = client.unwrap();
    let pay = name("spiffe://cluster.local/ns/shop/sa/pay");
    let error = from.expect_peer(client.get_ref().1.peer_certificates().unwrap(), &[web(), pay]);
    assert_eq!(
        error.unwrap_err().to_string(),
        "the peer is spiffe://cluster.local/ns/shop/sa/cart, expected \
         spiffe://cluster.local/ns/shop/sa/web or spiffe://cluster.local/ns/shop/sa/pay"
    );
}

#[tokio::test]
async fn the_second_handshake_is_resumed_and_the_identity_still_known() {
    let ca = LocalCa::new("cluster.local").unwrap();
    let (from, to) = (ca.credential(&web()).unwrap(), ca.credential(&cart()).unwrap());
    for expected in [HandshakeKind::Full, HandshakeKind::Resumed, HandshakeKind::Resumed] {
        let (client, server) = handshake(&from, &to).await;
        let (client, server) = (client.unwrap(), server.unwrap());
        let (client, server) = (client.get_ref().1, server.get_ref().1);
        assert_eq!(client.handshake_kind(), Some(expected));
        assert_eq!(from.expect_peer(client.peer_certificates().unwrap(), &[cart()]), Ok(cart()));
        assert!(from.expect_peer(client.peer_certificates().unwrap(), &[web()]).is_err());
        assert_eq!(peer_identity(server.peer_certificates().unwrap()), Ok(web()));
    }
}

#[tokio::test]
async fn a_session_does_not_carry_over_to_another_identity_at_the_same_address() {
    let ca = LocalCa::new("cluster.local").unwrap();
    let from = ca.credential(&web()).unwrap();
    handshake(&from, &ca.credential(&cart()).unwrap()).await.0.unwrap();
    let pay = name("spiffe://cluster.local/ns/shop/sa/pay");
    let (client, _) = handshake(&from, &ca.credential(&pay).unwrap()).await;
    let client = client.unwrap();
    assert_eq!(client.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
    assert_eq!(peer_identity(client.get_ref().1.peer_certificates().unwrap()), Ok(pay));
}

#[tokio::test]
async fn a_client_of_another_trust_domain_is_refused() {
    let ca = LocalCa::new("cluster.local").unwrap();
    let other = name("spiffe://other.example/ns/shop/sa/web");
    let (from, to) = (ca.credential(&other).unwrap(), ca.credential(&cart()).unwrap());
    let (client, server) = refusals(&from, &to).await;
    assert_eq!(
        server,
        "the peer is spiffe://other.example/ns/shop/sa/web, whose trust domain is not trusted by \
         spiffe://cluster.local/ns/shop/sa/cart"
    );
    assert_eq!(client, "the peer refused the handshake: it does not accept our identity");
}

#[tokio::test]
async fn a_client_of_an_aliased_trust_domain_is_accepted() {
    let ca = LocalCa::new("cluster.local").unwrap();
    let other = name("spiffe://other.example/ns/shop/sa/web");
    let to = ca.credential_valid(&cart(), from_now(-1, 1), &["other.example".into()]).unwrap();
    let accepted = ("accepted".into(), "accepted".into());
    assert_eq!(refusals(&ca.credential(&other).unwrap(), &to).await, accepted);
}

#[tokio::test]
async fn a_server_of_another_authority_is_unknown() {
    let (ours, theirs) =
        (LocalCa::new("cluster.local").unwrap(), LocalCa::new("cluster.local").unwrap());
    let (from, to) = (ours.credential(&web()).unwrap(), theirs.credential(&cart()).unwrap());
    let (client, server) = refusals(&from, &to).await;
    assert_eq!(client, "the peer's certificate is signed by an unknown authority");
    assert_eq!(
        server,
        "the peer refused the handshake: it does not know the authority of our certificate"
    );
}

#[tokio::test]
async fn a_client_of_another_authority_is_unknown() {
    let ours = LocalCa::new("cluster.local").unwrap();
    // The client trusts both, so that it is the server that refuses.
    let theirs = LocalCa::new("cluster.local").unwrap().trusting(&ours);
    let (from, to) = (theirs.credential(&web()).unwrap(), ours.credential(&cart()).unwrap());
    let (client, server) = refusals(&from, &to).await;
    assert_eq!(server, "the peer's certificate is signed by an unknown authority");
    assert_eq!(
        client,
        "the peer refused the handshake: it does not know the authority of our certificate"
    );
}

#[tokio::test]
async fn two_roots_in_the_bundle_bridge_a_rotation() {
    let old = LocalCa::new("cluster.local").unwrap();
    let new = LocalCa::new("cluster.local").unwrap().trusting(&old);
    let old = old.trusting(&new);
    let (before, after) = (old.credential(&web()).unwrap(), new.credential(&cart()).unwrap());
    let accepted = ("accepted".to_owned(), "accepted".to_owned());
    assert_eq!(refusals(&before, &after).await, accepted);
    assert_eq!(refusals(&after, &before).await, accepted);
    assert_eq!(after.roots().len(), 2);
}

#[tokio::test]
async fn an_expired_server_is_refused() {
    let ca = LocalCa::new("cluster.local").unwrap();
    let to = ca.credential_valid(&cart(), from_now(-2, -1), &[]).unwrap();
    let (client, server) = refusals(&ca.credential(&web()).unwrap(), &to).await;
    assert_eq!(client, "the peer's certificate has expired");
    assert_eq!(server, "the peer refused the handshake: our certificate has expired by its clock");
}

#[tokio::test]
async fn an_expired_client_is_refused() {
    let ca = LocalCa::new("cluster.local").unwrap();
    let from = ca.credential_valid(&web(), from_now(-2, -1), &[]).unwrap();
    let (client, server) = refusals(&from, &ca.credential(&cart()).unwrap()).await;
    assert_eq!(server, "the peer's certificate has expired");
    assert_eq!(client, "the peer refused the handshake: our certificate has expired by its clock");
}

#[tokio::test]
async fn a_client_whose_validity_has_not_begun_is_refused() {
    let ca = LocalCa::new("cluster.local").unwrap();
    let from = ca.credential_valid(&web(), from_now(1, 2), &[]).unwrap();
    let (_, server) = refusals(&from, &ca.credential(&cart()).unwrap()).await;
    assert_eq!(server, "the peer's certificate is not valid yet");
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let ca = LocalCa::new("cluster.local").unwrap();
    let to = ca.credential(&cart()).unwrap();
    let trusted = verifier::Trusted::new(&web(), to.roots(), &Verification::default());
    let anchors = Arc::new(chain::anchors(&trusted.roots).unwrap());
    let bare = rustls::ClientConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(verifier::ServerVerifier::new(anchors, Arc::new(trusted)))
        .with_no_client_auth();
    let (near, far) = tokio::io::duplex(64 * 1024);
    let address = ServerName::from(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2)));
    let connector = TlsConnector::from(Arc::new(bare));
    let (_, server) = tokio::join!(
        connector.connect(address, near),
        TlsAcceptor::from(to.server_config()).accept(far)
    );
    let error = HandshakeError::from(server.unwrap_err());
    assert!(matches!(error, HandshakeError::NoCertificate), "{error:?}");
}

#[tokio::test]
async fn what_is_not_tls_is_named() {
    let ca = LocalCa::new("cluster.local").unwrap();
    let to = ca.credential(&cart()).unwrap();
    let (mut near, far) = tokio::io::duplex(64 * 1024);
    near.write_all(b"GET / HTTP/1.1\r\nhost: cart\r\n\r\n").await.unwrap();
    let error = TlsAcceptor::from(to.server_config()).accept(far).await.unwrap_err();
    let error = HandshakeError::from(error);
    assert!(matches!(error, HandshakeError::Protocol { .. }), "{error:?}");
}

#[tokio::test]
async fn a_peer_that_hangs_up_is_named() {
    let ca = LocalCa::new("cluster.local").unwrap();
    let to = ca.credential(&cart()).unwrap();
    let (near, far) = tokio::io::duplex(64 * 1024);
    drop(near);
    let error = TlsAcceptor::from(to.server_config()).accept(far).await.unwrap_err();
    let error = HandshakeError::from(error);
    assert!(matches!(error, HandshakeError::Closed), "{error:?}");
}

#[tokio::test]
async fn a_server_under_an_alias_of_our_trust_domain_is_whom_we_expect() {
    let ca = LocalCa::new("cluster.local").unwrap();
    let aliases = ["old.example".to_owned(), "older.example".to_owned()];
    let from = ca.credential_valid(&web(), from_now(-1, 1), &aliases).unwrap();
    let old_cart = name("spiffe://old.example/ns/shop/sa/cart");
    let other_cart = name("spiffe://other.example/ns/shop/sa/cart");
    let older_pay = name("spiffe://older.example/ns/shop/sa/pay");
    let seen = ca.credential(&old_cart).unwrap();
    let expect = |expected: &[Spiffe]| from.expect_peer(seen.chain(), expected);
    assert_eq!(expect(&[cart()]), Ok(old_cart.clone()));
    assert_eq!(expect(&[name("spiffe://older.example/ns/shop/sa/cart")]), Ok(old_cart.clone()));
    assert!(expect(&[older_pay]).is_err());
    assert!(expect(std::slice::from_ref(&other_cart)).is_err());
    // Of a trust domain that is no alias, only the name itself is.
    let foreign = ca.credential(&other_cart).unwrap();
    assert_eq!(
        from.expect_peer(foreign.chain(), std::slice::from_ref(&other_cart)),
        Ok(other_cart)
    );
    assert!(from.expect_peer(foreign.chain(), &[cart()]).is_err());
    // Without aliases, no name stands for another.
    assert!(ca.credential(&web()).unwrap().expect_peer(seen.chain(), &[cart()]).is_err());
}

/// What `credential` is when `revoked` are.
fn revoking(ca: &LocalCa, credential: &Credential, revoked: &[&Credential]) -> Credential {
    let list = ca.revocation_list(revoked).unwrap();
    let revocations = Arc::new(Revocations::parse(list.as_bytes()).unwrap());
    credential.under(&Verification { revocations, ..Verification::default() }).unwrap()
}

#[tokio::test]
async fn a_revoked_client_is_refused_and_another_of_its_identity_is_not() {
    let ca = LocalCa::new("cluster.local").unwrap();
    let [stolen, fresh] = [(); 2].map(|()| ca.credential(&web()).unwrap());
    let to = revoking(&ca, &ca.credential(&cart()).unwrap(), &[&stolen]);
    let (client, server) = refusals(&stolen, &to).await;
    assert_eq!(server, "the peer's certificate is revoked");
    assert_eq!(client, "the peer refused the handshake: it holds our certificate for revoked");
    assert_eq!(refusals(&fresh, &to).await, ("accepted".into(), "accepted".into()));
}

#[tokio::test]
async fn a_revoked_server_is_refused() {
    let ca = LocalCa::new("cluster.local").unwrap();
    let to = ca.credential(&cart()).unwrap();
    let from = revoking(&ca, &ca.credential(&web()).unwrap(), &[&to]);
    let (client, _) = refusals(&from, &to).await;
    assert_eq!(client, "the peer's certificate is revoked");
}

#[tokio::test]
async fn no_session_outlives_what_it_was_verified_under() {
    let ca = LocalCa::new("cluster.local").unwrap();
    let (from, to) = (ca.credential(&web()).unwrap(), ca.credential(&cart()).unwrap());
    for expected in [HandshakeKind::Full, HandshakeKind::Resumed] {
        let (client, _) = handshake(&from, &to).await;
        assert_eq!(client.unwrap().get_ref().1.handshake_kind(), Some(expected));
    }
    // The server is told that the client is revoked: its ticket is of no use.
    let (_, server) = refusals(&from, &revoking(&ca, &to, &[&from])).await;
    assert_eq!(server, "the peer's certificate is revoked");
    // The client is told that the server is: it offers no ticket.
    let (client, _) = refusals(&revoking(&ca, &from, &[&to]), &to).await;
    assert_eq!(client, "the peer's certificate is revoked");
}

#[tokio::test]
async fn ends_under_different_policies_have_nothing_in_common() {
    let ca = LocalCa::new("cluster.local").unwrap();
    let under = |who: &Spiffe, compliance| {
        let verification = Verification { compliance, ..Verification::default() };
        ca.credential(who).unwrap().under(&verification).unwrap()
    };
    let quantum = under(&cart(), Compliance::PostQuantum);
    let (client, _) = handshake(&under(&web(), Compliance::None), &quantum).await;
    let group = client.unwrap().get_ref().1.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, NamedGroup::X25519MLKEM768);
    let (_, server) = handshake(&under(&web(), Compliance::Fips1402), &quantum).await;
    assert!(matches!(server.unwrap_err(), HandshakeError::Incompatible { .. }));
}

/// A handshake with somebody who has nothing newer than TLS 1.2: the version, or the server's refusal.
async fn from_tls12(from: &Credential, to: &Credential) -> String {
    let ours = from.client_config();
    let trusted = verifier::Trusted::new(&web(), from.roots(), &Verification::default());
    let anchors = Arc::new(chain::anchors(&trusted.roots).unwrap());
    let mut old = rustls::ClientConfig::builder_with_provider(tls::provider_under(
        Compliance::None,
        TlsVersions::From12,
    ))
    .with_protocol_versions(&[&rustls::version::TLS12])
    .unwrap()
    .dangerous()
    .with_custom_certificate_verifier(verifier::ServerVerifier::new(anchors, Arc::new(trusted)))
    .with_client_cert_resolver(ours.client_auth_cert_resolver.clone());
    old.alpn_protocols = ours.alpn_protocols.clone();
    let (near, far) = tokio::io::duplex(64 * 1024);
    let address = ServerName::from(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2)));
    let connector = TlsConnector::from(Arc::new(old));
    let (_client, server) = tokio::join!(
        connector.connect(address, near),
        TlsAcceptor::from(to.server_config()).accept(far)
    );
    match server {
        Ok(server) => {
            let connection = server.get_ref().1;
            let peer = peer_identity(connection.peer_certificates().unwrap()).unwrap();
            format!("{peer} by {:?}", connection.protocol_version().unwrap())
        }
        Err(error) => HandshakeError::from(error).to_string(),
    }
}

#[tokio::test]
async fn tls_12_is_spoken_only_where_it_is_asked_for_and_nothing_newer_is_there() {
    let ca = LocalCa::new("cluster.local").unwrap();
    let under = |who: &Spiffe, versions| {
        let verification = Verification { versions, ..Verification::default() };
        ca.credential(who).unwrap().under(&verification).unwrap()
    };
    let from = ca.credential(&web()).unwrap();
    let both = under(&cart(), TlsVersions::From12);
    assert_eq!(from_tls12(&from, &both).await, "spiffe://cluster.local/ns/shop/sa/web by TLSv1_2");
    let refused = from_tls12(&from, &under(&cart(), TlsVersions::Only13)).await;
    assert_eq!(refused, "the peer has no TLS parameters in common with us");
    for from in [&from, &under(&web(), TlsVersions::From12)] {
        let (client, _) = handshake(from, &both).await;
        let version = client.unwrap().get_ref().1.protocol_version();
        assert_eq!(version, Some(rustls::ProtocolVersion::TLSv1_3));
    }
}
