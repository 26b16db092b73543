//! Pods as Istio's node agent announces them (node-agent protocol, package `istio.workload.zds`).
//!
//! In: packets of the agent's `SOCK_SEQPACKET` socket, each one message with at most one descriptor. Out: calls on the
//! [`PodTable`] and one acknowledgement per message, sent before the next message is read. [`Session`] is the protocol
//! without the socket.
//!
//! Where Istio's ztunnel ends its process (a breach of the protocol), the reason is acknowledged, the connection closed
//! and made again: pods are served on meanwhile.

mod backoff;
mod session;
mod socket;
#[cfg(test)]
mod tests;

use std::{cell::Cell, io, path::Path, rc::Rc};

use proto::zds::{Ack, Version, WorkloadResponse, ZdsHello, workload_response};
use tokio::{net::UnixStream, sync::watch};

pub use self::session::{Handled, Session, Snapshot, Violation};
use self::{
    backoff::{Backoff, Reached},
    socket::{MAX_MESSAGE, Packet},
};
use super::PodTable;

/// Keeps a connection to the agent for ever, and tells how far its snapshot is. Pods keep being served while there is no
/// connection. Runs on the control thread's `LocalSet`.
pub async fn run<T: PodTable>(path: &Path, table: Rc<T>, tell: watch::Sender<Snapshot>) {
    let mut backoff = Backoff::new();
    loop {
        let reached = Cell::new(Reached::Nothing);
        let end = converse(path, &*table, &tell, &reached).await;
        tell.send_replace(Snapshot::Pending);
        let pause = backoff.after(reached.get());
        tracing::warn!(agent = %path.display(), reason = %end, retry_in = ?pause, "no connection to the node agent");
        tokio::time::sleep(pause).await;
    }
}

/// One connection, until it ends; returns why it did.
async fn converse(
    path: &Path,
    table: &impl PodTable,
    tell: &watch::Sender<Snapshot>,
    reached: &Cell<Reached>,
) -> io::Error {
    let talk = async {
        let agent = socket::connect(path)?;
        reached.set(Reached::Connected);
        socket::send(&agent, &ZdsHello { version: Version::V1.into() }).await?;
        reached.set(Reached::Greeted);
        let mut session = Session::new();
        loop {
            let handled = match socket::receive(&agent).await? {
                Packet::Whole(message, descriptors) => session.handle(&message, descriptors, table),
                Packet::Cut => Err(Violation::Cut),
            };
            match handled {
                Ok(Handled::Answer(result)) => {
                    acknowledge(&agent, result.err().unwrap_or_default()).await?;
                }
                Ok(Handled::SnapshotSent(snapshot)) => {
                    reached.set(Reached::Snapshot);
                    tell.send_replace(snapshot);
                    acknowledge(&agent, String::new()).await?;
                }
                Err(violation) => {
                    acknowledge(&agent, violation.to_string()).await?;
                    return Err::<(), _>(io::Error::new(io::ErrorKind::InvalidData, violation));
                }
            }
        }
    };
    match talk.await {
        Ok(()) => io::ErrorKind::UnexpectedEof.into(),
        Err(error) => error,
    }
}

/// Answers the one message that is outstanding; an empty `error` accepts it.
async fn acknowledge(agent: &UnixStream, error: String) -> io::Result<()> {
    let ack = workload_response::Payload::Ack(Ack { error: shorten(error) });
    socket::send(agent, &WorkloadResponse { payload: Some(ack) }).await
}

/// Cuts an error so that its message fits a packet.
fn shorten(mut error: String) -> String {
    let mut end = error.len().min(MAX_MESSAGE - 64);
    while !error.is_char_boundary(end) {
        end -= 1;
    }
    error.truncate(end);
    error
}
