//! The PROXY protocol header, version 2, for applications that want to be told who comes.
//!
//! In: a [`ProxyHeader`]: the client, what it asked for, its proven identity. Out: the bytes that precede the connection's
//! own; and back again, for who is told. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::identity::{Spiffe, SpiffeError};

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command PROXY.
const VERSION_AND_COMMAND: u8 = 0x21;
const TCP_V4: u8 = 0x11;
const TCP_V6: u8 = 0x21;
/// Signature, version, family and the length of the rest.
const HEAD: usize = 16;
/// Istio's type of the value that holds the peer's SPIFFE name.
const IDENTITY_TYPE: u8 = 0xd0;
/// The type that Istio reserves for the host name that was asked for.
const HOST_TYPE: u8 = 0xd1;

/// What an application is told of a connection (PROXY protocol specification §2.2).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ProxyHeader {
    /// Who comes.
    pub client: SocketAddr,
    /// The address that it asked for.
    pub destination: SocketAddr,
    /// Its proven identity.
    pub peer: Option<Spiffe>,
    /// The host name that it asked for, if it was by name.
    pub host: Option<Box<str>>,
}

/// Why bytes are no header.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum BadProxyHeader {
    /// They begin with something else.
    #[error("the connection does not begin with a PROXY protocol header of version 2")]
    Signature,
    /// Neither the command PROXY, nor TCP over IPv4 or IPv6.
    #[error(
        "command and version {command:#04x} for family and protocol {family:#04x} are not of a TCP connection"
    )]
    Kind {
        /// The 13th byte.
        command: u8,
        /// The 14th.
        family: u8,
    },
    /// The addresses or a value end beyond the length that the header says.
    #[error("the header's {length} bytes are fewer than it needs")]
    Short {
        /// The length as the header says it.
        length: usize,
    },
    /// The identity is no SPIFFE name.
    #[error("the header's identity is no name of a workload")]
    Identity {
        /// What is wrong with it.
        source: SpiffeError,
    },
    /// A value that is to be text is none.
    #[error("the header's value of type {kind:#04x} is not text")]
    Text {
        /// Which one.
        kind: u8,
    },
}

impl ProxyHeader {
    /// The header's bytes.
    ///
    /// A header has one family: where the addresses' differ, the IPv4 address goes as the IPv6 address that stands for it, so
    /// that the reader is told both. An address of that form is written as the IPv4 address it is.
    pub fn to_bytes(&self) -> Vec<u8> {
        let (from, to) = (self.client.ip().to_canonical(), self.destination.ip().to_canonical());
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
        body.extend(self.client.port().to_be_bytes());
        body.extend(self.destination.port().to_be_bytes());
        let peer = self.peer.as_ref().map(Spiffe::as_str);
        for (kind, value) in [(IDENTITY_TYPE, peer), (HOST_TYPE, self.host.as_deref())] {
            if let Some(value) = value {
                body.push(kind);
                body.extend(length(value.len()));
                body.extend(value.as_bytes());
            }
        }
        let mut header = SIGNATURE.to_vec();
        header.extend([VERSION_AND_COMMAND, family]);
        header.extend(length(body.len()));
        header.append(&mut body);
        header
    }

    /// Reads the header at the beginning of a connection, and says how many bytes it has; none while too few have come.
    /// Values of other types are passed over.
    ///
    /// # Errors
    /// [`BadProxyHeader`], as early as the bytes tell.
    pub fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, BadProxyHeader> {
        let begun = bytes.len().min(SIGNATURE.len());
        if bytes[..begun] != SIGNATURE[..begun] {
            return Err(BadProxyHeader::Signature);
        }
        let Some((head, rest)) = bytes.split_at_checked(HEAD) else { return Ok(None) };
        let (command, family) = (head[12], head[13]);
        if command != VERSION_AND_COMMAND || ![TCP_V4, TCP_V6].contains(&family) {
            return Err(BadProxyHeader::Kind { command, family });
        }
        let length = usize::from(u16::from_be_bytes([head[14], head[15]]));
        let Some(mut body) = rest.get(..length) else { return Ok(None) };
        let short = BadProxyHeader::Short { length };
        let (from, to) = match family {
            TCP_V4 => (v4(&mut body), v4(&mut body)),
            _ => (v6(&mut body), v6(&mut body)),
        };
        let (from, to) = from.zip(to).ok_or(short.clone())?;
        let ports = number(&mut body).zip(number(&mut body));
        let (from_port, to_port) = ports.ok_or(short.clone())?;
        let mut header = Self {
            client: SocketAddr::new(from, from_port),
            destination: SocketAddr::new(to, to_port),
            peer: None,
            host: None,
        };
        while !body.is_empty() {
            let (kind, value) = value(&mut body).ok_or(short.clone())?;
            let text = || str::from_utf8(value).map_err(|_| BadProxyHeader::Text { kind });
            match kind {
                IDENTITY_TYPE => {
                    let peer = Spiffe::parse(text()?);
                    header.peer = Some(peer.map_err(|source| BadProxyHeader::Identity { source })?);
                }
                HOST_TYPE => header.host = Some(text()?.into()),
                _ => {}
            }
        }
        Ok(Some((header, HEAD + length)))
    }
}

