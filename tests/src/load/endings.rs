//! Checks that the ends of a connection arrive as they were sent: a half that ends, and a connection that is cut off.
//!
//! In: the addresses of the servers **parting** and **reset**. Out: nothing, or which end was lost on the way.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::serve::CUT_OFF;
use super::threads;

/// How long an end may take to arrive.
const LIMIT: Duration = Duration::from_secs(10);

/// Bytes sent after the server has ended its half.
const AFTERWARDS: usize = 1_000_000;

/// Tries every way to end.
///
/// # Errors
/// The first end that did not arrive.
pub fn check(parting: SocketAddr, reset: Option<SocketAddr>) -> Result<()> {
    threads::run(1, async |_| {
        timeout(LIMIT, half_ended_by_server(parting))
            .await
            .context("half ended by the server: no end")??;
        timeout(LIMIT, cut_off_by_client(parting))
            .await
            .context("cut off by the client: no end")??;
        let Some(reset) = reset else { return Ok(()) };
        timeout(LIMIT, cut_off_by_server(reset)).await.context("cut off by the server: no end")?
    })
    .map(drop)
}

/// Makes one exchange with an echo server, and resets the connection.
///
/// # Errors
/// If there is no exchange.
pub fn cut_off(to: SocketAddr) -> Result<()> {
    let exchange = async |_| {
        let mut stream = threads::connect(to).await.context("connecting")?;
        stream.write_u8(7).await.context("sending")?;
        stream.read_u8().await.context("waiting for the answer")?;
        Ok(SockRef::from(&stream).set_linger(Some(Duration::ZERO))?)
    };
    threads::run(1, exchange).map(drop)
}

/// The server ends its half first; what the client sends afterwards arrives whole.
async fn half_ended_by_server(to: SocketAddr) -> Result<()> {
    let (mut stream, number) = begin(to).await?;
    stream.write_all(&vec![7; AFTERWARDS]).await.context("sending after the server's end")?;
    drop(stream);
    expect_end(to, number, AFTERWARDS as u64).await.context("half ended by the server")
}

/// The client cuts off; the server must not take it for an orderly end.
async fn cut_off_by_client(to: SocketAddr) -> Result<()> {
    let (stream, number) = begin(to).await?;
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    drop(stream);
    expect_end(to, number, CUT_OFF).await.context("cut off by the client")
}

/// The server cuts off; the client must not take it for an orderly end.
async fn cut_off_by_server(to: SocketAddr) -> Result<()> {
    let mut stream = threads::connect(to).await.context("connecting")?;
    stream.write_u8(7).await.context("sending")?;
    match stream.read(&mut [0]).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
        Err(error) => Err(error).context("cut off by the server: expected a reset"),
        Ok(count) => bail!("cut off by the server: expected a reset, read {count} bytes"),
    }
}

/// A connection whose server has ended its half, and its number.
async fn begin(to: SocketAddr) -> Result<(TcpStream, u64)> {
    let (stream, told) = greeted(to).await?;
    let number = told.first().context("the server's half ended before its greeting")?;
    Ok((stream, *number))
}

/// Asks until the server has seen the end of the connection of that number.
async fn expect_end(to: SocketAddr, number: u64, expected: u64) -> Result<()> {
    loop {
        let (_stream, told) = greeted(to).await.context("asking how it ended")?;
        let ends = told.get(1..).unwrap_or_default().chunks_exact(2);
        if let Some(end) = ends.map(|of| (of[0], of[1])).find(|(ended, _)| *ended == number) {
            ensure!(end.1 == expected, "the server counted {}, expected {expected}", end.1);
            return Ok(());
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// A new connection and the numbers that the server tells before it ends its half.
async fn greeted(to: SocketAddr) -> Result<(TcpStream, Vec<u64>)> {
    let mut stream = threads::connect(to).await.context("connecting")?;
    let mut told = Vec::new();
    stream.read_to_end(&mut told).await.context("reading the greeting")?;
    let numbers = told.chunks_exact(8).map(|number| number.try_into().map(u64::from_be_bytes));
    Ok((stream, numbers.collect::<Result<_, _>>()?))
}
