//! The node agent's protocol without its socket: what each message does to the pods that are served.
//!
//! In: one message and the descriptors that came with it. Out: calls on the [`PodTable`], and the answer; or the
//! [`Violation`] that ends the connection. Nothing is sent or received here.

use std::{collections::BTreeSet, fs::File, os::fd::OwnedFd};

use prost::Message;
use proto::zds::{AddWorkload, WorkloadRequest, workload_request::Payload};

use crate::pods::{Announced, CaptureOptions, PodTable, PodUid};

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
    /// A packet longer than any message, or with more descriptors.
    #[error("the message was cut: it is too long or has too many descriptors")]
    Cut,
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
    /// It knows all that were named: it serves them, or tries again to.
    Complete,
    /// Some were named that it knows nothing of but their uid: kept by the agent, and never announced here.
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
                let mut known: BTreeSet<PodUid> = table.uids().into_iter().collect();
                // A pod that could not be served is as gone as one that was, once the agent names neither.
                known.extend(table.waiting());
                for gone in known.difference(&snapshot) {
                    table.remove(gone);
                }
                Ok(Handled::SnapshotSent(match snapshot.is_subset(&known) {
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
