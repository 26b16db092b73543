//! Asks the servers that a pod would have asked itself.
//!
//! In: a request that is not for the mesh to answer. Out: a server's answer, whatever it says, or why there is none. The
//! query leaves from the pod's namespace, each under an identifier and a port of chance.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::{Instant, timeout, timeout_at},
};

use super::{
    ResolvConf,
    wire::{Request, Transport, finish_answer, matches},
};
use crate::capture::{Capture, Netns};

/// How long one server is waited for, where the pod's resolver was told nothing.
const TRY_LIMIT: Duration = Duration::from_secs(2);
/// How long the client is kept waiting. The C library gives up after five seconds, and would rather be told why.
const LIMIT: Duration = Duration::from_millis(4500);
/// The longest datagram there is.
const MAX_DATAGRAM: usize = 65535;

/// Why no server has answered.
#[derive(Debug, thiserror::Error)]
pub(super) enum UpstreamError {
    /// Neither the pod nor the daemon knows one.
    #[error("no server is known")]
    NoServer,
    /// None answered in time.
    #[error("no answer from {servers:?} in time")]
    Timeout { servers: Vec<SocketAddr> },
    /// The last one could not be asked.
    #[error("asking {server}: {source}")]
    Failed { server: SocketAddr, source: io::Error },
}

/// Whom to ask, in order: the server that the application asked; the others of its resolver, if it was one of these;
/// the resolver's, if it is not known which was asked; and the daemon's own, if there is none.
pub(super) fn servers(
    asked: Option<SocketAddr>,
    conf: &ResolvConf,
    own: &[SocketAddr],
) -> Vec<SocketAddr> {
    let known = &conf.nameservers;
    match asked {
        Some(asked) => match known.iter().position(|server| *server == asked) {
            Some(first) => known[first..].iter().chain(&known[..first]).copied().collect(),
            None => vec![asked],
        },
        None if known.is_empty() => own.to_vec(),
        None => known.clone(),
    }
}

/// Asks the servers in turn, as often as the pod's resolver would.
pub(super) async fn forward(
    capture: &Capture,
    netns: &Netns,
    request: &Request,
    servers: &[SocketAddr],
    conf: &ResolvConf,
) -> Result<Vec<u8>, UpstreamError> {
    let end = Instant::now() + LIMIT;
    let mut error = UpstreamError::NoServer;
    for _ in 0..conf.attempts {
        for server in servers {
            let until = end.min(Instant::now() + conf.timeout.unwrap_or(TRY_LIMIT));
            let mut query = request.bytes().to_vec();
            query[..2].copy_from_slice(&rand::random::<[u8; 2]>());
            let asking = async {
                match request.transport() {
                    Transport::Udp => by_datagram(capture, netns, *server, &query).await,
                    Transport::Tcp => by_connection(capture, netns, *server, &query).await,
                }
            };
            match timeout_at(until, asking).await {
                Ok(Ok(answer)) => return Ok(finish_answer(request, answer)),
                Ok(Err(source)) => error = UpstreamError::Failed { server: *server, source },
                Err(_) => error = UpstreamError::Timeout { servers: servers.to_vec() },
            }
            if Instant::now() >= end {
                return Err(error);
            }
        }
    }
    Err(error)
}

/// The socket takes datagrams from the server only; of these, those that are no answer to the query are passed over.
async fn by_datagram(
    capture: &Capture,
    netns: &Netns,
    server: SocketAddr,
    query: &[u8],
) -> io::Result<Vec<u8>> {
    let socket = capture.datagram_socket(netns, server)?;
    socket.send(query).await?;
    loop {
        // The room for an answer is there only while one is read: many queries wait at once.
        socket.readable().await?;
        let mut answer = vec![0; MAX_DATAGRAM];
        match socket.try_recv(&mut answer) {
            Ok(length) if matches(query, &answer[..length]) => {
                return Ok(answer[..length].to_vec());
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

async fn by_connection(
    capture: &Capture,
    netns: &Netns,
    server: SocketAddr,
    query: &[u8],
) -> io::Result<Vec<u8>> {
    let mut stream = capture.dial(netns, server).await?;
    let length = u16::try_from(query.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), query].concat()).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    if matches(query, &answer) {
        Ok(answer)
    } else {
        Err(io::Error::other("the answer is to another question"))
    }
}

/// Waits for something of a client for at most `limit`.
pub(super) async fn within<T>(
    limit: Duration,
    work: impl Future<Output = io::Result<T>>,
) -> io::Result<T> {
    timeout(limit, work).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(asked: Option<&str>, conf: &str, expected: &[&str]) {
        let own = ["10.0.0.1:53".parse().unwrap()];
        let asked = asked.map(|asked| asked.parse().unwrap());
        let found = servers(asked, &ResolvConf::parse(conf), &own);
        let found: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn the_server_that_was_asked_comes_first_and_the_pods_others_stand_in_for_it() {
        let conf = "nameserver 10.1.0.1\nnameserver 10.1.0.2\nnameserver 10.1.0.3\n";
        check(Some("10.1.0.2:53"), conf, &["10.1.0.2:53", "10.1.0.3:53", "10.1.0.1:53"]);
        check(Some("192.0.2.1:53"), conf, &["192.0.2.1:53"]);
        check(None, conf, &["10.1.0.1:53", "10.1.0.2:53", "10.1.0.3:53"]);
        check(None, "", &["10.0.0.1:53"]);
        check(Some("10.1.0.2:53"), "", &["10.1.0.2:53"]);
    }
}
