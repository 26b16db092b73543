//! A peer of the mesh's tunnel port that does what it is told, however wrong: a witness of what the daemon answers.
//!
//! In: an address, perhaps a certificate, and what to send. Out: one line for each thing done, in words that tests compare.
#![forbid(unsafe_code)]

mod floods;
mod tls;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use clap::{Args, Parser, Subcommand};
use h2::client::SendRequest;
use http::{Method, Request};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use floods::Abuse;

/// Longer than any deadline of the daemon's.
const LIMIT: Duration = Duration::from_secs(40);

/// Talks to a tunnel port.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    job: Job,
}

#[derive(Subcommand)]
enum Job {
    /// Sends requests in one tunnel and prints each answer's status, or why there was none.
    Ask {
        #[command(flatten)]
        tunnel: Tunnel,
        /// Each a method and an authority: `CONNECT 10.1.2.3:80`.
        requests: Vec<String>,
    },
    /// Opens streams that stay open, and prints when the daemon allows no more.
    Flood {
        #[command(flatten)]
        tunnel: Tunnel,
        /// The authority of every stream.
        #[arg(long)]
        authority: String,
        /// How many at most.
        #[arg(long, default_value_t = 5000)]
        streams: usize,
    },
    /// Has many peers at once do one thing without end, and prints how often each of their ends was seen.
    Abuse {
        #[command(flatten)]
        tunnel: Tunnel,
        /// What they do.
        what: Abuse,
        /// The authority of their requests.
        #[arg(long)]
        authority: String,
        /// How many peers.
        #[arg(long, default_value_t = 1)]
        peers: usize,
    },
    /// Sends a text that is no TLS, and prints how the connection ends.
    Garbage {
        /// The tunnel port.
        #[arg(long)]
        to: SocketAddr,
    },
    /// Sends nothing at all, and prints how the connection ends.
    Stall {
        /// The tunnel port.
        #[arg(long)]
        to: SocketAddr,
    },
}

#[derive(Args, Clone)]
struct Tunnel {
    /// The tunnel port.
    #[arg(long)]
    to: SocketAddr,
    /// The certificate chain to present, in PEM; none if not given.
    #[arg(long, requires = "key")]
    certificate: Option<PathBuf>,
    /// Its key.
    #[arg(long)]
    key: Option<PathBuf>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let said = match Cli::parse().job {
        Job::Ask { tunnel, requests } => ask(&tunnel, &requests).await?,
        Job::Flood { tunnel, authority, streams } => {
            vec![flood(&tunnel, &authority, streams).await?]
        }
        Job::Abuse { tunnel, what, authority, peers } => {
            floods::abuse(tunnel, what, authority, peers).await?
        }
        Job::Garbage { to } => {
            vec![send_and_wait(to, b"GET / HTTP/1.1\r\nHost: a tunnel\r\n\r\n").await?]
        }
        Job::Stall { to } => vec![send_and_wait(to, b"").await?],
    };
    println!("{}", said.join("\n"));
    Ok(())
}

async fn ask(tunnel: &Tunnel, requests: &[String]) -> Result<Vec<String>> {
    let mut client = match open(tunnel).await? {
        Ok(client) => client,
        Err(why) => return Ok(vec![why]),
    };
    let mut answers = Vec::new();
    for request in requests {
        answers.push(one(&mut client, request).await?);
    }
    Ok(answers)
}

async fn one(client: &mut SendRequest<bytes::Bytes>, request: &str) -> Result<String> {
    let (method, authority) =
        request.split_once(' ').context("a request is a method and an authority")?;
    let method: Method = method.parse()?;
    let uri = if method == Method::CONNECT {
        authority.to_owned()
    } else {
        format!("https://{authority}/")
    };
    let request = Request::builder().method(method).uri(uri).body(())?;
    let answer = async {
        let mut client = client.clone().ready().await?;
        let (response, _stream) = client.send_request(request, false)?;
        response.await
    };
    Ok(match timeout(LIMIT, answer).await {
        Ok(Ok(response)) => response.status().as_u16().to_string(),
        Ok(Err(error)) => format!("refused: {error}"),
        Err(_) => "no answer".to_owned(),
    })
}

async fn flood(tunnel: &Tunnel, authority: &str, streams: usize) -> Result<String> {
    let mut client = match open(tunnel).await? {
        Ok(client) => client,
        Err(why) => return Ok(why),
    };
    let mut held = Vec::new();
    for count in 0..streams {
        let request = Request::builder().method(Method::CONNECT).uri(authority).body(())?;
        // A client that honours the limit is told to wait while all streams that it may have are open.
        let Ok(ready) = timeout(Duration::from_secs(1), client.ready()).await else {
            return Ok(format!("held back after {count}"));
        };
        client = ready.context("the tunnel ended")?;
        held.push(client.send_request(request, false)?);
        // A stream counts as open when the connection's task has taken it up.
        tokio::task::yield_now().await;
    }
    Ok(format!("not stopped after {streams}"))
}

/// TLS and HTTP/2; the inner error is the daemon's refusal, in words.
async fn open(tunnel: &Tunnel) -> Result<Result<SendRequest<bytes::Bytes>, String>> {
    let opening = async {
        let tls = match tls::connect(tunnel).await? {
            Ok(tls) => tls,
            Err(why) => return Ok(Err(why)),
        };
        match h2::client::handshake(tls).await {
            Ok((client, connection)) => {
                tokio::spawn(connection);
                Ok(Ok(client))
            }
            Err(error) => Ok(Err(format!("refused: {error}"))),
        }
    };
    timeout(LIMIT, opening).await.unwrap_or_else(|_| Ok(Err("no answer".to_owned())))
}

async fn send_and_wait(to: SocketAddr, bytes: &[u8]) -> Result<String> {
    let mut stream = TcpStream::connect(to).await.context("connecting")?;
    let start = Instant::now();
    stream.write_all(bytes).await?;
    // A TLS alert may come first: what matters is that the end comes.
    let end = timeout(LIMIT, stream.read_to_end(&mut Vec::new())).await;
    let after = start.elapsed().as_secs();
    Ok(match end {
        Ok(Ok(_)) => format!("closed after {after} s"),
        Ok(Err(error)) => format!("cut off after {after} s: {error}"),
        Err(_) => "not closed".to_owned(),
    })
}
