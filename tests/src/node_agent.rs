//! Plays Istio's node agent towards a daemon: the listening end of the node-agent protocol (ZDS).
//!
//! In: pods of the testbed. Out: messages with real descriptors of their network namespaces, and the daemon's
//! acknowledgements. One message is outstanding at a time, as the real agent keeps it.

use std::fs::File;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType,
};

use crate::pod::Pod;
use crate::wait::PATIENCE;

/// The agent's socket.
#[derive(Debug)]
pub struct NodeAgent {
    listener: OwnedFd,
    path: PathBuf,
}

/// A daemon that has said hello.
#[derive(Debug)]
pub struct Greeted {
    socket: OwnedFd,
}

/// What the agent tells.
#[derive(Clone, Copy, Debug)]
pub enum Told<'a> {
    /// A pod, with its namespace.
    Add(&'a Pod),
    /// A pod whose namespace the agent does not know at the moment.
    Keep(&'a Pod),
    /// A pod that is gone.
    Del(&'a Pod),
    /// All pods have been told.
    SnapshotSent,
}

impl NodeAgent {
    /// Listens at `path`.
    ///
    /// # Errors
    /// If the socket cannot be made there.
    pub fn listen(path: &Path) -> Result<NodeAgent> {
        let kind = SocketType::SEQPACKET;
        let listener =
            rustix::net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
        rustix::net::bind(&listener, &SocketAddrUnix::new(path)?)
            .with_context(|| format!("listening on {}", path.display()))?;
        rustix::net::listen(&listener, 8)?;
        // accept() obeys it as well.
        set_socket_timeout(&listener, Timeout::Recv, Some(PATIENCE))?;
        Ok(NodeAgent { listener, path: path.to_owned() })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for a daemon and its hello.
    ///
    /// # Errors
    /// If none comes in time, or it begins with anything else.
    pub fn accept(&self) -> Result<Greeted> {
        let socket = rustix::net::accept_with(&self.listener, SocketFlags::CLOEXEC)
            .context("waiting for a daemon")?;
        set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
        let greeted = Greeted { socket };
        let hello = greeted.receive().context("waiting for the hello")?;
        // `version` (field 1) is V1 (1).
        ensure!(hello == [0x08, 0x01], "the hello is {hello:?}");
        Ok(greeted)
    }
}

impl Greeted {
    /// Tells one thing and waits for the acknowledgement: nothing, or why it is refused.
    ///
    /// # Errors
    /// If the connection ends, or the answer is no acknowledgement.
    pub fn tell(&self, told: Told<'_>) -> Result<Option<String>> {
        let netns = match told {
            Told::Add(pod) => Some(File::open(&pod.place().netns)?),
            Told::Keep(_) | Told::Del(_) | Told::SnapshotSent => None,
        };
        self.send(&told.message(), netns.as_ref())?;
        acknowledgement(&self.receive().context("waiting for the acknowledgement")?)
    }

    /// Whether the daemon has closed the connection; waits for it to say something or to go.
    ///
    /// # Errors
    /// If neither happens in time.
    pub fn is_closed(&self) -> Result<bool> {
        Ok(self.receive()?.is_empty())
    }

    fn send(&self, message: &[u8], netns: Option<&File>) -> Result<()> {
        let descriptors: Vec<_> = netns.iter().map(|netns| netns.as_fd()).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            let fits = ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
            ensure!(fits, "there is room for one descriptor");
        }
        let parts = [IoSlice::new(message)];
        rustix::net::sendmsg(&self.socket, &parts, &mut ancillary, SendFlags::NOSIGNAL)
            .context("telling the daemon")?;
        Ok(())
    }

    /// One packet; an empty one is the end of the connection.
    fn receive(&self) -> io::Result<Vec<u8>> {
        let mut packet = vec![0; 1024];
        let (count, _) =
            rustix::net::recv(&self.socket, packet.as_mut_slice(), RecvFlags::empty())?;
        packet.truncate(count);
        Ok(packet)
    }
}

impl Told<'_> {
    /// A `WorkloadRequest`: its fields are add 1, del 2, snapshot_sent 3, keep 5.
    fn message(self) -> Vec<u8> {
        match self {
            Told::Add(pod) => {
                let spec = pod.spec();
                let info = [
                    field(1, spec.name.as_bytes()),
                    field(2, spec.namespace.as_bytes()),
                    field(3, spec.service_account.as_bytes()),
                ];
                field(1, &[field(1, pod.uid().as_bytes()), field(2, &info.concat())].concat())
            }
            Told::Keep(pod) => field(5, &field(1, pod.uid().as_bytes())),
            Told::Del(pod) => field(2, &field(2, pod.uid().as_bytes())),
            Told::SnapshotSent => field(3, &[]),
        }
    }
}

/// A field of protobuf with a length. No message here is longer than two bytes of length can say.
fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let length = bytes.len();
    let mut field = vec![number << 3 | 2];
    match u8::try_from(length) {
        Ok(short) if short < 0x80 => field.push(short),
        _ => field.extend([(length & 0x7f) as u8 | 0x80, (length >> 7) as u8]),
    }
    field.extend(bytes);
    field
}

/// The error of a `WorkloadResponse { ack { error } }`, if it has one.
fn acknowledgement(packet: &[u8]) -> Result<Option<String>> {
    let content = |bytes: &[u8]| -> Option<Vec<u8>> {
        match bytes {
            [0x0a, length, rest @ ..] if *length < 0x80 => {
                Some(rest[..usize::from(*length)].into())
            }
            [0x0a, low, high, rest @ ..] => {
                let length = usize::from(*low & 0x7f) | usize::from(*high) << 7;
                Some(rest[..length].into())
            }
            _ => None,
        }
    };
    let Some(ack) = content(packet) else { bail!("no acknowledgement: {packet:?}") };
    let error = content(&ack).unwrap_or_default();
    Ok((!error.is_empty()).then(|| String::from_utf8_lossy(&error).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_acknowledgement_is_read_with_its_error() {
        assert_eq!(acknowledgement(&field(1, &[])).unwrap(), None);
        let long = "x".repeat(300);
        for error in ["no", long.as_str()] {
            let packet = field(1, &field(1, error.as_bytes()));
            assert_eq!(acknowledgement(&packet).unwrap().as_deref(), Some(error));
        }
        acknowledgement(&field(2, &[])).unwrap_err();
    }
}