fn as_v6(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

fn length(bytes: usize) -> [u8; 2] {
    u16::try_from(bytes).expect("names have at most 2048 bytes").to_be_bytes()
}

fn take<const N: usize>(from: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = from.split_first_chunk()?;
    *from = rest;
    Some(*taken)
}

fn v4(from: &mut &[u8]) -> Option<IpAddr> {
    Some(Ipv4Addr::from(take(from)?).into())
}

fn v6(from: &mut &[u8]) -> Option<IpAddr> {
    Some(Ipv6Addr::from(take(from)?).to_canonical())
}

fn number(from: &mut &[u8]) -> Option<u16> {
    take(from).map(u16::from_be_bytes)
}

/// The next value, with its type.
fn value<'a>(from: &mut &'a [u8]) -> Option<(u8, &'a [u8])> {
    let [kind] = take(from)?;
    let length = number(from)?;
    let (value, rest) = from.split_at_checked(length.into())?;
    *from = rest;
    Some((kind, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(client: &str, destination: &str) -> ProxyHeader {
        let (client, destination) = (client.parse().unwrap(), destination.parse().unwrap());
        ProxyHeader { client, destination, peer: None, host: None }
    }

    fn peer() -> Option<Spiffe> {
        Some(Spiffe::parse("spiffe://td/ns/a/sa/b").unwrap())
    }

    proptest::proptest! {
        #[test]
        fn what_is_written_is_read_and_not_before_it_is_whole(
            client: SocketAddr,
            destination: SocketAddr,
            is_named: bool,
            host in proptest::option::of("[a-z.]{1,60}"),
        ) {
            let canonical = |addr: SocketAddr| SocketAddr::new(addr.ip().to_canonical(), addr.port());
            let header = ProxyHeader {
                client: canonical(client),
                destination: canonical(destination),
                peer: peer().filter(|_| is_named),
                host: host.map(Into::into),
            };
            let mut bytes = header.to_bytes();
            let length = bytes.len();
            for begun in 0..length {
                proptest::prop_assert_eq!(ProxyHeader::parse(&bytes[..begun]), Ok(None));
            }
            bytes.extend(b"the connection's own");
            proptest::prop_assert_eq!(ProxyHeader::parse(&bytes), Ok(Some((header, length))));
        }

        #[test]
        fn any_bytes_are_read_or_refused(mut body in proptest::collection::vec(0_u8.., 0..200), v4: bool) {
            let _ = ProxyHeader::parse(&body);
            let mut bytes = SIGNATURE.to_vec();
            bytes.extend([VERSION_AND_COMMAND, if v4 { TCP_V4 } else { TCP_V6 }]);
            bytes.extend(length(body.len()));
            bytes.append(&mut body);
            proptest::prop_assert!(ProxyHeader::parse(&bytes) != Ok(None));
        }
    }

    #[test]
    fn addresses_identity_and_host_follow_the_signature() {
        let host = Some("cart.shop".into());
        let found = ProxyHeader { peer: peer(), host, ..header("10.0.0.1:4000", "10.0.0.2:80") };
        let mut expected = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x30".to_vec();
        expected.extend([10, 0, 0, 1, 10, 0, 0, 2, 0x0f, 0xa0, 0, 80, 0xd0, 0, 21]);
        expected.extend(b"spiffe://td/ns/a/sa/b");
        expected.extend(b"\xd1\0\x09cart.shop");
        assert_eq!(found.to_bytes(), expected);
    }

    #[test]
    fn mixed_families_go_as_ipv6() {
        let found = header("10.0.0.1:1", "[fd00::1]:2").to_bytes();
        assert_eq!(&found[12..16], [0x21, 0x21, 0, 36]);
        assert_eq!(&found[16..32], as_v6("::ffff:10.0.0.1".parse().unwrap()));
    }

    #[test]
    fn what_is_no_header_is_refused_by_its_fault() {
        let good = ProxyHeader { peer: peer(), ..header("10.0.0.1:1", "10.0.0.2:2") }.to_bytes();
        let changed = |at: usize, to: u8| {
            let mut bytes = good.clone();
            bytes[at] = to;
            ProxyHeader::parse(&bytes).unwrap_err().to_string()
        };
        assert_eq!(
            ProxyHeader::parse(b"GET /").unwrap_err().to_string(),
            "the connection does not begin with a PROXY protocol header of version 2"
        );
        let kind =
            "command and version 0x20 for family and protocol 0x11 are not of a TCP connection";
        assert_eq!(changed(12, 0x20), kind);
        assert_eq!(changed(15, 11), "the header's 11 bytes are fewer than it needs");
        assert_eq!(changed(30, 22), "the header's 36 bytes are fewer than it needs");
        assert_eq!(changed(31, b'x'), "the header's identity is no name of a workload");
        assert_eq!(changed(31, 0xff), "the header's value of type 0xd0 is not text");
        // A value of a type that nobody here knows.
        let mut other = good.clone();
        other[28] = 0xe0;
        let (read, _) = ProxyHeader::parse(&other).unwrap().unwrap();
        assert_eq!(read, header("10.0.0.1:1", "10.0.0.2:2"));
    }
}
