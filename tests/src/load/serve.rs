//! The servers of the load tool.
//!
//! In: addresses. Out: nothing; they serve until the process ends. **echo** sends back what comes. **sink** reads to the end and
//! answers with the count. **checksum** answers with the count and the sum of [`pattern`](super::pattern). **source** is told how
//! many bytes of that pattern to send. **parting** says first how its last connection ended, ends its own half, and reads on.
//! **reset** cuts the connection off at the first byte.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use anyhow::Result;
use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinSet, spawn_local};

use super::pattern::{Checksum, Pattern};
use super::pump::{READ_BYTES, pump};
use super::threads;

/// Where each server listens.
#[derive(Clone, Debug, Default)]
pub struct Addresses {
    /// Of the echo server.
    pub echo: Vec<SocketAddr>,
    /// Of the sink.
    pub sink: Vec<SocketAddr>,
    /// Of the sink that sums.
    pub checksum: Vec<SocketAddr>,
    /// Of the source.
    pub source: Vec<SocketAddr>,
    /// Of the server that ends its half first.
    pub parting: Vec<SocketAddr>,
    /// Of the server that cuts off.
    pub reset: Vec<SocketAddr>,
}

/// What **parting** says of a connection that was cut off, in the place of its bytes.
pub const CUT_OFF: u64 = u64::MAX;

/// Connections whose ends **parting** remembers.
const REMEMBERED: usize = 256;

/// Ends of **parting**'s connections, by their numbers. Ends of different connections overtake one another on their way,
/// so each is told apart.
static ENDS: Mutex<Ends> = Mutex::new(Ends { next: 0, last: VecDeque::new() });

struct Ends {
    next: u64,
    last: VecDeque<(u64, u64)>,
}

impl Ends {
    /// A number for a connection, and what it is told: the number, then a number and an end for each that has ended.
    fn begin(&mut self) -> (u64, Vec<u8>) {
        let number = self.next;
        self.next += 1;
        let ends = self.last.iter().flat_map(|(number, end)| [*number, *end]);
        (number, [number].into_iter().chain(ends).flat_map(u64::to_be_bytes).collect())
    }

    fn end(&mut self, number: u64, end: u64) {
        if self.last.len() == REMEMBERED {
            self.last.pop_front();
        }
        self.last.push_back((number, end));
    }
}

#[derive(Clone, Copy)]
enum Role {
    Echo,
    Sink,
    Checksum,
    Source,
    Parting,
    Reset,
}

/// Serves on `count` threads until the process ends.
///
/// # Errors
/// If an address cannot be listened on.
pub fn serve(addresses: &Addresses, count: usize) -> Result<()> {
    threads::run(count, async |_| {
        let buffer = Rc::new(RefCell::new(vec![0; READ_BYTES]));
        let mut acceptors = JoinSet::new();
        for (role, list) in [
            (Role::Echo, &addresses.echo),
            (Role::Sink, &addresses.sink),
            (Role::Checksum, &addresses.checksum),
            (Role::Source, &addresses.source),
            (Role::Parting, &addresses.parting),
            (Role::Reset, &addresses.reset),
        ] {
            for address in list {
                let listener = threads::listen(*address)?;
                acceptors.spawn_local(accept(listener, role, Rc::clone(&buffer)));
            }
        }
        while acceptors.join_next().await.is_some() {}
        Ok(())
    })
    .map(drop)
}

async fn accept(listener: TcpListener, role: Role, buffer: Rc<RefCell<Vec<u8>>>) {
    loop {
        // Out of files, or a connection that was reset in the queue: the next one may do better.
        let Ok((stream, _)) = listener.accept().await else {
            tokio::task::yield_now().await;
            continue;
        };
        let buffer = Rc::clone(&buffer);
        // A client that goes away ends its own connection and nothing else.
        spawn_local(async move { answer(stream, role, &buffer).await.ok() });
    }
}

async fn answer(mut stream: TcpStream, role: Role, buffer: &RefCell<Vec<u8>>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    match role {
        Role::Echo => pump(&stream, &stream, buffer).await.map(drop),
        Role::Sink => {
            let count = drain(&stream, buffer, |_| ()).await?;
            stream.write_u64(count).await
        }
        Role::Checksum => {
            let mut sum = Checksum::new();
            let count = drain(&stream, buffer, |bytes| sum.add(bytes)).await?;
            stream.write_u64(count).await?;
            stream.write_u64(sum.value()).await
        }
        Role::Source => send_pattern(&mut stream).await,
        Role::Parting => {
            let (number, told) = ends().begin();
            stream.write_all(&told).await?;
            stream.shutdown().await?;
            let count = drain(&stream, buffer, |_| ()).await;
            ends().end(number, *count.as_ref().unwrap_or(&CUT_OFF));
            count.map(drop)
        }
        Role::Reset => {
            stream.read_u8().await?;
            SockRef::from(&stream).set_linger(Some(Duration::ZERO))
        }
    }
}

fn ends() -> MutexGuard<'static, Ends> {
    ENDS.lock().expect("nothing panics while it is held")
}

/// Reads to the end, shows each piece to `see`, and counts.
async fn drain(
    stream: &TcpStream,
    buffer: &RefCell<Vec<u8>>,
    mut see: impl FnMut(&[u8]),
) -> io::Result<u64> {
    let mut total = 0;
    loop {
        stream.readable().await?;
        let mut buffer = buffer.borrow_mut();
        match stream.try_read(&mut buffer) {
            Ok(0) => return Ok(total),
            Ok(count) => {
                see(&buffer[..count]);
                total += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// Sends as many bytes as the client's first eight bytes say, or plain bytes without end.
async fn send_pattern(stream: &mut TcpStream) -> io::Result<()> {
    let wanted = stream.read_u64().await?;
    if wanted == super::bulk::ENDLESS {
        let block = vec![0x5a; READ_BYTES];
        loop {
            stream.write_all(&block).await?;
        }
    }
    let mut pattern = Pattern::new(wanted);
    while let Some(block) = pattern.next_block() {
        stream.write_all(block).await?;
    }
    stream.shutdown().await
}
