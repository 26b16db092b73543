//! Pods as Istio's node agent announces them (node-agent protocol, package `istio.workload.zds`).
//!
//! In: packets of the agent's `SOCK_SEQPACKET` socket, each one message with at most one descriptor. Out: calls on the
//! [`PodTable`] and one acknowledgement per message. [`Session`] is the protocol without the socket.

use std::{
    cell::Cell, collections::BTreeSet, fs::File, io, io::IoSliceMut, mem::MaybeUninit,
    os::fd::OwnedFd, path::Path, rc::Rc, time::Duration,
};

use prost::Message;
use proto::zds::{
    Ack, AddWorkload, Version, WorkloadRequest, WorkloadResponse, ZdsHello,
    workload_request::Payload, workload_response,
};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags,
    SocketAddrUnix, SocketFlags, SocketType,
};
use tokio::{io::Interest, net::UnixStream, sync::watch};

use super::{Announced, CaptureOptions, PodTable, PodUid};

/// The longest message either side sends, in bytes.
const MAX_MESSAGE: usize = 1024;
const FIRST_RETRY: Duration = Duration::from_millis(20);
const LAST_RETRY: Duration = Duration::from_secs(15);

/// One connection to the agent.
#[derive(Debug, Default)]
pub struct Session {
    /// Pods named so far; `None` once the snapshot is complete.
    snapshot: Option<BTreeSet<PodUid>>,
}

/// What the agent did against its own protocol. The connection cannot go on.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Violation {
    /// A message that cannot be read.
    #[error("unreadable message: {reason}")]
    Unreadable {
        /// The decoder's words.
        reason: String,
    },
    /// A message without content.
    #[error("a message without payload")]
    NoPayload,
    /// An `add` without names.
    #[error("add of pod {uid} without workload_info")]
    NoWorkloadInfo {
        /// The pod.
        uid: String,
    },
    /// An `add` with no descriptor or several, or another message with one.
    #[error("{message} with {descriptors} descriptors, expected {expected}")]
    Descriptors {
        /// Which message.
        message: &'static str,
        /// How many came.
        descriptors: usize,
        /// How many belong to it.
        expected: usize,
    },
    /// A `keep` after the snapshot.
    #[error("keep of pod {uid} after the snapshot")]
    LateKeep {
        /// The pod.
        uid: String,
    },
    /// A second `snapshot_sent`.
    #[error("a second snapshot_sent")]
    SecondSnapshot,
}

/// What a message led to.
#[derive(Debug, Eq, PartialEq)]
pub enum Handled {
    /// Acknowledged; an error text refuses the one pod.
    Answer(Result<(), String>),
    /// The agent has named all its pods.
    SnapshotSent(Snapshot),
}

/// Whether the daemon knows all pods of the agent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Snapshot {
    /// There is no connection, or the agent is still naming them.
    Pending,
    /// It serves all that were named.
    Complete,
    /// Some were named that it does not serve.
    Incomplete,
}

impl Session {
    /// A new connection: the agent sends its snapshot first.
    pub fn new() -> Self {
        Self { snapshot: Some(BTreeSet::new()) }
    }

