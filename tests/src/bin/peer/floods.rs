//! Peers that send too much of something, or take and answer nothing. They write frames themselves: no library would.
//!
//! In: what to do, and how many peers do it at once. Out: how often each end was seen. A flood goes on until the daemon
//! ends it; a peer that holds still goes on until it is killed.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, split};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::{LIMIT, Tunnel, tls};

/// What a peer does without end.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Abuse {
    /// Sends empty SETTINGS.
    Settings,
    /// Sends PING.
    Pings,
    /// Makes requests and takes each back at once.
    RapidReset,
    /// Makes a request whose headers are a megabyte, and begins another header block that does not end.
    Headers,
    /// Makes a request whose headers go on in CONTINUATION without end.
    Continuation,
    /// Sends the beginning of a TLS handshake, a byte every now and then.
    Drip,
    /// Asks a source for more than anybody has, grants every window, and reads nothing at all.
    Unread,
    /// Opens one stream and answers whatever it is asked, for as long as it is let.
    Hold,
}

/// A flood that is not ended after so much is not going to be.
const MOST: usize = 512 << 20;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const END_HEADERS: u8 = 4;
/// Kinds of frames (RFC 9113 §6).
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

/// Has `peers` do it, and counts their ends.
pub(crate) async fn abuse(
    tunnel: Tunnel,
    what: Abuse,
    authority: String,
    peers: usize,
) -> Result<Vec<String>> {
    let mut tasks = JoinSet::new();
    for _ in 0..peers {
        let (tunnel, authority) = (tunnel.clone(), authority.clone());
        tasks.spawn(async move { one(&tunnel, what, &authority).await });
    }
    let mut ends: BTreeMap<String, usize> = BTreeMap::new();
    while let Some(end) = tasks.join_next().await {
        *ends.entry(end??).or_default() += 1;
    }
    Ok(ends.into_iter().map(|(end, count)| format!("{count} {end}")).collect())
}

async fn one(tunnel: &Tunnel, what: Abuse, authority: &str) -> Result<String> {
    if what == Abuse::Drip {
        return drip(tunnel).await;
    }
    let stream = match tls::connect(tunnel).await? {
        Ok(stream) => stream,
        Err(why) => return Ok(why),
    };
    let (mut reader, mut writer) = split(stream);
    writer.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await?;
    if what == Abuse::Unread {
        writer.write_all(&greedy(authority)).await?;
        writer.flush().await?;
        return std::future::pending().await;
    }
    if what == Abuse::Hold {
        writer.write_all(&connect(1, authority)).await?;
        writer.flush().await?;
        return answer(reader, writer).await;
    }
    let flooding = async {
        let (mut sent, mut turn) = (0, 0);
        while sent < MOST {
            let bytes = flood(what, authority, turn);
            if writer.write_all(&bytes).await.is_err() || writer.flush().await.is_err() {
                return None;
            }
            (sent, turn) = (sent + bytes.len(), turn + 1);
        }
        Some("not stopped")
    };
    // The daemon may have said why before it stopped reading.
    let ending = async {
        let mut said = Vec::new();
        let _ = reader.read_to_end(&mut said).await;
        said
    };
    let (flooded, said) = tokio::join!(timeout(LIMIT, flooding), timeout(LIMIT, ending));
    Ok(match (flooded, said) {
        (Ok(None), Ok(said)) => format!("ended: {}", farewell(&said)),
        (Ok(Some(words)), _) => words.to_owned(),
        (Err(_), _) | (_, Err(_)) => "not ended in time".to_owned(),
    })
}

