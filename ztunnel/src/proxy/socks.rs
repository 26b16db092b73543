//! A connection that an application asks for by SOCKS5 (RFC 1928) instead of dialing it itself.
//!
//! In: a connection to the pod's loopback address. Out: an outbound connection to what was asked for, decided and carried as
//! if it had been captured. CONNECT alone, without authentication: whoever reaches the pod's loopback address is the pod.
//! The application is told of success before anything is dialed, as by Istio's ztunnel: what fails then is a reset.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use mesh::{
    store::{Snapshot, Workload},
    telemetry::{Failure, Reason, Reporter},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{
    labels,
    outbound::{self, Connected},
    share::Held,
    thread::{DataThread, LocalPod},
};
use crate::next_hop::SOCKS_PORT;

/// How long an application may take to say what it wants.
const LIMIT: Duration = Duration::from_secs(10);

const VERSION: u8 = 5;
const NO_AUTHENTICATION: u8 = 0;
const NO_METHOD: u8 = 0xff;
const CONNECT: u8 = 1;
const IPV4: u8 = 1;
const NAME: u8 = 3;
const IPV6: u8 = 4;
const SUCCEEDED: u8 = 0;
const NO_SUCH_COMMAND: u8 = 7;
const NO_SUCH_ADDRESS: u8 = 8;

/// What an application asks for.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Target {
    Address(SocketAddr),
    Host { name: Arc<str>, port: u16 },
}

