//! Moves bytes from one TCP connection to another, or back into the same.
//!
//! In: two connections and the thread's buffer. Out: how many bytes, when the source ends. The buffer is borrowed only while
//! bytes are in it: an idle connection holds none.

use std::cell::RefCell;
use std::io;
use std::net::Shutdown;

use socket2::SockRef;
use tokio::net::TcpStream;

/// What one read takes: where two-hop relays stop gaining (the buffer still fits the second-level cache).
pub const READ_BYTES: usize = 256 * 1024;

/// Moves everything from `from` to `to`, then ends `to`'s sending side.
///
/// # Errors
/// If either connection fails.
pub async fn pump(from: &TcpStream, to: &TcpStream, buffer: &RefCell<Vec<u8>>) -> io::Result<u64> {
    let mut moved = 0;
    loop {
        from.readable().await?;
        let Some((count, rest)) = step(from, to, &mut buffer.borrow_mut())? else { continue };
        if count == 0 {
            SockRef::from(to).shutdown(Shutdown::Write)?;
            return Ok(moved);
        }
        moved += count as u64;
        write_all(to, &rest).await?;
    }
}

/// Reads once and writes what is taken at once; the rest is given back. Nothing if there was nothing to read.
fn step(
    from: &TcpStream,
    to: &TcpStream,
    buffer: &mut [u8],
) -> io::Result<Option<(usize, Vec<u8>)>> {
    let Some(count) = ready(from.try_read(buffer))? else { return Ok(None) };
    let written = if count == 0 { 0 } else { ready(to.try_write(&buffer[..count]))?.unwrap_or(0) };
    Ok(Some((count, buffer[written..count].to_vec())))
}

/// Writes all of `bytes`.
///
/// # Errors
/// If the connection fails.
pub async fn write_all(to: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match ready(to.try_write(bytes))? {
            Some(written) => bytes = &bytes[written..],
            None => to.writable().await?,
        }
    }
    Ok(())
}

/// Tells "not ready" apart from failures.
fn ready(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(count) => Ok(Some(count)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}
