//! How fast the tunnel is by itself: load, two proxies and a target in one process, over loopback.
//!
//! In: names of rows (all without one). Out: a line for each, with the CPU time of the two proxies' threads alone. There
//! is no capture, policy or metric in the path: `cargo xtask bench` measures the mesh. For numbers that mean something
//! run it with a congestion control that does not pace loopback:
//!
//! ```text
//! cargo build --release -p mesh --example tunnel_speed
//! unshare -n sh -c 'ip link set lo up; sysctl -qw net.ipv4.tcp_congestion_control=reno; tunnel_speed'
//! ```

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use http::HeaderMap;
use mesh::{
    hbone::{ByteCounters, ConnectRequest, HboneConfig, Incoming, Pool, PoolKey, Tunnel, splice},
    identity::{Credential, LocalCa, Spiffe},
    policy::originated,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    runtime::{Builder, LocalOptions, LocalRuntime},
    task::spawn_local,
};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const ROW_TIME: Duration = Duration::from_secs(2);
const MESSAGE_BYTES: usize = 100;
const PIECE_BYTES: usize = 256 * 1024;

fn main() -> Result<()> {
    let wanted: Vec<String> = std::env::args().skip(1).collect();
    let path = Path::build()?;
    let rows: &[(&str, &dyn Fn() -> Result<()>)] = &[
        ("up1", &|| path.bulk("up1", path.sink, 1, write_all)),
        ("down1", &|| path.bulk("down1", path.source, 1, read_all)),
        ("up8", &|| path.bulk("up8", path.sink, 8, write_all)),
        ("down8", &|| path.bulk("down8", path.source, 8, read_all)),
        ("rr1", &|| path.messages("rr1", 1, Reuse::Connection)),
        ("rr64", &|| path.messages("rr64", 64, Reuse::Connection)),
        ("crr1", &|| path.messages("crr1", 1, Reuse::Nothing)),
        ("crr8", &|| path.messages("crr8", 8, Reuse::Nothing)),
        ("idle", &|| path.idle()),
    ];
    for (name, row) in rows {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            row()?;
        }
    }
    Ok(())
}

/// The addresses that lead through the tunnel to each kind of target, and the threads of the proxies.
struct Path {
    sink: SocketAddr,
    source: SocketAddr,
    echo: SocketAddr,
    proxies: [String; 2],
}

#[derive(Clone, Copy, Eq, PartialEq)]
enum Reuse {
    Connection,
    Nothing,
}

impl Path {
    fn build() -> Result<Self> {
        let ca = LocalCa::new("cluster.local")?;
        let name = |account| Spiffe::new("cluster.local", "shop", account);
        let web = Arc::new(ca.credential(&name("web")?)?);
        let cart = Arc::new(ca.credential(&name("cart")?)?);
        let targets = [serve_each(read_all)?, serve_each(write_all)?, serve_echo()?];
        let (hbone, inbound) = start(move |ready| Box::pin(inbound(cart, ready)))?;
        let key = PoolKey {
            source: name("web")?,
            expected: Arc::new([name("cart")?]),
            dial: hbone[0],
            workload: None,
        };
        let (entries, outbound) = start(move |ready| Box::pin(outbound(web, key, targets, ready)))?;
        let [sink, source, echo] = entries[..] else { anyhow::bail!("one entry for each target") };
        Ok(Self { sink, source, echo, proxies: [inbound, outbound] })
    }

    fn cpu(&self) -> Result<Duration> {
        self.proxies.iter().map(|task| cpu_of(task)).sum()
    }

