//! What must hold for every input of what the daemon reads.
//!
//! In: arbitrary bytes. Out: nothing, or a panic that says which property broke. The fuzz targets and the corpus test
//! (`ztunnel/tests/corpus.rs`) run these same functions.

use std::{cell::RefCell, collections::BTreeSet, fs::File};

use ztunnel::{
    dns::{self, Known, Malformed, Request, Transport},
    pods::{
        AddError, Announced, PodTable, PodUid,
        zds::{Handled, Session, Snapshot, Violation},
    },
};

/// A connection of a node agent: packets of a length (one byte), a number of descriptors (one byte) and a message.
/// Each is answered; a breach of the protocol ends it; after a whole snapshot nothing is served that it did not name.
pub fn zds(mut bytes: &[u8]) {
    let (table, mut session, mut snapshots) = (Table::default(), Session::new(), 0);
    while let [length, descriptors, rest @ ..] = bytes {
        let (message, after) = rest.split_at(usize::from(*length).min(rest.len()));
        let netns = || File::open("/dev/null").expect("/dev/null can be opened").into();
        let descriptors = (0..descriptors % 3).map(|_| netns()).collect();
        match session.handle(message, descriptors, &table) {
            Ok(Handled::Answer(_)) => {}
            Ok(Handled::SnapshotSent(snapshot)) => {
                snapshots += 1;
                assert!(snapshots == 1 && snapshot != Snapshot::Pending);
                let (named, served) = (table.named.borrow(), table.served.borrow());
                assert!(served.is_subset(&named), "{served:?} of {named:?}");
            }
            Err(violation) => {
                assert!(!violation.to_string().is_empty());
                assert!(!matches!(violation, Violation::SecondSnapshot) || snapshots == 1);
                return;
            }
        }
        bytes = after;
    }
}

/// A query (its length in one byte) and what a server says to it. Every answer is for the one who asked and fits.
pub fn dns(bytes: &[u8]) {
    let [length, rest @ ..] = bytes else { return };
    let (query, answer) = rest.split_at(usize::from(*length).min(rest.len()));
    for transport in [Transport::Udp, Transport::Tcp] {
        let request = match Request::read(query, transport) {
            Ok(request) => request,
            Err(Malformed::Answered(answer)) => return assert_eq!(answer[..2], query[..2]),
            Err(Malformed::NoHeader) => return assert!(query.len() < 12),
        };
        let addresses = (0..200).map(|last| [10, 0, 0, last].into()).collect();
        let alias_of = request.addresses_of().map(|(name, _)| name);
        let known = Known { alias_of, addresses };
        let seconds = std::time::Duration::from_secs(30);
        let mut answers = vec![request.answer(&known, seconds)];
        if dns::matches(query, answer) {
            answers.push(dns::finish_answer(&request, answer.to_vec()));
        }
        for answer in answers {
            assert_eq!(answer[..2], query[..2]);
            assert!(answer.len() <= usize::from(u16::MAX) && answer[2] & 0x80 != 0);
        }
    }
}

/// Knows which pods are served, and which were announced.
#[derive(Default)]
struct Table {
    served: RefCell<BTreeSet<PodUid>>,
    named: RefCell<BTreeSet<PodUid>>,
}

impl PodTable for Table {
    fn add(&self, pod: Announced) -> Result<(), AddError> {
        self.named.borrow_mut().insert(pod.uid.clone());
        self.served.borrow_mut().insert(pod.uid);
        Ok(())
    }

    fn remove(&self, uid: &PodUid) {
        self.served.borrow_mut().remove(uid);
    }

    fn uids(&self) -> Vec<PodUid> {
        self.served.borrow().iter().cloned().collect()
    }

    fn waiting(&self) -> Vec<PodUid> {
        Vec::new()
    }
}
