//! The PROXY protocol header, version 2, for applications that want to be told who comes.
//!
//! In: the client, what it asked for, its proven identity. Out: the bytes that precede the connection's own. Pure.

use std::net::{IpAddr, SocketAddr};

use crate::identity::Spiffe;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command PROXY.
const VERSION_AND_COMMAND: u8 = 0x21;
const TCP_V4: u8 = 0x11;
const TCP_V6: u8 = 0x21;
/// Istio's type of the value that holds the peer's SPIFFE name.
const IDENTITY_TYPE: u8 = 0xd0;

/// The header (PROXY protocol specification §2.2) for bytes of `client` that were meant for `destination`.
///
/// A header has one family: where they differ, the IPv4 address goes as the IPv6 address that stands for it, so that the
/// reader is told both. An address of that form is written as the IPv4 address it is.
pub fn proxy_header(client: SocketAddr, destination: SocketAddr, peer: Option<&Spiffe>) -> Vec<u8> {
    let (from, to) = (client.ip().to_canonical(), destination.ip().to_canonical());
    let mut body = Vec::with_capacity(128);
    let family = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            body.extend(from.octets());
            body.extend(to.octets());
            TCP_V4
        }
        (from, to) => {
            body.extend(as_v6(from));
            body.extend(as_v6(to));
            TCP_V6
        }
    };
    body.extend(client.port().to_be_bytes());
    body.extend(destination.port().to_be_bytes());
    if let Some(peer) = peer {
        body.push(IDENTITY_TYPE);
        body.extend(length(peer.as_str().len()));
        body.extend(peer.as_str().as_bytes());
    }
    let mut header = SIGNATURE.to_vec();
    header.extend([VERSION_AND_COMMAND, family]);
    header.extend(length(body.len()));
    header.append(&mut body);
    header
}

fn as_v6(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

fn length(bytes: usize) -> [u8; 2] {
    u16::try_from(bytes).expect("a SPIFFE name has at most 2048 bytes").to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn the_length_is_that_of_what_follows(from: SocketAddr, to: SocketAddr, named: bool) {
            let peer = Spiffe::parse("spiffe://td/ns/a/sa/b").unwrap();
            let header = proxy_header(from, to, named.then_some(&peer));
            let length = u16::from_be_bytes([header[14], header[15]]);
            proptest::prop_assert_eq!(usize::from(length), header.len() - 16);
            let both_v4 = from.ip().to_canonical().is_ipv4() && to.ip().to_canonical().is_ipv4();
            proptest::prop_assert_eq!(header[13] == TCP_V4, both_v4);
        }
    }

    #[test]
    fn addresses_and_identity_follow_the_signature() {
        let peer = Spiffe::parse("spiffe://td/ns/a/sa/b").unwrap();
        let found = proxy_header(
            "10.0.0.1:4000".parse().unwrap(),
            "10.0.0.2:80".parse().unwrap(),
            Some(&peer),
        );
        let mut expected = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x24".to_vec();
        expected.extend([10, 0, 0, 1, 10, 0, 0, 2, 0x0f, 0xa0, 0, 80, 0xd0, 0, 21]);
        expected.extend(b"spiffe://td/ns/a/sa/b");
        assert_eq!(found, expected);
    }

    #[test]
    fn mixed_families_go_as_ipv6() {
        let found =
            proxy_header("10.0.0.1:1".parse().unwrap(), "[fd00::1]:2".parse().unwrap(), None);
        assert_eq!(&found[12..16], [0x21, 0x21, 0, 36]);
        assert_eq!(&found[16..32], as_v6("::ffff:10.0.0.1".parse().unwrap()));
    }
}