/// What one turn of a flood sends.
fn flood(what: Abuse, authority: &str, turn: u32) -> Vec<u8> {
    const EACH: u32 = 100;
    match what {
        Abuse::Settings => frame(SETTINGS, 0, 0, &[]).repeat(100),
        Abuse::Pings => frame(PING, 0, 0, &[0; 8]).repeat(100),
        Abuse::RapidReset => (0..EACH)
            .flat_map(|n| {
                let stream = 2 * (turn * EACH + n) + 1;
                // CANCEL, as a client that has lost its patience says.
                [connect(stream, authority), frame(RESET, 0, stream, &[0, 0, 0, 8])].concat()
            })
            .collect(),
        Abuse::Headers => {
            let megabyte = [&request(authority)[..], &header().repeat(10_000)].concat();
            frame(HEADERS, END_HEADERS, 2 * turn + 1, &megabyte[..1_000_000])
        }
        Abuse::Continuation if turn == 0 => frame(HEADERS, 0, 1, &request(authority)),
        Abuse::Continuation => frame(CONTINUATION, 0, 1, &header().repeat(100)),
        Abuse::Drip | Abuse::Unread | Abuse::Hold => unreachable!("they are no floods"),
    }
}

/// The head of a TLS record and its beginning, as slowly as somebody who hopes to be overlooked.
async fn drip(tunnel: &Tunnel) -> Result<String> {
    let mut stream = TcpStream::connect(tunnel.to).await?;
    let hello = [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &[0; 500]].concat();
    let dripping = async {
        for byte in hello {
            if stream.write_all(&[byte]).await.is_err() {
                return "ended";
            }
            sleep(Duration::from_millis(250)).await;
        }
        "not ended"
    };
    Ok(timeout(LIMIT, dripping).await.unwrap_or("not ended").to_owned())
}

/// A request to a source of bytes, how many it wants (all that a number can say), and every window open.
fn greedy(authority: &str) -> Vec<u8> {
    let most = (i32::MAX as u32 - 65_535).to_be_bytes();
    [
        connect(1, authority),
        frame(WINDOW_UPDATE, 0, 0, &most),
        frame(WINDOW_UPDATE, 0, 1, &most),
        frame(DATA, 0, 1, &u64::MAX.to_be_bytes()),
    ]
    .concat()
}

/// Acknowledges settings and answers pings until the daemon ends it.
async fn answer(
    mut reader: impl tokio::io::AsyncRead + Unpin,
    mut writer: impl tokio::io::AsyncWrite + Unpin,
) -> Result<String> {
    loop {
        let mut head = [0; 9];
        if reader.read_exact(&mut head).await.is_err() {
            return Ok("ended".to_owned());
        }
        let mut payload = vec![0; length(&head)];
        if reader.read_exact(&mut payload).await.is_err() {
            return Ok("ended".to_owned());
        }
        let is_answer = head[4] & 1 == 1;
        if [SETTINGS, PING].contains(&head[3]) && !is_answer {
            let payload = if head[3] == PING { &*payload } else { &[] };
            writer.write_all(&frame(head[3], 1, 0, payload)).await?;
            writer.flush().await?;
        }
    }
}

/// The code of the last GOAWAY in what was received.
fn farewell(mut said: &[u8]) -> String {
    let mut code = "without a word".to_owned();
    while let Some(head) = said.first_chunk::<9>() {
        let end = (9 + length(head)).min(said.len());
        if let (GOAWAY, Some(&[number])) = (head[3], said.get(16..17)) {
            code = format!("code {number}");
        }
        said = &said[end..];
    }
    code
}

fn length(head: &[u8; 9]) -> usize {
    usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2])
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("frames here are small").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

fn connect(stream: u32, authority: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &request(authority))
}

/// `:method: CONNECT` and `:authority`, in HPACK without an index or compression.
fn request(authority: &str) -> Vec<u8> {
    let length = u8::try_from(authority.len()).expect("an authority is short");
    [b"\x02\x07CONNECT\x01", &[length][..], authority.as_bytes()].concat()
}

/// One more header: never indexed, a name of one byte, a value of 100.
fn header() -> Vec<u8> {
    [&b"\x10\x01x\x64"[..], &[b'v'; 100]].concat()
}