    /// Acts on one message of the agent.
    ///
    /// # Errors
    /// [`Violation`]: the message breaks the protocol; the connection has to end.
    pub fn handle(
        &mut self,
        message: &[u8],
        mut descriptors: Vec<OwnedFd>,
        table: &impl PodTable,
    ) -> Result<Handled, Violation> {
        let request = WorkloadRequest::decode(message)
            .map_err(|error| Violation::Unreadable { reason: error.to_string() })?;
        let payload = request.payload.ok_or(Violation::NoPayload)?;
        let (name, expected) = match &payload {
            Payload::Add(_) => ("add", 1),
            Payload::Del(_) => ("del", 0),
            Payload::Keep(_) => ("keep", 0),
            Payload::SnapshotSent(_) => ("snapshot_sent", 0),
        };
        if descriptors.len() != expected {
            return Err(Violation::Descriptors {
                message: name,
                descriptors: descriptors.len(),
                expected,
            });
        }
        match payload {
            Payload::Add(add) => {
                let netns = descriptors.pop().expect("an add has one: checked above");
                self.add(add, netns, table).map(Handled::Answer)
            }
            Payload::Keep(keep) => {
                let Some(snapshot) = &mut self.snapshot else {
                    return Err(Violation::LateKeep { uid: keep.uid });
                };
                Ok(Handled::Answer(parse_uid(&keep.uid).map(|uid| {
                    snapshot.insert(uid);
                })))
            }
            Payload::Del(del) => {
                let removed = parse_uid(&del.uid).map(|uid| {
                    if let Some(snapshot) = &mut self.snapshot {
                        snapshot.remove(&uid);
                    } else {
                        table.remove(&uid);
                    }
                });
                Ok(Handled::Answer(removed))
            }
            Payload::SnapshotSent(_) => {
                let snapshot = self.snapshot.take().ok_or(Violation::SecondSnapshot)?;
                let served: BTreeSet<PodUid> = table.uids().into_iter().collect();
                for gone in served.difference(&snapshot) {
                    table.remove(gone);
                }
                Ok(Handled::SnapshotSent(match snapshot.is_subset(&served) {
                    true => Snapshot::Complete,
                    false => Snapshot::Incomplete,
                }))
            }
        }
    }

    fn add(
        &mut self,
        add: AddWorkload,
        netns: OwnedFd,
        table: &impl PodTable,
    ) -> Result<Result<(), String>, Violation> {
        let Some(info) = add.workload_info else {
            return Err(Violation::NoWorkloadInfo { uid: add.uid });
        };
        let uid = match parse_uid(&add.uid) {
            Ok(uid) => uid,
            Err(reason) => return Ok(Err(reason)),
        };
        if let Some(snapshot) = &mut self.snapshot {
            snapshot.insert(uid.clone());
        }
        let pod = Announced {
            uid,
            namespace: info.namespace,
            name: info.name,
            service_account: info.service_account,
            netns: File::from(netns),
            ips: Vec::new(),
            capture: CaptureOptions::default(),
        };
        Ok(table.add(pod).map_err(|error| error.to_string()))
    }
}

fn parse_uid(uid: &str) -> Result<PodUid, String> {
    PodUid::parse(uid).map_err(|error| error.to_string())
}

/// Keeps a connection to the agent for ever, and tells how far its snapshot is. Pods keep being served while there is no connection. Runs on the control thread's `LocalSet`.
pub async fn run<T: PodTable>(path: &Path, table: Rc<T>, tell: watch::Sender<Snapshot>) {
    let mut retry = FIRST_RETRY;
    let connected = Cell::new(false);
    loop {
        connected.set(false);
        let end = converse(path, &*table, &tell, &connected).await;
        tell.send_replace(Snapshot::Pending);
        if connected.take() {
            retry = FIRST_RETRY;
        }
        tracing::warn!(agent = %path.display(), reason = %end, retry_in = ?retry, "no connection to the node agent");
        tokio::time::sleep(retry).await;
        retry = (retry * 2).min(LAST_RETRY);
    }
}