/// Why there is nothing to connect to.
#[derive(Debug, thiserror::Error)]
enum BadRequest {
    #[error("the application speaks version {version} of SOCKS, expected {VERSION}")]
    Version { version: u8 },
    #[error("the application wants to authenticate itself, by one of the methods {methods:?}")]
    Methods { methods: Vec<u8> },
    #[error("the application sends command {command}, expected CONNECT ({CONNECT})")]
    Command { command: u8 },
    #[error("the application names an address of type {kind}")]
    AddressType { kind: u8 },
    #[error("the application names a host that is not text")]
    Name,
    #[error("reading the application's SOCKS request")]
    Io(#[from] io::Error),
    #[error("the application did not say within {LIMIT:?} what it wants")]
    Silent,
}

/// Serves one accepted connection to its end, and keeps its place in the pod's share as long.
pub(super) async fn serve(
    thread: Rc<DataThread>,
    pod: Rc<LocalPod>,
    tcp: TcpStream,
    client: SocketAddr,
    _place: Held,
) {
    let _open = thread.metrics.socket(Reporter::Source);
    let _load = thread.loaded();
    // Boxed: what it takes to connect is not kept while bytes are copied.
    let connecting = Box::pin(connect(&thread, &pod, tcp, client));
    if let Some(connected) = connecting.await {
        connected.carry(&thread).await;
    }
}

async fn connect(
    thread: &Rc<DataThread>,
    pod: &Rc<LocalPod>,
    mut near: TcpStream,
    client: SocketAddr,
) -> Option<Connected> {
    let to = near.local_addr().unwrap_or(client);
    let asked = match timeout(LIMIT, negotiate(&mut near)).await.unwrap_or(Err(BadRequest::Silent))
    {
        Ok(Target::Address(address)) => Ok(address),
        Ok(Target::Host { name, port }) => resolve(thread, pod, &name, port).await,
        Err(error) => Err(Failure::new(Reason::SocksRequest, &error)),
    };
    let original = asked.and_then(|original| {
        match original.ip().is_loopback() && original.port() == SOCKS_PORT {
            true => {
                let error = format!("{original} is the port that asks for it");
                Err(Failure { reason: Reason::OwnPort, error })
            }
            false => Ok(original),
        }
    });
    match original {
        Ok(original) => {
            let client = as_seen_outside(client, &pod.pod.ips, original.is_ipv4());
            outbound::connect(thread, pod, near, client, original).await
        }
        Err(failure) => {
            let client = as_seen_outside(client, &pod.pod.ips, to.is_ipv4());
            outbound::refuse(Reporter::Source, near, client, to, &failure);
            None
        }
    }
}

/// The application's own port at the pod's address, of the family that is dialed if the pod has one: its loopback address
/// tells nobody else who it is.
fn as_seen_outside(client: SocketAddr, ips: &[IpAddr], is_v4: bool) -> SocketAddr {
    let ip = ips.iter().min_by_key(|ip| ip.is_ipv4() != is_v4);
    SocketAddr::new(ip.copied().unwrap_or(client.ip()), client.port())
}

/// Hears what the application wants, and tells it that it gets it.
async fn negotiate(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
) -> Result<Target, BadRequest> {
    let [version, count] = bytes(stream).await?;
    if version != VERSION {
        return Err(BadRequest::Version { version });
    }
    let mut methods = vec![0; count.into()];
    stream.read_exact(&mut methods).await?;
    if !methods.contains(&NO_AUTHENTICATION) {
        stream.write_all(&[VERSION, NO_METHOD]).await?;
        return Err(BadRequest::Methods { methods });
    }
    stream.write_all(&[VERSION, NO_AUTHENTICATION]).await?;
    let [version, command, _reserved, kind] = bytes(stream).await?;
    if version != VERSION {
        return Err(BadRequest::Version { version });
    }
    if command != CONNECT {
        answer(stream, NO_SUCH_COMMAND).await?;
        return Err(BadRequest::Command { command });
    }
    let target = match kind {
        IPV4 => address(Ipv4Addr::from(bytes::<4>(stream).await?).into(), port(stream).await?),
        IPV6 => address(Ipv6Addr::from(bytes::<16>(stream).await?).into(), port(stream).await?),
        NAME => {
            let [length] = bytes(stream).await?;
            let mut name = vec![0; length.into()];
            stream.read_exact(&mut name).await?;
            let name = str::from_utf8(&name).map_err(|_| BadRequest::Name)?;
            let port = port(stream).await?;
            // Some clients write addresses as names.
            match name.parse() {
                Ok(ip) => address(ip, port),
                Err(_) => Target::Host { name: name.to_ascii_lowercase().into(), port },
            }
        }
        kind => {
            answer(stream, NO_SUCH_ADDRESS).await?;
            return Err(BadRequest::AddressType { kind });
        }
    };
    answer(stream, SUCCEEDED).await?;
    Ok(target)
}

fn address(ip: IpAddr, port: u16) -> Target {
    Target::Address(SocketAddr::new(ip.to_canonical(), port))
}

/// No address is given with it: the pod's own is the one that the next hop sees.
async fn answer(stream: &mut (impl AsyncWrite + Unpin), code: u8) -> io::Result<()> {
    stream.write_all(&[VERSION, code, 0, IPV4, 0, 0, 0, 0, 0, 0]).await
}

async fn bytes<const N: usize>(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}

async fn port(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<u16> {
    stream.read_u16().await
}

/// The address of a service of that name that the pod may see, else what the node's resolver says.
async fn resolve(
    thread: &DataThread,
    pod: &LocalPod,
    name: &Arc<str>,
    port: u16,
) -> Result<SocketAddr, Failure> {
    let node = &thread.node;
    let source = pod.pod.workload(&node.store).await;
    let source = source.map_err(|error| Failure::new(Reason::UnknownSource, &error))?;
    if let Some(ip) = address_of(&node.store.load(), &source, &node.network, name) {
        return Ok(SocketAddr::new(ip, port));
    }
    let like = source.addresses.first().copied().unwrap_or(Ipv4Addr::UNSPECIFIED.into());
    let party = labels::party(&source, source.identity());
    let ips = node.names.resolve(name, like, &party).await?;
    // Never empty; the first is the one of the pod's own family.
    ips.first().map(|ip| SocketAddr::new(*ip, port)).ok_or_else(|| Failure {
        reason: Reason::DialFailed,
        error: format!("{name} has no address"),
    })
}

/// A service's address in the pod's network, of the pod's own family if there is one.
fn address_of(snapshot: &Snapshot, source: &Workload, network: &str, name: &str) -> Option<IpAddr> {
    let service = snapshot.service_by_host(name, &source.namespace)?;
    let singles = service.addresses.iter().filter(|address| {
        *address.network == *network && address.net.prefix_len() == address.net.max_prefix_len()
    });
    let is_v4 = source.addresses.first().is_none_or(IpAddr::is_ipv4);
    singles.map(|address| address.net.addr()).min_by_key(|ip| ip.is_ipv4() != is_v4)
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;
    use crate::next_hop::{
        fixture::{NAMESPACE, snapshot},
        source,
    };

    /// What comes of `asked`, and what the application is answered.
    async fn check(asked: &[u8], expected: &str, expected_answer: &[u8]) {
        let (mut near, mut far) = duplex(1024);
        near.write_all(asked).await.unwrap();
        // What follows the request is the connection's own.
        near.write_all(b"GET").await.unwrap();
        let found = match negotiate(&mut far).await {
            Ok(target) => {
                let [a, b, c] = bytes(&mut far).await.unwrap();
                assert_eq!(&[a, b, c], b"GET");
                format!("{target:?}")
            }
            Err(error) => error.to_string(),
        };
        drop(far);
        let mut answered = Vec::new();
        near.read_to_end(&mut answered).await.unwrap();
        assert_eq!((found.as_str(), answered.as_slice()), (expected, expected_answer));
    }

    /// The answers to a request that is accepted.
    const SUCCESS: &[u8] = &[5, 0, 5, 0, 0, 1, 0, 0, 0, 0, 0, 0];

    #[tokio::test]
    async fn what_is_asked_for_is_an_address_or_a_name() {
        let v4 = [5, 1, 0, 5, 1, 0, 1, 10, 1, 0, 2, 0, 80];
        check(&v4, "Address(10.1.0.2:80)", SUCCESS).await;
        let mut v6 = vec![5, 2, 2, 0, 5, 1, 0, 4];
        v6.extend("fd00::2".parse::<Ipv6Addr>().unwrap().octets());
        v6.extend([0x1f, 0x90]);
        check(&v6, "Address([fd00::2]:8080)", SUCCESS).await;
        let named = |name: &str| {
            let mut bytes = vec![5, 1, 0, 5, 1, 0, 3, name.len() as u8];
            bytes.extend(name.as_bytes());
            bytes.extend([0, 80]);
            bytes
        };
        let host = "Host { name: \"cart.shop\", port: 80 }";
        check(&named("Cart.shop"), host, SUCCESS).await;
        check(&named("10.1.0.2"), "Address(10.1.0.2:80)", SUCCESS).await;
        check(&named("::ffff:10.1.0.2"), "Address(10.1.0.2:80)", SUCCESS).await;
    }

    #[tokio::test]
    async fn what_is_not_done_is_refused_in_the_protocols_words() {
        check(b"GET / HTTP/1.1", "the application speaks version 71 of SOCKS, expected 5", &[])
            .await;
        let methods = "the application wants to authenticate itself, by one of the methods [2]";
        check(&[5, 1, 2], methods, &[5, 0xff]).await;
        let command = "the application sends command 3, expected CONNECT (1)";
        let refused = |code| [5, 0, 5, code, 0, 1, 0, 0, 0, 0, 0, 0];
        check(&[5, 1, 0, 5, 3, 0, 1], command, &refused(7)).await;
        let kind = "the application names an address of type 9";
        check(&[5, 1, 0, 5, 1, 0, 9], kind, &refused(8)).await;
        let name = "the application names a host that is not text";
        check(&[5, 1, 0, 5, 1, 0, 3, 1, 0xff, 0, 80], name, &[5, 0]).await;
    }

    #[test]
    fn the_client_is_the_pod_in_the_family_that_is_dialed() {
        let ips: Vec<IpAddr> = ["10.0.0.1", "fd00::1"].map(|ip| ip.parse().unwrap()).into();
        for (ips, is_v4, expected) in [
            (&ips[..], true, "10.0.0.1:4000"),
            (&ips[..], false, "[fd00::1]:4000"),
            (&ips[..1], false, "10.0.0.1:4000"),
            (&ips[1..], true, "[fd00::1]:4000"),
            (&[], true, "127.0.0.1:4000"),
        ] {
            let client = "127.0.0.1:4000".parse().unwrap();
            assert_eq!(as_seen_outside(client, ips, is_v4).to_string(), expected);
        }
    }

    #[test]
    fn a_name_is_the_address_of_a_service_first() {
        let snapshot = snapshot(
            "
            workload web  10.0.0.1,fd00::1  hbone
            workload six  fd00::6           hbone
            service  cart [fd01::2]:80,10.1.0.2:80 -> web:8080
            service  bare -:80              -> web:8080
            service  wide 10.2.0.0/16:80    -> web:8080
            ",
        );
        let of = |from: &str, name: &str| {
            let source = source(&snapshot, NAMESPACE, from, from).unwrap();
            address_of(&snapshot, source, &source.network, name).map(|ip| ip.to_string())
        };
        assert_eq!(of("web", "cart.shop").as_deref(), Some("10.1.0.2"));
        assert_eq!(of("six", "cart.shop").as_deref(), Some("fd01::2"));
        for none in ["bare.shop", "wide.shop", "example.com"] {
            assert_eq!(of("web", none), None, "{none}");
        }
    }
}
