//! Checks that the ends of a connection arrive as they were sent: a half that ends, and a connection that is cut off.
//!
//! In: the addresses of the servers **parting** and **reset**. Out: nothing, or which end was lost on the way.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
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
    let mut stream = threads::connect(to).await.context("connecting")?;
    stream.read_u64().await.context("reading the greeting")?;
    let more = stream.read(&mut [0]).await.context("waiting for the server's end")?;
    ensure!(more == 0, "the server's half did not end");
    stream.write_all(&vec![7; AFTERWARDS]).await.context("sending after the server's end")?;
    drop(stream);
    wait_for_end(to, AFTERWARDS as u64).await.context("half ended by the server")
}

/// The client cuts off; the server must not take it for an orderly end.
async fn cut_off_by_client(to: SocketAddr) -> Result<()> {
    let mut stream = threads::connect(to).await.context("connecting")?;
    stream.read_u64().await.context("reading the greeting")?;
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    drop(stream);
    wait_for_end(to, CUT_OFF).await.context("cut off by the client")
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

/// Asks how the last connection ended until it is as `expected`. Asking makes a connection too, which must not end before the
/// answer has been compared: it is held open, and ends in its own way after that.
async fn wait_for_end(to: SocketAddr, expected: u64) -> Result<()> {
    let mut asked = Vec::new();
    let mut last = None;
    for _ in 0..100 {
        let mut stream = threads::connect(to).await.context("connecting to ask")?;
        let end = stream.read_u64().await.context("reading how it ended")?;
        if end == expected {
            return Ok(());
        }
        last = Some(end);
        asked.push(stream);
        sleep(Duration::from_millis(20)).await;
    }
    bail!("the server counted {last:?}, expected {expected}")
}