/// One connection, until it ends; returns why it did.
async fn converse(
    path: &Path,
    table: &impl PodTable,
    tell: &watch::Sender<Snapshot>,
    connected: &Cell<bool>,
) -> io::Error {
    let talk = async {
        let socket = connect(path)?;
        send(&socket, &ZdsHello { version: Version::V1.into() }).await?;
        connected.set(true);
        let mut session = Session::new();
        loop {
            let (message, descriptors) = receive(&socket).await?;
            let (error, violation) = match session.handle(&message, descriptors, table) {
                Ok(Handled::Answer(result)) => (result.err().unwrap_or_default(), None),
                Ok(Handled::SnapshotSent(snapshot)) => {
                    tell.send_replace(snapshot);
                    (String::new(), None)
                }
                Err(violation) => (violation.to_string(), Some(violation)),
            };
            let ack = workload_response::Payload::Ack(Ack { error: shorten(error) });
            send(&socket, &WorkloadResponse { payload: Some(ack) }).await?;
            if let Some(violation) = violation {
                return Err::<(), _>(io::Error::new(io::ErrorKind::InvalidData, violation));
            }
        }
    };
    match talk.await {
        Ok(()) => io::ErrorKind::UnexpectedEof.into(),
        Err(error) => error,
    }
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

/// A `UnixStream` only in name: the descriptor is of a `SOCK_SEQPACKET` socket, and the type lends it to the runtime.
fn connect(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    UnixStream::from_std(socket.into())
}

async fn send(socket: &UnixStream, message: &impl Message) -> io::Result<()> {
    let bytes = message.encode_to_vec();
    let send_now = || Ok(rustix::net::send(socket, &bytes, SendFlags::NOSIGNAL)?);
    socket.async_io(Interest::WRITABLE, send_now).await.map(drop)
}

async fn receive(socket: &UnixStream) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    socket.async_io(Interest::READABLE, || receive_now(socket)).await
}

