//! The connections that are open, for operators to see.
//!
//! In: an entry when a connection is decided, and its removal. Out: a list when somebody asks. Each thread writes to a
//! part of its own, so that its lock is free unless somebody asks.

use std::{
    cell::Cell,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::SystemTime,
};

use foldhash::HashMap;
use mesh::identity::Spiffe;

use crate::pods::PodUid;

/// Parts of the table. Threads beyond this number share them, which costs waiting and nothing else.
const PARTS: usize = 32;

/// All open connections of the daemon.
#[derive(Debug, Default)]
pub struct ConnectionTable {
    parts: [Mutex<Part>; PARTS],
}

#[derive(Debug, Default)]
struct Part {
    next: u64,
    open: HashMap<u64, (SystemTime, OpenConnection)>,
}

/// One open connection.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct OpenConnection {
    /// The pod of this node it belongs to.
    pub pod: PodUid,
    /// Whether it leaves the pod or enters it.
    pub direction: Direction,
    /// Where it comes from.
    pub source: SocketAddr,
    /// What was asked for.
    pub original_destination: SocketAddr,
    /// What was dialed.
    pub actual_destination: SocketAddr,
    /// How it is carried between the nodes.
    pub protocol: Protocol,
    /// The identity proven or demanded at the far end.
    pub peer: Option<Spiffe>,
}

/// Which way a connection goes, as its pod sees it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Direction {
    /// It enters the pod.
    Inbound,
    /// It leaves the pod.
    Outbound,
}

/// How a connection is carried between the nodes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Protocol {
    /// As it is.
    Tcp,
    /// In a tunnel.
    Hbone,
    /// In a tunnel inside a tunnel, to another network.
    DoubleHbone,
}

/// An entry; dropping it takes the connection out.
#[derive(Debug)]
pub struct Listed {
    table: Arc<ConnectionTable>,
    part: usize,
    id: u64,
}

impl Direction {
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

impl Protocol {
    /// Istio's word for it.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Hbone => "HBONE",
            Self::DoubleHbone => "DOUBLEHBONE",
        }
    }
}

impl ConnectionTable {
    /// A table without connections.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// Enters a connection until the entry is dropped.
    pub fn open(self: &Arc<Self>, connection: OpenConnection) -> Listed {
        let number = part_of_this_thread();
        let mut part = self.part(number);
        let id = part.next;
        part.next += 1;
        part.open.insert(id, (SystemTime::now(), connection));
        drop(part);
        Listed { table: Arc::clone(self), part: number, id }
    }

    /// The open connections and when each was entered, oldest first.
    pub fn list(&self) -> Vec<(SystemTime, OpenConnection)> {
        let mut all = Vec::new();
        for number in 0..PARTS {
            all.extend(self.part(number).open.values().cloned());
        }
        all.sort_by_key(|(since, _)| *since);
        all
    }

    fn part(&self, number: usize) -> MutexGuard<'_, Part> {
        // An entry is inserted or removed by one call, so a part is whole even if a holder panicked.
        self.parts[number].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.table.part(self.part).open.remove(&self.id);
    }
}

fn part_of_this_thread() -> usize {
    static THREADS: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static PART: Cell<usize> = Cell::new(THREADS.fetch_add(1, Ordering::Relaxed) % PARTS);
    }
    PART.get()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(port: u16) -> OpenConnection {
        let at = |port| SocketAddr::from(([10, 0, 0, 1], port));
        OpenConnection {
            pod: PodUid::parse("uid-1").unwrap(),
            direction: Direction::Outbound,
            source: at(port),
            original_destination: at(80),
            actual_destination: at(15008),
            protocol: Protocol::Hbone,
            peer: None,
        }
    }

    fn ports(table: &ConnectionTable) -> Vec<u16> {
        let mut ports: Vec<u16> = table.list().iter().map(|(_, open)| open.source.port()).collect();
        ports.sort_unstable();
        ports
    }

    #[test]
    fn a_connection_is_listed_until_its_entry_is_dropped() {
        let table = ConnectionTable::new();
        let first = table.open(connection(1));
        let second = table.open(connection(2));
        assert_eq!(ports(&table), [1, 2]);
        drop(first);
        assert_eq!(ports(&table), [2]);
        drop(second);
        assert!(table.list().is_empty());
    }

    #[test]
    fn an_entry_may_be_dropped_by_another_thread() {
        let table = ConnectionTable::new();
        let entries: Vec<Listed> = std::thread::scope(|scope| {
            let enter = |port| {
                scope.spawn({
                    let table = Arc::clone(&table);
                    move || table.open(connection(port))
                })
            };
            let threads: Vec<_> = (0..40).map(enter).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(ports(&table), (0..40).collect::<Vec<u16>>());
        drop(entries);
        assert!(table.list().is_empty());
    }
}
