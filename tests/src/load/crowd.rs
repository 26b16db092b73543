//! Clients that make many small exchanges or many connections.
//!
//! In: an echo server and how many. Out: rates and latencies, or a crowd of connections that is held.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{Report, Tally, threads};

/// After this an exchange counts as failed.
const LIMIT: Duration = Duration::from_secs(30);
/// How many connections of a crowd are being made at the same time on one thread.
const ARRIVING: usize = 64;

/// Requests and answers of `size` bytes, one after the other, on each of `connections`.
///
/// # Errors
/// If no thread can run.
pub fn request_response(
    to: SocketAddr,
    connections: usize,
    size: usize,
    lasting: Duration,
) -> Result<Report> {
    measure(connections, lasting, "op/s", async |streams: usize| {
        let crowd = connect_all(to, streams).await;
        let mut tasks = JoinSet::new();
        let mut tally =
            Tally { errors: crowd.errors, first_error: crowd.first_error, ..Tally::default() };
        let start = Instant::now();
        for stream in crowd.streams {
            tasks.spawn_local(exchange_until(stream, size, start + lasting));
        }
        while let Some(done) = tasks.join_next().await {
            tally.add(done?);
        }
        Ok((tally, start.elapsed()))
    })
}

/// Connects, exchanges `size` bytes and closes, over and over, `parallel` at once.
///
/// # Errors
/// If no thread can run.
pub fn connect_request_response(
    to: SocketAddr,
    parallel: usize,
    size: usize,
    lasting: Duration,
) -> Result<Report> {
    measure(parallel, lasting, "conn/s", async |workers: usize| {
        let mut tasks = JoinSet::new();
        let start = Instant::now();
        for _ in 0..workers {
            tasks.spawn_local(connect_until(to, size, start + lasting));
        }
        let mut tally = Tally::default();
        while let Some(done) = tasks.join_next().await {
            tally.add(done?);
        }
        Ok((tally, start.elapsed()))
    })
}

/// Makes `connections`, each proved by one exchange, prints the report, and holds them until standard input ends.
///
/// # Errors
/// If no thread can run, or a connection was lost while it was held.
pub fn idle(to: SocketAddr, connections: usize) -> Result<()> {
    let crowd = threads::run(1, async |_| {
        let crowd = connect_all(to, connections).await;
        let held = u32::try_from(crowd.streams.len())?;
        let report = Report {
            value: held.into(),
            unit: "connections".to_owned(),
            count: held.into(),
            errors: crowd.errors,
            first_error: crowd.first_error,
            ..Report::default()
        };
        println!("{}", serde_json::to_string(&report)?);
        std::io::stdout().flush()?;
        std::io::stdin().read_to_end(&mut Vec::new())?;
        let mut lost = 0;
        for mut stream in crowd.streams {
            lost += usize::from(exchange(&mut stream, &mut [7]).await.is_err());
        }
        Ok(lost)
    })?;
    let lost: usize = crowd.iter().sum();
    ensure!(lost == 0, "{lost} connections were lost while they were held");
    Ok(())
}

/// Divides `total` over the threads, runs `part` on each, and adds up; the longest thread's time counts.
fn measure<P>(total: usize, lasting: Duration, unit: &str, part: P) -> Result<Report>
where
    P: AsyncFn(usize) -> Result<(Tally, Duration)> + Sync,
{
    let count = threads::available().min(total);
    let parts =
        threads::run(count, async |thread| part((thread..total).step_by(count).len()).await)?;
    let mut sum = Tally::default();
    let mut lasted = lasting;
    for (tally, took) in parts {
        sum.add(tally);
        lasted = lasted.max(took);
    }
    sum.report(lasted, unit, 1.0)
}

#[derive(Default)]
struct Crowd {
    streams: Vec<TcpStream>,
    errors: u64,
    first_error: Option<String>,
}

async fn connect_all(to: SocketAddr, count: usize) -> Crowd {
    let gate = Rc::new(Semaphore::new(ARRIVING));
    let mut tasks = JoinSet::new();
    for _ in 0..count {
        let gate = Rc::clone(&gate);
        tasks.spawn_local(async move {
            let _turn = gate.acquire().await;
            let arrive = async {
                let mut stream = threads::connect(to).await.context("connecting")?;
                exchange(&mut stream, &mut [7]).await?;
                anyhow::Ok(stream)
            };
            timeout(LIMIT, arrive).await.context("no answer in time")?
        });
    }
    let mut crowd = Crowd::default();
    while let Some(done) = tasks.join_next().await {
        match done.map_err(anyhow::Error::from).flatten() {
            Ok(stream) => crowd.streams.push(stream),
            Err(error) => {
                crowd.errors += 1;
                crowd.first_error.get_or_insert_with(|| format!("{error:#}"));
            }
        }
    }
    crowd
}

async fn exchange_until(mut stream: TcpStream, size: usize, end: Instant) -> Tally {
    let mut tally = Tally::default();
    let mut message = vec![0x5a; size];
    let mut now = Instant::now();
    while now < end {
        if let Err(error) = exchange(&mut stream, &mut message).await {
            tally.fail(&format!("{error:#}"));
            break;
        }
        let done = Instant::now();
        tally.record(done - now);
        now = done;
    }
    tally
}

async fn connect_until(to: SocketAddr, size: usize, end: Instant) -> Tally {
    let mut tally = Tally::default();
    let mut message = vec![0x5a; size];
    let mut now = Instant::now();
    while now < end {
        let once = async {
            let mut stream = threads::connect(to).await.context("connecting")?;
            exchange(&mut stream, &mut message).await
        };
        let done = timeout(LIMIT, once).await;
        let took = now.elapsed();
        match done {
            Ok(Ok(())) => tally.record(took),
            Ok(Err(error)) => tally.fail(&format!("{error:#}")),
            Err(late) => tally.fail(&late),
        }
        now += took;
    }
    tally
}

/// Sends `message` and reads as many bytes back.
async fn exchange(stream: &mut TcpStream, message: &mut [u8]) -> Result<()> {
    stream.write_all(message).await.context("sending")?;
    stream.read_exact(message).await.context("receiving").map(drop)
}
