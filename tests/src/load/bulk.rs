//! Clients that move many bytes.
//!
//! In: where to, which way, how long or how much. Out: a rate, or for a transfer also the proof that every byte came, in order.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout_at;

use super::pattern::{Checksum, Pattern, checksum_of};
use super::pump::READ_BYTES;
use super::{Report, Tally, threads};

/// Asks a source for bytes without end.
pub const ENDLESS: u64 = u64::MAX;

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Direction {
    /// From the client to a sink.
    Up,
    /// From a source to the client.
    Down,
}

/// Moves bytes over `streams` connections for `lasting`.
///
/// # Errors
/// If no thread can run.
pub fn bulk(
    to: SocketAddr,
    direction: Direction,
    streams: usize,
    lasting: Duration,
) -> Result<Report> {
    let count = threads::available().min(streams);
    let start = Instant::now();
    let tallies = threads::run(count, async |thread| {
        let mut tasks = JoinSet::new();
        for _ in (thread..streams).step_by(count) {
            match direction {
                Direction::Up => tasks.spawn_local(async move { upload(to, lasting).await }),
                Direction::Down => tasks.spawn_local(async move { download(to, lasting).await }),
            };
        }
        let mut tally = Tally::default();
        while let Some(done) = tasks.join_next().await {
            match done? {
                Ok(bytes) => tally.count += bytes,
                Err(error) => tally.fail(&format!("{error:#}")),
            }
        }
        Ok(tally)
    })?;
    let lasted = start.elapsed();
    let mut total = Tally::default();
    tallies.into_iter().for_each(|tally| total.add(tally));
    total.report(lasted, "MB/s", 1e6)
}

/// Sends for `lasting`; the sink's count is what arrived.
async fn upload(to: SocketAddr, lasting: Duration) -> Result<u64> {
    let mut stream = threads::connect(to).await.context("connecting")?;
    let end = (Instant::now() + lasting).into();
    let block = vec![0x5a; READ_BYTES];
    let sending = async {
        loop {
            stream.write_all(&block).await?;
        }
    };
    // The time running out is the end of sending; a write that it cuts off has sent a part, which the sink counts.
    if let Ok(Err::<(), std::io::Error>(error)) = timeout_at(end, sending).await {
        return Err(error).context("sending");
    }
    stream.shutdown().await.context("ending the stream")?;
    stream.read_u64().await.context("waiting for the sink's count")
}

/// Receives for `lasting`.
async fn download(to: SocketAddr, lasting: Duration) -> Result<u64> {
    let mut stream = threads::connect(to).await.context("connecting")?;
    stream.write_u64(ENDLESS).await?;
    let end = (Instant::now() + lasting).into();
    let mut buffer = vec![0; READ_BYTES];
    let mut total = 0;
    while let Ok(read) = timeout_at(end, stream.read(&mut buffer)).await {
        let count = read.context("receiving")?;
        ensure!(count > 0, "the source ended early");
        total += count as u64;
    }
    Ok(total)
}

/// Moves exactly `bytes` over one connection and compares both ends' checksums.
///
/// # Errors
/// If any byte is missing, added or changed, or the connection fails.
pub fn transfer(to: SocketAddr, direction: Direction, bytes: u64) -> Result<Report> {
    let start = Instant::now();
    threads::run(1, async |_| {
        let stream = threads::connect(to).await.context("connecting")?;
        match direction {
            Direction::Up => send_whole(stream, bytes).await,
            Direction::Down => receive_whole(stream, bytes).await,
        }
    })?;
    Tally { count: bytes, ..Tally::default() }.report(start.elapsed(), "MB/s", 1e6)
}

async fn send_whole(mut stream: TcpStream, bytes: u64) -> Result<()> {
    let mut pattern = Pattern::new(bytes);
    while let Some(block) = pattern.next_block() {
        stream.write_all(block).await.context("sending")?;
    }
    stream.shutdown().await.context("ending the stream")?;
    let count = stream.read_u64().await.context("waiting for the count")?;
    let sum = stream.read_u64().await.context("waiting for the checksum")?;
    compare(bytes, count, pattern.checksum(), sum)
}

async fn receive_whole(mut stream: TcpStream, bytes: u64) -> Result<()> {
    stream.write_u64(bytes).await?;
    let mut buffer = vec![0; READ_BYTES];
    let (mut count, mut sum) = (0, Checksum::new());
    loop {
        let read = stream.read(&mut buffer).await.context("receiving")?;
        if read == 0 {
            return compare(bytes, count, checksum_of(bytes), sum.value());
        }
        sum.add(&buffer[..read]);
        count += read as u64;
    }
}

fn compare(sent: u64, received: u64, sum_sent: u64, sum_received: u64) -> Result<()> {
    ensure!(sent == received, "{sent} bytes were sent and {received} received");
    ensure!(
        sum_sent == sum_received,
        "the checksum sent is {sum_sent:016x}, the one received {sum_received:016x}"
    );
    Ok(())
}
