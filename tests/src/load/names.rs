//! Asks a DNS server for one name, again and again.
//!
//! In: a server, a name, how long. Out: how long each answer took, seen from a socket like the C library's: connected, one
//! question at a time. The message is written by hand; what is in the answer counts only as far as there are records.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::{Report, Tally};

/// An answer that takes longer is lost.
const PATIENCE: Duration = Duration::from_secs(2);
const HEADER: usize = 12;

/// Asks for the IPv4 addresses of `name` for `lasting`, from a new socket for each question.
///
/// # Errors
/// If there is no socket, or the name is none.
pub fn ask(server: SocketAddr, name: &str, lasting: Duration) -> Result<Report> {
    let mut query = query(name)?;
    let (mut tally, start) = (Tally::default(), Instant::now());
    while start.elapsed() < lasting {
        query[..2].copy_from_slice(&u16::to_be_bytes((tally.count & 0xffff) as u16));
        let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any).context("opening a socket")?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let began = Instant::now();
        match exchange(&socket, server, &query) {
            Ok(()) => tally.record(began.elapsed()),
            Err(error) => tally.fail(&format!("{error:#}")),
        }
    }
    tally.report(start.elapsed(), "op/s", 1.0)
}

fn exchange(socket: &UdpSocket, server: SocketAddr, query: &[u8]) -> Result<()> {
    socket.connect(server)?;
    socket.send(query)?;
    let mut answer = [0; 1500];
    let length = socket.recv(&mut answer)?;
    ensure!(length > query.len() && answer[..2] == query[..2], "the answer is to another question");
    let (code, records) = (answer[3] & 0xf, u16::from_be_bytes([answer[6], answer[7]]));
    ensure!(code == 0 && records > 0, "code {code}, {records} records");
    Ok(())
}

/// A question for A records, with recursion desired.
fn query(name: &str) -> Result<Vec<u8>> {
    let mut query = vec![0; HEADER];
    (query[2], query[5]) = (1, 1);
    for label in name.split('.').filter(|label| !label.is_empty()) {
        let length = u8::try_from(label.len()).ok().filter(|length| *length < 64);
        query.push(length.with_context(|| format!("{label} is too long"))?);
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    Ok(query)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_written_label_by_label() {
        let written = query("a.bc.").unwrap();
        assert_eq!(written[HEADER..], *b"\x01a\x02bc\0\0\x01\0\x01");
        assert!(query(&"x".repeat(64)).is_err());
    }
}
