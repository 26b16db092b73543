//! The load tool's command line: `load serve`, and the clients, which print a report in JSON.
#![forbid(unsafe_code)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::Result;
use clap::{Args, Parser, Subcommand, ValueEnum};
use testbed::load::bulk::{self, Direction};
use testbed::load::serve::{self, Addresses};
use testbed::load::{Report, crowd, endings, names, threads};

/// Servers and clients that measure what an application sees.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    job: Job,
}

#[derive(Subcommand)]
enum Job {
    /// Serves until it is killed.
    Serve {
        /// Sends back what comes.
        #[arg(long)]
        echo: Vec<SocketAddr>,
        /// Reads to the end and answers with the count (8 bytes).
        #[arg(long)]
        sink: Vec<SocketAddr>,
        /// As the sink, and answers with the checksum too (8 bytes more).
        #[arg(long)]
        checksum: Vec<SocketAddr>,
        /// Sends as many bytes as the client's first 8 bytes say.
        #[arg(long)]
        source: Vec<SocketAddr>,
        /// Says how its last connection ended (8 bytes), ends its half, and reads on.
        #[arg(long)]
        parting: Vec<SocketAddr>,
        /// Cuts off at the first byte.
        #[arg(long)]
        reset: Vec<SocketAddr>,
        /// Threads; as many as there are cores if not given.
        #[arg(long)]
        threads: Option<usize>,
    },
    /// Moves as many bytes as it can.
    Bulk {
        #[command(flatten)]
        target: Target,
        /// Which way: up needs a sink, down a source.
        #[arg(long)]
        direction: Way,
        /// Connections.
        #[arg(long, default_value_t = 1)]
        streams: usize,
    },
    /// Moves an exact number of bytes and compares checksums: up needs a checksum server, down a source.
    Transfer {
        #[command(flatten)]
        target: Target,
        /// Which way.
        #[arg(long)]
        direction: Way,
        /// How many.
        #[arg(long)]
        bytes: u64,
    },
    /// Requests and answers on connections that stay (echo server).
    Rr {
        #[command(flatten)]
        target: Target,
        /// Connections.
        #[arg(long, default_value_t = 1)]
        connections: usize,
        /// Bytes of a request and of its answer.
        #[arg(long, default_value_t = 100)]
        size: usize,
    },
    /// A connection for each request (echo server).
    Crr {
        #[command(flatten)]
        target: Target,
        /// How many at once.
        #[arg(long, default_value_t = 1)]
        parallel: usize,
        /// Bytes of a request and of its answer.
        #[arg(long, default_value_t = 100)]
        size: usize,
    },
    /// Checks that half-closes and resets arrive as such, in both directions.
    Endings {
        /// The parting server.
        #[arg(long)]
        parting: SocketAddr,
        /// The resetting server; without it only what the parting server sees is checked.
        #[arg(long)]
        reset: Option<SocketAddr>,
    },
    /// Makes one exchange, and resets the connection.
    CutOff {
        /// An echo server.
        #[arg(long)]
        to: SocketAddr,
    },
    /// Asks a DNS server for the IPv4 addresses of a name, in datagrams.
    Names {
        #[command(flatten)]
        target: Target,
        /// The name.
        #[arg(long)]
        name: String,
    },
    /// Sends a text in one datagram.
    Say {
        /// Where to.
        #[arg(long)]
        to: SocketAddr,
        /// What.
        text: String,
    },
    /// Makes connections (echo server), prints the report, and holds them until standard input ends.
    Idle {
        #[command(flatten)]
        target: Target,
        /// Connections.
        #[arg(long)]
        connections: usize,
    },
}

#[derive(Args)]
struct Target {
    /// The server.
    #[arg(long)]
    to: SocketAddr,
    /// How long.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
}

#[derive(Clone, Copy, ValueEnum)]
enum Way {
    Up,
    Down,
}

impl From<Way> for Direction {
    fn from(way: Way) -> Direction {
        match way {
            Way::Up => Direction::Up,
            Way::Down => Direction::Down,
        }
    }
}

fn main() -> Result<()> {
    match Cli::parse().job {
        Job::Serve { echo, sink, checksum, source, parting, reset, threads } => {
            let count = threads.unwrap_or_else(threads::available);
            serve::serve(&Addresses { echo, sink, checksum, source, parting, reset }, count)
        }
        Job::Bulk { target, direction, streams } => {
            print(&bulk::bulk(target.to, direction.into(), streams, target.lasting())?)
        }
        Job::Transfer { target, direction, bytes } => {
            print(&bulk::transfer(target.to, direction.into(), bytes)?)
        }
        Job::Rr { target, connections, size } => {
            print(&crowd::request_response(target.to, connections, size, target.lasting())?)
        }
        Job::Crr { target, parallel, size } => {
            print(&crowd::connect_request_response(target.to, parallel, size, target.lasting())?)
        }
        Job::Names { target, name } => print(&names::ask(target.to, &name, target.lasting())?),
        Job::Endings { parting, reset } => endings::check(parting, reset),
        Job::CutOff { to } => endings::cut_off(to),
        Job::Say { to, text } => say(to, &text),
        Job::Idle { target, connections } => crowd::idle(target.to, connections),
    }
}

impl Target {
    fn lasting(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }
}

fn say(to: SocketAddr, text: &str) -> Result<()> {
    let any: IpAddr =
        if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    UdpSocket::bind((any, 0))?.send_to(text.as_bytes(), to)?;
    Ok(())
}

fn print(report: &Report) -> Result<()> {
    println!("{}", serde_json::to_string(report)?);
    Ok(())
}
