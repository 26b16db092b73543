use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs::File,
    io,
    mem::MaybeUninit,
    os::fd::AsFd,
    os::unix::fs::MetadataExt,
};

use proptest::prelude::*;
use prost::Message;
use proto::zds::{
    AddWorkload, DelWorkload, KeepWorkload, SnapshotSent, WorkloadInfo, WorkloadRequest,
    workload_request::Payload,
};
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::UnixListener;

use super::{
    socket::{receive, send},
    *,
};
use crate::pods::{AddError, PodUid, stand_in::StandIn};

fn add(uid: &str, name: &str) -> Payload {
    let info =
        WorkloadInfo { name: name.into(), namespace: "shop".into(), service_account: "web".into() };
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
    assert_eq!(play(&table, vec![add("a", "web"), add("b", "web"), end()]).unwrap(), ["a", "b"]);
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

#[test]
fn a_refused_pod_that_a_later_snapshot_does_not_name_is_forgotten() {
    let table = StandIn::default();
    assert_eq!(play(&table, vec![add("a", "refused"), end()]).unwrap(), Vec::<String>::new());
    assert_eq!(table.waiting().len(), 1);
    play(&table, vec![keep("a"), end()]).unwrap();
    assert_eq!(table.waiting().len(), 1, "it is named, and so tried again");
    play(&table, vec![end()]).unwrap();
    assert!(table.waiting().is_empty());
}

#[test]
fn surplus_descriptors_are_refused_and_closed() {
    let (mut read, write) = io::pipe().unwrap();
    let message = WorkloadRequest { payload: Some(keep("a")) }.encode_to_vec();
    let error =
        Session::new().handle(&message, vec![write.into()], &StandIn::default()).unwrap_err();
    assert_eq!(error.to_string(), "keep with 1 descriptors, expected 0");
    // The end of a pipe whose other end is open nowhere.
    assert_eq!(io::Read::read(&mut read, &mut [0]).unwrap(), 0);
}

/// The agent's end of the connections.
struct Agent {
    listener: UnixListener,
}

impl Agent {
    fn at(path: &Path) -> Self {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
                .unwrap();
        rustix::net::bind(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
        rustix::net::listen(&socket, 1).unwrap();
        Self { listener: UnixListener::from_std(socket.into()).unwrap() }
    }

    /// The next connection, after its hello.
    async fn accept(&self) -> UnixStream {
        let (daemon, _) = self.listener.accept().await.unwrap();
        let Packet::Whole(hello, _) = receive(&daemon).await.unwrap() else { panic!("cut") };
        assert_eq!(ZdsHello::decode(&*hello).unwrap().version, i32::from(Version::V1));
        daemon
    }
}

async fn acknowledged(daemon: &UnixStream) -> String {
    let Packet::Whole(ack, _) = receive(daemon).await.unwrap() else { panic!("cut") };
    match WorkloadResponse::decode(&*ack).unwrap().payload {
        Some(workload_response::Payload::Ack(ack)) => ack.error,
        None => panic!("no acknowledgement"),
    }
}

async fn tell(daemon: &UnixStream, payload: Payload) -> String {
    send(daemon, &WorkloadRequest { payload: Some(payload) }).await.unwrap();
    acknowledged(daemon).await
}

fn send_with_descriptors(daemon: &UnixStream, message: &[u8], count: usize) {
    let netns = File::open("/proc/self/ns/net").unwrap();
    let descriptors = vec![netns.as_fd(); count];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
    let mut ancillary = rustix::net::SendAncillaryBuffer::new(&mut space);
    assert!(ancillary.push(rustix::net::SendAncillaryMessage::ScmRights(&descriptors)));
    let parts = [io::IoSlice::new(message)];
    rustix::net::sendmsg(daemon, &parts, &mut ancillary, SendFlags::empty()).unwrap();
}

/// Runs `agent` against a daemon's side with `table`.
async fn against(table: &Rc<StandIn>, agent: impl AsyncFnOnce(Agent, watch::Receiver<Snapshot>)) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ztunnel.sock");
    let at_agent = Agent::at(&path);
    let (tell, told) = watch::channel(Snapshot::Pending);
    let local = tokio::task::LocalSet::new();
    let table = table.clone();
    local.spawn_local(async move { run(&path, table, tell).await });
    local.run_until(agent(at_agent, told)).await;
}

#[tokio::test(flavor = "current_thread")]
async fn an_agent_on_a_socket_hands_over_a_pod() {
    let table = Rc::new(StandIn::default());
    against(&table, async |agent, mut told| {
        let daemon = agent.accept().await;
        let message = WorkloadRequest { payload: Some(add("a", "web")) }.encode_to_vec();
        send_with_descriptors(&daemon, &message, 1);
        assert_eq!(acknowledged(&daemon).await, "");
        assert_eq!(table.uids().len(), 1);

        assert_eq!(tell(&daemon, end()).await, "");
        told.wait_for(|told| *told == Snapshot::Complete).await.unwrap();
        drop(daemon);
        told.wait_for(|told| *told == Snapshot::Pending).await.unwrap();
        assert_eq!(table.uids().len(), 1, "pods are served on without the agent");
    })
    .await;
}

#[tokio::test(flavor = "current_thread")]
async fn a_breach_of_the_protocol_is_answered_and_the_connection_made_again() {
    let table = Rc::new(StandIn::default());
    against(&table, async |agent, _| {
        let daemon = agent.accept().await;
        tell(&daemon, end()).await;
        assert_eq!(tell(&daemon, end()).await, "a second snapshot_sent");
        assert_eq!(receive(&daemon).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);

        let daemon = agent.accept().await;
        let message = WorkloadRequest { payload: Some(add("a", "web")) }.encode_to_vec();
        send_with_descriptors(&daemon, &message, 2);
        assert_eq!(acknowledged(&daemon).await, "add with 2 descriptors, expected 1");

        // MSG_CTRUNC, then MSG_TRUNC.
        let daemon = agent.accept().await;
        send_with_descriptors(&daemon, &message, 12);
        let cut = "the message was cut: it is too long or has too many descriptors";
        assert_eq!(acknowledged(&daemon).await, cut);
        let daemon = agent.accept().await;
        assert_eq!(tell(&daemon, keep(&"a".repeat(MAX_MESSAGE))).await, cut);
        drop(agent.accept().await);
        assert!(table.uids().is_empty());
    })
    .await;
}

/// What happens on a node; the agent tells it in the way of its protocol.
#[derive(Clone, Debug)]
enum Event {
    Started {
        pod: usize,
        netns: usize,
        serves: bool,
    },
    Ended {
        pod: usize,
    },
    /// The daemon's connection is lost, or the daemon connects.
    Disconnected,
    Connected,
    /// The agent sends the next message of its snapshot.
    Next {
        knows_netns: bool,
    },
}

fn event() -> impl Strategy<Value = Event> {
    let pod = 0..4_usize;
    prop_oneof![
        3 => (pod.clone(), 0..2_usize, prop::bool::weighted(0.8))
            .prop_map(|(pod, netns, serves)| Event::Started { pod, netns, serves }),
        2 => pod.prop_map(|pod| Event::Ended { pod }),
        1 => Just(Event::Disconnected),
        2 => Just(Event::Connected),
        4 => prop::bool::weighted(0.8).prop_map(|knows_netns| Event::Next { knows_netns }),
    ]
}

/// The agent: its pods, and one connection.
#[derive(Default)]
struct Model {
    /// Each pod's namespace, and whether the daemon can serve it.
    pods: BTreeMap<usize, (usize, bool)>,
    connection: Option<(Session, Option<VecDeque<usize>>)>,
    /// Pods whose namespace the agent could not hand over since the daemon last heard of it.
    stale: BTreeSet<usize>,
}

const NAMESPACES: [&str; 2] = ["/proc/self/ns/net", "/proc/self/ns/uts"];

impl Model {
    fn tell(&mut self, table: &StandIn, payload: Payload, netns: Option<usize>) {
        let descriptors = netns.map(|netns| File::open(NAMESPACES[netns]).unwrap().into());
        let message = WorkloadRequest { payload: Some(payload) }.encode_to_vec();
        let (session, _) = self.connection.as_mut().unwrap();
        session.handle(&message, descriptors.into_iter().collect(), table).unwrap();
    }

    fn tell_of(&mut self, table: &StandIn, pod: usize) {
        let (netns, serves) = self.pods[&pod];
        self.stale.remove(&pod);
        let name = if serves { "web" } else { "refused" };
        self.tell(table, add(&format!("pod-{pod}"), name), Some(netns));
    }

    fn happen(&mut self, table: &StandIn, event: &Event) {
        match *event {
            Event::Started { pod, netns, serves } => {
                self.pods.insert(pod, (netns, serves));
                match &mut self.connection {
                    Some((_, None)) => self.tell_of(table, pod),
                    Some((_, Some(rest))) if !rest.contains(&pod) => rest.push_back(pod),
                    Some((_, Some(_))) => {}
                    None => drop(self.stale.insert(pod)),
                }
            }
            Event::Ended { pod } => {
                self.pods.remove(&pod);
                self.stale.remove(&pod);
                if let Some((_, rest)) = &mut self.connection {
                    if let Some(rest) = rest {
                        rest.retain(|other| *other != pod);
                    }
                    self.tell(table, del(&format!("pod-{pod}")), None);
                }
            }
            Event::Disconnected => self.connection = None,
            Event::Connected => {
                let all = self.pods.keys().copied().collect();
                self.connection = Some((Session::new(), Some(all)));
            }
            Event::Next { knows_netns } => {
                let Some((_, Some(rest))) = &mut self.connection else { return };
                match rest.pop_front() {
                    Some(pod) if knows_netns => self.tell_of(table, pod),
                    Some(pod) => {
                        self.stale.insert(pod);
                        self.tell(table, keep(&format!("pod-{pod}")), None);
                    }
                    None => {
                        self.connection.as_mut().unwrap().1 = None;
                        self.tell(table, end(), None);
                    }
                }
            }
        }
    }

    /// Whatever came before: after a snapshot the daemon has what the agent has.
    fn check(&self, table: &StandIn) -> Result<(), TestCaseError> {
        if !matches!(self.connection, Some((_, None))) {
            return Ok(());
        }
        let uid = |pod: &usize| PodUid::parse(&format!("pod-{pod}")).unwrap();
        let agents: BTreeSet<_> = self.pods.keys().map(uid).collect();
        let (served, waiting) = (table.served.borrow().clone(), table.waiting());
        prop_assert!(served.keys().chain(&waiting).all(|uid| agents.contains(uid)));
        for (pod, (netns, serves)) in &self.pods {
            if self.stale.contains(pod) {
                continue;
            }
            let inode = serves.then(|| std::fs::metadata(NAMESPACES[*netns]).unwrap().ino());
            prop_assert_eq!(served.get(&uid(pod)).copied(), inode);
            prop_assert_eq!(waiting.contains(&uid(pod)), !serves);
        }
        Ok(())
    }
}

proptest! {
    #[test]
    fn after_a_snapshot_the_pods_served_are_the_agents(
        events in prop::collection::vec(event(), 0..60),
    ) {
        let (table, mut model) = (StandIn::default(), Model::default());
        for event in &events {
            model.happen(&table, event);
            model.check(&table)?;
        }
        model.happen(&table, &Event::Connected);
        while matches!(model.connection, Some((_, Some(_)))) {
            model.happen(&table, &Event::Next { knows_netns: true });
        }
        model.check(&table)?;
        prop_assert!(model.stale.is_empty());
    }

    #[test]
    fn no_bytes_of_an_agent_end_the_daemon(
        packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..8),
    ) {
        let (table, mut session) = (StandIn::default(), Session::new());
        for packet in packets {
            let _ = session.handle(&packet, vec![], &table);
        }
    }
}