    fn bulk(
        &self,
        name: &str,
        to: SocketAddr,
        streams: usize,
        load: fn(std::net::TcpStream, &AtomicU64, &AtomicBool) -> io::Result<()>,
    ) -> Result<()> {
        let (bytes, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let workers: Vec<_> = (0..streams)
            .map(|_| {
                let (bytes, stop) = (Arc::clone(&bytes), Arc::clone(&stop));
                thread::spawn(move || load(std::net::TcpStream::connect(to)?, &bytes, &stop))
            })
            .collect();
        thread::sleep(ROW_TIME / 4);
        let (before, cpu, begun) = (bytes.load(Ordering::Relaxed), self.cpu()?, Instant::now());
        thread::sleep(ROW_TIME);
        let moved = (bytes.load(Ordering::Relaxed) - before) as f64;
        let (cpu, time) = (self.cpu()? - cpu, begun.elapsed());
        stop.store(true, Ordering::Relaxed);
        for worker in workers {
            worker.join().expect("a worker does not panic")?;
        }
        println!(
            "{name:6} {:8.0} MB/s   {:5.2} CPU s/GB",
            moved / 1e6 / time.as_secs_f64(),
            cpu.as_secs_f64() / (moved / 1e9)
        );
        Ok(())
    }

    fn messages(&self, name: &str, connections: usize, reuse: Reuse) -> Result<()> {
        let echo = self.echo;
        let runtime =
            Builder::new_current_thread().enable_all().build_local(LocalOptions::default())?;
        let (cpu, begun) = (self.cpu()?, Instant::now());
        let mut times = runtime.block_on(async {
            let workers: Vec<_> =
                (0..connections).map(|_| spawn_local(ping_pong(echo, begun, reuse))).collect();
            let mut times = Vec::new();
            for worker in workers {
                times.append(&mut worker.await??);
            }
            anyhow::Ok(times)
        })?;
        let (cpu, time) = (self.cpu()? - cpu, begun.elapsed());
        times.sort_unstable();
        let quantile = |part: f64| times[(times.len() as f64 * part) as usize].as_micros();
        println!(
            "{name:6} {:8.0} ops/s  {:5.1} CPU µs/op  p50 {} µs  p99 {} µs",
            times.len() as f64 / time.as_secs_f64(),
            cpu.as_secs_f64() * 1e6 / times.len() as f64,
            quantile(0.5),
            quantile(0.99)
        );
        Ok(())
    }

    /// Load, proxies and target are one process, so the number is the sum of both proxies' parts, and a little more.
    fn idle(&self) -> Result<()> {
        const CONNECTIONS: usize = 4000;
        let before = resident_bytes()?;
        let mut held = Vec::with_capacity(CONNECTIONS);
        for _ in 0..CONNECTIONS {
            let mut connection = std::net::TcpStream::connect(self.echo)?;
            connection.write_all(&[0; MESSAGE_BYTES])?;
            connection.read_exact(&mut [0; MESSAGE_BYTES])?;
            held.push(connection);
        }
        let each = (resident_bytes()? - before) / CONNECTIONS as u64;
        println!("idle   {each:8} B per connection in both proxies, the target's task included");
        Ok(())
    }
}

async fn ping_pong(echo: SocketAddr, begun: Instant, reuse: Reuse) -> io::Result<Vec<Duration>> {
    let mut times = Vec::new();
    let mut message = [7; MESSAGE_BYTES];
    let mut kept = None;
    while begun.elapsed() < ROW_TIME {
        let start = Instant::now();
        let mut tcp = match kept.take() {
            Some(tcp) => tcp,
            None => TcpStream::connect(echo).await?,
        };
        tcp.set_nodelay(true)?;
        tcp.write_all(&message).await?;
        tcp.read_exact(&mut message).await?;
        times.push(start.elapsed());
        match reuse {
            Reuse::Connection => kept = Some(tcp),
            // Without TIME_WAIT, which would use up the ports.
            Reuse::Nothing => tcp.set_zero_linger()?,
        }
    }
    Ok(times)
}

struct Uncounted;

impl ByteCounters for Uncounted {
    fn sent(&self, _: u64) {}
    fn received(&self, _: u64) {}
}

type Listening = mpsc::Sender<Vec<SocketAddr>>;
type Proxy = std::pin::Pin<Box<dyn Future<Output = Result<()>>>>;

/// Runs a proxy on a thread of its own: where it listens, and the thread's name in `/proc`.
fn start(
    proxy: impl FnOnce(Listening) -> Proxy + Send + 'static,
) -> Result<(Vec<SocketAddr>, String)> {
    let (listening, listens) = mpsc::channel();
    let (task, tasks) = mpsc::channel();
    thread::spawn(move || -> Result<()> {
        task.send(std::fs::read_link("/proc/thread-self")?.to_string_lossy().into_owned())?;
        data_runtime()?.block_on(proxy(listening))
    });
    Ok((listens.recv()?, tasks.recv()?))
}

fn data_runtime() -> io::Result<LocalRuntime> {
    Builder::new_current_thread()
        .event_interval(8)
        .enable_all()
        .build_local(LocalOptions::default())
}

async fn outbound(
    credential: Arc<Credential>,
    key: PoolKey,
    targets: [SocketAddr; 3],
    listening: Listening,
) -> Result<()> {
    let pool = Pool::new(HboneConfig::default());
    let mut entries = Vec::new();
    for target in targets {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        entries.push(listener.local_addr()?);
        let (pool, key, credential) = (pool.clone(), key.clone(), Arc::clone(&credential));
        spawn_local(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let (pool, key, credential) = (pool.clone(), key.clone(), Arc::clone(&credential));
                spawn_local(async move {
                    tcp.set_nodelay(true)?;
                    let request =
                        ConnectRequest { authority: target.into(), headers: HeaderMap::new() };
                    let (stream, _) = pool
                        .open(&key, &credential, || request.clone(), TcpStream::connect)
                        .await?;
                    splice(&originated(), tcp, stream, &Uncounted, std::future::pending()).await;
                    anyhow::Ok(())
                });
            }
        });
    }
    listening.send(entries)?;
    std::future::pending().await
}

