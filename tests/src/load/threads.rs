//! One runtime for each core, and what every one of them needs.
//!
//! In: how many threads, and an async job for each. Out: the jobs' results. Sockets of a thread stay on it; listeners share
//! their port.

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::thread;

use anyhow::{Context as _, Result, anyhow};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::LocalSet;

/// How many threads can run at once: what the system has, or the mask this process is confined to.
pub fn available() -> usize {
    thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

/// Runs `job` on `count` threads, each with its own runtime and its own number.
///
/// # Errors
/// The first that a job gives.
pub fn run<T, J>(count: usize, job: J) -> Result<Vec<T>>
where
    T: Send,
    J: AsyncFn(usize) -> Result<T> + Sync,
{
    thread::scope(|scope| {
        let job = &job;
        let one = move |number| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            LocalSet::new().block_on(&runtime, job(number))
        };
        let threads: Vec<_> = (0..count).map(|number| scope.spawn(move || one(number))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?)
            .collect()
    })
}

/// A listener that shares its port with those of other threads.
///
/// # Errors
/// If the address cannot be bound.
pub fn listen(address: SocketAddr) -> Result<TcpListener> {
    let bind = || -> io::Result<TcpListener> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        if address.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(4096)?;
        TcpListener::from_std(socket.into())
    };
    bind().with_context(|| format!("listening on {address}"))
}

/// A connection whose small messages go out at once.
///
/// # Errors
/// If it is not made.
pub async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
