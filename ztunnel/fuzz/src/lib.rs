//! What must hold for every input of what the daemon reads.
//!
//! In: arbitrary bytes. Out: nothing, or a panic that says which property broke. The fuzz targets and the corpus test
//! (`ztunnel/tests/corpus.rs`) run these same functions.

use std::{cell::RefCell, collections::BTreeSet, fs::File};

use ztunnel::pods::{
    AddError, Announced, PodTable, PodUid,
    zds::{Handled, Session, Snapshot, Violation},
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