async fn inbound(credential: Arc<Credential>, listening: Listening) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    listening.send(vec![listener.local_addr()?])?;
    loop {
        let (tcp, _) = listener.accept().await?;
        let credential = Arc::clone(&credential);
        spawn_local(async move {
            let mut tunnel = Tunnel::accept(tcp, &credential, &HboneConfig::default()).await?;
            while let Some(incoming) = tunnel.next().await {
                spawn_local(connect(incoming?));
            }
            anyhow::Ok(())
        });
    }
}

async fn connect(incoming: Incoming) -> Result<()> {
    let target = incoming.authority.clone()?.to_string();
    let tcp = TcpStream::connect(target.parse::<SocketAddr>()?).await?;
    tcp.set_nodelay(true)?;
    let stream = incoming.accept(HeaderMap::new())?;
    splice(&originated(), tcp, stream, &Uncounted, std::future::pending()).await;
    Ok(())
}

fn write_all(mut tcp: std::net::TcpStream, bytes: &AtomicU64, stop: &AtomicBool) -> io::Result<()> {
    let piece = vec![7; PIECE_BYTES];
    while !stop.load(Ordering::Relaxed) {
        let count = tcp.write(&piece)?;
        bytes.fetch_add(count as u64, Ordering::Relaxed);
    }
    Ok(())
}

fn read_all(mut tcp: std::net::TcpStream, bytes: &AtomicU64, stop: &AtomicBool) -> io::Result<()> {
    let mut piece = vec![0; PIECE_BYTES];
    while !stop.load(Ordering::Relaxed) {
        let count = tcp.read(&mut piece)?;
        if count == 0 {
            break;
        }
        bytes.fetch_add(count as u64, Ordering::Relaxed);
    }
    Ok(())
}

/// A target with a thread for each connection.
fn serve_each(
    serve: fn(std::net::TcpStream, &AtomicU64, &AtomicBool) -> io::Result<()>,
) -> io::Result<SocketAddr> {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let addr = listener.local_addr()?;
    thread::spawn(move || {
        while let Ok((tcp, _)) = listener.accept() {
            let serving = move || {
                // The load ends such a connection without ceremony.
                let _ = serve(tcp, &AtomicU64::new(0), &AtomicBool::new(false));
            };
            thread::Builder::new().stack_size(64 * 1024).spawn(serving)?;
        }
        io::Result::Ok(())
    });
    Ok(addr)
}

fn serve_echo() -> Result<SocketAddr> {
    let serve = |listening: Listening| -> Proxy {
        Box::pin(async move {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
            listening.send(vec![listener.local_addr()?])?;
            loop {
                let (mut tcp, _) = listener.accept().await?;
                spawn_local(async move {
                    let mut message = [0; MESSAGE_BYTES];
                    tcp.set_nodelay(true)?;
                    while tcp.read_exact(&mut message).await.is_ok() {
                        tcp.write_all(&message).await?;
                    }
                    io::Result::Ok(())
                });
            }
        })
    };
    start(serve)?.0.first().copied().context("the echo server listens")
}

/// CPU time of a thread; the first number in `schedstat` is nanoseconds on a CPU.
fn cpu_of(task: &str) -> Result<Duration> {
    let text = std::fs::read_to_string(format!("/proc/{task}/schedstat"))?;
    let nanoseconds = text.split(' ').next().context("schedstat has numbers")?.parse()?;
    Ok(Duration::from_nanos(nanoseconds))
}

fn resident_bytes() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = text.split(' ').nth(1).context("statm has numbers")?.parse()?;
    Ok(pages * 4096)
}
