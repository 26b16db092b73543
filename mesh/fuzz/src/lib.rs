//! What must hold for every input of the parsers of foreign bytes.
//!
//! In: arbitrary bytes. Out: nothing, or a panic that says which property broke. The fuzz targets and the corpus test
//! (`mesh/tests/corpus.rs`) run these same functions.

use std::{
    net::{IpAddr, SocketAddr},
    str,
    sync::Arc,
};

use mesh::{
    hbone::{Authority, ProxyHeader},
    identity::{PeerChain, Revocations, Spiffe},
    policy::{self, Action, Connection, Denied, Destination, Policies, Policy},
    store::{Found, Store, Update},
    telemetry::read_baggage,
    xds::{ResourceType, Scope, Session, parse_local},
};
use prost::Message;
use proto::{
    discovery::DeltaDiscoveryResponse, envoy::envoy::config::core::v3::Node,
    security::Authorization, workload::Address,
};

/// A name that is accepted is written as it was read, and is made of its parts.
pub fn spiffe(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let Ok(name) = Spiffe::parse(text) else { return };
    assert_eq!(name.to_string(), text);
    let of_parts = Spiffe::new(name.trust_domain(), name.namespace(), name.service_account());
    assert_eq!(of_parts, Ok(name));
}

/// A file of revocation lists is read or refused, and without a root it revokes nobody.
pub fn crl(bytes: &[u8]) {
    let Ok(lists) = Revocations::parse(bytes) else { return };
    if let Ok(chain) = PeerChain::of(&[bytes.into()]) {
        assert!(lists.revoked(&chain, &[]).is_none());
    }
}

/// What a peer presents is read or refused: the chain begins with its leaf, and names it as the leaf alone would.
pub fn peer_chain(bytes: &[u8]) {
    let presented: Vec<_> = bytes.split(|byte| *byte == b'|').map(Into::into).collect();
    let Ok(chain) = PeerChain::of(&presented) else { return };
    let leaf = PeerChain::of(&presented[..1]).expect("it was read with the others");
    assert_eq!(chain.leaf(), leaf.leaf());
}

/// An authority that is accepted is read again from what it is written as.
pub fn authority(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let Ok(authority) = Authority::parse(text) else { return };
    assert_eq!(Authority::parse(&authority.to_string()), Ok(authority));
}

/// Whatever a peer says of itself, no label of it is empty or longer than any name, and its certificate is not its word.
pub fn baggage(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let party = read_baggage(text.lines());
    assert!(party.principal.is_none());
    let texts = [
        &party.workload,
        &party.namespace,
        &party.canonical_name,
        &party.canonical_revision,
        &party.cluster,
        &party.region,
        &party.zone,
    ];
    for value in texts.into_iter().flatten() {
        assert!((1..=253).contains(&value.len()) && !value.contains([',', '=', ';']), "{value}");
    }
}

/// A PROXY protocol header is read, by the letter of its specification, as what it was made of.
pub fn proxy_v2(bytes: &[u8]) {
    if let Ok(Some((header, length))) = ProxyHeader::parse(bytes) {
        assert!(length <= bytes.len());
        let written = header.to_bytes();
        assert_eq!(ProxyHeader::parse(&written), Ok(Some((header, written.len()))));
    }
    let Some((head, name)) = bytes.split_at_checked(38) else { return };
    let ip = |six: bool, at: &[u8]| match six {
        true => IpAddr::from(<[u8; 16]>::try_from(at).expect("16 bytes")),
        false => IpAddr::from(<[u8; 4]>::try_from(&at[..4]).expect("4 bytes")),
    };
    let port = |at: &[u8]| u16::from_be_bytes([at[0], at[1]]);
    let client = SocketAddr::new(ip(head[0] % 2 == 1, &head[2..18]), port(&head[18..20]));
    let to = SocketAddr::new(ip(head[1] % 2 == 1, &head[20..36]), port(&head[36..38]));
    let peer = str::from_utf8(name).ok().and_then(|name| Spiffe::parse(name).ok());
    let header = ProxyHeader { client, destination: to, peer: peer.clone(), host: None }.to_bytes();

    assert_eq!(header[..12], *b"\r\n\r\n\0\r\nQUIT\n");
    assert_eq!(header[12], 0x21, "version 2, PROXY");
    assert_eq!(usize::from(port(&header[14..])), header.len() - 16);
    let (length, six) = match header[13] {
        0x11 => (4, false),
        0x21 => (16, true),
        other => panic!("neither TCP over IPv4 nor over IPv6: {other:#x}"),
    };
    let body = &header[16..];
    let (addresses, values) = body.split_at(2 * length + 4);
    let found = |at: usize, port_at: usize| {
        let ip = ip(six, &addresses[at..at + length]).to_canonical();
        SocketAddr::new(ip, port(&addresses[port_at..]))
    };
    let canonical = |addr: SocketAddr| SocketAddr::new(addr.ip().to_canonical(), addr.port());
    assert_eq!(found(0, 2 * length), canonical(client));
    assert_eq!(found(length, 2 * length + 2), canonical(to));
    match peer {
        None => assert!(values.is_empty()),
        Some(peer) => {
            assert_eq!(values[0], 0xd0);
            assert_eq!(usize::from(port(&values[1..])), values.len() - 3);
            assert_eq!(&values[3..], peer.as_str().as_bytes());
        }
    }
}