fn receive_now(socket: &UnixStream) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    // Room for more descriptors than any message may have, so that surplus ones arrive and are closed.
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut message = vec![0; MAX_MESSAGE];
    let received = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut message)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut descriptors = Vec::new();
    for item in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = item {
            descriptors.extend(rights);
        }
    }
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the agent's message was cut"));
    }
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    message.truncate(received.bytes);
    Ok((message, descriptors))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use proto::zds::{DelWorkload, KeepWorkload, SnapshotSent, WorkloadInfo};
    use tokio::net::UnixListener;

    use super::*;
    use crate::pods::{AddError, stand_in::StandIn};

    fn add(uid: &str, name: &str) -> Payload {
        let info = WorkloadInfo {
            name: name.into(),
            namespace: "shop".into(),
            service_account: "web".into(),
        };
        Payload::Add(AddWorkload { uid: uid.into(), workload_info: Some(info) })
    }

    fn keep(uid: &str) -> Payload {
        Payload::Keep(KeepWorkload { uid: uid.into() })
    }

    fn del(uid: &str) -> Payload {
        Payload::Del(DelWorkload { uid: uid.into() })
    }

    fn end() -> Payload {
        Payload::SnapshotSent(SnapshotSent {})
    }

    /// Plays one connection and tells the pods served after it, or the violation.
    fn play(table: &StandIn, messages: Vec<Payload>) -> Result<Vec<String>, Violation> {
        let mut session = Session::new();
        for payload in messages {
            let descriptors = match payload {
                Payload::Add(_) => vec![File::open("/proc/self/ns/net").unwrap().into()],
                Payload::Del(_) | Payload::Keep(_) | Payload::SnapshotSent(_) => vec![],
            };
            let message = WorkloadRequest { payload: Some(payload) }.encode_to_vec();
            session.handle(&message, descriptors, table)?;
        }
        Ok(table.uids().iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_snapshot_leaves_only_what_it_names() {
        let table = StandIn::default();
        assert_eq!(
            play(&table, vec![add("a", "web"), add("b", "web"), end()]).unwrap(),
            ["a", "b"]
        );
        assert_eq!(play(&table, vec![keep("b"), add("c", "web"), end()]).unwrap(), ["b", "c"]);
    }

    #[test]
    fn until_the_snapshot_is_complete_nothing_is_removed() {
        let table = StandIn::default();
        assert_eq!(play(&table, vec![add("a", "web"), end()]).unwrap(), ["a"]);
        assert_eq!(play(&table, vec![add("b", "web"), del("a")]).unwrap(), ["a", "b"]);
        assert_eq!(play(&table, vec![keep("a"), del("a"), end()]).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn a_pod_that_cannot_be_served_is_refused_by_its_acknowledgement() {
        let message = WorkloadRequest { payload: Some(add("a", "refused")) }.encode_to_vec();
        let netns = File::open("/proc/self/ns/net").unwrap().into();
        let handled = Session::new().handle(&message, vec![netns], &StandIn::default()).unwrap();
        assert_eq!(handled, Handled::Answer(Err(AddError::NoAddress.to_string())));
    }

    #[test]
    fn a_snapshot_with_a_pod_that_is_not_served_is_incomplete() {
        let check = |messages: Vec<Payload>, expected| {
            let (table, mut session) = (StandIn::default(), Session::new());
            let mut last = None;
            for payload in messages {
                let message = WorkloadRequest { payload: Some(payload) }.encode_to_vec();
                last = session.handle(&message, vec![], &table).ok();
            }
            assert_eq!(last, Some(Handled::SnapshotSent(expected)));
        };
        check(vec![end()], Snapshot::Complete);
        check(vec![keep("lost"), end()], Snapshot::Incomplete);
    }

    #[test]
    fn breaches_of_the_protocol_are_named() {
        let table = StandIn::default();
        let check = |messages, expected: &str| {
            assert_eq!(play(&table, messages).unwrap_err().to_string(), expected);
        };
        check(vec![end(), keep("a")], "keep of pod a after the snapshot");
        check(vec![end(), end()], "a second snapshot_sent");
        let nameless = Payload::Add(AddWorkload { uid: "a".into(), workload_info: None });
        check(vec![nameless], "add of pod a without workload_info");
        let message = WorkloadRequest { payload: Some(add("a", "web")) }.encode_to_vec();
        let error = Session::new().handle(&message, vec![], &table).unwrap_err();
        assert_eq!(error.to_string(), "add with 0 descriptors, expected 1");
        assert!(matches!(
            Session::new().handle(&[0xff], vec![], &table),
            Err(Violation::Unreadable { .. })
        ));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn an_agent_on_a_socket_hands_over_a_pod() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ztunnel.sock");
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let listener =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
                .unwrap();
        rustix::net::bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        rustix::net::listen(&listener, 1).unwrap();
        let listener = UnixListener::from_std(listener.into()).unwrap();

        let table = Rc::new(StandIn::default());
        let (tell, mut told) = watch::channel(Snapshot::Pending);
        let local = tokio::task::LocalSet::new();
        let daemon_table = table.clone();
        local.spawn_local(async move { run(&path, daemon_table, tell).await });
        local
            .run_until(async {
                let (agent, _) = listener.accept().await.unwrap();
                let (hello, _) = receive(&agent).await.unwrap();
                assert_eq!(ZdsHello::decode(&*hello).unwrap().version, i32::from(Version::V1));

                let message = WorkloadRequest { payload: Some(add("a", "web")) }.encode_to_vec();
                send_with_descriptor(&agent, &message, &File::open("/proc/self/ns/net").unwrap());
                let (ack, _) = receive(&agent).await.unwrap();
                let ack = WorkloadResponse::decode(&*ack).unwrap();
                assert_eq!(ack.payload, Some(workload_response::Payload::Ack(Ack::default())));
                assert_eq!(table.uids().len(), 1);

                send(&agent, &WorkloadRequest { payload: Some(end()) }).await.unwrap();
                told.wait_for(|told| *told == Snapshot::Complete).await.unwrap();
                drop(agent);
                told.wait_for(|told| *told == Snapshot::Pending).await.unwrap();
                assert_eq!(table.uids().len(), 1, "pods are served on without the agent");
            })
            .await;
    }

    fn send_with_descriptor(agent: &UnixStream, message: &[u8], netns: &File) {
        let descriptors = [netns.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = rustix::net::SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(rustix::net::SendAncillaryMessage::ScmRights(&descriptors)));
        let parts = [io::IoSlice::new(message)];
        rustix::net::sendmsg(agent, &parts, &mut ancillary, SendFlags::empty()).unwrap();
    }
}