/// A workload or service that is accepted is found by its name and addresses, and gone once it is removed.
pub fn address_decode(bytes: &[u8]) {
    let Ok(message) = Address::decode(bytes) else { return };
    let update = match Update::try_from(message) {
        Ok(update) => update,
        Err(error) => return assert!(!error.path().is_empty()),
    };
    let store = Store::new();
    store.apply([update.clone(), update]);
    let snapshot = store.load();
    let mut names: Vec<Arc<str>> = Vec::new();
    for workload in snapshot.workloads() {
        assert!(snapshot.workload(&workload.uid).is_some());
        let (namespace, account) = (&workload.namespace, &workload.service_account);
        assert!(snapshot.workload_of(namespace, &workload.name, account).is_some());
        names.push(workload.uid.clone());
    }
    for service in snapshot.services() {
        let namespace = &service.namespace;
        assert!(snapshot.service_by_host(&service.hostname, namespace).is_some());
        for address in &service.addresses {
            let found = snapshot.by_address(&address.network, address.net.addr(), namespace);
            assert!(matches!(found, Some(Found::Service(_))));
        }
        names.push(service.key.clone());
    }
    store.apply(names.iter().map(|name| Update::RemoveAddress(name.to_string())));
    let empty = store.load();
    assert_eq!(empty.workloads().count() + empty.services().count(), 0);
}

/// A response is answered by its nonce; what is held is what was accepted, and what is told of the rest is bounded.
pub fn xds_response(bytes: &[u8]) {
    let Ok(response) = DeltaDiscoveryResponse::decode(bytes) else { return };
    let (nonce, count) = (response.nonce.clone(), response.resources.len());
    let store = Store::new();
    let mut session = Session::new(Node::default(), Scope::OnDemand);
    let handled = session.response(response, |updates| store.apply(updates));
    assert_eq!(handled.reply.response_nonce, nonce);
    if handled.resource_type.is_some() {
        assert_eq!(handled.accepted + handled.rejected.len(), count);
    }
    assert_eq!(handled.reply.error_detail.is_some(), !handled.rejected.is_empty());
    if let Some(detail) = handled.reply.error_detail {
        assert!(detail.message.len() < 32 * 1024);
    }
    let held: usize = ResourceType::ALL.map(|of| session.held(of).len()).into_iter().sum();
    assert!(held <= handled.accepted);
    for request in session.connected(&[]) {
        assert!(request.response_nonce.is_empty() && !request.type_url.is_empty());
    }
}

/// Local configuration is taken whole, or refused with where it came from.
pub fn local_xds(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    match parse_local(text, "the setting") {
        Ok(updates) => Store::new().apply(updates),
        Err(error) => assert!(error.to_string().starts_with("the setting: ")),
    }
}

/// A policy is accepted or refused with the path of the field.
pub fn authorization_decode(bytes: &[u8]) {
    let Ok(message) = Authorization::decode(bytes) else { return };
    match Policy::try_from(message) {
        Ok(policy) => assert_eq!(*policy.key, format!("{}/{}", policy.namespace, policy.name)),
        Err(error) => assert!(!error.path().is_empty()),
    }
}

/// A connection that a policy denies as a DENY is the one that it allows as an ALLOW.
///
/// The first 7 bytes are the connection: whether the peer has an identity, its address, the port; the rest is the policy.
pub fn policy_match(bytes: &[u8]) {
    let Some(([identified, a, b, c, d, port @ ..], message)) = bytes.split_first_chunk::<7>()
    else {
        return;
    };
    let Some(policy) = Authorization::decode(message).ok().and_then(|m| Policy::try_from(m).ok())
    else {
        return;
    };
    let peer = Spiffe::new("cluster.local", "web", "front").expect("a valid name");
    let connection = Connection {
        peer: (identified % 2 == 0).then_some(&peer),
        source: SocketAddr::new(IpAddr::from([*a, *b, *c, *d]), 40_000),
        destination: SocketAddr::new(IpAddr::from([10, 1, 0, 1]), u16::from_be_bytes(*port)),
    };
    let decide = |action| {
        let mut policies = Policies::default();
        let policy = Policy { action, mode: policy::Mode::Enforce, ..policy.clone() };
        let named = [policy.key.clone()];
        policies.insert(policy);
        let to = Destination { namespace: "shop", policies: &named };
        policy::authorize(&policies, to, &connection)
    };
    let denied = matches!(decide(Action::Deny), Err(Denied::ByDeny { .. }));
    let allowed = match decide(Action::Allow) {
        Ok(_) => true,
        Err(why) => {
            assert!(!why.to_string().is_empty());
            false
        }
    };
    assert_eq!(denied, allowed);
}
